import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from modules import Function, conv, make, normalized
from torch import nn

from celosia.host import graph
from celosia.host.errors import CelosiaError
from celosia.host.operations import FUNCTIONS
from celosia.host.quantize import QuantizedModel, RangeObserver, quantize
from celosia.host.reference import compare, reference_outputs
from celosia.hw.network import Network
from celosia.sim import golden

torch.set_num_threads(1)


class Dense(nn.Module):
    """A dense block: layers that read all maps before them."""

    def __init__(self, first, growth, layers):
        super().__init__()
        self.first = conv(3, first)
        self.norms = nn.ModuleList(normalized(first + growth * i) for i in range(layers + 1))
        self.convs = nn.ModuleList(conv(first + growth * i, growth) for i in range(layers))

    def forward(self, x):
        maps = [self.first(x)]
        for norm, layer in zip(self.norms, self.convs):
            maps.append(layer(F.relu(norm(torch.cat(maps, 1)))))
        return F.relu(self.norms[-1](torch.cat(maps, 1)))


class Excited(nn.Module):
    """A block with squeeze and excitation (Hu et al. 2018), whose gate is `function`."""

    def __init__(self, channels, function):
        super().__init__()
        self.first, self.squeeze, self.excite, self.last = conv(3, channels), conv(channels, 4, 1), conv(4, channels, 1), conv(channels, 5)
        self.function = function

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(x * self.function(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))))


def rarely(layer):
    """Its outputs become logits of what is seldom there."""
    layer.bias.data -= 9
    return layer


def slopes(channels):
    prelu = nn.PReLU(channels)
    nn.init.uniform_(prelu.weight, 0, 1.5)
    return prelu


