"""ResNet fitted to 28×28 (He et al. 2016, arXiv:1512.03385), on Fashion-MNIST."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from ..resnet import SmallResNet
from .recipe import Oracle, Recipe, Target
from .supervised import Supervised, flip_crop_erase, one_cycle


def sgd(network: nn.Module, *, rate: float = 0.15, weight_decay: float = 5e-4) -> torch.optim.SGD:
    """Nesterov's momentum; the weights of convolutions and linear layers decay, biases and batch norms do not."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def torchvision_resnet(*, in_channels: int, classes: int, channels: tuple[int, ...], blocks: tuple[int, ...]) -> ResNet:
    """torchvision's ResNet with the stem and the stages of `SmallResNet`."""
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    network.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(channels[0])
    network.maxpool = nn.Identity()
    network.inplanes = channels[0]
    network.layer1 = network._make_layer(BasicBlock, channels[0], blocks[0])
    network.layer2 = network._make_layer(BasicBlock, channels[1], blocks[1], stride=2)
    network.layer3 = network._make_layer(BasicBlock, channels[2], blocks[2], stride=2)
    network.layer4 = nn.Identity()
    network.fc = nn.Linear(channels[2], classes)
    return network


def equals_torchvision() -> str:
    """Same state dict and images: outputs, gradients and running statistics are equal."""
    shape = {"in_channels": 1, "classes": 10, "channels": (16, 32, 48), "blocks": (1, 2, 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, theirs = SmallResNet(**shape), torchvision_resnet(**shape)
        images = torch.randn(4, 1, 28, 28)
    theirs.load_state_dict(ours.state_dict())
    for network in (ours, theirs):
        network(images).square().sum().backward()
        network.eval()
    torch.testing.assert_close(ours(images), theirs(images))
    for (name, mine), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, parameter.grad, msg=lambda text, name=name: f"gradient of {name}: {text}")
    for (name, mine), buffer in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, buffer, msg=lambda text, name=name: f"{name}: {text}")
    return "outputs, gradients and running statistics of torchvision.models.ResNet on 4 images"


def counts_parameters() -> str:
    """The published count of ResNet-20 (table 6), which has no projections in its shortcuts."""
    network = SmallResNet(in_channels=3, channels=(16, 32, 64), blocks=(3, 3, 3))
    projections = sum(parameter.numel() for name, parameter in network.named_parameters() if ".downsample." in name)
    count = sum(parameter.numel() for parameter in network.parameters()) - projections
    # Convolutions 432 + 6·2304 + 4608 + 5·9216 + 18432 + 5·36864, batch norms 2·(7·16 + 6·32 + 6·64), linear 650.
    assert count == 269_722, f"ResNet-20 has 269,722 parameters, not {count:,}"
    return "ResNet-20 has 0.27 million parameters"


RECIPE = Recipe(
    name="resnet",
    summary="residual network fitted to 28×28 images",
    data="fashion-mnist",
    modules=lambda: {"network": SmallResNet()},
    regime=Supervised(
        loss=partial(F.cross_entropy, label_smoothing=0.05),
        optimizer=sgd,
        schedule=one_cycle,
        augment=flip_crop_erase,
        epochs=18,
        batch_size=128,
        average_decay=0.998,
    ),
    offloads=("network",),
    oracles=(
        Oracle("torchvision", equals_torchvision),
        Oracle("parameters", counts_parameters),
    ),
    targets=(
        Target(
            "accuracy",
            0.935,
            "int8",
            "benchmark table of github.com/zalandoresearch/fashion-mnist: two convolutions .916, DenseNet .954",
        ),
        Target("accuracy", -0.003, "int8", "this project's limit for int8 after training", above="float"),
    ),
)
