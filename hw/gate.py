"""Does the array close timing? Places and routes the ComputeUnit alone, behind a narrow wrapper, and writes down the clocks of several seeds.

    python -m celosia.hw.gate --seeds 1 2 3 -o results/gate.json

So a change of the array is judged in a quarter of an hour; the chip's figures are those of `celosia synth` (`synth.py`).
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

from amaranth.hdl import Cat, ClockDomain, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .atomic import write_atomically
from .build import to_rtlil
from .compute import ComputeUnit
from .config import AcceleratorConfig, get_config
from .interfaces import BEAT_BITS
from .isa import INSTRUCTION_BITS
from .place import Build, run_figures, used
from .primitives import EcpPrimitives, delayed

__all__ = ["ArrayGate", "main"]

#: The clock pin must have a place, or nextpnr fails to route it.
_PINS = 'LOCATE COMP "clk" SITE "G2";\nIOBUF PORT "clk" IO_TYPE=LVCMOS33;\n'
_DEVICE = ("--85k", "--lpf-allow-unconstrained")


class ArrayGate(wiring.Component):
    """The ComputeUnit behind 23 pins with registers: every operand can be given and every result is seen, none of it fast.

    Bytes are shifted into a word of 128 bits and an address, which the other commands use; the sums come out folded by exclusive or.
    """

    clk: In(1)
    reset: In(1)
    command: In(3)
    strobe: In(1)
    data: In(8)
    folded: Out(8)
    status: Out(1)

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__()

    def elaborate(self, _platform):
        m = Module()
        m.domains.sync = sync = ClockDomain(reset_less=True)
        m.d.comb += sync.clk.eq(self.clk)
        unit = ComputeUnit(self._config)
        m.submodules.unit = ResetInserter(delayed(m, self.reset, 2))(unit)
        command, strobe, byte = delayed(m, self.command, 2), delayed(m, self.strobe, 2), delayed(m, self.data, 3)
        shift_word, shift_address, map_write, weight_write, read, instruct = (delayed(m, strobe & (command == k)) for k in range(6))
        word, address = Signal(INSTRUCTION_BITS, reset_less=True), Signal(16, reset_less=True)
        with m.If(shift_word):
            m.d.sync += word.eq(Cat(word[8:], byte))
        with m.If(shift_address):
            m.d.sync += address.eq(Cat(address[8:], byte))
        with m.If(instruct):
            m.d.sync += unit.instruction.valid.eq(1)
        with m.Elif(unit.instruction.ready):
            m.d.sync += unit.instruction.valid.eq(0)
        for port, write in ((unit.map_write, map_write), (unit.weight_write, weight_write)):
            m.d.comb += [
                port.valid.eq(delayed(m, write)), port.address.eq(delayed(m, address)), port.lane.eq(delayed(m, address[-1])),
                port.data.eq(delayed(m, word[:BEAT_BITS])),
            ]
        m.d.comb += [
            unit.instruction.payload.eq(word),
            unit.sums_read.valid.eq(read), unit.sums_read.pixel.eq(address), unit.sums_read.bank.eq(address[-1]),
        ]
        folded = delayed(m, unit.sums.data.as_value())
        while len(folded) > 8:
            folded = delayed(m, folded[: len(folded) // 2] ^ folded[len(folded) // 2 :])
        status = delayed(m, Cat(unit.control.post, unit.control.retired, unit.control.busy, unit.active, unit.sums.valid))
        m.d.sync += [self.folded.eq(delayed(m, folded)), self.status.eq(delayed(m, status.xor()))]
        return m


def _commit() -> dict:
    """The commit this folder is at, and whether its files differ from it, as fields of the result."""
    def git(*command):
        return subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}


def main(arguments: "list[str] | None" = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m celosia.hw.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ulx3s-85f", help="name or TOML file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="seeds placed at a time (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/gate"), help="folder for netlists, logs and reports (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/gate.json"))
    options = parser.parse_args(arguments)
    config = get_config(options.config)
    state = _commit()  # before the hour in which others commit
    build = Build(to_rtlil(ArrayGate(config), platform=EcpPrimitives()), _PINS, _DEVICE, options.work, log=lambda line: print(line, flush=True))
    build.prepare()
    reports, unrouted = build.route_all(options.seeds, options.jobs)
    runs = [run_figures(seed, report) for seed, report in reports.items()]
    clocks = [mhz for run in runs for mhz in run["clocks"].values()]
    result = {
        "command": f"python -m celosia.hw.gate --config {options.config} --seeds {' '.join(map(str, options.seeds))} -o {options.output}",
        **state, "netlist": build.netlist, "config": config.name, "part": "LFE5U-85F-6BG381C", "tools": build.tools, **build.commands,
        "macs": config.macs, **used(next(iter(reports.values()))), "unrouted_seeds": unrouted, "fmax_mhz_median": statistics.median(clocks), "runs": runs,
    }
    write_atomically(options.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"{result['fmax_mhz_median']} MHz in the median of {len(runs)} seeds")


if __name__ == "__main__":
    main()
