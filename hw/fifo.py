"""Queues between streams."""

from amaranth.hdl import Cat, Module, Shape, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from .primitives import BlockRam, delayed

__all__ = ["Queue"]

#: Up to here a queue lies in LUTs.
_LUT_DEPTH = 32
#: Elements read from block RAM before they are asked for: one a cycle, until the first of them has come and gone.
_AHEAD = 4


class Queue(wiring.Component):
    """First in, first out; one element per cycle. Ready and valid depend on registers alone.

    A queue of up to 32 elements lies in LUTs and shows an element the cycle after it was taken; a deeper one, a power of two, lies in block RAM and takes four
    cycles. `depth`: the elements that it takes at least, whoever hesitates.
    """

    def __init__(self, shape: ShapeLike, depth: int):
        if not (isinstance(depth, int) and depth >= 2):
            raise ValueError(f"depth must be an integer of at least 2, not {depth!r}")
        if depth > _LUT_DEPTH and depth & depth - 1:
            raise ValueError(f"depth must be a power of two above {_LUT_DEPTH}, not {depth!r}")
        self._width = Shape.cast(shape).width
        self._depth = depth
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
        """A queue in LUTs, from which elements are taken; returns whether it has room."""
        m.submodules.fifo = fifo = SyncFIFO(width=self._width, depth=depth)
        m.d.comb += [
            fifo.w_data.eq(payload), fifo.w_en.eq(valid),
            self.o.payload.eq(fifo.r_data), self.o.valid.eq(fifo.r_rdy), fifo.r_en.eq(self.o.ready),
        ]
        return fifo.w_rdy

    def _store_deep(self, m, payload):
        """Block RAM in front of it. What has been written can be read from the next cycle on, so that no address is ever read and written at once."""
        write_pointer, read_pointer = Signal(range(self._depth)), Signal(range(self._depth))
        stored = Signal(range(self._depth + 1))
        credit = Signal(range(_AHEAD + 1), init=_AHEAD)
        write, read = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~stored[-1]),
            write.eq(self.i.valid & self.i.ready),
            read.eq(stored.any() & credit.any()),
        ]
        m.d.sync += [
            write_pointer.eq(write_pointer + write), read_pointer.eq(read_pointer + read),
            stored.eq(stored + write - read), credit.eq(credit + (self.o.valid & self.o.ready) - read),
        ]
        words = []
        for first in range(0, self._width, 36):
            part = payload[first : first + 36]
            m.submodules[f"ram{first}"] = ram = BlockRam(len(part), self._depth)
            m.d.comb += [
                ram.write_address.eq(write_pointer), ram.write_data.eq(part), ram.write_enable.eq(write), ram.read_address.eq(read_pointer),
            ]
            words.append(ram.read_data)
        self._store(m, _AHEAD, Cat(words), delayed(m, read, BlockRam.latency, reset=True))
