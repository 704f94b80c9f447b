"""Models, weights and images that cannot be quantized, and the sentence that says so."""

import pytest
import torch
import torch.nn.functional as F
from modules import Function, conv, make
from torch import nn

from celosia.host import graph
from celosia.host.errors import CelosiaError, UnsupportedError
from celosia.host.quantize import quantize

torch.set_num_threads(1)


class Positions(nn.Module):
    """Adds a parameter."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(1, 4, 6, 6))

    def forward(self, x):
        return x + self.embedding


@pytest.mark.parametrize("batches, message", [
    ([], "there is no batch"),
    ([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], "batch 0 is uint8; yield float32"),
    ([torch.zeros(3, 8, 8)], r"batch 0 has shape \(3, 8, 8\)"),
    ([torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)], "batch 1 holds a NaN"),
    ([torch.ones(1, 3, 8, 8), torch.ones(1, 3, 9, 9)], r"batch 1 has images of shape \(3, 9, 9\), the first had \(3, 8, 8\)"),
    (["picture.png"], "batch 0 is no tensor but str"),
    ([torch.ones(1, 4, 8, 8)], r"Sequential does not accept a batch of shape \(2, 4, 8, 8\)"),
    ([()], "batch 0 holds 0 tensors, the model takes 1"),
])
def test_calibration_that_cannot_be_used(batches, message):
    with pytest.raises(CelosiaError, match=message):
        quantize(nn.Sequential(conv(3, 4)), batches)


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(conv(3, 4), conv(4, 4))
    model[1].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(CelosiaError, match=r"parameter 1\.weight holds a NaN or an infinity"):
        quantize(model, [torch.ones(1, 3, 8, 8)])


def test_overflow_in_the_float_model_is_named():
    model = nn.Sequential(conv(3, 4), conv(4, 4))
    for layer in model:
        layer.weight.data.mul_(1e25)
    with pytest.raises(CelosiaError, match="layer 1 computes a NaN or an infinity"):
        quantize(model, [torch.ones(1, 3, 8, 8)])


REFUSED = {
    "Softshrink": (nn.Softshrink(), r"0 \(Softshrink\).*: softshrink is not supported; end the model before it"),
    "sine": (Function(lambda m, x: torch.sin(x)), r"^0 \(Function\), .*modules.py:\d+: sin is not supported; end the model"),
    "negative_prelu": (nn.Sequential(conv(3, 4), nn.PReLU(init=-0.25)), "prelu of slope -0.25 is not supported; keep the slopes at 0 or more"),
    "slopes_of_elements": (nn.Sequential(nn.Flatten(), nn.PReLU(192)), "prelu of 192 slopes, one for each element, is not supported; use one slope"),
    "division": (Function(lambda m, x: x / 0.0), "div divides by zero or uses a NaN or an infinity; use finite constants"),
    "negative_slope": (nn.LeakyReLU(-0.1), "leaky_relu of slope -0.1 is not supported; keep the slopes at 0 or more"),
    "transposed": (nn.ConvTranspose2d(3, 4, 16, stride=16), "conv_transpose2d by 16 along rows exceeds the engine's 8; do it in several steps"),
    "interpolate": (Function(lambda m, x: F.interpolate(x, (12, 16))), "upsample_nearest2d from 8×8 to 12×16 is not supported; enlarge by whole numbers"),
    "bilinear": (Function(lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear")), "upsample_bilinear2d is not supported"),
    "conv3d": (Function(lambda m, x: m.c(x.unsqueeze(2)), c=nn.Conv3d(3, 4, 1)), r"layers.c \(Conv3d\).*conv3d is not supported"),
    "softmax": (Function(lambda m, x: F.log_softmax(x.flatten(1), 1)), "log_softmax is not supported; drop it, the order"),
    "pad_value": (Function(lambda m, x: F.pad(x, (1, 1), value=2.0)), r"pad with mode 'constant' and value 2.0 is not supported; pad with zeros"),
    "pad_mode": (nn.ReflectionPad2d(1), "pad with mode 'reflect'"),
    "crop": (Function(lambda m, x: F.pad(x, (-1, 0))), r"pad by \(-1, 0\) is not supported"),
    "cat": (Function(lambda m, x: torch.cat([x, x], 2)), r"cat along dimension 2 is not supported; concatenate along the channels \(1\)"),
    "cat_of_images": (Function(lambda m, x: torch.cat([x, x])), "cat along dimension 0 is not supported"),
    "cat_of_reshaped": (Function(lambda m, x: F.relu(torch.cat([x.flatten(1), x.flatten(1)], 1))), r"cat of a map reshaped from \(3, 8, 8\) to \(192,\)"),
    "cat_of_constant": (Function(lambda m, x: torch.cat([x, torch.zeros(2, 1, 8, 8)], 1)), "its code fixes the batch to 2"),
    "crop_by_slice": (Function(lambda m, x: F.relu(x[:, :, 1:])), "slice along dimension 2 with step 1 is not supported; take channels next to each other"),
    "step": (Function(lambda m, x: F.relu(x[:, ::2])), "slice along dimension 1 with step 2"),
    "stack": (Function(lambda m, x: torch.stack([x, x], 1).flatten(1, 2)), "stack is not supported"),
    "adaptive_of_many_kinds": (nn.AdaptiveAvgPool2d(19), "of a 8×8 map to 19×19 has windows of 361 kinds; choose an output size that divides the map"),
    "mean": (Function(lambda m, x: x.mean(1)), r"mean over dimensions \[1\] is not supported"),
    "dilated_pool": (nn.MaxPool2d(2, dilation=2), r"max_pool2d with dilation \(2, 2\)"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "max_pool2d_with_indices is not supported"),
    "add_parameter": (nn.Sequential(nn.Conv2d(3, 4, 3), Positions()),
                      r"add with a constant of shape \(4, 6, 6\) on a map of \(4, 6, 6\) is not supported; use one value for each channel"),
    "constant_after_pooling": (Function(lambda m, x: x.mean((2, 3)) + 1), "add after something other than a linear layer is not supported"),
    "divide": (Function(lambda m, x: 1 - 3 / x), "reciprocal is not supported"),
    "divide_by_map": (Function(lambda m, x: m.p.weight.view(1, 3, 1, 1) / x, p=nn.BatchNorm2d(3)), "div by a map is not supported"),
    "floor": (Function(lambda m, x: torch.div(x, 2, rounding_mode="floor")), "div is not supported"),
    "nothing": (nn.Flatten(), "the model computes nothing"),
    "add_broadcast": (Function(lambda m, x: x + x.mean((2, 3), keepdim=True)), "add of maps of different shapes"),
    "linear_on_map": (nn.Linear(8, 4), "linear of a tensor of 4 dimensions is not supported; flatten the map"),
    "reshape": (Function(lambda m, x: F.relu(x.reshape(x.shape[0], 8, 3, 8))), r"reshape from \(3, 8, 8\) to \(8, 3, 8\)"),
    "batch_reshape": (Function(lambda m, x: F.relu(x.reshape(-1, 8, 8))), "changes the batch dimension"),
    "batch_statistics": (nn.BatchNorm2d(3, track_running_stats=False), "uses the batch's own statistics"),
    "complex": (Function(lambda m, x: torch.fft.fft2(x).real), "is not supported"),
    "control_flow": (Function(lambda m, x: x if x.sum() > 0 else -x), r"cannot be exported at .*test_refused.py:\d+ .*; remove control flow"),
    "fixed_batch": (Function(lambda m, x: F.relu(x.view(2, -1))), "its code fixes the batch to 2"),
    "dropout": (Function(lambda m, x: F.dropout(x, 0.5)), "dropout is active in evaluation"),
    "output_twice": (Function(lambda m, x: (lambda y: (y, y.flatten(1)))(F.relu(x))), "output holds one map twice"),
    "output_constant": (Function(lambda m, x: (F.relu(x), 3)), "output holds something other than feature maps"),
    "multiply": (Function(lambda m, x: x * F.relu(x)), r"mul of maps of shapes \(3, 8, 8\) and \(3, 8, 8\) is not supported; multiply a map by one value for each"),
    "multiply_by_pixels": (Function(lambda m, x: m.a(x).sigmoid() * x, a=conv(3, 1)), r"mul of maps of shapes \(3, 8, 8\) and \(1, 8, 8\) is not supported"),
    "multiply_flattened": (Function(lambda m, x: x.flatten(1) * x.flatten(1).relu()), r"mul of maps \(3, 8, 8\) and \(3, 8, 8\) is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_one_sentence(name):
    module, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message) as caught:
        quantize(nn.Sequential(module), [torch.randn(2, 3, 8, 8)])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_ratio_of_scales_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="ratio must be below 1.98"):
        graph._factor(508.6 / 256)
    model = Function(lambda m, x: m.a(x) * m.g(x).relu(), a=conv(3, 2), g=conv(3, 2, 16, padding=0))
    for layer, bias in (("a", [1000.0, 0.001]), ("g", [-1.0, 1.0])):  # what is large is multiplied by 0
        model.layers[layer].weight.data.zero_()
        model.layers[layer].bias.data = torch.tensor(bias)
    with pytest.raises(CelosiaError, match=r"^layer mul: the product of its maps' scales is 3\.92e\+03 times its output's, 2 or more; its outputs are far smaller"):
        make(model)


def test_a_factor_with_negative_values_is_refused():
    model = Function(lambda m, x: m.a(x) * m.g(x).tanh(), a=conv(3, 8), g=conv(3, 8, 16, padding=0))
    with pytest.raises(CelosiaError, match="^layer mul: multiplies by a map that has negative values; let a sigmoid or a ReLU go before$"):
        make(model)


def test_uninitialized_weights_are_refused():
    with pytest.raises(CelosiaError, match="parameter weight is not initialized; call the model"):
        quantize(nn.LazyConv2d(4, 3), [torch.randn(2, 3, 8, 8)])


def test_unused_input_is_refused():
    class Ignoring(nn.Module):
        def forward(self, x, y):
            return F.relu(x)

    with pytest.raises(CelosiaError, match="y is never used; remove it"):
        quantize(Ignoring(), [(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))])
