"""Photographs that scikit-image and scikit-learn bring along, read from their installed files: neither is imported, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .data import DataError, Preprocess

if TYPE_CHECKING:
    from torch import nn

#: Distribution, package, folder in it and file names. Drawings and test patterns are left out.
_SOURCES = (
    ("scikit-image", "skimage", "data", (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg",
        "rocket.jpg", "text.png",
    )),
    ("scikit-learn", "sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)
_FILES = {Path(file).stem: (distribution, package, f"{folder}/{file}") for distribution, package, folder, files in _SOURCES for file in files}

_SMALLEST_CROP = 0.3  # of the shorter side; below it hardly anything is recognised


def names() -> tuple[str, ...]:
    """The photographs `load` knows."""
    return tuple(_FILES)


def path(name: str) -> Path:
    """Where a photograph is. Raises `ValueError` for an unknown name, `DataError` if the package that brings it is missing."""
    if name not in _FILES:
        raise ValueError(f"photograph must be one of {', '.join(_FILES)}, not {name!r}")
    distribution, package, file = _FILES[name]
    found = find_spec(package)
    if found is None:
        raise DataError(f"photograph {name} comes with {distribution}, which is not installed; pip install 'celosia[zoo]'")
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        raise DataError(f"photograph {name} is not in the installed {distribution}; pip install 'celosia[zoo]' brings a version that has it")
    return path


def load(name: str) -> np.ndarray:
    """A photograph as it is, uint8 (H, W, 3). Raises as `path`."""
    return np.asarray(_open(name))


def centres(names: Sequence[str], size: int, preprocess: Preprocess) -> np.ndarray:
    """The middle of each photograph as a network with this preprocessing sees it, uint8 (N, size, size, 3). Raises as `path`."""
    return np.stack([np.asarray(preprocess.frame(_open(name), size)) for name in names])


def random_crops(names: Sequence[str], size: int, preprocess: Preprocess, *, seed: int) -> Iterator[np.ndarray]:
    """Squares of any place and of 0.3 to 1 of the shorter side, half of them mirrored, from photographs drawn at random.

    uint8 (size, size, 3) each, without end, the same for the same seed. Raises as `path`.
    """
    photographs = [_open(name) for name in names]
    random = np.random.default_rng(seed)
    while True:
        photograph = photographs[random.integers(len(photographs))]
        share, x, y, mirror = random.random(4)
        side = min(photograph.size) * (_SMALLEST_CROP + share * (1 - _SMALLEST_CROP))
        left, top = x * (photograph.width - side), y * (photograph.height - side)
        crop = np.asarray(photograph.resize((size, size), _resample(preprocess), box=(left, top, left + side, top + side)))
        yield crop[:, ::-1] if mirror < 0.5 else crop


def recognised(crops: Iterator[np.ndarray], network: nn.Module, preprocess: Preprocess, *, least: float) -> Iterator[tuple[int, np.ndarray, int, float]]:
    """Those of the uint8 images (H, W, 3) to which a classifier gives a class with at least that probability: number, image, class and probability."""
    import torch

    for first in count(step=16):
        images = np.stack(list(islice(crops, 16)))
        with torch.no_grad():
            values, classes = network(torch.from_numpy(preprocess(images))).softmax(1).max(1)
        for index in (values >= least).nonzero().flatten().tolist():
            yield first + index, images[index], int(classes[index]), float(values[index])


def _open(name):
    with Image.open(path(name)) as file:
        return file.convert("RGB")


def _resample(preprocess):
    return Image.Resampling[preprocess.resample.upper()]
