"""What int8 costs each layer: the error it adds, the error that has come together so far, and how its map uses the 256 codes."""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..hw.atomic import write_atomically
from ..sim import golden
from .errors import CelosiaError
from .quantize import QuantizedModel
from .reference import Recorder, decibels

__all__ = ["draw_report", "quantization_report", "report_rows", "write_report"]

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
#: Images computed at once.
_BATCH = 8


def quantization_report(qmodel: QuantizedModel, *inputs: "torch.Tensor | np.ndarray") -> dict:
    """A row for each layer, measured on float32 images (N, …), an argument for each of the model's.

    - `sqnr_db`: signal to error in dB of the layer's output, as the engine computes it from the images, against the float network's.
    - `local_sqnr_db`: the same if the layer, integer and float, is given the float network's maps, rounded to their codes: the layer's own error.
    - `saturated_low`, `saturated_high`: shares of the float network's values that lie more than half an LSB below or above what the codes can express.
    - `lowest_code`, `highest_code`: the codes that occur; `codes_used`: the share of the 256 that lies between them.
    - `scale`, `zero_point` of the output.

    An SQNR is None where there is no error. With equalization, the float network is the equalized one. Layers that only make parameters for another have no row.
    Raises :exc:`CelosiaError` if the model was loaded from a file, which holds no float network, or there are no images.
    """
    if qmodel.original is None:
        raise CelosiaError(f"{qmodel.name}: a loaded network has no float network to compare with; report on the result of quantize() itself")
    inputs = tuple(torch.as_tensor(x) for x in inputs)
    if len(inputs) != len(qmodel.inputs) or not all(len(x) for x in inputs):
        raise CelosiaError(f"{qmodel.name}: a report needs images for {len(qmodel.inputs)} inputs, at least one; not {len(inputs)} tensors of {[*map(len, inputs)]}")
    totals = {layer.name: _Total() for layer in qmodel.layers if layer.op != "parameters"}
    count = qmodel.batch or _BATCH
    for first in range(0, len(inputs[0]), count):
        part = tuple(x[first : first + count] for x in inputs)
        if qmodel.batch:  # the float graph insists on it
            part = tuple(torch.cat([x, *[x[-1:]] * (count - len(x))]) for x in part)
        _measure(qmodel, part, len(inputs[0][first : first + count]), totals)
    rows = [totals[layer.name].row(layer, qmodel.tensors[layer.output]) for layer in qmodel.layers if layer.name in totals]
    return {"model": qmodel.name, "images": len(inputs[0]), "layers": rows}


class _Total:
    """Sums over images of one layer."""

    def __init__(self):
        self.sums = defaultdict(float)
        self.lowest, self.highest = 127, -128

    def row(self, layer, tensor):
        sums = self.sums
        return {
            "name": layer.name,
            "op": layer.op,
            "sqnr_db": _decibels(sums["signal"], sums["noise"]),
            "local_sqnr_db": _decibels(sums["local_signal"], sums["local_noise"]),
            "saturated_low": sums["low"] / sums["count"],
            "saturated_high": sums["high"] / sums["count"],
            "lowest_code": self.lowest,
            "highest_code": self.highest,
            "codes_used": (self.highest - self.lowest + 1) / 256,
            "scale": tensor.scale,
            "zero_point": tensor.zero_point,
        }


def _decibels(signal, noise):
    """None where JSON has no number."""
    value = decibels(signal, noise)
    return round(value, 2) if math.isfinite(value) else None


def _measure(qmodel, inputs, count, totals):
    """Add the first `count` of the images to the totals."""
    nodes = _float_nodes(qmodel)
    codes = [golden.quantize(x.numpy(), qmodel.tensors[name]) for x, name in zip(inputs, qmodel.inputs)]
    engine = {}
    golden.execute(qmodel, [code.reshape(-1, *qmodel.tensors[name].shape) for code, name in zip(codes, qmodel.inputs)], engine.__setitem__)
    exact = Recorder(qmodel.original, set(nodes.values()))
    with torch.no_grad():
        exact.run(*inputs)
        maps = {name: exact.values[node].numpy().reshape(-1, *qmodel.tensors[name].shape) for name, node in nodes.items()}
        given = {name: golden.quantize(value, qmodel.tensors[name]) for name, value in maps.items()}
        rounded = {nodes[name]: torch.from_numpy(golden.dequantize(code, qmodel.tensors[name])).reshape(exact.values[nodes[name]].shape)
                   for name, code in given.items()}
        local = Recorder(qmodel.original, set(nodes.values()), rounded)
        local.run(*inputs)

    def of(values, name):
        """The values of a tensor, of which the graph may have the whole only."""
        return values[name] if name in values else values[qmodel.part(name).tensor][:, *qmodel.region(name)]

    for layer in qmodel.layers:
        tensor = qmodel.tensors[layer.output]
        own = golden.layer(layer, qmodel, of(given, layer.input), layer.residual and of(given, layer.residual.tensor), layer.parameters and given[layer.parameters])
        if layer.op == "parameters":
            given[layer.output] = own
            continue
        total, got, real = totals[layer.name], engine[layer.output][:count], of(maps, layer.output)[:count]
        whole = layer.output if layer.output in nodes else qmodel.part(layer.output).tensor
        wanted = of({whole: local.values[nodes[whole]].numpy().reshape(-1, *qmodel.tensors[whole].shape)}, layer.output)[:count]
        steps = real / tensor.scale + tensor.zero_point
        for key, value in (("signal", np.square(real, dtype=np.float64).sum()), ("noise", np.square(golden.dequantize(got, tensor) - real, dtype=np.float64).sum()),
                           ("local_signal", np.square(wanted, dtype=np.float64).sum()),
                           ("local_noise", np.square(golden.dequantize(own[:count], tensor) - wanted, dtype=np.float64).sum()),
                           ("low", (steps < -128.5).sum()), ("high", (steps > 127.5).sum()), ("count", real.size)):
            total.sums[key] += float(value)
        total.lowest, total.highest = min(total.lowest, int(got.min())), max(total.highest, int(got.max()))


