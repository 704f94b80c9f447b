import random

import cocotb
import numpy as np
import pytest
from assembler import MEMORY, Assembler, random_layer, result
from bench import parameters, reset, run_cocotb
from celosia.hw.accelerator import Accelerator
from celosia.hw.build import to_verilog
from celosia.hw.config import get_config
from celosia.hw.isa import Unit
from celosia.hw.registers import Command, ErrorCode, Register, Status
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam


def network(config, case):
    """(memory, registers, expected) of a small network."""
    generator = np.random.default_rng(3)
    codes = generator.integers(-128, 128, (8, 8, 8) if case != "chain" else (16, 8, 8)).astype(np.int8)
    layers = {
        "1x1": lambda: [random_layer(generator, 8, 8, 1)],
        "3x3": lambda: [random_layer(generator, 8, 8, 3, padding=1, bounds=(-10, 100))],
        "stride": lambda: [random_layer(generator, 8, 24, 3, padding=1, stride=2)],
        "chain": lambda: [random_layer(generator, 16, 24, 3, padding=1), random_layer(generator, 24, 8, 1), random_layer(generator, 8, 16, 3, padding=1, residual=(5, 40000, 17))],
    }[case]()
    return Assembler(config, codes).assemble(layers)


class Host:
    """A driver as the host has it, and the memory."""

    def __init__(self, dut, probability):
        self.dut = dut
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=MEMORY)
        if probability:
            write, read = self.ram.write_if, self.ram.read_if
            for channel in (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel):
                channel.set_pause_generator(iter(lambda: random.random() < probability, None))

    async def write(self, register, value):
        await self.master.write_dword(register, value)

    async def read(self, register):
        return await self.master.read_dword(register)

    async def load(self, memory, registers):
        for address, content in memory.items():
            self.ram.write(address, content)
        for register, value in registers.items():
            await self.write(register, value)

    async def run(self, limit=200_000):
        await self.write(Register.COMMAND, Command.const({"start": 1}).as_bits())
        assert not self.dut.interrupt.value
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if self.dut.interrupt.value:
                return Status.from_bits(await self.read(Register.STATUS))
        status, snapshot = await self.read(Register.STATUS), await self.read(Register.SNAPSHOT)
        raise AssertionError(f"no end: status {status:x}, snapshot {snapshot:b}, retired {[await self.read(Register[f'RETIRED_{u.name}']) for u in Unit]}")


@cocotb.test()
async def networks(dut):
    values = parameters()
    config = get_config(values["config"])
    await reset(dut)
    host = Host(dut, values["pause"])
    assert await host.read(Register.CONFIG) == config.hash
    for case in values["cases"]:
        memory, registers, expected = network(config, case)
        await host.load(memory, registers)
        for _ in range(2):  # a program can be run again
            host.ram.write(0x38010, bytes(8 * 512))
            status = await host.run()
            assert status.done and not status.busy and status.error == ErrorCode.NONE
            assert host.ram.read_if is not None
            got = result(host.ram.read, expected.shape)
            assert np.array_equal(got, expected), f"{case}: {np.count_nonzero(got != expected)} of {got.size} codes differ\n{got[0]}\n{expected[0]}"
        counts = {register.name: await host.read(register) for register in Register if register >= Register.CYCLES and register != Register.SNAPSHOT}
        dut._log.info("%s: %s", case, counts)
        assert counts["ACTIVE"] <= counts["CYCLES"] and counts["WRITE_BEATS"] >= expected.size // 8
        assert sum(counts[f"RETIRED_{unit.name}"] for unit in Unit) == registers[Register.INSTRUCTIONS] - 1


def accelerator(name):
    return to_verilog(Accelerator(get_config(name)))


@pytest.mark.parametrize("pause", [0, 0.4])
def test_networks(pause):
    run_cocotb(accelerator("tiny"), __file__, "networks", {"config": "tiny", "pause": pause, "cases": ["1x1", "3x3", "stride", "chain"]})


@pytest.mark.long
@pytest.mark.parametrize("config", ["ulx3s-25f", "ulx3s-85f"])
def test_networks_on_boards(config):
    run_cocotb(accelerator(config), __file__, "networks", {"config": config, "pause": 0.2, "cases": ["1x1", "3x3", "chain"]}, timeout_seconds=900)
