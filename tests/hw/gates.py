"""Netlists of iCE40 cells as Verilog, with Yosys' models of the cells."""

from importlib.util import find_spec
from pathlib import Path

from celosia.hw.build import verilog_of

__all__ = ["gates"]

_CELLS = Path(find_spec("pyosys").origin).with_name("share") / "ice40" / "cells_sim.v"


def gates(text: str, *passes: str) -> str:
    """Verilog of the netlist that passes of Yosys make of RTLIL, or read. A model that is put in front of it is taken instead of Yosys'."""
    return verilog_of(text, (*passes, "delete =A:blackbox =A:whitebox", "delete t:$scopeinfo", "opt_clean -purge")) + _CELLS.read_text()
