"""The command `export`: the engine as a core for other designs."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from .console import emit, progress_bar
from .errors import CelosiaError
from .options import Config, Json

__all__ = ["app"]

app = typer.Typer()


@app.command()
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write; a new one, or one of an earlier export.")],
    config: Config = None,
    primitives: Annotated[str, typer.Option(help="generic (multipliers and block RAMs are inferred) or ecp5 (instances).")] = "generic",
    as_json: Json = False,
) -> None:
    """The engine as Verilog with AXI ports, its register map, and an example for LiteX."""
    from ..hw.config import get_config
    from ..hw.core import PRIMITIVES, core
    from .source import DEFAULT_CONFIG

    chosen = get_config(config or DEFAULT_CONFIG)
    if primitives not in PRIMITIVES:
        raise CelosiaError(f"--primitives must be {' or '.join(PRIMITIVES)}, not {primitives!r}")
    if not importlib.util.find_spec("pyosys"):
        raise CelosiaError("Verilog needs pyosys; pip install 'celosia[sim]'")
    _check(output)
    with progress_bar(f"export {chosen.name}"):
        files = core(chosen, primitives)
    _write(output, files)
    report = {"config": chosen.name, "hash": f"{chosen.hash:08x}", "primitives": primitives, "output": str(output),
              "files": {name: len(text.encode()) for name, text in files.items()}}
    if as_json:
        return emit(report)
    return print(f"{output}: {', '.join(files)}; config {chosen.name}, {primitives} primitives")


def _check(folder):
    """Refuses a folder that holds anything else than an export, or cannot be made, before the work."""
    from ..hw.core import FILES

    if not folder.parent.is_dir():
        raise CelosiaError(f"{folder}: cannot be written: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise CelosiaError(f"{folder}: is a file; name a folder")
    others = sorted({path.name for path in folder.glob("*")} - set(FILES))
    if others:
        raise CelosiaError(f"{folder}: holds {others[0]}, which is not of an export; name a new folder")


def _write(folder, files):
    from ..hw.atomic import write_atomically

    try:
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise CelosiaError(f"{folder}: cannot be written: {error.strerror}") from None
