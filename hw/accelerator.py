"""The accelerator: a control port, a memory port, and the units between them."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, ResetInserter
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .compute import ComputeUnit
from .config import AcceleratorConfig
from .control import Control
from .dispatch import Dispatcher
from .dma import ReadDma, WriteDma
from .drain import DrainUnit
from .interfaces import Axi4, Axi4Lite
from .isa import Unit
from .load import LoadMaps, LoadWeights
from .primitives import copies, delayed
from .store import StoreUnit

__all__ = ["Accelerator", "Trace"]


class Trace(wiring.Signature):
    """For simulation: bit u of `retired` pulses for each instruction of unit u, `busy` as in `UnitControl`; `waiting[u]` bit v: unit u waits for a token
    of unit v; `active`: the array takes a pixel."""

    def __init__(self):
        super().__init__({
            "retired": Out(len(Unit)), "busy": Out(len(Unit)), "waiting": Out(data.ArrayLayout(len(Unit), len(Unit))), "active": Out(1),
        })


class Accelerator(wiring.Component):
    """The whole engine. `build` identifies it to the host, beside the hash of its config.

    `s_axil` answers register accesses at any time (see `registers.py`), `m_axi` reads and writes up to eight bursts ahead each, `interrupt` is high from the end of a
    program to the next start. What the engine does on an error is told in `control.py`.

    Simulate it as Verilog (:func:`build.to_verilog`): in Amaranth's own simulator the engine's clock, which follows `clk` by an assignment, comes too late to be
    the same edge.
    """

    def __init__(self, config: AcceleratorConfig, build: int = 0):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self._config = config
        self._control = Control(config, build)
        super().__init__({"s_axil": In(Axi4Lite()), "m_axi": Out(Axi4()), "interrupt": Out(1), "error": Out(1), "trace": Out(Trace())})

    @property
    def config(self) -> AcceleratorConfig:
        """What it was made for."""
        return self._config

    def elaborate(self, platform):
        m = Module()
        m.submodules.control = control = self._control
        # The engine has no other reset than the control port's, which comes by registers: none has to cross the whole chip in a cycle.
        m.domains.engine = domain = ClockDomain(reset_less=True, local=True)
        m.d.comb += domain.clk.eq(ClockSignal())
        blocks = {
            "read": ReadDma(self._config), "write": WriteDma(self._config), "dispatcher": Dispatcher(),
            "weights": LoadWeights(self._config), "maps": LoadMaps(self._config), "compute": ComputeUnit(self._config),
            "drain": DrainUnit(self._config), "store": StoreUnit(self._config),
        }
        for (name, block), reset in zip(blocks.items(), copies(m, platform, control.engine.reset, len(blocks), "reset")):
            m.submodules[name] = DomainRenamer("engine")(ResetInserter(reset)(block))
        read, write, dispatcher, weights, maps, compute, drain, store = blocks.values()

        wiring.connect(m, wiring.flipped(self.s_axil), control.bus)
        for dma in read, write:
            for name, member in dma.bus.signature.members.items():
                inner, outer = getattr(dma.bus, name), getattr(self.m_axi, name)
                m.d.comb += outer.eq(inner) if member.flow == wiring.Out else inner.eq(outer)
            m.d.comb += dma.halt.eq(control.engine.halt)

        for index, requester in enumerate((dispatcher, maps, weights)):  # fetches are few, maps are waited for first
            wiring.connect(m, requester.runs, read.runs[index])
            wiring.connect(m, read.beats[index], requester.beats)
        wiring.connect(m, store.runs, write.runs)
        wiring.connect(m, store.beats, write.beats)

        units = weights, maps, compute, drain, store  # as in `Unit`
        for unit, instruction, unit_control in zip(units, dispatcher.instruction, dispatcher.control):
            wiring.connect(m, instruction, unit.instruction)
            wiring.connect(m, unit.control, unit_control)
        for unit in weights, maps, store:
            m.d.comb += unit.bases.eq(control.engine.bases)
        m.d.comb += store.writes_done.eq(write.done)

        wiring.connect(m, weights=weights.weight_write, compute=compute.weight_write)
        wiring.connect(m, weights=weights.parameter_write, drain=drain.parameter_write)
        wiring.connect(m, weights=weights.table_write, drain=drain.table_write)
        wiring.connect(m, maps=maps.map_write, compute=compute.map_write)
        wiring.connect(m, maps=maps.residual_write, drain=drain.residual_write)
        wiring.connect(m, drain=drain.sums_read, compute=compute.sums_read)
        wiring.connect(m, compute=compute.sums, drain=drain.sums)
        wiring.connect(m, drain=drain.staged, store=store.staged)

        engine, state, trace = control.engine, control.state, self.trace
        m.d.comb += [
            dispatcher.start.eq(engine.start), dispatcher.program.eq(engine.program), dispatcher.length.eq(engine.length),
            state.done.eq(dispatcher.done), state.error.eq(dispatcher.error), state.index.eq(dispatcher.index),
            *(total.eq(retired) for total, retired in zip(state.retired, dispatcher.retired)),
            state.read_error.eq(read.error), state.write_error.eq(write.error), state.idle.eq(read.idle & write.idle),
            state.read_beat.eq(read.beat), state.write_beat.eq(write.beat), state.saturated.eq(drain.saturated),
            trace.retired.eq(Cat(unit.control.retired for unit in units)), trace.busy.eq(Cat(unit.control.busy for unit in units)),
            trace.waiting.eq(Cat(dispatcher.waiting)), trace.active.eq(compute.active),
            state.retire.eq(trace.retired), self.interrupt.eq(control.interrupt), self.error.eq(control.error),
            # What is shown and counted together is a cycle late together.
            state.snapshot.busy.eq(delayed(m, trace.busy)), state.snapshot.waiting.eq(delayed(m, trace.waiting.as_value())),
            state.active.eq(delayed(m, trace.active)), state.pending.eq(delayed(m, dispatcher.pending)),
        ]
        return m
