"""Images in and pictures out: photographs, `.npz` files and folders become network inputs; results become a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..models.data import frame
from .errors import CelosiaError

__all__ = ["draw", "draw_boxes", "expect_format", "load"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def load(paths: "Sequence[str | Path]", shape: "tuple[int, int, int] | None", preprocess: dict) -> "tuple[np.ndarray, list[str]]":
    """Float32 images (N, C, H, W) of `shape` (C, H, W), and a name for each, from image files, folders of them and `.npz` files.

    The shorter side of a photograph, or the share of it that `preprocess` says, is scaled to the network's size and the rest cut off, or all of it is scaled to
    fit inside; then comes `preprocess`, as :class:`celosia.hw.network.Network` has it. An `.npz` holds one array, or one named `images`: uint8 (N, H, W) or
    (N, H, W, C) are treated like photographs of the right size, float (N, C, H, W) are taken as they are. Without `shape` only the latter will do.
    Raises :exc:`CelosiaError` naming the file that is missing, damaged or of another shape.
    """
    arrays, names = [], []
    for path in _files(paths):
        if path.suffix == ".npz":
            array = _archive(path, shape, preprocess)
            names += [f"{path.name}[{index}]" for index in range(len(array))]
        else:
            array = normalise(_photograph(path, shape, preprocess)[None], preprocess)
            names.append(path.name)
        arrays.append(array)
        if array.shape[1:] != arrays[0].shape[1:]:
            raise CelosiaError(f"{path}: has images of shape {_by(array.shape[1:])}, those before have {_by(arrays[0].shape[1:])}; give images of one shape")
    return np.concatenate(arrays), names


def normalise(images: np.ndarray, preprocess: dict) -> np.ndarray:
    """uint8 (N, H, W, C) → float32 (N, C, H, W): (value / 255 − mean) / std per channel."""
    channels = images.shape[3]
    mean = np.array(preprocess.get("mean", [0.0] * channels), np.float32)
    std = np.array(preprocess.get("std", [1.0] * channels), np.float32)
    scaled = images * (np.float32(1 / 255) / std) - mean / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def denormalise(images: np.ndarray, preprocess: dict) -> np.ndarray:
    """The inverse of :func:`normalise`; where nothing is known of the range, each image is stretched to it."""
    images = images.transpose(0, 2, 3, 1)
    if "mean" in preprocess:
        unit = images * np.array(preprocess["std"], np.float32) + np.array(preprocess["mean"], np.float32)
    else:
        low, high = images.min(axis=(1, 2, 3), keepdims=True), images.max(axis=(1, 2, 3), keepdims=True)
        unit = (images - low) / np.maximum(high - low, 1e-9)
    return np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)


def draw(path: "str | Path", images: np.ndarray, captions: "Sequence[str]", preprocess: dict, *, colours: "Sequence[str] | None" = None, title: str = "",
         side: int = 140) -> None:
    """Write a grid of network inputs (N, C, H, W), each over its caption (of several lines, in a colour of its own), under a title.

    Raises :exc:`CelosiaError` if the file cannot be written.
    """
    font, gap, line = ImageFont.load_default(13), 10, 17
    columns = min(len(images), 8)
    rows = -(-len(images) // columns)
    lines = max(caption.count("\n") for caption in captions) + 1
    width, height, top = side + gap, side + gap + lines * line, (line + gap) * bool(title)
    grid = Image.new("RGB", (columns * width + gap, top + rows * height + gap), "white")
    pen = ImageDraw.Draw(grid)
    pen.text((gap, gap), title, "black", font)
    for index, (pixels, caption) in enumerate(zip(denormalise(images, preprocess), captions)):
        x, y = index % columns * width + gap, top + index // columns * height + gap
        tile = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]).convert("RGB")
        grid.paste(tile.resize((side, side), Image.Resampling.NEAREST if tile.width < side else Image.Resampling.LANCZOS), (x, y))
        pen.text((x, y + side + 2), caption, colours[index] if colours else "black", font)
    _save(grid, path)


def draw_boxes(path: "str | Path", images: np.ndarray, objects: "Sequence[list[dict]]", preprocess: dict, *, side: int = 480) -> None:
    """Write the images (N, C, H, W) beside each other, each with boxes drawn on it: {"box": (left, top, right, bottom) in its pixels, "class", "score"}.

    Raises :exc:`CelosiaError` if the file cannot be written.
    """
    font, gap = ImageFont.load_default(13), 10
    grid = Image.new("RGB", (len(images) * (side + gap) + gap, side + 2 * gap), "white")
    for index, (pixels, found) in enumerate(zip(denormalise(images, preprocess), objects)):
        scale = side / max(pixels.shape[:2])
        tile = Image.fromarray(pixels).resize((round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(tile)
        for item in reversed(found):  # the surest above the others
            left, top, right, bottom = (edge * scale for edge in item["box"])
            colour = f"hsl({137 * item['index'] % 360}, 90%, 45%)"  # the golden angle keeps neighbouring classes apart
            pen.rectangle((left, top, right, bottom), outline=colour, width=2)
            text = f"{item['class']} {item['score']:.2f}"
            pen.rectangle((left, top, left + pen.textlength(text, font) + 4, top + 17), fill=colour)
            pen.text((left + 2, top), text, "white", font)
        grid.paste(tile, (gap + index * (side + gap), gap))
    _save(grid, path)


def _save(picture, path):
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise CelosiaError(f"picture {path}: cannot be written: {error}") from None


def expect_format(path: "str | Path") -> None:
    """Raises :exc:`CelosiaError` if :func:`draw` knows no format of that name."""
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise CelosiaError(f"picture {path}: its format is not known; call it .png")


def _files(paths):
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
            if not found:
                raise CelosiaError(f"folder {path}: contains no images ({', '.join(sorted(_SUFFIXES))})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise CelosiaError(f"image {path}: no such file")
    return files


def _photograph(path, shape, preprocess):
    if shape is None:
        raise CelosiaError(f"image {path}: the shape of the model's input is not known; give an .npz of floats, N×C×H×W")
    channels, height, width = shape
    if channels not in (1, 3):
        raise CelosiaError(f"image {path}: the network's input has {channels} channels, a photograph 1 or 3; give an .npz of floats")
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # whatever a decoder makes of broken bytes
        raise CelosiaError(f"image {path}: is truncated or no image: {error}") from None
    if image.size != (width, height):
        image = frame(image, width, height, **{key: preprocess[key] for key in ("crop", "resample", "fit") if key in preprocess})
    return np.asarray(image).reshape(height, width, channels)


def _archive(path, shape, preprocess):
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CelosiaError(f"{path}: is an .npy file, a single array; save it with numpy.savez")
        with archive as file:
            name = "images" if "images" in file.files else file.files[0] if len(file.files) == 1 else None
            if name is None:
                raise CelosiaError(f"{path}: must hold one array or one named 'images', not {', '.join(file.files) or 'none'}")
            array = file[name]
    except CelosiaError:
        raise
    except Exception as error:
        raise CelosiaError(f"{path}: is truncated or no .npz file: {error}") from None
    channels, height, width = shape or ("C", "H", "W")
    if array.dtype == np.uint8 and shape:
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim == 4 and array.shape[1:] == (height, width, channels) and len(array):
            return normalise(array, preprocess)
    elif array.ndim == 4 and array.shape[1:] == (shape or array.shape[1:]) and array.size and np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):  # whoever uses them refuses infinities
            return array.astype(np.float32)
    wanted = f"uint8 N×{height}×{width}×{channels} or " * (shape is not None) + f"float N×{channels}×{height}×{width}"
    raise CelosiaError(f"{path}: has shape {_by(array.shape)} of {array.dtype}, the network needs {wanted}")


def _by(shape):
    return "×".join(map(str, shape)) or "()"
