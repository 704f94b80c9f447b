"""Compiled programs on the RTL itself, whatever its memory does, give golden's bytes."""

import numpy as np
import pytest
from networks import random_codes, random_network, random_parts, random_phases, random_scaled

from celosia.host.compile import compile
from celosia.hw.config import get_config
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
