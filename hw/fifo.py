"""Queues between streams."""

from amaranth.hdl import Cat, Module, Mux, Shape, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .primitives import BlockRam, delayed

__all__ = ["Queue"]

#: Up to here a queue lies in LUTs.
_LUT_DEPTH = 32
#: Elements read from block RAM before they are asked for: one a cycle, until the first of them has come and gone.
_AHEAD = 4


class Queue(wiring.Component):
    """First in, first out; one element per cycle. Ready and valid are registers.

    A queue of up to 32 elements lies in LUTs and shows an element the cycle after it was taken; a deeper one, a power of two, lies in block RAM and takes four
    cycles. `depth`: the elements that it takes at least, whoever hesitates. `registered`: what is shown lies in registers.
    """

    def __init__(self, shape: ShapeLike, depth: int, *, registered: bool = False):
        if not (isinstance(depth, int) and depth >= 2):
            raise ValueError(f"depth must be an integer of at least 2, not {depth!r}")
        if depth > _LUT_DEPTH and depth & depth - 1:
            raise ValueError(f"depth must be a power of two above {_LUT_DEPTH}, not {depth!r}")
        self._width = Shape.cast(shape).width
        self._depth = depth
        self._registered = registered
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    @property
    def capacity(self) -> int:
        """Elements it holds at most."""
        return self._depth if self._depth <= _LUT_DEPTH else self._depth + _AHEAD

    def elaborate(self, platform):
        m = Module()
        payload = Signal(self._width)
        m.d.comb += payload.eq(self.i.payload)
        if self._depth <= _LUT_DEPTH:
            m.d.comb += self.i.ready.eq(self._store(m, self._depth, payload, self.i.valid))
        else:
            self._store_deep(m, payload)
        return m

    def _store(self, m, depth, payload, valid):
        """A queue from which elements are taken; returns whether it has room."""
        put, take = Signal(), Signal()
        if not self._registered:
            filled, room = _level(m, depth, put, take)
            m.d.comb += [
                put.eq(valid & room), take.eq(filled & self.o.ready),
                self.o.payload.eq(self._keep(m, depth, payload, put, take)), self.o.valid.eq(filled),
            ]
            return room
        # What is shown, before the rest, which is empty whenever nothing is shown.
        shown, next_one, filled = Signal(self._width, reset_less=True), Signal(), Signal()
        stored, room = _level(m, depth - 1, put, take)
        m.d.comb += [
            next_one.eq(~filled | self.o.ready), put.eq(valid & room & (stored | ~next_one)), take.eq(stored & next_one),
            self.o.payload.eq(shown), self.o.valid.eq(filled),
        ]
        oldest = self._keep(m, depth - 1, payload, put, take)
        with m.If(next_one):
            m.d.sync += [shown.eq(Mux(stored, oldest, payload)), filled.eq(stored | valid)]
        return room

    def _keep(self, m, depth, payload, put, take):
        """What has been put and not been taken; the oldest of it."""
        if depth == 1:
            only = Signal(self._width, reset_less=True)
            with m.If(put):
                m.d.sync += only.eq(payload)
            return only
        m.submodules.storage = storage = Memory(shape=self._width, depth=depth, init=[])
        write_port, read_port = storage.write_port(), storage.read_port(domain="comb")
        m.d.comb += [write_port.data.eq(payload), write_port.en.eq(put)]
        for port, moves in ((write_port, put), (read_port, take)):
            pointer = Signal(range(depth))
            m.d.comb += port.addr.eq(pointer)
            with m.If(moves):
                m.d.sync += pointer.eq(Mux(pointer == depth - 1, 0, pointer + 1))
        return read_port.data

    def _store_deep(self, m, payload):
        """Block RAM in front of it. What has been written can be read from the next cycle on, so that no address is ever read and written at once."""
        write_pointer, read_pointer = Signal(range(self._depth)), Signal(range(self._depth))
        write, read = Signal(), Signal()
        stored, room = _level(m, self._depth, write, read)
        _, ahead = _level(m, _AHEAD, read, self.o.valid & self.o.ready)
        m.d.comb += [self.i.ready.eq(room), write.eq(self.i.valid & room), read.eq(stored & ahead)]
        m.d.sync += [write_pointer.eq(write_pointer + write), read_pointer.eq(read_pointer + read)]
        words = []
        for first in range(0, self._width, 36):
            part = payload[first : first + 36]
            m.submodules[f"ram{first}"] = ram = BlockRam(len(part), self._depth)
            m.d.comb += [
                ram.write_address.eq(write_pointer), ram.write_data.eq(part), ram.write_enable.eq(write), ram.read_address.eq(read_pointer),
            ]
            words.append(ram.read_data)
        self._store(m, _AHEAD, Cat(words), delayed(m, read, BlockRam.latency, reset=True))


def _level(m, depth, put, take):
    """Whether anything is in a queue, and whether there is room: registers, so that whoever asks waits for no counter."""
    count, filled, room = Signal(range(depth + 1)), Signal(), Signal(init=1)
    m.d.sync += count.eq(count + put - take)
    with m.If(put & ~take):
        m.d.sync += [filled.eq(1), room.eq(count != depth - 1)]
    with m.Elif(take & ~put):
        m.d.sync += [filled.eq(count != 1), room.eq(1)]
    return filled, room
