import math

import pytest
import torch
from modules import conv
from torch import nn

from celosia.host.errors import CelosiaError
from celosia.host.observers import METHODS
from celosia.host.operations import FUNCTIONS
from celosia.host.quantize import quantize
from celosia.host.reference import compare

torch.set_num_threads(1)

methods = pytest.mark.parametrize("method", METHODS)


def observed(method, *batches, **options):
    observer = METHODS[method](**options)
    for values in batches:
        assert observer(values) is values
    scale, zero_point = (float(value) for value in observer.calculate_qparams())
    return scale, zero_point, (scale * (-128 - zero_point), scale * (127 - zero_point))


def error(method, values):
    scale, zero_point, _ = observed(method, *values.split(40000))
    return float((torch.fake_quantize_per_tensor_affine(values, scale, int(zero_point), -128, 127) - values).square().sum())


@methods
def test_no_range_is_empty_and_zero_is_in_it(method):
    assert observed(method, torch.zeros(4))[:2] == (pytest.approx(1 / 255), -128)
    for values in (torch.full((4,), 3.0), torch.full((4,), -3.0), torch.rand(1000) + 5, -torch.rand(1000) - 5, torch.tensor([1e-30])):
        scale, _, (low, high) = observed(method, values)
        assert scale > 0 and low <= 0 <= high
        assert high - low <= float((values.amax().clamp(min=0) - values.amin().clamp(max=0)) * 1.001)


@methods
def test_a_range_ends_where_a_function_no_longer_tells_values_apart(method):
    values = torch.linspace(-10, 2.1, 5000)
    _, _, (low, high) = observed(method, values, bounds=FUNCTIONS[torch.ops.aten.hardswish.default])
    assert -3.1 < low < -2 and 1.5 < high < 2.2


@pytest.mark.parametrize("method", ["histogram", "mse"])
def test_an_outlier_is_clipped(method):
    values = torch.randn(400000, generator=torch.Generator().manual_seed(0))
    values[7] = 20
    assert error(method, values) < 0.97 * error("minmax", values)
    assert observed(method, *values.split(40000))[2][1] < 15


def test_least_squares_keeps_an_even_sample_of_any_number_of_values():
    observer = METHODS["mse"]()
    for value in (0.0, 1.0):
        observer(torch.full((1 << 18,), value))
    assert (1 << 15) < len(observer.sample) <= 1 << 17
    assert 0.48 < float(observer.sample.mean()) < 0.52


@methods
def test_a_nan_is_kept(method):
    observer = METHODS[method]()
    for values in (torch.rand(5), torch.tensor([1.0, math.nan]), torch.rand(5)):
        observer(values)
    assert math.isnan(observer.low)


@methods
def test_integers_agree_with_the_reference(method):
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.Hardswish(), conv(8, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    batch = torch.randn(8, 3, 8, 8)
    assert max(record.max_lsb_error for record in compare(quantize(model, [batch], method=method), batch)) <= 1


def test_an_unknown_method_is_refused():
    with pytest.raises(CelosiaError, match="method must be one of minmax, histogram, mse, not 'entropy'"):
        quantize(conv(3, 8), [torch.randn(2, 3, 8, 8)], method="entropy")
