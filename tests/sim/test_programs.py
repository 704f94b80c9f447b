"""Compiled programs on the RTL itself, whatever its memory does, give golden's bytes."""

import numpy as np
import pytest
from networks import random_codes, random_network, random_parts, random_phases, random_scaled

from celosia.host.compile import compile
from celosia.hw.config import get_config
from celosia.sim.cycle import CycleDevice
from celosia.sim.golden import GoldenDevice
from celosia.sim.rtl import RtlDevice


def check(config, memory, seeds, largest, make=random_network, **options):
    """Random networks, one after the other on the same device, twice each: what a run leaves behind must not matter."""
    with RtlDevice(get_config(config), memory) as device:
        for seed in seeds:
            batch = 1 + seed % 3
            network = make(seed, largest=largest, **options)
            program, codes = compile(network, config, batch), random_codes(network, batch, seed)
            expected = GoldenDevice(get_config(config)).run_program(program, [codes])
            runs = [device.run_program(program, [codes]) for _ in range(2)]
            for result in runs:
                for one, other in zip(result.outputs, expected.outputs, strict=True):
                    np.testing.assert_array_equal(one, other, err_msg=f"seed {seed}")
                assert sum(result.layers) == result.cycles and min(result.layers) > 0
                retired = sum(count for name, count in result.counters.items() if name.startswith("retired_"))
                assert retired == program.instructions - 1, "every instruction but END retires once"
            assert runs[0].cycles == runs[1].cycles


@pytest.mark.parametrize("memory", ["ideal", "sdram", "ideal-pauses", "sdram-pauses", "erratic"])
def test_random_networks(memory):
    check("tiny", memory, range(8), 14, most_layers=3)


@pytest.mark.parametrize("make", [random_parts, random_phases, random_scaled])
def test_parts_and_wholes(make):
    check("tiny", "sdram-pauses", range(6), 10, make)


class Uploads(RtlDevice):
    """Counts what is written into its memory for each program's image."""

    uploads = ()

    def _put(self, address, data):
        self.uploads = (*self.uploads, (address, data.size))
        super()._put(address, data)


def test_programs_held_beside_each_other():
    """Each image is written once, and stays; bytes are golden's, and cycles those that `cycle` tells for these addresses."""
    networks = [random_network(seed, most_layers=3, largest=14) for seed in (2, 5, 6)]
    programs = [compile(network, "tiny") for network in networks]
    inputs = [[random_codes(network, 1, seed)] for seed, network in enumerate(networks)]
    config = get_config("tiny")
    golden, cycle = GoldenDevice(config), CycleDevice(config)

    def run(order):
        for index in order:
            result, timed = (each.run_program(programs[index], inputs[index]) for each in (device, cycle))
            np.testing.assert_array_equal(result.outputs[0], golden.run_program(programs[index], inputs[index]).outputs[0])
            assert (result.cycles, result.layers) == (timed.cycles, timed.layers)

    with Uploads(config) as device:
        for each in (golden, cycle, device):
            each.hold(programs[:2])
        run([0, 1, 0, 1, 1])
        images = [upload for upload in device.uploads if upload[1] in {program.image.size for program in programs[:2]}]
        assert images == [(0, programs[0].image.size), (-(-programs[0].image.size // 4096) * 4096, programs[1].image.size)]
        run([2, 0, 0, 1, 0])  # one that is not held takes their place
        images = [size for _, size in device.uploads if size in {program.image.size for program in programs}]
        assert images == [programs[index].image.size for index in (0, 1, 2, 0, 1)]


def test_nothing_relies_on_power_up():
    """Whatever registers and memories hold when reset comes, outputs and cycles are the same."""
    network = random_network(2, most_layers=3, largest=14)
    program, codes = compile(network, "tiny", 2), random_codes(network, 2, 2)
    expected = GoldenDevice(get_config("tiny")).run_program(program, [codes])
    with RtlDevice(get_config("tiny")) as device:
        cycles = device.run_program(program, [codes]).cycles
    for seed in (1, 2, 3):
        with RtlDevice(get_config("tiny"), seed=seed, power_up=False) as device:
            result = device.run_program(program, [codes])
        np.testing.assert_array_equal(result.outputs[0], expected.outputs[0], err_msg=f"seed {seed}")
        assert result.cycles == cycles


@pytest.mark.long
@pytest.mark.parametrize("config", ["ulx3s-25f", "ulx3s-85f"])
def test_random_networks_on_boards(config):
    check(config, "sdram-pauses", range(12), 30, most_layers=3)
    check(config, "sdram-pauses", range(12), 30, random_parts)
    check(config, "sdram-pauses", range(12), 30, random_phases)
