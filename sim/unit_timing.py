"""When the units do what: `hw/load.py`, `compute.py`, `drain.py` and `store.py` without the data.

A unit is a process that takes one instruction after the other from the dispatcher, as soon as the one before has left the register in which it rests. `idle` is the
cycle from which on nothing of a unit's work is in flight.
"""

from collections import deque
from itertools import accumulate
from math import prod

from ..hw.compute import ComputeUnit, Sequencer
from ..hw.config import AcceleratorConfig
from ..hw.drain import IN_FLIGHT, DrainUnit
from ..hw.isa import Base, Opcode, Unit
from ..hw.load import AHEAD
from ..hw.store import QUEUED_BEATS, StoreUnit
from .dataflow import Simulation
from .dispatch_timing import DispatchTiming
from .dma_timing import ReadTiming, WriteTiming

__all__ = ["ComputeTiming", "DrainTiming", "LoadTiming", "StoreTiming"]

#: Cycles from reading a window's last pixel until its beat is offered to the write buffer.
_TO_BUFFER = StoreUnit.latency - 2


class LoadTiming:
    """`LoadWeights` or `LoadMaps`; `bases` in bytes. `spans`: of each instruction the cycle in which its first beat comes, and the one after its last."""

    def __init__(self, simulation: Simulation, dispatch: DispatchTiming, unit: Unit, read: ReadTiming, bases: "dict[Base, int]"):
        self.idle = 0
        self.spans, self._first = [], None
        self._dispatch, self._unit, self._bases = dispatch, unit, bases
        self._runs = read.requester(self._arrive)
        self._arrivals, self._ends = simulation.queue(AHEAD), simulation.queue()
        simulation.process(self._ask())
        simulation.process(self._end())

    def _arrive(self, first, last, final):
        if self._first is None:
            self._first = first
        if final:
            self.spans.append((self._first, last + 1))
            self._first = None
            self._ends.show(last)

    def _ask(self):
        """Process: a run per plane, one a cycle, the first two cycles after the instruction was taken."""
        free = 0
        while True:
            issue = yield from self._dispatch.offer(self._unit)
            fields = issue.fields
            planes, stride, beat = fields.get("planes", 1), fields.get("plane_stride", 0), self._bases[fields["base"]] // 8 + fields["offset"]
            taken = yield from self._arrivals.put(max(issue.offered, free), fields["post"])
            self._dispatch.take(self._unit, taken)
            free = taken + 2
            for plane in range(planes):
                free = 1 + (yield from self._runs.put(free, (beat + plane * stride, fields["beats"], plane == planes - 1)))

    def _end(self):
        """Process: an instruction retires two cycles after its last beat came, with which the next one's are awaited."""
        last = 0
        while True:
            _, post = yield from self._arrivals.take(last)
            last, _ = yield from self._ends.take(0)
            self.idle = last + 2
            self._dispatch.post(self._unit, post, last + 2)


