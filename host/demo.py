"""`make demo`: a trained network from PyTorch to the simulated FPGA, every output byte checked.

    python -m celosia.host.demo [--output FOLDER]

Quantizes `fashion-resnet` with its 256 calibration images, compiles it for ulx3s-85f, runs 16 test images through the RTL, compares
with the golden model, measures all test images there (the 1,000 bundled ones where Fashion-MNIST is not installed), and writes a picture.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from ..hw.atomic import write_atomically
from ..hw.config import get_config
from ..models import data, zoo
from . import images
from .console import call, progress_bar
from .device import open_device
from .evaluate import on_golden
from .report import Stopwatch, run_report
from .source import compile_network, quantize_model

MODEL, CONFIG, BATCH = "fashion-resnet", "ulx3s-85f", 16


def main(arguments: "list[str] | None" = None) -> int:
    """Run the demo; returns 0 if every byte agrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder of demo.png and demo.json (default: out)")
    folder = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    config = get_config(CONFIG)

    with _step("quantize", "256 calibration images"):
        network = quantize_model(MODEL)
    with _step("compile", f"for {CONFIG}, batch {BATCH}"):
        program = compile_network(network, config, BATCH)
    sample, labels = (np.asarray(array) for array in zoo.get(MODEL).sample_images())
    chosen, truth = sample[:BATCH], labels[:BATCH]
    with _step("golden", f"{BATCH} images"), open_device("golden", config) as device:
        expected = device.run(program, chosen)
    hardware = f"{BATCH} images through the simulated hardware, after its first build"
    watch = Stopwatch()
    with _step("rtl", hardware), progress_bar("rtl") as progress, open_device("rtl", config, progress=progress) as device:
        watch.lap("open")
        result = device.run(program, chosen)
        watch.lap("run")
    report = run_report(MODEL, device, program, result, [f"sample[{index}]" for index in range(BATCH)], watch.seconds)

    differing = sum(int((one != other).sum()) for one, other in zip(result.codes, expected.codes, strict=True))
    compared = sum(codes.size for codes in expected.codes)
    report |= {"bytes_compared": compared, "bytes_differing": differing}
    for row, label, winner in zip(report["predictions"], truth, _float_winners(chosen)):
        row |= {"truth": network.classes[label], "float": network.classes[winner]}
        print(f"  {row['class']:12} {'' if row['class'] == row['truth'] else '(is ' + row['truth'] + ')'}")

    with _step("evaluate", "the test images on golden"):
        test, test_labels, source = _test_images(sample, labels)
        report["evaluation"] = _accuracy(program, test, test_labels) | {"source": source}

    _draw(folder / "demo.png", chosen, report, network)
    write_atomically(folder / "demo.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    evaluation = report["evaluation"]
    print(f"{compared} output bytes compared with the golden model, {differing} differ")
    print(f"{report['cycles']:,} cycles for {BATCH} images: {report['utilisation']:.1%} of the array used, "
          f"{report['frames_per_second']:,.0f} frames/s at {report['clock_mhz']:g} MHz")
    print("stalls: " + (", ".join(f"{name} {count:,}" for name, count in report["stalls"].items()) or "none"))
    print(f"accuracy {evaluation['accuracy']:.2%} on {evaluation['images']:,} test images ({evaluation['source']})")
    print(f"{folder / 'demo.png'} and {folder / 'demo.json'} written")
    return 1 if differing else 0


def _float_winners(chosen):
    """The classes that the network itself, in floating point, predicts."""
    import torch

    with torch.no_grad():
        return zoo.get(MODEL).build()(torch.from_numpy(chosen)).argmax(1).tolist()


def _draw(path, chosen, report, network):
    rows = report["predictions"]
    right = sum(row["class"] == row["truth"] for row in rows)
    title = (f"{MODEL} on {CONFIG}, simulated: {right} of {len(rows)} right, {report['cycles']:,} cycles, {report['utilisation']:.0%} of the array used, "
             f"{report['bytes_differing']} of {report['bytes_compared']} bytes differ from golden")
    captions = [f"{row['class']}\nfloat: {row['float']}" + (f"\nis: {row['truth']}" if row["class"] != row["truth"] else "") for row in rows]
    colours = ["darkgreen" if row["class"] == row["truth"] else "firebrick" for row in rows]
    images.draw(path, chosen, captions, network.preprocess, colours=colours, title=title)


def _test_images(sample, labels):
    """Preprocessed test images, their labels, and where they are from."""
    recipe_data = "fashion-mnist"
    if not data.available(recipe_data):
        return sample, labels, "bundled sample"
    found = data.load(recipe_data)
    return data.preprocess(recipe_data)(found.test_images), found.test_labels, "Fashion-MNIST"


def _accuracy(program, test, labels):
    with on_golden(program) as model:
        winners = model(test).argmax(1)
    return {"accuracy": float(np.mean(winners == labels)), "images": len(test)}


class _step:
    """Says on stderr what takes time, and how long it took."""

    def __init__(self, name, what):
        self._text = f"{name}: {what}"

    def __enter__(self):
        print(f"{self._text} …", file=sys.stderr, flush=True)
        self._start = time.perf_counter()

    def __exit__(self, *_):
        print(f"{self._text} … {time.perf_counter() - self._start:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(call(main))
