"""The command line. Reports go to stdout, logs and progress to stderr; a user's error is one sentence and exit code 2."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import bench_commands, board_commands, export, offload_commands, recipe_commands
from .console import call, emit, layers_table, open_with_progress, prepare, progress_bar, speed, stalls, table
from .errors import CelosiaError, UnsupportedError
from .options import Batch, Calibrate, Config, DeviceName, Inputs, Json, Model, Trust, Vcd, VcdCycles, Weights

__all__ = ["app", "main"]

app = typer.Typer(
    help="Trained PyTorch CNNs on FPGAs, with open tools.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: "list[str] | None" = None) -> None:
    """Entry point of the script `celosia`; ends by SystemExit."""
    call(app, arguments)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tools found, their versions, and the remedy for each that is missing."""
    from .doctor import examine

    rows = examine()
    if as_json:
        return emit({"tools": rows})
    return table(("", "for", "", ""), [(row["name"], row["purpose"], row["version"] or "missing", row["remedy"] or "") for row in rows])


@app.command()
def models(as_json: Json = False) -> None:
    """The zoo: networks with weights, calibration and sample images."""
    from ..models import zoo

    rows = [{"name": name, "input_shape": list(zoo.get(name).input_shape), "classes": len(zoo.get(name).classes), "summary": zoo.get(name).summary}
            for name in zoo.names()]
    if as_json:
        return emit({"models": rows})
    return table(("model", "input", "classes", ""), [(row["name"], _by(row["input_shape"]), row["classes"], row["summary"]) for row in rows])


@app.command()
def boards(as_json: Json = False) -> None:
    """Configurations of the accelerator and the boards they are meant for."""
    from .board import listing

    rows = listing()
    if as_json:
        return emit({"configs": rows})
    cells = [
        (row["config"], row["part"] or "simulated", row["array"], row["macs_per_cycle"], row["multipliers"],
         _binary(row["map_bytes"] + row["weight_bytes"]), f"{_binary(row['memory_bytes'])} {row['memory']}", f"{row['clock_mhz']:g} MHz", row["link"] or "")
        for row in rows
    ]
    return table(("config", "part", "array", "MAC/cycle", "multipliers", "buffers", "memory", "clock", "link"), cells)


