"""Cycles of the in-order engine: each instruction's follow from its fields, and of DRAIN from the channels' shifts."""

from math import prod

import numpy as np

from ..hw.inorder_drain import SerialRequantizer
from ..hw.isa import SETUPS, Base, Opcode, Target, Unit, unit_of
from ..hw.parameters import PARAMETER_BYTES, decode_parameters
from ..hw.program import Program
from .timeline import Timeline

__all__ = ["InOrderTiming"]

#: Fetching an instruction and handing it out.
_FETCH = 4
#: From the command to the first fetch, and from END to the end of the program.
_START, _END = 2, 1


class InOrderTiming:
    """Cycles, layers and counters of a program, as `RunResult` has them; `instructions` are its own, decoded."""

    def __init__(self, program: Program, instructions: "list[tuple[Opcode, dict]]"):
        self._program = program
        self._parameters = np.zeros((program.config.parameter_words, PARAMETER_BYTES), np.uint8)
        self._window = self._pool = None
        now, stores = _START, []
        self._spans, self._active = {unit: [] for unit in Unit}, np.zeros(max(len(program.network.layers), 1), np.int64)
        for index, (opcode, fields) in enumerate(instructions):
            begin = now + _FETCH
            now = begin + getattr(self, f"_{opcode.name.lower()}", lambda **_: 0)(**fields)
            if unit_of(opcode) == Unit.STORE:
                stores.append(now)
            if opcode == Opcode.COMPUTE:
                self._active[program.layers[index]] += self._steps(fields) * self._pixels()
            if opcode is not Opcode.END and opcode not in SETUPS:
                self._spans[unit_of(opcode)].append((index, begin, now))
        self.cycles = now + _END
        ends = [*(stores[count - 1] for count in program.stores[:-1]), self.cycles]
        self.layers = [end - start for start, end in zip([0, *ends], ends)]
        units = [unit_of(opcode) for opcode, _ in instructions]
        self.counters = {"active": int(self._active.sum()), **{f"retired_{unit.name.lower()}": units.count(unit) for unit in Unit}}

    def timeline(self) -> Timeline:
        """What a run does when: one instruction after the other."""
        return Timeline(cycles=self.cycles, spans={unit: np.array(spans, np.int64).reshape(-1, 3) for unit, spans in self._spans.items()},
                        bursts=np.zeros((0, 3), np.int64), array={"active": self._active, "others": np.array(self.layers) - self._active})

    def _load_weights(self, base, offset, target, address, beats, **_):
        if target == Target.PARAMETERS:
            assert base == Base.WEIGHTS, "others are computed, for which there is no hardware"
            words = self._program.image[8 * offset : 8 * (offset + beats)].reshape(-1, PARAMETER_BYTES)
            self._parameters[(address + np.arange(len(words))) % len(self._parameters)] = words
        return 2 * beats

    def _load_map(self, beats, planes, **_):
        return 2 * beats * planes

    def _compute_window(self, **fields):
        self._window = fields
        return 0

    def _compute(self, **fields):
        return self._steps(fields) * (self._pixels() + 2)

    def _steps(self, compute):
        return (compute["last_channels"] + 1) * (self._window["last_kernel_row"] + 1) * (self._window["last_kernel_column"] + 1)

    def _pixels(self):
        return prod(self._window[f"last_{name}"] + 1 for name in ("column", "row", "image"))

    def _drain(self, pixels, group, parameters, **_):
        entries = 2 * (group & 1) + np.arange(self._program.config.outputs)
        shifts = decode_parameters(self._parameters[[parameters]])["shift"][0, entries]
        return int(sum(7 + pixels * (-(-shift // SerialRequantizer.digit_bits) + 1) for shift in shifts))

    def _store_window(self, **fields):
        self._pool = fields
        return 0

    def _store(self, rows, columns, last_plane, **_):
        pool = self._pool
        down = abs(pool["y"]) + (rows - 1) * pool["stride_y"] + rows
        return (last_plane + 1) * (down + rows * columns * (pool["kernel_x"] * pool["kernel_y"] + 1))