class ComputeTiming:
    """`ComputeUnit`. What the counters follow from: `tiles`, of each its first pixel's cycle and the one after its last; `indices`, of each which of the unit's
    instructions it is; `present`, of each instruction the cycle from which on the unit's queue shows it and the one from which on the unit has done with it; `waits`,
    of each the cycle from which on it waits for tokens, then those from which on that of WEIGHT, that of MAP too, and that of DRAIN too is seen.

    COMPUTE_STRIDES and COMPUTE_WINDOW overtake the tile in front of them. If they left tokens, which the compiler never lets them, those would come too late here.
    """

    def __init__(self, simulation: Simulation, dispatch: DispatchTiming, config: AcceleratorConfig):
        self.idle = 0
        self.tiles, self.indices, self.present, self.waits = [], [], [], []
        self._dispatch = dispatch
        # Cycles from a tile's last pixel until its tokens leave: those for WEIGHT and MAP, that for DRAIN.
        self._read, self._written = Sequencer.latency + 1, ComputeUnit(config).latency
        # Cycles from the word before a tile's first weights until so many have come that it may start: three words, or all, are still to come.
        self._load = max(config.outputs, 4) - 2
        simulation.process(self._run())

    def _run(self):
        executed = start = last = -1  # cycles in which an instruction was executed, of the last tile's start and of its last pixel
        vacant = 0                    # the cycle from which on the next tile's weights may be loaded
        refused = deque(maxlen=6)     # cycles in which no instruction is executed, for a tile retires or leaves tokens
        pixels = kernel = 1
        while True:
            issue = yield from self._dispatch.offer(Unit.COMPUTE)
            taken = max(issue.offered, executed + 1)
            self._dispatch.take(Unit.COMPUTE, taken)
            self.waits.append(tuple(accumulate((issue.held, *(issue.tokens.get(unit, 0) for unit in (Unit.WEIGHT, Unit.MAP, Unit.DRAIN))), max)))
            executed = max(taken, start) + 1
            while executed in refused:
                executed += 1
            fields, post = issue.fields, issue.fields["post"]
            if issue.opcode is Opcode.COMPUTE:
                start = max(max(executed + 1, vacant) + self._load, last) + 1
                last = start + _count(fields, "channels") * kernel * pixels
                vacant = last - pixels + 2
                retired, at_read = last + self._written, post & ~(1 << Unit.DRAIN)
                self.tiles.append((start + 1, last + 1))
                self.indices.append(len(self.waits) - 1)
                self._dispatch.post(Unit.COMPUTE, at_read, last + self._read)
                self._dispatch.post(Unit.COMPUTE, post & ~at_read, retired)
                refused.extend((last + self._read - 1, retired - 1) if at_read else (retired - 1,))
            else:
                if issue.opcode is Opcode.COMPUTE_WINDOW:
                    pixels, kernel = _count(fields, "image", "row", "column"), _count(fields, "kernel_row", "kernel_column")
                retired = executed + 1
                self._dispatch.post(Unit.COMPUTE, post, retired)
            self.idle = max(self.idle, retired + 1)
            self.present.append((issue.queued, retired + 1))


def _count(fields, *loops):
    return prod(fields[f"last_{loop}"] + 1 for loop in loops)


class DrainTiming:
    """`DrainUnit`: a request every `outputs` / `drain_lanes` cycles, also from one instruction to the next. `spans`: of each the cycles in which it asks."""

    def __init__(self, simulation: Simulation, dispatch: DispatchTiming, config: AcceleratorConfig):
        self.idle = 0
        self.spans = []
        self._dispatch = dispatch
        self._groups, self._latency = config.outputs // config.drain_lanes, ComputeUnit(config).drain_latency
        simulation.process(self._run())

    def _run(self):
        accepted = requested = arrived = -1
        room = deque([0] * IN_FLIGHT)
        while True:
            issue = yield from self._dispatch.offer(Unit.DRAIN)
            taken = max(issue.offered, accepted + 1)
            self._dispatch.take(Unit.DRAIN, taken)
            accepted = max(taken + 1, requested, room.popleft())
            room.append(max(accepted + 1, arrived) + 2)
            requested = accepted + issue.fields["pixels"] * self._groups
            self.spans.append((accepted, requested))
            arrived = requested + self._latency
            retired = arrived + DrainUnit.latency + 1
            at_arrival = issue.fields["post"] & 1 << Unit.COMPUTE
            self._dispatch.post(Unit.DRAIN, at_arrival, arrived + 1)
            self._dispatch.post(Unit.DRAIN, issue.fields["post"] & ~at_arrival, retired)
            self.idle = retired