MODELS = {
    "conv_relu": (lambda: nn.Sequential(conv(3, 8), nn.ReLU()), ["conv"]),
    "conv_bn_relu6": (lambda: nn.Sequential(conv(3, 8, bias=False), normalized(8), nn.ReLU6(inplace=True)), ["conv"]),
    "clamp": (lambda: Function(lambda m, x: m.c(x).clamp(-0.3, 0.4), c=conv(3, 8)), ["conv"]),
    "clamp_min": (lambda: Function(lambda m, x: F.hardtanh(m.c(x).clamp(min=-0.3), -1, 0.5), c=conv(3, 8)), ["conv"]),
    "strided_dilated": (lambda: nn.Sequential(conv(3, 8, (3, 5), stride=(2, 1), dilation=(2, 1), padding=(1, 2))), ["conv"]),
    "grouped_depthwise": (lambda: nn.Sequential(conv(3, 8), conv(8, 12, groups=4), conv(12, 12, groups=12), conv(12, 24, groups=12)), ["conv"] * 4),
    "same_even": (lambda: nn.Sequential(conv(3, 8, 4, padding="same"), conv(8, 4, 3, padding="same")), ["conv"] * 2),
    "asymmetric_pad": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), conv(3, 8, stride=2, padding=1)), ["conv"]),
    "constant_pad": (lambda: Function(lambda m, x: m.c(F.pad(x, (1, 1))), c=conv(3, 8, padding=0)), ["conv"]),
    "pad_alone": (lambda: Function(lambda m, x: F.max_pool2d(F.pad(m.c(x), (1, 0, 0, 2)), 2), c=conv(3, 8)), ["conv", "pad", "max_pool"]),
    "residual": (lambda: Function(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + m.a2(x)), a=conv(3, 8), b=conv(8, 8), a2=conv(3, 8, 1)), ["conv"] * 3),
    "residual_of_input": (lambda: Function(lambda m, x: m.a(x).add_(x), a=conv(3, 3)), ["conv"]),
    "residual_clipped": (lambda: Function(lambda m, x: x + F.relu(m.a(x)), a=conv(3, 3)), ["conv", "add"]),
    "residual_shared": (lambda: Function(lambda m, x: (lambda y: F.relu(y + x) + y)(m.a(x)), a=conv(3, 3)), ["conv", "add", "add"]),
    "flat_clip_and_add": (lambda: Function(lambda m, x: (lambda y: m.f(F.relu(y) + y))(m.a(x).flatten(1)), a=conv(3, 4), f=nn.Linear(1024, 5)),
                          ["conv", "activation", "add", "linear"]),
    "twice": (lambda: Function(lambda m, x: (lambda y: y + y)(m.a(x)), a=conv(3, 8)), ["conv", "add"]),
    "max_pool": (lambda: nn.Sequential(conv(3, 8), normalized(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)), ["conv"]),
    "max_pool_ceil": (lambda: nn.Sequential(conv(3, 8, padding=0), nn.MaxPool2d(3, 2, ceil_mode=True)), ["conv"]),
    "max_pool_then_relu": (lambda: nn.Sequential(conv(3, 8), nn.MaxPool2d(2), nn.ReLU()), ["conv"]),
    "max_pool_alone": (lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(3, 8)), ["max_pool", "conv"]),
    "max_pool_shared": (lambda: Function(lambda m, x: (lambda y: (F.max_pool2d(y, 2), m.b(y)))(m.a(x)), a=conv(3, 8), b=conv(8, 4)), ["conv", "max_pool", "conv"]),
    "clip_shared": (lambda: Function(lambda m, x: (lambda y: m.b(F.relu(y)) + y)(m.a(x)), a=conv(3, 8), b=conv(8, 8)), ["conv", "activation", "conv"]),
    "avg_pool": (lambda: nn.Sequential(conv(3, 8), nn.AvgPool2d(3, 2), nn.ReLU()), ["conv", "avg_pool"]),
    "avg_pool_padded": (lambda: nn.Sequential(conv(3, 8), nn.AvgPool2d((3, 2), (1, 2), (1, 0))), ["conv", "avg_pool"]),
    "avg_pool_divisor": (lambda: nn.Sequential(conv(3, 8), nn.AvgPool2d(2, divisor_override=3)), ["conv", "avg_pool"]),
    "adaptive": (lambda: nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d((4, 2))), ["conv", "avg_pool"]),
    "adaptive_to_the_same": (lambda: nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(16)), ["conv"]),
    "mean": (lambda: Function(lambda m, x: m.f(m.c(x).mean((-1, -2))), c=conv(3, 8), f=nn.Linear(8, 5)), ["conv", "avg_pool", "linear"]),
    "classifier": (lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(),
                                         nn.Linear(16, 10)), ["conv", "linear", "linear"]),
    "view": (lambda: Function(lambda m, x: m.f(m.c(x).contiguous().view(x.size(0), -1)), c=conv(3, 4), f=nn.Linear(1024, 5)), ["conv", "linear"]),
    "batch_norm_first": (lambda: nn.Sequential(normalized(3), nn.ReLU(), conv(3, 8)), ["affine", "conv"]),
    "batch_norm_shared": (lambda: Function(lambda m, x: (lambda y: m.n(y) + y)(m.c(x)), c=conv(3, 8), n=normalized(8)), ["conv", "affine"]),
    "shared_weights": (lambda: Function(lambda m, x: m.c(F.relu(m.c(x))), c=conv(3, 3)), ["conv", "conv"]),
    "leaky": (lambda: nn.Sequential(conv(3, 8), nn.LeakyReLU(0.1, inplace=True), conv(8, 8), nn.LeakyReLU(2.0), nn.MaxPool2d(2)), ["conv", "conv"]),
    "leaky_clipped": (lambda: Function(lambda m, x: F.leaky_relu(m.a(x), 0.01).clamp(-0.002, 0.7), a=conv(3, 8)), ["conv"]),
    "leaky_of_a_sum": (lambda: Function(lambda m, x: F.leaky_relu(m.a(x) + x, 0.2), a=conv(3, 3)), ["conv", "activation"]),
    "prelu": (lambda: nn.Sequential(conv(3, 8), slopes(8), nn.Flatten(), nn.Linear(2048, 5), nn.PReLU()), ["conv", "linear"]),
    "hardswish": (lambda: nn.Sequential(conv(3, 8), normalized(8), nn.Hardswish(inplace=True), conv(8, 8), nn.Hardswish(), nn.MaxPool2d(2)), ["conv", "conv"]),
    "gates": (lambda: nn.Sequential(conv(3, 8), nn.Hardsigmoid(), conv(8, 8), nn.Sigmoid(), conv(8, 8), nn.Tanh()), ["conv"] * 3),
    "silu_of_a_sum": (lambda: Function(lambda m, x: F.silu(m.a(x) + x), a=conv(3, 3)), ["conv"]),
    "functions_alone": (lambda: Function(lambda m, x: F.elu(F.silu(x)) + F.gelu(m.a(x)), a=conv(3, 3)), ["activation", "activation", "conv", "add"]),
    "functions_in_a_row": (lambda: nn.Sequential(conv(3, 8), nn.ReLU6(), nn.Tanh(), nn.ReLU(), nn.AvgPool2d(2), nn.Mish(), conv(8, 4), nn.Softplus()),
                           ["conv", "activation", "avg_pool", "conv"]),
    "transposed": (lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 5, 4, 2, 1), nn.ReLU(), conv(5, 4)), ["conv", "conv_transpose", "conv_transpose", "conv"]),
    "transposed_odd": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2, 1), normalized(8), nn.LeakyReLU(0.2), conv(8, 4)), ["conv_transpose"] * 2 + ["conv"]),
    "transposed_any": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, (3, 2), (3, 4), (1, 0), (1, 1), groups=3, dilation=(2, 3)), nn.Tanh(), conv(6, 4)),
                       ["conv_transpose"] * 3 + ["activation", "conv"]),
    "transposed_dense": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, bias=False), nn.SiLU()), ["conv_transpose"]),
    "transposed_grouped": (lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 16, 3, 2, 1, 1, groups=2, bias=False)), ["conv"] + ["conv_transpose"] * 2),
    "steep": (lambda: nn.Sequential(nn.LeakyReLU(4.0), nn.AvgPool2d(2), nn.LeakyReLU(6.0), nn.Upsample(scale_factor=2), nn.PReLU(3, 1.5)),
              ["activation", "avg_pool", "upsample", "upsample"]),
    "rare": (lambda: nn.Sequential(rarely(conv(3, 8)), nn.Sigmoid()), ["conv"]),
    "gated_by_hand": (lambda: Function(lambda m, x: (lambda y: y * torch.sigmoid(y))(m.a(x)) + (lambda y: F.hardsigmoid(y) * y)(m.b(x)), a=conv(3, 8), b=conv(3, 8)),
                      ["conv", "conv", "add"]),
    "upsample": (lambda: Function(lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2)) + F.interpolate(m.c(x), size=32, mode="nearest-exact"),
                                  a=conv(3, 8), b=conv(8, 8), c=conv(3, 8)), ["conv", "upsample", "upsample"] * 2 + ["conv"]),
    "upsample_joined": (lambda: Function(lambda m, x: m.b(torch.cat([F.interpolate(m.a(x), scale_factor=(3.0, 1.0)), m.c(x)], 1)), a=conv(3, 16),
                                         b=conv(20, 8), c=nn.ConvTranspose2d(3, 4, (3, 1), (3, 1))),
                        ["conv"] + ["upsample"] * 3 + ["conv_transpose"] * 3 + ["conv"]),
    "normalised_input": (lambda: Function(lambda m, x: m.c((x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor([[[0.2]], [[0.3]], [[0.4]]])),
                                          c=conv(3, 8)), ["affine", "conv"]),
    "constants_fold": (lambda: Function(lambda m, x: 3 - 2 * m.n(m.c(x)) / 7, c=conv(3, 8), n=normalized(8)), ["conv"]),
    "constants_in_place": (lambda: Function(lambda m, x: m.f(m.c(x).mul_(0.5).sub_(1).flatten(1)).neg(), c=conv(3, 4), f=nn.Linear(1024, 3)), ["conv", "linear"]),
    "constants_shared": (lambda: Function(lambda m, x: (lambda y: y * m.n.weight.view(-1, 1, 1) + y)(m.c(x)), c=conv(3, 8), n=normalized(8)), ["conv", "affine"]),
    "difference": (lambda: Function(lambda m, x: torch.add(m.a(x) - m.b(x), x.mul(0.5), alpha=-3), a=conv(3, 3), b=conv(3, 3)), ["conv", "conv", "affine"]),
    "computed_weights": (lambda: Function(lambda m, x: F.conv2d(x, m.a.weight / m.a.weight.norm(), padding=1), a=conv(3, 8)), ["conv"]),
    "concat": (lambda: Function(lambda m, x: m.c(torch.cat([m.a(x), F.relu(m.b(x))], 1)), a=conv(3, 8), b=conv(3, 13), c=conv(21, 5)), ["conv"] * 3),
    "concat_nested": (lambda: Function(lambda m, x: m.c(torch.cat([torch.concat([m.a(x), m.b(x)], -3), F.relu(m.b(x))], 1)), a=conv(3, 8), b=conv(3, 8), c=conv(24, 5)),
                      ["conv"] * 4),
    "concat_pooled": (lambda: Function(lambda m, x: F.relu(F.max_pool2d(torch.cat([F.max_pool2d(m.a(x), 2), F.avg_pool2d(m.b(x), 2)], 1), 2)),
                                       a=conv(3, 8), b=conv(3, 8)), ["conv", "conv", "avg_pool", "activation", "max_pool"]),
    "concat_input": (lambda: Function(lambda m, x: torch.cat([m.a(x), x], 1), a=conv(3, 8)), ["copy", "conv"]),
    "concat_twice": (lambda: Function(lambda m, x: (lambda y: m.c(torch.cat([y, y], 1)))(m.a(x)), a=conv(3, 8), c=conv(16, 8)), ["conv", "copy", "conv"]),
    "concat_of_two": (lambda: Function(lambda m, x: (lambda a, b: m.c(torch.cat([a, b], 1)) + m.c(torch.cat([b, a], 1)))(m.a(x), m.b(x)),
                                       a=conv(3, 8), b=conv(3, 8), c=conv(16, 5)), ["conv", "copy"] * 2 + ["conv"] * 2),
    "concat_unaligned": (lambda: Function(lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x), m.d(x)], 1)), a=conv(3, 5), b=conv(3, 8), d=conv(3, 3), c=conv(19, 8)),
                         ["conv"] * 3 + ["concat"] * 2 + ["conv"]),
    "concat_vectors": (lambda: Function(lambda m, x: m.f(torch.hstack([m.a(x).mean((2, 3)), m.b(x).mean((2, 3))])), a=conv(3, 8), b=conv(3, 4), f=nn.Linear(12, 3)),
                       ["conv", "avg_pool", "conv", "avg_pool", "linear"]),
    "concat_vectors_unaligned": (lambda: Function(lambda m, x: m.f(torch.cat([m.a(x).mean((2, 3)), m.b(x).mean((2, 3))], 1)), a=conv(3, 5), b=conv(3, 4),
                                                  f=nn.Linear(9, 3)), ["conv", "avg_pool", "conv", "avg_pool", "concat", "concat", "linear"]),
    "concat_and_parts": (lambda: Function(lambda m, x: (lambda a, b: (a, torch.cat([a, b], 1), F.relu(b)))(m.a(x), m.b(x)), a=conv(3, 8), b=conv(3, 8)),
                         ["conv", "conv", "activation"]),
    "concat_as_summand": (lambda: Function(lambda m, x: m.c(x) + torch.cat([m.a(x), m.b(x)], 1), a=conv(3, 8), b=conv(3, 8), c=conv(3, 16)), ["conv"] * 3),
    "concat_of_far_scales": (lambda: Function(lambda m, x: (lambda a: m.c(torch.cat([a, 9 * m.b(a)], 1)))(m.a(x)), a=conv(3, 8), b=conv(8, 8), c=conv(16, 4)),
                             ["conv", "copy", "conv", "conv"]),
    "dense": (lambda: Dense(16, 8, 3), ["conv"] + ["affine", "conv"] * 3 + ["affine"]),
    "dense_unaligned": (lambda: Dense(12, 12, 2), ["conv", "affine", "conv", "concat", "concat", "affine", "conv", "affine"]),
    "chunk": (lambda: Function(lambda m, x: (lambda y: m.b(y[0]) + m.c(y[1]))(m.a(x).chunk(2, 1)), a=conv(3, 16), b=conv(8, 8), c=conv(8, 8)), ["conv"] * 3),
    "split": (lambda: Function(lambda m, x: (lambda a, b, c: m.b(a) + b + m.c(c))(*m.a(x).split([3, 5, 8], 1)), a=conv(3, 16), b=conv(3, 5), c=conv(8, 5)),
              ["conv", "slice", "conv", "conv"]),
    "slice": (lambda: Function(lambda m, x: m.b(m.a(x)[:, 8:][:, 8:20]) + m.c(x.narrow(1, 0, 2)), a=conv(3, 24), b=conv(8, 4), c=conv(2, 4)), ["conv"] * 3),
    "shuffle": (lambda: Function(lambda m, x: (lambda y: m.c(torch.cat([y[:, :8], m.b(y[:, 8:])], 1)))(m.a(x)), a=conv(3, 16), b=conv(8, 8), c=conv(16, 4)),
                ["conv", "copy", "conv", "conv"]),
    "avg_pool_border": (lambda: nn.Sequential(conv(3, 8), nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.ReLU()), ["conv"] + ["avg_pool"] * 9),
    "avg_pool_border_joined": (lambda: Function(lambda m, x: torch.cat([m.a(x), F.avg_pool2d(m.b(x), (2, 3), 1, (1, 0), count_include_pad=False)[:, :5]], 1),
                                                a=conv(3, 8, (2, 3), padding=(1, 0)), b=conv(3, 8)), ["conv"] * 2 + ["avg_pool"] * 3 + ["copy"]),
    "avg_pool_ceil": (lambda: nn.Sequential(conv(3, 8), nn.AvgPool2d(3, 2, 1, ceil_mode=True)), ["conv"] + ["avg_pool"] * 4),
    "avg_pool_ceil_divisor": (lambda: nn.Sequential(conv(3, 8), nn.AvgPool2d(3, 3, ceil_mode=True, divisor_override=5)), ["conv"] + ["avg_pool"] * 4),
    "avg_pool_of_padded": (lambda: nn.Sequential(conv(3, 8), nn.ZeroPad2d((2, 0, 1, 3)), nn.AvgPool2d(3, 2)), ["conv", "avg_pool"]),
    "adaptive_uneven": (lambda: nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d((5, 7))), ["conv"] + ["avg_pool"] * 3),
    "adaptive_overlapping": (lambda: nn.Sequential(conv(3, 8, stride=2, padding=0), nn.AdaptiveAvgPool2d(3)), ["conv", "avg_pool"]),
    "adaptive_larger": (lambda: nn.Sequential(conv(3, 4, stride=9), nn.AdaptiveAvgPool2d(3)), ["conv"] + ["avg_pool"] * 9),
    "mean_of_a_large_map": (lambda: Function(lambda m, x: m.g(F.avg_pool2d(F.interpolate(m.c(x), scale_factor=3), (1, 2)).mean((2, 3), keepdim=True)),
                                             c=conv(3, 8), g=conv(8, 5, 1)), ["conv"] + ["upsample"] * 3 + ["avg_pool"] * 3 + ["conv"]),
    "squeeze_excite": (lambda: Excited(16, F.hardsigmoid), ["conv", "avg_pool", "conv", "conv", "parameters", "mul", "conv"]),
    "squeeze_excite_unaligned": (lambda: Excited(12, F.relu), ["conv", "avg_pool", "conv", "conv", "parameters", "mul", "conv"]),
    "scaled_sum": (lambda: Function(lambda m, x: F.relu(m.b(x) + torch.sigmoid(m.g(x)) * m.a(x)), a=conv(3, 8), b=conv(3, 8), g=conv(3, 8, 16, padding=0)),
                   ["conv", "conv", "conv", "parameters", "mul"]),
    "scaled_then_function": (lambda: Function(lambda m, x: F.silu(m.a(x) * m.g(x).sigmoid()), a=conv(3, 8), g=conv(3, 8, 16, padding=0)),
                             ["conv", "conv", "parameters", "mul"]),
    "scaled_vectors": (lambda: Function(lambda m, x: m.f(m.a(x).mean((2, 3)) * m.g(x).sigmoid().flatten(1)), a=conv(3, 8), g=conv(3, 8, 16, padding=0),
                                        f=nn.Linear(8, 3)), ["conv", "avg_pool", "conv", "parameters", "mul", "linear"]),
    "scaled_first": (lambda: Function(lambda m, x: m.g(x).sigmoid() * F.hardswish(m.a(x)).mean((2, 3), keepdim=True), a=conv(3, 8), g=conv(3, 8, 16, padding=0)),
                     ["conv", "conv", "avg_pool", "parameters", "mul"]),
    "scaled_expanded": (lambda: Function(lambda m, x: (lambda y: y * m.g(x).sigmoid().expand_as(y) + m.g(x).relu().expand(-1, -1, 16, 16) * y)(m.a(x)),
                                         a=conv(3, 8), g=conv(3, 8, 16, padding=0)), ["conv"] + ["conv", "parameters", "mul"] * 2),
    "scaled_joined": (lambda: Function(lambda m, x: torch.cat([m.a(x), m.b(x) * m.g(x).sigmoid()], 1), a=conv(3, 8), b=conv(3, 8), g=conv(3, 8, 16, padding=0)),
                      ["conv", "conv", "conv", "parameters", "mul"]),
    "chunk_left_out": (lambda: Function(lambda m, x: m.a(x).chunk(2, 1)[1], a=conv(3, 16)), ["conv"]),
    "two_outputs": (lambda: Function(lambda m, x: {"a": m.a(x), "b": m.b(x).flatten(1)}, a=conv(3, 8), b=conv(3, 2)), ["conv", "conv"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_agrees_with_the_reference_and_outputs_with_the_model(name):
    torch.manual_seed(1)
    factory, ops = MODELS[name]
    model = factory().eval()
    qmodel, batch = make(model)
    assert [layer.op for layer in qmodel.layers] == ops
    assert max(record.max_lsb_error for record in compare(qmodel, batch)) <= 1
    outputs = golden.execute(qmodel, [golden.quantize(batch.numpy(), qmodel.tensors[qmodel.inputs[0]])])
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model(batch))
    for output, codes, real in zip(qmodel.outputs, outputs, expected, strict=True):
        tensor = qmodel.tensors[output]
        got = golden.dequantize(codes, tensor).reshape(real.shape)
        assert tuple(real.shape[1:]) == qmodel.output_shapes.get(output, tensor.shape)
        noise = float(np.square(got - real.numpy()).mean())
        assert 10 * math.log10(float(real.square().mean()) / noise) > 20


def places(qmodel):
    return {tensor.name: (tensor.within.tensor, tensor.within.channel) for tensor in qmodel.tensors.values() if tensor.within}


def test_parts_of_a_concatenation_lie_in_it_and_share_its_scale():
    model = Function(lambda m, x: m.c(torch.cat([m.a(x), F.max_pool2d(9 * m.b(x), 3, 1, 1), x], 1)), a=conv(3, 8), b=conv(3, 16), c=conv(27, 4))
    qmodel, batch = make(model)
    assert places(qmodel) == {"layers.a": ("cat", 0), "layers.b": ("cat", 8), "copy": ("cat", 24)}
    own, _ = make(nn.Sequential(model.layers["b"]))
    whole, summed = qmodel.tensors["cat"], own.tensors["0"]
    assert whole.shape == (27, 16, 16) and whole.scale > 5 * summed.scale


def test_a_dense_blocks_concatenations_lie_in_its_last():
    qmodel, _ = make(Dense(16, 8, 3))
    firsts = {"first": 0, "convs.0": 16, "convs.1": 24, "convs.2": 32, "cat": 0, "cat#2": 0}
    assert places(qmodel) == {name: ("cat#3", channel) for name, channel in firsts.items()}


@pytest.mark.parametrize("factor, copies", [(1.0, 0), (1.5, 1)])
def test_a_part_that_loses_a_decibel_where_it_is_read_alone_is_copied(factor, copies):
    """The other part has the same range as this one, but for `factor`."""
    same = torch.eye(8).view(8, 8, 1, 1)
    qmodel, _ = make(Function(lambda m, x: (lambda y: m.c(torch.cat([y, factor * F.conv2d(y, same)], 1)))(m.a(x)), a=conv(3, 8), c=conv(16, 4)))
    assert [layer.op for layer in qmodel.layers].count("copy") == copies


def test_the_parts_of_an_average_pooling_cover_it_once():
    qmodel, _ = make(nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), (8, 16, 10))
    layers = {layer.output: (layer.padding, layer.weight.shape[2:], layer.stride) for layer in qmodel.layers}
    assert layers["0[0,0]"][:2] == ((0, 0, -14, -8), (2, 2)) and layers["0[1,1]"] == ((-1, -1, 0, 0), (3, 3), (2, 2))
    covered = np.zeros((8, 5))
    for part in (tensor for tensor in qmodel.tensors.values() if tensor.within):
        covered[qmodel.region(part.name)[1:]] += 1
    assert (covered == 1).all()


