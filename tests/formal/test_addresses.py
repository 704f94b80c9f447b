"""Address generators stay inside their tile: what is read, written and asked for is what the instruction says, in every cycle, whenever data come.

Proved without bound in time for instructions of a few planes, rows and columns at small addresses, each taken after the one before has retired. The sequencer is
proved for a few tiles, from idle to their end, which begin anywhere around the map and in the scratchpad.
"""

import math

import pytest
from amaranth.hdl import Cat, Module, Mux, Shape, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, assume, mutated, prove

from celosia.hw import compute, load, store
from celosia.hw.config import get_config
from celosia.hw.isa import Compute, ComputeStrides, ComputeWindow, LoadMap, LoadWeights, Opcode, Target
from celosia.hw.isa import Store as StoreInstruction
from celosia.hw.primitives import delayed

#: Loops of a tile from the innermost on.
LOOPS = ("column", "row", "image", "kernel_column", "kernel_row", "channels")
#: Tiles: a 3 × 2 kernel of uneven strides and dilations; pixels of two images; a 1 × 1 kernel over two channel groups.
SHAPES = [
    dict(zip(("stride_x", "stride_y", "dilation_x", "dilation_y", *(f"last_{name}" for name in LOOPS)), numbers))
    for numbers in ((1, 2, 2, 1, 1, 1, 0, 2, 1, 0), (2, 1, 1, 3, 1, 1, 1, 1, 1, 0), (1, 1, 1, 1, 3, 2, 0, 0, 0, 1))
]
TINY, WIDE = get_config("tiny"), get_config("ulx3s-85f")


def fields_of(struct, names):
    """Free inputs for fields of an instruction."""
    layout = dict(iter(struct.as_shape()))
    return {name: In(Shape.cast(layout[name].shape)) for name in names}


def few(module):
    """Load units that take two instructions ahead instead of four."""
    return mutated(module, "AHEAD = 4", "AHEAD = 2")


def small(harness, bits, *names):
    """Addresses of few bits: what their upper bits would do is what an adder does."""
    return [assume(getattr(harness, name) < 1 << bits) for name in names] + [assume((harness.base[:3] == 0) & (harness.base < 8 << bits))]


def offer(m, harness, struct):
    """A load unit is given the harness's fields as an instruction when it has retired the one before. Returns the unit, what it was given, and whether it takes it."""
    m.submodules.unit = unit = harness._unit
    word = struct(unit.instruction.payload[: struct.as_shape().size])
    given = {name: Signal.like(getattr(harness, name), name=f"given_{name}") for name in harness.names}
    taken, under_way = unit.instruction.valid & unit.instruction.ready, Signal()
    m.d.comb += [
        *(word[name].eq(getattr(harness, name)) for name in harness.names),
        unit.instruction.valid.eq(harness.valid & ~under_way), unit.runs.ready.eq(harness.ready), unit.bases[0].eq(harness.base),
        unit.beats.valid.eq(harness.came),
    ]
    with m.If(unit.control.retired):
        m.d.sync += under_way.eq(0)
    with m.If(taken):
        m.d.sync += [*(given[name].eq(getattr(harness, name)) for name in harness.names), under_way.eq(1)]
    return unit, given, taken


