"""What a run, a benchmark or a comparison of devices found, as the objects that `--json` prints."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..hw.config import AcceleratorConfig
from ..hw.isa import Base
from ..hw.network import Network
from ..hw.program import Program
from .device import Device, Result, open_device, total
from .errors import CelosiaError
from .waveform import record

__all__ = ["Stopwatch", "bench_report", "compare", "equal_codes", "estimate_report", "host_time", "memory_report", "outputs_sha256", "per_second",
           "predictions", "programs_of", "run_on", "run_report", "sha256", "utilisation", "verdict"]

#: Of the linear layers that the host computes, by which their time is estimated: golden's, measured on one core of 2.6 GHz for 4,096 to 25,088 inputs.
_HOST_MACS_PER_SECOND = 1e9
#: Bytes a second of a line of 3 Mbaud, of which transfers use 98 % (docs/link.md).
_LINK_RATE = 3e6 / 10 * 0.98


class Stopwatch:
    """What the host takes, `seconds` by name of the lap: the only figures of a report that differ from run to run."""

    def __init__(self):
        self.seconds, self._last = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        """Name what has been done since the last lap."""
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 3), now


def outputs_sha256(result: Result) -> str:
    """Hash of the int8 outputs in graph order, NCHW, C order, no padding."""
    return sha256(result.codes)


def sha256(arrays: "Sequence[np.ndarray]") -> str:
    """Hash of the bytes of arrays in C order, one after the other."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def predictions(network: Network, result: Result, names: "list[str]") -> "list[dict]":
    """Per image the class with the largest output; empty for networks that are no classifiers."""
    if len(result.outputs) != 1 or np.prod(result.outputs[0].shape[2:]) != 1 or result.outputs[0].shape[1] < 2:
        return []
    winners = result.outputs[0].reshape(len(names), -1).argmax(1)
    return [{"image": name, "index": int(index), "class": network.classes[index] if index < len(network.classes) else f"class {index}"}
            for name, index in zip(names, winners)]


def run_report(model: str, device: Device, program: Program, result: Result, names: "list[str]", host_seconds: "dict[str, float]") -> dict:
    """The object of `celosia run --json`. MACs count the images padded to whole batches, as the cycles do."""
    macs = program.macs * result.runs
    return {
        "model": model,
        "device": device.name,
        "config": program.config.name,
        "batch": program.batch,
        "images": len(names),
        "cycles": result.cycles,
        "macs": macs,
        "host_layers": [layer.name for layer in program.host.layers] if program.host else [],
        "utilisation": utilisation(macs, result.cycles, program.config),
        "frames_per_second": per_second(len(names), result.cycles, program.config),
        "clock_mhz": program.config.clock_mhz,
        "outputs_sha256": outputs_sha256(result),
        "predictions": predictions(program.network, result, names),
        "stalls": _stalls([result]),
        "waveform": device.waveform and {"first_cycle": device.waveform[0], "last_cycle": device.waveform[1] - 1},
        "host_seconds": host_seconds,
    }


def programs_of(runs: "Sequence[tuple[Program, Result]]") -> "list[Program]":
    """The programs that ran, each once, in the order in which they first did."""
    return list({id(program): program for program, _ in runs}.values())


def host_time(report: dict) -> str:
    """What the host took for a benchmark, in words."""
    return "the host took " + ", ".join(f"{seconds:.3g} s to {name}" for name, seconds in report["host_seconds"].items())


def bench_report(model: str, device: Device, batch: int, runs: "Sequence[tuple[Program, Result]]", host_seconds: "dict[str, float]") -> dict:
    """The object of `celosia bench --json` for what ran for a batch: every layer beside the bound of its compute and memory time; no layers where the device tells
    but the cycles of all.

    The bound of a layer is the longer of the two, if its maps and weights move as rarely as the buffers allow (:mod:`.tile`). Raises :exc:`CelosiaError` if the
    device does not know time.
    """
    if any(result.cycles is None for _, result in runs):
        raise CelosiaError(f"device {device.name!r} does not know time; benchmark on cycle or rtl")
    several, rows = len(programs_of(runs)) > 1, {}
    whole = {"name": "total", "op": "", "macs": 0, "cycles": sum(result.cycles for _, result in runs), "bound_cycles": 0, "dram_bytes": 0}
    for program, result in runs:
        told = result.layers or [0] * len(program.network.layers)
        for index, (layer, cycles, estimate) in enumerate(zip(program.network.layers, told, program.estimates, strict=True)):
            name = f"{program.network.name}: {layer.name}" if several else layer.name
            row = rows.setdefault((id(program), index), {"name": name, "op": layer.op, "macs": 0, "cycles": 0, "bound_cycles": 0, "dram_bytes": 0})
            row["cycles"] += int(cycles)
            for key, value in (("macs", layer.macs * program.batch), ("bound_cycles", estimate["bound"]), ("dram_bytes", estimate["bytes"])):
                row[key] += int(value) * result.runs
                whole[key] += int(value) * result.runs
    layers = list(rows.values()) if all(result.layers for _, result in runs) else []
    for row in (*layers, whole):
        row["utilisation"] = utilisation(row["macs"], row["cycles"], device.config)
    return {
        "model": model,
        "device": device.name,
        "config": device.config.name,
        "batch": batch,
        "layers": layers,
        "total": whole,
        "frames_per_second": per_second(batch, whole["cycles"], device.config),
        "clock_mhz": device.config.clock_mhz,
        "macs_per_cycle": device.config.macs,
        "stalls": _stalls(result for _, result in runs),
        "host_seconds": host_seconds,
        "link": _link(runs),
    }


