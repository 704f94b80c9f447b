import math

import pytest
import torch
import torch.nn.functional as F
from modules import Function, conv, normalized
from torch import nn

from celosia.host.equalize import equalize
from celosia.host.quantize import quantize
from celosia.host.reference import compare, reference_outputs
from celosia.host.simplify import simplify
from celosia.host.trace import trace

torch.set_num_threads(1)


def uneven(layer):
    """The layer with channels of very different ranges."""
    outputs = layer.weight.data.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight.data
    factors = 2.0 ** torch.linspace(-5, 5, len(outputs))
    outputs *= factors.reshape(-1, *[1] * (outputs.dim() - 1))
    layer.bias.data *= factors
    return layer


#: Model and how many pairs of its layers can be equalized.
MODELS = {
    "relu": (lambda: nn.Sequential(uneven(conv(3, 8)), nn.ReLU(), conv(8, 8)), 1),
    "depthwise": (lambda: nn.Sequential(uneven(conv(3, 8)), normalized(8), nn.ReLU(), uneven(conv(8, 8, groups=8)), nn.ReLU(), conv(8, 4, 1)), 2),
    "multiplied_depthwise": (lambda: nn.Sequential(uneven(conv(3, 8)), conv(8, 24, groups=8)), 1),
    "grouped": (lambda: nn.Sequential(uneven(conv(3, 8)), nn.LeakyReLU(0.1), conv(8, 12, groups=2)), 1),
    "pools": (lambda: nn.Sequential(uneven(conv(3, 8)), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.ZeroPad2d(1), conv(8, 8)), 1),
    "flattened": (lambda: nn.Sequential(uneven(conv(3, 8)), nn.PReLU(8), nn.MaxPool2d(4), nn.Flatten(), uneven(nn.Linear(128, 16)), nn.ReLU(), nn.Linear(16, 5)), 2),
    "global": (lambda: nn.Sequential(uneven(conv(3, 8)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), 1),
    "transposed": (lambda: nn.Sequential(uneven(conv(3, 8)), uneven(nn.ConvTranspose2d(8, 6, 2, 2)), nn.ReLU(), nn.Upsample(scale_factor=2), conv(6, 4)), 2),
    "relu6": (lambda: nn.Sequential(conv(3, 8), nn.ReLU6(), conv(8, 8)), 0),
    "hardswish": (lambda: nn.Sequential(conv(3, 8), nn.Hardswish(), conv(8, 8)), 0),
    "residual": (lambda: Function(lambda m, x: (lambda y: m.b(y) + y)(m.a(x)), a=conv(3, 8), b=conv(8, 8)), 0),
    "shared": (lambda: Function(lambda m, x: m.c(F.relu(m.c(x))), c=conv(3, 3)), 0),
    "dead": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), conv(8, 4)), 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_and_so_does_the_model(name):
    torch.manual_seed(0)
    factory, count = MODELS[name]
    model, batch = factory().eval(), torch.randn(4, 3, 16, 16)
    if name == "dead":
        model[0].weight.data[::2] = 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = simplify(trace(model, (batch,)))
    assert equalize(graph, (batch,)) == count
    with torch.no_grad():
        wanted = model(batch)
        assert torch.allclose(graph(batch), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_map_with_uneven_channels_gains():
    torch.manual_seed(0)
    model = nn.Sequential(uneven(conv(3, 16)), nn.ReLU(), conv(16, 8)).eval()
    model[2].weight.data /= 2.0 ** torch.linspace(-5, 5, 16).reshape(-1, 1, 1)
    batch, ratios = torch.randn(8, 3, 16, 16), []
    for option in (False, True):
        qmodel = quantize(model, [batch], equalize=option)
        assert max(record.max_lsb_error for record in compare(qmodel, batch)) <= 1
        with torch.no_grad():
            wanted = model(batch)
        ratios.append(10 * math.log10(float(wanted.square().sum() / (reference_outputs(qmodel, batch)[0] - wanted).square().sum())))
    assert ratios[1] > ratios[0] + 10
