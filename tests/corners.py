"""Corners: what a layer of a compiled program may be an instance of, by name. One that no test has run may be wrong unseen."""

from dataclasses import dataclass

import numpy as np

from celosia.host.tile import Plan, pieces
from celosia.hw.config import PLANE
from celosia.hw.network import Layer, Network
from celosia.hw.program import Program

__all__ = ["CORNERS", "View"]


@dataclass(frozen=True)
class View:
    """A layer of a program, with what corners are told by."""

    program: Program
    layer: Layer
    plan: Plan

    @property
    def network(self) -> Network:
        return self.program.network

    @property
    def shape(self):
        return self.network.tensors[self.layer.input].shape

    @property
    def out(self):
        return self.network.tensors[self.layer.output].shape

    @property
    def tiles(self):
        return [tile for chunk in self.plan.chunks for tile in chunk.tiles]

    @property
    def readers(self):
        """Times that layers read what this one does."""
        return sum(other.reads.count(self.layer.input) for other in self.network.layers)

    @property
    def cut(self):
        """Pieces of the first array load of the first block."""
        return pieces(self.plan.geometry, 0, fine=False)

    def outside(self, axis):
        """Whether some window of an axis lies wholly in the padding."""
        size, stride, padding = self.shape[1 + axis], self.layer.stride[axis], self.layer.padding[axis]
        reach = (self.layer.weight.shape[2 + axis] - 1) * self.layer.dilation[axis]
        windows = self.layer.conv_size(*self.shape[1:])[axis]
        return any(first + reach < 0 or first >= size for first in (n * stride - padding for n in range(windows)))


def _folded(window):
    return lambda v: bool(v.plan.geometry.fold) and window(v.plan.geometry.fold, v.layer)


