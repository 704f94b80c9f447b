"""The iCE40's blocks: the behavioural twins, and the cells as Yosys models them, against the same few lines of Python."""

import random
from pathlib import Path

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge
from gates import gates

from celosia.hw.build import to_rtlil
from celosia.hw.ice40 import BEATS, BeatMemory, ByteMultiplier, Ice40Primitives
from celosia.hw.icebreaker import SYNTHESIS

MODELS = Path(__file__).with_name("ice40.v").read_text()


def wrap(value):
    """int16 of a number modulo 2^16."""
    return (value + 0x8000) % 0x10000 - 0x8000


@cocotb.test()
async def multiplies(dut):
    """Random activations and weights, the extremes among them, and weights that change in any cycle."""
    rng, later = random.Random(1), int(parameters()["registered"])
    await reset(dut)
    extremes = (-128, -127, -1, 0, 1, 127)
    weights, products, addends = (0, 0), [], []
    for cycle in range(12_000):
        a = rng.choice(extremes) if rng.random() < 0.3 else rng.randint(-128, 127)
        new = [rng.choice((*extremes[1:], rng.randint(-127, 127))) for _ in range(2)]
        addends.append([rng.choice((-32768, 32767, rng.randint(-20000, 20000))) for _ in range(2)])
        load = rng.random() < 0.4 or cycle == 0
        dut.a.value, dut.load.value = a & 255, int(load)
        dut.weights.value, dut.addends.value = (new[0] & 255 | (new[1] & 255) << 8), (addends[-1][0] & 65535 | (addends[-1][1] & 65535) << 16)
        weights = new if load else weights
        products.append([a * weight for weight in weights])
        await RisingEdge(dut.clk)
        if cycle >= 2 + later:
            sums = dut.sums.value.to_unsigned()
            assert [wrap(sums), wrap(sums >> 16)] == [wrap(sum(pair)) for pair in zip(addends[cycle - later], products[cycle - later - 2])]


@cocotb.test()
async def remembers(dut):
    rng = random.Random(2)
    dut.port_valid.value = 0
    await reset(dut)
    content, addresses = {}, [0, BEATS - 1, *rng.sample(range(BEATS), 20)]
    asked = None
    for _ in range(4000):
        address, write, data, valid = rng.choice(addresses), rng.choice((0, 255, rng.randrange(256))), rng.getrandbits(64), rng.random() < 0.8
        if not write and address not in content:
            continue
        dut.port_valid.value, dut.port_address.value, dut.port_write.value, dut.port_write_data.value = int(valid), address, write, data
        if valid and write and (write == 255 or address in content):
            old = content.get(address, 0)
            content[address] = sum((data if write >> k & 1 else old) & 255 << 8 * k for k in range(8))
        elif valid and write:
            dut.port_valid.value = valid = 0
        await RisingEdge(dut.clk)
        if asked is not None:
            assert dut.port_read_data.value.to_unsigned() == asked
        asked = content[address] if valid and not write else None


def run(component, passes, *arguments):
    """Of the component, or of the netlist that passes of Yosys make of it."""
    run_cocotb(MODELS + gates(to_rtlil(component, platform=Ice40Primitives()), passes) if passes else component, __file__, *arguments)


#: Synthesis has to leave the cells as they are set up.
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("passes", [None, "proc", SYNTHESIS], ids=["twin", "cells", "synthesized"])
def test_multiplier(passes, registered):
    run(ByteMultiplier(registered=registered), passes, "multiplies", {"registered": registered})


@pytest.mark.parametrize("passes", [None, "proc", SYNTHESIS], ids=["twin", "cells", "synthesized"])
def test_memory(passes):
    run(BeatMemory(), passes, "remembers")
