"""Instructions of a planned network: what is loaded when, which tile waits for what.

Loads run ahead of the tiles that need them, as far as the buffers have room; each buffer is a ring (`schedule.Ring`)
whose regions are freed by the last instruction that reads them. So the next layer's weights and maps arrive while this one computes.
"""

from collections import deque
from functools import partial
from math import ceil

import numpy as np

from ..hw.config import PLANE, AcceleratorConfig
from ..hw.isa import TABLE_ENTRIES, Base, Opcode, Target, Unit
from ..hw.network import Network
from ..hw.program import Placement
from .schedule import Mark, Ring, Schedule
from .tasks import WeightOffsets, Work
from .tile import Plan

__all__ = ["Emitter"]


def _overlap(one, other):
    """Length of what two half-open spans have in common."""
    return max(min(one[1], other[1]) - max(one[0], other[0]), 0)


class _Ahead:
    """Loads of a unit that none of the instructions emitted so far waits for. Further ones would hold up the other units, whose instructions come after them."""

    #: A queue's 16, and those that its unit has meanwhile begun. Of 16 to 64 it suits most of the zoo best; DenseNet takes 2 % fewer cycles with 64.
    limit = 24

    def __init__(self):
        self._ordinals = deque()

    def add(self, mark: Mark) -> None:
        """A load has been emitted."""
        self._ordinals.append(mark.ordinal)

    def passed(self, mark: Mark) -> None:
        """An instruction that waits for `mark` has been emitted."""
        while self._ordinals and self._ordinals[0] <= mark.ordinal:
            self._ordinals.popleft()

    @property
    def full(self) -> bool:
        return len(self._ordinals) >= self.limit


