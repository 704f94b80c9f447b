"""The register map of `registers.py` in the forms that others read: Markdown, a C header, SystemRDL 2.0."""

from typing import NamedTuple

from .config import AcceleratorConfig
from .isa import Unit
from .registers import MEANINGS, Access, ErrorCode, Register, identity

__all__ = ["Field", "c_header", "fields", "markdown", "system_rdl"]

#: Bytes of address space.
_SIZE = 0x1000
_RULES = ("Registers that can be written, but for COMMAND, can be while no program runs, and as whole words only. "
          "Any other write, and a read of no register, is answered with SLVERR.")
_RDL_ACCESS = {Access.READ: "sw = r; hw = w;", Access.WRITE: "sw = w; hw = r; singlepulse;", Access.READ_WRITE: "sw = rw; hw = r;"}


class Field(NamedTuple):
    """Some bits of a register; `codes`: the enum of their values, if they have names."""

    name: str
    low: int
    width: int
    meaning: str
    codes: "type[ErrorCode] | None"

    @property
    def high(self) -> int:
        """Its highest bit."""
        return self.low + self.width - 1

    @property
    def mask(self) -> int:
        """Its bits of the register."""
        return (1 << self.width) - 1 << self.low


def fields(register: Register) -> list[Field]:
    """The fields of a register, lowest first; none if it is a number."""
    if register.fields is None:
        return []
    return [Field(name, field.offset, field.width, MEANINGS[register.fields][name], field.shape if field.shape is ErrorCode else None)
            for name, field in register.fields.as_shape()]


def markdown(config: AcceleratorConfig) -> str:
    """Tables of the registers, their fields and the codes in them."""
    lines = [f"# Registers of celosia, config {config.name}", "", "32 bits each. " + _RULES, ""]
    known = identity(config)
    lines += ["| address | register | access | |", "|---|---|---|---|"]
    for register in Register:
        value = f" Here 0x{known[register]:08X}." if register in known else ""
        lines.append(f"| 0x{register:03X} | {register.name} | {register.access.value} | {register.meaning}{value} |")
    for register in filter(fields, Register):
        lines += ["", f"## {register.name}", "", "| bits | field | |", "|---|---|---|"]
        for field in fields(register):
            bits = f"{field.high}:{field.low}" if field.width > 1 else f"{field.low}"
            lines.append(f"| {bits} | {field.name} | {field.meaning} |")
    lines += ["", "## Errors", "", "| code | error | |", "|---|---|---|"]
    lines += [f"| {code} | {code.name} | {MEANINGS[ErrorCode][code.name]} |" for code in ErrorCode]
    lines += ["", "## Units", "", "| unit | |", "|---|---|", *(f"| {unit} | {unit.name} |" for unit in Unit)]
    return "\n".join(lines) + "\n"


def c_header(config: AcceleratorConfig) -> str:
    """Constants for C and C++: addresses, masks and shifts of fields, codes, and what the identity registers must read."""
    lines = [f"/* Registers of celosia, config {config.name}: byte addresses, 32 bits each.", f"   {_RULES} */", "#ifndef CELOSIA_H", "#define CELOSIA_H", ""]

    def define(name, value, comment=""):
        lines.append(f"#define CELOSIA_{name} {value}" + (f" /* {comment} */" if comment else ""))

    define("SIZE", f"0x{_SIZE:X}u", "Bytes of address space.")
    lines += ["", "/* What the registers read that say what the engine is. */"]
    for register, value in identity(config).items():
        define(register.name, f"0x{value:08X}u")
    lines += ["", "/* Registers. */"]
    for register in Register:
        define(f"REG_{register.name}", f"0x{register:03X}u", f"{register.access.value}: {register.meaning}")
    for register in filter(fields, Register):
        lines += ["", f"/* Fields of {register.name}. */"]
        for field in fields(register):
            define(f"{register.name}_{field.name.upper()}_SHIFT", field.low)
            define(f"{register.name}_{field.name.upper()}_MASK", f"0x{field.mask:08X}u", field.meaning)
    lines += ["", "/* Codes of the field error of STATUS. */"]
    for code in ErrorCode:
        define(f"ERROR_{code.name}", f"{code}u", MEANINGS[ErrorCode][code.name])
    lines += ["", "/* Units. */"]
    for unit in Unit:
        define(f"UNIT_{unit.name}", f"{unit}u")
    return "\n".join([*lines, "", "#endif", ""])


def system_rdl(config: AcceleratorConfig) -> str:
    """SystemRDL 2.0: an address map of 32-bit registers."""
    known = identity(config)
    lines = [f"// Registers of celosia, config {config.name}.", "", "enum celosia_error {"]
    lines += [f"    {code.name} = 4'd{code} {{ desc = {_quoted(MEANINGS[ErrorCode][code.name])}; }};" for code in ErrorCode]
    lines += ["};", "", "addrmap celosia {", '    name = "celosia";', f"    desc = {_quoted(_RULES)};", "    default regwidth = 32;", "    default accesswidth = 32;"]
    for register in Register:
        access = "sw = r; hw = na;" if register in known else _RDL_ACCESS[register.access]
        value = known.get(register, None if register.access is Access.READ else 0)
        reset = "" if value is None else f" = 0x{value:X}"
        lines += ["", "    reg {", f"        desc = {_quoted(register.meaning)};"]
        for field in fields(register):
            codes = " encode = celosia_error;" if field.codes else ""
            lines.append(f"        field {{ {access}{codes} desc = {_quoted(field.meaning)}; }} \\{field.name} [{field.high}:{field.low}]{reset};")
        if not fields(register):
            lines.append(f"        field {{ {access} }} value [31:0]{reset};")
        lines.append(f"    }} {register.name} @ 0x{register:03X};")
    return "\n".join([*lines, "};", ""])


def _quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
