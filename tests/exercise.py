"""Run cases on every device, compare them with golden, and keep account of what has been exercised: opcodes, tokens, corners."""

from collections import Counter
from dataclasses import replace
from unittest.mock import patch
from zlib import crc32

import hypothesis
import numpy as np
from cases import Case
from corners import CORNERS, View
from hypothesis import HealthCheck, Phase
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy
from on_machine import run_on_machine

from celosia.host.compile import compile, plan_network
from celosia.host.errors import CompileError
from celosia.host.tile import Plan
from celosia.hw import isa
from celosia.hw.config import AcceleratorConfig, get_config
from celosia.hw.isa import EDGES, Opcode, Unit
from celosia.hw.program import Program
from celosia.sim.cycle import CycleDevice
from celosia.sim.device import RunResult
from celosia.sim.golden import GoldenDevice
from celosia.sim.rtl import RtlDevice

__all__ = ["CONFIGS", "DEVICES", "Account", "Exerciser", "MachineDevice", "search"]

#: What computes each case.
DEVICES = ("golden", "machine", "cycle", "rtl")
#: For which cases are compiled: the boards' shapes as small as they come, and four lanes, which the large ones drain.
CONFIGS = {config.name: config for config in (get_config("tiny"), get_config("ulx3s-25f"), replace(get_config("ulx3s-25f"), name="four-lanes", drain_lanes=4))}


class MachineDevice:
    """The instruction-level model as a device: over junk, and in an order of those that the tokens allow, that follow from the program."""

    name = "machine"

    def __init__(self, config: AcceleratorConfig):
        self.config = config

    def run_program(self, program: Program, inputs: list[np.ndarray]) -> RunResult:
        """Run a program on int8 codes (N, C, H, W), one array per input."""
        return RunResult(outputs=run_on_machine(program, inputs, crc32(program.image)))

    def close(self) -> None:
        """Nothing to release."""


# ---- account -------------------------------------------------------------------------------------------------------------------


class Account:
    """How often what has been exercised."""

    def __init__(self):
        self.opcodes, self.waits, self.posts, self.corners = Counter(), Counter(), Counter(), Counter()
        #: Cases that the compiler did not take, by its reason without names and numbers; cycles of the RTL.
        self.refused, self.cycles = Counter(), 0

    def add(self, program: Program, plans: list[Plan]) -> None:
        """A program has run."""
        for word in program.words():
            opcode, fields = isa.decode(word)
            unit = isa.unit_of(opcode)
            self.opcodes[opcode] += 1
            self.waits.update((other, unit) for other in Unit if fields["wait"] >> other & 1)
            self.posts.update((unit, other) for other in Unit if fields["post"] >> other & 1)
        for layer, plan in zip(program.network.layers, plans):
            view = View(program, layer, plan)
            self.corners.update(name for name, holds in CORNERS.items() if holds(view))

    def missing(self) -> list[str]:
        """What no program that has run had."""
        return [*(f"opcode {opcode.name}" for opcode in Opcode if not self.opcodes[opcode]),
                *(f"a wait for a token {_arrow(edge)}" for edge in EDGES if not self.waits[edge]),
                *(f"a token left {_arrow(edge)}" for edge in EDGES if not self.posts[edge]),
                *(name for name in CORNERS if not self.corners[name])]

    def to_json(self) -> dict:
        """Counts by name, zeros among them."""
        return {"cycles": self.cycles, "refused": dict(self.refused), "opcodes": {opcode.name: self.opcodes[opcode] for opcode in Opcode},
                "waits": {_arrow(edge): self.waits[edge] for edge in EDGES}, "posts": {_arrow(edge): self.posts[edge] for edge in EDGES},
                "corners": {name: self.corners[name] for name in CORNERS}}


def _arrow(edge):
    return f"{edge[0].name} → {edge[1].name}"


# ---- running -------------------------------------------------------------------------------------------------------------------


class Exerciser:
    """Runs cases on the devices of a configuration; a context manager. Devices stay open from case to case: what a run leaves behind must not matter."""

    def __init__(self, config: AcceleratorConfig):
        self.config, self.account = config, Account()
        self._golden, self.machine, self._cycle, self._rtl = GoldenDevice(config), MachineDevice(config), CycleDevice(config), {}

    def __enter__(self) -> "Exerciser":
        return self

    def __exit__(self, *_):
        for device in self._rtl.values():
            device.close()

    def run(self, case: Case) -> bool:
        """Whether the compiler takes the case. Raises AssertionError naming device, output, image, channel and pixel if a device's bytes are not golden's, and
        the layers' cycles if `cycle` does not have those of the RTL."""
        network, codes = case.network(), case.input_codes()
        try:
            program = compile(network, self.config, case.batch)
        except CompileError as error:
            self.account.refused[" ".join(word for word in str(error).split() if not any(map(str.isdigit, word)))] += 1
            return False
        expected = self._golden.run_program(program, codes)
        for device in (self.machine, self._open_rtl(case.memory)):
            result = device.run_program(program, codes)
            for name, got, want in zip(network.outputs, result.outputs, expected.outputs):
                if not np.array_equal(got, want):
                    image, channel, y, x = np.argwhere(got != want)[0].tolist()
                    raise AssertionError(f"{device.name} of {self.config.name}: {name}, image {image}, channel {channel}, pixel ({y}, {x}) is "
                                         f"{got[image, channel, y, x]}, not {want[image, channel, y, x]}; {(got != want).sum()} of {got.size} codes differ")
        if (case.memory == "sdram" or self.config.in_order) and (modelled := self._cycle.run_program(program, codes)).layers != result.layers:
            raise AssertionError(f"cycle of {self.config.name}: the layers take {modelled.layers} cycles, not {result.layers}")
        self.account.cycles += result.cycles  # the RTL's, which comes last
        self.account.add(program, plan_network(network, self.config, case.batch))
        return True

    def _open_rtl(self, memory):
        if memory not in self._rtl:
            self._rtl[memory] = RtlDevice(self.config, memory, limit_cycles=10**8)
        return self._rtl[memory]


def search(exerciser: Exerciser, strategy: SearchStrategy[Case], count: int, seed: int, known: "set[str] | None" = None) -> set[str]:
    """Draw and run `count` different cases that the compiler takes and that are not `known`; returns them as code. The same seed draws the same.

    Raises what the smallest failing case raises, with that case as a note.
    """
    known, ran = known or set(), set()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, derandomize=False, print_blob=False, report_multiple_bugs=False,
                         phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))
    @hypothesis.given(strategy)
    def run(case):
        code = repr(case)
        hypothesis.assume(code not in known and code not in ran)
        hypothesis.assume(exerciser.run(case))
        ran.add(code)

    # Hypothesis also draws constants it finds in whichever of our modules are loaded: then a seed would mean something else in every process.
    with patch.object(providers.HypothesisProvider, "_local_constants", providers.Constants()), patch.object(providers, "CONSTANTS_CACHE", {}):
        run()
    return ran
