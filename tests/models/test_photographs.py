from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from celosia.host import images
from celosia.models import photographs
from celosia.models.data import DataError, Preprocess

HALF = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.875, resample="bicubic")


@pytest.mark.parametrize("name", photographs.names())
def test_photograph(name):
    image = photographs.load(name)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) > 100
    assert image.std() > 5


def test_unknown_name():
    with pytest.raises(ValueError, match="photograph must be one of astronaut, .*, not 'lena'"):
        photographs.path("lena")


def test_missing_package(monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"photograph china comes with scikit-learn, which is not installed; pip install 'celosia\[zoo\]'"):
        photographs.load("china")


def test_middles_are_what_the_command_line_makes_of_the_files():
    names = ["coffee", "camera", "retina"]  # colour, grey, larger
    preprocess = {"mean": HALF.mean, "std": HALF.std, "crop": HALF.crop, "resample": HALF.resample}
    loaded, _ = images.load([photographs.path(name) for name in names], (3, 224, 224), preprocess)
    middles = photographs.centres(names, 224, HALF)
    assert middles.dtype == np.uint8 and middles.shape == (3, 224, 224, 3)
    np.testing.assert_allclose(HALF(middles), loaded, atol=1e-6)


def test_the_middle_is_the_share_asked_for():
    """A photograph of 512 pixels at 0.875 of 448: nothing is scaled."""
    image = photographs.load("astronaut")
    middle = photographs.centres(["astronaut"], 448, HALF)[0]
    np.testing.assert_array_equal(middle, image[32:480, 32:480])


def test_random_crops():
    crops = list(islice(photographs.random_crops(["coffee", "china"], 32, HALF, seed=3), 8))
    assert all(crop.shape == (32, 32, 3) and crop.dtype == np.uint8 for crop in crops)
    for crop, again in zip(crops, photographs.random_crops(["coffee", "china"], 32, HALF, seed=3)):
        np.testing.assert_array_equal(crop, again)
    assert any((crop != other).any() for crop, other in zip(crops, photographs.random_crops(["coffee", "china"], 32, HALF, seed=4)))


def test_recognised_crops():
    """A network that is sure, of class 1, of bright crops only."""
    def network(batch):
        bright = batch.mean((1, 2, 3)) > 0
        return torch.stack([torch.zeros(len(batch)), torch.where(bright, 5.0, 0.0)], 1)

    drawn = list(islice(photographs.random_crops(["coffee", "camera"], 16, HALF, seed=3), 64))
    wanted = [number for number, crop in enumerate(drawn) if HALF(crop[None]).mean() > 0]
    assert 10 < len(wanted) < 54
    crops = photographs.random_crops(["coffee", "camera"], 16, HALF, seed=3)
    for number, (found, image, index, probability) in zip(wanted, photographs.recognised(crops, network, HALF, least=0.9)):
        assert (found, index) == (number, 1) and probability == pytest.approx(1 / (1 + np.exp(-5)))
        np.testing.assert_array_equal(image, drawn[number])


def test_preprocessing_says_how_to_scale(tmp_path):
    Image.fromarray(photographs.load("chelsea")).save(tmp_path / "cat.png")
    found = [images.load([tmp_path / "cat.png"], (3, 64, 64), preprocess)[0]
             for preprocess in ({}, {"crop": 1.0, "resample": "bilinear"}, {"crop": 0.875}, {"resample": "bicubic"})]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any() and (found[0] != found[3]).any()
