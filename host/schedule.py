"""Instructions in program order, and the tokens that order the units.

What must wait for what is said once, where an instruction is emitted (`after`), and only ever of instructions emitted before: so the oldest unfinished
instruction can always proceed and no program deadlocks. Tokens follow from it mechanically (`Schedule.words`).
"""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from ..hw import isa
from ..hw.isa import Opcode, Unit

__all__ = ["Mark", "Region", "Ring", "Schedule"]

#: Tokens left at most for instructions that follow. A counter holds 255; of those that take them 17 may be waiting in their unit's queue.
_MOST_TOKENS = 255 - 17


@dataclass(frozen=True, order=True)
class Mark:
    """The `ordinal`-th instruction of a unit."""

    unit: Unit
    ordinal: int


@dataclass
class _Instruction:
    index: int
    opcode: Opcode
    layer: int
    fields: dict
    after: tuple[Mark, ...]
    wait: set = field(default_factory=set)
    post: set = field(default_factory=set)


class Schedule:
    """A program under construction."""

    def __init__(self):
        self._instructions = []
        self._units = {unit: [] for unit in Unit}
        self._setup = {}

    def emit(self, opcode: Opcode, after=(), *, layer: int, **fields) -> Mark:
        """Append an instruction for a layer that starts after those marked (None among them is skipped)."""
        unit = isa.unit_of(opcode)
        instruction = _Instruction(len(self._instructions), opcode, layer, fields, tuple(mark for mark in after if mark is not None))
        self._instructions.append(instruction)
        queue = self._units[unit]
        queue.append(instruction)
        for mark in instruction.after:
            assert (mark.unit, unit) in isa.EDGES and mark.ordinal < len(self._units[mark.unit]), f"{opcode.name} cannot wait for {mark}"
        return Mark(unit, len(queue) - 1)

    def setup(self, opcode: Opcode, *, layer: int, **fields) -> None:
        """Append a setup instruction unless the last one of its kind said the same."""
        if self._setup.get(opcode) != fields:
            self._setup[opcode] = fields
            self.emit(opcode, layer=layer, **fields)

    def count(self, unit: Unit) -> int:
        """Instructions emitted for a unit."""
        return len(self._units[unit])

    def layers(self) -> list[int]:
        """The layer that each instruction is for, the last one for END."""
        layers = [instruction.layer for instruction in self._instructions]
        return [*layers, max(layers, default=0)]

    def words(self) -> list[int]:
        """The encoded program, END included, with a token wherever an instruction must wait for more than the one before it of its unit.

        Where more tokens than a counter holds would be left on an edge, its next instruction waits for a later mark: one token for those up to it.
        """
        waits = {edge: [] for edge in isa.EDGES}  # per edge those who wait, for marks one after the other
        for instruction in self._instructions:
            unit = isa.unit_of(instruction.opcode)
            for source in {mark.unit for mark in instruction.after}:
                latest = max(mark.ordinal for mark in instruction.after if mark.unit == source)
                on_edge = waits[source, unit]
                if not on_edge or latest > on_edge[-1][1]:
                    on_edge.append((instruction, latest))
        for (source, target), on_edge in waits.items():
            marked = [self._units[source][ordinal] for _, ordinal in on_edge]
            position = 0
            while position < len(on_edge):
                instruction = on_edge[position][0]
                left = bisect_left(marked, instruction.index, key=lambda other: other.index) - position
                position += max(left - _MOST_TOKENS, 0)
                marked[position].post.add(target)
                instruction.wait.add(source)
                position += 1
        words = [isa.encode(i.opcode, wait=i.wait, post=i.post, **i.fields) for i in self._instructions]
        return [*words, isa.encode(Opcode.END)]


@dataclass(eq=False)
class Region:
    """Part of an on-chip buffer, from its allocation until its last reader has been emitted."""

    start: int
    length: int
    #: Instruction after which it may be overwritten; None while readers are still to come.
    last_reader: Mark | None = None
    #: Instruction that the writer of this region must follow: the last reader of what was here.
    after: Mark | None = None


class Ring:
    """An on-chip buffer allocated round and round. `wraps`: a region may go over the end, as addresses do."""

    def __init__(self, size: int, wraps: bool):
        self.size, self._wraps = size, wraps
        self._head = 0
        self._regions = deque()
        self._after = None

    def allocate(self, length: int) -> Region | None:
        """The next `length` words, or None while a region in the way still has readers to come."""
        assert length <= self.size
        start = self._head if self._wraps or self._head + length <= self.size else 0
        end = start + length
        # Regions lie from `start` to less than twice the size, as this one does; it meets those that overlap it there, or a turn of the ring away.
        hit = [region for region in self._regions if region.start < end and start < region.start + region.length
               or region.start + self.size < end or start < region.start + region.length - self.size]
        if any(region.last_reader is None for region in hit):
            return None
        # A region hit in part goes as a whole: the rest of it is free as well, and what follows there waits for as much.
        marks = [region.last_reader for region in hit] + ([self._after] if self._after else [])
        self._after = max(marks, default=None)
        self._regions = deque(region for region in self._regions if region not in hit)
        region = Region(start, length, after=self._after)
        self._regions.append(region)
        self._head = (start + length) % self.size
        return region
