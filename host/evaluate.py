"""Recipes measured on devices: the module itself, or its int8 network on a bit-exact device."""

from dataclasses import asdict

import numpy as np

from ..hw.config import get_config
from ..models import data, zoo
from . import source
from .device import open_device
from .errors import CelosiaError

__all__ = ["device_model", "evaluate_recipe"]

#: Images per run where nobody asks for another number.
_BATCH = 16


def evaluate_recipe(recipe, device: str = "float", *, weights=None, config=None, batch=None, limit=None, progress=None) -> dict:
    """Figures of a trained recipe on `device` ("float", "golden", "rtl") over its test data, and its targets for that device.

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
    figures = {"float": recipe.evaluate(module, limit)}
    if device != "float":
        if weights is None:
            network = source.load_network(name, progress)
        else:
            network = source.quantize_model(name, weights=weights, progress=progress)
        with open_device(device, get_config(config or source.DEFAULT_CONFIG)) as opened:
            program = source.compile_network(network, opened.config, batch or _BATCH)
            figures["int8"] = recipe.evaluate(device_model(opened, program), limit)
    kind = "float" if device == "float" else "int8"
    return {
        "recipe": recipe.name,
        "device": device,
        "figures": figures[kind],
        "float": figures["float"],
        "targets": [_judged(target, figures) for target in recipe.targets if target.device == kind],
    }


def device_model(device, program):
    """A function from preprocessed float32 images (N, C, H, W) to the network's first output, as torch tensors, computed on a device."""
    import torch

    def model(images):
        return torch.from_numpy(np.ascontiguousarray(device.run(program, images.numpy()).outputs[0]))

    return model


def _judged(target, figures):
    value = figures[target.device][target.figure]
    if target.above is not None:
        value -= figures[target.above][target.figure]
    return asdict(target) | {"value": value, "reached": target.reached(figures)}
