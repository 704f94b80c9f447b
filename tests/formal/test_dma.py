"""The memory port: bursts keep AXI4's rules and are what the runs ask for; `idle` and `done` are true."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, assume, mutated, prove

from celosia.hw import dma
from celosia.hw.config import get_config

CONFIG = get_config("tiny")
PAGE_BEATS = 4096 // 8
#: Cycles in which faults are looked for, where no invariant can be found.
CYCLES = "bmc3 -F 16"
#: Bursts in flight, fewer than the hardware's eight.
OUTSTANDING = 2


#: Bursts of four beats of one bit, two in flight: the same counters with fewer bits.
SMALL = (("max_burst not in (16, 32, 64)", "max_burst != 4"), ("import BEAT_BITS, Axi4, Run", "import Axi4, Run\nBEAT_BITS = 1"),
         ("OUTSTANDING = 8", f"OUTSTANDING = {OUTSTANDING}"))


def small(module=dma):
    for old, new in SMALL:
        module = mutated(module, old, new)
    return module


def drive(m, stream, harness, name="run"):
    """A stream of runs with free contents."""
    m.d.comb += [
        stream.payload.address.eq(getattr(harness, f"{name}_address")), stream.payload.beats.eq(getattr(harness, f"{name}_beats")),
        stream.valid.eq(getattr(harness, f"{name}_valid")), assume(getattr(harness, f"{name}_beats") != 0),
    ]


RUN = {"run_address": In(32), "run_beats": In(14), "run_valid": In(1)}


class Bursts(wiring.Component):
    """The cutter with runs of any address and length. What it hands to the queue at its end is looked at, which tests/formal/test_fifo.py shows to keep it."""

    def __init__(self, module, max_burst):
        self._cutter, self._max_burst = module.BurstCutter(max_burst), max_burst
        super().__init__(RUN | {"take": In(1), "crosses": Out(1), "too_long": Out(1)})

    def elaborate(self, _platform):
        m = Module()
        m.submodules.cutter = body = self._cutter.elaborate(None)  # now, for what is inside
        drive(m, self._cutter.runs, self)
        cut = body.submodules.cut.i
        m.d.comb += [
            self._cutter.bursts.ready.eq(self.take),
            self.crosses.eq(cut.valid & (cut.payload.beat % PAGE_BEATS + cut.payload.last >= PAGE_BEATS)),
            self.too_long.eq(cut.valid & (cut.payload.last >= self._max_burst)),
        ]
        return m


class Reads(wiring.Component):
    """The reader with two requesters and a bus that answers when and what it likes, but only what it was asked for."""

    def __init__(self, module):
        self._dma = module.ReadDma(CONFIG, 2)
        self._dma._max_burst = 4
        runs = {f"run{index}_{name[4:]}": member for index in range(2) for name, member in RUN.items()}
        super().__init__(runs | {
            "arready": In(1), "rvalid": In(1), "rlast": In(1), "halt": In(1),
            "withdrawn": Out(1),   # a burst was offered and not kept until it was taken
            "too_many": Out(1),    # more bursts in flight than OUTSTANDING
            "idle_early": Out(1),  # idle, and the bus owes answers
            "stray": Out(1),       # a beat goes to nobody, or to both
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.dma = reader = self._dma
        bus = reader.bus
        for index in range(2):
            drive(m, reader.runs[index], self, f"run{index}")
        m.d.comb += [bus.arready.eq(self.arready), bus.rvalid.eq(self.rvalid), bus.rlast.eq(self.rlast), reader.halt.eq(self.halt)]
        asked, in_flight = bus.arvalid & bus.arready, Signal(range(OUTSTANDING + 2))
        m.d.sync += in_flight.eq(in_flight + asked - (self.rvalid & self.rlast))
        m.d.comb += assume(~self.rvalid | (in_flight != 0))

        offered, address, length = Signal(), Signal(32), Signal(8)
        m.d.sync += [offered.eq(bus.arvalid & ~bus.arready), address.eq(bus.araddr), length.eq(bus.arlen)]
        came = [Signal(name=f"came{age}") for age in range(2)]
        m.d.sync += [came[0].eq(self.rvalid), came[1].eq(came[0])]
        m.d.comb += [
            self.withdrawn.eq(offered & ~(bus.arvalid & (bus.araddr == address) & (bus.arlen == length))),
            self.too_many.eq(in_flight > OUTSTANDING),
            self.idle_early.eq(reader.idle & (in_flight != 0)),
            self.stray.eq((reader.beats[0].valid ^ reader.beats[1].valid) != came[1]),
        ]
        return m


class Writes(wiring.Component):
    """The writer with bursts of at most four beats of one bit, on a bus that takes and answers when it likes, but answers only what it has got.

    Its counters have too many states for an invariant: it is looked at for its first cycles.
    """

    def __init__(self, module):
        self._dma = module.WriteDma(CONFIG)
        self._dma._max_burst = 4
        super().__init__(RUN | {
            "beat": In(1), "beat_valid": In(1), "awready": In(1), "wready": In(1), "bvalid": In(1), "halt": In(1),
            "withdrawn": Out(1),   # an address or a beat was offered and not kept until it was taken
            "pause": Out(1),       # a burst's beats do not follow each other at once
            "too_many": Out(1),    # more bursts in flight than OUTSTANDING
            "idle_early": Out(1),  # idle, and the bus owes answers
            "done_early": Out(1),  # done, and not everything has been answered
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.dma = writer = self._dma
        bus = writer.bus
        drive(m, writer.runs, self)
        m.d.comb += [
            writer.beats.payload.eq(self.beat), writer.beats.valid.eq(self.beat_valid), writer.halt.eq(self.halt),
            bus.awready.eq(self.awready), bus.wready.eq(self.wready), bus.bvalid.eq(self.bvalid),
        ]
        asked, ended = bus.awvalid & bus.awready, bus.wvalid & bus.wready & bus.wlast
        addresses, data = (Signal(range(OUTSTANDING + 2), name=name) for name in ("addresses", "data"))  # not answered
        m.d.sync += [addresses.eq(addresses + asked - self.bvalid), data.eq(data + ended - self.bvalid)]
        m.d.comb += assume(~self.bvalid | (addresses != 0) & (data != 0))

        offered, address, length = Signal(), Signal(32), Signal(8)
        m.d.sync += [offered.eq(bus.awvalid & ~bus.awready), address.eq(bus.awaddr), length.eq(bus.awlen)]
        shown, beat, last, inside = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [shown.eq(bus.wvalid & ~bus.wready), beat.eq(bus.wdata), last.eq(bus.wlast)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += inside.eq(~bus.wlast)
        m.d.comb += [
            self.withdrawn.eq(offered & ~(bus.awvalid & (bus.awaddr == address) & (bus.awlen == length))
                              | shown & ~(bus.wvalid & (bus.wdata[0] == beat) & (bus.wlast == last))),
            self.pause.eq(inside & ~bus.wvalid),
            self.too_many.eq(addresses > OUTSTANDING),
            self.idle_early.eq(writer.idle & ((addresses != 0) | (data != 0))),
            self.done_early.eq(writer.done & ((addresses != 0) | (data != 0) | bus.awvalid | bus.wvalid)),
        ]
        return m


@pytest.mark.parametrize("max_burst", [16, 32, 64])
def test_bursts(max_burst):
    prove(Bursts(dma, max_burst))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("taken.left[:border] <= to_border", "taken.left[:border] <= to_border + 1", "crosses"),
    ("Mux(now.final, now.left[:border], ~offset)", "now.left[:border]", "crosses"),
    ("now.left[:border], ~offset)", "now.left[:border], ~(offset >> 1))", "crosses"),
])
def test_faults_in_bursts_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Bursts(mutated(dma, old, new), 16))


def test_reads():
    prove(Reads(small()))


def test_writes():
    prove(Writes(small()), engine=CYCLES)


@pytest.mark.parametrize(("harness", "old", "new", "fault"), [
    (Reads, "~bus.arvalid | bus.arready", "1", "withdrawn"),
    (Reads, "self.idle.eq(~route.o.valid)", "self.idle.eq(1)", "idle_early"),
    (Reads, "route.o.ready.eq(last)", "route.o.ready.eq(valid)", "stray|idle_early"),
    (Writes, "(~bus.awvalid | bus.awready) & ~self.halt", "~self.halt", "withdrawn"),
    (Writes, "outstanding + begin - bus.bvalid", "outstanding - bus.bvalid + (begin & ~bus.bvalid)", "idle_early|done_early"),
    (Writes, "available > burst.payload.last", "available >= burst.payload.last", "pause"),
    (Writes, "outstanding != OUTSTANDING", "1", "too_many|idle_early|done_early"),
])
def test_faults_show(harness, old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(harness(small(mutated(dma, old, new))), engine=CYCLES)
