import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from celosia.models import recipes, zoo

SAMPLE_CORRECT = {"fashion-resnet": 951, "fashion-vgg": 939}  # of the 1,000 sample images


def test_listing_does_not_import_torch():
    code = (
        "import sys; from celosia.models import zoo; "
        "[(e.input_shape, e.classes, e.preprocess, e.metadata()) for e in map(zoo.get, zoo.names())]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_name():
    with pytest.raises(ValueError, match="model must be one of fashion-resnet, fashion-vgg, resnet18, not 'lenet'"):
        zoo.get("lenet")


@pytest.mark.parametrize("name", zoo.names())
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
        logits = network(images[:4])
    assert logits.shape == (4, len(entry.classes)) and logits.isfinite().all()
    assert logits.std() > 0.1
    if labels is not None:
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1] and labels.max() < len(entry.classes)


@pytest.mark.parametrize("name", zoo.names())
def test_building_again_gives_the_same_weights(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = zoo.get(name).build().state_dict(), zoo.get(name).build().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_random_weights_have_no_history():
    assert zoo.get("resnet18").metadata() == {}


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
