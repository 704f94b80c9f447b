"""The device `cycle` gives golden's bytes and the RTL's cycles: of every layer, and by cause."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from instructions import crowded_instructions, program_of, random_instructions
from networks import random_codes, random_network, random_parts, random_phases, random_scaled

import celosia
from celosia import sim
from celosia.host.compile import compile
from celosia.host.source import load_program
from celosia.hw import isa
from celosia.hw.config import AcceleratorConfig, get_config
from celosia.hw.isa import Opcode, Unit
from celosia.sim import memory_timing
from celosia.sim.cycle import CycleDevice
from celosia.sim.device import DeviceError
from celosia.sim.golden import GoldenDevice
from celosia.sim.rtl import RtlDevice

# Unlike every named one: half a word a beat, two groups of lanes, staged tiles larger than the write buffer, bursts of AXI3.
ODD = AcceleratorConfig(name="odd", board="none", outputs=4, inputs=16, drain_lanes=2, drain_multipliers=False, map_words=2048, weight_words=512, tile_pixels=256,
                        stage_pixels=1024, parameter_words=64, max_burst=16)


def expect_equal(cycle, rtl, what):
    assert cycle.layers == rtl.layers and cycle.cycles == rtl.cycles, what
    counters = {name: value for name, value in rtl.counters.items() if name != "saturated"}
    assert cycle.counters == counters and list(cycle.counters) == list(counters), what
    assert all(np.array_equal(one, other) for one, other in zip(cycle.outputs, rtl.outputs, strict=True)), what


def compare(config, seeds, largest, make=random_network, **options):
    with RtlDevice(config) as rtl:
        for seed in seeds:
            batch = 1 + seed % 3
            network = make(seed, largest=largest, **options)
            program, codes = compile(network, config, batch), random_codes(network, batch, seed)
            expect_equal(CycleDevice(config).run_program(program, [codes]), rtl.run_program(program, [codes]), f"seed {seed}")


def test_equals_rtl():
    compare(get_config("tiny"), range(24), 20, most_layers=3)


@pytest.mark.parametrize("make", [random_parts, random_phases, random_scaled])
def test_equals_rtl_in_parts(make):
    compare(get_config("tiny"), range(12), 14, make)


@pytest.mark.parametrize(("make", "seeds"), [(random_instructions, 24), (crowded_instructions, 4)])
def test_equals_rtl_on_instructions(make, seeds):
    config, codes = get_config("tiny"), [np.zeros((1, 8, 1, 1), np.int8)]
    with RtlDevice(config) as rtl:
        for seed in range(seeds):
            program = program_of(config, make(config, seed))
            expect_equal(CycleDevice(config).run_program(program, codes), rtl.run_program(program, codes), f"seed {seed}")


@pytest.mark.long
@pytest.mark.parametrize("config", [ODD, get_config("ulx3s-25f"), get_config("ulx3s-85f")], ids=lambda config: config.name)
def test_equals_rtl_on_boards(config):
    compare(config, range(100, 130), 40, most_layers=3)
    compare(config, range(100, 110), 30, random_phases)


@pytest.mark.long
@pytest.mark.parametrize(("model", "batch"), [("fashion-resnet", 1), ("fashion-resnet", 16), ("resnet18", 1)])
def test_zoo_equals_rtl(model, batch):
    program = load_program(model, "ulx3s-85f", batch)
    codes = [np.zeros((batch, *program.network.tensors[name].shape), np.int8) for name in program.network.inputs]
    with RtlDevice(program.config) as rtl:
        expect_equal(CycleDevice(program.config).run_program(program, codes), rtl.run_program(program, codes), model)


def test_a_device_of_many_programs():
    """Outputs follow the inputs, cycles the program, whatever ran before."""
    network = random_network(5, most_layers=3, largest=14)
    programs = [compile(network, "tiny", batch) for batch in (1, 2, 1)]
    device, golden = CycleDevice(get_config("tiny")), GoldenDevice(get_config("tiny"))
    cycles = []
    for seed, program in enumerate(programs):
        for codes in (random_codes(network, program.batch, seed), random_codes(network, program.batch, seed + 10)):
            result = device.run_program(program, [codes])
            np.testing.assert_array_equal(result.outputs[0], golden.run_program(program, [codes]).outputs[0])
            assert sum(result.layers) == result.cycles
            cycles.append(result.cycles)
    assert cycles[0] == cycles[1] == cycles[4] == cycles[5] < cycles[2] == cycles[3]


def test_open_device():
    program = compile(random_network(5, most_layers=3, largest=14), "tiny", 2)
    images = np.zeros((3, *program.network.tensors["x"].shape), np.float32)
    with celosia.open_device("cycle", "tiny") as device:
        result = device.run(program, images)
    assert device.name == "cycle" and result.runs == 2 and sum(result.layers) == result.cycles and result.counters["active"] < result.cycles
    with pytest.raises(celosia.CelosiaError, match="device 'cycle' has no option 'vcd'"):
        celosia.open_device("cycle", "tiny", vcd="x.vcd")


def test_the_rtl_is_not_used():
    script = "import sys, celosia.sim.cycle; print([name for name in ('celosia.sim.rtl', 'celosia.sim.verilate', 'celosia.hw.accelerator') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_memory_is_that_of_the_rtl():
    header = (Path(sim.__path__[0]) / "sdram.hpp").read_text()
    constants = {name: int(value) for line in re.findall(r"static constexpr \w+ ([^;]*);", header) for name, value in re.findall(r"(\w+) = (\d+)", line)}
    # More than the engine has outstanding, more than the horizon lets it read ahead, answers, and what erratic memory does.
    for name in "outstanding", "read_beats", "slave_error", "decode_error", "most_latency":
        del constants[name]
    assert len(constants) >= 15 and constants == {name: getattr(memory_timing, name.upper()) for name in constants}


def altered(program, index, word):
    """The program with another instruction word."""
    image = program.image.copy()
    image[program.code_offset + 16 * index :][:16] = np.frombuffer(word.to_bytes(16, "little"), np.uint8)
    return replace(program, image=image)


@pytest.fixture
def program():
    return compile(random_network(3, most_layers=3, largest=14), "tiny", 1)


@pytest.mark.parametrize(("word", "message"), [
    (0, "instruction {} of {} has the unknown opcode 0"),
    (isa.encode(Opcode.STORE, wait=[Unit.MAP]), "instruction {} of {} has tokens for a unit it shares none with"),
    (isa.encode(Opcode.STORE, rows=1, columns=1, row_stride=1), "does not end with END"),
], ids=["opcode", "edge", "no end"])
def test_refuses_what_the_dispatcher_refuses(program, word, message):
    codes = random_codes(program.network, 1, 0)
    with pytest.raises(DeviceError, match=message.format(program.instructions - 1, program.instructions)):
        CycleDevice(get_config("tiny")).run_program(altered(program, program.instructions - 1, word), [codes])


def test_tells_a_deadlock(program):
    index, (opcode, fields) = next((index, isa.decode(word)) for index, word in enumerate(program.words()) if isa.decode(word)[0] is Opcode.DRAIN)
    fields |= {"wait": [Unit.STORE], "post": [unit for unit in Unit if fields["post"] >> unit & 1]}
    word = isa.encode(opcode, **{name: value for name, value in fields.items() if name != "opcode"})
    with pytest.raises(DeviceError, match="does not come to its end: .*DRAIN.* wait for tokens that nobody leaves"):
        CycleDevice(get_config("tiny")).run_program(altered(program, index, word), [random_codes(program.network, 1, 0)])
