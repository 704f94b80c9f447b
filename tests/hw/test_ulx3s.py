"""The whole chip at its pins: a host on the serial line, an SDRAM with its delays on the memory's pins, in between the netlist with models of the FPGA's primitives."""

import logging
from pathlib import Path

import cocotb
import numpy as np
import pytest
from bench import parameters, run_cocotb
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import RisingEdge, Timer, with_timeout
from cocotb.utils import get_sim_time
from cocotbext.uart import UartSink, UartSource
from networks import random_codes, random_network
from sdram_model import PINS, SdramModel

from celosia.host.compile import compile
from celosia.host.remote import BoardDevice
from celosia.hw.board_control import BoardRegister
from celosia.hw.chip import LED_ERROR
from celosia.hw.config import get_config
from celosia.hw.program import Program
from celosia.hw.ulx3s import PLATFORMS, Ulx3s, memory_timing
from celosia.sim.golden import GoldenDevice, quantize
from celosia.sim.verilate import fast_verilog

FOLDER = Path(__file__).parent
ENGINE_MHZ = 112.5
BAUD = 3_000_000
#: What the chip's data pins take to show a word after its clock, and keep it after the next one, at most and at least.
ACCESS_NS, KEEP_NS = 6.0, 2.5


class UartPipe:
    """The serial line as the host's driver sees it, in the simulation's time; its methods are called in a thread that the simulation waits for."""

    name = "uart"

    def __init__(self, dut):
        self._source, self._sink = UartSource(dut.rx, baud=BAUD), UartSink(dut.tx, baud=BAUD)

    def now(self):
        return get_sim_time("ns") * 1e-9

    def write(self, data):
        resume(self._source.write)(data)

    @resume
    async def _receive(self, seconds):
        if self._sink.empty():
            try:
                await with_timeout(self._sink.wait(), round(seconds * 1e9), "ns")
            except TimeoutError:
                return b""
        return bytes(self._sink.read_nowait())

    def read(self, seconds):
        return self._receive(seconds)

    def close(self):
        pass


async def begin(dut, delay_ns=3.0):
    """Clocks, power, and the memory, whose answers come later by what the pads take, out and in; returns its model."""
    for name in ("cocotb.top", "cocotb.top.rx", "cocotb.top.tx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    timing = memory_timing(get_config(parameters()["config"]))
    period = round(1000 / timing.clock_mhz, 3)
    dut.rx.value, dut.locked.value, dut.dq_i_valid.value = 1, 0, 0
    cocotb.start_soon(Clock(dut.engine_clk, 2 * round(500 / ENGINE_MHZ, 3), unit="ns").start())
    cocotb.start_soon(Clock(dut.line_clk, 20, unit="ns").start())
    cocotb.start_soon(Clock(dut.memory_clk, period, unit="ns").start())
    await Timer(round(period * timing.clock_phase / 360, 3), "ns")
    cocotb.start_soon(Clock(dut.pin_clk, period, unit="ns").start())
    await Timer(200, "ns")
    model = SdramModel(timing)
    cocotb.start_soon(remember(dut, model, period, delay_ns))
    dut.locked.value = 1
    await Timer(2, "us")  # the line has to be quiet before its first byte
    return model


async def remember(dut, model, period, delay_ns):
    """The memory at the pins. Before a word is there, and after it has gone, they show another one."""
    fields, first = [], 0
    for name, width in PINS.items():
        fields.append((name, first, (1 << width) - 1))
        first += width

    async def show(word):
        await Timer(delay_ns + ACCESS_NS, "ns")
        dut.dq_i.value, dut.dq_i_valid.value = word, 1
        number[0] += 1
        mine = number[0]
        await Timer(round(period - ACCESS_NS + KEEP_NS, 3), "ns")
        dut.dq_i.value = ~word & 0xFFFF
        await Timer(period - KEEP_NS, "ns")
        if number[0] == mine:
            dut.dq_i_valid.value = 0

    number, edge, edges = [0], RisingEdge(dut.memory_edge), 0
    while True:
        await edge
        now = dut.edges.value.to_unsigned()
        model.idle(now - edges)
        edges = now + 1
        value = dut.outputs.value.to_unsigned()
        word = model.clock(**{name: value >> first & mask for name, first, mask in fields})
        if word is not None:
            cocotb.start_soon(show(word))


@cocotb.test()
async def runs(dut):
    """A program is loaded over the line and run twice; what comes back is golden's."""
    model = await begin(dut, parameters()["delay_ns"])
    program = Program.load(parameters()["program"])
    codes = [np.load(parameters()["codes"])]
    expected = GoldenDevice(program.config).run_program(program, codes)
    pipe = UartPipe(dut)

    def drive():
        with BoardDevice(program.config, pipe) as device:
            results = [device.run_program(program, codes) for _ in range(2)]
            return results, [device.link.read_register(register) for register in (BoardRegister.ENGINE_KHZ, BoardRegister.DAMAGED)], device.link.counters

    results, (khz, damaged), counters = await bridge(drive)()
    for result in results:
        assert all(np.array_equal(got, wanted) for got, wanted in zip(result.outputs, expected.outputs, strict=True))
    assert results[0].cycles > 0 and abs(khz - 1000 * ENGINE_MHZ) < 20
    assert damaged == counters.damaged == counters.resent == 0
    assert model.initialised and not dut.violations.value and not dut.leds.value[LED_ERROR]


@pytest.fixture(scope="module")
def board():
    """Verilog of the chip of a config with its models."""

    def make(config):
        text = PLATFORMS["ulx3s-85f"]().prepare(Ulx3s(get_config(config), ENGINE_MHZ), "board", emit_src=False).files["board.il"]
        return (FOLDER / "ulx3s.v").read_text() + (FOLDER / "ecp5.v").read_text() + fast_verilog(text if isinstance(text, str) else text.decode())

    return make


def run(board, folder, program, codes, delay_ns, **options):
    program.save(folder / "network.celp")
    np.save(folder / "codes.npy", codes)
    files = {"program": str(folder / "network.celp"), "codes": str(folder / "codes.npy")}
    run_cocotb(board(program.config.name), __file__, "runs", {"config": program.config.name, "delay_ns": delay_ns} | files, **options)


@pytest.mark.parametrize("delay_ns", [2.0, 4.5])
def test_network_through_the_pins(board, tmp_path, delay_ns):
    network = random_network(3, most_layers=2, largest=6)
    run(board, tmp_path, compile(network, "tiny", 1), random_codes(network, 1, 1), delay_ns)


@pytest.mark.long
def test_trained_network_through_the_pins(board, tmp_path):
    """A third of a second of the line's time."""
    from celosia.host.source import load_program  # not in the simulator as well
    from celosia.models import zoo

    program, [image, *_] = load_program("fashion-vgg", "tiny", 1), zoo.get("fashion-vgg").sample_images()[0]
    codes = quantize(image[None], program.network.tensors[program.network.inputs[0]])
    run(board, tmp_path, program, codes, 3.0, timeout_seconds=4 * 3600)
