"""Image data sets, read from files that are already on this machine; nothing is downloaded and nothing unpickled.

A data set is looked for in `$CELOSIA_DATA`, then in `../shared/data` beside the checkout, then where Debian's packages put
data sets, then in the user's cache; in each of them directly or in a folder of the data set's name.
"""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image


class DataError(ValueError):
    """A data set is missing or its files are not what they should be."""


@dataclass(frozen=True)
class ImageData:
    """Labelled grey images in the published order: `*_images` uint8 (N, H, W), `*_labels` uint8 (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Preprocess:
    """What a network expects of its input: per channel `(value / 255 - mean) / std`.

    Parameters
    ----------
    crop
        The share of a photograph's shorter side that the network sees: the middle, scaled to its input.
    resample
        How a photograph is scaled: `"bilinear"` or `"bicubic"`.
    fit
        `"cover"`: what of a photograph exceeds the input's sides is cut off; `"inside"`: it is seen whole, at the top left, and the rest is grey.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    resample: str = "bilinear"
    fit: str = "cover"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W) or (N, H, W, C) → float32 (N, C, H, W). Raises `ValueError` for another type or shape."""
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != len(self.mean):
            raise ValueError(f"images must be uint8 (N, H, W, {len(self.mean)}), not {images.dtype} {tuple(images.shape)}")
        scale = np.float32(1 / 255) / np.array(self.std, np.float32)
        offset = np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        return (images * scale - offset).transpose(0, 3, 1, 2)

    def frame(self, image: Image.Image, size: int) -> Image.Image:
        """What the network sees of a photograph: a square of that size."""
        return frame(image, size, size, crop=self.crop, resample=self.resample, fit=self.fit)


def frame(image: Image.Image, width: int, height: int, *, crop: float = 1.0, resample: str = "bilinear", fit: str = "cover") -> Image.Image:
    """What a network sees of a photograph, as :class:`Preprocess` describes it: an image of that size."""
    scale = (min if fit == "inside" else max)(width / image.width, height / image.height) / crop
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling[resample.upper()])
    if fit == "inside":
        whole = Image.new(image.mode, (width, height), "#7f7f7f")
        whole.paste(scaled)
        return whole
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class _Source:
    title: str
    preprocess: Preprocess
    sample: str | None
    files: tuple[str, ...]
    folder: str
    remedy: str
    read: Callable[[Path], ImageData]


def names() -> tuple[str, ...]:
    """The data sets `load` knows."""
    return tuple(_SOURCES)


def load(name: str) -> ImageData:
    """Read a data set.

    Raises
    ------
    DataError
        If the name is unknown, the files are nowhere to be found (the message says where they can be had and what they
        must be called), or a file is damaged.
    """
    source = _source(name)
    folder = _find(source)
    if folder is None:
        raise DataError(missing(name))
    return source.read(folder)


def sample(name: str) -> ImageData:
    """The first training and test images of a data set, as they come with the package.

    Raises `DataError` if the name is unknown or nothing of that data set is bundled.
    """
    file = Path(__file__).parent / "samples" / f"{_source(name).sample}.npz"
    if not file.is_file():
        raise DataError(f"no sample of {name} comes with the package")
    with np.load(file, allow_pickle=False) as arrays:
        return ImageData(**arrays)


def preprocess(name: str) -> Preprocess:
    """How networks trained here on a data set expect its images. Raises `DataError` for an unknown name."""
    return _source(name).preprocess


def available(name: str) -> bool:
    """Whether all files of a data set are present. Raises `DataError` for an unknown name."""
    return _find(_source(name)) is not None


def missing(name: str) -> str:
    """One line that says where a data set can be had and what its files must be called."""
    source = _source(name)
    return f"{source.title} not found: {source.remedy}, and put {', '.join(source.files)} into {_cache() / source.folder} or into a folder named by $CELOSIA_DATA"


def _source(name: str) -> _Source:
    try:
        return _SOURCES[name]
    except KeyError:
        raise DataError(f"data set must be one of {', '.join(_SOURCES)}, not {name!r}") from None


def _find(source: _Source) -> Path | None:
    for root in _roots():
        for folder in (root, root / source.folder):
            if all((folder / file).is_file() for file in source.files):
                return folder
    return None


def _roots() -> list[Path]:
    override = os.environ.get("CELOSIA_DATA")
    return [
        *([Path(override)] if override else []),
        Path(__file__).resolve().parents[2] / "shared" / "data",
        Path("/usr/share/datasets"),
        _cache(),
    ]


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("celosia")) / "data"


def _read_fashion_mnist(folder: Path) -> ImageData:
    images, labels = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
    data = ImageData(
        read_idx(folder / f"train-{images}"),
        read_idx(folder / f"train-{labels}"),
        read_idx(folder / f"t10k-{images}"),
        read_idx(folder / f"t10k-{labels}"),
    )
    return _checked(data, folder)


def _read_mnist(folder: Path) -> ImageData:
    path = folder / "mnist.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            data = ImageData(*(file[key] for key in ("train_images", "train_labels", "test_images", "test_labels")))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not the MNIST archive: {error}") from None
    return _checked(data, folder)


def _checked(data: ImageData, folder: Path) -> ImageData:
    for part, count in (("train", 60_000), ("test", 10_000)):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            raise DataError(f"{folder}: {part} images and labels must have shapes ({count}, 28, 28) and ({count},), not {images.shape} and {labels.shape}")
    return data


def read_idx(path: Path) -> np.ndarray:
    """Read a gzip-compressed IDX file of unsigned bytes into a uint8 array of the shape it states.

    Raises `DataError` if the file is not gzip, not IDX, not of bytes, or shorter or longer than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is not a gzip file: {error}") from None
    # Two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension big-endian.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} ends inside its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != int(np.prod(shape)):
        raise DataError(f"{path} must hold {int(np.prod(shape))} bytes after its header, not {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


_SOURCES = {
    "fashion-mnist": _Source(
        title="Fashion-MNIST",
        preprocess=Preprocess(mean=(0.2860,), std=(0.3530,)),
        sample="fashion",
        files=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        folder="fashion-mnist",
        remedy="install the Debian package dataset-fashion-mnist, or download it from https://github.com/zalandoresearch/fashion-mnist",
        read=_read_fashion_mnist,
    ),
    "mnist": _Source(
        title="MNIST",
        preprocess=Preprocess(mean=(0.1307,), std=(0.3081,)),
        sample=None,
        files=("mnist.npz",),
        folder="mnist",
        remedy="download https://github.com/rasbt/mnist-pngs, pack it as arrays train_images, train_labels, test_images and test_labels",
        read=_read_mnist,
    ),
}
