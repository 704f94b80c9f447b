"""Networks whose maps are concatenated or multiplied, from PyTorch to the RTL."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from celosia.host.compile import compile
from celosia.host.device import open_device
from celosia.host.quantize import quantize
from celosia.host.reference import compare

torch.set_num_threads(1)


class Mixed(nn.Module):
    """What SqueezeNet, GoogLeNet and DenseNet are made of, in small: a fire module, an inception with a bordered pooling, a dense block with a transition."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, -0.2, 0.1]).view(3, 1, 1))
        self.squeeze, self.one, self.three = nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(5, 8, 1), nn.Conv2d(5, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (32, 40, 48))
        self.grow = nn.ModuleList(nn.Conv2d(channels, 8, 3, padding=1, bias=False) for channels in (32, 40))
        self.last = nn.Conv2d(48, 6, 1)

    def forward(self, x):
        x = F.relu(self.squeeze((x - self.mean) / 0.8))
        x = torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)
        x = torch.cat([self.left(x), self.right(x), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)], 1)
        maps = [x]
        for norm, grow in zip(self.norms, self.grow):
            maps.append(grow(F.relu(norm(torch.cat(maps, 1)))))
        return self.last(F.avg_pool2d(F.relu(self.norms[-1](torch.cat(maps, 1))), 2, ceil_mode=True)).mean((2, 3))


def calibrated(network, *shape):
    """The quantized network and images it has not seen; its batch norms have the statistics of seeded noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(9, *shape, generator=generator)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
        elif isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        network(images[:8])
    return quantize(network, [images[:8]]), images[8:]


def check(network, config, least_db, *shape):
    """Every layer agrees with the quantize–dequantize graph, the outputs with the float network, and the RTL with golden."""
    qmodel, image = calibrated(network, *shape)
    assert max(record.max_lsb_error for record in compare(qmodel, image)) <= 1
    program = compile(qmodel, config)
    with open_device("golden", config) as device:
        expected = device.run(program, image.numpy())
    with torch.no_grad():
        real = network.eval()(image).numpy()
    assert 10 * math.log10(np.square(real).mean() / np.square(expected.outputs[0] - real).mean()) > least_db
    with open_device("rtl", config) as device:
        result = device.run(program, image.numpy())
    np.testing.assert_array_equal(result.codes[0], expected.codes[0])
    assert min(result.layers) > 0
    return qmodel


def test_what_they_are_made_of():
    torch.manual_seed(0)
    qmodel = check(Mixed(), "tiny", 20, 3, 20, 16)
    ops = [layer.op for layer in qmodel.layers]
    assert "copy" not in ops and ops.count("avg_pool") == 9 + 4 + 1
    assert qmodel.part("cat#2").tensor == qmodel.part("avg_pool2d").tensor == qmodel.part("grow.0").tensor == "cat#4"


@pytest.mark.long
@pytest.mark.parametrize("name, copies", [("squeezenet1_1", 0), ("googlenet", 0), ("densenet121", 4), ("mobilenet_v3_large", 0)])
def test_torchvisions(name, copies):
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    qmodel = check(getattr(models, name)(weights=None, num_classes=10, **options), "ulx3s-85f", 4, 3, 64, 64)  # random weights lose much
    ops = [layer.op for layer in qmodel.layers]
    assert ops.count("copy") <= copies and "concat" not in ops, "concatenation is by address"



def test_layers_of_equal_weights_share_them():
    torch.manual_seed(0)
    shared, image = nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 6, 6)
    once, twice = (compile(quantize(nn.Sequential(*layers), [image]), "tiny") for layers in ([shared], [shared, shared]))
    assert 64 * 64 * 9 < once.code_offset < twice.code_offset < once.code_offset + 64 * 64


def test_every_run_has_outputs_of_its_own():
    """Of a classifier, whose output lies in memory as it is returned, in more batches than one."""
    torch.manual_seed(0)
    images = torch.randn(5, 8, 3, 3)
    program = compile(quantize(nn.Sequential(nn.Flatten(), nn.Linear(72, 16)).eval(), [images]), "tiny", 2)
    with open_device("golden", "tiny") as golden, open_device("rtl", "tiny") as rtl:
        given = images.numpy().reshape(5, *program.network.tensors[program.network.inputs[0]].shape)
        np.testing.assert_array_equal(rtl.run(program, given).codes[0], golden.run(program, given).codes[0])
