"""The AXI4 memory port: runs of beats cut into bursts, for several readers and one writer.

A burst ends at the latest where the address is a multiple of `max_burst` beats. As that divides 4 KiB no burst crosses such a border, and the next one's address
needs no adder.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .fifo import Queue
from .interfaces import BEAT_BITS, Axi4, Run
from .primitives import delayed

__all__ = ["OUTSTANDING", "PATIENCE", "AxiRead", "AxiWrite", "Beats", "Burst", "BurstCutter", "ReadDma", "WriteDma"]

#: Bursts in flight at most, in each direction.
OUTSTANDING = 8
#: Bursts of others for which the last requester waits at most. Few: maps come late. Many: weights of the next layer do, where this one's maps take all of the memory.
PATIENCE = 15


#: The channels of an AXI4 port that read, and those that write.
AxiRead = wiring.Signature({name: member for name, member in Axi4().members.items() if name.startswith(("ar", "r"))})
AxiWrite = wiring.Signature({name: member for name, member in Axi4().members.items() if not name.startswith(("ar", "r"))})


class Beats(wiring.Signature):
    """Data read, in the order of the runs; never refused."""

    def __init__(self):
        super().__init__({"valid": Out(1), "data": Out(BEAT_BITS)})


class Burst(data.Struct):
    beat: unsigned(29)  # address / 8
    last: unsigned(6)   # beats − 1, as AxLEN has it


class _Cut(data.Struct):
    """A run, or what is left of it."""

    beat: unsigned(29)   # address / 8
    left: unsigned(14)   # beats − 1
    final: unsigned(1)   # it is one burst


class BurstCutter(wiring.Component):
    """Cuts runs into bursts: one per cycle, also across runs, the first three cycles after its run was taken.

    Up to three runs are taken ahead, and two bursts wait to be taken. `idle`: holds neither a run nor a burst.
    """

    def __init__(self, max_burst: int):
        if max_burst not in (16, 32, 64):
            raise ValueError(f"max_burst must be 16, 32 or 64, not {max_burst!r}")
        self._border_bits = max_burst.bit_length() - 1
        super().__init__({"runs": In(stream.Signature(Run)), "bursts": Out(stream.Signature(Burst)), "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ahead = ahead = Queue(_Cut, 2)
        run = ahead.o
        m.submodules.cut = cut = Queue(Burst, 2)  # keeps whoever takes the bursts out of the paths through the counters
        wiring.connect(m, cut.o, wiring.flipped(self.bursts))

        # Whether a run is one burst is known before it is taken, and of what is left before it is cut, for much follows from it.
        border = self._border_bits
        taken, to_border = ahead.i.payload, ~self.runs.payload.address[3:][:border]
        m.d.comb += [
            ahead.i.valid.eq(self.runs.valid), self.runs.ready.eq(ahead.i.ready),
            taken.beat.eq(self.runs.payload.address[3:]), taken.left.eq(self.runs.payload.beats - 1),
            taken.final.eq(~taken.left[border:].any() & (taken.left[:border] <= to_border)),
        ]

        active = Signal()
        now = Signal(_Cut)
        offset, row = now.beat[:border], now.beat[border:]
        advance = Signal()
        beyond = (now.left[:border] + offset)[border]  # a burst to the border, and `left` modulo `max_burst` is not used up
        m.d.comb += [
            advance.eq(cut.i.ready),
            cut.i.valid.eq(active),
            cut.i.payload.beat.eq(now.beat),
            cut.i.payload.last.eq(Mux(now.final, now.left[:border], ~offset)),
            run.ready.eq(~active | (advance & now.final)),
            self.idle.eq(~(active | run.valid | cut.o.valid)),
        ]
        with m.If(advance):
            m.d.sync += [
                row.eq(row + 1),
                offset.eq(0),
                now.left.eq(now.left + Cat(offset, Const(-1, 14 - border))),  # left − (beats to the border)
                now.final.eq(~now.left[border + 1 :].any() & ~(now.left[border] & beyond)),
            ]
        with m.If(run.ready):
            m.d.sync += [active.eq(run.valid), now.eq(run.payload)]
        return m


class ReadDma(wiring.Component):
    """Reads runs for several requesters through the read channels of one AXI4 port.

    Arbitration is per burst; requester 0 comes first, but after `PATIENCE` bursts of others while it waited the last one does. Up to `OUTSTANDING` bursts
    are in flight, answers keep their order, and one beat per cycle is passed on, two after the bus has shown it. `runs` are taken ahead, so short ones have no gaps.

    `halt` keeps further bursts, but the up to three chosen ones, from the bus; then `idle` tells that all have been answered. `error` stays set after an answer other
    than OKAY, whose beat is passed on like any other. `beat` pulses for each beat.
    """

    def __init__(self, config: AcceleratorConfig, requesters: int = 3):
        if requesters < 1:
            raise ValueError(f"requesters must be at least 1, not {requesters!r}")
        self._max_burst = config.max_burst
        self._requesters = requesters
        super().__init__({
            "runs": In(stream.Signature(Run)).array(requesters), "beats": Out(Beats()).array(requesters), "bus": Out(AxiRead),
            "halt": In(1), "idle": Out(1), "error": Out(1), "beat": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        m.submodules.route = route = Queue(self._requesters, OUTSTANDING, registered=True)
        m.submodules.chosen = chosen = Queue(Burst, 2)

        issue = Signal()
        choice = Signal(self._requesters)  # one-hot
        requests = []
        for index, runs in enumerate(self.runs):
            m.submodules[f"cutter{index}"] = cutter = BurstCutter(self._max_burst)
            wiring.connect(m, wiring.flipped(runs), cutter.runs)
            m.d.comb += cutter.bursts.ready.eq(issue & choice[index])
            requests.append(cutter.bursts)
        lowest = self._requesters - 1
        passed_over, impatient = Signal(range(PATIENCE + 1)), Signal()  # impatient: has been passed over so often, and so still has a burst
        with m.If(issue & requests[lowest].valid):
            m.d.sync += [passed_over.eq(Mux(choice[lowest], 0, passed_over + 1)), impatient.eq(~choice[lowest] & (passed_over == PATIENCE - 1))]
        offers = [*reversed([(index, burst.valid) for index, burst in enumerate(requests)]), (lowest, impatient)]
        for index, offered in offers:
            with m.If(offered):
                m.d.comb += [choice.eq(1 << index), chosen.i.payload.eq(requests[index].payload)]

        m.d.comb += [
            issue.eq(chosen.i.ready & route.i.ready & ~self.halt),
            chosen.i.valid.eq(issue & choice.any()),
            chosen.o.ready.eq(~bus.arvalid | bus.arready),
            route.i.payload.eq(choice),
            route.i.valid.eq(issue & choice.any()),
            bus.arid.eq(0),
            bus.arsize.eq(3),
            bus.arburst.eq(1),
            bus.rready.eq(1),
            self.idle.eq(~route.o.valid),
        ]
        with m.If(chosen.o.ready):
            m.d.sync += [bus.arvalid.eq(chosen.o.valid), bus.araddr.eq(chosen.o.payload.beat << 3), bus.arlen.eq(chosen.o.payload.last)]

        # An answer is registered as it comes from the bus, and again on its way to the requester.
        valid, failed, last = Signal(), Signal(), Signal()
        m.d.sync += [valid.eq(bus.rvalid), failed.eq(bus.rvalid & bus.rresp[1]), last.eq(bus.rvalid & bus.rlast)]
        answer = delayed(m, bus.rdata, 2, name="answer")
        m.d.comb += [route.o.ready.eq(last), self.beat.eq(valid)]
        m.d.sync += self.error.eq(self.error | failed)
        for index, beats in enumerate(self.beats):
            m.d.sync += beats.valid.eq(valid & route.o.payload[index])
            m.d.comb += beats.data.eq(answer)
        return m


class WriteDma(wiring.Component):
    """Writes runs, whose beats come in order by a stream of their own, through the write channels of one AXI4 port.

    A burst goes to the bus once all its data is here, so that the bus never waits for them; then one beat per cycle, a burst every two cycles at most. Up to
    `OUTSTANDING` bursts are in flight. `done`: nothing is buffered and every write has been answered; low from the cycle after a run or beat was offered.

    `halt` keeps further bursts from the bus; then `idle` tells that all begun ones have been answered. `error` stays set after an answer other than OKAY.
    `beat` pulses for each beat.
    """

    def __init__(self, config: AcceleratorConfig):
        self._max_burst = config.max_burst
        super().__init__({
            "runs": In(stream.Signature(Run)), "beats": In(stream.Signature(BEAT_BITS)), "bus": Out(AxiWrite),
            "done": Out(1, init=1), "halt": In(1), "idle": Out(1), "error": Out(1), "beat": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        m.submodules.cutter = cutter = BurstCutter(self._max_burst)
        m.submodules.buffer = buffer = Queue(BEAT_BITS, 4 * self._max_burst)
        m.submodules.lengths = lengths = Queue(Burst, OUTSTANDING, registered=True)
        wiring.connect(m, wiring.flipped(self.runs), cutter.runs)
        wiring.connect(m, wiring.flipped(self.beats), buffer.i)
        burst = cutter.bursts

        # Address: when a burst's data is here.
        available = Signal(range(buffer.capacity + 1))  # beats of no begun burst
        outstanding = Signal(range(OUTSTANDING + 1))
        complete = Signal()
        begin = Signal()
        m.d.comb += [
            begin.eq(complete & (~bus.awvalid | bus.awready) & ~self.halt),
            burst.ready.eq(begin),
            lengths.i.valid.eq(begin),  # never more than `outstanding`, so there is room
            lengths.i.payload.eq(burst.payload),
            bus.awid.eq(0),
            bus.awsize.eq(3),
            bus.awburst.eq(1),
            self.idle.eq(outstanding == 0),
        ]
        length = Signal(7, reset_less=True)  # beats of the burst that is complete
        m.d.sync += [
            length.eq(burst.payload.last + 1),
            complete.eq(burst.valid & (available > burst.payload.last) & (outstanding != OUTSTANDING) & ~begin),
            available.eq(available + (buffer.i.valid & buffer.i.ready) - Mux(begin, length, 0)),
            outstanding.eq(outstanding + begin - bus.bvalid),
            self.done.eq(cutter.idle & (available == 0) & self.idle & ~self.runs.valid & ~self.beats.valid),
        ]
        with m.If(bus.awready):
            m.d.sync += bus.awvalid.eq(0)
        with m.If(begin):
            m.d.sync += [bus.awvalid.eq(1), bus.awaddr.eq(burst.payload.beat << 3), bus.awlen.eq(burst.payload.last)]

        # Data of the begun bursts.
        active = Signal()
        left = Signal(6)
        step = Signal()
        m.d.comb += [
            step.eq(active & buffer.o.valid & (~bus.wvalid | bus.wready)),
            buffer.o.ready.eq(step),
            lengths.o.ready.eq(~active | (step & (left == 0))),
            bus.wstrb.eq(0xFF),
        ]
        with m.If(bus.wready):
            m.d.sync += bus.wvalid.eq(0)
        with m.If(step):
            m.d.sync += [bus.wvalid.eq(1), bus.wdata.eq(buffer.o.payload), bus.wlast.eq(left == 0), left.eq(left - 1)]
        with m.If(lengths.o.ready):
            m.d.sync += [active.eq(lengths.o.valid), left.eq(lengths.o.payload.last)]

        m.d.comb += bus.bready.eq(1)
        m.d.sync += [self.beat.eq(bus.wvalid & bus.wready), self.error.eq(self.error | (bus.bvalid & bus.bresp[1]))]
        return m
