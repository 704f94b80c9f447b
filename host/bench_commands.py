"""The command that measures cycles, and its report."""

import os
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
    from .offload_commands import detector

    if device == "golden":
        raise CelosiaError("--device golden: it does not know time; benchmark on cycle or rtl")
    if report:
        _expect_page(report)
    measures = [_Detector(entry, config) if (entry := detector(model, batch)) else _Whole(model, config, batch) for model in models]
    measured = [measure.run(device) for measure in measures]
    networks = [found for found, _ in measured]
    if report:
        _write(report, measured)
    if as_json:
        return emit(networks[0] if len(networks) == 1 else {"networks": networks})
    for found in networks:
        layers_table([*found["layers"], found["total"]])
        print(f"{found['model']}: {found['frames_per_second']:.4g} frames/s at {found['clock_mhz']:g} MHz; stalls: {stalls(found)}")
        print(f"beside that: {found['link']['seconds']:.3g} s for the maps of a batch on a line of 3 Mbaud, once {found['link']['upload_seconds']:.3g} s for weights; "
              f"the host took {', '.join(f'{seconds:.3g} s to {name}' for name, seconds in found['host_seconds'].items())}")
    return None


class _Whole:
    """A model that is one program, ready to be measured."""

    def __init__(self, model, config, batch):
        from .report import Stopwatch

        self._model, self._watch = model, Stopwatch()
        self._program, self._config = prepare(model, config, batch)
        self._watch.lap("prepare")

    def run(self, device):
        """Its report, and its programs."""
        from .report import bench_report

        self._watch.skip()
        with progress_bar(f"bench {self._model} on {device}") as progress, open_with_progress(device, self._config, progress) as opened:
            self._watch.lap("open")
            runs = [(self._program, opened.time(self._program))]
            self._watch.lap("run")
        return bench_report(self._model, opened, self._program.batch, runs, self._watch.seconds), [self._program]


class _Detector:
    """A detector of the zoo, of which parts run on the device."""

    def __init__(self, entry, config):
        from .detect import DEFAULT_CONFIG

        self._entry, self._config = entry, config or DEFAULT_CONFIG

    def run(self, device):
        """Its report for an image of the zoo, and its programs."""
        from .detect import detect, load_images, offloaded
        from .report import Stopwatch, bench_report

        watch = Stopwatch()
        with progress_bar(f"bench {self._entry.name} on {device}") as progress, open_with_progress(device, self._config, progress) as opened:
            watch.lap("open")
            module = offloaded(self._entry, opened, progress=progress)
            watch.lap("prepare")
            _, runs = detect(module, load_images(self._entry, (), 1).images[0])
            watch.lap("run")
        return bench_report(self._entry.name, opened, 1, runs, watch.seconds), list({id(program): program for program, _ in runs}.values())


def _expect_page(folder):
    """Before measurements that would be lost."""
    from .bench_page import expect_pictures

    expect_pictures()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CelosiaError(f"{folder}: cannot be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise CelosiaError(f"{folder}: cannot be written: permission denied")


def _write(folder, measured):
    from .bench_page import write_page
    from .timeline import timelines

    names = write_page(folder, [(found, programs, timelines(programs)) for found, programs in measured])
    print(f"{folder}: {', '.join(names)}", file=sys.stderr)
