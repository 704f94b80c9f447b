"""torchvision's networks with seeded random weights, whose maps have the size of a trained network's.

Batch norms take their statistics from dead leaves. Where a convolution or linear layer has none behind it, its maps would fade or grow from layer to layer, so it gets
the weights and bias that it would have with such a batch norm folded into it. Layers with too few values for a mean of each channel, such as linear ones, and the last
layer, whose classes shall differ, are only scaled (Mishkin and Matas 2016, "All you need is a good init").
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .reproducible import reproducible
from .zoo import IMAGENET, dead_leaves

__all__ = ["classifier", "detector"]

#: Values of a channel, over images and pixels, of which a mean and a deviation say something.
_LEAST = 64


def classifier(name: str, **options: object) -> nn.Module:
    """torchvision's classifier of that name in evaluation mode, the same on every call: float32 (N, 3, 224, 224) → logits (N, 1000)."""
    import torchvision

    with _seeded():
        network = getattr(torchvision.models, name)(weights=None, **options)
        return _settle(network, torch.from_numpy(IMAGENET(dead_leaves(8, 224, seed=1))), bare=False)


def detector(name: str, size: int, **options: object) -> nn.Module:
    """torchvision's detector of that name in evaluation mode, the same on every call: takes a list of images, float32 (3, size, size) in 0…1, and returns for each
    a dictionary of `boxes`, `labels` and `scores`."""
    from torchvision.models import detection

    with _seeded():
        network = getattr(detection, name)(weights=None, weights_backbone=None, **options)
        return _settle(network, list(torch.from_numpy(dead_leaves(2, size, seed=1)).permute(0, 3, 1, 2) / 255), bare=True)


@contextmanager
def _seeded():
    with reproducible(), torch.no_grad():
        torch.manual_seed(0)
        yield


def _settle(network, images, *, bare):
    """The network after it has seen the images. bare: in a network with batch norms, layers with a bias have none behind them and are normalised too."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None] if bare or not norms else []
    network.eval()
    for module in norms:
        module.train().momentum = None  # the plain mean over the batches it sees, here one
    hooks = [module.register_forward_hook(_normaliser(centre=isinstance(module, nn.Conv2d) and module is not layers[-1])) for module in layers]
    network(images)
    for hook in hooks:
        hook.remove()
    return network.eval()


def _normaliser(*, centre: bool) -> Callable:
    """A forward hook: at the first call weight and bias become those with which the output has deviation 1, or each channel has and mean 0; returns that output."""
    done = False

    def hook(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal done
        if done or not output.numel():
            return output
        done = True
        axes = (0, *range(2, output.dim()))
        by_channel = centre and output[:, 0].numel() >= _LEAST
        mean = output.mean(axes) if by_channel else output.new_zeros(output.shape[1])
        deviation = output.std(axes) if by_channel else output.std().expand(output.shape[1])
        layer.weight.div_(deviation.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.sub_(mean).div_(deviation)
        shape = (-1, *[1] * (output.dim() - 2))
        return (output - mean.reshape(shape)) / deviation.reshape(shape)

    return hook
