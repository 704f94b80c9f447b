"""A layer as the array sees it: the map in memory, folded by the host where that helps, and the kernel fitted to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from ..hw.config import PLANE, AcceleratorConfig
from ..hw.network import MOST_TAPS, Layer, Network
from ..hw.program import Fold
from .errors import CompileError

__all__ = ["MOST_STRIDE", "WHOLE_MAP", "Geometry", "folds", "make_geometry"]

#: Of a convolution, by its instruction.
MOST_STRIDE = 15


@dataclass(frozen=True)
class Geometry:
    """A layer as the array sees it: the input folded, the kernel fitted to the fold."""

    config: AcceleratorConfig
    layer: Layer
    batch: int
    #: Shape (C, H, W) of the map as loaded: every `row_step`-th row of what lies in memory.
    shape: tuple[int, int, int]
    #: int8 (phases · O, C / groups, KH, KW)
    weight: np.ndarray
    stride: tuple[int, int]
    #: Top and left, negative where the first window begins inside the map; what lies beyond the map's other edges is padding too.
    padding: tuple[int, int]
    dilation: tuple[int, int]
    #: Convolution output (O, OH, OW) of one phase of columns, and what is stored after pooling or interleaving.
    conv: tuple[int, int, int]
    out: tuple[int, int, int]
    fold: Fold | None
    #: Rows of the map in memory from one row of `shape` to the next, and how many there are in memory.
    row_step: int
    rows: int

    @property
    def planes(self) -> int:
        return ceil(self.shape[0] / PLANE)

    @property
    def words(self) -> int:
        """Scratchpad words of a pixel."""
        return ceil(self.shape[0] / self.config.inputs)

    @property
    def block(self) -> int:
        """Output channels staged at once: at least a plane."""
        return max(self.config.outputs, PLANE)

    @property
    def blocks(self) -> int:
        return ceil(self.conv[0] / self.block)

    @property
    def phase_channels(self) -> int:
        """Output channels of a phase, those that only fill its last block among them: what lies between a channel and the same one of the next phase."""
        return self.blocks * self.block

    def parts(self, block: int) -> list[int]:
        """First output channel of each array load of a block, of all phases."""
        first = block * self.block
        channels = [c for c in range(first, first + self.block, self.config.outputs) if c < ceil(self.conv[0] / PLANE) * PLANE]
        return [phase * self.phase_channels + c for phase in range(self.layer.column_phases) for c in channels]

    @property
    def block_parameters(self) -> int:
        """Parameter words of a block, of all phases."""
        return self.layer.column_phases * self.block // 4

    def parameter_word(self, first: int) -> int:
        """Where the parameters of the output channels from `first` on lie: blocks follow each other, in each the phases, so that a tile's lie together."""
        phase, channel = divmod(first, self.phase_channels)
        block, rest = divmod(channel, self.block)
        return block * self.block_parameters + (phase * self.block + rest) // 4

    def reduction(self, first: int) -> tuple[int, int]:
        """Channel words, half-open, that the output channels from `first` on need."""
        first %= self.phase_channels
        last = min(first + self.config.outputs, self.conv[0]) - 1
        group_outputs, group_inputs = self.conv[0] // self.layer.groups, self.weight.shape[1]
        if last < first:  # channels that only fill a plane: any word that is there
            word = last // group_outputs * group_inputs // self.config.inputs
            return word, word + 1
        low, high = first // group_outputs * group_inputs, (last // group_outputs + 1) * group_inputs
        return low // self.config.inputs, ceil(high / self.config.inputs)

    @cached_property
    def steps(self) -> int:
        """Array loads of all blocks."""
        kernel = self.weight.shape[2] * self.weight.shape[3]
        return kernel * sum(b - a for block in range(self.blocks) for a, b in [self.reduction(first) for first in self.parts(block)])

    @property
    def diagonal(self) -> bool:
        """Whether every channel is a group of its own, so that an array load is one word."""
        return self.weight.shape[1] == 1 == self.conv[0] // self.layer.groups and not self.config.in_order and self.config.outputs <= self.config.inputs

    @property
    def step_words(self) -> int:
        """Weight words of an array load."""
        return 1 if self.diagonal else self.config.block_words

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of different weights: layers with groups, such as average pooling, repeat array loads."""
        if self.layer.groups == 1:
            return self.steps * self.step_words * self.config.inputs
        different = {(dense := self.dense_weight(first)).tobytes(): dense.size for block in range(self.blocks) for first in self.parts(block)}
        return sum(different.values())

    def dense_weight(self, first: int) -> np.ndarray:
        """Weights of the array loads of the output channels from `first` on: int8 (outputs, inputs of their words, KH, KW), or (1, …) if they are diagonal.

        A channel that does not exist has none; in a diagonal it has the last one's, so that loads which are alike but for that are equal.
        """
        outputs, inputs = self.config.outputs, self.config.inputs
        low, high = self.reduction(first)
        phase, first = divmod(first, self.phase_channels)
        weight = self.weight[phase * self.conv[0] : (phase + 1) * self.conv[0]]
        if self.diagonal:
            channels = np.minimum(np.arange(low * inputs, high * inputs), weight.shape[0] - 1)
            return weight[channels].reshape(1, -1, *weight.shape[2:])
        last = min(first + outputs, weight.shape[0])
        dense = np.zeros((outputs, (high - low) * inputs, *weight.shape[2:]), np.int8)
        group_outputs, group_inputs = weight.shape[0] // self.layer.groups, weight.shape[1]
        for group in range(first // group_outputs, (max(last, first + 1) - 1) // group_outputs + 1):
            mine = slice(max(group * group_outputs, first), min((group + 1) * group_outputs, last))
            column = group * group_inputs - low * inputs
            if mine.start < mine.stop:
                dense[mine.start - first : mine.stop - first, column : column + group_inputs] = weight[mine]
        return dense

    def input_rows(self, rows: tuple[int, int]) -> tuple[int, int]:
        """Rows of the map, half-open and at least one, that convolution rows need."""
        first = rows[0] * self.stride[0] - self.padding[0]
        last = (rows[1] - 1) * self.stride[0] - self.padding[0] + (self.weight.shape[2] - 1) * self.dilation[0]
        low = min(max(first, 0), self.shape[1] - 1)
        return low, max(min(last + 1, self.shape[1]), low + 1)

    @cached_property
    def rows_read(self) -> int:
        """Rows of the map that any stored row needs."""
        return len({row for out in range(self.out[1]) for row in range(*self.input_rows(self.conv_rows((out, out + 1))))})

    @cached_property
    def rows_computed(self) -> int:
        """Rows of the convolution that any stored row needs."""
        return len({row for out in range(self.out[1]) for row in range(*self.conv_rows((out, out + 1)))})

    def conv_rows(self, out_rows: tuple[int, int]) -> tuple[int, int]:
        """Convolution rows, half-open, that stored rows need."""
        return self._before_pool(out_rows, 0)

    def conv_columns(self, out_columns: tuple[int, int]) -> tuple[int, int]:
        """Convolution columns, half-open, that stored columns need."""
        return self._before_pool(out_columns, 1)

    def _before_pool(self, span, axis):
        pool, phases = self.layer.pool, self.layer.column_phases if axis else 1
        if pool is None:
            return span[0] // phases, ceil(span[1] / phases)
        first = span[0] * pool.stride[axis] - pool.padding[axis]
        last = (span[1] - 1) * pool.stride[axis] - pool.padding[axis] + pool.kernel[axis]
        return max(first, 0), min(last, self.conv[1 + axis])


@dataclass(frozen=True)
class _Axis:
    """One axis of a fold: window, stride and padding on the host; kernel, stride and padding left to the array, after `shift` zero weights."""

    window: int
    stride: int
    before: int
    after: int
    kernel: int
    kernel_stride: int
    padding: int
    shift: int = 0


def _whole_map(kernel, stride, padding, size, count):
    return _Axis(1, 1, 0, 0, kernel, stride, padding)


def _whole_window(kernel, stride, padding, size, count):
    return _Axis(kernel, stride, padding, max((count - 1) * stride + kernel - size - padding, 0), 1, 1, 0)


def _space_to_depth(kernel, stride, padding, size, count):
    cells = ceil(padding / stride)
    shift = cells * stride - padding
    return _Axis(stride, stride, 0, -size % stride, ceil((kernel + shift) / stride), 1, cells, shift)


#: No fold.
WHOLE_MAP = (_whole_map, _whole_map)


def folds(network: Network, layer: Layer) -> Iterator[tuple]:
    """Ways to fold a layer's input, each a pair of axes; the plain map first."""
    yield WHOLE_MAP
    small = network.tensors[layer.input].shape[0] <= PLANE and layer.weight.shape[2:] != (1, 1)
    if small and layer.groups == 1 and layer.dilation == (1, 1) and min(layer.padding) >= 0:
        yield _whole_map, _whole_window
        yield _whole_window, _whole_window
        yield _space_to_depth, _space_to_depth


