"""What commands and the demo share: reports on stdout, progress on stderr, a user's errors in one sentence."""

import json
import sys
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from .errors import CelosiaError

__all__ = ["call", "emit", "layers_table", "make_folder", "open_with_progress", "prepare", "progress_bar", "speed", "stalls", "table"]

_notes = Console(stderr=True, highlight=False)


def call(function, *arguments):
    """Call a function for the user: an error that is the user's ends the process with one sentence and exit code 2."""
    try:
        return function(*arguments)
    except Exception as error:
        if not _is_users(error):
            raise
        print(f"celosia: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _is_users(error):
    """Every exception class that celosia defines is a sentence for the user; any other is a bug and keeps its traceback."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "torchvision", "torchao"):
        error.args = (f"this needs {error.name}; pip install 'celosia[torch]'",)
        return True
    return type(error).__module__.startswith("celosia.") and isinstance(error, (ValueError, RuntimeError))


def emit(report: dict) -> None:
    """The one JSON object on stdout."""
    print(json.dumps(report, ensure_ascii=False))


def table(columns, rows) -> None:
    """A table on stdout; wide where stdout is no terminal."""
    grid = Table(*columns, box=None, pad_edge=False, show_header=any(columns))
    for row in rows:
        grid.add_row(*map(str, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(grid)


@contextmanager
def progress_bar(title: str):
    """A callback for what takes time, or None where stderr is no terminal.

    It takes (stage, count) from the quantizer, (cycles, cycles per second) from the simulator, or a recipe's state with `step` and `steps`.
    """
    if not _notes.is_terminal:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=_notes, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def report(state, figure=None):
            if isinstance(state, str):
                bar.update(task, description=f"{title}: {state}", completed=figure)
            elif isinstance(state, int):
                bar.update(task, description=f"{title}: {state:,} cycles, {figure / 1e3:,.0f}k/s")
            else:
                bar.update(task, completed=state.step, total=state.steps)

        yield report


def open_with_progress(name, config, progress, **options):
    """Open a device; those that take long tell `progress`."""
    from .device import BOARDS, open_device

    return open_device(name, config, **options, **({"progress": progress} if name == "rtl" or name.startswith(BOARDS) else {}))


def make_folder(folder):
    """Make a folder for results, unless it is there. Raises :exc:`CelosiaError` if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CelosiaError(f"{folder}: cannot be written: {error.strerror}") from None


def prepare(model, config, batch):
    """The program to run, and the configuration of the device: the one asked for, else the program's own."""
    from ..hw.config import get_config
    from .source import load_program

    asked = get_config(config) if config else None
    with progress_bar(f"prepare {model}") as progress:
        program = load_program(model, config, batch, progress)
    return program, asked or program.config


def layers_table(rows):
    """A table of layers, or their total, with whatever figures they have."""
    columns = {"name": "layer", "op": "op", "macs": "MACs", "cycles": "cycles", "bound_cycles": "bound", "dram_bytes": "DRAM bytes", "utilisation": "utilisation"}
    columns = {key: title for key, title in columns.items() if key in rows[0]}

    def cell(value):
        return f"{value:.1%}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value or ""

    table(tuple(columns.values()), [[cell(row[key]) for key in columns] for row in rows])


def stalls(report):
    """What the array waited for, in cycles."""
    return ", ".join(f"{name} {count:,}" for name, count in report["stalls"].items()) or "none"


def speed(report):
    """The cycles of a run's report and what follows from them, in a line."""
    return (f"{report['cycles']:,} cycles for {report['images']} images, {report['utilisation']:.1%} of the array used, "
            f"{report['frames_per_second']:.4g} frames/s at {report['clock_mhz']:g} MHz")
