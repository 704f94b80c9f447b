"""The zoo's detectors on a device: their parts offloaded, the rest torchvision's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..hw.program import Program
from ..models.reproducible import one_thread
from ..models.zoo import ZooEntry
from . import images
from .device import Device, Result
from .offload import offload, offload_report, recorded
from .report import per_second, sha256, utilisation
from .source import Samples, preprocessing

__all__ = ["DEFAULT_CONFIG", "LEAST_SCORE", "detect", "detect_report", "load_images", "offloaded"]

#: Weights of SSD300 and Faster R-CNN exceed 32 MB.
DEFAULT_CONFIG = "ulx3s-85f-64m"
#: Boxes of a lower score are not drawn.
LEAST_SCORE = 0.5
#: Calibration images for `check`, which only wants to see what runs where.
_SKETCH = 1


def load_images(entry: ZooEntry, paths: "Sequence[str | Path]", count: int) -> Samples:
    """Images of the detector's size, float32 (N, 3, H, W) in 0…1, letterboxed: those named, else the first `count` of its sample."""
    if paths:
        return Samples(*images.load(paths, entry.input_shape, preprocessing(entry)))
    sample, _ = entry.sample_images()
    return Samples(np.asarray(sample)[:count], [f"sample[{index}]" for index in range(min(count, len(sample)))])


def offloaded(entry: ZooEntry, device: Device, *, sketch: bool = False, progress: "Callable[[str, int], None] | None" = None) -> torch.nn.Module:
    """The detector, its parts on the device, calibrated with the zoo's images; `sketch`: with as few as show what runs where.

    Raises :exc:`CelosiaError` as :func:`~celosia.host.offload.offload`.
    """
    calibration = entry.calibration_images()
    with one_thread():
        return offload(entry.build(), entry.parts, calibrate=list(calibration)[: _SKETCH if sketch else None], device=device, progress=progress)


def detect(module: torch.nn.Module, image: np.ndarray) -> "tuple[dict, list[tuple[Program, Result]]]":
    """What a detector of :func:`offloaded` finds in an image, float32 (3, H, W), and what ran on the device for it, in order."""
    with one_thread(), torch.no_grad(), recorded(module) as runs:
        [found] = module([torch.from_numpy(image)])
    return found, runs


def detect_report(entry: ZooEntry, module: torch.nn.Module, device: Device, samples: Samples) -> dict:
    """What `celosia run --json` prints: as for a classifier, but with boxes as predictions and the parts of the detector. One image runs at a time."""
    macs, cycles, codes, predictions, config = 0, 0, [], [], device.config
    for name, image in zip(samples.names, samples.images):
        found, runs = detect(module, image)
        macs += sum(program.macs * result.runs for program, result in runs)
        cycles += sum(result.cycles or 0 for _, result in runs)
        codes += [array for _, result in runs for array in result.codes]
        predictions.append({"image": name, "objects": [
            {"box": [round(float(edge), 2) for edge in box], "class": entry.classes[int(label)], "index": int(label), "score": round(float(score), 4)}
            for box, label, score in zip(found["boxes"], found["labels"], found["scores"])]})
    cycles = cycles or None
    return {
        "model": entry.name, "device": device.name, "config": config.name, "batch": 1, "images": len(samples.names), "cycles": cycles, "macs": macs,
        "utilisation": utilisation(macs, cycles, config), "frames_per_second": per_second(len(samples.names), cycles, config), "clock_mhz": config.clock_mhz,
        "outputs_sha256": sha256(codes), "predictions": predictions, **offload_report(module),
    }