class Weights(wiring.Component):
    """LOAD_WEIGHTS of up to six beats, taken when the unit is idle. Beats come when they like, but not before they were asked for."""

    names = ("offset", "target", "address", "beats")

    def __init__(self, module, config):
        self._unit, self._lanes = module.LoadWeights(config), config.inputs // 8
        super().__init__(fields_of(LoadWeights, self.names) | {
            "base": In(32), "valid": In(1), "ready": In(1), "came": In(1),
            "astray": Out(1),     # a beat is written elsewhere than where the instruction puts it, or into the other buffer
            "elsewhere": Out(1),  # the run is not the instruction's, or there is another
            "early": Out(1),      # retires before the last beat is written
            "endless": Out(1),    # does not retire after its last beat
        })

    def elaborate(self, _platform):
        m = Module()
        unit, given, taken = offer(m, self, LoadWeights)
        m.d.comb += [
            assume((self.beats != 0) & (self.beats <= 6) & (self.target < len(Target))), *small(self, 3, "offset", "address"),
        ]

        run, asked, owed, start = unit.runs.payload, Signal(), Signal(6), Signal(29)
        m.d.sync += owed.eq(owed + Mux(unit.runs.valid & self.ready, given["beats"], 0) - self.came)
        with m.If(unit.runs.valid & self.ready):
            m.d.sync += asked.eq(1)
        m.d.comb += [
            assume(~self.came | (owed != 0)),
            self.elsewhere.eq(unit.runs.valid & (asked | (run.address != start << 3) | (run.beats != given["beats"]))),
        ]

        beat, place, lane, last_lane = Signal(4), Signal(12), Signal(2), Signal(2)
        lanes = {Target.WEIGHTS: self._lanes, Target.PARAMETERS: 4, Target.TABLE: 1}
        for target, count in lanes.items():
            with m.If(given["target"] == target):
                m.d.comb += last_lane.eq(count - 1)
        with m.If(self.came):
            m.d.sync += [beat.eq(beat + 1), lane.eq(lane + 1)]
            with m.If(lane == last_lane):
                m.d.sync += [lane.eq(0), place.eq(place + 1)]
        came, expected, expected_lane, finished = Signal(), Signal.like(place), Signal.like(lane), Signal(2)
        m.d.sync += [came.eq(self.came), expected.eq(place), expected_lane.eq(lane), finished.eq(finished << 1 | self.came & (beat == given["beats"] - 1))]
        astray = [
            (write.valid != (came & mine)) | write.valid & ((write.address != expected[: len(write.address)]) | (write.lane != expected_lane))
            for write, mine in zip((unit.weight_write, unit.parameter_write, unit.table_write), (given["target"] == target for target in lanes))
        ]
        m.d.comb += [
            self.astray.eq(Cat(astray).any()),
            self.early.eq(unit.control.retired & ~finished[1]), self.endless.eq(finished[1] & ~unit.control.retired),
        ]
        with m.If(taken):
            m.d.sync += [
                asked.eq(0), beat.eq(0), lane.eq(0),
                place.eq(self.address), start.eq(self.base[3:] + self.offset),
            ]
        return m


class Maps(wiring.Component):
    """LOAD_MAP of up to three planes of one or two beats, taken when the unit is idle. Beats come when they like, but not before they were asked for."""

    names = ("offset", "residual", "address", "pitch", "beats", "planes", "plane_stride")

    def __init__(self, module, config):
        self._unit, self._halves = module.LoadMaps(config), config.inputs // 8
        super().__init__(fields_of(LoadMap, self.names) | {
            "base": In(32), "valid": In(1), "ready": In(1), "came": In(1),
            "astray": Out(1),     # a beat is written elsewhere than where the instruction puts it, or into the other buffer
            "elsewhere": Out(1),  # a run is not that of its plane
            "too_much": Out(1),   # more runs than planes
            "early": Out(1),      # retires before the last beat is written
            "endless": Out(1),    # does not retire after its last beat
        })

    def elaborate(self, _platform):
        m = Module()
        unit, given, taken = offer(m, self, LoadMap)
        m.d.comb += [
            assume((self.beats != 0) & (self.beats <= 2) & (self.planes != 0) & (self.planes <= 3)),
            *small(self, 2, "offset", "address", "pitch", "plane_stride"),
        ]

        run, asked, owed, start = unit.runs.payload, Signal(4), Signal(6), Signal(29)
        m.d.sync += owed.eq(owed + Mux(unit.runs.valid & self.ready, given["beats"], 0) - self.came)
        with m.If(unit.runs.valid & self.ready):
            m.d.sync += [asked.eq(asked + 1), start.eq(start + given["plane_stride"])]
        m.d.comb += [
            assume(~self.came | (owed != 0)),
            self.elsewhere.eq(unit.runs.valid & ((run.address != start << 3) | (run.beats != given["beats"]))),
            self.too_much.eq(unit.runs.valid & (asked >= given["planes"])),
        ]

        plane, beat, place = Signal(4), Signal(4), Signal(14)  # place: of the plane
        last_beat = beat == given["beats"] - 1
        step = Mux(~given["residual"] & (plane[0] | (self._halves == 1)), given["pitch"], 0)
        with m.If(self.came):
            m.d.sync += beat.eq(beat + 1)
            with m.If(last_beat):
                m.d.sync += [beat.eq(0), plane.eq(plane + 1), place.eq(place + step)]
        came, expected, half, finished = Signal(), Signal.like(place), Signal(), Signal(2)
        m.d.sync += [came.eq(self.came), expected.eq(place + beat), half.eq(plane[0])]
        m.d.sync += finished.eq(finished << 1 | self.came & last_beat & (plane == given["planes"] - 1))
        astray = [
            (write.valid != (came & mine)) | write.valid & ((write.address != expected[: len(write.address)]) | (write.lane != lane))
            for write, mine, lane in (
                (unit.map_write, ~given["residual"], half if self._halves == 2 else 0), (unit.residual_write, given["residual"], half))
        ]
        m.d.comb += [
            self.astray.eq(astray[0] | astray[1]),
            self.early.eq(unit.control.retired & ~finished[1]), self.endless.eq(finished[1] & ~unit.control.retired),
        ]
        with m.If(taken):
            m.d.sync += [
                asked.eq(0), plane.eq(0), beat.eq(0),
                place.eq(self.address), start.eq(self.base[3:] + self.offset),
            ]
        return m


