"""Random layers and networks, on golden, the instruction-level model and the RTL, until they differ or there have been enough.

    OPENBLAS_NUM_THREADS=1 .venv/bin/python tests/soak.py --layers 20000 --networks 500 --seed 1 -o results/soak.json

Configurations take turns, a round of layers and networks each; the counts are of different cases over all of them. The report is written after every round.
A case that differs is made as small as it gets, stands in the report as the code that makes it again (`tests/cases.py`), and ends the search.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count
from pathlib import Path

from exercise import CONFIGS, DEVICES, Exerciser, search
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from strategies import CORNER_CASES, layer_cases, network_cases

from celosia.hw.atomic import write_atomically
from celosia.hw.config import get_config

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
SOURCES = ["celosia", "hw", "sim", "host", "tests", "pyproject.toml"]
#: Different cases a round brings at most.
ROUND = {"layers": 250, "networks": 10}
STRATEGIES = {"layers": layer_cases(), "networks": network_cases()}


def soak(exercisers, wanted, seed, report, save):
    """Search until there are as many different cases of each kind as `wanted`; `save(report)` after each round. Raises what a case that differs raises."""
    seen = {(kind, config): set() for kind in STRATEGIES for config in exercisers}

    def done(kind):
        return sum(len(cases) for (each, _), cases in seen.items() if each == kind)

    for number in count():
        config = list(exercisers)[number % len(exercisers)]
        exerciser = exercisers[config]
        if number < len(exercisers):
            for case in CORNER_CASES:
                exerciser.run(case)
        for index, (kind, strategy) in enumerate(STRATEGIES.items()):
            if missing := max(wanted[kind] - done(kind), 0):
                known = seen[kind, config]
                known |= search(exerciser, strategy, min(missing, ROUND[kind]), (seed << 32) + (number << 1) + index, known)
        report["layers"], report["networks"] = ({config: len(seen[kind, config]) for config in exercisers} for kind in STRATEGIES)
        report["coverage"] = {config: each.account.to_json() for config, each in exercisers.items()}
        save(report)
        if all(done(kind) >= wanted[kind] for kind in STRATEGIES):
            return


def provenance():
    """Command, commit, versions."""
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    return {"command": shlex.join(["python", "tests/soak.py", *sys.argv[1:]]), "commit": git("rev-parse", "HEAD"),
            "modified": git("diff", "HEAD", "--name-only", "--", *SOURCES).split(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in ("amaranth", "hypothesis", "numpy", "pyosys")},
            "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20_000, help="different layers to run (20000)")
    parser.add_argument("--networks", type=int, default=500, help="different networks to run (500)")
    parser.add_argument("--config", action="append", help=f"configuration; may be given several times ({', '.join(CONFIGS)})")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn follows from it (1)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file for the report, JSON")
    options = parser.parse_args()
    report = provenance() | {"seed": options.seed, "devices": DEVICES, "differences": []}
    wanted = {"layers": options.layers, "networks": options.networks}
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)))
        tasks = {kind: bar.add_task(kind, total=total) for kind, total in wanted.items()}
        exercisers = {config: stack.enter_context(Exerciser(CONFIGS.get(config) or get_config(config))) for config in options.config or CONFIGS}

        def save(report):
            write_atomically(options.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            for kind, task in tasks.items():
                bar.update(task, completed=sum(report[kind].values()))

        try:
            soak(exercisers, wanted, options.seed, report, save)
        except Exception as error:
            save({"layers": {}, "networks": {}} | report | {"differences": [{"problem": str(error), "case": getattr(error, "__notes__", [])}]})
            raise
    missing = {config: exerciser.account.missing() for config, exerciser in exercisers.items()}
    for config, names in missing.items():
        print(f"{config}: {sum(report[kind][config] for kind in STRATEGIES):,} cases without a difference; never run: {', '.join(names) or 'nothing'}")
    return any(missing.values())


if __name__ == "__main__":
    sys.exit(main())
