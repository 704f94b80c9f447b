"""The iCEBreaker's chip, driven through its serial line by the host's own driver: all of it but clock and pins, and the netlist."""

import contextlib
from pathlib import Path

import cocotb
import numpy as np
import pytest
from bench import reset, run_cocotb
from cases import Case, Input, LayerCase
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, Event, FallingEdge, SimTimeoutError, with_timeout
from cocotb.utils import get_sim_time
from gates import gates

from celosia.host.compile import compile
from celosia.host.remote import BoardDevice
from celosia.hw.config import get_config
from celosia.hw.icebreaker import InOrderSystem, synthesize
from celosia.hw.network import Pool
from celosia.sim.cycle import CycleDevice

CONFIG = get_config("up5k")
BIT = 8  # cycles, as 3 Mbaud at 24 MHz


class Line:
    """The host's end of the serial line, as the pipe of its link."""

    name = "serial:simulated"

    def __init__(self, dut):
        self._dut, self._received, self._come = dut, bytearray(), Event()
        cocotb.start_soon(self._listen())

    def now(self):
        return get_sim_time("sec")

    def write(self, data):
        resume(self._send)(data)

    def read(self, seconds):
        return resume(self._wait)(seconds)

    def close(self):
        pass

    async def _send(self, data):
        for byte in data:
            for level in (0, *(byte >> bit & 1 for bit in range(8)), 1):
                self._dut.rx.value = level
                await ClockCycles(self._dut.clk, BIT)

    async def _listen(self):
        dut = self._dut
        while True:
            await FallingEdge(dut.tx)
            await ClockCycles(dut.clk, BIT // 2)
            byte = 0
            for bit in range(8):
                await ClockCycles(dut.clk, BIT)
                byte |= int(dut.tx.value) << bit
            await ClockCycles(dut.clk, BIT)
            assert dut.tx.value == 1, "a stop bit"
            self._received.append(byte)
            self._come.set()

    async def _wait(self, seconds):
        with contextlib.suppress(SimTimeoutError):
            await with_timeout(self._come.wait(), max(round(seconds * 1e9), 1), "ns")
        self._come.clear()
        data = bytes(self._received)
        self._received.clear()
        return data


@cocotb.test()
async def a_host_runs_a_program(dut):
    """Twice: golden's bytes and the cycles of `cycle`."""
    dut.rx.value = 1
    await reset(dut)
    await ClockCycles(dut.clk, BIT)  # the netlist's own reset
    line = Line(dut)
    case = Case(inputs=(Input(shape=(3, 6, 6)),), layers=(LayerCase(source="x0", outputs=4, kernel=(3, 3), pool=Pool(kernel=(2, 2), stride=(2, 2))),))
    program, codes = compile(case.network(), CONFIG, 1), case.input_codes()

    @bridge
    def drive():
        with BoardDevice(CONFIG, line) as device:
            return [device.run_program(program, codes) for _ in range(2)]

    expected = CycleDevice(CONFIG).run_program(program, codes)
    for found in await drive():
        assert all(np.array_equal(one, other) for one, other in zip(found.outputs, expected.outputs, strict=True))
        assert (found.cycles, found.counters) == (expected.cycles, expected.counters) and found.layers == []


def test_driven_through_its_line():
    run_cocotb(InOrderSystem(CONFIG), __file__, "a_host_runs_a_program")


@pytest.mark.long
def test_netlist_driven_through_its_line(tmp_path):
    """What is placed and routed, pads and PLL included."""
    synthesize(CONFIG, tmp_path)
    models = [(Path(__file__).parent / name).read_text() for name in ("icebreaker.v", "ice40.v")]
    netlist = gates("", f"read_json {tmp_path / 'top.json'}", "rename top board")
    run_cocotb("\n".join([*models, netlist]), __file__, "a_host_runs_a_program", timeout_seconds=3600)