#: Name → whether a :class:`View` is an instance.
CORNERS = {
    # maps
    "a map of one pixel in": lambda v: v.shape[1:] == (1, 1),
    "a map of one pixel out": lambda v: v.out[1:] == (1, 1),
    "a map 2,047 pixels high": lambda v: v.shape[1] == 2047,
    "a map 2,047 pixels wide": lambda v: v.shape[2] == 2047,
    "one channel in": lambda v: v.shape[0] == 1,
    "one channel out": lambda v: v.out[0] == 1,
    "2,048 channels in": lambda v: v.shape[0] == 2048,
    "2,048 channels out": lambda v: v.out[0] == 2048,
    "channels that fill no plane": lambda v: v.shape[0] % PLANE and v.out[0] % PLANE,
    "several images": lambda v: v.program.batch > 1,
    "images in several tiles of several": lambda v: len({tile.images for tile in v.tiles if tile.images[1] - tile.images[0] > 1}) > 1,
    "zero points at both ends": lambda v: {v.network.tensors[v.layer.input].zero_point, v.network.tensors[v.layer.output].zero_point} == {-128, 127},
    # windows
    "linear over a map": lambda v: v.layer.op == "linear" and v.shape[1:] == v.layer.weight.shape[2:] != (1, 1),
    "depthwise": lambda v: v.shape[0] == v.layer.groups == v.out[0] > 1 and v.layer.weight.shape[2:] != (1, 1),
    "depthwise, several outputs a channel": lambda v: 1 < v.shape[0] == v.layer.groups < v.out[0],
    "groups": lambda v: 1 < v.layer.groups < v.shape[0],
    "a kernel of 32": lambda v: max(v.layer.weight.shape[2:]) == 32,
    "a stride of 15": lambda v: 15 in [s for s, n in zip(v.layer.stride, v.layer.conv_size(*v.shape[1:])) if n > 1],
    "a dilation of 0": lambda v: any(d == 0 and n > 1 for d, n in zip(v.layer.dilation, v.layer.weight.shape[2:])),
    "a dilation of 31": lambda v: max(v.layer.dilation) == 31,
    "padding on one side": lambda v: v.layer.padding[0] != v.layer.padding[2] and v.layer.padding[1] != v.layer.padding[3],
    "a window wholly in the padding": lambda v: v.outside(0) or v.outside(1),
    # values
    "a weight of 127": lambda v: v.layer.weight.max() == 127,
    "a weight of −127": lambda v: v.layer.weight.min() == -127,
    "a sum that may reach 2³¹ − 1": lambda v: _reach(v.layer, 1),
    "a sum that may reach 1 − 2³¹": lambda v: _reach(v.layer, -1),
    "a multiplier of 0": lambda v: v.layer.multiplier.min() == 0,
    "a multiplier of 65,535": lambda v: v.layer.multiplier.max() == (1 << 16) - 1,
    "a shift of 16": lambda v: v.layer.shift.min() == 16,
    "a shift of 47": lambda v: v.layer.shift.max() == 47,
    "a clamp": lambda v: -128 < v.layer.low < v.layer.high < 127,
    "a clamp to one code": lambda v: v.layer.low == v.layer.high,
    # residuals and pooling
    "a residual": lambda v: v.layer.residual,
    "a residual of an input": lambda v: v.layer.residual and v.layer.residual.tensor in v.network.inputs,
    "a map added to what is made of it": lambda v: v.layer.residual and v.layer.residual.tensor == v.layer.input,
    "a residual's shift far below the sum's": lambda v: v.layer.residual and int(v.layer.shift.max()) - v.layer.residual.shift >= 31,
    "a residual before pooling": lambda v: v.layer.residual and v.layer.pool,
    "pooling": lambda v: v.layer.pool,
    "pooling with padding on every side": lambda v: v.layer.pool and min(v.layer.pool.padding) > 0,
    "a pooling window of 15": lambda v: v.layer.pool and max(v.layer.pool.kernel) == 15,
    "pooling that leaves pixels out": lambda v: v.layer.pool and any(s > k for s, k in zip(v.layer.pool.stride, v.layer.pool.kernel)),
    "multipliers of negative sums": lambda v: v.layer.negative is not None,
    "a table": lambda v: v.layer.lookup,
    "a table after multipliers of negative sums": lambda v: v.layer.lookup and v.layer.negative is not None,
    "a table before pooling": lambda v: v.layer.lookup and v.layer.pool,
    "computed parameters": lambda v: v.layer.parameters,
    "computed parameters of several images": lambda v: v.layer.parameters and v.program.batch > 1,
    "computed parameters of several images in several chunks": lambda v: v.layer.parameters and 1 < v.program.batch < len(v.plan.chunks),
    "computed parameters and a residual": lambda v: v.layer.parameters and v.layer.residual,
    "computed parameters before a table": lambda v: v.layer.parameters and v.layer.lookup,
    "computed parameters of channels that fill no plane": lambda v: v.layer.parameters and v.out[0] % PLANE,
    "computed parameters in several loads": lambda v: v.layer.parameters and v.out[0] > v.program.config.parameter_words,
    "phases of columns": lambda v: v.layer.column_phases > 1,
    "eight phases of columns": lambda v: v.layer.column_phases == 8,
    "phases of columns of which some are cropped": lambda v: v.layer.cropped,
    # the network
    "a map with several readers": lambda v: v.readers > 1,
    "several inputs": lambda v: len(v.network.inputs) > 1,
    "several outputs": lambda v: len(v.network.outputs) > 1,
    "an output that is read again": lambda v: v.layer.input in v.network.outputs and v.layer.input not in v.network.inputs,
    "an input put out": lambda v: v.layer.input in v.network.outputs and v.layer.input in v.network.inputs,
    "an input folded along rows": _folded(lambda fold, layer: fold.kernel[0] == 1),
    "an input folded to windows": _folded(lambda fold, layer: fold.kernel[0] > 1 and fold.kernel == layer.weight.shape[2:] and fold.stride == layer.stride),
    "an input folded to cells of the stride": _folded(lambda fold, layer: fold.kernel[0] > 1 and fold.kernel == fold.stride != layer.weight.shape[2:]),
    # how the layer is cut
    "a full tile": lambda v: any(tile.pixels == v.program.config.tile_pixels for tile in v.tiles),
    "a smaller last tile": lambda v: len(v.tiles) > 1 and v.tiles[-1].pixels < v.tiles[0].pixels,
    "a tile of fewer pixels than a run": lambda v: any(tile.pixels < v.program.config.min_pixels for tile in v.tiles),
    "a tile of several images": lambda v: any(tile.images[1] - tile.images[0] > 1 for tile in v.tiles),
    "a tile of part of a row": lambda v: any(tile.columns != (0, v.plan.geometry.conv[2]) for tile in v.tiles),
    "a tile that is stored with rows of the one before": lambda v: any(tile.back for tile in v.tiles),
    "a tile that stores nothing yet": lambda v: any(tile.out_rows[0] == tile.out_rows[1] for tile in v.tiles),
    "a map in several chunks": lambda v: len(v.plan.chunks) > 1,
    "images in several chunks": lambda v: len({chunk.images for chunk in v.plan.chunks}) > 1,
    "weights that fill the buffer and stay": lambda v: v.plan.keep == "layer" and len(v.plan.chunks) > 1 and 4 * _weight_words(v) > 3 * v.program.config.weight_words,
    "weights loaded again for each chunk": lambda v: v.plan.keep == "chunk" and len(v.plan.chunks) > 1,
    "weights loaded again for each tile": lambda v: v.plan.keep == "tile" and len(v.tiles) > 1,
    "a word for a block of weights": lambda v: v.plan.geometry.diagonal,
    "rows left out of the loads": lambda v: v.plan.geometry.row_step > 1,
    "a sum in several pieces": lambda v: len(v.cut) > 1,
    "kernel rows in several pieces": lambda v: any(piece.row for piece in v.cut),
    "several blocks of outputs": lambda v: v.plan.geometry.blocks > 1,
    "parameters in several loads": lambda v: v.plan.geometry.blocks * v.plan.geometry.block_parameters > v.program.config.parameter_words // 2,
}


def _weight_words(view):
    return view.plan.geometry.weight_bytes // view.program.config.inputs


def _reach(layer, sign):
    """Whether the largest sum the weights and the bias allow, or its negative, is the last that 32 bits hold."""
    weight = np.abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3))
    return bool((weight * 128 + sign * layer.bias.astype(np.int64) == (1 << 31) - 1).any())
