"""ComputeUnit against a NumPy model of convolution tiles: geometry in, sums out."""

import random
from dataclasses import dataclass

import cocotb
import numpy as np
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge

from celosia.hw.compute import ComputeUnit, Sequencer
from celosia.hw.config import get_config
from celosia.hw.isa import Opcode, Unit, encode

EXTREMES = [-128, -127, -1, 0, 1, 126, 127]


def int8(rng, shape, low=-128):
    """Random codes, half of them extreme."""
    values = rng.integers(low, 128, shape)
    return np.where(rng.random(shape) < 0.5, np.maximum(rng.choice(EXTREMES, shape), low), values).astype(np.int8)


@dataclass
class Tile:
    """One COMPUTE: a window over maps that lie in the scratchpad as (channel groups, images, height, width) from `base` on."""

    base: int
    groups: int
    images: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    start: tuple[int, int]  # row and column of the first activation
    rows: int
    columns: int
    zero_point: int
    weights: int
    clear: bool = True
    complete: bool = True
    #: The first input of blocks that are diagonal.
    lane: int | None = None

    @property
    def pixels(self):
        return self.images * self.rows * self.columns

    @property
    def steps(self):
        return self.groups * self.kernel[0] * self.kernel[1]

    def setup(self):
        """COMPUTE_STRIDES and COMPUTE_WINDOW."""
        across, down, image = self.stride[1], self.stride[0] * self.width, self.height * self.width
        back = [0, (self.columns - 1) * across]
        back.append(back[1] + (self.rows - 1) * down)
        back.append(back[2] + (self.images - 1) * image)
        back.append(back[3] + (self.kernel[1] - 1) * self.dilation[1])
        back.append(back[4] + (self.kernel[0] - 1) * self.dilation[0] * self.width)
        forward = across, down, image, self.dilation[1], self.dilation[0] * self.width, self.images * image
        names = "column", "row", "image", "kernel_column", "kernel_row", "channels"
        return [
            encode(Opcode.COMPUTE_STRIDES, **{name: (f - b) % (1 << 14) for name, f, b in zip(names, forward, back)}),
            encode(Opcode.COMPUTE_WINDOW, width=self.width, height=self.height, stride_x=self.stride[1], stride_y=self.stride[0], dilation_x=self.dilation[1],
                   dilation_y=self.dilation[0], last_column=self.columns - 1, last_row=self.rows - 1, last_image=self.images - 1,
                   last_kernel_column=self.kernel[1] - 1, last_kernel_row=self.kernel[0] - 1, zero_point=self.zero_point),
        ]

    def compute(self):
        address = (self.base + self.start[0] * self.width + self.start[1]) % (1 << 14)
        post = [Unit.WEIGHT, Unit.MAP, *([Unit.DRAIN] if self.complete else [])]
        return encode(Opcode.COMPUTE, post=post, address=address, weights=self.weights, last_channels=self.groups - 1, x=self.start[1], y=self.start[0],
                      clear=self.clear, complete=self.complete, diagonal=self.lane is not None, lane=self.lane or 0)

    def block(self, weights, step, config):
        """Weights of a step, (outputs, inputs)."""
        if self.lane is None:
            words = weights[(self.weights + step * config.outputs + np.arange(config.outputs)) % config.weight_words]
            # Word 2·r + h, byte 2·j + q: the weight of output 2·r + q and input 2·j + h.
            return words.reshape(config.outputs // 2, 2, config.inputs // 2, 2).transpose(0, 3, 2, 1).reshape(config.outputs, config.inputs)
        word, block = weights[(self.weights + step) % config.weight_words], np.zeros((config.outputs, config.inputs), np.int8)
        for output in range(config.outputs):
            if (lane := (self.lane + output) % 16) < config.inputs:
                block[output, lane] = word[lane]
        return block

    def sums(self, maps, weights, config):
        """Σ weight · activation of each pixel, int64 (pixels, outputs)."""
        size = self.groups * self.images * self.height * self.width
        stored = maps[self.base : self.base + size].reshape(self.groups, self.images, self.height, self.width, config.inputs).astype(np.int64)
        result = np.zeros((self.images, self.rows, self.columns, config.outputs), np.int64)
        step = 0
        for group in range(self.groups):
            for ky in range(self.kernel[0]):
                for kx in range(self.kernel[1]):
                    block = self.block(weights, step, config)
                    y = self.start[0] + np.arange(self.rows) * self.stride[0] + ky * self.dilation[0]
                    x = self.start[1] + np.arange(self.columns) * self.stride[1] + kx * self.dilation[1]
                    inside = ((y >= 0) & (y < self.height))[:, None] & ((x >= 0) & (x < self.width))[None, :]
                    taken = stored[group][:, y.clip(0, self.height - 1)][:, :, x.clip(0, self.width - 1)]
                    result += np.where(inside[None, :, :, None], taken, self.zero_point) @ block.astype(np.int64).T
                    step += 1
        return result.reshape(self.pixels, config.outputs)


def random_window(rng, config, base, room):
    """The geometry of a tile whose maps fit into `room` words from `base` on."""
    while True:
        groups, images = rng.choice([1, 1, 2, 3, 5]), rng.choice([1, 1, 2, 3])
        height, width = rng.randint(1, 24), rng.randint(1, 24)
        kernel = rng.choice([(1, 1), (3, 3), (1, 3), (5, 2), (3, 3), (2, 4)])
        stride = rng.randint(1, 3), rng.randint(1, 3)
        dilation = rng.choice([(1, 1), (1, 1), (2, 3), (4, 2)])
        padding = [rng.randint(0, 3) for _ in range(4)]  # top, left, bottom, right
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
        rows = (height + padding[0] + padding[2] - extent[0]) // stride[0] + 1
        columns = (width + padding[1] + padding[3] - extent[1]) // stride[1] + 1
        pixels = images * rows * columns
        if rows < 1 or columns < 1 or not config.min_pixels <= pixels <= config.tile_pixels or groups * images * height * width > room:
            continue
        if groups * kernel[0] * kernel[1] * pixels > 4000:
            continue
        return {
            "base": base, "groups": groups, "images": images, "height": height, "width": width, "kernel": kernel, "stride": stride, "dilation": dilation,
            "start": (-padding[0], -padding[1]), "rows": rows, "columns": columns, "zero_point": rng.choice([*EXTREMES, rng.randint(-128, 127)]),
        }


class Bench:
    """Drives the unit as dispatcher, loaders and drain unit do, and keeps the model's sums."""

    def __init__(self, dut, config):
        self.dut, self.config = dut, config
        self.period = config.outputs // config.drain_lanes
        self.complete, self.posts, self.retired, self.active, self.taken = [], [0] * len(Unit), 0, [], []
        self.free = 2
        self.cycle = 0

    async def write(self, name, words, config):
        """Fill a buffer with words of int8."""
        port = {key: getattr(self.dut, f"{name}_{key}") for key in ("valid", "address", "lane", "data")}
        port["valid"].value = 1
        for address, word in enumerate(words):
            for lane in range(config.inputs // 8):
                port["address"].value, port["lane"].value = address, lane
                port["data"].value = int.from_bytes(word[8 * lane : 8 * lane + 8].tobytes(), "little")
                await RisingEdge(self.dut.clk)
        port["valid"].value = 0

    async def watch(self):
        """Count tokens and retirements, note the cycles in which instructions are taken and pixels issued."""
        control = self.dut.control_post, self.dut.control_retired, self.dut.active
        stream = self.dut.instruction_valid, self.dut.instruction_ready
        while True:
            await RisingEdge(self.dut.clk)
            self.cycle += 1
            post = control[0].value.to_unsigned()
            for unit in Unit:
                self.posts[unit] += post >> unit & 1
            self.retired += int(control[1].value)
            if stream[0].value and stream[1].value:
                self.taken.append(self.cycle)
            if control[2].value:
                self.active.append(self.cycle)

    async def offer(self, instruction, wait=0):
        """Give an instruction to the unit, some cycles later."""
        for _ in range(wait):
            await RisingEdge(self.dut.clk)
        self.dut.instruction_payload.value = instruction
        self.dut.instruction_valid.value = 1
        while True:
            await RisingEdge(self.dut.clk)
            if self.dut.instruction_ready.value:
                break
        self.dut.instruction_valid.value = 0

    async def drain(self, count, latency):
        """Read `count` complete banks in their order as their tokens come, each number of the model's list `complete`."""
        dut = self.dut
        for number in range(count):
            while self.posts[Unit.DRAIN] <= number:
                await RisingEdge(dut.clk)
            expected = self.complete[number]
            received = []
            for cycle in range(len(expected) * self.period + latency + 1):
                pixel, phase = divmod(cycle, self.period)
                dut.sums_read_valid.value = phase == 0 and pixel < len(expected)
                if phase == 0:
                    dut.sums_read_pixel.value, dut.sums_read_bank.value = pixel % 512, number % 2
                await RisingEdge(dut.clk)
                # This edge ended the cycle `cycle` of the request.
                due = latency <= cycle < latency + len(expected) * self.period
                assert dut.sums_valid.value == due, (number, cycle)
                if due:
                    received.append(dut.sums_data.value.to_unsigned())
            lanes = self.config.drain_lanes
            data = b"".join(word.to_bytes(4 * lanes, "little") for word in received)
            np.testing.assert_array_equal(np.frombuffer(data, "<i4").reshape(expected.shape), expected, err_msg=f"bank filling {number}")
            self.free += 1


@cocotb.test()
async def tiles(dut):
    config = get_config(parameters()["config"])
    rng = random.Random(parameters()["seed"])
    arrays = np.random.default_rng(parameters()["seed"])
    bench = Bench(dut, config)
    await reset(dut)
    cocotb.start_soon(bench.watch())
    fillings = parameters()["fillings"]
    room = min(config.map_words, 1500)
    bases = sorted({0, rng.randint(0, config.map_words - room), config.map_words - room})
    maps, weights = int8(arrays, (config.map_words, config.inputs)), int8(arrays, (config.weight_words, config.inputs), low=-127)
    await bench.write("map_write", maps if parameters()["whole"] else maps[:room], config)
    if not parameters()["whole"]:
        bases = [0]
    await bench.write("weight_write", weights, config)

    drain = cocotb.start_soon(bench.drain(fillings, parameters()["drain_latency"]))
    accumulated = None
    previous_setup = None
    work = count = posts = 0
    while len(bench.complete) < fillings:
        if accumulated is None:
            window = random_window(rng, config, rng.choice(bases), room)
            chunks = rng.choice([1, 1, 2, 3])
            total = np.zeros((window["images"] * window["rows"] * window["columns"], config.outputs), np.int64)
            accumulated = 0
        tile = Tile(**window, weights=rng.randrange(config.weight_words), clear=accumulated == 0, complete=accumulated == chunks - 1,
                    lane=rng.choice([None, rng.randrange(0, config.inputs, config.outputs), rng.randrange(0, 16, 2)]))
        total += tile.sums(maps, weights, config)
        if accumulated == 0:
            while not bench.free:
                await RisingEdge(dut.clk)
            bench.free -= 1
        if tile.complete:
            bench.complete.append(total)
        wait = rng.choice([0, 0, 0, rng.randint(0, 40), rng.randint(0, 400)])
        setup = tile.setup()
        for instruction in [*(setup if setup != previous_setup else []), tile.compute()]:
            await bench.offer(instruction, wait)
            wait, count = rng.choice([0, 0, 3]), count + 1
        previous_setup = setup
        work += tile.steps * tile.pixels
        posts += 1
        accumulated = None if tile.complete else accumulated + 1
    await drain
    assert len(bench.active) == work, "a pixel a cycle"
    assert bench.retired == count
    assert bench.posts == [posts, posts, 0, fillings, 0]
    assert not dut.control_busy.value


@cocotb.test()
async def back_to_back(dut):
    """Tiles of the least size offered in time follow each other after one idle cycle."""
    config = get_config(parameters()["config"])
    rng = np.random.default_rng(1)
    bench = Bench(dut, config)
    await reset(dut)
    cocotb.start_soon(bench.watch())
    maps, weights = int8(rng, (64, config.inputs)), int8(rng, (config.weight_words, config.inputs), low=-127)
    await bench.write("map_write", maps, config)
    await bench.write("weight_write", weights, config)
    tile = Tile(base=8, groups=1, images=1, height=4, width=4, kernel=(1, 1), stride=(1, 1), dilation=(1, 1), start=(0, 0), rows=4, columns=4,
                zero_point=5, weights=3)
    for instruction in tile.setup():
        await bench.offer(instruction)
    total = 0
    for number in range(4):
        tile.clear, tile.complete = number == 0, number == 3
        total += tile.sums(maps, weights, config)
        await bench.offer(tile.compute())
        tile.weights += config.outputs
    bench.complete.append(total)
    await bench.drain(1, parameters()["drain_latency"])
    gaps = np.diff(bench.active)
    assert list(gaps) == ([1] * 15 + [2]) * 3 + [1] * 15
    assert bench.active[0] - bench.taken[2] == max(config.outputs, 4) + 2


def run(config, name, **more):
    config = get_config(config)
    unit = ComputeUnit(config)
    run_cocotb(unit, __file__, name, {"config": config.name, "drain_latency": unit.drain_latency} | more)


@pytest.mark.parametrize("config, fillings, whole", [("tiny", 40, True), ("ulx3s-25f", 30, True), pytest.param("ulx3s-85f", 16, False, marks=pytest.mark.long)])
def test_tiles(config, fillings, whole):
    run(config, "tiles", seed=3, fillings=fillings, whole=whole)


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f"])
def test_back_to_back(config):
    run(config, "back_to_back")


def test_parameters_are_checked():
    with pytest.raises(TypeError, match="config must be an AcceleratorConfig, not 'tiny'"):
        ComputeUnit("tiny")
    with pytest.raises(ValueError, match="written_delay must be an integer of at least 2, not 1"):
        Sequencer(get_config("tiny"), written_delay=1)
