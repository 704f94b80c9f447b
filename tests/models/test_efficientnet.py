import pytest
import torch

from celosia.models.efficientnet import EfficientNetLite0, InvertedResidual, from_package


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_that_of_tensorflow(kernel, stride):
    """SAME: ⌈size / stride⌉ outputs; the smaller half of the padding comes first."""
    size = 14
    total = (-(-size // stride) - 1) * stride + kernel - size
    block = InvertedResidual(4, 8, kernel, stride, 6)
    left, right, top, bottom = block.pad.padding
    assert (left, right) == (top, bottom) == (total // 2, total - total // 2)
    assert block(torch.zeros(1, 4, size, size)).shape == (1, 8, size // stride, size // stride)


def test_only_equal_shapes_are_added():
    assert InvertedResidual(8, 8, 3, 1, 6).add
    assert not InvertedResidual(8, 8, 3, 2, 6).add and not InvertedResidual(8, 16, 3, 1, 6).add


def test_names_are_those_of_the_package_without_underscores():
    names = EfficientNetLite0(classes=2).state_dict()
    assert {"conv_stem.weight", "blocks.15.depthwise_conv.weight", "blocks.1.expand_conv.weight", "bn1.running_mean", "fc.bias"} <= set(names)
    assert set(from_package({"_blocks.0._bn1.running_var": 0, "_fc.bias": 1})) == {"blocks.0.bn1.running_var", "fc.bias"} <= set(names)


def test_output():
    network = EfficientNetLite0(classes=7).eval()
    assert network(torch.zeros(3, 3, 64, 32)).shape == (3, 7)
