"""Streams from one clock into another."""

from amaranth.hdl import Cat, Module, Mux, ShapeLike, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

__all__ = ["Crossing"]

#: Elements of a crossing. One takes six cycles there and six back, in which an SDRAM transfers three beats.
_CROSSING = 8


class Crossing(wiring.Component):
    """A stream from one clock domain into another. Both have to be reset together, for four cycles of the slower clock at least.

    Amaranth's `AsyncFIFOBuffered` reads at the address that follows from `o.ready`, which is late for a clock of 133 MHz. Here the address is a register, and so are
    what comes out, whether there is anything to take and whether there is room. The elements lie in LUTs: a block RAM is as late unless its own register is used.
    That is `Queue`, of one clock.
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
        put, take, room, some = Signal(), Signal(), Signal(init=1), Signal()
        advance = ~self.o.valid | self.o.ready
        m.d.comb += [
            self.i.ready.eq(room), put.eq(self.i.valid & room), write.addr.eq(written), write.data.eq(payload), write.en.eq(put),
            read.addr.eq(taken), take.eq(advance & some),
        ]

        def move(domain, pointer, gray, moves, flag, tell):
            """Steps a pointer if it `moves`; `flag` is what `tell` says of it then, for both cases before it is known which it is."""
            following = (pointer + 1)[:width]
            following_gray = following ^ following >> 1
            m.d[domain] += flag.eq(Mux(moves, tell(following_gray), tell(gray)))
            with m.If(moves):
                m.d[domain] += [pointer.eq(following), gray.eq(following_gray)]

        move(self._source, written, written_gray, put, room, lambda gray: gray ^ taken_there != 0b11 << width - 2)  # which is where it is full
        move(self._destination, taken, taken_gray, take, some, lambda gray: gray != written_there)
        with m.If(advance):
            m.d[self._destination] += [self.o.valid.eq(take), self.o.payload.eq(read.data)]
        return m
