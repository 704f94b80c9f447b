"""The device `cycle`: golden's bytes, and the RTL's cycles from a model of when each block does what.

Nothing here knows the RTL's results: the time of every burst, instruction and token follows from the registers between them, which the gateware's docstrings state.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..hw.config import AcceleratorConfig
from ..hw.interfaces import BEAT_BITS
from ..hw.isa import EDGES, SETUPS, Base, Opcode, Unit, decode, unit_of
from ..hw.program import Program
from .dataflow import Simulation
from .device import DeviceError, Places, RunResult
from .dispatch_timing import DispatchTiming
from .dma_timing import ReadTiming, WriteTiming
from .golden import GoldenDevice
from .inorder_timing import InOrderTiming
from .memory_timing import BEAT_CYCLES, MemoryTiming
from .timeline import Timeline
from .unit_timing import ComputeTiming, DrainTiming, LoadTiming, StoreTiming

__all__ = ["CycleDevice"]

#: Cycles from the host's command until the engine starts: the command is offered, accepted, finds the bus idle, and resets the engine for eight.
_START = 11
#: Cycles from when there is nothing left to do until the program has ended: the dispatcher looks twice, `done`, and that cycle counts.
_END = 4


class CycleDevice:
    """Runs programs for `config` with golden's arithmetic and the time of `rtl`, with its memory model `sdram` where memory is not the engine's own."""

    name = "cycle"

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self._golden = GoldenDevice(config)
        self._places, self._timed = Places(), []

    def run_program(self, program: Program, inputs: "list[np.ndarray]") -> RunResult:
        """Run a program on int8 codes (N, C, H, W). Raises ProgramError or DeviceError as `rtl` does."""
        outputs = self._golden.run_program(program, inputs).outputs
        return replace(self.time_program(program), outputs=outputs)

    def time_program(self, program: Program) -> RunResult:
        """What a run costs, which does not depend on data; without outputs. Raises DeviceError as `rtl` does."""
        run = self._timing(program)
        return RunResult(outputs=[], cycles=run.cycles, layers=list(run.layers), counters=dict(run.counters))

    def timeline(self, program: Program) -> Timeline:
        """What a run does when. Raises DeviceError as `rtl` does."""
        return self._timing(program).timeline

    def _timing(self, program):
        run = next((run for known, run in self._timed if known is program), None)
        if run is None:
            program.check_config(self.config)
            run = InOrderTiming(program, _instructions(program)) if self.config.in_order else _Run(program, self._places.bases(program))
            self._timed = [*(item for item in self._timed if item[0] in self._places), (program, run)]
        return run

    def hold(self, programs: "Sequence[Program]") -> None:
        """Give these programs places beside each other in memory, as `rtl` does."""
        self._places, self._timed = Places(programs), []

    def close(self) -> None:
        """Nothing to release."""


class _Run:
    """Cycles, layers and counters of a program, as `RunResult` has them, and its timeline."""

    def __init__(self, program, bases):
        instructions, max_burst = _instructions(program), program.config.max_burst
        simulation = Simulation()
        memory = MemoryTiming(simulation)
        read, write = ReadTiming(simulation, memory, max_burst), WriteTiming(simulation, memory, max_burst)
        dispatch = DispatchTiming(simulation, read, instructions, (bases[Base.WEIGHTS] + program.code_offset) // 8, _START)
        maps, weights = (LoadTiming(simulation, dispatch, unit, read, bases) for unit in (Unit.MAP, Unit.WEIGHT))  # as `ReadDma` prefers them
        compute, drain = ComputeTiming(simulation, dispatch, program.config), DrainTiming(simulation, dispatch, program.config)
        store = StoreTiming(simulation, dispatch, write, bases)
        simulation.run()
        if stuck := [unit.name for unit in Unit if dispatch.waiting[unit]]:
            raise DeviceError(f"program {program.network.name} does not come to its end: {' and '.join(stuck)} wait for tokens that nobody leaves; compile it again")

        end = max(dispatch.ending, write.idle, *(unit.idle for unit in (weights, maps, compute, drain, store))) + _END
        self.cycles = end - _START
        ends = [*(store.retired[count - 1] for count in program.stores[:-1]), self.cycles]
        self.layers = [end - start for start, end in zip([0, *ends], ends)]
        units = [unit_of(opcode) for opcode, _ in instructions]
        array = _array(compute, _START - 1, end - 1)
        self.counters = {
            **{name if name == "active" else f"stall_{name}": int(cycles.sum()) for name, cycles in array.items()},
            "read_beats": read.beats, "write_beats": write.beats_sent, **{f"retired_{unit.name.lower()}": units.count(unit) for unit in Unit},
        }
        spans = {Unit.WEIGHT: weights.spans, Unit.MAP: maps.spans, Unit.COMPUTE: compute.tiles, Unit.DRAIN: drain.spans, Unit.STORE: store.spans}
        indices = {unit: [index for index, (opcode, _) in enumerate(instructions) if units[index] is unit and opcode not in SETUPS] for unit in Unit}
        first, last, beats, written = np.array(memory.bursts).reshape(-1, 4).T
        layers, count = program.layers[[unit is Unit.COMPUTE for unit in units]], max(len(program.network.layers), 1)
        self.timeline = Timeline(
            cycles=self.cycles,
            spans={unit: np.column_stack([indices[unit], np.array(cycles, np.int64).reshape(-1, 2) - _START]) for unit, cycles in spans.items()},
            bursts=np.column_stack([first - _START, last + BEAT_CYCLES - _START, beats * (BEAT_BITS // 8) * (1 - 2 * written)]),
            array={name: np.bincount(np.append(layers, count - 1)[: len(cycles)], cycles, count).astype(np.int64) for name, cycles in array.items()})


def _instructions(program):
    """Its instructions, decoded. Raises DeviceError for what the dispatcher refuses."""
    name, instructions = program.network.name, []
    for index, word in enumerate(program.words()):
        try:
            opcode, fields = decode(word)
        except ValueError:
            raise DeviceError(f"program {name}: instruction {index} of {program.instructions} has the unknown opcode {word & 15}; compile it again") from None
        unit = unit_of(opcode)
        if any(fields["wait"] >> other & 1 and (other, unit) not in EDGES or fields["post"] >> other & 1 and (unit, other) not in EDGES for other in Unit):
            raise DeviceError(f"program {name}: instruction {index} of {program.instructions} has tokens for a unit it shares none with; compile it again")
        instructions.append((opcode, fields))
    if instructions[-1][0] is not Opcode.END:
        raise DeviceError(f"program {name} does not end with END; compile it again")
    return instructions


def _array(compute, first, end):
    """Of the cycles first … end − 1, those in which the array took a pixel, and those in which it did not, by cause: int64, of each of the unit's instructions, and of
    "instruction" also those after the last."""
    tiles, waits, present = (np.array(times) for times in (compute.tiles, compute.waits, compute.present))
    before = np.cumsum(tiles[:, 1] - tiles[:, 0]) - (tiles[:, 1] - tiles[:, 0])

    def idle(cycles):
        """Cycles before each of `cycles` in which the array took no pixel."""
        tile = np.maximum(np.searchsorted(tiles[:, 0], cycles, "right") - 1, 0)
        return cycles - before[tile] - np.clip(cycles - tiles[tile, 0], 0, tiles[tile, 1] - tiles[tile, 0])

    active = np.zeros(len(waits), np.int64)
    active[compute.indices] = tiles[:, 1] - tiles[:, 0]
    weights, maps, drain = np.diff(idle(waits), axis=1).T
    # Since when, and until when, the unit had nothing.
    absent = np.append(present[:, 0], end) - np.append(first, np.maximum.accumulate(present[:, 1]))
    return {"active": active, "weights": weights, "maps": maps, "drain": drain, "instruction": np.maximum(absent, 0)}