def make_geometry(config: AcceleratorConfig, network: Network, layer: Layer, batch: int, ways: tuple) -> Geometry:
    """The geometry of a layer whose input is folded in one of :func:`folds`' ways. Raises :exc:`CompileError` if no instruction holds its numbers."""
    channels, height, width = network.tensors[layer.input].shape
    conv = layer.conv_size(height, width)
    y, x = (way(*values) for way, values in zip(ways, zip(layer.weight.shape[2:], layer.stride, layer.padding[:2], (height, width), conv)))
    shape, weight, fold = (channels, height, width), layer.weight, None
    if ways != WHOLE_MAP:
        fold = Fold(kernel=(y.window, x.window), stride=(y.stride, x.stride), padding=(y.before, x.before, y.after, x.after))
        outputs = weight.shape[0]
        spread = np.zeros((outputs, channels, y.kernel * y.window, x.kernel * x.window), np.int8)
        spread[:, :, y.shift : y.shift + weight.shape[2], x.shift : x.shift + weight.shape[3]] = weight
        spread = spread.reshape(outputs, channels, y.kernel, y.window, x.kernel, x.window).transpose(0, 3, 5, 1, 2, 4)
        shape, weight = fold.shape(shape), np.ascontiguousarray(spread).reshape(outputs, -1, y.kernel, x.kernel)
    stride, padding, conv = (y.kernel_stride, x.kernel_stride), (y.padding, x.padding), (weight.shape[0] // layer.column_phases, *conv)
    out, row_step, rows = (conv[0], *layer.output_size(height, width)), 1, shape[1]
    if weight.shape[2] == 1 and stride[0] > 1 and padding[0] == 0 and (conv[1] - 1) * stride[0] < rows:  # only these rows are read
        row_step, shape, stride = stride[0], (shape[0], conv[1], shape[2]), (1, stride[1])
    geometry = Geometry(config, layer, batch, shape, weight, stride, padding, layer.dilation, conv, out, fold, row_step, rows)
    part = network.part(layer.output)
    _check_limits(geometry, network.tensors[part.tensor].shape[2] * part.row_step)
    return geometry


def _check_limits(geometry, row_stride):
    """Raises :exc:`CompileError` if a number does not fit the field of an instruction."""
    layer, (_, *size), (_, *conv), (_, *out) = geometry.layer, geometry.shape, geometry.conv, geometry.out
    last = [(count - 1) * stride - padding for count, stride, padding in zip(conv, geometry.stride, geometry.padding)]
    limits = [("kernel height", geometry.weight.shape[2], MOST_TAPS), ("kernel width", geometry.weight.shape[3], MOST_TAPS),
              ("stride", max(geometry.stride), MOST_STRIDE), ("dilation", max(geometry.dilation), 31),
              ("padding", max(geometry.padding), 2047), ("map height", size[0], 2047), ("map width", size[1], 2047),
              ("last window's row", last[0], 2047), ("last window's column", last[1], 2047), ("output height", conv[0], 1023), ("output width", conv[1], 2047)]
    areas = ("map", (geometry.rows, size[1])), ("output", conv), ("stored map", out)
    limits += [(f"{what} area", height * width, (1 << 20) - 1) for what, (height, width) in areas]
    limits += [("parameters of a block", geometry.block_parameters, geometry.config.parameter_words),
               ("stored width", out[1], 2047), ("distance of stored rows", row_stride, (1 << 14) - 1)]
    if layer.pool:
        limits += [("pooling kernel", max(layer.pool.kernel), 15), ("pooling stride", max(layer.pool.stride), 15)]
    for name, value, most in limits:
        if value > most:
            raise CompileError(f"layer {layer.name}: {name} {value} exceeds the engine's {most}; keep it on the host or split the layer")
