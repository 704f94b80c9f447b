"""The cycles in which a program's layers are complete, for the host (`link.MARKS`)."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .link import MARK_COUNT
from .primitives import BlockRam, delayed

__all__ = ["Marks"]


class Marks(wiring.Component):
    """Notes the cycle in which each of an ascending list of counts of `event` is reached. Counting begins with `accepted`; cycle 0 is the one after the last `offered`
    before it. Marks must be reached at least eight cycles apart.

    Word k of 32 bits is mark k when written, and its cycle when read, `BlockRam.latency` cycles later.
    """

    def __init__(self):
        index = range(MARK_COUNT)
        super().__init__({
            "event": In(1), "offered": In(1), "accepted": In(1), "write_enable": In(1), "write_address": In(index), "write_data": In(32),
            "read_address": In(index), "read_data": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.marks = marks = BlockRam(32, MARK_COUNT)
        m.submodules.cycles = cycles = BlockRam(32, MARK_COUNT)
        now, offered, began, noted = Signal(32), Signal(32), Signal(32), Signal(32)
        count, index = Signal(32), Signal(range(MARK_COUNT + 1))
        settled = Signal(range(BlockRam.latency + 2))  # `equal` belongs to `index`
        equal, reached = Signal(), Signal()
        m.d.comb += [
            marks.write_enable.eq(self.write_enable), marks.write_address.eq(self.write_address), marks.write_data.eq(self.write_data),
            marks.read_address.eq(index), cycles.read_address.eq(self.read_address), self.read_data.eq(cycles.read_data),
            reached.eq((settled == BlockRam.latency + 1) & ~index[-1] & equal),
            cycles.write_enable.eq(reached), cycles.write_address.eq(index), cycles.write_data.eq(delayed(m, noted)),
        ]
        m.d.sync += [
            now.eq(now + 1), settled.eq(Mux(settled == BlockRam.latency + 1, settled, settled + 1)), equal.eq((count == marks.read_data) & count.any()),
        ]
        with m.If(self.event):
            m.d.sync += [count.eq(count + 1), noted.eq(now - began)]
        with m.If(reached):
            m.d.sync += [index.eq(index + 1), settled.eq(0)]
        with m.If(self.offered):
            m.d.sync += offered.eq(now + 1)
        with m.If(self.accepted):
            m.d.sync += [began.eq(offered), count.eq(0), index.eq(0), settled.eq(0)]
        return m
