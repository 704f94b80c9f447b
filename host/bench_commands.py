"""The command that measures cycles, and its report."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .console import emit, layers_table, open_with_progress, prepare, progress_bar, stalls
from .errors import CelosiaError
from .options import Batch, Config, DeviceName, Json

__all__ = ["app"]

app = typer.Typer()


@app.command()
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of the zoo, .pt2, .celq or .celp files, or module:factory.")],
    device: DeviceName = "rtl",
    config: Config = None,
    batch: Batch = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a page with pictures, index.html, and a trace for ui.perfetto.dev of each model.")] = None,
    as_json: Json = False,
) -> None:
    """Cycles of every layer, beside the bound of its compute and memory time."""
    if report:
        try:
            report.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CelosiaError(f"{report}: cannot be written: {error.strerror}") from None
    measured = [_measure(model, device, config, batch) for model in models]
    networks = [found for found, _ in measured]
    if report:
        _write(report, measured)
    if as_json:
        return emit(networks[0] if len(networks) == 1 else {"networks": networks})
    for found in networks:
        layers_table([*found["layers"], found["total"]])
        print(f"{found['model']}: {found['frames_per_second']:.4g} frames/s at {found['clock_mhz']:g} MHz; stalls: {stalls(found)}")
    return None


def _measure(model, device, config, batch):
    """The report of a model, and its programs."""
    from .offload_commands import detector
    from .report import Stopwatch, bench_report

    watch, entry = Stopwatch(), detector(model, batch)
    if entry:
        (opened, runs), batch = _run_detector(entry, device, config, watch), 1
    else:
        program, chosen = prepare(model, config, batch)
        watch.lap("prepare")
        with progress_bar(f"bench {model} on {device}") as progress, open_with_progress(device, chosen, progress) as opened:
            watch.lap("open")
            runs, batch = [(program, opened.time(program))], program.batch
    watch.lap("run")
    return bench_report(model, opened, batch, runs, watch.seconds), list({id(program): program for program, _ in runs}.values())


def _run_detector(entry, device, config, watch):
    """The device, closed, and what ran on it for an image of the zoo."""
    from .detect import DEFAULT_CONFIG, detect, load_images, offloaded

    with progress_bar(f"bench {entry.name} on {device}") as progress, open_with_progress(device, config or DEFAULT_CONFIG, progress) as opened:
        watch.lap("open")
        module = offloaded(entry, opened, progress=progress)
        watch.lap("prepare")
        _, runs = detect(module, load_images(entry, (), 1).images[0])
    return opened, runs


def _write(folder, measured):
    from .bench_page import write_page
    from .timeline import timelines

    names = write_page(folder, [(found, programs, timelines(programs)) for found, programs in measured])
    print(f"{folder}: {', '.join(names)}", file=sys.stderr)
