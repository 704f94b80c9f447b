"""The in-order engine: one instruction after the other, from one memory in which its buffers lie too. For FPGAs that the overlapped engine does not fit.

It executes the same instructions with the same results. As each ends before the next begins, tokens say nothing new, and it ignores them.
"""

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .ice40 import BeatPort
from .inorder_compute import InOrderCompute
from .inorder_drain import InOrderDrain
from .inorder_load import InOrderLoad
from .inorder_store import InOrderStore, Maximum
from .inorder_unit import ADDRESS_BITS
from .interfaces import Axi4Lite
from .isa import INSTRUCTION_BITS, Base, Compute, Drain, Header, LoadMap, LoadWeights, Opcode, Store, Target, Unit, unit_of
from .primitives import delayed
from .registers import MAGIC, VERSION, Command, ErrorCode, Register, Status

__all__ = ["InOrderEngine"]

_SLVERR = 2
#: Bits of numbers of instructions, which lie in memory.
_COUNT_BITS = ADDRESS_BITS - 1


class _Fetch(wiring.Component):
    """Runs one program after each reset: `length` instructions from the beat `program`, from the cycle of `start` on.

    An instruction is fetched in three cycles and in the fourth offered to its unit, which answers with `finished`, then or later. `done` and `error` stay.
    """

    start: In(1)
    program: In(ADDRESS_BITS)
    length: In(_COUNT_BITS)
    memory: Out(BeatPort(0))
    instruction: Out(INSTRUCTION_BITS)
    starts: Out(len(Unit))
    finished: In(1)
    index: Out(_COUNT_BITS)
    done: Out(1)
    error: Out(ErrorCode)

    def elaborate(self, _platform):
        m = Module()
        header, load_weights, load_map, compute, drain = (
            struct(self.instruction[: struct.as_shape().size]) for struct in (Header, LoadWeights, LoadMap, Compute, Drain))
        second = Signal()
        m.d.comb += self.memory.address.eq(self.program + Cat(second, self.index))
        with m.FSM():
            with m.State("Idle"), m.If(self.start):
                m.next = "First"
            with m.State("First"):
                m.d.comb += self.memory.valid.eq(1)
                m.next = "Second"
                with m.If(self.index == self.length):
                    m.d.sync += self.error.eq(ErrorCode.NO_END)
                    m.next = "Ended"
            with m.State("Second"):
                m.d.comb += [self.memory.valid.eq(1), second.eq(1)]
                m.d.sync += self.instruction[:64].eq(self.memory.read_data)
                m.next = "Take"
            with m.State("Take"):
                m.d.sync += self.instruction[64:].eq(self.memory.read_data)
                m.next = "Start"
            with m.State("Start"):
                missing = Signal()  # hardware for it
                with m.Switch(header.opcode):
                    for opcode in Opcode:
                        with m.Case(opcode):
                            if unit_of(opcode) is not None:
                                m.d.comb += self.starts.eq(Mux(missing, 0, 1 << unit_of(opcode)))
                    with m.Default():
                        m.d.comb += missing.eq(1)
                for opcode, condition in (
                    (Opcode.LOAD_WEIGHTS, load_weights.target == Target.TABLE), (Opcode.LOAD_MAP, load_map.residual),
                    (Opcode.COMPUTE, compute.diagonal), (Opcode.DRAIN, drain.residual | drain.leaky | drain.table),
                ):
                    with m.If(header.opcode == opcode):
                        m.d.comb += missing.eq(condition)
                m.next = "Run"
                with m.If(missing):
                    m.d.sync += self.error.eq(ErrorCode.OPCODE)
                    m.next = "Ended"
                with m.Elif(header.opcode == Opcode.END):
                    m.d.sync += [self.index.eq(self.index + 1), self.done.eq(1)]
                    m.next = "Ended"
                with m.Else():
                    m.d.sync += self.index.eq(self.index + 1)
                    with m.If(self.finished):
                        m.next = "First"
            with m.State("Run"), m.If(self.finished):
                m.next = "First"
            with m.State("Ended"):
                pass
        return m


class _Settings(data.Struct):
    """What the host writes, as far as it means something here: addresses in beats."""

    program: unsigned(ADDRESS_BITS)
    instructions: unsigned(_COUNT_BITS)
    bases: data.ArrayLayout(ADDRESS_BITS, len(Base))


