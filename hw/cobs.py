"""Frames out of bytes and into bytes, as `hw/link.py` stuffs them: COBS decoder and encoder."""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .primitives import BlockRam
from .uart import Bytes

__all__ = ["CobsDecoder", "CobsEncoder", "FrameByte"]

#: Bytes without a zero that a code can stand before.
_LONGEST = 254


class FrameByte(data.Struct):
    data: unsigned(8)
    #: The frame ends with it.
    last: unsigned(1)


class CobsDecoder(wiring.Component):
    """The bytes of frames, a cycle after those that the line brings; after its last byte `end` tells that a frame is complete, and `good` that it was one.

    A frame has at most `limit` bytes: what is longer is cut off there and not `good`. One without any bytes is none.
    """

    def __init__(self, limit: int):
        if not (isinstance(limit, int) and limit >= 1):
            raise ValueError(f"limit must be an integer of at least 1, not {limit!r}")
        self._limit = limit
        super().__init__({"i": In(Bytes()), "o": Out(Bytes()), "end": Out(1), "good": Out(1)})

    def elaborate(self, platform):
        m = Module()
        byte = self.i.data
        left = Signal(8)  # bytes of the block that are still to come
        pending = Signal()  # a zero comes before the next block
        room = Signal(range(self._limit + 1), init=self._limit)
        begun, bad = Signal(), Signal()
        show = Signal()
        m.d.sync += [self.o.valid.eq(show & (room != 0)), self.end.eq(0), self.good.eq(0)]
        with m.If(self.i.valid):
            m.d.sync += self.o.data.eq(Mux(left == 0, 0, byte))
            with m.If(byte == 0):
                m.d.sync += [
                    self.end.eq(begun), self.good.eq(begun & ~bad & (left == 0)),
                    left.eq(0), pending.eq(0), begun.eq(0), bad.eq(0), room.eq(self._limit),
                ]
            with m.Elif(left == 0):
                m.d.comb += show.eq(pending)
                m.d.sync += [left.eq(byte - 1), pending.eq(byte != _LONGEST + 1), begun.eq(1)]
            with m.Else():
                m.d.comb += show.eq(1)
                m.d.sync += left.eq(left - 1)
            with m.If(show):
                with m.If(room == 0):
                    m.d.sync += bad.eq(1)
                with m.Else():
                    m.d.sync += room.eq(room - 1)
        return m


class CobsEncoder(wiring.Component):
    """Frames stuffed, each with the zero that ends it.

    A block is collected, a byte a cycle, and then put out, a byte every four cycles, so that it fits a line on which a byte takes hundreds of them.
    """

    def __init__(self):
        super().__init__({"i": In(stream.Signature(FrameByte)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.block = block = BlockRam(8, 256)
        count, position = Signal(8), Signal(8)
        ending = Signal()  # the frame's last byte is in the block
        another = Signal()  # a block follows, be it empty
        wait = Signal(range(BlockRam.latency + 1))
        taken = self.i.payload
        m.d.comb += [block.write_address.eq(count), block.write_data.eq(taken.data), block.read_address.eq(position)]
        with m.FSM():
            with m.State("Collect"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += position.eq(0)
                with m.If(self.i.valid):
                    m.d.sync += ending.eq(taken.last)
                    with m.If(taken.data == 0):
                        m.d.sync += another.eq(1)
                        m.next = "Code"
                    with m.Else():
                        m.d.comb += block.write_enable.eq(1)
                        m.d.sync += [count.eq(count + 1), another.eq(count == _LONGEST - 1)]
                        with m.If(taken.last | (count == _LONGEST - 1)):
                            m.next = "Code"
            with m.State("Code"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(count + 1)]
                m.d.sync += wait.eq(BlockRam.latency)
                with m.If(self.o.ready):
                    m.next = "Read"
            with m.State("Read"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(position == count):
                    m.d.sync += [count.eq(0), another.eq(0)]
                    m.next = "Collect"
                    with m.If(ending):
                        m.d.sync += position.eq(0)
                        m.next = "End"
                        with m.If(another):
                            m.next = "Code"
                with m.Elif(wait == 0):
                    m.next = "Show"
            with m.State("Show"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(block.read_data)]
                m.d.sync += wait.eq(BlockRam.latency)
                with m.If(self.o.ready):
                    m.d.sync += position.eq(position + 1)
                    m.next = "Read"
            with m.State("End"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "Collect"
        return m
