"""When instructions reach their units: `hw/dispatch.py` without the data."""

from collections import deque
from collections.abc import Generator
from typing import NamedTuple

from ..hw import isa
from ..hw.dispatch import FETCH_INSTRUCTIONS, FETCH_RUNS, QUEUE_INSTRUCTIONS
from ..hw.interfaces import BEAT_BITS
from ..hw.isa import EDGES, Opcode, Unit
from ..hw.primitives import BlockRam
from .dataflow import Queue, Simulation
from .dma_timing import ReadTiming
from .memory_timing import BEAT_CYCLES

__all__ = ["DispatchTiming", "Issue"]

_INSTRUCTION_BEATS = isa.INSTRUCTION_BITS // BEAT_BITS
_RUN_BEATS = FETCH_INSTRUCTIONS * _INSTRUCTION_BEATS
#: Of a queue in block RAM: elements read ahead, cycles from a read until the element is seen.
_READ_AHEAD, _READ_CYCLES = 4, BlockRam.latency + 1


class Issue(NamedTuple):
    """An instruction on its way to its unit."""

    opcode: Opcode
    fields: dict
    #: From which cycle on the unit's queue shows it; from which on it waits for its tokens; by unit, from which on the token from there is seen.
    queued: int
    held: int
    tokens: "dict[Unit, int]"
    #: From which cycle on the unit may take it.
    offered: int


class DispatchTiming:
    """Fetches a program from a beat address, from the cycle `start` on, decodes it, and keeps the tokens.

    Units are offered their instructions (:meth:`offer`), take them (:meth:`take`) and leave tokens (:meth:`post`).
    """

    def __init__(self, simulation: Simulation, read: ReadTiming, instructions: "list[tuple[Opcode, dict]]", beat: int, start: int):
        #: From which cycle on nothing further will come; None before END.
        self.ending = None
        #: Instructions handed out that no unit has taken yet, by unit.
        self.waiting = dict.fromkeys(Unit, 0)
        self._instructions = instructions
        self._fetched, self._room = simulation.queue(), simulation.queue()
        self._queues = {unit: simulation.queue(QUEUE_INSTRUCTIONS) for unit in Unit}
        self._tokens = {edge: simulation.queue() for edge in EDGES}
        self._offers, self._taken = ({unit: simulation.queue() for unit in Unit} for _ in range(2))
        self._beats = 0  # taken from the fetch buffer
        self._read, self._ahead = 0, deque([0] * _READ_AHEAD)  # when its last beat was read, and when others may be
        simulation.process(self._fetch(read.requester(self._arrive), beat, start))
        simulation.process(self._decode())
        for unit in Unit:
            simulation.process(self._issue(unit))

    def offer(self, unit: Unit) -> "Generator[Queue, None, Issue]":
        """Process: the unit's next instruction, after the one before has been taken."""
        _, issue = yield from self._offers[unit].take(0)
        return issue

    def take(self, unit: Unit, cycle: int) -> None:
        """The unit takes in `cycle` what it was offered."""
        self.waiting[unit] -= 1
        self._taken[unit].show(cycle + 1)

    def post(self, unit: Unit, mask: int, cycle: int) -> None:
        """The unit leaves tokens in `cycle` for the units of a mask."""
        for other in Unit:
            if mask >> other & 1:
                self._tokens[unit, other].show(cycle + 1)

    def _fetch(self, runs, beat, start):
        """Process: ask for runs while there is room for them. What is left is known the cycle after the start, that it is something one later."""
        left = len(self._instructions)
        for _ in range(FETCH_RUNS):
            self._room.show(start + 2)
        cycle = 0
        while left > 0:
            cycle, _ = yield from self._room.take(cycle)
            cycle = 1 + (yield from runs.put(cycle + 1, (beat, _INSTRUCTION_BEATS * min(left, FETCH_INSTRUCTIONS), False)))
            beat += _RUN_BEATS
            left -= FETCH_INSTRUCTIONS

    def _arrive(self, first, last, _):
        self._fetched.elements.extend((cycle + 1, None) for cycle in range(first, last + 1, BEAT_CYCLES))
        self._fetched.wake()

    def _beat(self, cycle):
        """Process: the fetch buffer's next beat, taken in `cycle` at the earliest; returns when. A run's last one makes room for another run."""
        while not self._fetched.elements:
            yield self._fetched
        written, _ = self._fetched.elements.popleft()
        self._read = max(written, self._read + 1, self._ahead.popleft())
        cycle = max(cycle, self._read + _READ_CYCLES)
        self._ahead.append(cycle + 1)
        self._beats += 1
        if self._beats % _RUN_BEATS == 0:
            self._room.show(cycle + 1)
        return cycle

    def _decode(self):
        """Process: two beats make an instruction, which is offered to its unit's queue the cycle after; the second waits until the instruction before is gone."""
        beat = gone = -1
        for opcode, fields in self._instructions:
            beat = yield from self._beat(beat + 1)
            beat = yield from self._beat(max(beat, gone) + 1)
            if opcode is Opcode.END:
                self.ending = beat + 2
                return
            unit = isa.unit_of(opcode)
            self.waiting[unit] += 1
            gone = yield from self._queues[unit].put(beat + 1, (opcode, fields))

    def _issue(self, unit):
        """Process: the queue's next instruction waits for its tokens, takes them the cycle after all are seen, and is offered the next until the unit takes it."""
        queue, cycle = self._queues[unit], 0
        while True:
            while not queue.elements:
                yield queue
            queued, (opcode, fields) = queue.elements.popleft()
            cycle = max(cycle, queued)
            queue.free(cycle + 2)  # the decoder knows a cycle late
            held = cycle + 1
            tokens = {}
            for other in Unit:
                if fields["wait"] >> other & 1:
                    tokens[other], _ = yield from self._tokens[other, unit].take(0)
            self._offers[unit].show(0, Issue(opcode, fields, queued, held, tokens, max((held, *tokens.values())) + 2))
            cycle, _ = yield from self._taken[unit].take(0)
