import random

import cocotb
import numpy as np
import pytest
from bench import parameters, reset, run_cocotb, stream_put
from cocotb.triggers import RisingEdge

from celosia.hw.config import get_config
from celosia.hw.drain import DrainUnit
from celosia.hw.isa import TABLE_ENTRIES, Opcode, Unit, decode, encode
from celosia.hw.parameters import encode_parameters, nearest_short
from celosia.sim.golden import look_up, requantize, residual_term


def drain_instruction(rng, config, pixels):
    """A DRAIN with random fields; residual_shift suits any shift."""
    positions = 2 * 8 // config.drain_lanes
    low, high = sorted((rng.choice([-128, rng.randint(-128, 127)]), rng.choice([127, rng.randint(-128, 127)])))
    return encode(
        Opcode.DRAIN, post=rng.sample([Unit.WEIGHT, Unit.MAP, Unit.COMPUTE, Unit.STORE], rng.randint(0, 4)),
        pixels=pixels, address=rng.randrange(config.stage_pixels), group=rng.randint(0, positions - config.outputs // config.drain_lanes),
        parameters=rng.randrange(config.parameter_words), zero_point=rng.randint(-128, 127), low=low, high=high,
        residual=rng.randint(0, 1), residual_address=rng.randrange(config.stage_pixels), residual_zero_point=rng.randint(-128, 127),
        residual_multiplier=rng.randint(0, 65535), residual_shift=rng.randint(8, 16), leaky=rng.randint(0, 1), table=rng.randint(0, 1),
        page=rng.randrange(8), skip=rng.choice([0, 0, 1, rng.randint(0, 7)]),
    )


def golden(config, instruction, sums, words, residuals, tables):
    """Staged groups [(group, pixel, codes)] of a DRAIN and the number of clamped codes.

    sums: (pixels, outputs) int32; words: per word (bias[4], multiplier[4], shift[4], negative[4]); residuals: (2, stage_pixels, 8) int8; tables: (8, 256) int8,
    by code modulo 256.
    """
    lanes = config.drain_lanes
    first = 2 if lanes == 2 and instruction["group"] % 2 else 0
    channels = first + np.arange(config.outputs)
    entries = [(words[(instruction["parameters"] + c // 4) % config.parameter_words], c % 4) for c in channels]
    bias, multiplier, shift, negative = (np.array([word[field][k] for word, k in entries]) for field in range(4))
    pixels = np.arange(instruction["pixels"])
    r_term = 0
    if instruction["residual"]:
        planes = residuals[:, (instruction["residual_address"] + pixels) % config.stage_pixels].transpose(1, 0, 2).reshape(len(pixels), 16)
        start = instruction["group"] * lanes
        r_term = residual_term(planes[:, start : start + config.outputs], instruction["residual_zero_point"], instruction["residual_multiplier"],
                               instruction["residual_shift"], shift)
    total = (sums.astype(np.int64) + bias).astype(np.int32)
    zero_point, low, high = (instruction[field] for field in ("zero_point", "low", "high"))
    codes = requantize(total, multiplier, shift, zero_point, low, high, r_term, negative if instruction["leaky"] else None)
    multiplier = np.where(total < 0, negative, multiplier) if instruction["leaky"] else multiplier
    exact = zero_point + (total.astype(np.int64) * multiplier + r_term + (1 << shift - 1) >> shift)
    if instruction["table"]:
        codes = look_up(codes, np.roll(tables[instruction["page"]], 128))
    staged = [
        (instruction["group"] + g, (instruction["address"] + p * (1 + instruction["skip"])) % config.stage_pixels, codes[p, g * lanes : (g + 1) * lanes].tolist())
        for p in pixels for g in range(config.outputs // lanes)
    ]
    return staged, int(np.sum((exact < low) | (exact > high)))


async def fill(dut, config, rng):
    """Write random parameters, residuals and tables; returns them as `golden` takes them."""
    words = []
    for address in range(config.parameter_words):
        bias = [rng.randint(-(1 << rng.randint(1, 30)), 1 << rng.randint(1, 30)) for _ in range(4)]
        multiplier, shift = [rng.randint(1 << 15, 65535) for _ in range(4)], [rng.choice([16, 47, rng.randint(18, 40)]) for _ in range(4)]
        negative = [int(nearest_short(rng.choice([0, 65535, rng.randrange(1 << rng.randint(1, 16))]))) for _ in range(4)]
        words.append((bias, multiplier, shift, negative))
        word = int.from_bytes(encode_parameters(*words[-1]).tobytes(), "little")
        for lane in range(4):
            dut.parameter_write_valid.value, dut.parameter_write_address.value, dut.parameter_write_lane.value = 1, address, lane
            dut.parameter_write_data.value = word >> 64 * lane & (1 << 64) - 1
            await RisingEdge(dut.clk)
    dut.parameter_write_valid.value = 0
    residuals = np.random.default_rng(rng.randrange(1 << 30)).integers(-128, 128, (2, config.stage_pixels, 8), np.int8)
    for plane in range(2):
        for address in range(config.stage_pixels):
            dut.residual_write_valid.value, dut.residual_write_address.value, dut.residual_write_lane.value = 1, address, plane
            dut.residual_write_data.value = int.from_bytes(residuals[plane, address].tobytes(), "little")
            await RisingEdge(dut.clk)
    dut.residual_write_valid.value = 0
    tables = np.random.default_rng(rng.randrange(1 << 30)).integers(-128, 128, (8, 256), np.int8)
    for address in range(TABLE_ENTRIES):
        dut.table_write_valid.value, dut.table_write_address.value = 1, address
        dut.table_write_data.value = int(tables.reshape(-1)[address]) & 255 | rng.getrandbits(56) << 8
        await RisingEdge(dut.clk)
    dut.table_write_valid.value = 0
    return words, residuals, tables


@cocotb.test()
async def equals_golden(dut):
    config, latency = get_config(parameters()["config"]), parameters()["latency"]
    rng = random.Random(1)
    await reset(dut)
    drained = 0
    for sums_latency, probability in parameters()["runs"]:
        contents = await fill(dut, config, rng)
        drained += await drain(dut, config, rng, contents, drained, latency, sums_latency, probability)


async def drain(dut, config, rng, contents, drained, latency, sums_latency, probability):
    """Run instructions offered with `probability` a cycle, `drained` of them having run before, and check all outputs; returns their number."""
    groups = config.outputs // config.drain_lanes
    sizes = [1, 1, 1, 2, 1, 16, 17, min(config.tile_pixels, 100), *[rng.randint(2, 40) for _ in range(20)]]
    encoded = [drain_instruction(rng, config, pixels) for pixels in sizes]
    instructions = [decode(word)[1] for word in encoded]
    generator = np.random.default_rng(rng.randrange(1 << 30))
    sums = [(generator.integers(-(1 << 30), 1 << 30, (i["pixels"], config.outputs)) >> generator.integers(0, 30, (i["pixels"], config.outputs))).astype(np.int32)
            for i in instructions]
    results = [golden(config, i, s, *contents) for i, s in zip(instructions, sums)]
    expected = [group for staged, _ in results for group in staged]
    expected_requests = [((drained + k) % 2, pixel) for k, i in enumerate(instructions) for pixel in range(i["pixels"])]
    beats = [beat for s in sums for beat in s.reshape(-1, config.drain_lanes).tolist()]

    cocotb.start_soon(stream_put(dut, "instruction", encoded, probability=probability))
    requests, staged, arrivals, stagings, clamped = [], [], [], [], 0
    posts, retirements, schedule = {unit: [] for unit in Unit}, [], {}
    cycle = 0
    while len(retirements) < len(instructions):
        await RisingEdge(dut.clk)
        # Values are those of `cycle`; what is driven now is seen in the next one.
        if dut.sums_read_valid.value == 1:
            requests.append((cycle, int(dut.sums_read_bank.value), dut.sums_read_pixel.value.to_unsigned()))
            for k in range(groups):
                schedule[cycle + sums_latency + k] = beats[(len(requests) - 1) * groups + k]
        if dut.staged_valid.value == 1:
            bits = dut.staged_data.value.to_unsigned()
            codes = [int.from_bytes([bits >> 8 * k & 255], signed=True) for k in range(config.drain_lanes)]
            staged.append((dut.staged_group.value.to_unsigned(), dut.staged_pixel.value.to_unsigned() % config.stage_pixels, codes))
            assert staged[-1] == expected[len(staged) - 1], (cycle, len(staged))
            stagings.append(cycle)
        clamped += dut.saturated.value.to_unsigned()
        post = dut.control_post.value.to_unsigned()
        for unit in Unit:
            if post >> unit & 1:
                posts[unit].append(cycle)
        if dut.control_retired.value == 1:
            retirements.append(cycle)
        elif requests and len(staged) < len(expected) and schedule:
            assert dut.control_busy.value == 1 or probability < 1
        beat = schedule.get(cycle + 1)
        dut.sums_valid.value = int(beat is not None)
        if beat is not None:
            arrivals.append(cycle + 1)
            dut.sums_data.value = sum((value & 0xFFFFFFFF) << 32 * k for k, value in enumerate(beat))
        cycle += 1
        assert cycle < 100_000
    for _ in range(3):
        await RisingEdge(dut.clk)
        assert dut.control_busy.value == 0
        assert dut.staged_valid.value == 0

    assert [request[1:] for request in requests] == expected_requests
    assert len(staged) == len(expected)
    assert stagings == [arrival + latency for arrival in arrivals]
    gaps = [later[0] - earlier[0] for earlier, later in zip(requests, requests[1:])]
    assert min(gaps) >= groups
    if probability == 1:
        # Also from one instruction to the next, but for those of a single cycle at the beginning.
        assert set(gaps[sum(sizes[:6]) :]) == {groups}
    assert sum(count for _, count in results) == clamped
    assert 0 < clamped < 0.95 * len(expected) * config.drain_lanes
    last = np.cumsum([i["pixels"] * groups for i in instructions]) - 1
    assert retirements == [stagings[k] + 1 for k in last]
    for unit in Unit:
        times = arrivals if unit == Unit.COMPUTE else stagings
        assert posts[unit] == [times[k] + 1 for k, i in zip(last, instructions) if i["post"] >> unit & 1]
    return len(instructions)


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f", "ulx3s-85f"])
def test_drain_unit_equals_golden(config):
    component = DrainUnit(get_config(config))
    run_cocotb(component, __file__, "equals_golden", {"config": config, "latency": component.latency, "runs": [(3, 1), (9, 1), (30, 1), (12, 0.05)]})


def test_config_must_be_one():
    with pytest.raises(TypeError, match="config must be an AcceleratorConfig, not 'tiny'"):
        DrainUnit("tiny")
