"""What a recipe is: a network and values on the axes of learning, with its oracles and targets."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import data
from .training import Progress, Regime, run


@dataclass(frozen=True)
class Oracle:
    """An equality with a trusted source on the same weights and inputs.

    `check` returns what it compared, in a few words, and raises `AssertionError` or `RuntimeError` where the two differ.
    """

    name: str
    check: Callable[[], str]


@dataclass(frozen=True)
class Target:
    """A figure to be reached.

    Parameters
    ----------
    figure
        A key of what `Recipe.evaluate` returns.
    minimum
        What it must be at least; with `above`, what its difference to the same figure there must be at least.
    device
        Where the model runs: `float`, `int8` (any of the bit-exact devices).
    source
        Where the figure comes from.
    surrogate
        The data of `source` are not the recipe's.
    """

    figure: str
    minimum: float
    device: str
    source: str
    surrogate: bool = False
    above: str | None = None

    def reached(self, figures: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether the figures, by device, reach the target. Raises `KeyError` if a device is missing."""
        value = figures[self.device][self.figure]
        if self.above is not None:
            value -= figures[self.above][self.figure]
        return round(value, 9) >= self.minimum


@dataclass(frozen=True)
class Recipe:
    """One topic of learning: how its modules are built, trained, evaluated and verified.

    Parameters
    ----------
    data
        The data set it needs, a name of `celosia.models.data`.
    modules
        Builds the named modules with fresh random weights.
    offloads
        Names of the modules whose layers the accelerator can run.
    seed
        The seed of a run that names none.
    """

    name: str
    summary: str
    data: str
    modules: Callable[[], Mapping[str, nn.Module]]
    regime: Regime
    offloads: tuple[str, ...]
    oracles: tuple[Oracle, ...]
    targets: tuple[Target, ...]
    seed: int = 1

    def train(
        self,
        out_dir: str | os.PathLike[str],
        smoke: bool = False,
        resume: bool = False,
        seed: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> dict[str, object]:
        """Train, evaluate and write everything into `out_dir`.

        The files are `metrics.jsonl` (a line an epoch), `checkpoint.safetensors`, a safetensors file for each module and
        `result.json`, which is also returned: recipe, command, seed, seconds, figures, parameters, versions and targets.

        A smoke run makes 20 steps on the bundled sample and needs no data set; its loss must fall. `progress` is called
        after every step and may end the run by raising. With `resume`, an interrupted run goes on from its last whole
        epoch, and ends bit for bit as if it had never stopped.

        Raises
        ------
        DataError
            If the data set is missing.
        TrainingError
            If there is nothing to resume, a loss is not finite, or a smoke run's does not fall.
        """
        seed = self.seed if seed is None else seed
        out_dir = Path(out_dir)
        images = data.sample(self.data) if smoke else data.load(self.data)
        preprocess = data.preprocess(self.data)
        session, figures = run(
            lambda: self.regime.start(self.modules(), images, preprocess, smoke=smoke),
            out_dir,
            name=self.name,
            seed=seed,
            smoke=smoke,
            resume=resume,
            progress=progress,
        )
        modules = session.result()
        result = {
            "recipe": self.name,
            "command": f"celosia train {self.name} --seed {seed}" + " --smoke" * smoke,
            "seed": seed,
            "seconds": figures["seconds"],
            "figures": {key: value for key, value in figures.items() if key != "seconds"},
            "parameters": {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "targets": [asdict(target) for target in self.targets],
        }
        (out_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        metadata = {"command": result["command"], "seed": str(seed), "figures": json.dumps(result["figures"])}
        for name, module in modules.items():
            weights = {key: value.contiguous() for key, value in module.state_dict().items()}
            save_file(weights, out_dir / f"{name}.safetensors", metadata)
        return result

    def evaluate(self, model: Callable[[Tensor], Tensor], limit: int | None = None) -> dict[str, float]:
        """Figures of a model on the test images, or on the first `limit` of them.

        `model` maps float32 (N, C, H, W), preprocessed, to the network's outputs: a network, or a device that runs it.
        Raises `DataError` if the data set is missing.
        """
        images = data.load(self.data)
        images = replace(images, test_images=images.test_images[:limit], test_labels=images.test_labels[:limit])
        return self.regime.evaluate(model, images, data.preprocess(self.data))

    def verify(self) -> list[tuple[str, bool, str]]:
        """Run the oracles: for each its name, whether it holds, and what was compared or how the two differ."""
        results = []
        for oracle in self.oracles:
            try:
                results.append((oracle.name, True, oracle.check()))
            except (AssertionError, RuntimeError) as error:
                results.append((oracle.name, False, str(error)))
        return results
