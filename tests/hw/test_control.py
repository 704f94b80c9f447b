import cocotb
import pytest
from bench import reset, run_cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from celosia.hw.config import get_config
from celosia.hw.control import Control
from celosia.hw.isa import Unit
from celosia.hw.registers import MAGIC, VERSION, WRITABLE, Command, ErrorCode, Register, Snapshot, Status

CONFIG = get_config("tiny")
START, RESET = (Command.const({name: 1}).as_bits() for name in ("start", "reset"))


class Host:
    """Register accesses, and how they are answered."""

    def __init__(self, dut):
        self.dut = dut
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus"), dut.clk, dut.rst)

    async def write(self, register, value, expected=AxiResp.OKAY):
        assert (await self.master.write(int(register), value.to_bytes(4, "little"))).resp == expected

    async def read(self, register, expected=AxiResp.OKAY):
        answer = await self.master.read(int(register), 4)
        assert answer.resp == expected
        return int.from_bytes(answer.data, "little")

    async def status(self):
        return Status.from_bits(await self.read(Register.STATUS))

    async def start(self):
        """Start; returns when the engine was started."""
        await self.write(Register.COMMAND, START)
        for _ in range(30):
            if self.dut.engine_start.value:
                return
            await RisingEdge(self.dut.clk)
        raise AssertionError("the engine was not started")


async def host(dut):
    for name in ["done", "error", "read_error", "write_error", "retire", "pending", "snapshot", "active", "read_beat", "write_beat", "saturated"]:
        getattr(dut, f"state_{name}").value = 0
    dut.state_idle.value = 1
    await reset(dut)
    return Host(dut)


@cocotb.test()
async def registers(dut):
    control = await host(dut)
    identity = {Register.MAGIC: MAGIC, Register.VERSION: VERSION, Register.CONFIG: CONFIG.hash, Register.BUILD: 0xB111D}
    for register, value in identity.items():
        assert await control.read(register) == value
        await control.write(register, 1, AxiResp.SLVERR)
    for register in WRITABLE:
        await control.write(register, 0x80000001 + register)
    for register in WRITABLE:
        assert await control.read(register) == 0x80000001 + register
    for address in (Register.COMMAND, 0x02C, 0x084, 0xFFC):
        await control.read(address, AxiResp.SLVERR)
    for address in (Register.STATUS, Register.CYCLES, 0x02C, 0xFFC):
        await control.write(address, 1, AxiResp.SLVERR)
    answer = await control.master.write(int(Register.PROGRAM), b"\x00")
    assert answer.resp == AxiResp.SLVERR and await control.read(Register.PROGRAM) == 0x80000001 + Register.PROGRAM, "a part of a register was written"
    status = await control.status()
    assert not status.busy and not status.done and dut.engine_halt.value and not dut.interrupt.value


@cocotb.test()
async def a_program_runs(dut):
    control = await host(dut)
    await control.write(Register.PROGRAM, 0x1000)
    await control.write(Register.INSTRUCTIONS, 77)
    for index, name in enumerate(("WEIGHTS", "MAPS", "INPUT", "OUTPUT")):
        await control.write(Register[f"BASE_{name}"], (index + 1) << 12)
    resets = []

    async def watch():
        while True:
            await RisingEdge(dut.clk)
            resets.append((int(dut.engine_reset.value), int(dut.engine_start.value)))

    cocotb.start_soon(watch())
    await control.start()
    await ClockCycles(dut.clk, 2)
    assert (1, 1) not in resets and resets.count((0, 1)) == 1 and resets.count((1, 0)) == 4
    assert resets[::-1].index((1, 0)) - resets[::-1].index((0, 1)) >= 4, "the reset's copies may still be active at the start"
    assert dut.engine_program.value == 0x1000 and dut.engine_length.value == 77 and dut.engine_bases.value == 0x4000_00003000_00002000_00001000
    assert not dut.engine_halt.value and (await control.status()).busy
    for register in WRITABLE:
        await control.write(register, 0, AxiResp.SLVERR)
    await control.write(Register.COMMAND, START, AxiResp.SLVERR)

    before = await control.read(Register.CYCLES)
    waits = {Register.ACTIVE: None, Register.STALL_WEIGHTS: Unit.WEIGHT, Register.STALL_MAPS: Unit.MAP, Register.STALL_DRAIN: Unit.DRAIN}
    earlier = {register: await control.read(register) for register in (*waits, Register.STALL_INSTRUCTION)}
    dut.state_pending.value = 1 << Unit.COMPUTE
    for cycles, unit in enumerate(waits.values(), 10):
        dut.state_active.value = unit is None
        dut.state_snapshot.value = 0 if unit is None else Snapshot.const({"waiting": [0, 0, 1 << unit, 0, 0]}).as_bits()
        dut.state_saturated.value, dut.state_read_beat.value, dut.state_write_beat.value = 4, 1, int(unit == Unit.MAP)
        await ClockCycles(dut.clk, cycles)
    dut.state_active.value = dut.state_saturated.value = dut.state_read_beat.value = dut.state_write_beat.value = 0
    dut.state_snapshot.value = dut.state_pending.value = 0
    await ClockCycles(dut.clk, 100)
    for cycles, register in enumerate(waits, 10):
        assert await control.read(register) - earlier[register] == cycles, register.name
    assert await control.read(Register.STALL_INSTRUCTION) - earlier[Register.STALL_INSTRUCTION] >= 100
    assert await control.read(Register.SATURATED) == 4 * 46 and await control.read(Register.READ_BEATS) == 46 and await control.read(Register.WRITE_BEATS) == 12
    dut.state_retired_3.value = 12345
    dut.state_done.value = 1
    await ClockCycles(dut.clk, 3)
    status = await control.status()
    assert status.done and not status.busy and status.error == ErrorCode.NONE and dut.interrupt.value and dut.engine_halt.value
    assert await control.read(Register.RETIRED_DRAIN) == 12345
    cycles = await control.read(Register.CYCLES)
    assert cycles > before + 146 and cycles == await control.read(Register.CYCLES)
    dut.state_done.value = 0
    await control.start()
    await RisingEdge(dut.clk)
    assert not dut.interrupt.value and await control.read(Register.CYCLES) < 20 and await control.read(Register.SATURATED) == 0


