"""`make demo`: an ImageNet-trained network names real photographs on the simulated FPGA, every output byte checked.

    python -m celosia.host.demo [--output FOLDER]

Quantizes `efficientnet_lite0` with its calibration images, compiles it for ulx3s-85f, runs four photographs through the RTL, compares with the golden model and
with the float network, counts for all its photographs whether int8 keeps the class, and writes a picture.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from ..hw.atomic import write_atomically
from ..hw.config import get_config
from ..models import zoo
from . import images
from .console import call, progress_bar
from .device import open_device
from .report import Stopwatch, run_report
from .source import compile_network, quantize_model

MODEL, CONFIG, BATCH = "efficientnet_lite0", "ulx3s-85f", 4


def main(arguments: "list[str] | None" = None) -> int:
    """Run the demo; returns 0 if every byte agrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder of demo.png and demo.json (default: out)")
    folder = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    config = get_config(CONFIG)

    with _step("quantize", "32 calibration images"):
        network = quantize_model(MODEL)
    with _step("compile", f"for {CONFIG}, batch {BATCH}"):
        program = compile_network(network, config, BATCH)
    photographs = np.asarray(zoo.get(MODEL).sample_images()[0])
    with _step("float", f"{len(photographs)} photographs"):
        wanted = _probabilities(_float_logits(photographs))
    with _step("golden", f"{len(photographs)} photographs"), open_device("golden", config) as device:
        expected = device.run(program, photographs)
    hardware = f"{BATCH} photographs through the simulated hardware, after its first build"
    watch = Stopwatch()
    with _step("rtl", hardware), progress_bar("rtl") as progress, open_device("rtl", config, progress=progress) as device:
        watch.lap("open")
        result = device.run(program, photographs[:BATCH])
        watch.lap("run")
    report = run_report(MODEL, device, program, result, list(zoo.NAMED[:BATCH]), watch.seconds)

    report |= {"bytes_compared": sum(codes.size for codes in result.codes),
               "bytes_differing": sum(int((one != other[:BATCH]).sum()) for one, other in zip(result.codes, expected.codes, strict=True))}
    found = _probabilities(expected.outputs[0])
    for row, int8, exact in zip(report["predictions"], found, wanted):
        row |= {"probability": float(int8.max()), "float": network.classes[exact.argmax()], "float_probability": float(exact.max())}
        print(f"  {row['image']:18} {row['class']} ({row['probability']:.0%}); float: {row['float']} ({row['float_probability']:.0%})")
    kept = int((found.argmax(1) == wanted.argmax(1)).sum())
    report["photographs"] = {"kept": kept, "of": len(photographs)}

    _draw(folder / "demo.png", photographs[:BATCH], report, network)
    write_atomically(folder / "demo.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"{report['bytes_compared']} output bytes of the hardware compared with the golden model, {report['bytes_differing']} differ")
    print(f"{report['cycles']:,} cycles for {BATCH} photographs: {report['frames_per_second']:,.1f} a second at {report['clock_mhz']:g} MHz")
    print("stalls: " + (", ".join(f"{name} {count:,}" for name, count in report["stalls"].items()) or "none"))
    print(f"int8 keeps the float network's class of {kept} of {len(photographs)} photographs")
    print(f"{folder / 'demo.png'} and {folder / 'demo.json'} written")
    return 1 if report["bytes_differing"] else 0


def _float_logits(photographs):
    """What the network itself computes, in floating point."""
    import torch

    with torch.no_grad():
        return zoo.get(MODEL).build()(torch.from_numpy(photographs)).numpy()


def _probabilities(logits):
    import torch

    return torch.from_numpy(logits).double().softmax(1).numpy()


def _draw(path, photographs, report, network):
    rows = report["predictions"]
    title = f"{MODEL}, trained on ImageNet, on {CONFIG}, simulated: {report['cycles']:,} cycles"
    captions = [f"int8 {row['probability']:.0%} {row['class']}\nfloat {row['float_probability']:.0%} {row['float']}" for row in rows]
    colours = ["darkgreen" if row["class"] == row["float"] else "firebrick" for row in rows]
    images.draw(path, photographs, captions, network.preprocess, colours=colours, title=title, side=224)


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
