"""What MODEL may be on the command line: a zoo name, a `.pt2`, `.celq` or `.celp` file, or `module:factory`."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ..hw.config import AcceleratorConfig, get_config
from ..hw.network import Network, NetworkError
from ..hw.program import Program
from ..models import zoo
from . import images
from .device import Device
from .errors import CelosiaError

__all__ = ["DEFAULT_CONFIG", "Samples", "compile_network", "inputs", "load_network", "load_program", "preprocessing", "quantize_model", "quantize_module",
           "report_images", "sketch", "sketch_offloaded"]

DEFAULT_CONFIG = "ulx3s-85f"
_CALIBRATION_BATCH = 16
_REPORT_IMAGES = 16


@dataclass(frozen=True)
class Samples:
    """Float32 images (N, C, H, W), a name for each, and their labels if they have any."""

    images: np.ndarray
    names: "list[str]"
    labels: "np.ndarray | None" = None


def load_network(model: str, progress: "Callable | None" = None) -> Network:
    """The quantized network of a MODEL. One of the zoo is quantized with its own calibration images, once; the user's cache keeps it.

    Raises :exc:`CelosiaError` if MODEL is not quantized yet, is missing or is damaged.
    """
    if model.endswith(".celp"):
        return Program.load(model).network
    if model.endswith(".celq"):
        return Network.load(model)
    if model in zoo.names():
        return _zoo_network(model, progress)
    _expect_model(model)
    raise CelosiaError(f"{model}: is not quantized yet; run `celosia quantize {model} --calibrate DATA -o model.celq` and name the .celq file")


def load_program(model: str, config: "str | None" = None, batch: "int | None" = None, progress: "Callable | None" = None) -> Program:
    """A `.celp` file as it is, or another MODEL compiled for `config` (default ulx3s-85f) and `batch` (default 1, or what an exported model insists on).

    Raises :exc:`CelosiaError` as :func:`load_network`, and if a `.celp` file was compiled for another batch, :exc:`ProgramError` if for another config.
    """
    chosen = get_config(config or DEFAULT_CONFIG)
    if model.endswith(".celp"):
        program = Program.load(model)
        if batch not in (None, program.batch):
            raise CelosiaError(f"{model}: was compiled for batch {program.batch}, not {batch}; compile it again with --batch {batch}")
        if config:
            program.check_config(chosen)
        return program
    network = load_network(model, progress)
    return compile_network(network, chosen, batch or network.batch or 1)


def compile_network(network: Network, config: AcceleratorConfig, batch: int) -> Program:
    """The compiler, imported when it is needed."""
    from .compile import compile

    return compile(network, config, batch)


def quantize_model(model: str, calibration: "Sequence[str | Path]" = (), *, weights: "str | Path | None" = None, trust: bool = False,
                   progress: "Callable | None" = None, **options) -> Network:
    """Quantize a MODEL that is not quantized yet, with the images in `calibration`; one of the zoo has its own. `options` are those of `quantize`.

    Raises :exc:`CelosiaError` for a model or images that cannot be used.
    """
    module, entry = _float_model(model, weights, trust)
    if not calibration:
        if entry is None:
            raise CelosiaError(f"{model}: needs images to calibrate with; give --calibrate DATA, a folder of images or an .npz file")
        return quantize_module(module, np.asarray(entry.calibration_images()), model, progress, entry, **options)
    data = images.load(calibration, entry.input_shape if entry else _shape(module), preprocessing(entry) if entry else {})[0]
    return quantize_module(module, data, _name(model), progress, entry, **options)


def quantize_module(module, data: np.ndarray, name: str, progress: "Callable | None" = None, entry: "zoo.ZooEntry | None" = None,
                    **options) -> Network:
    """Quantize a module or exported program with float32 images (N, C, H, W); classes and preprocessing are those of the zoo's `entry`."""
    import torch

    from ..models.reproducible import one_thread
    from .quantize import quantize

    batches = [torch.from_numpy(np.array(data[first : first + _CALIBRATION_BATCH])) for first in range(0, len(data), _CALIBRATION_BATCH)]
    known = {"classes": entry.classes, "preprocess": preprocessing(entry)} if entry else {}
    with one_thread():  # the same network on every machine
        return quantize(module, batches, name=name, progress=progress, **known, **options)


def sketch(model: str, shape: "tuple[int, int, int] | None" = None, *, weights: "str | Path | None" = None, trust: bool = False) -> Network:
    """A quantized network of the right structure whose scales come from noise: enough to see what fits, useless to compute with.

    `shape` (C, H, W) is needed where neither the zoo nor a `.pt2` says it.
    """
    if model.endswith((".celq", ".celp")):
        return load_network(model)
    module, noise = _with_noise(model, shape, weights, trust)
    return quantize_module(module, noise, _name(model))


def sketch_offloaded(model: str, device: Device, shape: "tuple[int, int, int] | None" = None, *, weights: "str | Path | None" = None, trust: bool = False):
    """The module of a MODEL of which some operation cannot run on a device, offloaded all the same; shape and scales as in :func:`sketch`."""
    import torch

    from .offload import offload

    module, noise = _with_noise(model, shape, weights, trust)
    return offload(module, [""], calibrate=[torch.from_numpy(noise)], device=device)


