"""Behavioural twins and ECP5 instances of the hard blocks, against the same expectations."""

import random
from pathlib import Path

import cocotb
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge

from celosia.hw.build import to_verilog
from celosia.hw.primitives import BlockRam, EcpPrimitives, Multiplier, WideRam

PLATFORMS = pytest.mark.parametrize("platform", [None, EcpPrimitives()], ids=["twin", "ecp5"])


def run(component, platform, name, parameters):
    verilog = to_verilog(component, platform=platform)
    if platform is not None:
        verilog += (Path(__file__).parent / "ecp5.v").read_text()
    run_cocotb(verilog, __file__, name, parameters)


@cocotb.test()
async def multiplies(dut):
    rng = random.Random(1)
    latency, widths = parameters()["latency"], parameters()["widths"]
    await reset(dut)
    pairs = []
    for cycle in range(500):
        pairs.append([rng.choice([-(1 << w - 1), (1 << w - 1) - 1, 0, -1, *[rng.randrange(-(1 << w - 1), 1 << w - 1)] * 3]) for w in widths])
        dut.a.value, dut.b.value = pairs[-1]
        await RisingEdge(dut.clk)
        if cycle >= latency:
            a, b = pairs[cycle - latency]
            assert dut.product.value.to_signed() == a * b, (a, b)


@PLATFORMS
def test_multiplier(platform):
    run(Multiplier(18, 8), platform, "multiplies", {"latency": Multiplier.latency, "widths": (18, 8)})


class Rams(wiring.Component):
    """Memories of several shapes that get the same operations."""

    def __init__(self, rams):
        self.rams = rams
        data_width = max(len(ram.read_data) for ram in rams)
        super().__init__({
            "write_address": In(14), "write_data": In(data_width), "write_enable": In(max(len(ram.write_enable) for ram in rams)),
            "read_address": In(14), "read_enable": In(1), "read_data": Out(data_width * len(rams)),
        })

    def elaborate(self, _platform):
        m = Module()
        for number, ram in enumerate(self.rams):
            m.submodules[f"ram{number}"] = ram
            m.d.comb += [getattr(ram, name).eq(getattr(self, name)) for name in ("write_address", "write_data", "write_enable", "read_address")]
            if "read_enable" in ram.signature.members:
                m.d.comb += ram.read_enable.eq(self.read_enable)
            m.d.comb += self.read_data.word_select(number, len(self.write_data)).eq(ram.read_data)
        return m


@cocotb.test()
async def remember(dut):
    """Random writes and reads, most of them near the bounds of the parts of which the memories are made."""
    rng = random.Random(1)
    p = parameters()
    data_width = max(ram["lanes"] * ram["lane_width"] for ram in p["rams"])
    lanes = max(ram["lanes"] for ram in p["rams"])
    near = sorted({a % (1 << 14) for ram in p["rams"] for start in ram["starts"] for a in range(start - 2, start + 3)})
    # Every word near a bound is written first, and those an error in one address bit would confuse it with, so that reads are of known words.
    known = sorted({*near, *(a ^ 1 << bit for a in near for bit in range(14))})
    memories = [{} for _ in p["rams"]]
    await reset(dut)
    expectations = []
    for cycle in range(len(known) + p["cycles"]):
        filling = cycle < len(known)
        address = known[cycle] if filling else rng.choice(known)
        enable = (1 << lanes) - 1 if filling else rng.choice([0, rng.randrange(1 << lanes), (1 << lanes) - 1])
        value = rng.choice([0, (1 << data_width) - 1, rng.getrandbits(data_width), rng.getrandbits(data_width)])
        read, wanted = rng.choice(known), rng.random() < 0.7
        dut.write_address.value, dut.write_data.value, dut.write_enable.value = address, value, enable
        dut.read_address.value, dut.read_enable.value = read, wanted
        expected = []
        for ram, words in zip(p["rams"], memories):
            bits = (ram["depth"] - 1).bit_length()
            at, place = (a % (1 << bits) for a in (read, address))
            written = enable & (1 << ram["lanes"]) - 1
            expected.append(None if at not in words or (at == place and written) else 0 if ram["masked"] and not wanted else words[at])
            if place < ram["depth"]:
                mask = sum((1 << ram["lane_width"]) - 1 << lane * ram["lane_width"] for lane in range(ram["lanes"]) if written >> lane & 1)
                words[place] = words.get(place, 0) & ~mask | value & mask
        expectations.append(expected)
        await RisingEdge(dut.clk)
        if cycle >= p["latency"]:
            data = dut.read_data.value.to_unsigned()
            for number, (ram, expected) in enumerate(zip(p["rams"], expectations[cycle - p["latency"]])):
                got = data >> number * data_width & (1 << ram["lanes"] * ram["lane_width"]) - 1
                assert expected is None or got == expected, (cycle, ram)


def check_rams(rams, platform, cycles):
    shapes = [
        {"depth": depth, "lanes": lanes, "lane_width": width // lanes, "masked": masked, "starts": starts}
        for width, lanes, depth, masked, starts in (
            (len(ram.read_data), len(ram.write_enable), ram.depth, "read_enable" in ram.signature.members,
             [*([start for start, _ in ram.segments] if isinstance(ram, WideRam) else [0]), ram.depth]) for ram in rams
        )
    ]
    run(Rams(rams), platform, "remember", {"latency": rams[0].latency, "rams": shapes, "cycles": cycles})


@PLATFORMS
def test_block_ram(platform):
    shapes = [(1, 16384), (2, 8192), (4, 4096), (8, 2048), (9, 2048), (16, 1024), (18, 1024), (32, 64), (36, 512)]
    check_rams([BlockRam(*shape) for shape in shapes], platform, 1000)


@PLATFORMS
def test_wide_ram(platform):
    shapes = [(32, 16, 13312, True), (32, 16, 13312, False), (64, 64, 4096, False), (64, 64, 64, True), (144, 72, 1536, False)]
    rams = [WideRam(width=width, depth=depth, lane_width=lane_width, masked=masked) for width, lane_width, depth, masked in shapes]
    check_rams(rams, platform, 2000)


def test_shapes_of_the_scratchpad():
    ram = WideRam(width=128, depth=13312, lane_width=64)
    assert ram.segments == [(0, 8192), (8192, 4096), (12288, 1024)]
    assert ram.blocks == 104
    assert WideRam(width=128, depth=4096, lane_width=64).blocks == 32


@pytest.mark.parametrize("build, message", [
    (lambda: Multiplier(19, 18), "a_width must be an integer in 1…18, not 19"),
    (lambda: Multiplier(18, 0), "b_width must be an integer in 1…18, not 0"),
    (lambda: BlockRam(37, 2), "width must be an integer in 1…36, not 37"),
    (lambda: BlockRam(9, 2049), "depth of 9 bits must be an integer in 1…2048, not 2049"),
    (lambda: WideRam(width=0, depth=512), "width must be an integer in 1…1024, not 0"),
    (lambda: WideRam(width=64, depth=16385), "depth must be an integer in 2…16384, not 16385"),
    (lambda: WideRam(width=64, depth=512, lane_width=48), "lane_width must be a divisor of the width 64, not 48"),
])
def test_parameters_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()
