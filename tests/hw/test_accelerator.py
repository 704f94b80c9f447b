import random

import cocotb
import numpy as np
import pytest
from assembler import BASES, MEMORY, Assembler, random_layer, result
from bench import parameters, reset, run_cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from celosia.hw.accelerator import Accelerator
from celosia.hw.build import to_verilog
from celosia.hw.config import get_config
from celosia.hw.isa import Base, Opcode, Unit, decode, encode
from celosia.hw.registers import Command, ErrorCode, Register, Status


def network(config, case):
    """(memory, registers, expected) of a small network."""
    generator = np.random.default_rng(3)
    codes = generator.integers(-128, 128, (8, 8, 8) if case != "chain" else (16, 8, 8)).astype(np.int8)
    layers = {
        "1x1": lambda: [random_layer(generator, 8, 8, 1)],
        "3x3": lambda: [random_layer(generator, 8, 8, 3, padding=1, bounds=(-10, 100))],
        "stride": lambda: [random_layer(generator, 8, 24, 3, padding=1, stride=2)],
        "chain": lambda: [random_layer(generator, 16, 24, 3, padding=1), random_layer(generator, 24, 8, 1),
                          random_layer(generator, 8, 16, 3, padding=1, residual=(5, 40000, 17))],
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

    def words(self, registers):
        raw = self.ram.read(registers[Register.PROGRAM], 16 * registers[Register.INSTRUCTIONS])
        return [int.from_bytes(raw[start: start + 16], "little") for start in range(0, len(raw), 16)]

    def patch(self, registers, index, word):
        self.ram.write(registers[Register.PROGRAM] + 16 * index, word.to_bytes(16, "little"))

    async def run(self, limit=30_000):
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
            host.ram.write(BASES[Base.OUTPUT], bytes(8 * 512))
            status = await host.run()
            assert status.done and not status.busy and status.error == ErrorCode.NONE
            got = result(host.ram.read, expected.shape)
            assert np.array_equal(got, expected), f"{case}: {np.count_nonzero(got != expected)} of {got.size} codes differ\n{got[0]}\n{expected[0]}"
        counts = {register.name: await host.read(register) for register in Register if register >= Register.CYCLES and register != Register.SNAPSHOT}
        dut._log.info("%s: %s", case, counts)
        assert counts["ACTIVE"] <= counts["CYCLES"] and counts["WRITE_BEATS"] >= expected.size // 8
        assert sum(counts[f"RETIRED_{unit.name}"] for unit in Unit) == registers[Register.INSTRUCTIONS] - 1


@cocotb.test()
async def errors_and_resets(dut):
    """After whatever went wrong, a reset or the next start makes a good program run."""
    config = get_config("tiny")
    await reset(dut)
    host = Host(dut, 0.3)
    memory, registers, expected = network(config, "chain")
    await host.load(memory, registers)
    await host.write(Register.WATCHDOG, 3000)

    async def runs_well():
        host.ram.write(BASES[Base.OUTPUT], bytes(8 * 512))
        status = await host.run()
        assert status.done and status.error == ErrorCode.NONE and np.array_equal(result(host.ram.read, expected.shape), expected)

    await runs_well()
    duration = await host.read(Register.CYCLES)

    # A reset at any time, with bursts under way.
    for seed in range(4):
        await host.write(Register.COMMAND, Command.const({"start": 1}).as_bits())
        await ClockCycles(dut.clk, random.Random(seed).randrange(20, duration))
        await host.write(Register.COMMAND, Command.const({"reset": 1}).as_bits())
        for _ in range(2000):
            status = Status.from_bits(await host.read(Register.STATUS))
            if not status.busy:
                break
        assert not status.busy and not status.done and status.error == ErrorCode.NONE and await host.read(Register.RETIRED_COMPUTE) == 0
        if seed % 2:
            await runs_well()

    # Bus errors: a fetch, a load, a store.
    good_read, good_write = host.ram.read_if._read, host.ram.write_if._write

    def failing(access, region):
        async def fail(address, *arguments):
            if BASES[region] <= address < BASES[region] + 0x800:
                raise ValueError("no memory here")
            return await access(address, *arguments)
        return fail

    for region, code in ((Base.WEIGHTS, ErrorCode.READ), (Base.INPUT, ErrorCode.READ), (Base.MAPS, ErrorCode.WRITE)):
        if code == ErrorCode.READ:
            host.ram.read_if._read = failing(good_read, region)
        else:
            host.ram.write_if._write = failing(good_write, region)
        status = await host.run()
        assert status.error == code and not status.done and not status.busy, region.name
        host.ram.read_if._read, host.ram.write_if._write = good_read, good_write
        await runs_well()

    # A token that never comes; an unknown instruction.
    stuck = next(index for index, word in enumerate(host.words(registers)) if decode(word)[0] == Opcode.COMPUTE)
    host.patch(registers, stuck, encode(Opcode.COMPUTE, wait=[Unit.MAP, Unit.DRAIN]))
    status = await host.run()
    assert status.error == ErrorCode.WATCHDOG and (status.unit, status.waiting) == (Unit.COMPUTE, 1 << Unit.DRAIN), (status.unit, status.waiting)
    host.patch(registers, stuck, 13)
    status = await host.run()
    assert status.error == ErrorCode.OPCODE and await host.read(Register.ERROR_INDEX) == stuck

    # Memory that does not answer: the watchdog says so, and the reset waits for the answers.
    await host.load(memory, registers)
    await runs_well()
    host.ram.read_if.r_channel.set_pause_generator(None)
    host.ram.read_if.r_channel.pause = True
    status = await host.run()
    assert status.error == ErrorCode.WATCHDOG and status.unit == 7, "the fetch is stuck"
    await host.write(Register.COMMAND, Command.const({"reset": 1}).as_bits())
    await ClockCycles(dut.clk, 500)
    assert Status.from_bits(await host.read(Register.STATUS)).busy
    host.ram.read_if.r_channel.pause = False
    await ClockCycles(dut.clk, 500)
    assert not Status.from_bits(await host.read(Register.STATUS)).busy
    await runs_well()


def accelerator(name):
    return to_verilog(Accelerator(get_config(name)))


@pytest.mark.parametrize("pause", [0, 0.4])
def test_networks(pause):
    run_cocotb(accelerator("tiny"), __file__, "networks", {"config": "tiny", "pause": pause, "cases": ["1x1", "3x3", "stride", "chain"]})


def test_errors_and_resets():
    run_cocotb(accelerator("tiny"), __file__, "errors_and_resets")


@pytest.mark.long
@pytest.mark.parametrize("config", ["ulx3s-25f", "ulx3s-85f"])
def test_networks_on_boards(config):
    run_cocotb(accelerator(config), __file__, "networks", {"config": config, "pause": 0.2, "cases": ["1x1", "3x3", "chain"]}, timeout_seconds=900)
