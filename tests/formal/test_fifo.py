"""Queues: what goes in comes out, once, in order, whoever hesitates."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, mutated, prove

from celosia.hw import fifo


class Watched(wiring.Component):
    """A queue, one of whose elements is followed: which one is free. Its data pass unseen, so one bit stands for any width."""

    i_payload: In(1)
    i_valid: In(1)
    o_ready: In(1)
    follow: In(1)

    wrong: Out(1)        # the followed element came out changed, or not at its turn
    phantom: Out(1)      # an element comes out that never went in
    withdrawn: Out(1)    # an element was shown and not kept until it was taken
    refused: Out(1)      # no room, with less than `depth` elements in it
    overfull: Out(1)     # more than `capacity` elements in it
    stuck: Out(1)        # an element is in it and does not come within `latency` cycles

    def __init__(self, queue, depth, latency):
        self._queue, self._depth, self._latency = queue, depth, latency
        super().__init__()

    def elaborate(self, _platform):
        m = Module()
        m.submodules.queue = queue = self._queue
        held = Signal(range(queue.capacity + 2))
        put, take = queue.i.valid & queue.i.ready, queue.o.valid & queue.o.ready
        m.d.comb += [queue.i.payload.eq(self.i_payload), queue.i.valid.eq(self.i_valid), queue.o.ready.eq(self.o_ready)]
        m.d.sync += held.eq(held + put - take)

        followed, expected, ahead = Signal(), Signal(), Signal.like(held)
        with m.If(followed & take):
            m.d.sync += [ahead.eq(ahead - 1), followed.eq(ahead != 0)]
        with m.If(put & self.follow & ~followed):
            m.d.sync += [followed.eq(1), expected.eq(self.i_payload), ahead.eq(held - take)]

        shown, shown_payload, waited = Signal(), Signal(), Signal(range(self._latency + 2))
        m.d.sync += [shown.eq(queue.o.valid & ~queue.o.ready), shown_payload.eq(queue.o.payload)]
        m.d.sync += waited.eq(0)
        with m.If((held != 0) & ~queue.o.valid):
            m.d.sync += waited.eq(waited + 1)
        m.d.comb += [
            self.wrong.eq(followed & take & (ahead == 0) & (queue.o.payload != expected)),
            self.phantom.eq((held == 0) & queue.o.valid),
            self.withdrawn.eq(shown & ~(queue.o.valid & (queue.o.payload == shown_payload))),
            self.refused.eq((held < self._depth) & ~queue.i.ready),
            self.overfull.eq(held > queue.capacity),
            self.stuck.eq(waited >= self._latency),
        ]
        return m


def watched(depth, module=fifo):
    queue = module.Queue(1, depth)
    return Watched(queue, depth, 1 if depth <= module._LUT_DEPTH else 4)


def deep(old="", new=""):
    """The queue in block RAM with a depth of 4, which the true one puts into LUTs."""
    module = mutated(fifo, "_LUT_DEPTH = 32", "_LUT_DEPTH = 2")
    return watched(4, mutated(module, old, new) if old else module)


@pytest.mark.parametrize("depth", [2, 4, 8, pytest.param(16, marks=pytest.mark.formal)])
def test_queue_in_luts(depth):
    prove(watched(depth))


def test_queue_in_block_ram():
    prove(deep())


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("fifo.r_en.eq(self.o.ready)", "fifo.r_en.eq(1)", "withdrawn|wrong"),
    ("fifo.w_en.eq(valid)", "fifo.w_en.eq(valid & ~fifo.r_en)", "wrong|stuck|phantom"),
])
def test_faults_in_luts_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(watched(2, mutated(fifo, old, new)))


@pytest.mark.parametrize(("old", "new"), [
    ("self.i.ready.eq(~stored[-1])", "self.i.ready.eq(1)"),
    ("stored.any() & credit.any()", "stored.any()"),
    ("stored + write - read", "stored + write - (read & ~write)"),
    ("read, BlockRam.latency, reset=True", "read, BlockRam.latency"),
])
def test_faults_in_block_ram_show(old, new):
    with pytest.raises(Refuted):
        prove(deep(old, new))
