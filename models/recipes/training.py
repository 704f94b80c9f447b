"""The loop every recipe trains in: seeds, metrics, checkpoints and resuming.

All randomness of a step comes from the run's seed and the step's number, so a checkpoint holds no generator state and a
resumed run equals a straight one bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data import ImageData, Preprocess
from ..reproducible import reproducible

SMOKE_STEPS = 20


class TrainingError(ValueError):
    """A run cannot be resumed, or its loss is not finite or does not fall."""


class Regime(Protocol):
    """How a step is made, and what a model's figures are."""

    def start(self, modules: Mapping[str, nn.Module], images: ImageData, preprocess: Preprocess, *, smoke: bool) -> Session:
        """Set to work on freshly built modules; a smoke session makes `SMOKE_STEPS` steps."""

    def evaluate(self, model: Callable[[Tensor], Tensor], images: ImageData, preprocess: Preprocess) -> dict[str, float]:
        """Figures of a model on the test images."""


class Session(Protocol):
    """A regime at work on a set of modules, with all that changes from step to step."""

    steps: int
    steps_per_epoch: int

    def step(self, number: int, order: np.random.Generator) -> dict[str, float]:
        """Make step `number`, counted from 0, and return its figures, among them `loss`.

        `order` starts the same in every step of an epoch; other randomness is taken from torch's generator.
        """

    def evaluate(self) -> dict[str, float]:
        """Figures of `result` on the test images."""

    def result(self) -> Mapping[str, nn.Module]:
        """The named modules as they would be delivered now, in evaluation mode."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told after every step; `step` counts from 1, `epoch` from 0."""

    step: int
    steps: int
    epoch: int
    figures: Mapping[str, float]


def run(
    start: Callable[[], Session],
    out_dir: Path,
    *,
    name: str,
    seed: int,
    smoke: bool = False,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Session, dict[str, float]]:
    """Train to the end; write `metrics.jsonl` and `checkpoint.safetensors` into `out_dir` after every epoch.

    Parameters
    ----------
    start
        Builds the session; called with torch's generator seeded.
    smoke
        Check that the loss falls.
    resume
        Go on from the checkpoint in `out_dir`.

    Returns
    -------
    The session at its end and its last figures, with `seconds` summed over all parts of an interrupted run.

    Raises
    ------
    TrainingError
        If there is no checkpoint to resume from or it is of another recipe, seed or length, if a loss is not finite, or if
        a smoke run's does not fall.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoint, metrics = out_dir / "checkpoint.safetensors", out_dir / "metrics.jsonl"
    with reproducible():
        torch.manual_seed(_mix(seed, "start", 0))
        session = start()
        identity = {"recipe": name, "seed": str(seed), "steps": str(session.steps)}
        done, earlier = _load(checkpoint, session, identity) if resume else (0, 0.0)
        records = [record for record in _read(metrics) if record["step"] <= done]
        began, losses = time.monotonic() - earlier, []
        for number in range(done, session.steps):
            epoch, position = divmod(number, session.steps_per_epoch)
            torch.manual_seed(_mix(seed, "step", number))
            figures = session.step(number, np.random.default_rng(_mix(seed, "epoch", epoch)))
            losses.append(figures["loss"])
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"the loss of {name} is {losses[-1]} at step {number}: its learning rate is too high")
            if progress is not None:
                progress(Progress(number + 1, session.steps, epoch, figures))
            last_of_epoch = position + 1 == session.steps_per_epoch and not smoke
            if last_of_epoch or number + 1 == session.steps:
                figures |= {"loss": float(np.mean(losses[-position - 1 :])), **session.evaluate()}
                seconds = round(time.monotonic() - began, 1)
                records.append({"step": number + 1, "epoch": epoch + 1, **figures, "seconds": seconds})
                metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
                _save(checkpoint, session, {**identity, "step": str(number + 1), "seconds": str(seconds)})
    if smoke and losses and not np.mean(losses[-5:]) < np.mean(losses[:5]):
        raise TrainingError(f"the loss of {name} does not fall: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return session, records[-1]


def _mix(seed: int, purpose: str, number: int) -> int:
    return int(np.random.SeedSequence((seed, *purpose.encode(), number)).generate_state(1, np.uint64)[0])


def _save(path: Path, session: Session, metadata: dict[str, str]) -> None:
    part = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in session.state().items()}, part, metadata)
    part.replace(path)


def _load(path: Path, session: Session, identity: Mapping[str, str]) -> tuple[int, float]:
    if not path.is_file():
        raise TrainingError(f"{path} not found: there is nothing to resume")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for key, value in identity.items():
        if metadata[key] != value:
            raise TrainingError(f"{path} is of a run with {key} {metadata[key]}, not {value}")
    session.load_state(load_file(path))
    return int(metadata["step"]), float(metadata["seconds"])


def _read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
