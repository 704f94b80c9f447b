"""The registers of a board, and the way through to the engine's."""

import cocotb
from bench import reset, run_cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiLiteRam

from celosia.hw.board_control import BoardControl, BoardRegister

STEPS = 48


async def begin(dut, period_ns=9):
    dut.damaged.value = 0
    cocotb.start_soon(Clock(dut.line_clk, 20, unit="ns").start())
    dut.line_rst.value = 1
    await reset(dut, period_ns=period_ns)
    dut.line_rst.value = 0
    engine = AxiLiteRam(AxiLiteBus.from_prefix(dut, "engine"), dut.clk, dut.rst, size=2048)
    return AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus"), dut.clk, dut.rst), engine


async def value(master, register):
    return int.from_bytes((await master.read(register, 4)).data, "little", signed=True)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def clock_and_frames(dut):
    master, _ = await begin(dut)
    assert await value(master, BoardRegister.PHASE_STEPS) == STEPS
    assert await value(master, BoardRegister.DAMAGED) == 0
    dut.damaged.value = 1
    await ClockCycles(dut.clk, 3)
    dut.damaged.value = 0
    assert await value(master, BoardRegister.DAMAGED) == 3
    await ClockCycles(dut.line_clk, 110_000)
    assert abs(await value(master, BoardRegister.ENGINE_KHZ) - 1e6 / 9) <= 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def phase(dut):
    """As many falling edges as the phase moves, each with its direction before and after it."""
    master, _ = await begin(dut)
    position = 0

    async def follow():
        nonlocal position
        before, since = (0, 0), 16
        while True:
            await RisingEdge(dut.clk)
            step, advance = int(dut.step.value), int(dut.advance.value)
            since += 1
            if advance != before[1] or step != before[0]:
                assert since >= 15, "a pin changes too soon after another"
                since = 0
            if before[0] and not step:
                position += -1 if advance else 1
            before = step, advance

    cocotb.start_soon(follow())
    for target in (5, 3, -4, 0):
        await master.write(BoardRegister.PHASE, target.to_bytes(4, "little", signed=True))
        await ClockCycles(dut.clk, 64 * 10)
        assert position == target == await value(master, BoardRegister.PHASE)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def addresses(dut):
    """Those below are the engine's; of the others what is no register, or cannot be written, is refused."""
    master, engine = await begin(dut)
    await master.write(0x7FC, b"abcd")
    assert engine.read(0x7FC, 4) == b"abcd" == (await master.read(0x7FC, 4)).data
    for address in range(0x800, 0x900, 4):
        known = address in list(BoardRegister)
        assert int((await master.read(address, 4)).resp) == (0 if known else 2), hex(address)
        assert int((await master.write(address, bytes(4))).resp) == (0 if address == BoardRegister.PHASE else 2), hex(address)
    assert engine.read(0, 4) == bytes(4) and (await master.read(0x7FC, 4)).data == b"abcd"


def test_board_control():
    run_cocotb(BoardControl(50e6, STEPS), __file__)
