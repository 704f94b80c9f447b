"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6), for its published ImageNet weights."""

from __future__ import annotations

import re

from torch import Tensor, nn

# Repeats, kernel, stride, expansion and channels of each stage: Tan and Le 2019, table 1.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


class InvertedResidual(nn.Module):
    """A 1×1 convolution that widens, a depthwise one, a 1×1 that narrows; the input is added where shape and stride allow.

    float32 (N, in_channels, H, W) → (N, channels, H/stride, W/stride), H and W even where the stride is 2.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = expansion != 1
        if self.expand:
            self.expand_conv = nn.Conv2d(in_channels, width, 1, bias=False)
            self.bn0 = _batch_norm(width)
        self.pad = _same_padding(kernel, stride)
        self.depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self.bn1 = _batch_norm(width)
        self.project_conv = nn.Conv2d(width, channels, 1, bias=False)
        self.bn2 = _batch_norm(channels)
        self.relu = nn.ReLU6()
        self.add = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn0(self.expand_conv(x))) if self.expand else x
        y = self.relu(self.bn1(self.depthwise_conv(self.pad(y))))
        y = self.bn2(self.project_conv(y))
        return x + y if self.add else y


class EfficientNetLite0(nn.Module):
    """Stem, 16 inverted residuals, a 1×1 head, global average pooling and a linear classifier.

    float32 (N, 3, H, W), H and W multiples of 32 (trained with 224), → logits (N, classes).
    """

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        self.pad = _same_padding(3, 2)
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn0 = _batch_norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, width in _STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(channels, width, kernel, 1 if index else stride, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn1 = _batch_norm(1280)
        self.relu = nn.ReLU6()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.conv_stem(self.pad(x))))
        x = self.relu(self.bn1(self.conv_head(self.blocks(x))))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


def from_package(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the package efficientnet-lite-pytorch with the names used here, which lack its leading underscores."""
    return {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in state.items()}


def _same_padding(kernel: int, stride: int) -> nn.ZeroPad2d:
    """TensorFlow's SAME for sizes that the stride divides: what is odd goes right and below."""
    first, last = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.ZeroPad2d((first, last, first, last))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