@app.command()
def check(
    model: Model,
    config: Config = None,
    batch: Batch = None,
    shape: Annotated[str | None, typer.Option(help="C,H,W of the input, where the model does not say.")] = None,
    weights: Weights = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """What runs where, whether it fits the memory, and the speed to expect; seconds, no calibration."""
    from ..hw.config import get_config
    from .report import estimate_report, memory_report
    from .source import DEFAULT_CONFIG, compile_network, load_program, sketch

    if model.endswith((".celq", ".celp")) and (shape or weights or trust):
        raise CelosiaError(f"{model}: is quantized already; leave out --shape, --weights and --trust")
    if detector := offload_commands.detector(model, batch, weights):
        return offload_commands.print_parts(offload_commands.check_detector(detector, config), as_json)
    if model.endswith(".celp"):
        program = load_program(model, config, batch)
    else:
        chosen = get_config(config or DEFAULT_CONFIG)
        try:
            network = sketch(model, _shape(shape), weights=weights, trust=trust)
        except UnsupportedError as error:
            return offload_commands.print_parts(offload_commands.check_offloaded(error, model, chosen, _shape(shape), weights, trust), as_json)
        program = compile_network(network, chosen, batch or network.batch or 1)
    report = {"model": model, "config": program.config.name, "batch": program.batch, **estimate_report(program), "memory": memory_report(program)}
    if as_json:
        return emit(report)
    layers_table(report["layers"])
    _host_layers(report)
    all_layers = len(report["layers"]) + len(report["host_layers"])
    of = f"{len(report['layers'])} of {all_layers}" if report["host_layers"] else f"all {all_layers}"
    return print(f"{of} layers run on the accelerator; {_fit(report)}")


@app.command()
def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .celq file to write.")],
    calibrate: Calibrate = None,
    weights: Weights = None,
    method: Annotated[str, typer.Option(help="How the ranges of maps are found: minmax, histogram or mse.")] = "minmax",
    equalize: Annotated[bool, typer.Option("--equalize", help="Equalize channels across layers.")] = False,
    correct_bias: Annotated[bool, typer.Option("--correct-bias", help="Put the mean error of each layer into its bias.")] = False,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune with the calibration images until the int8 outputs are most like the float ones.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images, with --qat.", show_default="10")] = None,
    report: Annotated[Path | None, typer.Option(help="Write what int8 costs each layer into this folder: quantization.json and .png.")] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """A float model to int8, by calibration images."""
    from .source import quantize_model, report_images

    if epochs and not qat:
        raise CelosiaError("--epochs: nothing is fine-tuned; give --qat as well")
    _expect_folder(output)
    options = {"method": method, "equalize": equalize, "correct_bias": correct_bias, "fine_tune": _fine_tuning(epochs) if qat else False}
    with progress_bar(f"quantize {model}") as progress:
        network = quantize_model(model, calibrate or (), weights=weights, trust=trust, progress=progress, **options)
    _write(network, output)
    summary = {"model": model, "output": str(output), "layers": len(network.layers), "macs": network.macs, "bytes": output.stat().st_size}
    if report:
        from . import quantization_report as quality

        summary["report"] = quality.quantization_report(network, report_images(model, network, calibrate or ()))
        summary["files"] = [str(file) for file in quality.write_report(summary["report"], report)]
    if as_json:
        return emit(summary)
    if report:
        table(*quality.report_rows(summary["report"]))
    return print(f"{output}: {summary['layers']} layers, {summary['macs']:,} MACs an image, {summary['bytes']:,} bytes")


@app.command()
def compile(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .celp file to write.")],
    config: Config = None,
    batch: Batch = None,
    explain: Annotated[bool, typer.Option(help="Every layer's estimate.")] = False,
    as_json: Json = False,
) -> None:
    """A quantized model to a program for one configuration and batch size."""
    from .report import estimate_report, memory_report
    from .source import load_program

    _expect_folder(output)
    with progress_bar(f"compile {model}") as progress:
        program = load_program(model, config, batch, progress)
    _write(program, output)
    report = {"model": model, "output": str(output), "config": program.config.name, "batch": program.batch, "instructions": program.instructions,
              "memory": memory_report(program), **estimate_report(program)}
    if as_json:
        return emit(report)
    if explain:
        layers_table(report["layers"])
        _host_layers(report)
    return print(f"{output}: {program.instructions:,} instructions; {_fit(report)}")


@app.command()
def run(
    model: Model,
    inputs: Inputs = None,
    device: DeviceName = "golden",
    config: Config = None,
    batch: Batch = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Draw the images with their predictions into this picture.")] = None,
    vcd: Vcd = None,
    vcd_cycles: VcdCycles = None,
    as_json: Json = False,
) -> None:
    """Run a model on a device."""
    from . import images
    from .report import Stopwatch, run_report
    from .source import inputs as load_inputs

    if vcd and device != "rtl":
        raise CelosiaError(f"--vcd: device {device!r} has no waveform; give --device rtl")
    if vcd:
        _expect_folder(vcd)
    window = _vcd_options(vcd_cycles, vcd)
    if output:
        _expect_folder(output)
        images.expect_format(output)
    if detector := offload_commands.detector(model, batch):
        offload_commands.run_detector(detector, device, config, inputs or (), output, window, as_json)
        return
    watch = Stopwatch()
    program, chosen = prepare(model, config, batch)
    samples = load_inputs(model, program.network, inputs or (), program.batch)
    watch.lap("prepare")
    with progress_bar(f"run {model} on {device}") as progress, open_with_progress(device, chosen, progress, **window) as opened:
        watch.lap("open")
        result = opened.run(program, samples.images)
        watch.lap("run")
    report = run_report(model, opened, program, result, samples.names, watch.seconds)
    if output:
        captions = [row["class"] for row in report["predictions"]] or samples.names
        images.draw(output, samples.images, captions, program.network.preprocess)
    if as_json:
        emit(report)
    else:
        _print_run(report)
    if vcd:
        _tell_run(vcd, report["waveform"], result)


@app.command()
def diff(
    model: Model,
    inputs: Inputs = None,
    devices: Annotated[str, typer.Option(help="Two devices, separated by a comma.")] = "golden,rtl",
    config: Config = None,
    batch: Batch = None,
    vcd: Vcd = None,
    as_json: Json = False,
) -> None:
    """Compare two devices: the first differing layer, image, channel and pixel, and a waveform around it. Exit code 1 if they differ."""
    from .report import compare, verdict
    from .source import compile_network
    from .source import inputs as load_inputs

    names = [name.strip() for name in devices.split(",")]
    if len(names) != 2:
        raise CelosiaError(f"--devices must name two devices separated by a comma, not {devices!r}")
    if vcd and "rtl" not in names:
        raise CelosiaError(f"--vcd: neither device of --devices {devices} has a waveform; name rtl as one of them")
    if vcd:
        _expect_folder(vcd)
    program, _ = prepare(model, config, batch)
    samples = load_inputs(model, program.network, inputs or (), program.batch)
    with progress_bar(f"diff {model}") as progress:
        report = compare(program.network, program, names, samples.images, compile_network, vcd, progress=progress)
    if as_json:
        emit(report)
    else:
        print(verdict(report) + (f" of {len(samples.names)} images" if report["equal"] else ""))
    if vcd and not as_json:
        print(_diff_note(vcd, report))
    raise typer.Exit(0 if report["equal"] else 1)


def _print_run(report):
    for row in report["predictions"]:
        print(f"{row['image']}: {row['class']}")
    if report["cycles"]:
        print(speed(report))
        print(f"stalls: {stalls(report)}")
    print(f"outputs sha256 {report['outputs_sha256']}")


def _vcd_options(text, vcd):
    """The options of a device for the waveform of a run."""
    if text is None:
        return {"vcd": vcd} if vcd else {}
    if not vcd:
        raise CelosiaError("--vcd-cycles: there is no waveform; name its file with --vcd")
    found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    first, last = map(int, found.groups()) if found else (0, -1)
    if first > last:
        raise CelosiaError(f"--vcd-cycles must be FIRST:LAST, for example 1000:1999, not {text!r}")
    return {"vcd": vcd, "vcd_range": (first, last + 1)}


def _tell_run(vcd, waveform, result):
    """On stderr, which cycles of a run the file holds."""
    cycles = result.cycles // result.runs
    if not waveform:
        raise CelosiaError(f"{vcd}: not written: the run took {cycles:,} cycles, fewer than --vcd-cycles begins at")
    first, last = waveform.values()
    of = f" of {cycles:,}" + (f" of the first of {result.runs} runs" if result.runs > 1 else "")
    others = "; --vcd-cycles FIRST:LAST records others" if first or last + 1 < cycles else ""
    print(f"{vcd}: cycles {first:,} to {last:,}{of}{others}", file=sys.stderr)


def _diff_note(vcd, report):
    """What `diff` has to say of its waveform."""
    waveform = report["waveform"]
    if not waveform:
        return f"{vcd}: not written: there is no differing pixel to show"
    text = f"{vcd}: cycles {waveform['first_cycle']:,} to {waveform['last_cycle']:,}, in which the rtl computes and stores it"
    if waveform["tile_first_cycle"] < waveform["first_cycle"]:
        text += f", without the beginning of its tile from cycle {waveform['tile_first_cycle']:,}"
    if waveform["value"] != report["difference"]["values"]["rtl"]:
        text += f"; here it is {waveform['value']}: it depends on what ran before"
    return text


def _host_layers(report):
    if report["host_layers"]:
        table(("on the host", "op", "MACs", "share of time", "because"),
              [(row["name"], row["op"], f"{row['macs']:,}", f"{row['share_of_time']:.1%}", row["reason"]) for row in report["host_layers"]])


def _fit(report):
    memory = report["memory"]
    return f"memory {memory['bytes']:,} of {memory['available']:,} bytes; about {report['frames_per_second']:.4g} frames/s on {report['config']}"


def _fine_tuning(epochs):
    from .qat import FineTuning

    return FineTuning(epochs=epochs) if epochs else FineTuning()


def _shape(text):
    if text is None:
        return None
    shape = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if len(shape) != 3 or min(shape) < 1:
        raise CelosiaError(f"--shape must be C,H,W, for example 3,224,224, not {text!r}")
    return shape


def _expect_folder(path):
    """Before work that would be lost."""
    if not path.parent.is_dir():
        raise CelosiaError(f"{path}: cannot be written: there is no folder {path.parent}")


def _write(item, path):
    try:
        item.save(path)
    except OSError as error:
        raise CelosiaError(f"{path}: cannot be written: {error.strerror}") from None


def _binary(size):
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _by(shape):
    return "×".join(map(str, shape))


app.add_typer(bench_commands.app)
app.add_typer(board_commands.app)
app.add_typer(export.app)
app.add_typer(recipe_commands.app)

if __name__ == "__main__":
    main()
