"""Two managers on one memory: each finds what it wrote, whoever hesitates, and none waits for ever."""

import logging
import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import ClockCycles, Combine
from cocotbext.axi import AxiBus, AxiMaster, AxiRam, AxiSlave, Region

from celosia.hw.axi_mux import AxiMux

SIZE = 1 << 16


def pause(probability):
    while True:
        yield random.random() < probability


async def begin(dut, make):
    """Managers, and a memory, all of which hesitate."""
    logging.getLogger("cocotb.top").setLevel(logging.WARNING)
    await reset(dut)
    memory = make(AxiBus.from_prefix(dut, "bus"), dut.clk, dut.rst)
    managers = [AxiMaster(AxiBus.from_prefix(dut, f"managers_{number}"), dut.clk, dut.rst, max_burst_len=64) for number in range(2)]
    channels = [memory.write_if.aw_channel, memory.write_if.w_channel, memory.write_if.b_channel, memory.read_if.ar_channel, memory.read_if.r_channel]
    for manager in managers:
        channels += [manager.write_if.w_channel, manager.write_if.b_channel, manager.read_if.r_channel]
    for channel in channels:
        channel.set_pause_generator(pause(parameters()["pause"]))
    return memory, managers


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def traffic(dut):
    """Each manager in its own pages, several bursts under way; the second one beat at a time, as the link does, the first up to 64."""
    memory, managers = await begin(dut, lambda *pins: AxiRam(*pins, size=SIZE))
    expected = bytearray(random.Random(0).randbytes(SIZE))
    memory.write(0, bytes(expected))
    moved = [0, 0]

    async def client(number, seed):
        generator = random.Random(seed)
        for _ in range(parameters()["count"]):
            length = generator.choice([8, 64, 512, 8 * generator.randint(1, 64)]) if number == 0 else 8
            address = 1024 * (generator.randrange(16) * 4 + seed) + generator.randrange(0, 1024 - length + 1, 8)
            moved[number] += 1
            if generator.random() < 0.5:
                data = generator.randbytes(length)
                expected[address : address + length] = data
                await managers[number].write(address, data, awid=0)
            else:
                assert (await managers[number].read(address, length, arid=0)).data == expected[address : address + length]
            if number:
                await ClockCycles(dut.clk, generator.randint(1, 20))

    await Combine(*(cocotb.start_soon(client(*each)) for each in ((0, 0), (0, 1), (0, 2), (1, 3))))
    assert memory.read(0, SIZE) == bytes(expected) and min(moved) >= parameters()["count"]


class Broken(Region):
    """A memory that answers with errors above its middle."""

    async def _read(self, address, length, **_):
        if address >= SIZE // 2:
            raise ValueError
        return bytes(length)

    async def _write(self, address, data, **_):
        if address >= SIZE // 2:
            raise ValueError


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def errors(dut):
    """An answer goes to whom it belongs, with what it says."""
    _, managers = await begin(dut, lambda *pins: AxiSlave(*pins, target=Broken(SIZE)))
    for wrong in (0, 1, 1, 0):
        addresses = [SIZE // 2 + 8 if number == wrong else 8 for number in range(2)]
        for access in (lambda manager, address: manager.read(address, 8, arid=0), lambda manager, address: manager.write(address, bytes(8), awid=0)):
            tasks = [cocotb.start_soon(access(*each)) for each in zip(managers, addresses)]
            assert [int((await task).resp) for task in tasks] == [2 if number == wrong else 0 for number in range(2)]


@pytest.mark.parametrize("pause", [0.0, 0.3, 0.7])
def test_traffic(pause):
    run_cocotb(AxiMux(), __file__, "traffic", {"pause": pause, "count": 60})


def test_errors():
    run_cocotb(AxiMux(), __file__, "errors", {"pause": 0.2})
