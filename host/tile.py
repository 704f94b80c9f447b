"""How a layer is cut: channel blocks, chunks of the map that fit the scratchpad, pixel tiles that fit the sums; and what a cut costs.

A layer's work nests, outermost first: chunk (what lies in the scratchpad at once) → block (output channels staged at once)
→ tile (pixels whose sums fit a bank) → piece (part of the reduction, a COMPUTE instruction).
"""

from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil

from ..hw.config import PLANE, AcceleratorConfig
from ..hw.network import Layer, Network
from .errors import CompileError
from .geometry import WHOLE_MAP, Geometry, folds, make_geometry

__all__ = ["Chunk", "Piece", "Plan", "Tile", "memory_rate", "pieces", "plan_layer"]

#: Bytes a second of external memory the bound is stated for.
_MEMORY_RATE = 250e6
#: Beats a LOAD_MAP instruction brings of a plane, and words from one of its planes to the next.
_MOST_BEATS = (1 << 14) - 1
#: Cycles in which an in-order engine drains a pixel of a tile, at a shift of 28.
_SERIAL_DRAIN = 16
#: What it costs that nothing loads beside weights that take all of the buffer, in times of their own loading: of 1 to 4 the one with which the zoo is fastest.
_FULL = 3
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
    """Part of the map in the scratchpad at once: some images, whole rows, and the channel words that some blocks need, usually all."""

    images: tuple[int, int]
    rows: tuple[int, int]
    tiles: tuple[Tile, ...]
    #: Half-open, as are `words`.
    blocks: tuple[int, int]
    words: tuple[int, int]


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


def memory_rate(config: AcceleratorConfig) -> float:
    """Bytes a second: what the bound is stated for, or of an engine that is in order a beat a cycle."""
    return PLANE * config.clock_mhz * 1e6 if config.in_order else _MEMORY_RATE


def plan_layer(config: AcceleratorConfig, network: Network, layer: Layer, batch: int, foldable: bool) -> Plan:
    """The cheapest plan of a layer. `foldable`: its input is the network's, used by it alone, so the host may fold it.

    Raises :exc:`CompileError` naming the layer if no plan fits the buffers.
    """
    best, reason = None, ""
    for ways in folds(network, layer) if foldable else [WHOLE_MAP]:
        try:
            plan = _best_chunks(make_geometry(config, network, layer, batch, ways))
        except CompileError as error:
            reason = reason or str(error)
            continue
        if best is None or plan.cost < best.cost:
            best = plan
    if best is None:
        raise CompileError(reason)
    return best


def _best_chunks(geometry):
    """Try ever smaller chunks and keep the cheapest plan."""
    config, (_, height, width) = geometry.config, geometry.shape
    rows = geometry.out[1]
    image_words, limit = geometry.words * height * width, min(config.map_words, _MOST_BEATS)
    best = None
    # Strips of whole strides of a pooling finish equally many rows each, so that storing them takes equally long.
    steps = sorted({1, geometry.layer.pool.stride[0] if geometry.layer.pool else 1})
    # Whole images share a chunk while two chunks fit side by side; else an image is cut into rows.
    most_images = 1 if geometry.layer.parameters else geometry.batch  # each image has parameters of its own, which a tile has one set of
    counts = sorted({ceil(rows / n) for n in range(2, min(rows, 64) + 1)} | {1}, reverse=True)
    for parts in range(1, _channel_parts(geometry) + 1):
        options = [(images, rows) for images in range(1, most_images + 1) if images * image_words <= limit * parts]
        options += [(1, n) for n in counts if n < rows]
        for (images, out_rows), step in product(options, steps):
            chunks = _chunks(geometry, images, out_rows, parts, step)
            if chunks is None or max(_chunk_words(geometry, chunk) for chunk in chunks) > limit:
                continue
            plan = _estimate(geometry, chunks)
            if best is None or plan.cost < best.cost:
                best = plan
        if best:
            break
    if best is None:
        layer = geometry.layer
        raise CompileError(f"layer {layer.name}: one output row needs more than the {limit * config.inputs} bytes of {config.name}'s map scratchpad or its "
                           f"{config.stage_pixels} staged pixels; use a larger config")
    return best


def _channel_parts(geometry):
    """Parts into which the channels of a chunk can be cut: the blocks of a layer with groups, which need their own channels only."""
    return geometry.blocks if geometry.layer.groups > 1 else 1


def _chunk_words(geometry, chunk):
    return (chunk.words[1] - chunk.words[0]) * (chunk.images[1] - chunk.images[0]) * (chunk.rows[1] - chunk.rows[0]) * geometry.shape[2]


