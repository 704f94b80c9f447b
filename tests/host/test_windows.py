"""Average pooling over more than the engine takes at once."""

import pytest
import torch
from torch import nn

from celosia.host.compile import compile
from celosia.host.errors import CompileError
from celosia.host.quantize import quantize
from celosia.host.reference import compare
from celosia.host.simplify import simplify
from celosia.host.trace import trace

torch.set_num_threads(1)


@pytest.mark.parametrize("pool, size, kernels", [
    (nn.AvgPool2d(32, 10), (52, 32), [(32, 32)]),
    (nn.AvgPool2d(40), (40, 40), [(10, 10), (4, 4)]),
    (nn.AvgPool2d(36, 18), (54, 91), [(9, 9), (4, 4)]),
    (nn.AvgPool2d((33, 3), (45, 2)), (78, 7), [(3, 1), (11, 3)]),
    (nn.AvgPool2d((4, 20), ceil_mode=True), (8, 60), [(4, 10), (1, 2)]),
    (nn.AvgPool2d(60, padding=12, count_include_pad=False), (36, 36), [(12, 12), (3, 3)]),
    (nn.AdaptiveAvgPool2d((2, 1)), (36, 31), [(9, 1), (2, 31)]),
    (nn.AdaptiveAvgPool2d(1), (26, 676), [(13, 13), (2, 13), (1, 4)]),
], ids=str)
def test_means_of_large_windows_are_those_of_their_parts(pool, size, kernels):
    torch.manual_seed(1)
    images = torch.randn(3, 8, *size)
    torch.testing.assert_close(simplify(trace(pool, (images,)))(images), pool(images))
    qmodel = quantize(pool, [images])
    assert [layer.weight.shape[2:] for layer in qmodel.layers] == kernels
    assert max(record.max_lsb_error for record in compare(qmodel, torch.randn(2, 8, *size))) <= 1
    compile(qmodel, "ulx3s-85f")


@pytest.mark.parametrize("pool, problem", [
    (nn.AvgPool2d(37), "kernel height 37 exceeds the engine's 32"),
    (nn.AvgPool2d((1, 17)), "stride 17 exceeds the engine's 15"),
    (nn.AvgPool2d(40, padding=2), "kernel height 40 exceeds the engine's 32"),
    (nn.AvgPool2d(36, divisor_override=100), "kernel height 36 exceeds the engine's 32"),
], ids=str)
def test_what_has_no_equal_parts_is_refused(pool, problem):
    qmodel = quantize(nn.Sequential(pool), [torch.randn(2, 8, 37, 37)])
    with pytest.raises(CompileError, match=f"^layer 0: {problem}; keep it on the host or split the layer$"):
        compile(qmodel, "ulx3s-85f")
