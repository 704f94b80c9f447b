"""The array as its ports promise: weights at the earliest and at the latest, steps without a gap, draining beside accumulating."""

import random

import cocotb
import numpy as np
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge

from celosia.hw.array import Array, PixelControl, WeightLoad
from celosia.hw.config import AcceleratorConfig

EXTREMES = [-128, -127, -1, 0, 1, 127]


def configure(outputs, inputs, drain_lanes):
    return AcceleratorConfig(name="test", outputs=outputs, inputs=inputs, drain_lanes=drain_lanes, tile_pixels=32, stage_pixels=64)


def codes(rng, shape, low=-128):
    extreme = [code for code in EXTREMES if code >= low]
    return np.where(rng.random(shape) < 0.5, rng.choice(extreme, shape), rng.integers(low, 128, shape))


def word_bits(values):
    return int.from_bytes(np.asarray(values, np.int8).tobytes(), "little")


def schedule(config, write_latency, fillings, seed):
    """What to drive in which cycle (cycle → port → value), and the sums of each request (cycle → numbers)."""
    rng, arrays = random.Random(seed), np.random.default_rng(seed)
    drive, expected = {}, {}
    period = config.outputs // config.drain_lanes

    def put(cycle, **ports):
        drive.setdefault(cycle, {}).update(ports)

    previous, cycle = 1, config.outputs + 2  # first control of the step before; of the next
    bank_free, last_request = [0, 0], 0
    for filling in range(fillings):
        bank = filling % 2
        cycle = max(cycle, bank_free[bank])
        pixels = rng.choice([16, 16, 17, 32])
        sums = np.zeros((pixels, config.outputs), np.int64)
        for step in range(rng.choice([1, 2, 4])):
            weights = codes(arrays, (config.outputs, config.inputs), low=-127)
            activations = codes(arrays, (pixels, config.inputs))
            sums = activations @ weights.T + (sums if step else 0)
            # The block's words: from one cycle before the step before, up to two cycles before this one.
            cycles = range(previous - 1, cycle - 1)
            chosen = sorted(rng.sample(cycles, config.outputs)) if rng.random() < 0.5 else list(rng.choice([cycles[: config.outputs], cycles[-config.outputs :]]))
            words = weights.reshape(config.outputs // 2, 2, config.inputs // 2, 2).transpose(0, 3, 2, 1).reshape(config.outputs, config.inputs)
            for number, (at, word) in enumerate(zip(chosen, words)):
                put(at, load=WeightLoad.const({"valid": 1, "word": number}).as_bits(), weights=word_bits(word))
            for pixel in range(pixels):
                control = {"valid": 1, "first": pixel == 0, "clear": step == 0, "bank": bank}
                put(cycle + pixel, control=PixelControl.const(control).as_bits())
                put(cycle + pixel + 1, activations=word_bits(activations[pixel]))
            previous, cycle = cycle, cycle + pixels + rng.choice([0, 0, 0, 1, 5])
        request = max(previous + pixels - 1 + write_latency, last_request + period)
        for pixel in range(pixels):
            put(request, sums_read={"valid": 1, "bank": bank, "pixel": pixel})
            expected[request] = sums[pixel]
            last_request, request = request, request + period + (rng.randint(0, 3) if rng.random() < 0.1 else 0)
        bank_free[bank] = last_request + 1
    return drive, expected


@cocotb.test()
async def accumulates(dut):
    p = parameters()
    config = configure(*p["shape"])
    drive, expected = schedule(config, p["write_latency"], p["fillings"], seed=5)
    due = {}
    for request, sums in expected.items():
        for group in range(config.outputs // config.drain_lanes):
            due[request + p["drain_latency"] + group] = sums[group * config.drain_lanes :][: config.drain_lanes]
    noise = np.random.default_rng(1)
    await reset(dut)
    seen = 0
    for cycle in range(max(due) + 3):
        # What is not valid is noise.
        ports = {"control": 0, "load": int(noise.integers(1 << 4)) << 1, "sums_read": {"valid": 0}} | drive.get(cycle, {})
        for name in ("weights", "activations"):
            ports.setdefault(name, word_bits(noise.integers(-128, 128, config.inputs)))
        request = {"bank": int(noise.integers(2)), "pixel": int(noise.integers(512))} | ports.pop("sums_read")
        for name, value in (ports | {f"sums_read_{key}": value for key, value in request.items()}).items():
            getattr(dut, name).value = value
        await RisingEdge(dut.clk)
        assert dut.sums_valid.value == (cycle in due), cycle
        if cycle in due:
            data = dut.sums_data.value.to_unsigned().to_bytes(4 * config.drain_lanes, "little")
            np.testing.assert_array_equal(np.frombuffer(data, "<i4"), due[cycle], err_msg=f"cycle {cycle}")
            seen += 1
    assert seen == len(due) > 0


@pytest.mark.parametrize("shape", [(2, 8, 2), (4, 16, 4), (8, 8, 2), pytest.param((16, 16, 4), marks=pytest.mark.long)], ids=str)
def test_accumulates(shape):
    array = Array(configure(*shape))
    run_cocotb(array, __file__, "accumulates", {"shape": shape, "fillings": 40, "write_latency": array.write_latency, "drain_latency": array.drain_latency})


def test_parameters_are_checked():
    with pytest.raises(TypeError, match="config must be an AcceleratorConfig, not 256"):
        Array(256)
