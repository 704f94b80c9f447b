import random

import cocotb
import numpy as np
import pytest
from bench import parameters, reset, run_cocotb, stream_put
from cocotb.triggers import ClockCycles, RisingEdge

from celosia.hw.config import get_config
from celosia.hw.isa import Opcode, Unit, encode
from celosia.hw.network import Pool
from celosia.hw.store import SerialProduct, StoreUnit
from celosia.sim.golden import max_pool

BASES = [0x1000, 0x20_0000, 0xFFFF_0000, 0x7FF_FFF8]


def window_of(rng, config):
    """A STORE_WINDOW's fields and the rows and columns of pixels to store; every window has a pixel inside the bounds."""
    while True:
        kernel_x, kernel_y = (1, 1) if rng.random() < 0.4 else (rng.randint(1, 4), rng.randint(1, 4))
        stride_x, stride_y = rng.randint(1, 3), rng.randint(1, 3)
        width = rng.randint(1, 24)
        height = rng.randint(1, min(24, config.stage_pixels // width))
        pitch = rng.randint(width, config.stage_pixels // height)
        x, y = rng.randint(1 - kernel_x, min(3, width - 1)), rng.randint(1 - kernel_y, min(3, height - 1))
        columns, rows = rng.randint(1, (width - 1 - x) // stride_x + 1), rng.randint(1, (height - 1 - y) // stride_y + 1)
        if rows * columns * kernel_x * kernel_y < 400:
            return {"kernel_x": kernel_x, "kernel_y": kernel_y, "stride_x": stride_x, "stride_y": stride_y, "x": x, "y": y,
                    "width": width, "height": height, "pitch": pitch}, rows, columns


def golden(window, store, staging):
    """(beats, runs [(address, beats)]) of a STORE; staging: (2, stage_pixels, 8) int8."""
    pixels = store["address"] + np.arange(window["height"])[:, None] * window["pitch"] + np.arange(window["width"])
    rows, columns = store["rows"], store["columns"]
    beats, runs = [], []
    for k in range(store["last_plane"] + 1):
        codes = staging[(store["plane"] + k) % 2, pixels % staging.shape[1]].transpose(2, 0, 1)  # (8, height, width)
        # The golden max pooling, from window.x, window.y on and as far as there are rows and columns.
        ends = [(n - 1) * window[f"stride_{a}"] + window[f"kernel_{a}"] + window[a] for n, a in ((rows, "y"), (columns, "x"))]
        top, left = max(window["y"], 0), max(window["x"], 0)
        codes = codes[:, top : max(ends[0], 0), left : max(ends[1], 0)]
        pool = Pool(kernel=(window["kernel_y"], window["kernel_x"]), stride=(window["stride_y"], window["stride_x"]),
                    padding=(max(-window["y"], 0), max(-window["x"], 0), max(ends[0] - window["height"], 0), max(ends[1] - window["width"], 0)))
        pooled = max_pool(codes[None], pool)[0]
        assert pooled.shape == (8, rows, columns)
        beats += [int.from_bytes(code.tobytes(), "little") for code in np.ascontiguousarray(pooled.transpose(1, 2, 0)).reshape(-1, 8)]
        first = BASES[store["base"]] + 8 * (store["offset"] + k * store["plane_stride"])
        if store["row_stride"] == columns:
            runs.append((first % (1 << 32), rows * columns))
        else:
            runs += [((first + 8 * row * store["row_stride"]) % (1 << 32), columns) for row in range(rows)]
    return beats, runs


async def stage(dut, config, rng):
    """Fill the staging buffer with random codes, (2, stage_pixels, 8), in random order."""
    staging = np.random.default_rng(rng.randrange(1 << 30)).integers(-128, 128, (2, config.stage_pixels, 8), np.int8)
    if rng.random() < 0.5:
        staging = np.minimum(staging, -100).astype(np.int8)  # so that nothing outside the bounds goes unnoticed
    lanes = config.drain_lanes
    places = [(group, pixel) for group in range(16 // lanes) for pixel in range(config.stage_pixels)]
    rng.shuffle(places)
    for group, pixel in places:
        first = group * lanes % 8
        dut.staged_valid.value, dut.staged_group.value, dut.staged_pixel.value = 1, group, pixel
        dut.staged_data.value = int.from_bytes(staging[group * lanes // 8, pixel, first : first + lanes].tobytes(), "little")
        await RisingEdge(dut.clk)
    dut.staged_valid.value = 0
    return staging


@cocotb.test()
async def equals_golden(dut):
    config = get_config(parameters()["config"])
    rng = random.Random(parameters()["seed"])
    dut.bases.value = sum(base << 32 * index for index, base in enumerate(BASES))
    dut.writes_done.value = 1
    await reset(dut)
    for instruction_probability, beat_probability, run_probability, count in parameters()["runs"]:
        staging = await stage(dut, config, rng)
        await store_all(dut, config, rng, staging, instruction_probability, beat_probability, run_probability, count)


#: Units that wait for what is in memory.
READERS = {Unit.MAP, Unit.WEIGHT}


def random_post(rng):
    return tuple(unit for unit, probability in ((Unit.DRAIN, 0.5), (Unit.MAP, 0.3), (Unit.WEIGHT, 0.3)) if rng.random() < probability)


async def store_all(dut, config, rng, staging, instruction_probability, beat_probability, run_probability, count):
    """Run `count` windows with a few stores each, every stream ready with its probability, and check all outputs."""
    encoded, stores, expected_beats, expected_runs = [], [], [], []
    for _ in range(count):
        window, rows, columns = window_of(rng, config)
        post = random_post(rng)
        encoded.append(encode(Opcode.STORE_WINDOW, post=post, **window))
        stores.append({"post": post, "beats": len(expected_beats), "runs": len(expected_runs), "reads": 0, "window": True})
        for _ in range(rng.randint(1, 3)):
            plane = rng.randint(0, 1)
            store = {"base": rng.randrange(4), "offset": rng.choice([0, (1 << 24) - 1, rng.randrange(1 << 24)]), "address": rng.randrange(config.stage_pixels),
                     "plane": plane, "last_plane": rng.randint(0, 1), "rows": rows, "columns": columns, "plane_stride": rng.randrange(1 << 20),
                     "row_stride": columns if rng.random() < 0.5 else rng.randrange(1 << 14)}
            post = random_post(rng)
            encoded.append(encode(Opcode.STORE, post=post, **store))
            beats, runs = golden(window, store, staging)
            expected_beats += beats
            expected_runs += runs
            reads = window["kernel_x"] * window["kernel_y"] * len(beats)
            stores.append({"post": post, "beats": len(expected_beats), "runs": len(expected_runs), "reads": reads, "window": False})

    cocotb.start_soon(stream_put(dut, "instruction", encoded, probability=instruction_probability))
    beats, runs, posts, retired = [], [], {unit: [] for unit in Unit}, []
    last_beat, last_run, outstanding = {}, {}, []  # outstanding: (beats after which the run is complete, cycles until its response)
    total_run_beats = cycle = 0
    done_at = {}
    while len(retired) < len(stores) or outstanding or len(beats) < len(expected_beats):
        await RisingEdge(dut.clk)
        # Values are those of `cycle`; what is driven now is seen in the next one.
        if dut.beats_valid.value == 1 and dut.beats_ready.value == 1:
            beats.append(dut.beats_payload.value.to_unsigned())
            assert beats[-1] == expected_beats[len(beats) - 1], (cycle, len(beats))
            last_beat[len(beats)] = cycle
        if dut.runs_valid.value == 1 and dut.runs_ready.value == 1:
            bits = dut.runs_payload.value.to_unsigned()
            runs.append((bits & 0xFFFFFFFF, bits >> 32))
            assert runs[-1] == expected_runs[len(runs) - 1], (cycle, len(runs))
            last_run[len(runs)] = cycle
            total_run_beats += runs[-1][1]
            outstanding.append([total_run_beats, rng.randint(1, 12)])
        post = dut.control_post.value.to_unsigned()
        for unit in Unit:
            if post >> unit & 1:
                posts[unit].append(cycle)
        if post & sum(1 << unit for unit in READERS):
            assert dut.writes_done.value == 1
            assert not outstanding
        if dut.control_retired.value == 1:
            retired.append(cycle)
        if outstanding or len(beats) < total_run_beats:
            assert dut.control_busy.value == 1
        if outstanding and len(beats) >= outstanding[0][0]:
            outstanding[0][1] -= 1
            if not outstanding[0][1]:
                done_at[outstanding.pop(0)[0]] = cycle
        dut.writes_done.value = int(not outstanding)
        dut.beats_ready.value = int(rng.random() < beat_probability)
        dut.runs_ready.value = int(rng.random() < run_probability)
        cycle += 1
        assert cycle < 200_000
    await RisingEdge(dut.clk)  # `busy` is a cycle late
    for _ in range(4):
        await RisingEdge(dut.clk)
        assert dut.control_busy.value == 0
        assert dut.beats_valid.value == dut.runs_valid.value == 0

    assert beats == expected_beats
    assert runs == expected_runs
    drain_posts, reader_posts = iter(posts[Unit.DRAIN]), {unit: iter(posts[unit]) for unit in READERS}
    for store, end in zip(stores, retired):
        if Unit.DRAIN in store["post"]:
            post = next(drain_posts)
            assert post <= end
            if not store["window"]:
                # Reading has ended: at most the queued beats are still to come.
                assert last_beat.get(store["beats"] - 16, -1) < post <= last_beat[store["beats"]]
        if store["runs"]:
            assert last_run[store["runs"]] < end
        for unit in READERS & {*store["post"]}:
            assert next(reader_posts[unit]) == end > done_at.get(store["beats"], -1)
    assert all(next(left, None) is None for left in (drain_posts, *reader_posts.values()))
    assert not posts[Unit.COMPUTE] and not posts[Unit.STORE]
    if instruction_probability == beat_probability == run_probability == 1:
        for before, store, begin, end in zip(stores, stores[1:], retired, retired[1:]):
            if not before["window"] and not store["window"] and not READERS & {*before["post"], *store["post"]}:
                # One word a cycle; many short runs, or the product for a long one, may take longer.
                assert end - begin <= max(store["reads"] + 2, 2 * (store["runs"] - before["runs"]) + 16), (before, store, begin, end)


RUNS = [(1, 1, 1, 30), (1, 0.5, 0.5, 20), (0.1, 0.9, 0.1, 12), (1, 0.1, 1, 8), (0.5, 1, 0.2, 12)]


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f", "ulx3s-85f"])
def test_store_unit_equals_golden(config):
    run_cocotb(StoreUnit(get_config(config)), __file__, "equals_golden", {"config": config, "seed": 1, "runs": RUNS})


@cocotb.test()
async def streams(dut):
    """A tile of 1×1 windows leaves without a gap, two planes, from the stated latency on."""
    dut.writes_done.value = 1
    await reset(dut)
    dut.beats_ready.value = dut.runs_ready.value = 1
    window = encode(Opcode.STORE_WINDOW, kernel_x=1, kernel_y=1, stride_x=1, stride_y=1, width=10, height=10, pitch=10)
    await stream_put(dut, "instruction", [window])
    await ClockCycles(dut.clk, 16)
    store = encode(Opcode.STORE, rows=10, columns=10, last_plane=1, row_stride=10, plane_stride=100)
    taken = cocotb.start_soon(stream_put(dut, "instruction", [store, store]))
    start, times = None, []
    for cycle in range(450):
        await RisingEdge(dut.clk)
        if start is None and dut.instruction_valid.value == 1 and dut.instruction_ready.value == 1:
            start = cycle
        if dut.beats_valid.value == 1:
            times.append(cycle)
    await taken
    assert times[0] - start == StoreUnit.latency
    assert times[:200] == list(range(times[0], times[0] + 200))
    assert times[200:] == list(range(times[200], times[200] + 200))
    assert times[200] - times[199] == 3


def test_store_unit_streams():
    run_cocotb(StoreUnit(get_config("tiny")), __file__, "streams")


@cocotb.test()
async def multiplies(dut):
    rng = random.Random(4)
    await reset(dut)
    for _ in range(100):
        a, b = rng.randrange(1024), rng.choice([0, 1, 1023, rng.randrange(1024)])
        dut.a.value, dut.b.value, dut.start.value = a, b, 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        cycles = 0
        await RisingEdge(dut.clk)
        while dut.done.value == 0:
            await RisingEdge(dut.clk)
            cycles += 1
        assert cycles == b.bit_length()
        assert dut.product.value.to_unsigned() == a * b % 1024


def test_serial_product():
    run_cocotb(SerialProduct(10), __file__, "multiplies")


def test_config_must_be_one():
    with pytest.raises(TypeError, match="config must be an AcceleratorConfig, not 4"):
        StoreUnit(4)
