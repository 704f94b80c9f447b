"""The learning recipes: each trains, evaluates and verifies one topic. Listing them does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recipe import Recipe

_SUMMARIES = {
    "resnet": "residual network fitted to 28×28 images",
    "vgg": "plain convolutions and max pooling, small enough for an iCE40 UP5K",
}


def names() -> tuple[str, ...]:
    """The recipes `get` knows."""
    return tuple(_SUMMARIES)


def summary(name: str) -> str:
    """One line about a recipe. Raises `ValueError` if the name is unknown."""
    _check(name)
    return _SUMMARIES[name]


def get(name: str) -> Recipe:
    """The recipe of that name. Raises `ValueError` if the name is unknown."""
    _check(name)
    return import_module(f".{name.replace('-', '_')}", __package__).RECIPE


def _check(name: str) -> None:
    if name not in _SUMMARIES:
        raise ValueError(f"recipe must be one of {', '.join(_SUMMARIES)}, not {name!r}")