class InOrderEngine(wiring.Component):
    """The whole engine. `build` identifies it to the host, beside the hash of its config.

    `memory` follows `host` in the cycles in which `host_ready`, else it is the engine's own. `s_axil` are the registers of `registers.py`, a read answered after one
    cycle and a write likewise: addresses have the bits only that the memory needs, no watchdog expires, as there is nothing to wait for, and the counters are those
    of IN_ORDER_COUNTERS. A start or reset is obeyed in the next cycle. `trace.retired` is as in `Accelerator`.

    What the engine has no hardware for ends a program with OPCODE, as what is no instruction does; EDGE and TOKENS do not occur.
    """

    def __init__(self, config: AcceleratorConfig, build: int = 0):
        if not 0 <= build < 1 << 32:
            raise ValueError(f"build must be in 0…2^32−1, not {build!r}")
        self._config, self._build = config, build
        self._units = {Unit.MAP: InOrderLoad(config), Unit.COMPUTE: InOrderCompute(config), Unit.DRAIN: InOrderDrain(config), Unit.STORE: InOrderStore(config)}
        super().__init__({"s_axil": In(Axi4Lite()), "memory": Out(BeatPort()), "host": In(BeatPort(8)), "host_ready": Out(1),
                          "trace": Out(wiring.Signature({"retired": Out(len(Unit))}))})

    @property
    def config(self) -> AcceleratorConfig:
        """What it was made for."""
        return self._config

    def elaborate(self, _platform):
        m = Module()
        command = Signal(Command)  # accepted in this cycle
        status, settings = Signal(Status), Signal(_Settings)
        restart, starting = Signal(), Signal()  # registers, for all of the engine follows
        m.d.sync += [restart.eq(command.start | command.reset), starting.eq(command.start & ~command.reset)]
        m.submodules.fetch = fetch = ResetInserter(restart)(_Fetch())
        for unit, block in self._units.items():
            m.submodules[unit.name.lower()] = ResetInserter(restart)(block)
        load, compute, drain, store = self._units.values()
        located = Store(fetch.instruction[: Store.as_shape().size])  # base and offset lie where those of other instructions do
        place = Signal(ADDRESS_BITS)
        m.d.comb += [
            place.eq(settings.bases[located.base] + located.offset),
            fetch.start.eq(delayed(m, starting, reset=True)), fetch.program.eq(settings.program), fetch.length.eq(settings.instructions),
            fetch.finished.eq(Cat(block.done for block in self._units.values()).any()),
            *(block.instruction.eq(fetch.instruction) for block in self._units.values()), *(block.place.eq(place) for block in self._units.values()),
            load.start.eq(fetch.starts[Unit.WEIGHT] | fetch.starts[Unit.MAP]),
            *(self._units[unit].start.eq(fetch.starts[unit]) for unit in (Unit.COMPUTE, Unit.DRAIN, Unit.STORE)),
            compute.sums_bank.eq(drain.sums_bank), compute.sums_pixel.eq(drain.sums_pixel), drain.sums.eq(compute.sums),
        ]
        self._connect_memory(m, fetch, *self._units.values())
        with m.Switch(Header(fetch.instruction[: Header.as_shape().size]).opcode):
            for opcode in Opcode:
                if (unit := unit_of(opcode)) is not None:
                    with m.Case(opcode):
                        m.d.comb += self.trace.retired[unit].eq(self._units.get(unit, load).done)

        with m.If(fetch.done | (fetch.error != ErrorCode.NONE)):
            m.d.sync += [status.busy.eq(0), status.done.eq(fetch.done), status.error.eq(fetch.error)]
        with m.If(restart):
            m.d.sync += [status.eq(0), status.busy.eq(starting)]
        self._write_registers(m, status, command, settings)
        self._read_registers(m, status, settings, fetch.index, self._count(m, status.busy, restart, starting, compute.active))
        return m

    def _connect_memory(self, m, fetch, load, compute, drain, store):
        """To who uses it: one at most. LOAD writes what it has read in the cycle before, as the maximum of that alone."""
        memory, host = self.memory, self.host
        m.submodules.maximum = maximum = Maximum()
        is_byte, byte = Signal(), Signal(8)
        m.d.comb += [
            self.host_ready.eq(1), is_byte.eq(1), byte.eq(host.write_data), *(getattr(memory, name).eq(getattr(host, name)) for name in ("valid", "address", "write")),
            memory.write_data.eq(Mux(is_byte, byte.replicate(8), maximum.maximum)),
            maximum.beat.eq(memory.read_data), maximum.count.eq(store.counts | load.memory.valid), maximum.clear.eq(memory.write.any() | load.memory.valid),
        ]
        for block in fetch, load, compute, drain, store:
            with m.If(block.memory.valid):
                m.d.comb += [self.host_ready.eq(0), is_byte.eq(0), *(getattr(memory, name).eq(getattr(block.memory, name)) for name in ("valid", "address", "write"))]
        with m.If(drain.memory.write.any()):
            m.d.comb += [is_byte.eq(1), byte.eq(drain.code)]
        for port in (host, *(block.memory for block in (fetch, load, compute, drain, store))):
            m.d.comb += port.read_data.eq(memory.read_data)

    def _count(self, m, busy, clear, starting, active):
        """Counters by register. The cycle in which the engine is reset to start counts."""
        cycles, actives = Signal(32), Signal(32)
        retired = [Signal(_COUNT_BITS, name=f"retired_{unit.name.lower()}") for unit in Unit]
        with m.If(clear):
            m.d.sync += [cycles.eq(starting), *(counter.eq(0) for counter in (actives, *retired))]
        with m.Elif(busy):
            m.d.sync += [cycles.eq(cycles + 1), actives.eq(actives + active), *(counter.eq(counter + self.trace.retired[unit]) for unit, counter in zip(Unit, retired))]
        return {Register.CYCLES: cycles, Register.ACTIVE: actives, **{Register[f"RETIRED_{unit.name}"]: counter for unit, counter in zip(Unit, retired)}}

    def _write_registers(self, m, status, command, settings):
        bus = self.s_axil
        wanted = Command(bus.wdata[: Command.as_shape().size])
        accepted, allowed = Signal(), Signal()
        m.d.comb += [accepted.eq(bus.awvalid & bus.wvalid & ~bus.bvalid), bus.awready.eq(accepted), bus.wready.eq(accepted)]
        with m.If(accepted & bus.wstrb.all()), m.Switch(bus.awaddr):
            with m.Case(Register.COMMAND):
                m.d.comb += [allowed.eq(wanted.reset | ~status.busy), command.reset.eq(wanted.reset), command.start.eq(wanted.start & allowed)]
            with m.Case(Register.WATCHDOG):
                m.d.comb += allowed.eq(~status.busy)
            for register, setting, value in (
                (Register.PROGRAM, settings.program, bus.wdata[3:]), (Register.INSTRUCTIONS, settings.instructions, bus.wdata),
                *((Register[f"BASE_{base.name}"], settings.bases[base], bus.wdata[3:]) for base in Base),
            ):
                with m.Case(register):
                    m.d.comb += allowed.eq(~status.busy)
                    with m.If(~status.busy):
                        m.d.sync += setting.eq(value)
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(accepted):
            m.d.sync += [bus.bvalid.eq(1), bus.bresp.eq(Mux(allowed, 0, _SLVERR))]

    def _read_registers(self, m, status, settings, index, counters):
        bus = self.s_axil
        m.d.comb += bus.arready.eq(~bus.rvalid)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(bus.arready & bus.arvalid):
            m.d.sync += [bus.rvalid.eq(1), bus.rresp.eq(0)]
            with m.Switch(bus.araddr):
                for register, value in {
                    Register.MAGIC: MAGIC, Register.VERSION: VERSION, Register.CONFIG: self._config.hash, Register.BUILD: self._build,
                    Register.STATUS: status, Register.ERROR_INDEX: index, Register.WATCHDOG: 0, Register.PROGRAM: settings.program << 3,
                    Register.INSTRUCTIONS: settings.instructions, **{Register[f"BASE_{base.name}"]: settings.bases[base] << 3 for base in Base}, **counters,
                }.items():
                    with m.Case(register):
                        m.d.sync += bus.rdata.eq(value)
                with m.Default():
                    m.d.sync += [bus.rdata.eq(0), bus.rresp.eq(_SLVERR)]