def test_macs_and_names():
    qmodel, _ = make(Function(lambda m, x: m.f(F.relu(m.a(x) + m.b(x)).flatten(1)), a=conv(3, 8), b=conv(3, 8, 1), f=nn.Linear(2048, 10)))
    assert [(layer.name, layer.macs) for layer in qmodel.layers] == [("layers.a", 256 * 8 * 27), ("layers.b", 256 * 8 * 3), ("layers.f", 20480)]
    assert qmodel.layers[1].residual.tensor == "layers.a"


def test_a_perturbed_multiplier_fails_the_comparison():
    qmodel, batch = make(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8)))
    qmodel.layers[1].multiplier[3] = qmodel.layers[1].multiplier[3] * 0.97
    assert [record.max_lsb_error <= 1 for record in compare(qmodel, batch)] == [True, False]


def test_save_and_load(tmp_path):
    qmodel, batch = make(nn.Sequential(conv(3, 8), nn.Flatten()))
    qmodel.save(tmp_path / "x.celq")
    for kind in (Network, QuantizedModel):
        loaded = kind.load(tmp_path / "x.celq")
        assert loaded.tensors == qmodel.tensors and np.array_equal(loaded.layers[0].weight, qmodel.layers[0].weight)
    with pytest.raises(CelosiaError, match="has no reference graph"):
        compare(loaded, batch)


