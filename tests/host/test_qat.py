import pytest
import torch
import torch.nn.functional as F
from modules import Function, conv
from torch import nn

from celosia.host.errors import CelosiaError
from celosia.host.qat import FineTuning
from celosia.host.quantize import quantize
from celosia.host.reference import compare, reference_outputs

torch.set_num_threads(1)


@pytest.fixture
def coarse():
    """A network some of whose channels lie far below the LSB of their map, and batches."""
    torch.manual_seed(0)
    model = Function(lambda m, x: m.f(F.relu(m.b(F.relu(m.n(m.a(x)))) + m.c(x)).mean((2, 3))), a=conv(3, 8, bias=False), n=nn.BatchNorm2d(8), b=conv(8, 8),
                     c=conv(3, 8, 1), f=nn.Linear(8, 5)).eval()
    factors = 2.0 ** torch.linspace(-4, 4, 8)
    model.layers["n"].weight.data *= factors
    model.layers["b"].weight.data /= factors.reshape(-1, 1, 1)
    return model, torch.randn(64, 3, 8, 8).split(16)


def error(qmodel, model, images):
    with torch.no_grad():
        return float((reference_outputs(qmodel, images)[0] - model(images)).square().mean())


def test_the_outputs_come_closer_to_the_float_ones_on_other_images(coarse):
    model, batches = coarse
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen, fresh = [], torch.randn(64, 3, 8, 8)
    plain, tuned = quantize(model, batches), quantize(model, batches, fine_tune=FineTuning(epochs=8, batch_size=8), progress=lambda *step: seen.append(step))
    assert error(tuned, model, fresh) < 0.7 * error(plain, model, fresh)
    assert max(record.max_lsb_error for record in compare(tuned, fresh)) <= 1
    assert [tensor.scale for tensor in tuned.tensors.values()] == [tensor.scale for tensor in plain.tensors.values()]
    assert ("fine-tune", 8 * 7) in seen and seen[-1] == ("convert", 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_same_network_twice_and_from_another_seed(coarse):
    model, batches = coarse
    weights = [quantize(model, batches, fine_tune=FineTuning(epochs=8, batch_size=8, seed=seed)).layers[0].weight.tobytes() for seed in (0, 0, 1)]
    assert weights[0] == weights[1] != weights[2]


def test_it_is_never_worse_on_what_is_held_out(coarse):
    """Steps so wide that they only do harm."""
    model, batches = coarse
    plain, tuned = quantize(model, batches), quantize(model, batches, fine_tune=FineTuning(epochs=1, batch_size=8, step_lsb=10))
    held = torch.cat(batches)[::8]
    assert error(tuned, model, held) <= error(plain, model, held)


def test_shared_weights_and_two_outputs():
    torch.manual_seed(0)
    model = Function(lambda m, x: (m.c(F.relu(m.c(x))), m.d(x)), c=conv(3, 3), d=conv(3, 2)).eval()
    batch = torch.randn(16, 3, 8, 8)
    qmodel = quantize(model, [batch], fine_tune=FineTuning(epochs=2))
    assert max(record.max_lsb_error for record in compare(qmodel, batch)) <= 1
    assert (qmodel.layers[0].weight == qmodel.layers[1].weight).all()


def test_a_fixed_batch_repeats_no_image(coarse, monkeypatch):
    model, batches = coarse
    exported = torch.export.export(model, (torch.cat(batches)[:8],))
    seen = []
    monkeypatch.setattr("celosia.host.quantize.fine_tune_graph", lambda *arguments, **options: seen.append((arguments[3], options["batch"])))
    quantize(exported, [image[None] for image in torch.cat(batches)[:4]], fine_tune=True)
    [(inputs, batch)] = seen
    assert batch == 8 and torch.equal(inputs[0], torch.cat(batches)[:4])


def test_labels(coarse):
    """Weights learn to give a class that the float network never does."""
    model, batches = coarse
    data = [(batch, torch.full((len(batch),), 2)) for batch in batches]
    qmodel = quantize(model, batches, fine_tune=FineTuning(epochs=8, batch_size=8, step_lsb=2, batches=data, labels=True))
    logits = [reference_outputs(each, torch.cat(batches))[0].log_softmax(1)[:, 2].mean() for each in (quantize(model, batches), qmodel)]
    assert logits[1] > logits[0] + 0.1


@pytest.mark.parametrize("options, reason", [
    ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"), ({"batch_size": 1.5}, "batch_size must be"), ({"step_lsb": 0}, "step_lsb must be above 0"),
    ({"labels": True}, "labels need batches of their own"),
])
def test_settings_are_checked(options, reason):
    with pytest.raises(CelosiaError, match=reason):
        FineTuning(**options)


def test_batches_are_checked(coarse):
    model, batches = coarse
    for wrong, reason in (([torch.randn(2, 3, 9, 9)], "another shape"), ([torch.randn(2, 3, 8, 8)] * 2, "batch 0 has no labels"),
                          ([(torch.randn(2, 3, 8, 8), torch.zeros(3))], "batch 0 has no labels"), ([], "there is no batch")):
        with pytest.raises(CelosiaError, match=reason):
            quantize(model, batches, fine_tune=FineTuning(batches=wrong, labels=reason != "another shape"))
