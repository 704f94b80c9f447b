"""How a layer is cut: channel blocks, chunks of the map that fit the scratchpad, pixel tiles that fit the sums; and what a cut costs.

A layer's work nests, outermost first: chunk (what lies in the scratchpad at once) → block (output channels staged at once)
→ tile (pixels whose sums fit a bank) → piece (part of the reduction, a COMPUTE instruction).
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from ..hw.config import PLANE, AcceleratorConfig
from ..hw.network import Layer, Network
from ..hw.program import Fold
from .errors import CompileError

__all__ = ["Chunk", "Geometry", "Piece", "Plan", "Tile", "plan_layer"]

#: Bytes a second of external memory the bound is stated for.
MEMORY_RATE = 250e6
#: Beats a LOAD_MAP instruction brings of a plane, and words from one of its planes to the next.
_MOST_BEATS = (1 << 14) - 1
#: Cycles a COMPUTE instruction costs beyond its pixels.
TILE_OVERHEAD = 24


@dataclass(frozen=True)
class Piece:
    """Part of a block's reduction: `words` channel words from `word` on, kernel rows `row`…`row + rows − 1`."""

    word: int
    words: int
    row: int
    rows: int


@dataclass(frozen=True)
class Tile:
    """Convolution outputs whose sums share a bank, and the outputs stored once they are staged.

    Rows and columns are half-open. With pooling, the stored window may reach back to rows staged by earlier tiles (`back`).
    """

    images: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    out_rows: tuple[int, int]
    out_columns: tuple[int, int]
    #: Rows before `rows` that must still be staged.
    back: int = 0

    @property
    def pixels(self) -> int:
        return (self.images[1] - self.images[0]) * (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Chunk:
    """Part of the map in the scratchpad at once: some images, whole rows, every channel."""

    images: tuple[int, int]
    rows: tuple[int, int]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Geometry:
    """A layer as the array sees it: the input folded, the kernel fitted to the fold."""

    config: AcceleratorConfig
    layer: Layer
    batch: int
    #: Shape (C, H, W) of the map in memory.
    shape: tuple[int, int, int]
    #: int8 (O, C / groups, KH, KW)
    weight: np.ndarray
    stride: tuple[int, int]
    #: Top and left; what lies beyond the map's other edges is padding too.
    padding: tuple[int, int]
    dilation: tuple[int, int]
    #: Convolution output (O, OH, OW), and what is stored after pooling.
    conv: tuple[int, int, int]
    out: tuple[int, int, int]
    fold: Fold | None

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

    def parts(self, block: int) -> list[int]:
        """First output channel of each array load of a block."""
        first = block * self.block
        return [c for c in range(first, first + self.block, self.config.outputs) if c < ceil(self.conv[0] / PLANE) * PLANE]

    def reduction(self, first: int) -> tuple[int, int]:
        """Channel words, half-open, that the output channels from `first` on need."""
        last = min(first + self.config.outputs, self.conv[0]) - 1
        if last < first:  # channels that only fill a plane
            return 0, 1
        group_outputs, group_inputs = self.conv[0] // self.layer.groups, self.weight.shape[1]
        low, high = first // group_outputs * group_inputs, (last // group_outputs + 1) * group_inputs
        return low // self.config.inputs, ceil(high / self.config.inputs)

    @cached_property
    def steps(self) -> int:
        """Array loads of all blocks."""
        kernel = self.weight.shape[2] * self.weight.shape[3]
        return kernel * sum(b - a for block in range(self.blocks) for a, b in [self.reduction(first) for first in self.parts(block)])

    @property
    def weight_bytes(self) -> int:
        """Bytes of different weights: a depthwise layer of equal kernels, such as average pooling, repeats the array loads of one channel word and of the last one."""
        kernel = self.weight.shape[2] * self.weight.shape[3]
        repeats = self.layer.groups == self.conv[0] == self.shape[0] and (self.weight == self.weight[:1]).all()
        word_loads = max(self.config.inputs // self.config.outputs, 1)
        return (min(self.steps, 2 * kernel * word_loads) if repeats else self.steps) * self.config.macs

    def input_rows(self, rows: tuple[int, int]) -> tuple[int, int]:
        """Rows of the map, half-open and at least one, that convolution rows need."""
        first = rows[0] * self.stride[0] - self.padding[0]
        last = (rows[1] - 1) * self.stride[0] - self.padding[0] + (self.weight.shape[2] - 1) * self.dilation[0]
        low = min(max(first, 0), self.shape[1] - 1)
        return low, max(min(last + 1, self.shape[1]), low + 1)

    def conv_rows(self, out_rows: tuple[int, int]) -> tuple[int, int]:
        """Convolution rows, half-open, that stored rows need."""
        return self._before_pool(out_rows, 0)

    def conv_columns(self, out_columns: tuple[int, int]) -> tuple[int, int]:
        """Convolution columns, half-open, that stored columns need."""
        return self._before_pool(out_columns, 1)

    def _before_pool(self, span, axis):
        pool = self.layer.pool
        if pool is None:
            return span
        first = span[0] * pool.stride[axis] - pool.padding[axis]
        last = (span[1] - 1) * pool.stride[axis] - pool.padding[axis] + pool.kernel[axis]
        return max(first, 0), min(last, self.conv[1 + axis])


@dataclass(frozen=True)
class Plan:
    """A layer's geometry, its chunks, and the estimate by which they were chosen."""

    geometry: Geometry
    chunks: tuple[Chunk, ...]
    #: How long a block's weights stay in the weight buffer: "layer", "chunk" or "tile".
    keep: str
    #: Cycles of loading maps that no computing hides.
    exposed: int
    #: Cycles of computing and of memory traffic, and bytes moved.
    compute: int
    memory: int
    bytes: int
    #: Cycles of the layer if computing and memory overlapped perfectly.
    bound: int

    @property
    def cost(self) -> float:
        """What the search minimises: the longer of computing and memory, and what of the maps' loads nothing hides."""
        return max(self.compute, self.memory) + self.exposed


def plan_layer(config: AcceleratorConfig, network: Network, layer: Layer, batch: int, foldable: bool) -> Plan:
    """The cheapest plan of a layer. `foldable`: its input is the network's, used by it alone, so the host may fold it.

    Raises :exc:`CompileError` naming the layer if no plan fits the buffers.
    """
    best, reason = None, ""
    for ways in _folds(network, layer) if foldable else [(_whole_map, _whole_map)]:
        try:
            plan = _best_chunks(_geometry(config, network, layer, batch, ways))
        except CompileError as error:
            reason = reason or str(error)
            continue
        if best is None or plan.cost < best.cost:
            best = plan
    if best is None:
        raise CompileError(reason)
    return best


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


def _folds(network, layer):
    """Ways to fold a layer's input, each a pair of axes; the plain map first."""
    yield _whole_map, _whole_map
    if layer.groups == 1 and layer.dilation == (1, 1) and layer.weight.shape[2:] != (1, 1) and network.tensors[layer.input].shape[0] <= PLANE:
        yield _whole_map, _whole_window
        yield _whole_window, _whole_window
        yield _space_to_depth, _space_to_depth


def _geometry(config, network, layer, batch, ways):
    channels, height, width = network.tensors[layer.input].shape
    conv = layer.conv_size(height, width)
    y, x = (way(*values) for way, values in zip(ways, zip(layer.weight.shape[2:], layer.stride, layer.padding[:2], (height, width), conv)))
    shape, weight, fold = (channels, height, width), layer.weight, None
    if ways != (_whole_map, _whole_map):
        fold = Fold(kernel=(y.window, x.window), stride=(y.stride, x.stride), padding=(y.before, x.before, y.after, x.after))
        outputs = weight.shape[0]
        spread = np.zeros((outputs, channels, y.kernel * y.window, x.kernel * x.window), np.int8)
        spread[:, :, y.shift : y.shift + weight.shape[2], x.shift : x.shift + weight.shape[3]] = weight
        spread = spread.reshape(outputs, channels, y.kernel, y.window, x.kernel, x.window).transpose(0, 3, 5, 1, 2, 4)
        shape, weight = fold.shape(shape), np.ascontiguousarray(spread).reshape(outputs, -1, y.kernel, x.kernel)
    stride, padding, conv = (y.kernel_stride, x.kernel_stride), (y.padding, x.padding), (weight.shape[0], *conv)
    out = (conv[0], *layer.output_size(height, width))
    geometry = Geometry(config, layer, batch, shape, weight, stride, padding, layer.dilation, conv, out, fold)
    _check_limits(geometry)
    return geometry


def _check_limits(geometry):
    """Raises :exc:`CompileError` if a number does not fit the field of an instruction."""
    layer, (_, *size), (_, *conv), (_, *out) = geometry.layer, geometry.shape, geometry.conv, geometry.out
    last = [(count - 1) * stride - padding for count, stride, padding in zip(conv, geometry.stride, geometry.padding)]
    limits = [("kernel height", geometry.weight.shape[2], 32), ("kernel width", geometry.weight.shape[3], 32), ("stride", max(geometry.stride), 15),
              ("dilation", max(geometry.dilation), 31), ("padding", max(geometry.padding), 2047), ("map height", size[0], 2047), ("map width", size[1], 2047),
              ("last window's row", last[0], 2047), ("last window's column", last[1], 2047), ("output height", conv[0], 1023), ("output width", conv[1], 2047)]
    limits += [(f"{what} area", height * width, (1 << 20) - 1) for what, (height, width) in (("map", size), ("output", conv), ("stored map", out))]
    if layer.pool:
        limits += [("pooling kernel", max(layer.pool.kernel), 15), ("pooling stride", max(layer.pool.stride), 15)]
    for name, value, most in limits:
        if value > most:
            raise CompileError(f"layer {layer.name}: {name} {value} exceeds the engine's {most}; keep it on the host or split the layer")


def _best_chunks(geometry):
    """Try ever smaller chunks and keep the cheapest plan."""
    config, (_, height, width) = geometry.config, geometry.shape
    rows = geometry.out[1]
    image_words, limit = geometry.words * height * width, min(config.map_words, _MOST_BEATS)
    best = None
    # Whole images share a chunk while two chunks fit side by side; else an image is cut into rows.
    options = [(images, rows) for images in range(1, geometry.batch + 1) if images * image_words <= limit]
    counts = sorted({ceil(rows / n) for n in range(2, min(rows, 64) + 1)} | {1}, reverse=True)
    options += [(1, n) for n in counts if n < rows]
    for images, out_rows in options:
        chunks = _chunks(geometry, images, out_rows)
        if chunks is None or max(_chunk_words(geometry, chunk) for chunk in chunks) > limit:
            continue
        plan = _estimate(geometry, chunks)
        if best is None or plan.cost < best.cost:
            best = plan
    if best is None:
        layer = geometry.layer
        raise CompileError(f"layer {layer.name}: one output row needs more than the {limit * config.inputs} bytes of {config.name}'s map scratchpad or its "
                           f"{config.stage_pixels} staged pixels; use a larger config")
    return best


def _chunk_words(geometry, chunk):
    return geometry.words * (chunk.images[1] - chunk.images[0]) * (chunk.rows[1] - chunk.rows[0]) * geometry.shape[2]


def _chunks(geometry, images, out_rows):
    """Chunks of `images` × `out_rows` stored rows, or None if a row does not fit the staging buffer."""
    result = []
    for image in range(0, geometry.batch, images):
        last_image = min(image + images, geometry.batch)
        for row in range(0, geometry.out[1], out_rows):
            span = (row, min(row + out_rows, geometry.out[1]))
            tiles = _tiles(geometry, (image, last_image), span)
            if tiles is None:
                return None
            result.append(Chunk((image, last_image), geometry.input_rows(geometry.conv_rows(span)), tuple(tiles)))
    return tuple(result)


def _tiles(geometry, images, out_rows):
    """Pixel tiles of a chunk that stores `out_rows` of `images`."""
    config, pool = geometry.config, geometry.layer.pool
    _, height, width = geometry.conv
    whole_columns, rows = (0, geometry.out[2]), geometry.conv_rows(out_rows)
    pixels = (rows[1] - rows[0]) * width
    if images[1] - images[0] > 1 and rows[1] - rows[0] == height and 2 * pixels <= config.tile_pixels:
        count = images[1] - images[0]
        tiles = ceil(count / (config.tile_pixels // pixels))
        edges = [images[0] + count * k // tiles for k in range(tiles + 1)]
        return [Tile(span, rows, (0, width), out_rows, whole_columns) for span in zip(edges, edges[1:])]
    result = []
    back = pool.kernel[0] - 1 if pool else 0
    most = max(min(config.tile_pixels // width, (config.stage_pixels - back * width) // (2 * width)), 0)
    if most == 0 and width <= config.tile_pixels and (back + 1) * width <= config.stage_pixels:
        most = 1
    for image in range(*images):
        if most:
            result += _strips(geometry, (image, image + 1), out_rows, rows, most)
        elif (cells := _cells(geometry, (image, image + 1), out_rows)) is not None:
            result += cells
        else:
            return None
    return result


def _strips(geometry, image, out_rows, rows, most):
    """Tiles of whole rows; pooling windows reach back to rows of the tile before."""
    pool, width = geometry.layer.pool, geometry.conv[2]
    count = ceil((rows[1] - rows[0]) / most)
    edges = [rows[0] + (rows[1] - rows[0]) * k // count for k in range(count + 1)]
    done = out_rows[0]
    for first, last in zip(edges, edges[1:]):
        if pool is None:
            yield Tile(image, (first, last), (0, width), (first, last), (0, geometry.out[2]))
            continue
        ready = done
        while ready < out_rows[1] and geometry.conv_rows((ready, ready + 1))[1] <= last:
            ready += 1
        back = first - geometry.conv_rows((done, done + 1))[0] if done < out_rows[1] else 0
        yield Tile(image, (first, last), (0, width), (done, ready), (0, geometry.out[2]), max(back, 0))
        done = ready


def _cells(geometry, image, out_rows):
    """Tiles of part of a row: each computes all its pooling windows need, so neighbours overlap."""
    config = geometry.config
    pixels = min(config.tile_pixels, config.stage_pixels // 2)
    shapes = []
    for count in range(1, geometry.out[2] + 1):
        columns = ceil(geometry.out[2] / count)
        wide = _extent(geometry, columns, 1)
        if wide > pixels:
            continue
        rows = max((r for r in range(1, out_rows[1] - out_rows[0] + 1) if _extent(geometry, r, 0) * wide <= pixels), default=0)
        if rows:
            shapes.append((wide * _extent(geometry, rows, 0) / (rows * columns), -rows * columns, rows, columns))
        if len(shapes) > 16:
            break
    if not shapes:
        return None
    *_, rows, columns = min(shapes)
    result = []
    for row in range(out_rows[0], out_rows[1], rows):
        for column in range(0, geometry.out[2], columns):
            spans = (row, min(row + rows, out_rows[1])), (column, min(column + columns, geometry.out[2]))
            result.append(Tile(image, geometry.conv_rows(spans[0]), geometry.conv_columns(spans[1]), *spans))
    return result


def _extent(geometry, count, axis):
    """Convolution outputs that `count` neighbouring stored ones need along an axis, borders apart."""
    pool = geometry.layer.pool
    return count if pool is None else min((count - 1) * pool.stride[axis] + pool.kernel[axis], geometry.conv[1 + axis])


def _estimate(geometry, chunks):
    config, layer = geometry.config, geometry.layer
    block_words = max(sum(b - a for a, b in (geometry.reduction(f) for f in geometry.parts(block))) for block in range(geometry.blocks)
                      ) * geometry.weight.shape[2] * geometry.weight.shape[3] * config.block_words
    tiles = sum(len(chunk.tiles) for chunk in chunks)
    if geometry.weight_bytes // config.inputs <= config.weight_words // 4 * 3:
        keep, loads = "layer", 1
    elif block_words <= config.weight_words // 4 * 3:
        keep, loads = "chunk", len(chunks)
    else:
        keep, loads = "tile", tiles
    phases = max(config.outputs // config.drain_lanes, 1)
    compute = 0
    for chunk in chunks:
        for tile in chunk.tiles:
            run = max(tile.pixels, config.min_pixels)
            steps = geometry.steps * run + TILE_OVERHEAD * geometry.conv[0] // config.outputs
            compute += max(steps, tile.pixels * phases * ceil(geometry.conv[0] / config.outputs))
    stored = ceil(geometry.out[0] / PLANE) * geometry.out[1] * geometry.out[2]
    moved = geometry.weight_bytes * loads + geometry.batch * PLANE * stored
    moved += sum(PLANE * geometry.planes * (c.images[1] - c.images[0]) * (c.rows[1] - c.rows[0]) * geometry.shape[2] for c in chunks)
    if layer.residual:
        moved += sum(tile.pixels for chunk in chunks for tile in chunk.tiles) * ceil(geometry.conv[0] / PLANE) * PLANE
    memory = ceil(moved * config.clock_mhz * 1e6 / MEMORY_RATE)
    rows_read = min(geometry.shape[1], geometry.conv[1] * geometry.weight.shape[2])
    ideal = geometry.weight_bytes + geometry.batch * PLANE * (geometry.planes * rows_read * geometry.shape[2] + stored)
    if layer.residual:
        ideal += geometry.batch * ceil(geometry.conv[0] / PLANE) * PLANE * geometry.conv[1] * geometry.conv[2]
    bound = max(geometry.steps * geometry.batch * geometry.conv[1] * geometry.conv[2], ceil(ideal * config.clock_mhz * 1e6 / MEMORY_RATE))
    # A chunk that leaves no room for the next one beside it is loaded while the array waits, but for a strip of the last.
    largest = max(_chunk_words(geometry, chunk) for chunk in chunks)
    load = ceil(largest * config.inputs * config.clock_mhz * 1e6 / MEMORY_RATE)
    exposed = load // 8 if 2 * largest <= config.map_words else load * len(chunks)
    return Plan(geometry, chunks, keep, exposed, compute, memory, moved, bound)


def pieces(geometry: Geometry, first: int, fine: bool) -> list[Piece]:
    """The reduction of the output channels from `first` on, cut so that a piece's weights take a quarter of the weight buffer at most.

    `fine`: at least four pieces where there are as many channel words, so that computing begins while the map still loads.
    """
    config = geometry.config
    low, high = geometry.reduction(first)
    kernel_y, kernel_x = geometry.weight.shape[2:]
    limit = config.weight_words // 4 // config.block_words
    words = min(limit // (kernel_y * kernel_x), 512)
    if words == 0:
        rows = max(limit // kernel_x, 1)
        if rows * kernel_x > 4 * limit:
            raise CompileError(f"layer {geometry.layer.name}: a kernel row of {kernel_x} exceeds {config.name}'s weight buffer; use a larger config")
        return [Piece(word, 1, row, min(rows, kernel_y - row)) for word in range(low, high) for row in range(0, kernel_y, rows)]
    if fine:
        words = min(words, max(ceil((high - low) / 4), 1))
    return [Piece(word, min(words, high - word), 0, kernel_y) for word in range(low, high, words)]
