import random

import cocotb
import numpy as np
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge

from celosia.hw.parameters import SHORT_BITS
from celosia.hw.requantize import LutMultiplier, Requantizer
from celosia.sim.golden import requantize, residual_term

INT32 = -(1 << 31), (1 << 31) - 1


def operands(rng):
    """Operands of one result, as a rule such that it is not clamped."""
    shift = rng.choice([16, 47, rng.randint(16, 47), rng.randint(20, 30)])
    multiplier = rng.choice([0, 1, 1 << 15, 65535, rng.randint(1 << 15, 65535), 1 << rng.randint(0, 15)])
    total = rng.choice([*INT32, 0, -1, rng.randint(*INT32), *[(rng.randint(-150, 150) << shift - 1) // max(multiplier, 1) + rng.randint(-1, 1)] * 4])
    total = min(max(total, INT32[0]), INT32[1])
    bias = rng.randint(max(INT32[0], total - INT32[1]), min(INT32[1], total - INT32[0]))
    low, high = sorted((rng.choice([-128, rng.randint(-128, 127)]), rng.choice([127, rng.randint(-128, 127)])))
    return {
        "sum": total - bias, "bias": bias, "multiplier": multiplier, "shift": shift, "leaky": rng.randint(0, 1),
        "negative": rng.randrange(1 << SHORT_BITS),
        "residual": rng.choice([-128, 127, rng.randint(-128, 127)]), "residual_zero_point": rng.choice([-128, 127, rng.randint(-128, 127)]),
        "residual_multiplier": rng.choice([0, 0, 65535, rng.randint(0, 65535), rng.randint(1 << 15, 65535)]),
        "residual_shift": rng.choice([0, shift, max(shift - 39, 0), rng.randint(0, shift), min(shift, rng.randint(14, 20))]),
        "zero_point": rng.choice([-128, 127, 0, rng.randint(-128, 127)]), "low": low, "high": high,
    }


def expanded(short):
    """What a short multiplier stands for."""
    return short << 1 if short < 256 else (256 + short % 256) << (short >> 8)


def golden(case):
    column = {name: np.array([value], np.int64) for name, value in case.items()}
    r_term = residual_term(column["residual"], case["residual_zero_point"], case["residual_multiplier"], case["residual_shift"], column["shift"])
    total = (column["sum"] + column["bias"]).astype(np.int32)
    return int(requantize(total, column["multiplier"], column["shift"], case["zero_point"], case["low"], case["high"], r_term,
                          np.array([expanded(case["negative"])]) if case["leaky"] else None)[0])


@cocotb.test()
async def equals_golden(dut):
    latency, count = parameters()["latency"], parameters()["count"]
    rng = random.Random(1)
    await reset(dut)
    expected = []
    for cycle in range(count + latency):
        if cycle < count:
            case = operands(rng)
            expected.append((golden(case), case))
            for name, value in case.items():
                getattr(dut, name).value = value
        await RisingEdge(dut.clk)
        # Before this edge the operands of cycle − latency have come out.
        if cycle >= latency:
            code, case = expected[cycle - latency]
            assert dut.code.value.to_signed() == code, case
    unclamped = sum(case["low"] < code < case["high"] for code, case in expected)
    assert unclamped > count / 5


@pytest.mark.parametrize("multipliers", [False, True])
def test_requantizer_equals_golden(multipliers):
    component = Requantizer(multipliers=multipliers)
    run_cocotb(component, __file__, "equals_golden", {"latency": component.latency, "count": 15000})


def test_golden_is_the_formula_in_unbounded_integers():
    rng = random.Random(2)
    for _ in range(5000):
        case = operands(rng)
        if case["shift"] - case["residual_shift"] > 39:
            continue
        r_term = (case["residual"] - case["residual_zero_point"]) * case["residual_multiplier"] << case["shift"] - case["residual_shift"]
        multiplier = expanded(case["negative"]) if case["leaky"] and case["sum"] + case["bias"] < 0 else case["multiplier"]
        exact = case["zero_point"] + ((case["sum"] + case["bias"]) * multiplier + r_term + (1 << case["shift"] - 1) >> case["shift"])
        assert golden(case) == min(max(exact, case["low"]), case["high"])


@cocotb.test()
async def multiplies(dut):
    rng = random.Random(3)
    await reset(dut)
    products = []
    for cycle in range(2000):
        a, b = rng.choice([-(1 << 17), (1 << 17) - 1, rng.randint(-(1 << 17), (1 << 17) - 1)]), rng.choice([0, 65535, rng.randint(0, 65535)])
        dut.a.value, dut.b.value = a, b
        products.append(a * b)
        await RisingEdge(dut.clk)
        if cycle >= LutMultiplier.latency:
            assert dut.product.value.to_signed() == products[cycle - LutMultiplier.latency]


def test_lut_multiplier():
    run_cocotb(LutMultiplier(18, 16), __file__, "multiplies")


def test_multipliers_must_be_bool():
    with pytest.raises(TypeError, match="multipliers must be a bool, not 3"):
        Requantizer(multipliers=3)
