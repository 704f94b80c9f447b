"""When the board's memory answers: `sdram.hpp`, burst by burst, without the data.

A burst never crosses a row, so once its first beat has its time the others follow every four memory clocks: every three engine cycles.
"""

from array import array
from collections.abc import Callable

from ..hw.sdram_port import READ_TURN_BEATS, STORED_BEATS, WRITE_TURN_BEATS
from .dataflow import NEVER, Simulation

__all__ = ["BEAT_CYCLES", "WRITE_BEATS", "MemoryTiming", "Sdram"]

# The SDRAM's, in its clocks, as in `sdram.hpp`, where they are explained.
CAS, RCD, RP, RAS, RC, RRD, WR, RFC, REFRESH, READ_TO_WRITE = 3, 3, 3, 6, 9, 2, 2, 9, 1040, 2
BEAT_CLOCKS, ROW_BYTES, BANKS = 4, 1024, 4
# The controller's.
HORIZON, REQUEST_CYCLES, DATA_CYCLES = 16, 5, 5
READ_TURN_BYTES, WRITE_TURN_BYTES = 8 * READ_TURN_BEATS, 8 * WRITE_TURN_BEATS
#: Beats written that the controller holds.
WRITE_BEATS = STORED_BEATS
#: Engine cycles from a beat of a burst to the next.
BEAT_CYCLES = BEAT_CLOCKS * 3 // 4


class Sdram:
    """Row, bank and bus state. Times are memory clocks."""

    def __init__(self):
        self.bus_free = 0
        self._rows, self._activated, self._idle = [-1] * BANKS, [-100] * BANKS, [0] * BANKS
        self._last_activate, self._next_refresh, self._writing = -100, REFRESH, False

    def burst(self, address: int, beats: int, write: bool, now: int) -> int:
        """The clock after the first beat's last data, for a burst at a byte address of which the controller knows at `now`."""
        if now >= self._next_refresh:
            self._refresh(now)
        row, bank = divmod(address // ROW_BYTES, BANKS)
        if self._rows[bank] != row:
            ready = max(now, self._idle[bank])
            if self._rows[bank] >= 0:
                ready = max(ready, self._activated[bank] + RAS) + RP
            self._last_activate = self._activated[bank] = max(ready, self._activated[bank] + RC, self._last_activate + RRD)
            self._rows[bank] = row
        command = max(now, self._activated[bank] + RCD)
        if write:
            start = max(self.bus_free + (0 if self._writing else READ_TO_WRITE), command)
        else:
            start = max(self.bus_free + (CAS if self._writing else 0), command + CAS)
        self._writing = write
        self.bus_free = start + BEAT_CLOCKS * beats
        self._idle[bank] = self.bus_free + (WR if write else 0)
        return start + BEAT_CLOCKS

    def _refresh(self, now):
        due = (now - self._next_refresh) // REFRESH
        start = max(self._next_refresh + due * REFRESH, *self._idle, *(activated + RAS for activated in self._activated))
        self._rows, self._idle = [-1] * BANKS, [start + RP + RFC] * BANKS
        self._next_refresh += (due + 1) * REFRESH


class MemoryTiming:
    """The arbiter in front of the SDRAM: which burst is next, and in which engine cycles its beats are on the bus.

    Beats read never wait for room in the controller: its horizon keeps it from reading more than a few ahead.
    """

    def __init__(self, simulation: Simulation):
        #: Of each burst, one behind the other, the cycles of its first and last beat on the bus, its beats, and whether they are written.
        self.bursts = array("q")
        self._reads, self._writes = simulation.requests(), simulation.requests()
        self._sdram = Sdram()
        self._cycle, self._writing, self._turn = 0, False, 0
        simulation.arbiter(self)

    def read(self, cycle: int, beat: int, beats: int, answer: "Callable[[int, int, int], None]") -> None:
        """A burst at a beat address, whose address is on the bus in `cycle`. When its time has come `answer` is told three cycles: in which it was
        committed, and in which the bus shows its first and its last beat."""
        self._reads.show(cycle + REQUEST_CYCLES, (beat, beats, answer))

    def write(self, cycle: int, beat: int, beats: int, answer: "Callable[[int, int, int], None]") -> None:
        """As `read`: a burst whose last beat is on the bus in `cycle`. The last cycle `answer` is told is that of the response."""
        self._writes.show(cycle, (beat, beats, answer))

    def next(self) -> int:
        """The cycle in which the next burst is committed."""
        known = min(bursts.elements[0][0] if bursts.elements else NEVER for bursts in (self._reads, self._writes))
        # The first cycle c with ⌊4c / 3⌋ ≥ bus_free − HORIZON.
        return NEVER if known == NEVER else max(known, self._cycle, -((HORIZON - self._sdram.bus_free) * 3 // 4))

    def act(self, cycle: int) -> None:
        """Commit a burst."""
        read, write = (bool(bursts.elements) and bursts.elements[0][0] <= cycle for bursts in (self._reads, self._writes))
        if not (write if self._writing else read) or (read and write and self._turn >= (WRITE_TURN_BYTES if self._writing else READ_TURN_BYTES)):
            self._writing, self._turn = not self._writing, 0
        _, (beat, beats, answer) = (self._writes if self._writing else self._reads).elements.popleft()
        first = (self._sdram.burst(8 * beat, beats, self._writing, cycle * 4 // 3) * 3 + 3) // 4 + DATA_CYCLES
        self._turn += 8 * beats
        self._cycle = cycle + 1
        last = first + BEAT_CYCLES * (beats - 1)
        self.bursts.extend((first, last, beats, self._writing))
        answer(cycle, first, last)
