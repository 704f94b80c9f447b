"""What all devices have in common: codes in, codes out, and what the run cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..hw.config import AcceleratorConfig
from ..hw.isa import Base
from ..hw.program import Program, place_regions

__all__ = ["Device", "DeviceError", "Places", "RunResult", "check_inputs"]


class DeviceError(RuntimeError):
    """A device that cannot be had, or a run that did not come to its end; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of a program."""

    #: int8 (N, C, H, W), one array per output of the network.
    outputs: list[np.ndarray]
    #: Clock cycles from start to end; None where the device does not know time.
    cycles: int | None = None
    #: Cycles of each layer: from the completion of the one before to its own; they add up to `cycles`.
    layers: list[int] = field(default_factory=list)
    #: The device's counters by name, among them stalls by cause.
    counters: dict[str, int] = field(default_factory=dict)


class Device(Protocol):
    """What runs programs for one configuration."""

    name: str
    config: AcceleratorConfig

    def run_program(self, program: Program, inputs: list[np.ndarray]) -> RunResult:
        """Run a program on int8 codes (N, C, H, W), one array per input of the network, N the program's batch. Raises :exc:`DeviceError`."""

    def hold(self, programs: Sequence[Program]) -> None:
        """Give these programs places beside each other in memory, so that their images stay there when they run in turn, until another program runs."""

    def close(self) -> None:
        """Release what the device holds."""


class Places:
    """Where programs lie in memory: those that are held beside each other, any other as if it were alone."""

    def __init__(self, programs: Sequence[Program] = ()):
        bases, _ = place_regions(*(program.sizes for program in programs))
        self._held = {id(program): (program, its) for program, its in zip(programs, bases)}

    def __contains__(self, program: Program) -> bool:
        return id(program) in self._held

    def bases(self, program: Program) -> dict[Base, int]:
        """The byte address of each of its regions."""
        return self._held[id(program)][1] if program in self else program.bases()


def check_inputs(program: Program, inputs: list[np.ndarray]) -> None:
    """Raises :exc:`DeviceError` unless `inputs` are the codes the program takes."""
    network = program.network
    if len(inputs) != len(network.inputs):
        raise DeviceError(f"network {network.name} has {len(network.inputs)} inputs, {len(inputs)} were given")
    for name, codes in zip(network.inputs, inputs):
        shape = (program.batch, *network.tensors[name].shape)
        if codes.dtype != np.int8 or codes.shape != shape:
            raise DeviceError(f"input {name} must be int8 {shape}, not {codes.dtype} {codes.shape}")
