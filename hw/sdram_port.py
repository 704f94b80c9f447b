"""The SDRAM as an AXI4 subordinate: bursts cut at the ends of rows, the way between two clocks, turns of reads and writes, the words of a beat.

    bus ─ Splitter ─ Crossing ─┐
    bus ─ Splitter ─ Crossing ─┴─ Arbiter ─ Sequencer ─ pins
    bus ──────────── Crossing ─ Queue ─ words to write ─ pins
    bus ──────────── Crossing ─ Queue ─ words read ───── pins

Everything to the right of the crossings is `SdramCore` and has the memory's clock.
"""

from amaranth.hdl import Cat, Const, DomainRenamer, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .crossing import Crossing
from .dma import Burst
from .fifo import Queue
from .interfaces import BEAT_BITS, Axi4
from .primitives import delayed
from .sdram import BEAT_WORDS, SdramPins, SdramTiming, Sequencer, access_layout

__all__ = ["Arbiter", "SdramController", "SdramCore", "Splitter"]

#: Beats that wait to be written, and beats read that wait to be taken, at most. Their words lie in a block RAM each.
STORED_BEATS = 256
#: Beats of a turn at least, while there is anything to do in it: 512 bytes read, or as many written as can wait, since what is written late is read late.
READ_TURN_BEATS, WRITE_TURN_BEATS = 64, STORED_BEATS
_WORD_BITS = BEAT_BITS // BEAT_WORDS
_OKAY, _DECERR = 0b00, 0b11


