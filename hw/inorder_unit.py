"""What the units of the in-order engine have in common: how they are started, and where their buffers lie in the one memory there is."""

from dataclasses import dataclass

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .ice40 import BEATS, BeatPort
from .isa import INSTRUCTION_BITS
from .parameters import PARAMETER_BYTES

__all__ = ["ADDRESS_BITS", "PARAMETER_BEATS", "Buffers", "InOrderUnit"]

#: Bits of the number of a beat; numbers wrap.
ADDRESS_BITS = (BEATS - 1).bit_length()
#: Beats of a parameter word.
PARAMETER_BEATS = PARAMETER_BYTES // 8


@dataclass(frozen=True)
class Buffers:
    """First beats of the buffers, behind what the program sees as memory. Those that wrap have a power of two of beats and begin at a multiple of it."""

    maps: int
    weights: int
    parameters: int
    staging: int

    @classmethod
    def of(cls, config: AcceleratorConfig) -> "Buffers":
        """The largest of those that wrap lies at the end."""
        sizes = {"weights": config.weight_words, "parameters": PARAMETER_BEATS * config.parameter_words, "staging": 2 * config.stage_pixels}
        bases, end = {}, BEATS
        for name, size in sorted(sizes.items(), key=lambda item: item[1], reverse=True):
            end -= size
            bases[name] = end
        return cls(maps=end - config.map_words, **bases)


class InOrderUnit(wiring.Component):
    """A unit: `start` comes with an instruction, which stays until the cycle of `done`; `place` is the beat of its base and offset, if it has these. Between start
    and done, and only then, the unit has `memory` to itself."""

    def __init__(self, config: AcceleratorConfig, **members):
        if not (isinstance(config, AcceleratorConfig) and config.in_order):
            raise ValueError(f"config must be an AcceleratorConfig that is in_order, not {config!r}")
        self._config, self._buffers = config, Buffers.of(config)
        super().__init__({
            "start": In(1), "instruction": In(INSTRUCTION_BITS), "place": In(ADDRESS_BITS), "done": Out(1), "memory": Out(BeatPort(0)),
        } | members)
