"""Verilog of a component."""

import subprocess
import sys
import tempfile
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import ValueCastable
from amaranth.lib import wiring

__all__ = ["to_portable_verilog", "to_rtlil", "to_verilog", "verilog_of"]


def to_rtlil(component: wiring.Component, name: str = "top", *, platform=None, omit: "tuple[str, ...]" = ()) -> str:
    """RTLIL of a component whose top module is `name`.

    Ports are named by their path joined with single underscores, as bus models and vendors' tools expect them: `m_axi_arvalid`; beside them there are `clk` and `rst`.
    Without a platform the primitives are their behavioural twins. The interfaces named in `omit` get no ports.
    """
    ports = {
        "_".join(map(str, path)): (value.as_value() if isinstance(value, ValueCastable) else value, None)
        for path, _, value in component.signature.flatten(component) if path[0] not in omit
    }
    return rtlil.convert(component, name=name, platform=platform, ports=ports, emit_src=False)


def to_verilog(component: wiring.Component, name: str = "top", *, platform=None) -> str:
    """Verilog of a component, ports as in :func:`to_rtlil`. Raises RuntimeError with what Yosys says if it fails."""
    return verilog_of(to_rtlil(component, name, platform=platform))


#: `proc` as far as it keeps the text readable: no multiplexers, no tables. Nor proc_prune, after which the bits of a signal that never change stand in an
#: `always @*` of their own, which waits for a change in vain: in Verilog they are x for ever.
_READABLE = ("proc_clean", "proc_rmdead", "proc_init", "proc_arst", "proc_dff", "proc_memwr", "proc_clean", "opt_expr -keepdc")


#: Multiplexers and operators instead of processes, no values at power-up, and nothing that a lint would have to be told to ignore (see `yosys.plain`).
#: Wires are split at their drivers, or lints see combinational loops in them.
_PORTABLE = ("setattr -unset init", "delete t:$meminit*", "proc", "opt_expr", "opt_clean -purge", "opt_dff -simple-dffe", "pmuxtree",
             "splitnets -driver -format ___", "opt_expr", "opt_clean -purge", "memory_collect", "plain")


def to_portable_verilog(component: wiring.Component, name: str, *, platform=None, omit: "tuple[str, ...]" = ()) -> str:
    """Verilog for any tool, ports as in :func:`to_rtlil`. Registers and memories have no values to begin with. Raises RuntimeError with what Yosys says if it fails."""
    library = getattr(platform, "cell_library", ())
    return _run_yosys(to_rtlil(component, name, platform=platform, omit=omit), [*library, *_PORTABLE, "write_verilog -noattr design.v"])


def verilog_of(text: str, passes: tuple[str, ...] = _READABLE) -> str:
    """Verilog of RTLIL after some passes of Yosys, by default those that keep it readable. Raises RuntimeError with what Yosys says if it fails."""
    return _run_yosys(text, [*passes, "memory_collect", "write_verilog -norename -noattr design.v"])


def _run_yosys(text, passes):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.il").write_text(text)
        command = [sys.executable, "-m", "celosia.hw.yosys", "read_rtlil design.il", *passes]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pyosys failed: {done.stdout[-2000:]}")
        return (Path(folder) / "design.v").read_text()