def test_the_same_network_twice():
    networks = []
    for _ in range(2):
        torch.manual_seed(5)
        networks.append(make(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8)))[0].to_arrays())
    (header, arrays), (other_header, other_arrays) = networks
    assert header == other_header and all(np.array_equal(array, other_arrays[name]) for name, array in arrays.items())


def test_two_inputs_and_progress():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 4), conv(2, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    seen = []
    batches = [(torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8))] * 2
    qmodel = quantize(Two(), batches, name="two", progress=lambda *step: seen.append(step))
    assert qmodel.inputs == ["x", "y"] and qmodel.name == "two"
    assert seen == [("export", 0), ("calibrate", 1), ("calibrate", 2), ("convert", 0)]
    assert max(record.max_lsb_error for record in compare(qmodel, *batches[0])) <= 1


def test_labels_beside_the_images_are_left_out_and_the_model_stays_as_it_is():
    model = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantize(model, [(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]))])
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_image_a_batch_and_batches_of_different_sizes():
    qmodel = quantize(nn.Sequential(conv(1, 4)), [torch.randn(n, 1, 8, 8) for n in (1, 3, 2)])
    assert reference_outputs(qmodel, torch.randn(7, 1, 8, 8))[0].shape == (7, 4, 8, 8)


@pytest.mark.parametrize("ratio", [2.0**-40, 1e-3, 0.5, 1.0, 507.9 / 256, 508.4 / 256])
def test_weights_of_scaled_maps_come_close_to_the_ratio_of_scales(ratio):
    weight, shift = graph._factor(ratio)
    assert 0 <= weight <= 4 * 127 and 16 <= shift <= 47
    assert abs(256 * weight / 2.0**shift - ratio) <= max(ratio / 508, 2.0**-40)


