"""All of a board's chip but clocks and pads: engine, memory controller, host link."""

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .accelerator import Accelerator
from .axi_mux import AxiMux
from .board_control import BoardControl
from .config import AcceleratorConfig
from .isa import Unit
from .primitives import copies, delayed
from .sdram import SdramPins, SdramTiming
from .sdram_port import SdramController
from .server import HostLink

__all__ = ["LED_BEAT", "LED_BUSY", "LED_DAMAGED", "LED_ERROR", "Chip"]

#: Bits of `Chip.leds`: the engine's clock runs; the engine works; a frame has come damaged a moment ago; the last program has ended with an error.
LED_BEAT, LED_BUSY, LED_DAMAGED, LED_ERROR = 0, 1, 2, 7
#: Registers of a reset on its way to the parts of the chip.
_RESET_STAGES = 2
#: Cycles in which LED_BEAT is on, then off, and LED_DAMAGED is on, as a power of two: a third of a second.
_BLINK = 25


class Chip(wiring.Component):
    """The clock domain `sync` is the engine's, `memory` of `timing.clock_mhz` the memory's, `line` of `line_hz` the serial line's: reset together, otherwise
    unrelated. They have no resets of their own: `resets` go on by registers, one of the last ones for each part, since none crosses the chip in a cycle.

    `step` and `advance` go to the PLL that makes the memory's clock, of which a period has `phase_steps` steps.
    """

    def __init__(self, config: AcceleratorConfig, timing: SdramTiming, *, line_hz: float, phase_steps: int, baud: int = 3_000_000, build: int = 0):
        if config.memory_bytes > timing.memory_bytes:
            raise ValueError(f"config {config.name!r}: memory_bytes must be at most {timing.memory_bytes}, which is what SDRAM {timing.name!r} has, "
                             f"not {config.memory_bytes}")
        self._engine = Accelerator(config, build)
        self._controller = SdramController(timing)
        self._link = HostLink(line_hz, baud, line="line")
        self._control = BoardControl(line_hz, phase_steps)
        super().__init__({
            "resets": In(wiring.Signature({domain: Out(1, init=1) for domain in ("sync", "memory", "line")})),
            "rx": In(1, init=1), "tx": Out(1, init=1), "sdram": Out(SdramPins()), "leds": Out(8), "step": Out(1), "advance": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        engine, controller, link, control, mux = blocks = self._engine, self._controller, self._link, self._control, AxiMux()
        others = {controller: {"memory": self._staged(m, "memory")}, link: {"line": self._staged(m, "line")}}
        names = "engine", "controller", "link", "control", "mux"
        for name, block, reset in zip(names, blocks, copies(m, platform, self._staged(m, "sync"), len(blocks), "reset")):
            m.submodules[name] = ResetInserter({"sync": reset} | others.get(block, {}))(block)
        wiring.connect(m, engine.m_axi, mux.managers[0])
        wiring.connect(m, link.axi, mux.managers[1])
        wiring.connect(m, mux.bus, controller.bus)
        wiring.connect(m, controller.pins, wiring.flipped(self.sdram))
        wiring.connect(m, link.axil, control.bus)
        wiring.connect(m, control.engine, engine.s_axil)
        m.d.comb += [
            link.rx.eq(self.rx), self.tx.eq(link.tx), link.store.eq(delayed(m, engine.trace.retired[Unit.STORE])), control.damaged.eq(link.damaged),
            self.step.eq(control.step), self.advance.eq(control.advance),
        ]
        beat, damaged = Signal(_BLINK + 1), Signal(_BLINK + 1)
        m.d.sync += beat.eq(beat + 1)
        with m.If(link.damaged):
            m.d.sync += damaged.eq(1 << _BLINK)
        with m.Elif(damaged[-1]):
            m.d.sync += damaged.eq(damaged + 1)
        m.d.sync += [
            self.leds[LED_BEAT].eq(beat[-1]), self.leds[LED_BUSY].eq(engine.trace.busy.any()), self.leds[LED_DAMAGED].eq(damaged[-1]),
            self.leds[LED_ERROR].eq(engine.error),
        ]
        return m

    def _staged(self, m, domain):
        """The reset of a domain some cycles later."""
        reset = getattr(self.resets, domain)
        for number in range(_RESET_STAGES):
            before, reset = reset, Signal(init=1, name=f"{domain}_reset{number}")
            m.d[domain] += reset.eq(before)
        return reset
