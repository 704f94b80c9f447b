"""Two AXI managers on one subordinate."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.data import Layout
from amaranth.lib.wiring import In, Out

from .fifo import Queue
from .interfaces import BEAT_BITS, Axi4

__all__ = ["AxiMux"]

#: Bursts of each direction that may be unanswered; the managers' own together are fewer.
_OUTSTANDING = 16


class _Address(data.Struct):
    addr: unsigned(32)
    len: unsigned(8)
    size: unsigned(3)
    burst: unsigned(2)


class _Write(data.Struct):
    data: unsigned(BEAT_BITS)
    strb: unsigned(BEAT_BITS // 8)
    last: unsigned(1)


class _Read(data.Struct):
    data: unsigned(BEAT_BITS)
    resp: unsigned(2)
    last: unsigned(1)


_CHANNELS = {"ar": _Address, "aw": _Address, "w": _Write, "r": _Read, "b": data.StructLayout({"resp": 2})}
_ANSWERS = "rb"


def _names(channel):
    return [name for name, _ in Layout.cast(_CHANNELS[channel])]


class AxiMux(wiring.Component):
    """The second manager's bursts come before the first one's: it has to leave gaps between them.

    The subordinate answers in order, as `Axi4` says: whose turn it is stands in queues, not in IDs. A queue of two elements on each of the managers' channels keeps
    their logic and the subordinate's apart.
    """

    def __init__(self):
        super().__init__({"managers": In(Axi4()).array(2), "bus": Out(Axi4())})

    def elaborate(self, platform):
        m = Module()
        streams = {channel: [self._queue(m, channel, number) for number in range(2)] for channel in _CHANNELS}
        for address, following in (("ar", "r"), ("aw", "wb")):
            turns = [Queue(1, _OUTSTANDING, registered=True) for _ in following]
            for channel, turn in zip(following, turns):
                m.submodules[f"{channel}_turns"] = turn
                self._connect(m, channel, streams[channel], turn.o)
            self._begin(m, address, streams[address], [turn.i for turn in turns])
        return m

    def _queue(self, m, channel, number):
        """A manager's channel behind its queue: the stream that the other side has to do with."""
        m.submodules[f"{channel}{number}"] = queue = Queue(_CHANNELS[channel], 2, registered=True)
        manager = self.managers[number]
        near, far = (queue.o, queue.i) if channel in _ANSWERS else (queue.i, queue.o)
        valid, ready, *pins = (getattr(manager, channel + name) for name in ("valid", "ready", *_names(channel)))
        elements = [near.payload[name] for name in _names(channel)]
        if channel in _ANSWERS:
            m.d.comb += [valid.eq(near.valid), near.ready.eq(ready), Cat(pins).eq(Cat(elements))]
        else:
            m.d.comb += [near.valid.eq(valid), ready.eq(near.ready), Cat(elements).eq(Cat(pins))]
        return far

    def _begin(self, m, channel, streams, turns):
        """The managers' bursts, one after the other, to the subordinate."""
        first, second = streams
        valid, ready = (getattr(self.bus, channel + name) for name in ("valid", "ready"))
        free, offered = Signal(name=f"{channel}_free"), first.valid | second.valid
        m.d.comb += [
            free.eq((~valid | ready) & Cat(turn.ready for turn in turns).all()), second.ready.eq(free), first.ready.eq(free & ~second.valid),
            *(turn.valid.eq(free & offered) for turn in turns), *(turn.payload.eq(second.valid) for turn in turns),
        ]
        with m.If(ready):
            m.d.sync += valid.eq(0)
        with m.If(free):
            m.d.sync += valid.eq(offered)
            for name in _names(channel):
                m.d.sync += getattr(self.bus, channel + name).eq(Mux(second.valid, second.payload[name], first.payload[name]))

    def _connect(self, m, channel, streams, turn):
        """The channel to or from the manager whose turn it is."""
        valid, ready, *pins = (getattr(self.bus, channel + name) for name in ("valid", "ready", *_names(channel)))
        mine = [turn.valid & (turn.payload == number) for number in range(2)]
        last = getattr(self.bus, channel + "last", 1)
        m.d.comb += turn.ready.eq(valid & ready & last)
        if channel in _ANSWERS:
            m.d.comb += ready.eq(Mux(turn.payload, streams[1].ready, streams[0].ready) & turn.valid)
            for way, stream in zip(mine, streams):
                m.d.comb += [stream.valid.eq(way & valid), *(stream.payload[name].eq(pin) for name, pin in zip(_names(channel), pins))]
        else:
            m.d.comb += valid.eq(Mux(turn.payload, streams[1].valid, streams[0].valid) & turn.valid)
            for way, stream in zip(mine, streams):
                m.d.comb += stream.ready.eq(way & ready)
            m.d.comb += [pin.eq(Mux(turn.payload, streams[1].payload[name], streams[0].payload[name])) for name, pin in zip(_names(channel), pins)]
