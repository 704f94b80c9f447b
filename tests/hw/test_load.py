import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb, stream_put
from cocotb.triggers import RisingEdge

from celosia.hw.config import get_config
from celosia.hw.interfaces import Run
from celosia.hw.isa import Base, Opcode, Target, Unit, encode
from celosia.hw.load import LoadMaps, LoadWeights

BASES = [0x10000, 0x200000, 0x3000000, 0x40000000]


def weights(fields, inputs):
    """(runs, writes) of LOAD_WEIGHTS; a write is (port, address, lane)."""
    lanes, width, port = {
        Target.WEIGHTS: (inputs // 8, 12, "weight_write"), Target.PARAMETERS: (4, 9, "parameter_write"), Target.TABLE: (1, 11, "table_write"),
    }[fields["target"]]
    runs = [(BASES[fields["base"]] + 8 * fields["offset"], fields["beats"])]
    return runs, [(port, (fields["address"] + beat // lanes) % (1 << width), beat % lanes) for beat in range(fields["beats"])]


def maps(fields, inputs):
    """(runs, writes) of LOAD_MAP."""
    runs, writes = [], []
    for plane in range(fields["planes"]):
        runs.append((BASES[fields["base"]] + 8 * (fields["offset"] + plane * fields["plane_stride"]), fields["beats"]))
        for beat in range(fields["beats"]):
            if fields["residual"]:
                writes.append(("residual_write", (fields["address"] + beat) % 1024, plane % 2))
            elif inputs == 16:
                writes.append(("map_write", (fields["address"] + plane // 2 * fields["pitch"] + beat) % (1 << 14), plane % 2))
            else:
                writes.append(("map_write", (fields["address"] + plane * fields["pitch"] + beat) % (1 << 14), 0))
    return runs, writes


def random_weights(generator):
    return Opcode.LOAD_WEIGHTS, {"base": generator.choice(list(Base)), "offset": generator.getrandbits(20), "target": generator.choice(list(Target)),
                                 "address": generator.getrandbits(12), "beats": generator.choice([1, 2, 7, 8, generator.randint(1, 200)])}


def random_map(generator):
    residual = generator.random() < 0.3
    return Opcode.LOAD_MAP, {"base": generator.choice(list(Base)), "offset": generator.getrandbits(20), "residual": int(residual),
                             "address": generator.getrandbits(14), "pitch": generator.getrandbits(14),
                             "beats": generator.choice([1, 1, 2, 8, generator.randint(1, 100)]),
                             "planes": generator.randint(1, 2) if residual else generator.randint(1, 9), "plane_stride": generator.getrandbits(16)}


async def memory(dut, latency, probability, runs):
    """Takes runs with `probability`, answers beats after `latency`, data = 1, 2, 3 …; records the runs."""
    pending, cycle, data = [], 0, 0
    while True:
        taking = random.random() < probability
        dut.runs_ready.value = int(taking)
        if pending and pending[0] <= cycle and random.random() < probability:
            pending.pop(0)
            data += 1
            dut.beats_valid.value, dut.beats_data.value = 1, data
        else:
            dut.beats_valid.value = 0
        await RisingEdge(dut.clk)
        cycle += 1
        if taking and dut.runs_valid.value:
            run = Run.from_bits(dut.runs_payload.value.to_unsigned())
            runs.append((int(run.address), int(run.beats)))
            pending += [cycle + latency] * int(run.beats)


@cocotb.test()
async def loads(dut):
    dut.bases.value = sum(address << 32 * base for base, address in enumerate(BASES))
    await reset(dut)
    values = parameters()
    generator = random.Random(values["inputs"])
    model, random_instruction, ports = {"weights": (weights, random_weights, ("weight_write", "parameter_write", "table_write")),
                                        "maps": (maps, random_map, ("map_write", "residual_write"))}[values["unit"]]
    instructions, expected_runs, expected_writes, expected_posts = [], [], [], []
    for _ in range(60):
        opcode, fields = random_instruction(generator)
        post = {unit for unit in Unit if generator.random() < 0.3}
        instructions.append(encode(opcode, post=post, **fields))
        runs, writes = model(fields, values["inputs"])
        expected_runs += runs
        expected_writes += writes
        expected_posts.append((len(expected_writes), sum(1 << unit for unit in post)))
    runs, writes, posts = [], [], []
    cocotb.start_soon(memory(dut, values["latency"], values["probability"], runs))
    cocotb.start_soon(stream_put(dut, "instruction", instructions, probability=values["probability"]))
    started = None
    for cycle in range(400_000):
        await RisingEdge(dut.clk)
        if dut.control_retired.value:
            posts.append((len(writes), int(dut.control_post.value)))
        else:
            assert not dut.control_post.value
        if len(posts) < len(instructions) and writes:
            assert dut.control_busy.value or dut.instruction_valid.value or dut.control_retired.value or values["probability"] < 1
        for port in ports:
            if getattr(dut, f"{port}_valid").value:
                writes.append((port, int(getattr(dut, f"{port}_address").value), int(getattr(dut, f"{port}_lane").value)))
                assert int(getattr(dut, f"{port}_data").value) == len(writes), "data out of order"
                started = started or cycle
        if len(posts) == len(instructions):
            break
    assert runs == expected_runs and writes == expected_writes and posts == expected_posts
    if values["probability"] == 1:
        assert cycle - started < 1.1 * len(writes) + 10, f"{cycle - started} cycles for {len(writes)} beats"
    await RisingEdge(dut.clk)
    assert not dut.control_busy.value


@cocotb.test()
async def short_loads_follow_each_other(dut):
    """64-byte loads in order: the bus always has a run to work at."""
    await reset(dut)
    cocotb.start_soon(memory(dut, 12, 1, []))
    instruction = encode(Opcode.LOAD_WEIGHTS, beats=8) if parameters()["unit"] == "weights" else encode(Opcode.LOAD_MAP, beats=8, planes=1)
    cocotb.start_soon(stream_put(dut, "instruction", [instruction] * 50))
    cycles = beats = 0
    while beats < 400:
        await RisingEdge(dut.clk)
        beats += int(dut.beats_valid.value)
        cycles += int(beats > 0)
    assert cycles == 400


@pytest.mark.parametrize("config", ["tiny", "ulx3s-85f"])
@pytest.mark.parametrize("unit", ["weights", "maps"])
@pytest.mark.parametrize(("probability", "latency"), [(1, 10), (0.5, 1)])
def test_loads(config, unit, probability, latency):
    config = get_config(config)
    component = {"weights": LoadWeights, "maps": LoadMaps}[unit](config)
    run_cocotb(component, __file__, "loads", {"unit": unit, "inputs": config.inputs, "probability": probability, "latency": latency})


@pytest.mark.parametrize("unit", ["weights", "maps"])
def test_short_loads_follow_each_other(unit):
    run_cocotb({"weights": LoadWeights, "maps": LoadMaps}[unit](get_config("ulx3s-85f")), __file__, "short_loads_follow_each_other", {"unit": unit})
