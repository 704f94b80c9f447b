"""Small PyTorch models for tests of the way from them to integers."""

import torch
from torch import nn

from celosia.host.quantize import quantize

__all__ = ["Function", "conv", "make", "normalized"]


class Function(nn.Module):
    """A module from a function of (its layers, x)."""

    def __init__(self, function, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, x):
        return self.function(self.layers, x)


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": 0 if isinstance(kernel, tuple) else kernel // 2} | options)


def normalized(channels):
    """A batch norm with statistics and parameters of its own."""
    norm = nn.BatchNorm2d(channels)
    for value, low, high in ((norm.weight, -1.5, 1.5), (norm.bias, -1, 1), (norm.running_mean, -1, 1), (norm.running_var, 0.5, 2)):
        nn.init.uniform_(value, low, high)
    return norm


def make(model, shape=(3, 16, 16), seed=0):
    """The quantized model, and a batch it was not calibrated with."""
    generator = torch.Generator().manual_seed(seed)
    qmodel = quantize(model, [torch.randn(8, *shape, generator=generator) for _ in range(2)])
    return qmodel, torch.randn(3, *shape, generator=generator)