def _with_noise(model, shape, weights, trust):
    """A module or exported program, and two images of noise, float32 (2, C, H, W)."""
    module, entry = _float_model(model, weights, trust)
    shape = shape or (entry.input_shape if entry else _shape(module))
    if shape is None:
        raise CelosiaError(f"{model}: the shape of its input is not known; give --shape C,H,W")
    return module, np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)


def inputs(model: str, network: Network, paths: "Sequence[str | Path]", count: int) -> Samples:
    """The images to run: those named, else the first `count` of the model's bundled sample (the zoo's entry of the network's name).

    Raises :exc:`CelosiaError` if there is no sample, or it is smaller than `count`.
    """
    if len(network.inputs) != 1:
        raise CelosiaError(f"network {network.name} has {len(network.inputs)} inputs; run it from Python")
    shape = network.tensors[network.inputs[0]].shape
    if paths:
        return Samples(*images.load(paths, shape, network.preprocess))
    if network.name not in zoo.names() or zoo.get(network.name).input_shape != shape:
        raise CelosiaError(f"{model}: no sample images come with it; name images or an .npz file")
    sample, labels = zoo.get(network.name).sample_images()
    if count > len(sample):
        raise CelosiaError(f"{model}: its sample has {len(sample)} images, not {count}; name images or choose a smaller batch")
    labels = None if labels is None else np.asarray(labels)[:count]
    return Samples(np.asarray(sample)[:count], [f"sample[{index}]" for index in range(count)], labels)


def report_images(model: str, network: Network, calibration: "Sequence[str | Path]" = ()) -> np.ndarray:
    """Float32 images (N, C, H, W) to judge a quantized MODEL by: the zoo's sample of it, which it was not calibrated with, else the first that it was."""
    if model in zoo.names():
        return np.asarray(zoo.get(model).sample_images()[0])[:_REPORT_IMAGES]
    return images.load(calibration, network.tensors[network.inputs[0]].shape, network.preprocess)[0][:_REPORT_IMAGES]


def _expect_model(model):
    if model.endswith((".pt2", ".celq", ".celp")) or "/" in model:
        if not Path(model).is_file():
            raise CelosiaError(f"model {model}: no such file")
        if not model.endswith(".pt2"):
            raise CelosiaError(f"model {model}: is no .pt2, .celq or .celp file; export the module with torch.export.save")
    elif ":" not in model and model not in zoo.names():
        raise CelosiaError(f"model {model!r} is not known; choose {', '.join(zoo.names())}, a .pt2, .celq or .celp file, or module:factory")


def _zoo_network(name, progress):
    from ..sim.toolchain import cache_folder

    path = cache_folder() / "networks" / f"{name}-{_cache_key(name)}.celq"
    if path.is_file():
        try:
            return Network.load(path)
        except NetworkError:
            path.unlink()
    network = quantize_model(name, progress=progress)
    with contextlib.suppress(OSError):  # without a cache it is quantized again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        network.save(path)
    return network


def _cache_key(name):
    """Everything a zoo network's codes come from: the weights, samples and code in the packages, and the versions of the libraries."""
    content = hashlib.sha256(name.encode())
    extras = dict.fromkeys(("celosia", "numpy", "pillow", "torch", "torchvision", "torchao"), "torch") | dict.fromkeys(zoo.get(name).packages, "zoo")
    for library, extra in extras.items():
        try:
            content.update(f"{library} {metadata.version(library)}\n".encode())
        except metadata.PackageNotFoundError:
            raise CelosiaError(f"{name}: quantizing it needs {library}; pip install 'celosia[{extra}]'") from None
    for folder in (Path(zoo.__file__).parent, Path(__file__).parent):
        for file in sorted([*folder.glob("*.py"), *folder.glob("samples/*"), *folder.glob(f"weights/{name}*")]):
            content.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return content.hexdigest()[:16]


def _float_model(model, weights, trust):
    """A module or exported program, and the zoo's entry if it is one of the zoo."""
    if model.endswith((".celq", ".celp")):
        raise CelosiaError(f"{model}: is quantized already")
    _expect_model(model)
    if model in zoo.names() and zoo.get(model).parts:
        raise CelosiaError(f"{model}: is a detector, of which {' and '.join(zoo.get(model).parts)} run on a device; use celosia check or run, or celosia.offload "
                           "from Python")
    from .trace import input_count, load_model

    module = load_model(model, weights, trust)
    if (count := input_count(module)) != 1:
        raise CelosiaError(f"{model}: takes {count} inputs; quantize it from Python, with batches that are tuples of them")
    return module, zoo.get(model) if model in zoo.names() else None


def _shape(module):
    """(C, H, W) of an exported program's input; None for a module."""
    signature = getattr(module, "graph_signature", None)
    if signature is None:
        return None
    [value] = [node.meta["val"] for node in module.graph.nodes if node.name == signature.user_inputs[0]]
    sizes = list(map(str, value.shape[1:]))  # symbols where they are dynamic
    return tuple(map(int, sizes)) if value.dim() == 4 and all(map(str.isdigit, sizes)) else None


def _name(model):
    return model if model in zoo.names() else Path(model.partition(":")[0]).stem


def preprocessing(entry: "zoo.ZooEntry") -> dict:
    """An entry's preprocessing as :class:`celosia.hw.network.Network` has it."""
    how = entry.preprocess
    return {"size": list(entry.input_shape[1:]), "mean": list(how.mean), "std": list(how.std), "crop": how.crop, "resample": how.resample, "fit": how.fit}
