"""The control port: registers, start and reset of the engine, watchdog, counters."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .interfaces import Axi4Lite
from .isa import LENGTH_BITS, Base, Unit
from .registers import WRITABLE, Command, ErrorCode, Register, Snapshot, Status, identity

__all__ = ["Control", "EngineControl", "EngineState"]

_SLVERR = 2
#: Cycles of the engine's reset, then cycles until its start: copies of the reset signal may come later by less.
_RESET_CYCLES = 4


class _Phase(enum.IntEnum, shape=3):
    IDLE = 0
    SETTLE = 1  # the bus still owes answers
    RESET = 2
    START = 3
    RUN = 4


class EngineControl(wiring.Signature):
    """What the control port tells the engine. `halt`: no further bursts to the bus."""

    def __init__(self):
        super().__init__({
            "reset": Out(1, init=1), "halt": Out(1, init=1), "start": Out(1), "program": Out(32), "length": Out(LENGTH_BITS),
            "bases": Out(data.ArrayLayout(32, len(Base))),
        })


class EngineState(wiring.Signature):
    """What the engine tells the control port, some of it a cycle late. `idle`: the bus owes no answer; `retire` pulses per unit, `active` (a pixel taken),
    `read_beat`, `write_beat`, `saturated` are counted. `pending` is the dispatcher's."""

    def __init__(self):
        super().__init__({
            "done": Out(1), "error": Out(ErrorCode), "index": Out(LENGTH_BITS), "read_error": Out(1), "write_error": Out(1), "idle": Out(1),
            "retire": Out(len(Unit)), "retired": Out(32).array(len(Unit)), "pending": Out(len(Unit)), "snapshot": Out(Snapshot),
            "active": Out(1), "read_beat": Out(1), "write_beat": Out(1), "saturated": Out(3),
        })


