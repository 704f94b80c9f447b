"""When each unit of the engine works on a program, by the timing model."""

from dataclasses import dataclass

import numpy as np

from ..hw.isa import Unit

__all__ = ["Timeline"]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What one run of a program does when. Cycles count from its start, as those of layers do."""

    cycles: int
    #: By unit, int64 (instructions, 3): the instruction's index in the program, its first cycle, and the one after its last. Loads take from their first beat to their
    #: last, COMPUTE from a tile's first pixel, DRAIN while it reads sums, STORE until what it says of memory is so. Instructions that only set up have none.
    spans: "dict[Unit, np.ndarray]"
    #: int64 (bursts, 3): first cycle on the memory's bus, the one after its last, bytes: negative if written. Empty where memory is the engine's own.
    bursts: np.ndarray
    #: By cause, int64 (layers,): cycles in which the array takes no pixel, while the layer's next instruction waits for "weights", "maps" or a "drain", or has not come
    #: ("instruction"); and "active", those in which it takes one. Of an engine that is in order, "active", and
    #: "others", in which other units work.
    array: "dict[str, np.ndarray]"