class Emitter:
    """Emits a network's instructions; `stores[k]` is how many STORE instructions complete layer k."""

    def __init__(self, config: AcceleratorConfig, network: Network, plans: list[Plan], placements: dict[str, Placement], offsets: list[WeightOffsets]):
        self._config, self._network, self._plans, self._placements = config, network, plans, placements
        self._lanes = config.inputs // PLANE
        self.stores = []
        self._schedule = Schedule()
        self._maps = Ring(config.map_words, wraps=False)
        self._weights = Ring(config.weight_words, wraps=True)
        self._parameters = Ring(config.parameter_words, wraps=False)
        self._residuals = Ring(config.stage_pixels, wraps=True)
        self._staging = Ring(config.stage_pixels, wraps=True)
        self._tables = Ring(TABLE_ENTRIES // 256, wraps=False)
        self._ahead = {unit: _Ahead() for unit in (Unit.WEIGHT, Unit.MAP)}
        self._staged = []   # (tile, region) that later stores of the strip may read
        self._drains = []   # DRAIN marks, one a completed bank of sums
        self._written = {}  # tensor that is no part → what of it is stored
        self._work = work = Work(config, plans, offsets)
        # Per ring that LOAD_WEIGHTS fills: its loads, the target, its addresses and the beats per unit of the ring.
        self._word_rings = {
            self._parameters: (work.parameter_loads, Target.PARAMETERS, 1, 4), self._tables: (work.table_loads, Target.TABLE, 256, 256),
            self._weights: (work.weight_loads, Target.WEIGHTS, 1, self._lanes),
        }
        # All loads still to come, and what emits the next of them.
        self._kinds = [(loads, partial(self._load_words, ring)) for ring, (loads, *_) in self._word_rings.items()]
        self._kinds += [(work.residual_loads, self._load_residual), (work.chunk_loads, self._load_map)]

    # ---- loads that run ahead ------------------------------------------------------------------------------------------------

    def _run_ahead(self):
        """Emit the loads that there is room for, those of earlier layers first."""
        kinds = self._kinds
        while kinds := [kind for kind in kinds if kind[0]]:
            first = min(kinds, key=lambda kind: kind[0][0].layer)
            if not first[1]():
                kinds.remove(first)

    def _load_words(self, ring, force=False):
        """Emit the next load of weights, parameters or a table, if it has room and, where a layer computes it, is in memory; `force`: however far ahead."""
        loads, target, step, beats = self._word_rings[ring]
        if self._ahead[Unit.WEIGHT].full and not force:
            return False
        load, base, offset, written = loads[0], Base.WEIGHTS, 0, []
        if load.tensor:
            # Of all images, although one's are loaded: so one token serves for all loads.
            base, offset = self._placements[load.tensor].base, self._placements[load.tensor].offset
            written = self._stored(load.tensor, (0, self._plans[0].geometry.batch), (0, 1), None)
        if written is None:
            return False
        load.region = ring.allocate(load.words)
        if load.region is None:
            return False
        load.mark = self._schedule.emit(Opcode.LOAD_WEIGHTS, [load.region.after, *written], layer=load.layer, base=base, offset=(offset + load.offset) // 8,
                                        target=target, address=load.region.start * step, beats=(load.words - load.empty) * beats)
        self._ahead[Unit.WEIGHT].add(load.mark)
        loads.popleft()
        return True

    def _need_words(self, load, ring):
        """An instruction that waits for `load` is next: emit it, and what comes before it, if that has not been done."""
        while load.mark is None:
            loaded = self._load_words(ring, force=True)
            assert loaded, "each ring holds what a tile needs at once, and what layers make of it has been stored"
        self._ahead[Unit.WEIGHT].passed(load.mark)

    def _load_map(self, force=False):
        """Emit the next of the next chunk's loads, if there is room for the chunk and its source is in memory; `force`: however far ahead."""
        if self._ahead[Unit.MAP].full and not force:
            return False
        load = self._work.chunk_loads[0]
        geometry, chunk = self._plans[load.layer].geometry, load.chunk
        images, rows, width = chunk.images[1] - chunk.images[0], chunk.rows[1] - chunk.rows[0], geometry.shape[2]
        if load.region is None:
            load.region = self._maps.allocate((chunk.words[1] - chunk.words[0]) * images * rows * width)
            if load.region is None:
                return False
        tensor = geometry.layer.input
        place = self._placements[tensor]
        image, span, words = load.pending[0]
        written = self._stored(tensor, (image, image + 1), (span[0] * geometry.row_step, (span[1] - 1) * geometry.row_step + 1), None)
        if written is None:
            return False
        first_plane = words[0] * self._lanes
        image_planes, before = (geometry.planes, 0) if geometry.fold else self._planes(tensor)
        mark = self._schedule.emit(
            Opcode.LOAD_MAP, [load.region.after, *written], layer=load.layer, base=place.base,
            offset=place.offset // 8 + ((image * image_planes + before + first_plane) * geometry.rows + span[0] * geometry.row_step) * width,
            address=load.region.start + ((words[0] - chunk.words[0]) * images * rows + (image - chunk.images[0]) * rows + span[0] - chunk.rows[0]) * width,
            pitch=images * rows * width, beats=(span[1] - span[0]) * width,
            planes=min(words[1] * self._lanes, geometry.planes) - first_plane, plane_stride=geometry.rows * width)
        self._ahead[Unit.MAP].add(mark)
        load.done.append((image, span, words, mark))
        load.pending.popleft()
        if not load.pending:
            self._work.chunk_loads.popleft()
        return True

    def _load_residual(self, force=False):
        """Emit the loads of the next tile's summands, if the buffer has room and they are in memory; `force`: however far ahead."""
        if self._ahead[Unit.MAP].full and not force:
            return False
        load = self._work.residual_loads[0]
        task = load.task
        geometry, tile = self._plans[task.layer].geometry, task.tile
        if load.region is None:
            load.region = self._residuals.allocate(tile.pixels)
            if load.region is None:
                return False
        name = geometry.layer.residual.tensor
        place = self._placements[name]
        first_plane = task.block * geometry.block // PLANE
        planes = min(geometry.block // PLANE, ceil(geometry.conv[0] / PLANE) - first_plane)
        written = self._stored(name, tile.images, tile.rows, (first_plane, first_plane + planes))
        if written is None:
            return False
        _, height, width = geometry.conv
        image_planes, before = self._planes(name)
        columns = tile.columns[1] - tile.columns[0]
        whole = columns == width
        address = load.region.start
        for image in range(*tile.images):
            for row in [tile.rows[0]] if whole else range(*tile.rows):
                beats = columns * (tile.rows[1] - tile.rows[0]) if whole else columns
                plane = image * image_planes + before + first_plane
                load.mark = self._schedule.emit(
                    Opcode.LOAD_MAP, [load.region.after, *written], layer=task.layer, base=place.base, residual=1,
                    offset=place.offset // 8 + (plane * height + row) * width + tile.columns[0],
                    address=address % self._config.stage_pixels, pitch=0, beats=beats, planes=planes, plane_stride=height * width)
                address += beats
        self._ahead[Unit.MAP].add(load.mark)
        self._work.residual_loads.popleft()
        return True

    def _planes(self, tensor):
        """Planes of an image in memory, and which of them is a tensor's first."""
        part = self._network.part(tensor)
        return self._network.tensors[part.tensor].planes, part.channel // PLANE

    def _stored(self, tensor, images, rows, planes):
        """Marks of the last store that images × rows × planes (None: all) of a tensor wait for; None while it is still to come."""
        whole = self._network.part(tensor).tensor
        if whole not in self._written:
            return [] if whole in self._network.inputs else None
        before = self._planes(tensor)[1]
        first, last = planes or (0, self._network.tensors[tensor].planes)
        columns, ordinals = (array[slice(*images), before + first : before + last, slice(*rows)] for array in self._written[whole])
        if (columns < self._network.tensors[whole].shape[2]).any():
            return None
        return [Mark(Unit.STORE, int(ordinals.max()))]

    def _note_stored(self, whole, images, planes, rows, columns, mark):
        """So many columns of rows, a range, are stored in their places."""
        if whole not in self._written:
            tensor = self._network.tensors[whole]
            shape = self._plans[0].geometry.batch, tensor.planes, tensor.shape[1]
            # How many columns of each row are stored, and which STORE was the last to store any.
            self._written[whole] = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
        place = slice(*images), slice(*planes), slice(rows.start, rows.stop, rows.step)
        stored, ordinals = self._written[whole]
        stored[place] += columns
        ordinals[place] = mark.ordinal

    # ---- tiles -----------------------------------------------------------------------------------------------------------------

    def emit(self) -> "tuple[list[int], list[int]]":
        """The encoded program, and the layer that each instruction is for."""
        self._run_ahead()
        for index, task in enumerate(self._work.tasks):
            self._emit_task(task)
            if index + 1 == len(self._work.tasks) or self._work.tasks[index + 1].layer != task.layer:
                self.stores.append(self._schedule.count(Unit.STORE))
        return self._schedule.words(), self._schedule.layers()

    def _emit_task(self, task):
        geometry, tile = self._plans[task.layer].geometry, task.tile
        region = self._stage(tile, geometry.layer.column_phases)
        for first, parameters, word, weights in task.parts:
            compute = self._emit_computes(task, geometry, first, weights)
            self._drains.append(self._emit_drain(task, geometry, first, parameters, word, compute, region))
            self._run_ahead()
        task.chunk.tiles -= 1
        if task.chunk.tiles == 0:
            task.chunk.region.last_reader = compute
        if task.residual:
            task.residual.region.last_reader = self._drains[-1]
        store = self._emit_stores(task, geometry, region)
        self._release_staging(task, store)
        self._run_ahead()

    def _stage(self, tile, phases):
        region = self._staging.allocate(tile.pixels * phases)
        assert region is not None, "the staging buffer is planned for two tiles"
        self._staged.append((tile, region))
        return region

    def _emit_computes(self, task, geometry, first, weights):
        layer, tile, chunk = geometry.layer, task.tile, task.chunk.chunk
        (stride_y, stride_x), (dilation_y, dilation_x), (_, height, width) = geometry.stride, geometry.dilation, geometry.shape
        images, rows, columns = tile.images[1] - tile.images[0], tile.rows[1] - tile.rows[0], tile.columns[1] - tile.columns[0]
        run_images = max(images, ceil(self._config.min_pixels / (rows * columns)))  # more images than there are: sums nobody reads
        chunk_rows = chunk.rows[1] - chunk.rows[0]
        image_stride, word_stride = chunk_rows * width, (chunk.images[1] - chunk.images[0]) * chunk_rows * width
        row_back = (columns - 1) * stride_x
        image_back = row_back + (rows - 1) * stride_y * width
        run_back = image_back + (run_images - 1) * image_stride
        kernel_x = geometry.weight.shape[3]
        kernel_back = run_back + (kernel_x - 1) * dilation_x
        bank_free = self._drains[-2] if len(self._drains) >= 2 else None
        mark = None
        for position, (piece, load) in enumerate(weights):
            self._need_words(load, self._weights)
            maps = self._loaded(task, geometry, piece)
            self._ahead[Unit.MAP].passed(maps)
            self._schedule.setup(Opcode.COMPUTE_STRIDES, layer=task.layer, **{name: value % (1 << 14) for name, value in {
                "column": stride_x, "row": stride_y * width - row_back, "image": image_stride - image_back, "kernel_column": dilation_x - run_back,
                "kernel_row": dilation_y * width - kernel_back, "channels": word_stride - kernel_back - (piece.rows - 1) * dilation_y * width}.items()})
            self._schedule.setup(
                Opcode.COMPUTE_WINDOW, layer=task.layer, width=width, height=height, stride_x=stride_x, stride_y=stride_y, dilation_x=dilation_x, dilation_y=dilation_y,
                last_column=columns - 1, last_row=rows - 1, last_image=run_images - 1, last_kernel_column=kernel_x - 1, last_kernel_row=piece.rows - 1,
                zero_point=self._network.tensors[layer.input].zero_point)
            y = tile.rows[0] * stride_y - geometry.padding[0] + piece.row * dilation_y
            x = tile.columns[0] * stride_x - geometry.padding[1]
            address = task.chunk.region.start
            address += (piece.word - chunk.words[0]) * word_stride + (tile.images[0] - chunk.images[0]) * image_stride + (y - chunk.rows[0]) * width + x
            mark = self._schedule.emit(
                Opcode.COMPUTE, [load.mark, maps, bank_free if position == 0 else None], layer=task.layer,
                address=address % (1 << 14), weights=load.region.start, last_channels=piece.words - 1, x=x, y=y,
                clear=position == 0, complete=position == len(weights) - 1,
                diagonal=geometry.diagonal, lane=first % geometry.phase_channels % self._config.inputs if geometry.diagonal else 0)
            load.use(mark)
            if load.uses == 0:
                self._run_ahead()
        return mark

    def _loaded(self, task, geometry, piece):
        """The last map load that a piece of a tile waits for; what is missing is loaded now."""
        rows = geometry.input_rows(task.tile.rows)
        needed = (task.tile.images[1] - task.tile.images[0]) * (rows[1] - rows[0]) * piece.words
        found, last, seen = 0, None, 0
        while found < needed:
            if seen == len(task.chunk.done):
                loaded = self._load_map(force=True)
                assert loaded, "a tile's map has been stored, and its chunk has room"
            image, span, words, mark = task.chunk.done[seen]
            seen += 1
            common = _overlap(span, rows) * _overlap(words, (piece.word, piece.word + piece.words))
            if common and task.tile.images[0] <= image < task.tile.images[1]:
                last = mark
                found += common
        return last

    def _emit_drain(self, task, geometry, first, parameters, word, compute, region):
        layer, residual, tile = geometry.layer, geometry.layer.residual, task.tile
        before = layer.lookup.before if layer.lookup else self._network.tensors[layer.output]
        self._need_words(parameters, self._parameters)
        values = {"leaky": layer.negative is not None}
        if table := task.table:
            self._need_words(table, self._tables)
            values |= {"table": 1, "page": table.region.start}
        if residual:
            while task.residual.mark is None:
                loaded = self._load_residual(force=True)
                assert loaded, "a tile's summand has been stored, and the residual buffer holds two tiles"
            self._ahead[Unit.MAP].passed(task.residual.mark)
            values |= {"residual": 1, "residual_address": task.residual.region.start, "residual_zero_point": self._network.tensors[residual.tensor].zero_point,
                      "residual_multiplier": residual.multiplier, "residual_shift": residual.shift}
        mark = self._schedule.emit(
            Opcode.DRAIN, [compute, parameters.mark, region.after, task.residual and task.residual.mark, table and table.mark], layer=task.layer,
            pixels=tile.pixels, address=(region.start + first // geometry.phase_channels) % self._config.stage_pixels,
            skip=layer.column_phases - 1, group=(first % geometry.phase_channels - task.block * geometry.block) // self._config.drain_lanes,
            parameters=parameters.region.start + word, zero_point=before.zero_point, low=layer.low, high=layer.high, **values)
        parameters.use(mark)
        if table:
            table.use(mark)
        return mark

    def _emit_stores(self, task, geometry, region):
        pool, tile, place = geometry.layer.pool, task.tile, self._placements[geometry.layer.output]
        part = self._network.part(geometry.layer.output)
        _, height, width = self._network.tensors[part.tensor].shape
        image_planes, before = self._planes(geometry.layer.output)
        out_rows, out_columns = tile.out_rows[1] - tile.out_rows[0], tile.out_columns[1] - tile.out_columns[0]
        if out_rows == 0:
            return None
        columns = (tile.columns[1] - tile.columns[0]) * geometry.layer.column_phases
        staged_rows = tile.rows[1] - tile.rows[0] + tile.back
        if pool:
            window = {"kernel_y": pool.kernel[0], "kernel_x": pool.kernel[1], "stride_y": pool.stride[0], "stride_x": pool.stride[1],
                      "y": tile.out_rows[0] * pool.stride[0] - pool.padding[0] - (tile.rows[0] - tile.back),
                      "x": tile.out_columns[0] * pool.stride[1] - pool.padding[1] - tile.columns[0]}
        else:
            window = {"kernel_y": 1, "kernel_x": 1, "stride_y": 1, "stride_x": 1, "y": 0, "x": 0}
        self._schedule.setup(Opcode.STORE_WINDOW, layer=task.layer, **window, width=columns, height=staged_rows, pitch=columns)
        planes, block_planes = ceil(geometry.out[0] / PLANE), geometry.block // PLANE
        first_plane = before + task.block * block_planes
        last_plane = min(block_planes, before + planes - first_plane) - 1
        first_row, mark = part.row + tile.out_rows[0] * part.row_step, None
        for image in range(*tile.images):
            address = region.start - tile.back * columns + (image - tile.images[0]) * (tile.rows[1] - tile.rows[0]) * columns
            mark = self._schedule.emit(
                Opcode.STORE, [self._drains[-1]], layer=task.layer, base=place.base,
                offset=place.offset // 8 + ((image * image_planes + first_plane) * height + first_row) * width + part.column + tile.out_columns[0],
                address=address % self._config.stage_pixels, plane=0, last_plane=last_plane, rows=out_rows, columns=out_columns,
                plane_stride=height * width, row_stride=width * part.row_step)
        self._note_stored(part.tensor, tile.images, (first_plane, first_plane + last_plane + 1),
                          range(first_row, first_row + out_rows * part.row_step, part.row_step), out_columns, mark)
        return mark

    def _release_staging(self, task, store):
        """Free what no later tile of the strip reaches back to."""
        keep_from = task.next_tile.rows[0] - task.next_tile.back if task.next_tile else None
        kept = []
        for tile, region in self._staged:
            if keep_from is not None and tile.rows[1] > keep_from:
                kept.append((tile, region))
            else:
                region.last_reader = store or Mark(Unit.STORE, self._schedule.count(Unit.STORE) - 1)
        self._staged = kept
