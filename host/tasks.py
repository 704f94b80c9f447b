"""What there is to do for a planned network: its tasks, a tile of a block each, and what must be loaded for them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from ..hw.config import PLANE, AcceleratorConfig
from ..hw.parameters import PARAMETER_BYTES
from .schedule import Mark, Region
from .tile import Chunk, Piece, Plan, Tile, pieces

__all__ = ["ChunkLoad", "Load", "ResidualLoad", "Task", "WeightOffsets", "Work"]

#: Beats below which a map's load is not cut into channel groups.
_LOAD_BEATS = 256
#: Planes a LOAD_MAP instruction brings.
_MOST_PLANES = 511


@dataclass(frozen=True)
class WeightOffsets:
    """Bytes from base WEIGHTS: a layer's parameters (None: they are computed), its table (None: it has none), and the weights of each array load by its first
    output channel. `blocks`: whose parameters, among those there, each block of output channels has."""

    parameters: int | None
    blocks: list[int]
    table: int | None
    weights: dict[int, int]


@dataclass(eq=False)
class Load:
    """A run of words from base WEIGHTS, or of a tensor, into a ring, and how many instructions read it. `offset` is in bytes."""

    layer: int
    offset: int
    words: int
    uses: int = 0
    tensor: str | None = None
    #: Words at the end that are reserved but not loaded: those of channels that do not exist.
    empty: int = 0
    region: Region | None = None
    mark: Mark | None = None

    def use(self, mark: Mark) -> None:
        """Count a reader that has been emitted; the last one frees the region."""
        self.uses -= 1
        if self.uses == 0:
            self.region.last_reader = mark


@dataclass(eq=False)
class ChunkLoad:
    """A chunk in the scratchpad: its region, its loads with the rows and words they bring, and its unfinished tiles."""

    layer: int
    chunk: Chunk
    pending: deque
    done: list
    tiles: int
    region: Region | None = None


@dataclass(eq=False)
class ResidualLoad:
    """The summands of a tile's block."""

    task: "Task"
    region: Region | None = None
    mark: Mark | None = None

    @property
    def layer(self) -> int:
        return self.task.layer


@dataclass(eq=False)
class Task:
    """A tile of a block: what it computes with."""

    layer: int
    block: int
    tile: Tile
    chunk: ChunkLoad
    #: Per array load: first output channel, parameters, and the pieces with their weights.
    parts: list[tuple[int, Load, int, list[tuple[Piece, Load]]]]
    residual: ResidualLoad | None
    table: Load | None
    next_tile: Tile | None = None