def test_observer_of_zeros_and_of_one_sign():
    observer = RangeObserver()
    observer(torch.zeros(4))
    assert [float(value) for value in observer.calculate_qparams()] == pytest.approx([1 / 255, -128])
    observer = RangeObserver()
    observer(-torch.rand(1000))
    scale, zero_point = observer.calculate_qparams()
    assert zero_point == 127 and 0 < scale <= 1 / 255


def test_observer_leaves_out_what_a_function_does_not_tell_apart():
    def scale_and_zero_point(function, *values):
        observer = RangeObserver(bounds=FUNCTIONS[function])
        observer(torch.tensor(values))
        return [float(value) for value in observer.calculate_qparams()]

    aten = torch.ops.aten
    assert scale_and_zero_point(aten.hardswish.default, -10.0, 2.1) == pytest.approx([5.1 / 255, 22])
    assert scale_and_zero_point(aten.hardsigmoid.default, -10.0, 640.0) == pytest.approx([13 / 255, -69]), "at most 64 times less"
    assert scale_and_zero_point(aten.silu.default, -10.0, 2.1) == pytest.approx([12.1 / 255, 83])
    for function, real in ((aten.sigmoid.default, torch.sigmoid), (aten.tanh.default, torch.tanh)):
        for values in ((-30.0, 20.0), (-30.0, -8.0), (-0.1, 20.0)):
            ends = real(torch.tensor(values, dtype=torch.float64))
            clamped = real(torch.tensor(values, dtype=torch.float64).clamp(*FUNCTIONS[function](*values)))
            assert (clamped - ends).abs().max() <= 0.501 / 255 * float(ends.max().clamp(min=0) - ends.min().clamp(max=0))


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "fashion-resnet"])
def test_zoo_networks_agree_with_the_reference(name):
    from celosia.models import zoo

    entry = zoo.get(name)
    qmodel = quantize(entry.build(), entry.calibration_images()[:16].split(8))
    images = entry.sample_images()[0][:2]
    assert max(record.max_lsb_error for record in compare(qmodel, images)) == 1
    qmodel.layers[2].multiplier[:] = qmodel.layers[2].multiplier * 0.97
    assert compare(qmodel, images)[2].max_lsb_error > 1
