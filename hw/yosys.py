"""Yosys in a process of its own, as it keeps its state in global variables and ends the process on an error.

    python -m celosia.hw.yosys PASS…

The pass `plain` is not one of Yosys's; it stands for :func:`plain`.
"""

import sys

from pyosys import libyosys as ys

__all__ = ["plain"]

_SUMS = ("$add", "$sub")
_COMPARISONS = ("$eq", "$ne", "$lt", "$le", "$gt", "$ge")
_SHIFTS = ("$shift", "$shiftx", "$shr")


def plain(design: ys.Design) -> None:
    """Makes Verilog of the design mean what it says without implicit rules: operands as wide as their operator, and every bit used, be it by a wire `unused`.

    The design must be without processes.
    """
    for module in design.modules_.values():
        for cell in list(module.cells_.values()):
            _widen(module, cell)
    ys.run_pass("setundef -undriven -zero", design)
    for module in design.modules_.values():
        _use(module)


def _widen(module, cell):
    kind, name = cell.type.str(), cell.name.str()
    width = {port.str(): signal.size() for port, signal in cell.connections_.items()}
    if kind in _SUMS:
        _resize(cell, "\\A", width["\\Y"])
        _resize(cell, "\\B", width["\\Y"])
    elif kind in _COMPARISONS:
        for port in "\\A", "\\B":
            _resize(cell, port, max(width["\\A"], width["\\B"]))
    elif kind == "$shl":
        _resize(cell, "\\A", width["\\Y"])
    elif kind == "$logic_not" and width["\\A"] > 1:
        operand, result = cell.getPort("\\A"), cell.getPort("\\Y")
        module.remove(cell)
        module.addEq(ys.IdString(name), operand, ys.SigSpec(0, width["\\A"]), result, False)
    elif kind in _SHIFTS and width["\\A"] > width["\\Y"]:
        shifted = ys.SigSpec(module.addWire(ys.IdString(f"{name}_shifted"), width["\\A"]))
        module.connect(cell.getPort("\\Y"), shifted.extract(0, width["\\Y"]))
        cell.setPort("\\Y", shifted)
        cell.fixup_parameters()


def _resize(cell, port, width):
    operand = cell.getPort(port)
    if operand.size() > width:
        operand = operand.extract(0, width)
    operand.extend_u0(width, cell.getParam(f"{port}_SIGNED").as_bool())
    cell.setPort(port, operand)
    cell.fixup_parameters()


def _use(module):
    used = set()
    read = [signal for cell in module.cells_.values() for port, signal in cell.connections_.items() if not cell.output(port)]
    for signal in [*read, *(source for _, source in module.connections_)]:
        used.update((bit.wire.name.str(), bit.offset) for bit in signal.bits() if bit.is_wire())
    rest = ys.SigSpec()
    for wire in module.wires_.values():
        if not wire.port_output:
            for bit in range(wire.width):
                if (wire.name.str(), bit) not in used:
                    rest.append(ys.SigSpec(wire).extract(bit, 1))
    if rest.size():
        module.addReduceAnd(ys.IdString("$unused"), rest, ys.SigSpec(module.addWire(ys.IdString("\\unused"))))


def main(passes: list[str]) -> None:
    """Runs the passes."""
    design = ys.Design()
    for name in passes:
        if name == "plain":
            plain(design)
        else:
            ys.run_pass(name, design)


if __name__ == "__main__":
    main(sys.argv[1:])