class Work:
    """All of a network's tasks, and the loads they need, in the order in which they need them."""

    def __init__(self, config: AcceleratorConfig, plans: list[Plan], offsets: list[WeightOffsets]):
        self._config, self._lanes = config, config.inputs // PLANE
        self.tasks = []
        self.weight_loads, self.parameter_loads, self.table_loads, self.chunk_loads, self.residual_loads = (deque() for _ in range(5))
        for index, (plan, where) in enumerate(zip(plans, offsets)):
            self._plan(index, plan, where)

    def _plan(self, index, plan, offsets):
        geometry, kept, parameters = plan.geometry, {}, {}

        def tiles(chunks):
            """Of each block, in these chunks."""
            return [sum(len(chunk.tiles) for chunk in chunks if chunk.blocks[0] <= block < chunk.blocks[1]) for block in range(geometry.blocks)]

        parameter_words = (max(offsets.blocks) + 1) * geometry.block_parameters
        table = None
        if offsets.table is not None:
            table = Load(index, offsets.table, 1, uses=sum(count * len(geometry.parts(block)) for block, count in enumerate(tiles(plan.chunks))))
            self.table_loads.append(table)
        stay = parameter_words <= self._config.parameter_words // 2
        # Chunks that share their parameters; each image has computed ones of its own.
        shares = [(geometry.layer.parameters and chunk.images) if stay else number for number, chunk in enumerate(plan.chunks)]
        for number, chunk in enumerate(plan.chunks):
            chunk_load = ChunkLoad(index, chunk, deque(self._map_loads(plan, chunk)), [], len(chunk.tiles) * (chunk.blocks[1] - chunk.blocks[0]))
            self.chunk_loads.append(chunk_load)
            if (share := shares[number]) not in parameters:
                sharing = tiles([other for other, its in zip(plan.chunks, shares) if its == share])
                parameters[share] = self._parameter_pieces(index, geometry, offsets, chunk.images[0], sharing)
            for block in range(*chunk.blocks):
                for position, tile in enumerate(chunk.tiles):
                    parts = []
                    for first in geometry.parts(block):
                        key = {"layer": offsets.weights[first], "chunk": (first, number), "tile": (first, number, position)}[plan.keep]
                        fine, loads = kept.get(key, (block == chunk.blocks[0], None))
                        cut = pieces(geometry, first, fine)
                        if loads is None:
                            loads = self._weight_pieces(index, geometry, offsets.weights[first], cut)
                            kept[key] = fine, loads
                        for load in loads:
                            load.uses += 1
                        parts.append((first, *parameters[share][first], list(zip(cut, loads))))
                    task = Task(index, block, tile, chunk_load, parts, None, table)
                    if geometry.layer.residual:
                        task.residual = ResidualLoad(task)
                        self.residual_loads.append(task.residual)
                    following = chunk.tiles[position + 1] if position + 1 < len(chunk.tiles) else None
                    task.next_tile = following if following and following.back else None
                    self.tasks.append(task)

    def _parameter_pieces(self, layer, geometry, offsets, image, tiles):
        """First output channel of an array load → its parameters' load and the first word in it. `tiles`: of each block."""
        unit, limit, tensor = geometry.block_parameters, self._config.parameter_words // 4, geometry.layer.parameters
        words, step = (max(offsets.blocks) + 1) * unit, max(unit, limit // unit * unit)
        places = {c: geometry.parameter_word(c) + (place - block) * unit for block, place in enumerate(offsets.blocks) for c in geometry.parts(block)}
        there = 2 * ceil(geometry.conv[0] / PLANE) if tensor else words
        begin = image * PARAMETER_BYTES * there if tensor else offsets.parameters
        result = {}
        for first_word in range(0, words, step):
            count = min(step, words - first_word)
            firsts = [c for c, word in places.items() if first_word <= word < first_word + count]
            uses = sum(tiles[c % geometry.phase_channels // geometry.block] for c in firsts)
            if not uses:
                continue
            load = Load(layer, begin + PARAMETER_BYTES * first_word, count, uses=uses, tensor=tensor, empty=max(first_word + count - there, 0))
            self.parameter_loads.append(load)
            result |= {c: (load, places[c] - first_word) for c in firsts}
        return result

    def _weight_pieces(self, layer, geometry, offset, cut):
        """The loads of an array load's pieces."""
        result = []
        for piece in cut:
            words = piece.words * piece.rows * geometry.weight.shape[3] * geometry.step_words
            result.append(Load(layer, offset, words))
            offset += words * self._config.inputs
        self.weight_loads += result
        return result

    def _map_loads(self, plan, chunk) -> Iterator[tuple]:
        """(image, rows, words) in the order in which the first block's tiles and pieces need them."""
        geometry = plan.geometry
        ends = sorted({geometry.input_rows(tile.rows)[1] for tile in chunk.tiles} | {chunk.rows[1]})
        strips = list(pairwise([chunk.rows[0], *[end for end in ends if end > chunk.rows[0]]]))
        if geometry.row_step > 1:  # each row by itself
            strips = list(pairwise(range(chunk.rows[0], chunk.rows[1] + 1)))
        # Smaller loads would cost more than the wait they save.
        first, last = chunk.words
        whole = min((last - first) * self._lanes, geometry.planes) * (strips[0][1] - strips[0][0]) * geometry.shape[2]
        step = min(ceil((last - first) / max(min(4, whole // _LOAD_BEATS), 1)), _MOST_PLANES // self._lanes)
        for image in range(*chunk.images):
            for strip in strips:
                for word in range(first, last, step):
                    yield image, strip, (word, min(word + step, last))
