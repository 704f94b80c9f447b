import numpy as np
import pytest
import torch
from torch import nn

from celosia.host.errors import CelosiaError
from celosia.host.graph import requantization
from celosia.host.quantize import quantize
from celosia.host.reference import compare

torch.set_num_threads(1)


@pytest.mark.parametrize("ratio", [1 - 2**-16, 0.5, 0.49999999, 0.1, 1 / 3, 2**-20, 1.7e-7, 2.0**-32, 2.4e-10])
def test_requantization_is_the_closest_and_normalised(ratio):
    multiplier, shift = requantization(ratio)
    assert 1 << 15 <= multiplier < 1 << 16 and 16 <= shift <= 47
    assert abs(multiplier * 2.0**-shift - ratio) <= 2.0 ** -(shift + 1)


def test_requantization_out_of_range():
    assert requantization(0.0) == requantization(1e-12) == (1 << 15, 47)
    for ratio in (1.0, 7.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ratio must be below 1"):
            requantization(ratio)


def calibrated(model, channels=4):
    torch.manual_seed(0)
    batch = torch.randn(8, channels, 8, 8)
    return quantize(model, [batch]), batch


def test_dead_channels():
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        model.weight[1:4] = 0
        model.bias[:4] = torch.tensor([0.3, 0.0, 0.7, -0.4])
        model.weight[4] = 0.1  # alive
        model.weight[5] *= 1e-9  # as good as dead: its scale is far below what shifts express beside its bias
    qmodel, batch = calibrated(model)
    layer = qmodel.layers[0]
    assert (layer.multiplier[1], layer.shift[1], layer.bias[1]) == (1 << 15, 47, 0)
    assert max(record.max_lsb_error for record in compare(qmodel, batch)) <= 1
    assert np.abs(layer.bias.astype(np.int64)).max() < 1 << 30


def test_a_network_that_is_always_zero():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    nn.init.constant_(model[0].bias, -100.0)
    qmodel, batch = calibrated(model)
    assert max(record.max_lsb_error for record in compare(qmodel, batch)) <= 1


def test_copies_between_far_scales_use_larger_weights():
    class Narrow(nn.Module):
        def forward(self, x):
            return torch.clamp(x, 0, 0.2)

    qmodel, batch = calibrated(Narrow())
    assert qmodel.layers[0].weight[0, 0, 0, 0] == 64
    assert compare(qmodel, batch)[0].max_lsb_error <= 1


def test_a_ratio_of_one_or_more_is_refused():
    class Narrowest(nn.Module):
        def forward(self, x):
            return torch.clamp(x, 0, 0.01)

    with pytest.raises(CelosiaError, match="layer clamp: output channel 0 needs a requantization ratio of .*; .*calibrate"):
        calibrated(Narrowest())


def test_residual_scales():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
            with torch.no_grad():
                self.a.weight *= factor

        def forward(self, x):
            return self.a(x) + self.b(x)

    for factor in (1e-3, 1.0, 1e3):
        qmodel, batch = calibrated(Scaled(factor))
        residual = qmodel.layers[1].residual
        assert 0 <= residual.multiplier < 1 << 16 and residual.shift <= qmodel.layers[1].shift.min()
        assert max(record.max_lsb_error for record in compare(qmodel, batch)) <= 1


def test_names_are_unique_and_differ_from_the_inputs():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.x(torch.relu(self.x(x)))

    qmodel, _ = calibrated(Same())
    assert qmodel.inputs == ["input.x"] and [layer.name for layer in qmodel.layers] == ["x", "x#2"]
