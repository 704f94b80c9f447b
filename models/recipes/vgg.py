"""A small VGG (Simonyan and Zisserman 2015, arXiv:1409.1556), on Fashion-MNIST."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import make_layers

from ..vgg import SmallVgg
from .recipe import Oracle, Recipe, Target
from .resnet import sgd
from .supervised import Supervised, flip_crop_erase, one_cycle


def equals_torchvision() -> str:
    """Same weights and images: outputs, gradients and running statistics of the features are equal."""
    channels = (8, 16, 24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours: nn.Module = SmallVgg(in_channels=3, channels=channels).features
        theirs = make_layers([item for count in channels for item in (count, "M")], batch_norm=True)
        images = torch.randn(4, 3, 28, 28)
    theirs.load_state_dict(ours.state_dict())
    for network in (ours, theirs):
        network(images).square().sum().backward()
        network.eval()
    torch.testing.assert_close(ours(images), theirs(images))
    for (name, mine), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, parameter.grad, msg=lambda text, name=name: f"gradient of {name}: {text}")
    for (name, mine), buffer in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, buffer, msg=lambda text, name=name: f"{name}: {text}")
    return "outputs, gradients and running statistics of torchvision.models.vgg.make_layers on 4 images"


RECIPE = Recipe(
    name="vgg",
    summary="plain convolutions and max pooling, small enough for an iCE40 UP5K",
    data="fashion-mnist",
    modules=lambda: {"network": SmallVgg()},
    regime=Supervised(
        loss=partial(F.cross_entropy, label_smoothing=0.05),
        optimizer=sgd,
        schedule=one_cycle,
        augment=partial(flip_crop_erase, share=0.0),
        epochs=18,
        batch_size=128,
        average_decay=0.998,
    ),
    offloads=("network",),
    oracles=(Oracle("torchvision", equals_torchvision),),
    targets=(
        Target(
            "accuracy",
            0.916,
            "int8",
            "benchmark table of github.com/zalandoresearch/fashion-mnist: two convolutions .916",
        ),
        Target("accuracy", -0.003, "int8", "this project's limit for int8 after training", above="float"),
    ),
)
