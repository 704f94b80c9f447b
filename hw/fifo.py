"""Queues between streams."""

from amaranth.hdl import Module, Shape, ShapeLike
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

__all__ = ["Queue"]


class Queue(wiring.Component):
    """First in, first out; one element per cycle. Ready and valid come from registers.

    A queue of up to 32 elements lies in LUTs and shows an element the cycle after it was taken; a deeper one lies in block RAM and takes two cycles.
    """

    def __init__(self, shape: ShapeLike, depth: int):
        if not (isinstance(depth, int) and depth >= 2):
            raise ValueError(f"depth must be an integer of at least 2, not {depth!r}")
        self._width = Shape.cast(shape).width
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    @property
    def depth(self) -> int:
        """Elements it holds."""
        return self._depth

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = (SyncFIFO if self._depth <= 32 else SyncFIFOBuffered)(width=self._width, depth=self._depth)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
        ]
        return m
