"""Processes that know when, for simulating time alone: what the device `cycle` is made of.

The blocks of the gateware talk through queues, and ready and valid of a queue depend on registers alone. So what a block does when follows from the cycles in which
elements and room of its queues could first be seen, in whatever order blocks are looked at (Kahn, "The semantics of a simple language for parallel programming",
1974): a process may be ahead of another one. Only arbiters, which choose by who came first, need the order of time; they act one after the other, each when
no process can go on. For them no process may wait for what happens later before it has told what happens earlier: what a block does side by side are several processes.
:class:`Requests`, from which arbiters choose, take no element whose time has gone by.
"""

from collections import deque
from collections.abc import Generator

__all__ = ["NEVER", "Queue", "Requests", "Simulation"]

#: Later than every cycle.
NEVER = 1 << 62


class Queue:
    """Elements, and room for more, each with the cycle from which on it can be seen: the one after it was put or freed.

    A process waits by yielding the queue. `elements` (cycle, value) and `room` (cycle) are open to those who know better when something is seen; who adds to them
    calls `wake`.
    """

    def __init__(self, runnable: deque, capacity: "int | None"):
        self.elements = deque()
        self.room = None if capacity is None else deque([0] * capacity)
        self.sleeping = []
        self._runnable = runnable

    def wake(self) -> None:
        """Let those go on who wait for this queue."""
        if self.sleeping:
            self._runnable.extend(self.sleeping)
            self.sleeping.clear()

    def show(self, cycle: int, value: object = None) -> None:
        """An element for which there is always room, seen from `cycle` on."""
        self.elements.append((cycle, value))
        self.wake()

    def free(self, cycle: int) -> None:
        """Room for an element, seen from `cycle` on."""
        self.room.append(cycle)
        self.wake()

    def reserve(self, cycle: int) -> "Generator[Queue, None, int]":
        """Process: wait for room, until `cycle` at least; returns the cycle in which it is used."""
        while not self.room:
            yield self
        return max(cycle, self.room.popleft())

    def put(self, cycle: int, value: object = None) -> "Generator[Queue, None, int]":
        """Process: offer an element from `cycle` on; returns the cycle in which it is taken."""
        cycle = yield from self.reserve(cycle)
        self.show(cycle + 1, value)
        return cycle

    def take(self, cycle: int) -> "Generator[Queue, None, tuple[int, object]]":
        """Process: take an element, in `cycle` at the earliest; returns the cycle in which it was taken, and the element."""
        while not self.elements:
            yield self
        seen, value = self.elements.popleft()
        cycle = max(cycle, seen)
        if self.room is not None:
            self.free(cycle + 1)
        return cycle, value


class Requests(Queue):
    """A queue that an arbiter chooses from."""

    def __init__(self, simulation: "Simulation", runnable: deque, capacity: "int | None"):
        super().__init__(runnable, capacity)
        self._simulation = simulation

    def show(self, cycle: int, value: object = None) -> None:
        """An element, seen from `cycle` on: later than what arbiters have chosen without it."""
        assert cycle > self._simulation.now, f"seen from cycle {cycle} on, told after arbiters have acted in cycle {self._simulation.now}"
        super().show(cycle, value)


class Simulation:
    """Processes, the queues between them, and arbiters: objects whose `next()` is the cycle in which they will act (NEVER if nothing is known to do) and whose
    `act(cycle)` does so."""

    def __init__(self):
        #: The cycle of the latest act.
        self.now = -1
        self._runnable = deque()
        self._arbiters = []

    def queue(self, capacity: "int | None" = None) -> Queue:
        """A queue; without a capacity there is always room."""
        return Queue(self._runnable, capacity)

    def requests(self, capacity: "int | None" = None) -> Requests:
        """A queue for an arbiter."""
        return Requests(self, self._runnable, capacity)

    def process(self, generator: Generator) -> None:
        """Add a process."""
        self._runnable.append(generator)

    def arbiter(self, arbiter: object) -> None:
        """Add an arbiter."""
        self._arbiters.append(arbiter)

    def run(self) -> None:
        """Run until nothing more can happen. An act changes what others do in later cycles only, so of acts in one cycle any may be first."""
        runnable = self._runnable
        while True:
            while runnable:
                process = runnable.popleft()
                if (queue := next(process, None)) is not None:
                    queue.sleeping.append(process)
            cycle, arbiter = min(((arbiter.next(), arbiter) for arbiter in self._arbiters), key=lambda pair: pair[0])
            if cycle == NEVER:
                return
            self.now = cycle
            arbiter.act(cycle)
