"""Verilog of a component."""

import subprocess
import sys
import tempfile
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import ValueCastable
from amaranth.lib import wiring

__all__ = ["to_rtlil", "to_verilog", "verilog_of"]

# In a process of its own: Yosys keeps its state in global variables and ends the process on an error.
_YOSYS = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
for command in ["read_rtlil design.il", *sys.argv[1:], "memory_collect", "write_verilog -norename -noattr design.v"]:
    ys.run_pass(command, design)
"""


def to_rtlil(component: wiring.Component, name: str = "top", *, platform=None) -> str:
    """RTLIL of a component whose top module is `name`.

    Ports are named by their path joined with single underscores, as bus models and vendors' tools expect them: `m_axi_arvalid`; beside them there are `clk` and `rst`.
    Without a platform the primitives are their behavioural twins.
    """
    ports = {
        "_".join(map(str, path)): (value.as_value() if isinstance(value, ValueCastable) else value, None)
        for path, _, value in component.signature.flatten(component)
    }
    return rtlil.convert(component, name=name, platform=platform, ports=ports, emit_src=False)


def to_verilog(component: wiring.Component, name: str = "top", *, platform=None) -> str:
    """Verilog of a component, ports as in :func:`to_rtlil`. Raises RuntimeError with what Yosys says if it fails."""
    return verilog_of(to_rtlil(component, name, platform=platform))


#: `proc` as far as it keeps the text readable: no multiplexers, no tables. Nor proc_prune, after which the bits of a signal that never change stand in an
#: `always @*` of their own, which waits for a change in vain: in Verilog they are x for ever.
_READABLE = ("proc_clean", "proc_rmdead", "proc_init", "proc_arst", "proc_dff", "proc_memwr", "proc_clean", "opt_expr -keepdc")


def verilog_of(text: str, passes: tuple[str, ...] = _READABLE) -> str:
    """Verilog of RTLIL after some passes of Yosys, by default those that keep it readable. Raises RuntimeError with what Yosys says if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.il").write_text(text)
        done = subprocess.run([sys.executable, "-c", _YOSYS, *passes], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pyosys failed: {done.stdout[-2000:]}")
        return (Path(folder) / "design.v").read_text()