class Control(wiring.Component):
    """AXI4-Lite subordinate with the registers of `registers.Register`; a read is answered after three cycles, a write after two.

    A start or reset first keeps bursts from the bus until all begun ones have been answered, then resets the engine: a bus that never answers keeps `Status.busy` set.
    A program ends with END or with an error, after which the engine is kept from the bus until the next start or reset. `interrupt`: `Status.done` or an error;
    `error`: the latter.
    """

    def __init__(self, config: AcceleratorConfig, build: int = 0):
        if not 0 <= build < 1 << 32:
            raise ValueError(f"build must be in 0…2^32−1, not {build!r}")
        self._config = config
        self._build = build
        super().__init__({"bus": In(Axi4Lite()), "interrupt": Out(1), "error": Out(1), "engine": Out(EngineControl()), "state": In(EngineState())})

    def elaborate(self, platform):
        m = Module()
        self._settings = {register: Signal(32, name=register.name.lower()) for register in WRITABLE}
        status = Signal(Status)
        command = Signal(Command)  # accepted in this cycle
        running = Signal()
        self._run(m, status, command, running)
        counters = self._count(m, command, running)
        self._writes(m, status, command)
        self._reads(m, {
            **identity(self._config, self._build), Register.STATUS: status, Register.ERROR_INDEX: self.state.index, **self._settings, **counters,
            **{Register[f"RETIRED_{unit.name}"]: self.state.retired[unit] for unit in Unit},
        })
        m.d.comb += [
            self.engine.program.eq(self._settings[Register.PROGRAM]),
            self.engine.length.eq(self._settings[Register.INSTRUCTIONS]),
            *(self.engine.bases[base].eq(self._settings[Register[f"BASE_{base.name}"]]) for base in Base),
            self.error.eq(status.error != ErrorCode.NONE), self.interrupt.eq(status.done | self.error),
        ]
        return m

    def _run(self, m, status, command, running):
        """A program's or a reset's way through the phases."""
        engine, state = self.engine, self.state
        expired = self._watch(m, running)
        stuck, waiting = self._stuck_unit(m)
        phase = Signal(_Phase, init=_Phase.RESET)  # the engine has no other reset
        to_start = Signal()
        elapsed = Signal(range(2 * _RESET_CYCLES))
        m.d.comb += [running.eq((phase == _Phase.START) | (phase == _Phase.RUN)), engine.start.eq(phase == _Phase.START)]
        failed = (state.error != ErrorCode.NONE) | state.read_error | state.write_error
        m.d.sync += [engine.halt.eq(~running), engine.reset.eq((phase == _Phase.RESET) & (elapsed < _RESET_CYCLES))]
        with m.Switch(phase):
            with m.Case(_Phase.SETTLE):
                m.d.sync += elapsed.eq(0)
                with m.If(engine.halt & state.idle):
                    m.d.sync += phase.eq(_Phase.RESET)
            with m.Case(_Phase.RESET):
                m.d.sync += elapsed.eq(elapsed + 1)
                with m.If(elapsed == 2 * _RESET_CYCLES - 1):
                    m.d.sync += [phase.eq(Mux(to_start, _Phase.START, _Phase.IDLE)), status.busy.eq(to_start)]
            with m.Case(_Phase.START):
                m.d.sync += phase.eq(_Phase.RUN)
            with m.Case(_Phase.RUN):
                with m.If(failed | expired | state.done):
                    m.d.sync += [phase.eq(_Phase.IDLE), status.busy.eq(0), status.done.eq(~failed & ~expired)]
                with m.If(state.error != ErrorCode.NONE):
                    m.d.sync += status.error.eq(state.error)
                with m.Elif(state.read_error):
                    m.d.sync += status.error.eq(ErrorCode.READ)
                with m.Elif(state.write_error):
                    m.d.sync += status.error.eq(ErrorCode.WRITE)
                with m.Elif(expired):
                    m.d.sync += [status.error.eq(ErrorCode.WATCHDOG), status.unit.eq(stuck), status.waiting.eq(waiting)]
        with m.If(command.start | command.reset):
            m.d.sync += [phase.eq(_Phase.SETTLE), status.eq(Status.const({"busy": 1})), to_start.eq(~command.reset)]

    def _watch(self, m, running):
        """Whether nothing has retired for too long."""
        limit = self._settings[Register.WATCHDOG]
        quiet = Signal(32)
        expired = Signal()
        with m.If(~running | self.state.retire.any()):
            m.d.sync += [quiet.eq(0), expired.eq(0)]
        with m.Else():
            m.d.sync += [quiet.eq(quiet + 1), expired.eq((quiet == limit) & limit.any())]
        return expired

    def _stuck_unit(self, m):
        """Who is busy without waiting holds up the others; else who waits for tokens while others wait for it; else who waits. The lowest of them,
        a cycle ago, and what it waits for."""
        unit_found, waiting = Signal(3), Signal(len(Unit))
        snapshot = self.state.snapshot
        waits = [snapshot.waiting[unit].any() for unit in Unit]
        awaited = [Cat(snapshot.waiting[other][unit] for other in Unit).any() for unit in Unit]
        m.d.sync += [unit_found.eq(7), waiting.eq(0)]
        for suspect in (
            lambda unit: waits[unit],
            lambda unit: waits[unit] & awaited[unit],
            lambda unit: snapshot.busy[unit] & ~waits[unit],
        ):
            for unit in reversed(Unit):
                with m.If(suspect(unit)):
                    m.d.sync += [unit_found.eq(unit), waiting.eq(snapshot.waiting[unit])]
        return unit_found, waiting

    def _count(self, m, command, running):
        """Counters of a program, one cycle behind it."""
        state = self.state
        compute = state.snapshot.waiting[Unit.COMPUTE]
        events = {
            Register.CYCLES: 1, Register.ACTIVE: state.active, Register.READ_BEATS: state.read_beat, Register.WRITE_BEATS: state.write_beat,
            Register.SATURATED: state.saturated,
        }
        cause = ~state.active
        for register, stalled in (
            (Register.STALL_WEIGHTS, compute[Unit.WEIGHT]), (Register.STALL_MAPS, compute[Unit.MAP]), (Register.STALL_DRAIN, compute[Unit.DRAIN]),
            (Register.STALL_INSTRUCTION, ~state.pending[Unit.COMPUTE] & ~state.snapshot.busy[Unit.COMPUTE]),
        ):
            events[register] = cause & stalled
            cause = cause & ~stalled
        clear = Signal()
        m.d.sync += clear.eq(command.start | command.reset)
        counters = {}
        for register, event in events.items():
            counters[register] = counter = Signal(32, name=register.name.lower())
            step = Signal.like(state.saturated, name=f"{register.name.lower()}_step")
            m.d.sync += [step.eq(Mux(running, event, 0)), counter.eq(counter + step)]
            with m.If(clear):
                m.d.sync += [step.eq(0), counter.eq(0)]
        counters[Register.SNAPSHOT] = snapshot = Signal(Snapshot)
        with m.If(running):
            m.d.sync += snapshot.eq(state.snapshot)
        return counters

    def _writes(self, m, status, command):
        bus = self.bus
        accepted, allowed = Signal(), Signal()
        word = Signal(32)
        wanted = Command(word[:Command.as_shape().size])
        ready = bus.awvalid & bus.wvalid & ~bus.bvalid & ~accepted
        m.d.comb += [bus.awready.eq(ready), bus.wready.eq(ready)]
        m.d.sync += [accepted.eq(ready), word.eq(bus.wdata)]

        def selected(register):
            """Whether the accepted write is one of this whole register."""
            match = Signal(name=f"selected_{register.name.lower()}")
            m.d.sync += match.eq(ready & bus.wstrb.all() & (bus.awaddr[2:] == register >> 2))
            return match

        with m.If(selected(Register.COMMAND)):
            m.d.comb += [allowed.eq(wanted.reset | ~status.busy), command.reset.eq(wanted.reset), command.start.eq(wanted.start & ~wanted.reset & ~status.busy)]
        for register, setting in self._settings.items():
            with m.If(selected(register) & ~status.busy):
                m.d.comb += allowed.eq(1)
                m.d.sync += setting.eq(word)
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(accepted):
            m.d.sync += [bus.bvalid.eq(1), bus.bresp.eq(Mux(allowed, 0, _SLVERR))]

    def _reads(self, m, registers):
        """In two steps: the word of each bank of eight registers, then the bank."""
        bus = self.bus
        reading = Signal(2)
        address = Signal(12)
        m.d.comb += bus.arready.eq(~reading.any() & ~bus.rvalid)
        m.d.sync += reading.eq(Cat(bus.arready & bus.arvalid, reading[0]))
        with m.If(bus.arready):
            m.d.sync += address.eq(bus.araddr)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(reading[1]):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(0), bus.rresp.eq(_SLVERR)]
        for bank in sorted({register >> 5 for register in registers}):
            word = Signal(32, name=f"bank_{bank}")
            known = Signal(name=f"known_{bank}")
            m.d.sync += [word.eq(0), known.eq(0)]
            with m.Switch(address[2:5]):
                for register, value in registers.items():
                    if register >> 5 == bank:
                        with m.Case(register >> 2 & 7):
                            m.d.sync += [word.eq(value), known.eq(1)]
            with m.If(reading[1] & (address[5:] == bank) & known):
                m.d.sync += [bus.rdata.eq(word), bus.rresp.eq(0)]
