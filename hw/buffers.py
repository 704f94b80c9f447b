"""On-chip buffers the array reads from: feature maps and weights, a word of `inputs` bytes a cycle."""

from amaranth.hdl import Cat, Module, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .interfaces import BEAT_BITS, BufferWrite
from .primitives import WideRam, copies, delayed

__all__ = ["MapBuffer", "WeightBuffer"]


def _check(config):
    if not isinstance(config, AcceleratorConfig):
        raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")


def _connect_write(m, ram, write):
    m.d.comb += [
        ram.write_address.eq(write.address), ram.write_data.eq(write.data.replicate(len(ram.write_data) // BEAT_BITS)),
        ram.write_enable.eq(write.valid << write.lane if len(ram.write_enable) > 1 else write.valid),
    ]


class MapBuffer(wiring.Component):
    """The feature map scratchpad: word = map[address] where `inside`, else the zero point in every channel, `latency` cycles later.

    Written in beats of eight channels; with `inputs` = 8 the lane is ignored. A read sees what was written in earlier cycles.
    """

    latency = WideRam.latency + 1

    def __init__(self, config: AcceleratorConfig):
        _check(config)
        self._ram = WideRam(width=8 * config.inputs, depth=config.map_words, lane_width=BEAT_BITS, masked=True)
        super().__init__({
            "write": In(BufferWrite(14, 1)),
            "address": In(14), "inside": In(1), "zero_point": In(signed(8)), "word": Out(data.ArrayLayout(signed(8), config.inputs)),
        })

    @property
    def blocks(self) -> int:
        """Block RAMs it needs on an FPGA."""
        return self._ram.blocks

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = self._ram
        _connect_write(m, ram, self.write)
        m.d.comb += [ram.read_address.eq(self.address), ram.read_enable.eq(self.inside)]
        # Outside the map the memory gives 0, into which the zero point goes, from copies of its own for every two channels.
        fill = delayed(m, self.zero_point.as_unsigned() & (~self.inside).replicate(8), self.latency - 2, name="fill")
        fills = copies(m, platform, fill, len(self.word) // 2, "fill")
        m.d.comb += self.word.eq(delayed(m, ram.read_data | Cat(copy.replicate(2) for copy in fills), name="word"))
        return m


class WeightBuffer(wiring.Component):
    """The ring of weights: word = weights[address], `latency` cycles later; addresses wrap.

    Written in beats of eight bytes; with `inputs` = 8 the lane is ignored. A read sees what was written in earlier cycles.
    """

    latency = WideRam.latency

    def __init__(self, config: AcceleratorConfig):
        _check(config)
        self._ram = WideRam(width=8 * config.inputs, depth=config.weight_words, lane_width=BEAT_BITS)
        super().__init__({
            "write": In(BufferWrite(12, 1)), "address": In(unsigned(12)), "word": Out(data.ArrayLayout(signed(8), config.inputs)),
        })

    @property
    def blocks(self) -> int:
        """Block RAMs it needs on an FPGA."""
        return self._ram.blocks

    def elaborate(self, _platform):
        m = Module()
        m.submodules.ram = ram = self._ram
        _connect_write(m, ram, self.write)
        m.d.comb += [ram.read_address.eq(self.address), self.word.eq(ram.read_data)]
        return m