def estimate_report(program: Program) -> dict:
    """What the compiler expects: `layers` on the device with their cycles, `host_layers` with the reason why they are there, and shares of time."""
    layers = [{"name": layer.name, "op": layer.op, "macs": layer.macs * program.batch, "cycles": int(max(item["compute"], item["memory"])),
               "bound_cycles": int(item["bound"]), "dram_bytes": int(item["bytes"])} for layer, item in zip(program.network.layers, program.estimates)]
    cycles = sum(row["cycles"] for row in layers)
    on_host = [{"name": layer.name, "op": layer.op, "macs": layer.macs * program.batch, "weight_bytes": layer.weight.size,
                "reason": f"the memory has no room for its {layer.weight.size:,} bytes of weights"} for layer in (program.host.layers if program.host else ())]
    seconds = [row["macs"] / _HOST_MACS_PER_SECOND for row in on_host]
    device_seconds = cycles / (program.config.clock_mhz * 1e6)
    for row, share in zip(on_host, seconds):
        row["share_of_time"] = round(share / (device_seconds + sum(seconds)), 4)
    return {"layers": layers, "host_layers": on_host, "cycles": cycles, "macs": program.macs, "frames_per_second": program.batch / (device_seconds + sum(seconds))}


def memory_report(program: Program) -> dict:
    """Bytes of external memory a program needs, by region, beside what there is."""
    regions = {base.name.lower(): size for base, size in program.sizes.items()}
    return {"regions": regions, "bytes": program.memory_bytes, "available": program.config.memory_bytes}


def run_on(device: "str | Device", program: Program, images: "np.ndarray | Sequence[np.ndarray]", **options) -> Result:
    """Run a program on an open device, or on one opened for it by name; the options are those of `rtl`."""
    if isinstance(device, Device):
        return device.run(program, images)
    with open_device(device, program.config, **(options if device == "rtl" else {})) as opened:
        return opened.run(program, images)


def equal_codes(first: Result, second: Result) -> bool:
    """Whether two results are the same, byte for byte."""
    return all(np.array_equal(one, other) for one, other in zip(first.codes, second.codes, strict=True))


def compare(network: Network, program: Program, devices: "list[str | Device]", images: "np.ndarray | Sequence[np.ndarray]", compile, vcd: "Path | None" = None, *,
            results: "list[Result] | None" = None, **options) -> dict:
    """Run a program on two devices; where their outputs differ, find the first layer, image, channel and pixel that do.

    For that the network is compiled again with every layer's output as an output of its own. `vcd`: where to write the waveform of `rtl`, one of the devices,
    around that pixel, of the program so compiled. `results`: what the devices put out, if they have run.
    """
    names = [device.name if isinstance(device, Device) else device for device in devices]
    results = results or [run_on(device, program, images, **options) for device in devices]
    report = {"model": network.name, "devices": names, "config": program.config.name, "equal": equal_codes(*results), "difference": None, "waveform": None}
    if report["equal"]:
        return report
    every = replace(network, outputs=[layer.output for layer in network.layers], output_shapes={})
    program = compile(every, program.config, program.batch)
    first, second = (run_on(device, program, images, **options).codes for device in devices)
    for index, (layer, one, other) in enumerate(zip(network.layers, first, second)):
        if not np.array_equal(one, other):
            image, channel, y, x = (int(index) for index in np.argwhere(one != other)[0])
            where = {"layer": layer.name, "tensor": layer.output, "image": image, "channel": channel, "y": y, "x": x}
            values = {name: int(codes[image, channel, y, x]) for name, codes in zip(names, (one, other))}
            report["difference"] = where | {"values": values, "different": int((one != other).sum()), "of": int(one.size)}
            if vcd:
                report["waveform"] = record(program, index, image, channel, y, x, images, vcd, **options)
            return report
    report["difference"] = {"layer": None, "reason": "every layer agrees when its output is kept: the devices differ only where maps share memory"}
    return report


def verdict(report: dict) -> str:
    """What :func:`compare` found, in one sentence."""
    devices, found = " and ".join(report["devices"]), report["difference"]
    if report["equal"]:
        return f"{devices} agree on every output byte"
    if found["layer"] is None:
        return f"{devices} differ: {found['reason']}"
    return (f"{devices} differ first in layer {found['layer']}, image {found['image']}, channel {found['channel']}, pixel ({found['y']}, {found['x']}): "
            f"{' and '.join(map(str, found['values'].values()))}; {found['different']:,} of {found['of']:,} values of that layer differ")


def utilisation(macs: int, cycles: "int | None", config: AcceleratorConfig) -> "float | None":
    """The share of the array's multiply-accumulates, over these cycles, that the network's are; None without cycles."""
    return round(macs / (cycles * config.macs), 4) if cycles else None


def per_second(images: int, cycles: "int | None", config: AcceleratorConfig) -> "float | None":
    """Images a second at the configuration's clock; None without cycles."""
    return round(images * config.clock_mhz * 1e6 / cycles, 3) if cycles else None


def _link(runs):
    """Bytes of a batch's maps that go to a board and come from it, those of the programs' images, which stay there, and how long they take on its line."""
    maps = sum(result.runs * (program.sizes[Base.INPUT] + program.sizes[Base.OUTPUT]) for program, result in runs)
    images = sum(program.sizes[Base.WEIGHTS] for program in programs_of(runs))
    return {"bytes": maps, "seconds": round(maps / _LINK_RATE, 6), "image_bytes": images, "upload_seconds": round(images / _LINK_RATE, 6)}


def _stalls(results):
    """By cause."""
    return {name.removeprefix("stall_"): int(value) for name, value in total(result.counters for result in results).items() if name.startswith("stall_")}
