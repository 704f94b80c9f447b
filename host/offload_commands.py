"""What `check` and `run` do with models whose parts run on a device: the zoo's detectors, and modules with operations that the engine has not."""

from .console import emit, open_with_progress, progress_bar, speed, table
from .errors import CelosiaError

__all__ = ["check_detector", "check_offloaded", "detector", "print_parts", "run_detector"]


def detector(model, batch, weights=None):
    """The zoo's entry if MODEL is a detector; its options must be those that a detector has."""
    from ..models import zoo

    if model not in zoo.names() or not zoo.get(model).parts:
        return None
    for option, value in (("--batch", batch), ("--weights", weights)):
        if value is not None:
            raise CelosiaError(f"{option}: {model} is a detector and runs an image at a time, with the zoo's weights; use celosia.offload from Python")
    return zoo.get(model)


def check_offloaded(error, model, config, shape, weights, trust):
    """What :func:`celosia.offload` makes of a model that cannot run whole; the error, if nothing of it is worth a device."""
    from .offload import offload_report
    from .source import sketch_offloaded

    if error.node is None or model.endswith(".pt2"):
        raise error
    with open_with_progress("golden", config, None) as device:
        report = offload_report(sketch_offloaded(model, device, shape, weights=weights, trust=trust))
    if not any(row["where"] == "device" for row in report["parts"]):
        raise error
    return {"model": model, "config": config.name, "error": str(error), **report}


def check_detector(entry, config):
    """What of a detector runs where."""
    from .detect import DEFAULT_CONFIG, offloaded
    from .offload import offload_report

    with progress_bar(f"check {entry.name}") as progress, open_with_progress("golden", config or DEFAULT_CONFIG, progress) as device:
        report = offload_report(offloaded(entry, device, sketch=True, progress=progress))
    return {"model": entry.name, "config": device.config.name, **report}


def run_detector(entry, device, config, paths, output, window, as_json):
    """Run a detector on a device; print or draw what it finds."""
    from . import images
    from .detect import DEFAULT_CONFIG, LEAST_SCORE, detect_report, load_images, offloaded
    from .report import Stopwatch
    from .source import preprocessing

    if window:
        raise CelosiaError(f"--vcd: {entry.name} runs several programs; record one of them from Python")
    watch = Stopwatch()
    samples = load_images(entry, paths, 1)
    with progress_bar(f"run {entry.name} on {device}") as progress, open_with_progress(device, config or DEFAULT_CONFIG, progress) as opened:
        watch.lap("open")
        module = offloaded(entry, opened, progress=progress)
        watch.lap("prepare")
        report = detect_report(entry, module, opened, samples)
        watch.lap("run")
    report["host_seconds"] = watch.seconds
    if output:
        objects = [[item for item in row["objects"] if item["score"] >= LEAST_SCORE] for row in report["predictions"]]
        images.draw_boxes(output, samples.images, objects, preprocessing(entry))
    if as_json:
        return emit(report)
    for row in report["predictions"]:
        print(f"{row['image']}: {len(row['objects'])} objects" + "".join(f"\n  {item['class']} {item['score']:.2f} at {item['box']}" for item in row["objects"][:10]))
    print_parts(report)
    if report["cycles"]:
        print(speed(report))
    return print(f"outputs sha256 {report['outputs_sha256']}")


def print_parts(report, as_json=False):
    """Print what of a model runs where."""
    if as_json:
        return emit(report)
    table(("part", "where", "layers", "MACs", "batch", "memory bytes", ""),
          [(row["submodule"], row["where"], row["layers"] or "", f"{row['macs']:,}" if row["macs"] else "", row["batch"] or "",
            f"{row['bytes']:,}" if row["bytes"] else "", "; ".join(row["reasons"])) for row in report["parts"]])
    return print(f"{report['share']:.1%} of the MACs run on the accelerator" + (", with celosia.offload from Python" if report.get("error") else ""))
