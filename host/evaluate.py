"""Recipes measured on devices: the module itself, or its int8 network on a bit-exact device."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..hw.config import get_config
from ..hw.program import Program
from ..models import data, zoo
from . import source
from .device import open_device
from .errors import CelosiaError

__all__ = ["evaluate_recipe", "on_device", "on_golden"]

#: Images per run where nobody asks for another number.
_BATCH = 16
#: Images a process is given at a time.
_SHARE = 128


def evaluate_recipe(recipe, device: str = "float", *, weights=None, config=None, batch=None, limit=None, progress=None) -> dict:
    """Figures of a trained recipe on `device` ("float", "golden", "cycle", "rtl") over its test data, and its targets for that device.

    The weights are those of `weights` (a state dict in safetensors), else those the zoo has of the recipe.
    Raises :exc:`CelosiaError` if the zoo has no such network, :exc:`celosia.models.data.DataError` if the data set is missing.
    """
    name = next((name for name in zoo.names() if zoo.get(name).recipe == recipe.name), None)
    if name is None:
        raise CelosiaError(f"recipe {recipe.name}: the zoo has no network of it")
    if not data.available(recipe.data):
        raise CelosiaError(data.missing(recipe.data))
    import torch

    from .trace import load_model

    torch.set_num_threads(1)  # on a busy machine two are slower by far
    module = load_model(name, weights)
    figures = {}
    if device != "float":
        if weights is None:
            network = source.load_network(name, progress)
        else:
            network = source.quantize_model(name, weights=weights, progress=progress)
        program = source.compile_network(network, get_config(config or source.DEFAULT_CONFIG), batch or _BATCH)
        with on_golden(program) if device == "golden" else on_device(device, program) as model:
            figures["int8"] = recipe.evaluate(lambda images: torch.from_numpy(model(images.numpy())), limit)
    figures["float"] = recipe.evaluate(module, limit)  # last: a device that cannot be had is said at once
    kind = "float" if device == "float" else "int8"
    return {
        "recipe": recipe.name,
        "device": device,
        "figures": figures[kind],
        "float": figures["float"],
        "targets": [_judged(target, figures) for target in recipe.targets if target.device == kind],
    }


@contextmanager
def on_device(name: str, program) -> "Iterator[Callable[[np.ndarray], np.ndarray]]":
    """A function from float32 images (N, C, H, W) to the network's first output, float32 (N, …), which a device computes."""
    with open_device(name, program.config) as device:
        yield lambda images: device.run(program, images).outputs[0]


@contextmanager
def on_golden(program) -> "Iterator[Callable[[np.ndarray], np.ndarray]]":
    """What `on_device("golden", program)` is, on all processors: for thousands of images.

    A process each rather than NumPy's threads, which wait for each other at every layer: on a busy machine for minutes.
    """
    processes = min(os.cpu_count() or 1, 8)
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for the processes: NumPy reads it when it is imported
    try:
        with TemporaryDirectory() as folder:
            program.save(file := Path(folder) / "program.celp")
            with ProcessPoolExecutor(processes, get_context("spawn"), _start, (file,)) as pool:
                yield lambda images: np.concatenate(list(pool.map(_compute, (images[first : first + _SHARE] for first in range(0, len(images), _SHARE)))))
    finally:
        if threads is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = threads


def _start(file):
    global _program
    _program = Program.load(file)


def _compute(images):
    with open_device("golden", _program.config) as device:
        return device.run(_program, images).outputs[0]


def _judged(target, figures):
    value = figures[target.device][target.figure]
    if target.above is not None:
        value -= figures[target.above][target.figure]
    return asdict(target) | {"value": value, "reached": target.reached(figures)}
