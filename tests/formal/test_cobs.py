"""The COBS decoder: whatever bytes come, no frame brings more than there is room for, and what is called good is whole."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, mutated, prove

from celosia.hw import cobs


class Decoding(wiring.Component):
    """A decoder for frames of at most `limit` bytes."""

    valid: In(1)
    data: In(8)

    overrun: Out(1)     # a frame has brought more than `limit` bytes
    false_good: Out(1)  # a frame is called good that ends within a block, or was cut off
    refused: Out(1)     # a frame is not called good that is
    stray: Out(1)       # a byte is shown as a frame ends, or something is good that does not end
    lost_end: Out(1)    # a zero after other bytes ends no frame, or something else does

    def __init__(self, limit, module=cobs):
        self._limit, self._module = limit, module
        super().__init__()

    def elaborate(self, _platform):
        m = Module()
        m.submodules.decoder = decoder = self._module.CobsDecoder(self._limit)
        m.d.comb += [decoder.i.valid.eq(self.valid), decoder.i.data.eq(self.data)]

        # What the frame is, from its bytes alone: bytes until the next code, a zero before it, room that is left.
        due, zero, begun = Signal(8), Signal(), Signal()
        spare, exceeded = Signal(range(self._limit + 1), init=self._limit), Signal()
        ended, whole = Signal(), Signal()
        m.d.sync += [ended.eq(self.valid & (self.data == 0) & begun), whole.eq((due == 0) & ~exceeded)]
        with m.If(self.valid & (self.data == 0)):
            m.d.sync += [due.eq(0), zero.eq(0), begun.eq(0), spare.eq(self._limit), exceeded.eq(0)]
        with m.Elif(self.valid):
            m.d.sync += [begun.eq(1), due.eq(due - 1)]
            with m.If(due == 0):
                m.d.sync += [due.eq(self.data - 1), zero.eq(self.data != 255)]
            with m.If((due != 0) | zero):
                m.d.sync += [spare.eq(spare - 1), exceeded.eq(exceeded | (spare == 0))]
                with m.If(spare == 0):
                    m.d.sync += spare.eq(0)
        # What is shown of it.
        left = Signal.like(spare)
        with m.If(decoder.end):
            m.d.sync += left.eq(self._limit)
        with m.Elif(decoder.o.valid & (left != 0)):
            m.d.sync += left.eq(left - 1)
        m.d.comb += [
            self.overrun.eq(decoder.o.valid & (left == 0)),
            self.false_good.eq(decoder.good & ~whole),
            self.refused.eq(decoder.end & ~decoder.good & whole),
            self.stray.eq((decoder.o.valid & decoder.end) | (decoder.good & ~decoder.end)),
            self.lost_end.eq(decoder.end != ended),
        ]
        return m


@pytest.mark.parametrize("limit", [1, 5, 12])
def test_decoder(limit):
    prove(Decoding(limit))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("self.o.valid.eq(show & (room != 0))", "self.o.valid.eq(show)", "overrun"),
    ("m.d.sync += bad.eq(1)", "pass", "false_good"),
    ("begun & ~bad & (left == 0)", "begun & ~bad", "false_good"),
    ("bad.eq(0), room.eq(self._limit),", "bad.eq(0),", "refused"),
    ("room.eq(room - 1)", "room.eq(room - (left != 0))", "overrun|false_good"),
    ("self.end.eq(begun), ", "self.end.eq(1), ", "lost_end|refused"),
])
def test_faults_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Decoding(5, mutated(cobs, old, new)))
