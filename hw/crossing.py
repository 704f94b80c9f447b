"""Streams from one clock into another."""

from amaranth.hdl import Cat, Module, ShapeLike, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

__all__ = ["Crossing"]

#: Elements of a crossing. One takes five cycles there and five back, in which an SDRAM transfers three beats.
_CROSSING = 8


class Crossing(wiring.Component):
    """A stream from one clock domain into another. Both have to be reset together, for four cycles of the slower clock at least.

    Amaranth's `AsyncFIFOBuffered` reads at the address that follows from `o.ready`, which is late for a clock of 133 MHz. Here the address is a register, and so is
    what comes out. The elements lie in LUTs: a block RAM is as late unless its own register is used. That is `Queue`, of one clock.
    """

    def __init__(self, shape: ShapeLike, *, source: str, destination: str):
        self._source, self._destination = source, destination
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        # Gray-coded pointers, a bit longer than an address (Cummings, "Simulation and synthesis techniques for asynchronous FIFO design", SNUG 2002, style 1).
        m = Module()
        payload = Cat(self.i.payload)
        m.submodules.memory = memory = Memory(shape=unsigned(len(payload)), depth=_CROSSING, init=[])
        write, read = memory.write_port(domain=self._source), memory.read_port(domain="comb")
        width = exact_log2(_CROSSING) + 1
        written, taken = Signal(width), Signal(width)
        written_gray, written_there, taken_gray, taken_there = (Signal(width, name=name) for name in ("written_gray", "written_there", "taken_gray", "taken_there"))
        m.submodules.forth = FFSynchronizer(written_gray, written_there, o_domain=self._destination)
        m.submodules.back = FFSynchronizer(taken_gray, taken_there, o_domain=self._source)
        put, take = Signal(), Signal()
        next_written, next_taken = (written + put)[:width], (taken + take)[:width]
        advance = ~self.o.valid | self.o.ready
        m.d.comb += [
            self.i.ready.eq(written_gray ^ taken_there != 0b11 << width - 2),  # which is where it is full
            put.eq(self.i.valid & self.i.ready),
            write.addr.eq(written), write.data.eq(payload), write.en.eq(put),
            read.addr.eq(taken), take.eq(advance & (taken_gray != written_there)),
        ]
        m.d[self._source] += [written.eq(next_written), written_gray.eq(next_written ^ next_written >> 1)]
        m.d[self._destination] += [taken.eq(next_taken), taken_gray.eq(next_taken ^ next_taken >> 1)]
        with m.If(advance):
            m.d[self._destination] += [self.o.valid.eq(take), self.o.payload.eq(read.data)]
        return m
