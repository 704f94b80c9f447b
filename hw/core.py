"""The engine as a core for others' designs: Verilog, register map, and how LiteX takes it in."""

from pathlib import Path

from .accelerator import Accelerator
from .build import to_portable_verilog
from .config import AcceleratorConfig
from .primitives import EcpPrimitives
from .register_map import c_header, markdown, system_rdl

__all__ = ["FILES", "PRIMITIVES", "core"]

#: What makes multipliers and block RAMs: the synthesis tool, which infers them, or instances.
PRIMITIVES = {"generic": None, "ecp5": EcpPrimitives()}
FILES = ("celosia.v", "celosia.h", "celosia.rdl", "celosia_litex.py", "registers.md")


def core(config: AcceleratorConfig, primitives: str = "generic") -> dict[str, str]:
    """The content of each of `FILES`.

    Raises ValueError for primitives that are not in `PRIMITIVES`, RuntimeError with what Yosys says if it fails.
    """
    if primitives not in PRIMITIVES:
        raise ValueError(f"primitives must be one of {', '.join(PRIMITIVES)}, not {primitives!r}")
    texts = (_verilog(config, primitives), c_header(config), system_rdl(config), Path(__file__).with_name("litex_core.py").read_text(), markdown(config))
    return dict(zip(FILES, texts, strict=True))


def _verilog(config, primitives):
    text = to_portable_verilog(Accelerator(config), "celosia", platform=PRIMITIVES[primitives], omit=("trace",))
    port = "  output interrupt;\n"  # at first of the top module
    text = text.replace(port, f"  /* verilator lint_off SYMRSVDWORD */ // A word of C++, in which Verilator renames it.\n{port}"
                              "  /* verilator lint_on SYMRSVDWORD */\n", 1)
    return (f"// celosia, config {config.name} (hash {config.hash:08x}), {primitives} primitives. Hold rst for eight cycles of clk before use.\n"
            f"/* verilator lint_off DECLFILENAME */ // All modules are in one file.\n{text}")
