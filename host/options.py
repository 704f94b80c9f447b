"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Batch", "Calibrate", "Config", "DeviceName", "Inputs", "Json", "Model", "Trust", "Vcd", "VcdCycles", "Weights"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Model = Annotated[str, typer.Argument(help="A zoo name, a .pt2, .celq or .celp file, or module:factory (runs its code).")]
Inputs = Annotated[list[Path] | None, typer.Argument(help="Images, folders of images or .npz files; none: the model's sample.")]
Config = Annotated[str | None, typer.Option(help="A configuration of `celosia boards`, or a .toml file.", show_default="ulx3s-85f")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images that run together.", show_default="1")]
DeviceName = Annotated[str, typer.Option(
    help="golden (the definition, no time), cycle (golden, and the hardware's cycles), rtl (the hardware, simulated), serial:PORT or tcp:HOST:PORT (a board).")]
Weights = Annotated[Path | None, typer.Option(help="A .safetensors file with the state dict.")]
Vcd = Annotated[Path | None, typer.Option(help="Write a waveform to this file (device rtl).")]
VcdCycles = Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="Cycles of the waveform, from the program's start.", show_default="0:9999")]
Trust = Annotated[bool, typer.Option(help="Accept a .pt2 with pickled entries: runs their code.")]
Calibrate = Annotated[list[Path] | None, typer.Option(help="Images to calibrate with: a folder or an .npz file; may be repeated.")]
