"""What a driver does: programs into an engine's memory, its registers, its answers. Where the engine is, a subclass knows."""

from collections.abc import Sequence

import numpy as np

from ..hw.config import AcceleratorConfig
from ..hw.isa import Base, Unit, decode, unit_of
from ..hw.program import Program, pack_map
from ..hw.registers import COUNTERS, IN_ORDER_COUNTERS, MAGIC, VERSION, Command, ErrorCode, Register, Status
from .device import DeviceError, Places, RunResult, check_inputs

__all__ = ["WATCHDOG_CYCLES", "Driver", "Stopped"]

#: Cycles without a retired instruction after which the engine gives up; the longest tile takes fewer.
WATCHDOG_CYCLES = 1 << 22
_BASES = {Base.WEIGHTS: Register.BASE_WEIGHTS, Base.MAPS: Register.BASE_MAPS, Base.INPUT: Register.BASE_INPUT, Base.OUTPUT: Register.BASE_OUTPUT}


class Stopped(DeviceError):
    """The engine has stopped the program by itself."""


class Driver:
    """Runs programs on an engine for `config`; a context manager.

    A subclass gives access to registers and memory, waits for the end of a program, and notes cycles on its way: the methods that raise NotImplementedError.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self._places, self._loaded = Places(), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Release what the device holds."""
        raise NotImplementedError

    def hold(self, programs: Sequence[Program]) -> None:
        """Give these programs places beside each other in memory: each one's image is written when it runs first, and stays until a program runs that is not held."""
        self._places, self._loaded = Places(programs), []

    def run_program(self, program: Program, inputs: list[np.ndarray]) -> RunResult:
        """Run a program on int8 codes (N, C, H, W), one array per input. The image is written only if it is not there: of the last program, and of those held.

        Raises :exc:`ProgramError` if the program does not fit the config, :exc:`DeviceError` if the inputs do not fit, the engine reports an error, or it does not
        come to its end.
        """
        bases = self._place(program, inputs)
        stamps, counters = self._run(program, bases, [(Unit.STORE, count) for count in program.stores])
        cycles = counters.pop("cycles")
        ends = [*stamps[:-1], cycles] if stamps else []
        regions = {base: self._fetch(bases[base], program.sizes[base]) for base in {placement.base for placement in program.outputs}}
        return RunResult(outputs=[program.output_codes(placement, regions[placement.base]) for placement in program.outputs], cycles=cycles,
                         layers=[end - start for start, end in zip([0, *ends], ends)], counters=counters)

    def _read(self, register: Register) -> int:
        raise NotImplementedError

    def _write(self, register: Register, value: int) -> None:
        raise NotImplementedError

    def _fetch(self, address: int, size: int) -> np.ndarray:
        """Bytes of the memory, uint8."""
        raise NotImplementedError

    def _put(self, address: int, data: np.ndarray) -> None:
        """Bytes, uint8, into the memory."""
        raise NotImplementedError

    def _mark(self, marks: Sequence[tuple[int, int]]) -> None:
        """Note, from the command on that follows, the cycle in which each event occurs for the count-th time."""
        raise NotImplementedError

    def _stamps(self) -> list[int]:
        """What has been noted; empty if it cannot be."""
        raise NotImplementedError

    def _wait(self, program: Program) -> None:
        """Until the engine is no longer busy. Raises :exc:`DeviceError` if that does not come to be."""
        raise NotImplementedError

    def _recover(self, error: BaseException) -> None:
        """Make the engine fit for the next program after one that has ended with `error`."""
        raise NotImplementedError

    def _identify(self):
        for register, expected in [(Register.MAGIC, MAGIC), (Register.VERSION, VERSION), (Register.CONFIG, self.config.hash)]:
            if (value := self._read(register)) != expected:
                raise DeviceError(f"the device is not {self._what()} of config {self.config.name}: register {register.name} is {value:08x}, not {expected:08x}")

    def _what(self):
        """What the device is, for a sentence."""
        return "the RTL"

    def _place(self, program, inputs):
        """Program and inputs into memory; returns the bases of its regions."""
        program.check_config(self.config)
        check_inputs(program, inputs)
        bases = self._places.bases(program)
        if not any(program is other for other in self._loaded):
            if any(other not in self._places for other in [program, *self._loaded]):
                self._loaded = []
            self._put(bases[Base.WEIGHTS], program.image)
            self._loaded.append(program)  # when all of it is there
        for placement, codes in zip(program.inputs, inputs):
            tensor = program.network.tensors[placement.tensor]
            folded = placement.fold.apply(codes, tensor.zero_point) if placement.fold else codes
            self._put(bases[placement.base] + placement.offset, pack_map(folded).view(np.uint8).ravel())
        return bases

    def _run(self, program, bases, marks):
        """The stamps of a run's marks, and its counters."""
        try:
            stamps = self._execute(program, bases, marks)
            return stamps, {register.name.lower(): self._read(register) for register in (IN_ORDER_COUNTERS if self.config.in_order else COUNTERS)}
        except BaseException as error:
            self._recover(error)
            raise

    def _execute(self, program, bases, marks):
        """Start and wait; returns the cycle of each mark."""
        for base, register in _BASES.items():
            self._write(register, bases[base])
        self._write(Register.PROGRAM, bases[Base.WEIGHTS] + program.code_offset)
        self._write(Register.INSTRUCTIONS, program.instructions)
        self._write(Register.WATCHDOG, WATCHDOG_CYCLES)
        self._mark(marks)
        self._write(Register.COMMAND, Command.const({"start": 1}).as_bits())
        self._wait(program)
        status = Status.from_bits(self._read(Register.STATUS))
        if status.error != ErrorCode.NONE:
            raise Stopped(f"program {program.network.name} stopped after {self._cycles()} cycles: {self._explain(program, status)}")
        return self._stamps()

    def _cycles(self):
        return self._read(Register.CYCLES)

    def _retired(self):
        """For a sentence."""
        return ", ".join(f"{unit.name} {self._read(Register[f'RETIRED_{unit.name}'])}" for unit in Unit)

    def _explain(self, program, status):
        if status.error != ErrorCode.WATCHDOG:
            return f"error {status.error.name} at instruction {self._read(Register.ERROR_INDEX)} of {program.instructions}"
        if status.unit >= len(Unit):
            return f"nothing retired for {WATCHDOG_CYCLES} cycles, fetching instructions is stuck"
        unit = Unit(status.unit)
        waits = " and ".join(u.name for u in Unit if status.waiting >> u & 1)
        retired = self._read(Register[f"RETIRED_{unit.name}"])
        own = [(index, opcode) for index, opcode in enumerate(map(_opcode, program.words())) if opcode and unit_of(opcode) == unit]
        where = "behind its last instruction"
        if retired < len(own):
            index, opcode = own[retired]
            where = f"near instruction {index} of {program.instructions}, {opcode.name}"
        return f"nothing retired for {WATCHDOG_CYCLES} cycles, {unit.name} waits for {f'tokens of {waits}' if waits else 'its bus or its data'} {where}"


def _opcode(word):
    """An instruction's opcode; None if it has none, as behind a program's END."""
    try:
        return decode(word)[0]
    except ValueError:
        return None