@cocotb.test()
@cocotb.parametrize(command=["start", "reset"])
async def the_bus_settles_first(dut, command):
    control = await host(dut)
    await control.start()
    await ClockCycles(dut.clk, 50)
    dut.state_idle.value = 0
    if command == "start":
        dut.state_read_error.value = 1
        await ClockCycles(dut.clk, 3)
        assert (await control.status()).error == ErrorCode.READ
    await control.write(Register.COMMAND, START if command == "start" else RESET)
    for _ in range(50):
        await RisingEdge(dut.clk)
        assert dut.engine_halt.value and not dut.engine_reset.value and not dut.engine_start.value
    status = await control.status()
    assert status.busy and status.error == ErrorCode.NONE
    dut.state_idle.value = 1
    dut.state_read_error.value = 0
    seen = []
    for _ in range(20):
        await RisingEdge(dut.clk)
        seen.append((int(dut.engine_reset.value), int(dut.engine_start.value)))
    assert seen.count((1, 0)) == 4 and seen.count((0, 1)) == (command == "start")
    assert (await control.status()).busy == (command == "start")


@cocotb.test()
@cocotb.parametrize(
    (("signal", "code"), [("error", ErrorCode.OPCODE), ("error", ErrorCode.TOKENS), ("read_error", ErrorCode.READ), ("write_error", ErrorCode.WRITE)]))
async def errors_stop(dut, signal, code):
    control = await host(dut)
    await control.start()
    dut.state_index.value = 99
    getattr(dut, f"state_{signal}").value = int(code) if signal == "error" else 1
    dut.state_done.value = 1
    await ClockCycles(dut.clk, 3)
    status = await control.status()
    assert status.error == code and not status.done and not status.busy and dut.interrupt.value and dut.engine_halt.value
    assert await control.read(Register.ERROR_INDEX) == 99


STUCK = {
    "tokens": ({"waiting": [0, 0, 1 << Unit.MAP, 1 << Unit.COMPUTE, 0]}, Unit.COMPUTE, 1 << Unit.MAP),
    "cycle": ({"waiting": [1 << Unit.COMPUTE, 0, 1 << Unit.DRAIN, 1 << Unit.COMPUTE | 1 << Unit.WEIGHT, 0], "busy": 1 << Unit.WEIGHT}, Unit.WEIGHT, 1 << Unit.COMPUTE),
    "hanger-on": ({"waiting": [1 << Unit.COMPUTE, 0, 1 << Unit.DRAIN, 1 << Unit.COMPUTE, 0]}, Unit.COMPUTE, 1 << Unit.DRAIN),
    "bus": ({"waiting": [0, 0, 1 << Unit.MAP, 0, 0], "busy": 1 << Unit.MAP | 1 << Unit.COMPUTE}, Unit.MAP, 0),
    "fetch": ({}, 7, 0),
}


@cocotb.test()
@cocotb.parametrize(case=list(STUCK))
async def watchdog_names_the_unit(dut, case):
    control = await host(dut)
    await control.write(Register.WATCHDOG, 200)
    snapshot, unit, waiting = STUCK[case]
    dut.state_snapshot.value = Snapshot.const(snapshot).as_bits()
    await control.start()
    for retire in range(5):  # something retires in time
        await ClockCycles(dut.clk, 190)
        dut.state_retire.value = 1 << retire
        await RisingEdge(dut.clk)
        dut.state_retire.value = 0
        assert not dut.interrupt.value
    await ClockCycles(dut.clk, 210)
    status = await control.status()
    assert status.error == ErrorCode.WATCHDOG and status.unit == unit and status.waiting == waiting
    assert await control.read(Register.SNAPSHOT) == Snapshot.const(snapshot).as_bits()


@pytest.mark.parametrize("case", ["registers", "a_program_runs", "the_bus_settles_first", "errors_stop", "watchdog_names_the_unit"])
def test_control(case):
    run_cocotb(Control(CONFIG, build=0xB111D), __file__, case, testcase=f"{case}(/.*)?")


def test_build_is_checked():
    with pytest.raises(ValueError, match="build must be in"):
        Control(CONFIG, build=1 << 32)