class WriteBeat(data.Struct):
    """A beat as the bus has it."""

    data: unsigned(BEAT_BITS)
    strobe: unsigned(BEAT_BITS // 8)
    last: unsigned(1)


class ReadBeat(data.Struct):
    """A beat on its way to the bus."""

    data: unsigned(BEAT_BITS)
    last: unsigned(1)
    outside: unsigned(1)


class _WriteWord(data.Struct):
    data: unsigned(_WORD_BITS)
    strobe: unsigned(_WORD_BITS // 8)


class _ReadWord(data.Struct):
    data: unsigned(_WORD_BITS)
    last: unsigned(1)
    outside: unsigned(1)


class Splitter(wiring.Component):
    """Cuts bursts into accesses, each in one row: one or two, as a burst is no longer than a row; a burst every two cycles at most."""

    def __init__(self, timing: SdramTiming, *, write: bool):
        self._timing, self._write = timing, write
        super().__init__({"bursts": In(stream.Signature(Burst)), "accesses": Out(stream.Signature(access_layout(timing)))})

    def elaborate(self, platform):
        m = Module()
        access = self.accesses.payload
        place = Cat(access.column, access.bank, access.row)
        border = len(access.column)
        burst = self.bursts.payload
        to_next = Signal(border + 1)
        rest = Signal.like(access.last, reset_less=True)  # `last` of the second access
        m.d.comb += [
            self.bursts.ready.eq(~self.accesses.valid),
            to_next.eq(burst.beat[:border] + burst.last),
            access.write.eq(self._write),
        ]
        with m.If(self.accesses.valid & self.accesses.ready):
            m.d.sync += [self.accesses.valid.eq(~access.final), access.bank.eq(access.bank + 1), access.column.eq(0), access.last.eq(rest), access.final.eq(1)]
        with m.If(self.bursts.ready):
            m.d.sync += [
                self.accesses.valid.eq(self.bursts.valid), place.eq(burst.beat), access.outside.eq(burst.beat[len(place) :].any()),
                access.final.eq(~to_next[border]), access.last.eq(Mux(to_next[border], ~burst.beat[:border], burst.last)), rest.eq(to_next),
            ]
        return m


class Arbiter(wiring.Component):
    """Chooses the next access: the direction stays until it has none that could be made, or the other one has one and its turn has had its beats.

    One access waits to be taken, the next is offered three cycles after. `reads_fit`: there is room for what a read brings; `writes_complete`: all data of the first
    write are here, and so is room for its answer.
    """

    def __init__(self, timing: SdramTiming):
        accesses = stream.Signature(access_layout(timing))
        super().__init__({"reads": In(accesses), "writes": In(accesses), "reads_fit": In(1), "writes_complete": In(1), "accesses": Out(accesses)})

    def elaborate(self, platform):
        m = Module()
        read, write = Signal(), Signal()  # could be made
        writing, turned = Signal(), Signal()
        turn = Signal(range(-READ_TURN_BEATS, WRITE_TURN_BEATS), init=READ_TURN_BEATS - 1)  # beats to the least of a turn, less one
        chosen = Signal.like(self.accesses.payload)
        before = Mux(turned, Mux(writing, WRITE_TURN_BEATS - 1, READ_TURN_BEATS - 1), turn)
        m.d.sync += [read.eq(self.reads.valid & self.reads_fit), write.eq(self.writes.valid & self.writes_complete)]
        m.d.comb += chosen.eq(Mux(writing, self.writes.payload, self.reads.payload))
        with m.If(self.accesses.ready):
            m.d.sync += self.accesses.valid.eq(0)
        with m.FSM():
            with m.State("CHOOSE"):
                turns = Mux(writing, Mux(read, ~write | turn[-1], 0), Mux(write, ~read | turn[-1], 0))
                with m.If((read | write) & ~self.accesses.valid):
                    m.d.sync += [writing.eq(writing ^ turns), turned.eq(turns), self.reads.ready.eq(~(writing ^ turns)), self.writes.ready.eq(writing ^ turns)]
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += [self.reads.ready.eq(0), self.writes.ready.eq(0)]
                m.d.sync += [self.accesses.valid.eq(1), self.accesses.payload.eq(chosen)]
                with m.If(turned | ~turn[-1]):
                    m.d.sync += turn.eq(before - chosen.last - 1)
                m.next = "SETTLE"
            with m.State("SETTLE"):  # until `read` and `write` speak of what comes next
                m.next = "CHOOSE"
        return m


class SdramCore(wiring.Component):
    """Accesses and their beats to the pins, in one clock: 512 bytes are read, or 2,048 written, before the other direction's turn, unless there is nothing to do.

    A write is made when all its beats are here, and answered when its turn has come, since whatever is read later comes after it. A read is made when there is
    room for 64 beats. So an access that has begun never waits for the bus, nor does a refresh. Beats outside of the memory are marked if they are read; those
    written are lost, and it is marked in the answer.
    """

    def __init__(self, timing: SdramTiming):
        self._timing = timing
        self._sequencer = Sequencer(timing)
        accesses = stream.Signature(access_layout(timing))
        super().__init__({
            "reads": In(accesses), "writes": In(accesses), "write_beats": In(stream.Signature(WriteBeat)),
            "read_beats": Out(stream.Signature(ReadBeat)), "answers": Out(stream.Signature(1)), "pins": Out(SdramPins()),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = sequencer = self._sequencer
        m.submodules.arbiter = arbiter = Arbiter(self._timing)
        wiring.connect(m, wiring.flipped(self.reads), arbiter.reads)
        wiring.connect(m, wiring.flipped(self.writes), arbiter.writes)
        wiring.connect(m, arbiter.accesses, sequencer.accesses)
        m.d.comb += [
            self.answers.valid.eq(self.writes.valid & self.writes.ready & self.writes.payload.final),
            self.answers.payload.eq(self.writes.payload.outside),
        ]
        self._write(m, sequencer, arbiter)
        self._read(m, sequencer, arbiter)

        # Two registers, since what is written passes one more. The last has nothing in front of it and may lie in the pads.
        command = delayed(m, Cat(sequencer.command, Const(1), sequencer.bank, sequencer.address), 2, reset=True, name="command")
        pins = self.pins
        m.d.comb += [Cat(pins.ras, pins.cas, pins.we, pins.cs, pins.ba, pins.a).eq(command), pins.clk_en.eq(1)]
        return m

    def _write(self, m, sequencer, arbiter):
        m.submodules.write_queue = queue = Queue(_WriteWord, STORED_BEATS * BEAT_WORDS)
        beat = Signal(WriteBeat, reset_less=True)
        left = Signal(BEAT_WORDS)  # words of it, a bit each
        put = queue.i.valid & queue.i.ready
        m.d.comb += [
            queue.i.valid.eq(left[0]), queue.i.payload.data.eq(beat.data), queue.i.payload.strobe.eq(beat.strobe),
            self.write_beats.ready.eq(~left[0] | (put & ~left[1])),
        ]
        with m.If(put):
            m.d.sync += [beat.data.eq(beat.data >> _WORD_BITS), beat.strobe.eq(beat.strobe >> _WORD_BITS // 8), left.eq(left >> 1)]
        with m.If(self.write_beats.valid & self.write_beats.ready):
            m.d.sync += [beat.eq(self.write_beats.payload), left.eq(-1)]
        # A burst is at the queue's other end before the first WRITE, which comes eight cycles after it has been counted at the earliest.
        complete = Signal(range(STORED_BEATS + 1))
        m.d.sync += complete.eq(complete + (put & ~left[1] & beat.last) - self.answers.valid)
        m.d.comb += arbiter.writes_complete.eq(complete.any() & self.answers.ready)

        writing, outside = Signal(BEAT_WORDS), Signal()
        m.d.sync += writing.eq(writing >> 1)
        with m.If(sequencer.write):
            m.d.sync += [writing.eq(-1), outside.eq(sequencer.outside)]
        pins, word = self.pins, queue.o.payload
        # Up to initialisation the chip wants its masks high.
        masked = ~delayed(m, sequencer.ready, 2, reset=True, name="ready")
        m.d.comb += queue.o.ready.eq(writing[0])
        m.d.sync += [
            pins.dq_o.eq(word.data), pins.dq_oe.eq(writing[0]),
            pins.dqm.eq(Mux(writing[0], ~(word.strobe & ~outside.replicate(len(word.strobe))), masked.replicate(len(pins.dqm)))),
        ]

    def _read(self, m, sequencer, arbiter):
        m.submodules.read_queue = queue = Queue(_ReadWord, STORED_BEATS * BEAT_WORDS)
        access = self.reads.payload
        room = Signal(range(STORED_BEATS + 1), init=STORED_BEATS)  # beats not read, or not yet
        taken = self.reads.valid & self.reads.ready
        m.d.sync += room.eq(room + delayed(m, self.read_beats.valid & self.read_beats.ready, reset=True) - Mux(taken, access.last + 1, 0))
        m.d.comb += arbiter.reads_fit.eq(room[6:].any())  # 64 beats, whatever is wanted

        # The command's way to the pins, and the chip's latency.
        wait = 2 + self._timing.capture_latency
        arrives = delayed(m, sequencer.read, wait, reset=True, name="read")
        marks = delayed(m, Cat(sequencer.last & sequencer.final, sequencer.outside), wait, name="read_marks")
        reading, last, outside = Signal(BEAT_WORDS), Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += reading.eq(reading >> 1)
        with m.If(arrives):
            m.d.sync += [reading.eq(-1), Cat(last, outside).eq(marks)]
        m.d.comb += [
            queue.i.valid.eq(reading[0]), queue.i.payload.data.eq(delayed(m, self.pins.dq_i)), queue.i.payload.last.eq(last), queue.i.payload.outside.eq(outside),
        ]

        word, beat = queue.o.payload, self.read_beats.payload
        missing = Signal(range(BEAT_WORDS), init=BEAT_WORDS - 1)  # words, less one
        m.d.comb += queue.o.ready.eq(~self.read_beats.valid | self.read_beats.ready)
        with m.If(queue.o.ready):
            m.d.sync += self.read_beats.valid.eq(queue.o.valid & (missing == 0))
            with m.If(queue.o.valid):
                m.d.sync += [missing.eq(missing - 1), beat.data.eq(Cat(beat.data[_WORD_BITS:], word.data)), beat.last.eq(word.last), beat.outside.eq(word.outside)]


class SdramController(wiring.Component):
    """An AXI4 subordinate in the clock domain `sync`, for an SDRAM in the domain `memory`, of `timing.clock_mhz`. The two are reset together.

    The bus is as `Axi4` says, with bursts of up to 64 beats, which never cross 4 KiB; strobes may be any. Eight bursts and more are taken ahead in each direction,
    each direction's are answered in their order, and a read that begins after a write's answer sees what was written. What is outside of the memory is answered
    with DECERR. Until the chip is initialised, 0.2 ms, bursts wait.

    `timing.clock_phase` concerns the clock of the chip, which is made elsewhere, and has to agree with `timing.capture_latency`.
    """

    def __init__(self, timing: SdramTiming):
        self._timing = timing
        self._core = SdramCore(timing)
        super().__init__({"bus": In(Axi4()), "pins": Out(SdramPins())})

    @property
    def timing(self) -> SdramTiming:
        """What it was made for."""
        return self._timing

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        m.submodules.core = core = DomainRenamer("memory")(self._core)
        wiring.connect(m, core.pins, wiring.flipped(self.pins))
        there, back = {"source": "sync", "destination": "memory"}, {"source": "memory", "destination": "sync"}
        for channel, accesses in (("ar", core.reads), ("aw", core.writes)):
            m.submodules[f"{channel}_splitter"] = splitter = Splitter(self._timing, write=channel == "aw")
            m.submodules[channel] = crossing = Crossing(access_layout(self._timing), **there)
            valid, ready, address, length = (getattr(bus, f"{channel}{member}") for member in ("valid", "ready", "addr", "len"))
            m.d.comb += [
                splitter.bursts.valid.eq(valid), ready.eq(splitter.bursts.ready), splitter.bursts.payload.beat.eq(address[3:]),
                splitter.bursts.payload.last.eq(length),
            ]
            wiring.connect(m, splitter.accesses, crossing.i)
            wiring.connect(m, crossing.o, accesses)

        m.submodules.w = write_beats = Crossing(WriteBeat, **there)
        m.submodules.r = read_beats = Crossing(ReadBeat, **back)
        m.submodules.b = answers = Crossing(1, **back)
        wiring.connect(m, write_beats.o, core.write_beats)
        wiring.connect(m, core.read_beats, read_beats.i)
        wiring.connect(m, core.answers, answers.i)
        m.d.comb += [
            write_beats.i.valid.eq(bus.wvalid), bus.wready.eq(write_beats.i.ready),
            write_beats.i.payload.data.eq(bus.wdata), write_beats.i.payload.strobe.eq(bus.wstrb), write_beats.i.payload.last.eq(bus.wlast),
            bus.rvalid.eq(read_beats.o.valid), read_beats.o.ready.eq(bus.rready),
            bus.rdata.eq(read_beats.o.payload.data), bus.rlast.eq(read_beats.o.payload.last), bus.rresp.eq(Mux(read_beats.o.payload.outside, _DECERR, _OKAY)),
            bus.bvalid.eq(answers.o.valid), answers.o.ready.eq(bus.bready), bus.bresp.eq(Mux(answers.o.payload, _DECERR, _OKAY)),
        ]
        return m