def _float_nodes(qmodel):
    """Tensor name → node of the float network, of those that it has."""
    found = {}
    for node in qmodel.reference.graph.nodes:
        found[node.name] = node.args[0].name if node.target is _QUANTIZE else node.name
    return {name: found[node] for name, node in qmodel.nodes.items() if name in qmodel.tensors}


def _share(value):
    return "<0.01%" if 0 < value < 1e-4 else f"{value:.2%}"


def report_rows(report: dict) -> "tuple[tuple[str, ...], list[tuple]]":
    """Columns and rows of a table of a report."""
    def decibels(value):
        return "∞" if value is None else f"{value:.1f}"

    rows = [(row["name"], row["op"], decibels(row["sqnr_db"]), decibels(row["local_sqnr_db"]), _share(row["saturated_low"]), _share(row["saturated_high"]),
             f"{row['lowest_code']} … {row['highest_code']}", f"{row['codes_used']:.0%}", f"{row['scale']:.4g}", row["zero_point"]) for row in report["layers"]]
    return ("layer", "", "SQNR dB", "its own", "cut low", "cut high", "codes", "used", "scale", "zero point"), rows


def write_report(report: dict, folder: "str | Path") -> "list[Path]":
    """Write a report as `quantization.json` and `quantization.png` into a folder, made if need be; the files. Raises :exc:`CelosiaError` if it cannot."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "quantization.json", json.dumps(report, indent=1) + "\n")
        draw_report(report).save(folder / "quantization.png")
    except OSError as error:
        raise CelosiaError(f"report {folder}: cannot be written: {error.strerror or error}") from None
    return [folder / "quantization.json", folder / "quantization.png"]


def draw_report(report: dict) -> Image.Image:
    """A line for each layer: in a bar of 256 codes those that occur (blue), the zero point (black) and, red, the ends where values are cut off, with their share;
    then the SQNR up to there (dark) and the layer's own (light), 3 pixels a dB."""
    font, line, gap = ImageFont.load_default(13), 20, 10
    rows = report["layers"]
    labels = [f"{row['name']} ({row['op']})" for row in rows]
    left = gap + max(int(font.getlength(label)) for label in labels) + gap
    bar, cut, decibels = 256, 60, 240  # widths: the codes, the shares beside them, the SQNR
    codes, ratio = left + cut, left + cut + bar + cut + gap
    picture = Image.new("RGB", (ratio + decibels + 60, (len(rows) + 2) * line + gap), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((gap, gap), f"{report['model']}, {report['images']} images", "black", font)
    pen.text((codes, gap), "codes -128 to 127", "black", font)
    pen.text((ratio, gap), "SQNR in dB: so far, layer's own", "black", font)
    for index, (row, label) in enumerate(zip(rows, labels)):
        y = gap + (index + 1) * line + 5
        pen.text((gap, y), label, "black", font)
        top, bottom = y + 1, y + line - 6
        pen.rectangle((codes, top, codes + bar - 1, bottom), "#e4e4e4")
        pen.rectangle((codes + row["lowest_code"] + 128, top, codes + row["highest_code"] + 128, bottom), "#5b8fc7")
        pen.line((codes + row["zero_point"] + 128, top, codes + row["zero_point"] + 128, bottom), "black")
        for share, x, anchor, edge in ((row["saturated_low"], codes - 4, "ra", codes), (row["saturated_high"], codes + bar + 4, "la", codes + bar - 5)):
            if share:
                pen.rectangle((edge, top, edge + 4, bottom), "#d03030")
                pen.text((x, y), _share(share), "#d03030", font, anchor=anchor)
        for key, colour, first, last in (("local_sqnr_db", "#c8d8c0", top, bottom), ("sqnr_db", "#4f8f4f", top + 4, bottom - 4)):
            value = row[key]
            pen.rectangle((ratio, first, ratio + (decibels if value is None else min(max(3 * value, 0), decibels)), last), colour)
        pen.text((ratio + decibels + 6, y), "∞" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}", "black", font)
    return picture
