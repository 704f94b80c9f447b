"""A transposed convolution as ordinary ones: each phase of its outputs, `stride` apart, is a convolution by some of the kernel's taps.

Along an axis, output o is the sum over taps t and inputs i with i · stride + t · dilation − padding = o. So output r + j · stride of phase r reads, by tap t,
input j + (r + padding − t · dilation) / stride where that is whole.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Phase", "aligned", "phases", "taken"]


@dataclass(frozen=True)
class Phase:
    """Outputs `first`, `first` + stride, …: `count` of them, whose windows begin at inputs `start`, `start` + 1, … (negative in the padding)."""

    first: int
    count: int
    start: int
    #: The kernel's tap at each position of the window; None: there is none.
    taps: tuple["int | None", ...]

    def padding(self, size: int, count: int) -> tuple[int, int]:
        """What `count` windows read before and behind a map of `size`; negative: so much less."""
        return -self.start, self.start + count - 1 + len(self.taps) - size


def phases(stride: int, kernel: int, padding: int, dilation: int, outputs: int) -> list[Phase]:
    """The phases of one axis, some of them perhaps of no output or no tap."""
    result = []
    for first in range(stride):
        reads = {(first + padding - tap * dilation) // stride: tap for tap in range(kernel) if (first + padding - tap * dilation) % stride == 0} or {0: None}
        start = min(reads)
        result.append(Phase(first, max(-(-(outputs - first) // stride), 0), start, tuple(reads.get(position) for position in range(start, max(reads) + 1))))
    return result


def aligned(some: list[Phase]) -> list[Phase]:
    """The same phases with windows that all begin at the same input and are of one length."""
    start, end = min(phase.start for phase in some), max(phase.start + len(phase.taps) for phase in some)
    around = [(None,) * (phase.start - start) + phase.taps + (None,) * (end - phase.start - len(phase.taps)) for phase in some]
    return [Phase(phase.first, phase.count, start, taps) for phase, taps in zip(some, around)]


def taken(weight: np.ndarray, rows: Phase, columns: Phase) -> np.ndarray:
    """The weights (O, I, window rows, window columns) of a phase, of a kernel (O, I, KH, KW)."""
    result = np.zeros((*weight.shape[:2], len(rows.taps), len(columns.taps)), weight.dtype)
    for y, row in enumerate(rows.taps):
        for x, column in enumerate(columns.taps):
            if row is not None and column is not None:
                result[:, :, y, x] = weight[:, :, row, column]
    return result
