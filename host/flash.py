"""A bitstream into a board, by openFPGALoader."""

import os
import shutil
import subprocess
from pathlib import Path

from .board import Board
from .errors import CelosiaError

__all__ = ["flash"]

#: In which a bitstream is loaded; two megabytes into a board's flash take half of it.
_SECONDS = 240


def flash(board: Board, file: "str | Path", *, keep: bool = False) -> None:
    """Load a bitstream into the FPGA or, with `keep`, into the flash memory from which the board starts.

    Raises :exc:`CelosiaError` if the file is none, openFPGALoader is not there, or no board answers. $OPENFPGALOADER names another program.
    """
    path = Path(file)
    if path.suffix not in (".bit", ".bin"):
        raise CelosiaError(f"bitstream {path}: must be a .bit or .bin file; make one with `celosia synth {board.name}`")
    if not path.is_file():
        raise CelosiaError(f"bitstream {path}: there is no such file; make one with `celosia synth {board.name}`")
    tool = os.environ.get("OPENFPGALOADER") or shutil.which("openFPGALoader")
    if not tool:
        raise CelosiaError("openFPGALoader is not installed; install it (Debian: apt install openfpgaloader; otherwise trabucayre.github.io/openFPGALoader)")
    command = [tool, "-b", board.loader, *(["--write-flash"] if keep else []), str(path)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=_SECONDS, check=False)
    except OSError as error:
        raise CelosiaError(f"openFPGALoader, {tool}, does not run: {error}; install it, or correct $OPENFPGALOADER") from None
    except subprocess.TimeoutExpired:
        raise CelosiaError(f"openFPGALoader has not ended within {_SECONDS} s; take the board's USB cable out and in, and run again") from None
    if done.returncode:
        said = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1].strip()
        raise CelosiaError(f"board {board.name} does not answer openFPGALoader ({said}); check its USB cable and the permission to use it")
