"""When beats come from and go to memory: `hw/dma.py` without the data. A run is (beat address, beats, whether it is its instruction's last)."""

from collections import deque
from collections.abc import Callable

from ..hw.dma import OUTSTANDING, PATIENCE
from ..hw.fifo import Queue as HardwareQueue
from ..hw.interfaces import BEAT_BITS
from .dataflow import NEVER, Queue, Simulation
from .memory_timing import WRITE_BEATS, MemoryTiming

__all__ = ["ReadTiming", "WriteTiming"]

#: What a cutter holds: runs taken ahead, bursts that wait to be taken.
_RUNS, _BURSTS = 2, 2
#: Cycles from the arbiter's choice until the address is on the bus, through the queue of chosen bursts and the bus's register.
_TO_BUS = 2
#: Cycles from a burst's last beat on the bus until the arbiter sees that one burst less is in flight: the answer's register, then the queue.
_FROM_BUS = 2
#: Cycles from a beat's way out of the write buffer until room for another is seen: its output reads on, then there is room.
_BUFFER = 2


def _cut(runs, bursts, max_burst):
    """Process: runs into bursts, one a cycle; a run's last burst leaves as the next run is taken."""
    cycle = 0
    while True:
        cycle, (beat, left, final) = yield from runs.take(cycle)
        while left:
            beats = min(left, max_burst - beat % max_burst)
            left -= beats
            cycle = yield from bursts.put(cycle + 1, (beat, beats, final and not left))
            beat += beats


class ReadTiming:
    """`ReadDma`. Requesters come first in the order in which they were added, but the last one waits for `PATIENCE` bursts of others at most."""

    #: Cycles from a beat on the bus to its requester.
    latency = 2

    def __init__(self, simulation: Simulation, memory: MemoryTiming, max_burst: int):
        #: Beats asked for so far.
        self.beats = 0
        self._simulation, self._memory, self._max_burst = simulation, memory, max_burst
        self._requesters = []
        self._room = deque([0] * OUTSTANDING)
        self._cycle = self._passed_over = 0
        simulation.arbiter(self)

    def requester(self, tell: "Callable[[int, int, bool], None]") -> Queue:
        """Add a requester; returns the queue of its runs. Of each burst it is told in which cycles it gets the first and the last beat, and whether the burst ends an
        instruction."""
        runs, bursts = self._simulation.queue(_RUNS), self._simulation.requests(_BURSTS)
        self._simulation.process(_cut(runs, bursts, self._max_burst))
        self._requesters.append((bursts, tell))
        return runs

    def next(self) -> int:
        """The cycle in which the next burst is chosen."""
        seen = min((bursts.elements[0][0] for bursts, _ in self._requesters if bursts.elements), default=NEVER)
        return max(seen, self._room[0], self._cycle) if self._room else NEVER

    def act(self, cycle: int) -> None:
        """Choose a burst."""
        offers = [bool(bursts.elements) and bursts.elements[0][0] <= cycle for bursts, _ in self._requesters]
        choice = len(offers) - 1 if offers[-1] and self._passed_over == PATIENCE else offers.index(True)
        if offers[-1]:
            self._passed_over = 0 if choice == len(offers) - 1 else self._passed_over + 1
        bursts, tell = self._requesters[choice]
        _, (beat, beats, final) = bursts.elements.popleft()
        bursts.free(cycle + 1)
        self._room.popleft()
        self._cycle = cycle + 1
        self.beats += beats

        def answer(_, first, last):
            self._room.append(last + _FROM_BUS)
            tell(first + self.latency, last + self.latency, final)

        self._memory.read(cycle + _TO_BUS, beat, beats, answer)


class WriteTiming:
    """`WriteDma`. `runs` takes runs, `beats` their beats; of both the cycles are those in which they are taken."""

    def __init__(self, simulation: Simulation, memory: MemoryTiming, max_burst: int):
        self.runs = simulation.queue(_RUNS)
        self.beats = simulation.queue(HardwareQueue(BEAT_BITS, 4 * max_burst).capacity)
        #: Responses: (cycle, beats of the burst).
        self.answered = simulation.queue()
        #: Beats sent so far; from which cycle on all of them are known to be answered.
        self.beats_sent = self.idle = 0
        self._memory = memory
        self._flight, self._at_memory = simulation.queue(OUTSTANDING), simulation.queue(WRITE_BEATS)
        bursts, begun = simulation.queue(_BURSTS), simulation.queue()
        simulation.process(_cut(self.runs, bursts, max_burst))
        simulation.process(self._begin(bursts, begun))
        simulation.process(self._send(begun))

    def _begin(self, bursts, begun):
        """Process: a burst begins the cycle after its data are here and it may fly; every two cycles at most."""
        here = self.beats.elements
        begin = -1
        while True:
            while not bursts.elements:
                yield bursts
            seen, (beat, beats, _) = bursts.elements.popleft()
            while len(here) < beats:
                yield self.beats
            complete = [here.popleft()[0] for _ in range(beats)][-1]
            begin = 1 + (yield from self._flight.reserve(max(seen, complete, begin + 1)))
            bursts.free(begin + 1)
            begun.show(begin, (beat, beats))

    def _send(self, begun):
        """Process: beats go to the bus, one a cycle from the second after their burst began, unless the memory has no room; there a beat waits while the next stays."""
        step = taken = -1
        while True:
            begin, (beat, beats) = yield from begun.take(0)
            step = max(step, begin + 1)
            for _ in range(beats):
                step = max(step + 1, taken)
                self.beats.free(step + _BUFFER)
                taken = yield from self._at_memory.reserve(step + 1)
            self.beats_sent += beats
            self._memory.write(taken, beat, beats, self._answer(beats))

    def _answer(self, beats):
        def answer(committed, _, response):
            self._at_memory.room.extend([committed + 1] * beats)
            self._at_memory.wake()
            self._flight.free(response + 1)
            self.answered.show(response, beats)
            self.idle = response + 2

        return answer
