"""The windows of an average pooling. Where those at the border count fewer elements, the pooling falls into several, each of equal windows; where they are
too large, into the means of parts and those of the parts' means."""

from dataclasses import dataclass
from math import gcd

import torch

from ..hw.network import MOST_TAPS
from .geometry import MOST_STRIDE
from .operations import argument, image_shape, operation, pair, refuse

__all__ = ["Span", "Windows", "average_windows", "equal_parts"]

#: Poolings of equal windows into which one is cut at most.
_MOST_PARTS = 64


@dataclass(frozen=True)
class Span:
    """Neighbouring outputs along an axis whose windows are of one length, `step` elements apart."""

    #: Index of the first output, and how many there are.
    first: int
    count: int
    #: Where the first window begins, negative in the padding.
    start: int
    length: int
    step: int

    @property
    def end(self) -> int:
        """The element after the last window."""
        return self.start + (self.count - 1) * self.step + self.length


@dataclass(frozen=True)
class Windows:
    """Spans of rows and columns, and what sums are divided by; None: by the size of the window."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    divisor: int | None = None


def average_windows(node: torch.fx.Node) -> Windows:
    """The windows of an average pooling. Raises :exc:`UnsupportedError` if they are of too many kinds."""
    name, size, out = operation(node), image_shape(node.args[0])[1:], pair(image_shape(node)[-2:])
    divisor = None
    if name == "mean":
        windows = [[(0, n)] for n in size]
    elif name == "adaptive_avg_pool2d":
        windows = [[(i * n // count, -(-(i + 1) * n // count)) for i in range(count)] for n, count in zip(size, out)]
    else:
        kernel, padding = pair(argument(node, "kernel_size")), pair(argument(node, "padding"))
        stride, divisor = pair(argument(node, "stride") or kernel), argument(node, "divisor_override")
        windows = [[(i * s - p, min(i * s - p + k, n + p)) for i in range(count)] for n, count, k, s, p in zip(size, out, kernel, stride, padding)]
        if not argument(node, "count_include_pad"):
            windows = [[(max(start, 0), min(end, n)) for start, end in axis] for axis, n in zip(windows, size)]
    rows, columns = map(_spans, windows)
    if len(rows) * len(columns) > _MOST_PARTS:
        raise refuse(node, f"of a {size[0]}×{size[1]} map to {out[0]}×{out[1]} has windows of {len(rows) * len(columns)} kinds",
                     "choose an output size that divides the map")
    return Windows(rows, columns, divisor)


def _spans(windows):
    """Windows (start, end) as spans, each as long as it can be."""
    spans = []
    for index, (start, end) in enumerate(windows):
        last = spans[-1] if spans else None
        step = last and start - (last.start + (last.count - 1) * last.step)
        if last and end - start == last.length and step > 0 and (last.count == 1 or step == last.step):
            spans[-1] = Span(last.first, last.count + 1, last.start, last.length, step)
        else:
            spans.append(Span(index, 1, start, end - start, 1))
    return tuple(spans)


def equal_parts(node: torch.fx.Node) -> "list[tuple[int, int, int]]":
    """For rows and columns: the length of parts next to each other whose means give those that an average pooling computes, and its windows' length and stride in
    parts. Empty where windows are no larger than the engine's, or do not consist of equal parts."""
    windows, size = average_windows(node), image_shape(node.args[0])[1:]
    spans = (*windows.rows, *windows.columns)
    if all(span.length <= MOST_TAPS and (span.count == 1 or span.step <= MOST_STRIDE) for span in spans):
        return []
    if len(spans) > 2 or windows.divisor or any(span.start for span in spans):
        return []
    common = [span.length if span.count == 1 else gcd(span.length, span.step) for span in spans]
    parts = [next(n for n in range(MOST_STRIDE, 0, -1) if length % n == 0) for length in common]
    if parts == [1, 1]:
        return []
    return [(part, span.length // part, (span.step if span.count > 1 else length) // part) for part, span, length in zip(parts, spans, size)]