class StoreTiming:
    """`StoreUnit`; `bases` in bytes. `retired`: the cycles in which its instructions retire; `spans`: of each STORE that in which it begins, and the one after it is
    done."""

    def __init__(self, simulation: Simulation, dispatch: DispatchTiming, write: WriteTiming, bases: "dict[Base, int]"):
        self.idle = 0
        self.retired, self.spans = [], []
        self._dispatch, self._write, self._bases = dispatch, write, bases
        self._resting, self._executed, self._stores, self._sent = (simulation.queue() for _ in range(4))
        self._beats = self._answered = self._answer = 0  # beats read, and answered, the last of them in which cycle
        self._complete = simulation.queue()  # from when on each beat can leave for the write buffer
        self._left = simulation.queue()      # when each left, beginning with that `QUEUED_BEATS` before the next to be read
        self._left.elements.extend([(-QUEUED_BEATS, None)] * QUEUED_BEATS)
        for process in self._take(), self._execute(), self._leave(), self._send():
            simulation.process(process)

    def _take(self):
        """Process: an instruction is taken when the one before is executed, and rests until then."""
        executed = -1
        while True:
            issue = yield from self._dispatch.offer(Unit.STORE)
            taken = max(issue.offered, executed + 1)
            self._dispatch.take(Unit.STORE, taken)
            self._resting.show(taken + 1, issue)
            executed, _ = yield from self._executed.take(0)

    def _execute(self):
        """Process: staged pixels are read while runs are sent; then what is to be in memory is waited for."""
        finished = -1
        window = {"kernel_x": 1, "kernel_y": 1}
        while True:
            executed, (opcode, fields, *_) = yield from self._resting.take(finished + 1)
            self._executed.show(executed)
            post, to_drain, in_memory = fields["post"], 1 << Unit.DRAIN, 1 << Unit.MAP | 1 << Unit.WEIGHT
            if opcode is Opcode.STORE_WINDOW:
                window = fields
                # Serial products, a cycle for each digit of y modulo 2^10 and of the stride.
                finished = executed + 2 + max((fields["y"] & 0x3FF).bit_length(), fields["stride_y"].bit_length())
                self._dispatch.post(Unit.STORE, post & to_drain, finished + 1)
            else:
                self._stores.show(executed, fields)
                read = yield from self._read(executed + 1, window, (fields["last_plane"] + 1) * fields["rows"] * fields["columns"])
                self._dispatch.post(Unit.STORE, post & to_drain, read + 2)
                sent, _ = yield from self._sent.take(0)
                finished = max(read, sent) + 1
            if post & in_memory:
                finished = max(finished + 1, 2 + (yield from self._in_memory()))
                self._dispatch.post(Unit.STORE, post & in_memory, finished + 1)
            if opcode is Opcode.STORE:
                self.spans.append((executed, finished + 1))
            self.retired.append(finished + 1)
            self.idle = finished + 2

    def _read(self, cycle, window, beats):
        """Process: a pixel a cycle from `cycle` on, for each window a beat, as long as beats leave; returns the cycle in which the last is read."""
        pixels, left, queue = window["kernel_x"] * window["kernel_y"], self._left.elements, self._write.beats
        self._beats += beats
        first = cycle + pixels - 1 + _TO_BUFFER
        if len(left) == QUEUED_BEATS and left[-1][0] < cycle + _TO_BUFFER and len(queue.room) >= beats and queue.room[beats - 1] <= first:
            # Nothing holds them up.
            leave = range(first, first + beats * pixels, pixels)
            queue.elements.extend((at + 1, None) for at in leave)
            for at in leave:
                queue.room.popleft()
                left.popleft()
                left.append((at, None))
            queue.wake()
            return leave[-1] - _TO_BUFFER
        read = None
        for _ in range(beats):
            for _ in range(pixels):
                # How many may be read is known two cycles late, so a beat read in the cycle before is not yet counted.
                while not left:
                    yield self._left
                if cycle - 1 != read or left[0][0] + 2 > cycle:
                    while len(left) < 2:
                        yield self._left
                    cycle = max(cycle + (cycle - 1 == read), left[1][0] + 2)
                cycle += 1
            read = cycle - 1
            left.popleft()
            self._complete.show(read + _TO_BUFFER)
        return read

    def _leave(self):
        """Process: beats leave for the write buffer, one a cycle, as soon as it has room: by then later ones are read, and their instruction may have retired."""
        left = -1
        while True:
            complete, _ = yield from self._complete.take(left + 1)
            left = yield from self._write.beats.put(complete)
            self._left.show(left)

    def _in_memory(self):
        """Process: returns the cycle in which the last beat read is answered."""
        while self._answered < self._beats:
            self._answer, beats = yield from self._write.answered.take(0)
            self._answered += beats
        return self._answer

    def _send(self):
        """Process: a run a plane where rows follow each other in memory, after their serial product, else one a row; every two cycles at most."""
        while True:
            executed, fields = yield from self._stores.take(0)
            rows, columns, stride = fields["rows"], fields["columns"], fields["row_stride"]
            sent = executed
            if stride == columns:
                sent += rows.bit_length()
                rows, columns = 1, rows * columns
            for plane in range(fields["last_plane"] + 1):
                beat = self._bases[fields["base"]] // 8 + fields["offset"] + plane * fields["plane_stride"]
                for row in range(rows):
                    sent = yield from self._write.runs.put(sent + 2, (beat + row * stride, columns, False))
            self._sent.show(sent)
