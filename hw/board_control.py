"""Registers of a board beside the engine's: its clock, the phase of the memory's clock, the link's damaged frames."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from .interfaces import Axi4Lite

__all__ = ["BoardControl", "BoardRegister"]

_SLVERR = 2
#: Cycles of a step of the phase, in half of which the PLL's step is high; a quarter before it and a quarter after it the direction stays.
_STEP_CYCLES = 64


class BoardRegister(enum.IntEnum, shape=12):
    """Byte addresses, all above `registers.Register`'s. An engine without a board answers them with SLVERR."""

    ENGINE_KHZ = 0x800  # the engine's clock, measured in the last whole millisecond of the line's clock
    PHASE = 0x804       # the PLL's steps by which the memory's clock is later than at power-up, signed. What is written is where it goes, a microsecond a step
    PHASE_STEPS = 0x808  # steps of a period of the memory's clock
    DAMAGED = 0x80C     # frames received damaged since power-up, modulo 2^32


class BoardControl(wiring.Component):
    """The control port of a board: `engine` is that of its engine, which has all addresses below 0x800. One access at a time, of whole words.

    `line` is a clock domain of `line_hz`. The memory's clock has `phase_steps` steps.
    """

    def __init__(self, line_hz: float, phase_steps: int, *, line: str = "line"):
        self._line_hz, self._phase_steps, self._line = line_hz, phase_steps, line
        super().__init__({"bus": In(Axi4Lite()), "engine": Out(Axi4Lite()), "damaged": In(1), "step": Out(1), "advance": Out(1)})

    def elaborate(self, platform):
        m = Module()
        bus, engine = self.bus, self.engine
        khz, damaged, phase = Signal(20), Signal(32), Signal(signed(16))
        m.d.sync += damaged.eq(damaged + self.damaged)
        self._measure(m, khz)
        target = self._move(m, phase)

        # Both directions have registers, as host and engine lie far apart.
        address, data, response, read, written = Signal(12), Signal(32), Signal(2), Signal(), Signal()  # the last ones: an answer to be given
        m.d.comb += [
            engine.araddr.eq(address), engine.awaddr.eq(address), engine.wdata.eq(data), engine.wstrb.eq(0xF), engine.rready.eq(1), engine.bready.eq(1),
            bus.rvalid.eq(read), bus.rdata.eq(data), bus.rresp.eq(response), bus.bvalid.eq(written), bus.bresp.eq(response),
        ]
        for channel in ("ar", "aw", "w"):
            with m.If(getattr(engine, f"{channel}ready")):
                m.d.sync += getattr(engine, f"{channel}valid").eq(0)
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [address.eq(Mux(bus.arvalid, bus.araddr, bus.awaddr)), data.eq(bus.wdata)]
                with m.If(bus.arvalid):
                    m.d.comb += bus.arready.eq(1)
                    m.d.sync += engine.arvalid.eq(~bus.araddr[-1])
                    m.next = "Read"
                with m.Elif(bus.awvalid & bus.wvalid):
                    m.d.comb += [bus.awready.eq(1), bus.wready.eq(1)]
                    m.d.sync += [engine.awvalid.eq(~bus.awaddr[-1]), engine.wvalid.eq(~bus.awaddr[-1])]
                    m.next = "Write"
            with m.State("Read"):
                m.d.sync += [data.eq(engine.rdata), response.eq(engine.rresp)]
                with m.If(address[-1]):
                    m.d.sync += response.eq(0)
                    with m.Switch(address):
                        for register, value in ((BoardRegister.ENGINE_KHZ, khz), (BoardRegister.PHASE, phase), (BoardRegister.PHASE_STEPS, self._phase_steps),
                                                (BoardRegister.DAMAGED, damaged)):
                            with m.Case(register):
                                m.d.sync += data.eq(value)
                        with m.Default():
                            m.d.sync += [data.eq(0), response.eq(_SLVERR)]
                with m.If(address[-1] | engine.rvalid):
                    m.d.sync += read.eq(1)
                    m.next = "Answer"
            with m.State("Write"):
                m.d.sync += response.eq(engine.bresp)
                with m.If(address[-1]):
                    m.d.sync += response.eq(_SLVERR)
                    with m.If(address == BoardRegister.PHASE):
                        m.d.sync += [response.eq(0), target.eq(data)]
                with m.If(address[-1] | engine.bvalid):
                    m.d.sync += written.eq(1)
                    m.next = "Answer"
            with m.State("Answer"), m.If(read & bus.rready | written & bus.bready):
                m.d.sync += [read.eq(0), written.eq(0)]
                m.next = "Idle"
        return m

    def _measure(self, m, khz):
        line_cycles = round(self._line_hz / 1000)
        count, mark = Signal(range(line_cycles)), Signal()
        with m.If(count == 0):
            m.d[self._line] += [count.eq(line_cycles - 1), mark.eq(~mark)]
        with m.Else():
            m.d[self._line] += count.eq(count - 1)
        here, before, cycles = Signal(), Signal(), Signal(20)
        m.submodules.mark = FFSynchronizer(mark, here)
        m.d.sync += [before.eq(here), cycles.eq(cycles + 1)]
        with m.If(before != here):
            m.d.sync += [khz.eq(cycles), cycles.eq(1)]

    def _move(self, m, phase):
        """Steps of the PLL until `phase` is where the signal that is returned says."""
        target = Signal.like(phase)
        apart, behind = Signal(), Signal()  # a cycle late: a step that a new target makes needless is taken back
        m.d.sync += [apart.eq(phase != target), behind.eq(target < phase)]
        wait = Signal(range(_STEP_CYCLES))
        m.d.sync += self.step.eq(wait[-1] ^ wait[-2])
        with m.If(wait.any()):
            m.d.sync += wait.eq(wait - 1)
        with m.Elif(apart):
            m.d.sync += [wait.eq(_STEP_CYCLES - 1), self.advance.eq(behind), phase.eq(phase + Mux(behind, -1, 1))]
        return target
