"""The register map's documents, each read by a tool that is not ours, and the registers' definition."""

import re
import subprocess

import pytest

from celosia.hw.config import get_config
from celosia.hw.isa import Unit
from celosia.hw.register_map import c_header, fields, markdown, system_rdl
from celosia.hw.registers import MEANINGS, WRITABLE, Access, Command, ErrorCode, Register, Snapshot, Status, identity
from celosia.sim.toolchain import compiler

CONFIG = get_config("tiny")


def test_everything_has_a_meaning():
    for struct in Command, Status, Snapshot:
        assert list(MEANINGS[struct]) == [name for name, _ in struct.as_shape()]
    assert list(MEANINGS[ErrorCode]) == [code.name for code in ErrorCode]
    texts = [register.meaning for register in Register] + [text for meanings in MEANINGS.values() for text in meanings.values()]
    assert all(text.isascii() and text.endswith(".") and "*/" not in text for text in texts)


def test_fields_are_those_of_the_structs():
    status = Status.const({"busy": 1, "error": ErrorCode.WATCHDOG, "unit": 7, "waiting": 0b10101}).as_bits()
    assert {field.name: (status & field.mask) >> field.low for field in fields(Register.STATUS)} == {
        "busy": 1, "done": 0, "error": ErrorCode.WATCHDOG, "unit": 7, "waiting": 0b10101,
    }
    assert fields(Register.CYCLES) == []


def test_c_header(tmp_path):
    """Its constants, printed by a program in C, are the enums', and there are no others."""
    expected = {"SIZE": 0x1000} | {register.name: value for register, value in identity(CONFIG).items()}
    expected |= {f"REG_{register.name}": int(register) for register in Register}
    expected |= {f"ERROR_{code.name}": int(code) for code in ErrorCode} | {f"UNIT_{unit.name}": int(unit) for unit in Unit}
    for name, struct in (("COMMAND", Command), ("STATUS", Status), ("SNAPSHOT", Snapshot)):
        for field, place in struct.as_shape():
            expected[f"{name}_{field.upper()}_SHIFT"] = place.offset
            expected[f"{name}_{field.upper()}_MASK"] = (1 << place.width) - 1 << place.offset
    header = c_header(CONFIG)
    names = re.findall(r"^#define CELOSIA_(\w+) ", header, re.MULTILINE)
    (tmp_path / "celosia.h").write_text(header)
    prints = "".join(f'printf("{name} %lu\\n", (unsigned long)CELOSIA_{name});' for name in names)
    (tmp_path / "main.c").write_text(f'#include <stdio.h>\n#include "celosia.h"\n#include "celosia.h"\nint main(void) {{ {prints} return 0; }}\n')
    subprocess.run([*compiler(), "-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "main.c", "-o", "main"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    assert {name: int(value) for name, value in map(str.split, printed.splitlines())} == expected


def test_system_rdl(tmp_path):
    systemrdl = pytest.importorskip("systemrdl")
    types = pytest.importorskip("systemrdl.rdltypes")
    (tmp_path / "celosia.rdl").write_text(system_rdl(CONFIG))
    rdl = systemrdl.RDLCompiler()
    rdl.compile_file(str(tmp_path / "celosia.rdl"))
    found = {register.inst_name: register for register in rdl.elaborate("celosia").top.registers()}
    assert {name: register.absolute_address for name, register in found.items()} == {register.name: int(register) for register in Register}
    access = {Access.READ: types.AccessType.r, Access.WRITE: types.AccessType.w, Access.READ_WRITE: types.AccessType.rw}
    for register in Register:
        node = found[register.name]
        assert node.get_property("regwidth") == 32 and node.get_property("desc") == register.meaning
        expected = [(name, place.offset, place.offset + place.width - 1) for name, place in register.fields.as_shape()] if register.fields else [("value", 0, 31)]
        assert [(field.inst_name, field.low, field.high) for field in node.fields()] == expected
        for field in node.fields():
            assert field.get_property("sw") == access[register.access]
            assert field.get_property("reset") == identity(CONFIG).get(register, None if register.access is Access.READ else 0)
            if register.fields:
                assert field.get_property("desc") == MEANINGS[register.fields][field.inst_name]
    error = found["STATUS"].get_child_by_name("error").get_property("encode")
    assert {code.name: code.value for code in error} == {code.name: int(code) for code in ErrorCode}


def test_markdown():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(CONFIG).splitlines() if line.startswith("| ")]
    registers = {name: (int(address, 16), access, text) for address, name, access, text in (row for row in rows if row[0].startswith("0x"))}
    assert {name: row[0] for name, row in registers.items()} == {register.name: int(register) for register in Register}
    assert {name for name, row in registers.items() if "write" in row[1]} == {register.name for register in (*WRITABLE, Register.COMMAND)}
    assert all(registers[register.name][2].startswith(register.meaning) for register in Register)
    assert f"Here 0x{CONFIG.hash:08X}." in registers["CONFIG"][2]
    assert ["5:2", "error", MEANINGS[Status]["error"]] in rows and ["7", "WATCHDOG", MEANINGS[ErrorCode]["WATCHDOG"]] in rows and ["4", "STORE"] in rows
