from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from celosia.host.quantize import quantize
from celosia.host.reference import compare, output_sqnr, reference_codes, reference_outputs
from celosia.hw.network import Layer, Network

torch.set_num_threads(1)


def slow_layer(layer: Layer, network: Network, x: np.ndarray, residual: "np.ndarray | None", parameters: None) -> np.ndarray:
    """The contract's arithmetic written a second time, with Python's integers and loops."""
    source, target = network.tensors[layer.input], layer.lookup.before if layer.lookup else network.tensors[layer.output]
    top, left, bottom, right = layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=source.zero_point)
    outputs, depth, rows, columns = layer.weight.shape
    height, width = layer.conv_size(*source.shape[1:])
    codes = np.empty((len(x), outputs, height, width), np.int8)
    for n, o, i, j in np.ndindex(codes.shape):
        first = o // (outputs // layer.groups) * depth
        window = x[n, first : first + depth, i * layer.stride[0] :, j * layer.stride[1] :][:, :: layer.dilation[0], :: layer.dilation[1]][:, :rows, :columns]
        multiplier, shift = int(layer.multiplier[o]), int(layer.shift[o])
        value = int(layer.bias[o]) + int((window.astype(int) * layer.weight[o]).sum())
        value *= int(layer.negative[o]) if layer.negative is not None and value < 0 else multiplier
        if layer.residual:
            r = layer.residual
            value += (int(residual[n, o, i, j]) - network.tensors[r.tensor].zero_point) * r.multiplier << (shift - r.shift)
        code = min(max(target.zero_point + ((value + (1 << (shift - 1))) >> shift), layer.low), layer.high)
        codes[n, o, i, j] = layer.lookup.table[code + 128] if layer.lookup else code
    if layer.pool is None:
        return codes
    top, left, bottom, right = layer.pool.padding
    codes = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-128)
    windows = np.lib.stride_tricks.sliding_window_view(codes, layer.pool.kernel, axis=(2, 3))[:, :, :: layer.pool.stride[0], :: layer.pool.stride[1]]
    return windows.max(axis=(4, 5))


class Small(nn.Module):
    """Everything once: padding on one side, stride, groups, pooling, a residual, a clip, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(3, 2, 1))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.relu(x + self.second(x)))


@pytest.fixture(scope="module")
def small():
    """A quantized model and a batch."""
    torch.manual_seed(3)
    return quantize(Small(), [torch.randn(8, 3, 16, 16)]), torch.randn(2, 3, 16, 16)


def test_slow_arithmetic_agrees_with_golden_and_with_the_reference(small):
    qmodel, batch = small
    slow, golden = compare(qmodel, batch, layer=slow_layer), compare(qmodel, batch)
    assert slow == golden
    assert [record.name for record in golden] == ["first.1", "second.0", "last.0", "last.2"]
    assert max(record.max_lsb_error for record in golden) <= 1
    assert all(record.sqnr_db > 40 and record.different < 0.05 for record in golden)


def test_codes_are_those_of_the_graph(small):
    qmodel, batch = small
    codes = reference_codes(qmodel, batch)
    assert {name: value.shape[1:] for name, value in codes.items()} == {name: tensor.shape for name, tensor in qmodel.tensors.items()}
    tensor, [output] = qmodel.tensors["last.2"], reference_outputs(qmodel, batch)
    assert np.allclose((codes["last.2"].reshape(2, 5).astype(int) - tensor.zero_point) * tensor.scale, output.numpy(), atol=1e-6)


def test_outputs_are_as_far_from_the_float_network_as_the_graphs(small):
    qmodel, batch = small
    [record], [wanted] = output_sqnr(qmodel, batch), reference_outputs(qmodel, batch)
    with torch.no_grad():
        [real] = torch.utils._pytree.tree_leaves(qmodel.original(batch))
    assert record.name == "last.2"
    assert record.reference_db == pytest.approx(10 * float(torch.log10(real.square().sum() / (wanted - real).square().sum())), abs=1e-3)
    assert abs(record.engine_db - record.reference_db) < 0.5 and record.engine_db > 15
    last = qmodel.layers[-1]
    [wrong] = output_sqnr(replace(qmodel, layers=(*qmodel.layers[:-1], replace(last, bias=last.bias + 5000))), batch)
    assert wrong.engine_db < record.engine_db - 5 and wrong.reference_db == record.reference_db


@pytest.mark.parametrize("index", range(4))
def test_each_layers_wrong_result_is_found_in_that_layer_alone(small, index):
    qmodel, batch = small

    def wrong(layer, network, x, residual, parameters):
        codes = slow_layer(layer, network, x, residual, parameters)
        return np.where(codes < 100, codes + 2, codes - 2) if layer is network.layers[index] else codes

    assert [record.max_lsb_error > 1 for record in compare(qmodel, batch, layer=wrong)] == [i == index for i in range(4)]