class Runs(wiring.Component):
    """The runs of STORE, up to three rows of up to three pixels of one or two planes."""

    def __init__(self, module):
        self._names = ("offset", "last_plane", "rows", "columns", "plane_stride", "row_stride")
        outer = self

        class Part(module.StoreUnit):
            def elaborate(self, _platform):
                m = Module()
                outer._done = self._run(m, outer._store, outer._start)
                return m

        self._unit, self._store, self._start = Part(TINY), Signal(StoreInstruction), Signal()
        super().__init__(fields_of(StoreInstruction, self._names) | {
            "base": In(32), "start": In(1), "ready": In(1),
            "elsewhere": Out(1),  # a run is not at its row or plane
            "wrong_size": Out(1),
            "too_many": Out(1),   # more pixels than the instruction has
            "too_few": Out(1),    # done with less
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.unit = self._unit.elaborate(None)
        runs, word = self._unit.runs, self._store
        given = {name: Signal.like(getattr(self, name), name=f"given_{name}") for name in self._names}
        m.d.comb += [
            *(word[name].eq(getattr(self, name)) for name in self._names), self._start.eq(self.start), self._unit.bases[0].eq(self.base), runs.ready.eq(self.ready),
            assume((self.rows != 0) & (self.rows <= 3) & (self.columns != 0) & (self.columns <= 3)), assume(~self.start | self._done),
            *small(self, 3, "offset", "plane_stride", "row_stride"),
        ]
        contiguous = given["row_stride"] == given["columns"]
        begun, row, plane, place, first, stored = Signal(), Signal(2), Signal(2), Signal(29), Signal(29), Signal(6)
        area = Mux(given["rows"] == 1, given["columns"], Mux(given["rows"] == 2, given["columns"] << 1, given["columns"] * 3))
        with m.If(runs.valid & self.ready):
            m.d.sync += [row.eq(row + 1), place.eq(place + given["row_stride"]), stored.eq(stored + runs.payload.beats)]
            with m.If(contiguous | (row == given["rows"] - 1)):
                m.d.sync += [row.eq(0), plane.eq(plane + 1), place.eq(first + given["plane_stride"])]
        with m.If(self.start):
            m.d.sync += [*(given[name].eq(getattr(self, name)) for name in self._names), begun.eq(1), row.eq(0), plane.eq(0), stored.eq(0)]
            m.d.sync += [first.eq(self.base[3:] + self.offset), place.eq(self.base[3:] + self.offset)]
        whole = area << given["last_plane"]
        m.d.comb += [
            self.elsewhere.eq(runs.valid & (runs.payload.address != place << 3)),
            self.wrong_size.eq(runs.valid & (runs.payload.beats != Mux(contiguous, area, given["columns"]))),
            self.too_many.eq(stored > whole),
            self.too_few.eq(begun & self._done & (stored != whole)),
        ]
        return m


class Windows(wiring.Component):
    """The sequencer with one tile over a map of 5 × 4 pixels, which may begin anywhere around it. `shape`: fields of the instructions."""

    width, height, pitch, image_pitch = 5, 4, 64, 32

    def __init__(self, module, shape):
        self._unit, self._shape = module.Sequencer(TINY, written_delay=2), shape
        super().__init__({
            "x": In(signed(3)), "y": In(signed(3)), "address": In(4), "weights": In(4), "diagonal": In(1), "lane": In(4),
            "astray": Out(1),   # an activation inside the map is read elsewhere than where its coordinates are
            "outside": Out(1),  # the zero point instead of an activation, or the other way round
            "weight_astray": Out(1),
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.unit = unit = self._unit
        # Setup and tile follow each other from the cycle after reset on; what they say was free in that cycle.
        step, fresh, k = Signal(3), Signal(init=1), dict(self._shape)
        m.d.sync += fresh.eq(0)
        for name in ("x", "y", "address", "weights", "diagonal", "lane"):
            k[name] = Signal.like(getattr(self, name), name=f"kept_{name}")
            with m.If(fresh):
                m.d.sync += k[name].eq(getattr(self, name))
        columns_back, rows_back = k["last_column"] * k["stride_x"], k["last_row"] * k["stride_y"] * self.width
        back = columns_back + rows_back + k["last_image"] * self.image_pitch
        strides, window, tile = Signal(ComputeStrides), Signal(ComputeWindow), Signal(Compute)
        m.d.comb += [
            strides.header.opcode.eq(Opcode.COMPUTE_STRIDES), window.header.opcode.eq(Opcode.COMPUTE_WINDOW), tile.header.opcode.eq(Opcode.COMPUTE),
            strides.column.eq(k["stride_x"]),
            strides.row.eq(k["stride_y"] * self.width - columns_back),
            strides.image.eq(self.image_pitch - columns_back - rows_back),
            strides.kernel_column.eq(k["dilation_x"] - back),
            strides.kernel_row.eq(k["dilation_y"] * self.width - k["last_kernel_column"] * k["dilation_x"] - back),
            strides.channels.eq(self.pitch - k["last_kernel_row"] * k["dilation_y"] * self.width - k["last_kernel_column"] * k["dilation_x"] - back),
            window.width.eq(self.width), window.height.eq(self.height),
            *(getattr(window, name).eq(k[name]) for name in ("stride_x", "stride_y", "dilation_x", "dilation_y")),
            *(getattr(window, f"last_{name}").eq(k[f"last_{name}"]) for name in LOOPS[:-1]),
            tile.last_channels.eq(k["last_channels"]), *(getattr(tile, name).eq(k[name]) for name in ("address", "weights", "x", "y", "diagonal", "lane")),
            unit.instruction.valid.eq(~fresh & (step < 3)),
            unit.instruction.payload.eq(Mux(step == 0, strides.as_value(), Mux(step == 1, window.as_value(), tile.as_value()))),
        ]
        with m.If(unit.instruction.valid & unit.instruction.ready):
            m.d.sync += step.eq(step + 1)

        # The loops, outermost last, as the instruction set tells them.
        counts = {name: Signal(range(k[f"last_{name}"] + 2), name=f"at_{name}") for name in LOOPS}
        carry = unit.active
        for name, count in counts.items():
            last = count == k[f"last_{name}"]
            with m.If(carry):
                m.d.sync += count.eq(Mux(last, 0, count + 1))
            carry = carry & last
        x, y, place = Signal(signed(8)), Signal(signed(8)), Signal(14)
        m.d.comb += [
            x.eq(k["x"] + counts["column"] * k["stride_x"] + counts["kernel_column"] * k["dilation_x"]),
            y.eq(k["y"] + counts["row"] * k["stride_y"] + counts["kernel_row"] * k["dilation_y"]),
            place.eq(k["address"] + (x - k["x"]) + (y - k["y"]) * self.width + counts["image"] * self.image_pitch + counts["channels"] * self.pitch),
        ]
        late = unit.latency
        inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        place, inside, valid = delayed(m, place, late), delayed(m, inside, late), delayed(m, unit.active, late, reset=True)
        m.d.comb += [self.astray.eq(valid & (unit.address != place)), self.outside.eq(valid & (unit.inside != inside))]

        # Blocks of weights follow each other; one that is diagonal has a single word.
        loaded, word = Signal(9), Signal(4)
        ends = word == TINY.block_words - 1
        m.d.comb += self.weight_astray.eq(unit.load.valid & (
            (unit.weight_address != (k["weights"] + loaded)[:12]) | (unit.load.word != word) | (unit.diagonal != k["diagonal"])
            | (unit.lane != (k["lane"] + word)[:4])))
        with m.If(unit.load.valid):
            m.d.sync += [loaded.eq(loaded + (ends | ~k["diagonal"])), word.eq(Mux(ends, 0, word + 1))]
        return m


@pytest.mark.parametrize("config", [TINY, WIDE], ids=lambda config: config.name)
def test_weights(config):
    prove(Weights(few(load), config))


@pytest.mark.parametrize(("old", "new"), [("lane == last_lane", "lane == 3"), ("PARAMETER_BYTES * 8 // BEAT_BITS", "PARAMETER_BYTES * 4 // BEAT_BITS")])
def test_faults_in_weights_show(old, new):
    with pytest.raises(Refuted, match="astray"):
        prove(Weights(few(mutated(load, old, new)), WIDE))


@pytest.mark.formal
@pytest.mark.parametrize("config", [TINY, WIDE], ids=lambda config: config.name)
def test_maps(config):
    prove(Maps(few(load), config))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("(lane if self._config.inputs == 16 else 1)", "1", "astray"),
    ("self.planes.payload.planes - 2", "self.planes.payload.planes - 1", "too_much|early"),
    ("beat + planes.plane_stride", "beat + planes.beats", "elsewhere"),
    ("last_beat & more_planes[-1]", "last_beat", "early|astray"),
])
def test_faults_in_maps_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Maps(few(mutated(load, old, new)), WIDE))


def test_runs_of_store():
    prove(Runs(store))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("first_offset + plane_stride", "offset + plane_stride", "elsewhere"),
    ("contiguous | (rows_left == 0)", "rows_left == 0", "too_many|elsewhere"),
    ("last_row.eq(store.rows - 1), rows_left.eq(store.rows - 1)", "last_row.eq(store.rows - 1), rows_left.eq(store.rows)", "too_many|elsewhere"),
])
def test_faults_in_runs_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Runs(mutated(store, old, new)))


def look(shape, module=compute):
    """For as many cycles as the tile takes, and those before and after it."""
    pixels = math.prod(shape[f"last_{name}"] + 1 for name in LOOPS)
    prove(Windows(module, shape), engine=f"bmc3 -F {pixels + 24}")


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES.index)
def test_windows(shape):
    look(shape)


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("value.as_unsigned() < bound", "value.as_unsigned() <= bound", "outside"),
    ("origin_x + window.dilation_x", "origin_x + window.dilation_y", "outside"),
    ("Mux(first_1, compute.address, address + increment)", "Mux(first_1, compute.address + 1, address + increment)", "astray"),
    ("(~diagonal | (word == last_word))", "(word != 0)", "weight_astray"),
    ("(~diagonal | (word == last_word))", "1", "weight_astray"),
    ("lane.eq(first_lane)", "lane.eq(0)", "weight_astray"),
])
def test_faults_in_windows_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        look(SHAPES[0], mutated(compute, old, new))