def _chunks(geometry, images, out_rows, parts, step):
    """Chunks of `images` × `out_rows` stored rows × the channels in `parts`, in strips of a multiple of `step` rows; None if a row does not fit the staging buffer."""
    result, channels = [], []
    for blocks in pairwise(geometry.blocks * part // parts for part in range(parts + 1)):
        reductions = [geometry.reduction(first) for block in range(*blocks) for first in geometry.parts(block)]
        channels.append((blocks, (min(first for first, _ in reductions), max(last for _, last in reductions)) if parts > 1 else (0, geometry.words)))
    for image in range(0, geometry.batch, images):
        last_image = min(image + images, geometry.batch)
        for row in range(0, geometry.out[1], out_rows):
            span = (row, min(row + out_rows, geometry.out[1]))
            tiles = _tiles(geometry, (image, last_image), span, step)
            if tiles is None:
                return None
            result += [Chunk((image, last_image), geometry.input_rows(geometry.conv_rows(span)), tuple(tiles), *part) for part in channels]
    return tuple(result)


def _tiles(geometry, images, out_rows, step):
    """Pixel tiles of a chunk that stores `out_rows` of `images`, if they are strips, of a multiple of `step` rows where these fit."""
    config, pool, phases = geometry.config, geometry.layer.pool, geometry.layer.column_phases
    _, height, width = geometry.conv
    most_pixels = min(config.tile_pixels, config.stage_pixels // (2 * phases))
    whole_columns, rows = (0, geometry.out[2]), geometry.conv_rows(out_rows)
    pixels = (rows[1] - rows[0]) * width
    if images[1] - images[0] > 1 and rows[1] - rows[0] == height and 2 * pixels <= most_pixels:
        count = images[1] - images[0]
        tiles = ceil(count / (most_pixels // pixels))
        edges = [images[0] + count * k // tiles for k in range(tiles + 1)]
        return [Tile(span, rows, (0, width), out_rows, whole_columns) for span in zip(edges, edges[1:])]
    result = []
    back = pool.kernel[0] - 1 if pool else 0
    most = max(min(config.tile_pixels // width, (config.stage_pixels - back * width) // (2 * width * phases)), 0)
    if most == 0 and width <= config.tile_pixels and (back + 1) * width * phases <= config.stage_pixels:
        most = 1
    for image in range(*images):
        if most:
            result += _strips(geometry, (image, image + 1), out_rows, rows, most, step if step <= most else 1)
        elif (cells := _cells(geometry, (image, image + 1), out_rows)) is not None:
            result += cells
        else:
            return None
    return result


def _strips(geometry, image, out_rows, rows, most, step):
    """Tiles of whole rows, a multiple of `step` but for the last; pooling windows reach back to rows of the tile before."""
    pool, width = geometry.layer.pool, geometry.conv[2]
    steps = ceil((rows[1] - rows[0]) / step)
    count = ceil(steps / (most // step))
    edges = [min(rows[0] + steps * k // count * step, rows[1]) for k in range(count + 1)]
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
    config, phases = geometry.config, geometry.layer.column_phases
    pixels = min(config.tile_pixels, config.stage_pixels // (2 * phases))
    shapes = []
    for count in range(1, geometry.out[2] + 1):
        columns = ceil(geometry.out[2] / (count * phases)) * phases
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
    if pool is None:
        return ceil(count / geometry.layer.column_phases) if axis else count
    return min((count - 1) * pool.stride[axis] + pool.kernel[axis], geometry.conv[1 + axis])


def _estimate(geometry, chunks):
    config, layer = geometry.config, geometry.layer
    block_words = max(sum(b - a for a, b in (geometry.reduction(f) for f in geometry.parts(block))) for block in range(geometry.blocks)
                      ) * geometry.weight.shape[2] * geometry.weight.shape[3] * geometry.step_words
    tiles = sum(len(chunk.tiles) for chunk in chunks)
    parts = len({chunk.blocks for chunk in chunks})
    words, room = geometry.weight_bytes // config.inputs, config.weight_words // 4 * 3  # beside what stays, the next weights load
    again = ("chunk", len(chunks) // parts) if block_words <= room else ("tile", tiles // parts)
    full = room < words <= config.weight_words and again[1] > 1
    keep, loads = ("layer", 1) if words <= room or full else again
    drain = _SERIAL_DRAIN if config.in_order else max(config.outputs // config.drain_lanes, 1)
    rate = memory_rate(config)
    window = layer.pool.kernel[0] * layer.pool.kernel[1] if layer.pool else 1
    compute = 0
    for chunk in chunks[::parts]:
        for tile in chunk.tiles:
            run = max(tile.pixels, config.min_pixels)
            steps = geometry.steps * run + TILE_OVERHEAD * layer.column_phases * geometry.conv[0] // config.outputs
            drained = tile.pixels * drain * layer.column_phases * ceil(geometry.conv[0] / config.outputs)
            outputs = (tile.images[1] - tile.images[0]) * (tile.out_rows[1] - tile.out_rows[0]) * (tile.out_columns[1] - tile.out_columns[0])
            pooled = outputs * window * ceil(geometry.out[0] / PLANE)
            compute += steps + drained if config.in_order else max(steps, drained, pooled)
    stored = ceil(geometry.out[0] / PLANE) * geometry.out[1] * geometry.out[2]
    moved = geometry.weight_bytes * loads + geometry.batch * PLANE * stored
    moved += sum(PLANE * geometry.planes * (c.images[1] - c.images[0]) * (c.rows[1] - c.rows[0]) * geometry.shape[2] for c in chunks[::parts])
    if layer.lookup:
        moved += 8 * len(layer.lookup.table)
    if layer.residual:
        moved += sum(tile.pixels for chunk in chunks[::parts] for tile in chunk.tiles) * ceil(geometry.conv[0] / PLANE) * PLANE
    memory = ceil(moved * config.clock_mhz * 1e6 / rate)
    if config.in_order:  # what is loaded goes to and fro, and nothing happens meanwhile
        compute += 2 * memory
    bound = max(geometry.steps * geometry.batch * geometry.rows_computed * geometry.conv[2], ceil(_least_bytes(geometry) * config.clock_mhz * 1e6 / rate))
    # A chunk that leaves no room for the next one beside it is loaded while the array waits, but for a strip of the last.
    largest = max(_chunk_words(geometry, chunk) for chunk in chunks)
    load = ceil(largest * config.inputs * config.clock_mhz * 1e6 / rate)
    exposed = 0 if config.in_order else load // 8 if 2 * largest <= config.map_words else load * len(chunks)
    if full and not config.in_order:
        exposed += ceil(_FULL * geometry.weight_bytes * config.clock_mhz * 1e6 / rate)
    return Plan(geometry, chunks, keep, exposed, compute, memory, moved, bound)


def _least_bytes(geometry):
    """Memory traffic of a layer with these buffers, loops in the better order: if neither maps nor weights fit, one moves again for each part of the other, but for
    what its buffer still holds. Channels of a layer with groups need their own weights only."""
    config, layer, batch = geometry.config, geometry.layer, geometry.batch
    maps, weights = batch * PLANE * geometry.planes * geometry.rows_read * geometry.shape[2], geometry.weight_bytes
    map_room, weight_room = config.map_words * config.inputs, config.weight_words * config.inputs
    again = min((ceil(maps / map_room) - 1) * max(weights - weight_room, 0), (ceil(weights / weight_room) - 1) * max(maps - map_room, 0))
    stored = batch * PLANE * ceil(geometry.out[0] / PLANE) * geometry.out[1] * geometry.out[2]
    added = batch * PLANE * ceil(geometry.conv[0] / PLANE) * geometry.conv[1] * geometry.conv[2] if layer.residual else 0
    return maps + weights + (again if layer.groups == 1 else 0) + stored + added


def pieces(geometry: Geometry, first: int, fine: bool) -> list[Piece]:
    """The reduction of the output channels from `first` on, cut so that a piece's weights take a quarter of the weight buffer at most.

    `fine`: at least four pieces where there are as many channel words, so that computing begins while the map still loads.
    """
    config = geometry.config
    low, high = geometry.reduction(first)
    kernel_y, kernel_x = geometry.weight.shape[2:]
    limit = config.weight_words // 4 // geometry.step_words
    words = min(limit // (kernel_y * kernel_x), 512)
    if words == 0:
        rows = max(limit // kernel_x, 1)
        if rows * kernel_x > 4 * limit:
            raise CompileError(f"layer {geometry.layer.name}: a kernel row of {kernel_x} exceeds {config.name}'s weight buffer; use a larger config")
        return [Piece(word, 1, row, min(rows, kernel_y - row)) for word in range(low, high) for row in range(0, kernel_y, rows)]
    if fine:
        words = min(words, max(ceil((high - low) / 4), 1))
    return [Piece(word, min(words, high - word), 0, kernel_y) for word in range(low, high, words)]
