"""The ULX3S: clocks, resets and pads around a :class:`Chip`."""

from dataclasses import replace

from amaranth.hdl import ClockDomain, Elaboratable, Module
from amaranth.lib import io
from amaranth.lib.cdc import AsyncFFSynchronizer
from amaranth_boards import ulx3s

from .chip import Chip
from .config import AcceleratorConfig
from .pll import Pll, PllClock
from .primitives import EcpPrimitives
from .sdram import CAS_LATENCY, PARTS, SdramTiming

__all__ = ["INPUT_MHZ", "PLATFORMS", "Ulx3s", "memory_timing"]

#: The board's oscillator.
INPUT_MHZ = 25.0
_LINE_MHZ = 50.0
#: Degrees by which the memory's clock is behind the controller's.
_PHASE = 180.0


def _platform(size):
    return type(f"Ulx3s{size}", (EcpPrimitives, getattr(ulx3s, f"ULX3S_{size}_Platform")), {"required_tools": ()})


#: Boards, by name.
PLATFORMS = {f"ulx3s-{size.lower()}": _platform(size) for size in ("12F", "25F", "45F", "85F")}


def memory_timing(config: AcceleratorConfig) -> SdramTiming:
    """The board's memory, as large as `config` needs it, behind a register in the pads, there and back."""
    return replace(PARTS["ulx3s-64m" if config.memory_bytes > 32 << 20 else "ulx3s-32m"], clock_phase=_PHASE, capture_latency=CAS_LATENCY + 2)


class Ulx3s(Elaboratable):
    """A board's top level. The engine's clock, of `engine_mhz`, has a PLL of its own, which is independent of the memory's."""

    def __init__(self, config: AcceleratorConfig, engine_mhz: float, build: int = 0):
        timing = memory_timing(config)
        memory = PllClock(timing.clock_mhz)
        self._memory_pll = Pll(INPUT_MHZ, PllClock(memory.mhz, _PHASE), memory, PllClock(_LINE_MHZ))
        self._engine_pll = Pll(INPUT_MHZ, PllClock(engine_mhz))
        self._chip = Chip(config, timing, line_hz=_LINE_MHZ * 1e6, phase_steps=self._memory_pll.phase_steps, build=build)

    def elaborate(self, platform):
        m = Module()
        m.submodules.chip, m.submodules.memory_pll, m.submodules.engine_pll = chip, memory_pll, engine_pll = self._chip, self._memory_pll, self._engine_pll
        engine, memory, line, memory_pin = domains = [ClockDomain(name, reset_less=True) for name in ("sync", "memory", "line", "memory_pin")]
        m.domains += domains
        m.submodules.clock = clock = io.Buffer("i", platform.request("clk25", dir="-"))
        m.d.comb += [
            memory_pll.input.eq(clock.i), engine_pll.input.eq(clock.i), engine.clk.eq(engine_pll.outputs[0]),
            *(domain.clk.eq(output) for domain, output in zip((memory_pin, memory, line), memory_pll.outputs)),
            memory_pll.step.eq(chip.step), memory_pll.advance.eq(chip.advance),
        ]
        for domain in engine, memory, line:
            name = domain.name
            m.submodules[f"{name}_reset"] = AsyncFFSynchronizer(~(memory_pll.locked & engine_pll.locked), getattr(chip.resets, name), o_domain=name)
        self._connect_memory(m, platform.request("sdram", dir="-"))

        serial = platform.request("uart", dir="-")
        m.submodules.rx, m.submodules.tx = rx, tx = io.Buffer("i", serial.rx), io.FFBuffer("o", serial.tx, o_domain="line")
        m.d.comb += [chip.rx.eq(rx.i), tx.o.eq(chip.tx)]
        for number, led in enumerate(chip.leds):
            m.submodules[f"led{number}"] = buffer = io.Buffer("o", platform.request("led", number, dir="-"))
            m.d.comb += buffer.o.eq(led)
        return m

    def _connect_memory(self, m, ports):
        """All pins have registers in their pads; the clock's is one of two edges, so that it is as late as the others."""
        pins = self._chip.sdram
        m.submodules.memory_clock = clock = io.DDRBuffer("o", ports.clk, o_domain="memory_pin")
        m.d.comb += [clock.o[0].eq(1), clock.o[1].eq(0)]
        for name in ("clk_en", "cs", "ras", "cas", "we", "ba", "a", "dqm"):
            m.submodules[f"memory_{name}"] = buffer = io.FFBuffer("o", getattr(ports, name), o_domain="memory")
            m.d.comb += buffer.o.eq(getattr(pins, name))
        m.submodules.memory_dq = buffer = io.FFBuffer("io", ports.dq, i_domain="memory", o_domain="memory")
        m.d.comb += [buffer.o.eq(pins.dq_o), buffer.oe.eq(pins.dq_oe), pins.dq_i.eq(buffer.i)]
