import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb, stream_put
from cocotb.triggers import ClockCycles, RisingEdge
from lines import bytes_of, line_of

from celosia.hw.uart import UartReceiver, UartTransmitter


async def receive(dut, levels):
    """What is shown for the levels of a line."""
    received = []
    for level in levels:
        dut.pin.value = level
        await RisingEdge(dut.clk)
        if dut.o_valid.value:
            received.append(dut.o_data.value.to_unsigned())
    return received


EXTREME = [0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x7F, 0xFE]


@cocotb.test()
async def receives(dut):
    """Without a pause and with pauses, from hosts up to 2 % too slow and too fast."""
    dut.pin.value = 1
    await reset(dut)
    generator = random.Random(1)
    for error in (0, -0.02, 0.02):
        for gap in (0, 3):
            data = EXTREME + [generator.randrange(256) for _ in range(12)]
            cycles = parameters()["clock_hz"] / parameters()["baud"] * (1 + error)
            assert await receive(dut, line_of(data, cycles, generator, gap)) == data, (error, gap)


@cocotb.test()
async def bytes_without_stop_bits(dut):
    """Are lost; so is what a line that is low for long looks like, and a glitch is no start bit. What follows is received."""
    dut.pin.value = 1
    await reset(dut)
    generator, cycles = random.Random(2), parameters()["clock_hz"] / parameters()["baud"]
    bit = round(cycles)
    for junk in ([0] * (9 * bit) + [0] * bit, [0] * (50 * bit), [0] * max(bit // 4, 1), ([0] * bit + [1] * (8 * bit) + [0] * bit)):
        levels = [*line_of([], cycles, generator), *junk, *line_of([0xA5, 0x00], cycles, generator)]
        assert await receive(dut, levels) == [0xA5, 0x00], len(junk)


@cocotb.test()
async def transmits(dut):
    """The levels of the line are those of the model, within a cycle; bytes that wait follow without a pause."""
    await reset(dut)
    generator, cycles = random.Random(3), parameters()["clock_hz"] / parameters()["baud"]
    for probability in (1.0, 0.001):
        data = EXTREME + [generator.randrange(256) for _ in range(12)]
        levels = []

        async def watch(levels=levels):
            while True:
                await RisingEdge(dut.clk)
                levels.append(int(dut.pin.value))

        assert dut.pin.value == 1
        watching = cocotb.start_soon(watch())
        await stream_put(dut, "i", data, probability=probability)
        await ClockCycles(dut.clk, round(12 * cycles))
        watching.cancel()
        found = bytes_of(levels, cycles)
        assert [byte for _, byte in found] == data
        if probability == 1.0:
            for number, (start, _) in enumerate(found):
                assert start - found[0][0] == pytest.approx(10 * cycles * number, abs=1 + 0.005 * 10 * cycles * number)


RATES = [(100e6, 3_000_000), (100e6, 12_500_000), (24e6, 1_000_000)]


@pytest.mark.parametrize(("clock_hz", "baud"), RATES)
@pytest.mark.parametrize("test", ["receives", "bytes_without_stop_bits"])
def test_receiver(clock_hz, baud, test):
    run_cocotb(UartReceiver(clock_hz, baud), __file__, test, {"clock_hz": clock_hz, "baud": baud})


@pytest.mark.parametrize(("clock_hz", "baud"), RATES)
def test_transmitter(clock_hz, baud):
    run_cocotb(UartTransmitter(clock_hz, baud), __file__, "transmits", {"clock_hz": clock_hz, "baud": baud})


@pytest.mark.parametrize("block", [UartReceiver, UartTransmitter])
@pytest.mark.parametrize("baud", [0, 9000, 12_500_001, 3e6, "fast"])
def test_baud_out_of_range(block, baud):
    with pytest.raises(ValueError, match=rf"baud must be an integer in 9537…12500000 at a clock of 100 MHz, not {baud!r}"):
        block(100e6, baud)
