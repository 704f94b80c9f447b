"""Proofs about hardware, for all inputs and all time.

A harness is a component whose inputs are free and whose outputs are faults: signals that must never be 1. It holds the block in question and whatever watches it;
what its inputs promise it says with `Assume`. It begins with arbitrary registers and memories and a cycle of reset.

Yosys turns it into an and-inverter graph, for which the ABC that comes with it finds an inductive invariant (property directed reachability; Eén, Mishchenko,
Brayton, FMCAD 2011) or a run that shows a fault.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pyosys
from amaranth.hdl import Assert, Assume, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from celosia.hw.build import to_rtlil

__all__ = ["Refuted", "assume", "mutated", "prove"]

_PASSES = (
    "setattr -unset init", "delete t:$meminit*", "flatten", "chformal -lower", "proc", "opt", "memory -nomap", "memory_map", "fminit -seq rst 1,0",
    "formalff -clk2ff", "opt -full", "setundef -anyseq", "techmap", "opt -fast", "dffunmap", "simplemap", "aigmap", "opt_clean",
    "write_aiger -zinit -ywmap design.json -I -L design.aig",
)
_YOSYS = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
for command in ["read_rtlil design.il", *sys.argv[1:]]:
    ys.run_pass(command, design)
"""
_ABC = Path(pyosys.__file__).with_name("yosys-abc")


class Refuted(AssertionError):
    """A fault that can show."""


def prove(harness: wiring.Component, *, engine: str = "pdr", seconds: int = 300) -> None:
    """Raises :exc:`Refuted`, naming the fault and its cycle, if an output can become 1; RuntimeError if the tools fail or take more than
    `seconds` of processor time each.

    engine: commands of ABC that decide; "bmc3 -F n" looks at the first n cycles only, all there are to what a pipeline without feedback does with one operand.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.il").write_text(to_rtlil(_Never(harness)))
        _run([sys.executable, "-c", _YOSYS, *_PASSES], folder, seconds)
        log = _run([_ABC, "-c", f"read_aiger design.aig; fold; strash; {engine}; print_status"], folder, seconds)
        claims = json.loads((Path(folder) / "design.json").read_text())["asserts"]
    if found := re.search(r"Output (\d+) .*asserted in frame (\d+)", log):
        fault = re.search(r"\\(\w+)", claims[int(found[1])][-1])[1]
        raise Refuted(f"{fault} shows in cycle {found[2]}")
    if "Property proved" not in log and "No output asserted" not in log:
        raise RuntimeError(f"{engine} came to no end:\n{log}")


def assume(condition):
    """What a harness's inputs promise, in the cycle of reset excepted."""
    return Assume(ResetSignal() | condition)


class _Never(wiring.Component):
    """Asserts that no output of a harness is 1, each in a module named after it."""

    def __init__(self, harness):
        self._harness = harness
        super().__init__({name: member for name, member in harness.signature.members.items() if member.flow == In})

    def elaborate(self, _platform):
        m = Module()
        m.submodules.harness = harness = self._harness
        for name, member in harness.signature.members.items():
            if member.flow == In:
                m.d.comb += getattr(harness, name).eq(getattr(self, name))
            else:
                m.submodules[name] = claim = Module()
                claim.d.comb += Assert(ResetSignal() | ~getattr(harness, name))
        return m


def mutated(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """A copy of a module with a fault: `old`, which stands once in its text, replaced by `new`."""
    source = getattr(module, "__mutated__", None) or Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} × {old!r}"
    copy = types.ModuleType(module.__name__)
    copy.__package__, copy.__file__, copy.__mutated__ = module.__package__, module.__file__, source.replace(old, new)
    exec(compile(copy.__mutated__, module.__file__, "exec"), vars(copy))
    return copy


def _run(command, folder, seconds):
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, preexec_fn=limit)
    if done.returncode < 0:
        raise RuntimeError(f"{Path(command[0]).name} came to no end within {seconds} s of processor time")
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stdout[-2000:]}")
    return done.stdout
