"""The serial requantizer, against golden."""

import random

import cocotb
import numpy as np
from bench import reset, run_cocotb
from cocotb.triggers import RisingEdge
from test_requantize import operands

from celosia.hw.inorder_drain import SerialRequantizer
from celosia.sim.golden import requantize

TAKEN = ("sum", "bias", "multiplier", "shift")


def golden(case):
    total, multiplier = np.array([case["sum"] + case["bias"]]), np.array([case["multiplier"]])
    return int(requantize(total, multiplier, case["shift"], case["zero_point"], case["low"], case["high"])[0])


@cocotb.test()
async def equals_golden(dut):
    """Random and extreme operands; every cycle in which something may happen, and none else."""
    rng = random.Random(1)
    dut.start.value = 0
    await reset(dut)

    async def step(start):
        """A cycle; what the outputs were in it."""
        dut.start.value = int(start)
        await RisingEdge(dut.clk)
        return int(dut.ready.value), int(dut.valid.value), dut.code.value.to_signed()

    for _ in range(300):
        constants = operands(rng)
        for name in ("zero_point", "low", "high"):
            getattr(dut, name).value = constants[name]
        cases = [operands(rng) | {name: constants[name] for name in ("zero_point", "low", "high")} for _ in range(rng.choice((1, 2, 9)))]
        expected, cycle = {}, 0
        for case in cases:
            for name in TAKEN:
                getattr(dut, name).value = case[name] - (16 if name == "shift" else 0)
            digits = -(-case["shift"] // 4)
            for offset in range(digits + 1 + rng.choice((0, 0, 3))):
                ready, valid, code = await step(start=offset == 0)
                assert ready == (offset == 0 or offset > digits)
                assert valid == (cycle in expected) and (not valid or code == expected[cycle])
                if offset == 0:
                    expected[cycle + digits + 3] = golden(case)
                cycle += 1
                for name in TAKEN:
                    getattr(dut, name).value = 0
        for _ in range(4):
            _, valid, code = await step(start=False)
            assert valid == (cycle in expected) and (not valid or code == expected[cycle])
            cycle += 1


def test_requantizer():
    run_cocotb(SerialRequantizer(), __file__, "equals_golden")
