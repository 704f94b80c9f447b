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


def watched(depth, module=fifo, **options):
    queue = module.Queue(1, depth, **options)
    return Watched(queue, depth, 1 if depth <= module._LUT_DEPTH else 4)


def deep(old="", new=""):
    """The queue in block RAM with a depth of 4, which the true one puts into LUTs."""
    module = mutated(fifo, "_LUT_DEPTH = 32", "_LUT_DEPTH = 2")
    return watched(4, mutated(module, old, new) if old else module)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 4, 8, pytest.param(16, marks=pytest.mark.formal)])
def test_queue_in_luts(depth, registered):
    prove(watched(depth, registered=registered))


def test_queue_in_block_ram():
    prove(deep())


@pytest.mark.parametrize(("depth", "old", "new", "fault"), [
    (3, "take.eq(filled & self.o.ready)", "take.eq(filled)", "withdrawn|wrong|stuck|phantom"),
    (3, "write_port.en.eq(put)", "write_port.en.eq(1)", "wrong|withdrawn"),
    (3, "pointer == depth - 1", "pointer == depth - 2", "wrong|withdrawn"),
    (3, "room.eq(count != depth - 1)", "room.eq(count != depth)", "overfull|wrong"),
    (4, "room.eq(count != depth - 1)", "room.eq(count != depth - 2)", "refused"),
    (3, "filled.eq(count != 1)", "filled.eq(count != 0)", "phantom"),
])
def test_faults_in_luts_show(depth, old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(watched(depth, mutated(fifo, old, new)))


@pytest.mark.parametrize(("depth", "old", "new", "fault"), [
    (2, "next_one.eq(~filled | self.o.ready)", "next_one.eq(self.o.ready)", "stuck|refused"),
    (3, "put.eq(valid & room & (stored | ~next_one))", "put.eq(valid & room & ~next_one)", "wrong|stuck|overfull"),
    (3, "put.eq(valid & room & (stored | ~next_one))", "put.eq(valid & room)", "wrong|phantom|overfull|refused"),
    (2, "Mux(stored, oldest, payload)", "payload", "wrong"),
    (2, "filled.eq(stored | valid)", "filled.eq(valid)", "wrong|stuck|phantom|refused"),
])
def test_faults_in_registers_show(depth, old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(watched(depth, mutated(fifo, old, new), registered=True))


@pytest.mark.parametrize(("old", "new"), [
    ("self.i.ready.eq(room), write.eq(self.i.valid & room)", "self.i.ready.eq(1), write.eq(self.i.valid)"),
    ("read.eq(stored & ahead)", "read.eq(stored)"),
    ("count + put - take", "count + put - (take & ~put)"),
    ("read, BlockRam.latency, reset=True", "read, BlockRam.latency"),
])
def test_faults_in_block_ram_show(old, new):
    with pytest.raises(Refuted):
        prove(deep(old, new))
