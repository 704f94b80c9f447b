"""The devices `serial:PORT` and `tcp:HOST:PORT`: a board, driven through its link."""

import contextlib
from collections.abc import Callable

import numpy as np

from ..hw.config import AcceleratorConfig
from ..hw.isa import Unit
from ..hw.link import MARK_COUNT, MARKS
from ..hw.registers import Command, Register, Status
from ..sim.device import DeviceError
from ..sim.driver import Driver
from .link import Link, LinkError, Pipe

__all__ = ["BoardDevice"]

#: A program in which no instruction retires for so long is given up. The engine's own watchdog comes first: 42 ms on a board, up to a minute in simulation.
QUIET_SECONDS = 120.0
#: In which a soft reset ends.
_RESET_SECONDS = 5.0
#: Between looks at a running engine: from, to.
_POLL_SECONDS = 0.0005, 0.02
_REPORT_SECONDS = 0.2
_NEVER = 0xFFFF_FFFF
#: Bytes written at once, between reports of progress.
_PART = 1 << 18


class BoardDevice(Driver):
    """Runs programs on the engine for `config` at the other end of `pipe`; a context manager.

    Programs of more than 512 layers, and those for in-order engines, have no cycles of their layers. progress: called with ("upload", bytes) as a program is written,
    with the cycles done and the cycles per second as it runs. quiet_seconds: a program in which no instruction retires for so long is given up. Raises
    :exc:`LinkError` if no device answers, :exc:`DeviceError` if it is not what `config` describes.
    """

    def __init__(self, config: AcceleratorConfig, pipe: Pipe, *, progress: "Callable | None" = None, quiet_seconds: float = QUIET_SECONDS):
        super().__init__(config)
        self.name, self._pipe, self._progress, self._quiet_seconds = pipe.name, pipe, progress, quiet_seconds
        self._marked = 0
        try:
            self._link = Link(pipe)
            self._identify()
            if Status.from_bits(self._read(Register.STATUS)).busy:  # with what a host before has left
                self._soft_reset()
        except BaseException:
            self.close()
            raise

    @property
    def link(self) -> Link:
        """What it is driven through."""
        return self._link

    def close(self) -> None:
        """Close the pipe."""
        self._pipe.close()

    def _what(self):
        return f"{self.name} with the engine"

    def _read(self, register):
        value = self._link.read_register(register)
        if value is None:
            raise self._refused("read", register)
        return value

    def _write(self, register, value):
        if not self._link.write_register(register, value):
            raise self._refused("write", register)

    def _refused(self, what, register):
        return DeviceError(f"the control port of {self.name} has refused a {what} of register {register.name}; load the bitstream again and run again")

    def _fetch(self, address, size):
        return np.frombuffer(self._link.read(address, -(-size // 8) * 8), np.uint8)[:size]

    def _put(self, address, data):
        content = data.tobytes() + bytes(-data.size % 8)
        for first in range(0, len(content), _PART):
            self._link.write(address + first, content[first : first + _PART])
            if self._progress:
                self._progress("upload", first + _PART)

    def _mark(self, marks):
        """Only STORE can be followed, and nothing through the link of an in-order engine."""
        if self.config.in_order:
            return
        self._marked = len(marks) if len(marks) <= MARK_COUNT else 0
        counts = [count for unit, count in marks[: self._marked] if unit == Unit.STORE]
        assert len(counts) == self._marked
        words = np.array([*counts, _NEVER, _NEVER][: min(len(counts) + 2 - len(counts) % 2, MARK_COUNT)], np.uint32)
        self._link.write(MARKS, words.tobytes())

    def _stamps(self):
        words = np.frombuffer(self._link.read(MARKS, 8 * (-(-self._marked // 2))), np.uint32)
        return words[: self._marked].tolist()

    def _wait(self, program):
        """Ask for the status, less and less often: an answer that comes by itself could be lost, and nothing would tell."""
        link = self._link
        begin = reported = moved = link.now()
        poll, retired = _POLL_SECONDS[0], None
        while Status.from_bits(self._read(Register.STATUS)).busy:
            link.pause(poll)
            poll = min(1.1 * poll, _POLL_SECONDS[1])
            if (now := link.now()) - reported < _REPORT_SECONDS:
                continue
            reported = now
            if self._progress:
                cycles = self._cycles()
                self._progress(cycles, cycles / (now - begin))
            if (count := [self._read(Register[f"RETIRED_{unit.name}"]) for unit in Unit]) != retired:
                moved, retired = now, count
            elif now - moved >= self._quiet_seconds:
                raise DeviceError(f"program {program.network.name} on {self.name}: no instruction has retired for {self._quiet_seconds:g} s and the watchdog has not "
                                  f"stopped it; instructions retired: {self._retired()}; load the bitstream again and run again")

    def _recover(self, error):
        if not isinstance(error, LinkError):
            with contextlib.suppress(DeviceError):  # what has gone wrong first is what is told
                self._soft_reset()

    def _soft_reset(self):
        self._write(Register.COMMAND, Command.const({"reset": 1}).as_bits())
        end = self._link.now() + _RESET_SECONDS
        while Status.from_bits(self._read(Register.STATUS)).busy:
            if self._link.now() >= end:
                raise DeviceError(f"the engine of {self.name} has not come to rest within {_RESET_SECONDS:g} s after a reset; load the bitstream again")
            self._link.pause(_POLL_SECONDS[1])
