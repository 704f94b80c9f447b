"""A plain network of 3×3 convolutions and max pooling for small grey images (Simonyan and Zisserman 2015, arXiv:1409.1556).

Module and parameter names are torchvision's, so a state dict's features fit `torchvision.models.VGG` with the same layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SmallVgg(nn.Module):
    """Stages of a 3×3 convolution, batch norm, ReLU and 2×2 max pooling, then a linear classifier.

    float32 (N, in_channels, size, size) → logits (N, classes).
    """

    def __init__(self, *, in_channels: int = 1, size: int = 28, classes: int = 10, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        layers = []
        for inputs, outputs in zip((in_channels, *channels), channels):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1] * (size >> len(channels)) ** 2, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
