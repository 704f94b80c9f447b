import torch
import torch.nn.functional as F
from modules import Function, conv
from torch import nn

from celosia.host.quantize import quantize
from celosia.host.reference import compare, reference_outputs

torch.set_num_threads(1)


def mean_error(qmodel, model, batch):
    """Largest mean error of an output channel, in LSB of the output."""
    [output], [name] = reference_outputs(qmodel, batch), qmodel.outputs
    with torch.no_grad():
        difference = output - model(batch)
    return float(difference.transpose(0, 1).flatten(1).mean(1).abs().max()) / qmodel.tensors[name].scale


def test_the_mean_error_goes_into_the_biases():
    """A residual, a convolution without bias, a transposed and a linear layer."""
    torch.manual_seed(0)
    model = Function(lambda m, x: m.f(m.t(F.relu(m.b(F.relu(m.a(x))) + m.a(x))).flatten(1)), a=conv(3, 8, bias=False), b=conv(8, 8),
                     t=nn.ConvTranspose2d(8, 4, 2, 2), f=nn.Linear(1024, 6)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = torch.randn(32, 3, 8, 8).abs().split(12)
    plain, corrected = (quantize(model, batches, correct_bias=option) for option in (False, True))
    batch = torch.cat(batches)
    assert mean_error(corrected, model, batch) < 0.3 * mean_error(plain, model, batch)
    assert max(record.max_lsb_error for record in compare(corrected, batch)) <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_that_share_a_bias_are_corrected_apart():
    torch.manual_seed(0)
    model = Function(lambda m, x: m.c(F.relu(m.c(x))), c=conv(3, 3)).eval()
    batch = torch.randn(16, 3, 8, 8)
    qmodel = quantize(model, [batch], correct_bias=True)
    assert mean_error(qmodel, model, batch) < 0.1


def test_a_fixed_batch():
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)).eval()
    program = torch.export.export(model, (torch.randn(4, 3, 8, 8),))
    batches = [torch.randn(6, 3, 8, 8)]
    qmodel = quantize(program, batches, correct_bias=True, equalize=True, fine_tune=True)
    assert qmodel.batch == 4 and max(record.max_lsb_error for record in compare(qmodel, batches[0][:4])) <= 1
