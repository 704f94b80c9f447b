"""The dispatcher: fetched beats always find room, each instruction goes to its unit once and unchanged, tokens are neither lost nor doubled."""

import pytest
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, assume, mutated, prove

from celosia.hw import dispatch
from celosia.hw.interfaces import BEAT_BITS
from celosia.hw.isa import EDGES, INSTRUCTION_BITS, LENGTH_BITS, Header, Opcode, Unit, unit_of
from celosia.hw.registers import ErrorCode

#: What the counters hold in these proofs, in two bits; the hardware's have eight.
TOKENS = 3


class Source(wiring.Component):
    """In place of a unit's queue: instructions that come when they like."""

    o: Out(stream.Signature(INSTRUCTION_BITS))

    def elaborate(self, _platform):
        return Module()


def part(module, elaborate):
    """A dispatcher of which only a part is there."""
    return type("Part", (module.Dispatcher,), {"elaborate": lambda self, _platform: elaborate(self)})()


class Tokens(wiring.Component):
    """The part of the dispatcher that hands out instructions, with units that post what they like to whom they share tokens with."""

    def __init__(self, module):
        self._sources = [Source() for _ in Unit]
        self._dispatcher = part(module, self._issue)
        a_unit_each = data.ArrayLayout(len(Unit), len(Unit))
        super().__init__({
            "valid": In(len(Unit)), "wait": In(a_unit_each), "ready": In(len(Unit)), "post": In(a_unit_each),
            "doubled": Out(1),    # an instruction is handed out without the tokens it waits for
            "lost": Out(1),       # a unit waits for a token that has been left
            "unlimited": Out(1),  # more tokens than a counter holds, and no error
            "withheld": Out(1),   # an instruction with its tokens is not handed out
            "changed": Out(1),    # an instruction is not kept until it is taken
            "late": Out(1),       # an instruction is handed out after an error
        })

    def _issue(self, dispatcher):
        m = Module()
        dispatcher._issue(m, self._sources)
        return m

    def elaborate(self, _platform):
        m = Module()
        m.submodules.dispatcher = dispatcher = self._dispatcher
        failed = dispatcher.error != ErrorCode.NONE
        was_failed = Signal()
        m.d.sync += was_failed.eq(failed)
        doubled, lost, unlimited, withheld, changed, late = ([] for _ in range(6))
        for unit, source in zip(Unit, self._sources):
            header = Header(source.o.payload[: Header.as_shape().size])
            m.d.comb += [source.o.valid.eq(self.valid[unit]), header.wait.eq(self.wait[unit]), dispatcher.instruction[unit].ready.eq(self.ready[unit])]
            m.d.comb += dispatcher.control[unit].post.eq(self.post[unit])
            out = dispatcher.instruction[unit]
            shown = Signal(name=f"shown_{unit.name}")
            given = out.valid & ~shown
            m.d.sync += shown.eq(out.valid & ~out.ready)
            wait = Header(out.payload[: Header.as_shape().size]).wait
            kept = Signal(len(Unit), name=f"kept_{unit.name}")
            m.d.sync += kept.eq(wait)
            changed.append(shown & ~(out.valid & (wait == kept)))
            late.append(given & was_failed)

            ready = dispatcher.pending[unit] & ~out.valid
            for giver, target in EDGES:
                if target != unit:
                    continue
                left = Signal(range(TOKENS + 4), name=f"left_{giver.name}_{unit.name}")  # tokens of no instruction that was handed out
                takes = given & wait[giver]
                m.d.sync += left.eq(left + self.post[giver][unit] - takes)
                doubled.append(takes & (left == 0) & ~failed)
                over = Signal(2, name=f"over_{giver.name}_{unit.name}")  # one more than the counter holds may be on its way to the unit
                m.d.sync += over.eq(Cat(left > TOKENS, over))
                unlimited.append(over.all() & (left > TOKENS) & ~failed)
                lost.append(dispatcher.waiting[unit][giver] & (left != 0) & (left <= TOKENS) & ~failed)
                ready = ready & ~dispatcher.waiting[unit][giver]
            waited = Signal(range(5), name=f"waited_{unit.name}")
            m.d.sync += waited.eq(0)
            with m.If(ready & ~failed):
                m.d.sync += waited.eq(waited + 1)
            withheld.append(waited == 4)
        for name, faults in {"doubled": doubled, "lost": lost, "unlimited": unlimited, "withheld": withheld, "changed": changed, "late": late}.items():
            m.d.comb += getattr(self, name).eq(Cat(faults).any())
        return m


class Decode(wiring.Component):
    """The part of the dispatcher that decodes, between a program's beats, which come at will, and queues, which are emptied at will. Behind the headers one bit
    stands for all: they pass unseen."""

    def __init__(self, module):
        self._beats = stream.Signature(BEAT_BITS).create()
        self._queues = [module.Queue(INSTRUCTION_BITS, module.QUEUE_INSTRUCTIONS) for _ in Unit]
        self._ending = Signal()
        self._dispatcher = part(module, self._decode)
        super().__init__({
            "start": In(1), "length": In(LENGTH_BITS), "came": In(1), "header": In(Header), "rest": In(1), "take": In(len(Unit)),
            "wrong": Out(1),       # a queue is given an instruction of another unit, a faulty or changed one, or one that has been handed out
            "overflow": Out(1),    # a queue without room is given an instruction
            "lost": Out(1),        # an instruction is followed by the next one before it has been handed out
            "unfounded": Out(1),   # the program ends or fails without a reason
            "miscounted": Out(1),  # `index` is not how many instructions have been handed out
            "stuck": Out(1),       # with room, an instruction waits for a second cycle, as does END, or an error for a third; a beat waits for nothing
        })

    def _decode(self, dispatcher):
        m = Module()
        m.submodules += self._queues
        dispatcher._decode(m, self._beats, self._queues, self._ending)
        return m

    def elaborate(self, _platform):
        m = Module()
        m.submodules.dispatcher = dispatcher = self._dispatcher
        beats, queues = self._beats, self._queues
        running, length, count = Signal(), Signal(LENGTH_BITS), Signal(LENGTH_BITS)
        m.d.comb += [
            dispatcher.start.eq(self.start), dispatcher.length.eq(length), assume(~(self.start & running)),
            beats.valid.eq(self.came), beats.payload.eq(Cat(self.header, self.rest)), assume(~self.came | running & (count != length)),
            Cat(queue.o.ready for queue in queues).eq(self.take),
        ]
        with m.If(self.start):
            m.d.sync += [running.eq(1), length.eq(self.length)]

        first, have_first = Signal(BEAT_BITS), Signal()
        instruction, present = Signal(INSTRUCTION_BITS), Signal()  # the last that came; it has not been handed out
        header = Header(instruction[: Header.as_shape().size])
        unit, end, failure = Signal(len(Unit)), Signal(), Signal(ErrorCode)  # what it is: one's instruction, END, or faulty
        with m.If(present), m.Switch(header.opcode):
            for opcode in Opcode:
                its = unit_of(opcode)
                bad = [header.wait[other] for other in Unit if (other, its) not in EDGES] + [header.post[other] for other in Unit if (its, other) not in EDGES]
                with m.Case(opcode):
                    with m.If(Cat(bad).any()):
                        m.d.comb += failure.eq(ErrorCode.EDGE)
                    with m.Else():
                        m.d.comb += end.eq(1) if its is None else unit[its].eq(1)
            with m.Default():
                m.d.comb += failure.eq(ErrorCode.OPCODE)
        with m.Elif(running & (count == length)):
            m.d.comb += failure.eq(ErrorCode.NO_END)

        given, room = (Cat(getattr(queue.i, name) for queue in queues) for name in ("valid", "ready"))
        came, over = beats.valid & beats.ready, end | (failure != ErrorCode.NONE)
        with m.If(given.any()):
            m.d.sync += [present.eq(0), count.eq(count + 1)]
        with m.If(came & ~over):
            m.d.sync += [have_first.eq(~have_first), first.eq(beats.payload)]
            with m.If(have_first):
                m.d.sync += [instruction.eq(Cat(first, beats.payload)), present.eq(1)]
        pending, was_pending, failing = Signal(), Signal(), Signal(3)
        m.d.comb += [pending.eq((unit & room).any() & ~given.any() | end & ~self._ending), failing[0].eq(failure != dispatcher.error)]
        m.d.sync += [was_pending.eq(pending), failing[1:].eq(failing)]
        m.d.comb += [
            self.wrong.eq((given & ~unit).any() | Cat(queue.i.valid & (queue.i.payload != instruction) for queue in queues).any()),
            self.overflow.eq((given & ~room).any()),
            self.lost.eq(came & have_first & ~over & present),
            self.unfounded.eq(self._ending & ~end | (dispatcher.error != ErrorCode.NONE) & (dispatcher.error != failure)),
            self.miscounted.eq(~end & (dispatcher.index != count)),
            self.stuck.eq(pending & was_pending | failing.all() | self.came & ~beats.ready & ~present),
        ]
        return m


class Fetch(wiring.Component):
    """The part of the dispatcher that fetches, runs of two instructions, from a memory that answers when it likes, but only what it was asked for."""

    def __init__(self, module):
        self._fetched = module.Queue(1, module.FETCH_RUNS * module._RUN_BEATS)
        self._dispatcher = part(module, self._fetch)
        super().__init__({
            "start": In(1), "length": In(4), "ready": In(1), "came": In(1), "take": In(1),
            "refused": Out(1),  # a beat comes and there is no room
            "beyond": Out(1),   # asks for more than the program
            "unasked": Out(1),  # rests with less than the program asked for, and room
        })

    def _fetch(self, dispatcher):
        m = Module()
        m.submodules.fetched = self._fetched
        dispatcher._fetch(m, self._fetched)
        return m

    def elaborate(self, _platform):
        m = Module()
        m.submodules.dispatcher = dispatcher = self._dispatcher
        fetched = self._fetched
        started, left, owed = Signal(), Signal(6), Signal(5)
        m.d.sync += started.eq(started | self.start)
        m.d.comb += [
            dispatcher.start.eq(self.start), dispatcher.length.eq(self.length), dispatcher.runs.ready.eq(self.ready),
            dispatcher.beats.valid.eq(self.came), fetched.o.ready.eq(self.take),
            assume(~(self.start & started)), assume(~self.came | (owed != 0)),
        ]
        run = dispatcher.runs.payload
        asked = dispatcher.runs.valid & self.ready
        m.d.sync += [owed.eq(owed + (asked.replicate(5) & run.beats[:5]) - self.came), left.eq(left - (asked.replicate(6) & run.beats[:6]))]
        with m.If(self.start):
            m.d.sync += left.eq(self.length << 1)
        rest = Signal(3)
        m.d.sync += rest.eq(0)
        with m.If(~self.start & ~dispatcher.runs.valid & (left != 0) & (owed == 0) & ~fetched.o.valid):
            m.d.sync += rest.eq(rest + 1)
        m.d.comb += [
            self.refused.eq(self.came & ~fetched.i.ready),
            self.beyond.eq(dispatcher.runs.valid & (run.beats > left)),
            self.unasked.eq(rest == 7),
        ]
        return m


SMALL = (("FETCH_INSTRUCTIONS = 16", "FETCH_INSTRUCTIONS = 2"), ("FETCH_RUNS = 4", "FETCH_RUNS = 2"), ("QUEUE_INSTRUCTIONS = 16", "QUEUE_INSTRUCTIONS = 2"),
         ('Signal(8, name=f"tokens_', 'Signal(2, name=f"tokens_'))


def small(module=dispatch):
    """Two runs ahead of two instructions of two beats, and token counters of two bits."""
    for old, new in SMALL:
        module = mutated(module, old, new)
    return module


def test_tokens():
    prove(Tokens(small()))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("count.eq(count + left - took)", "count.eq(Mux(took, count - 1, count + left))", "lost"),
    ("count.eq(count + left - took)", "count.eq(Mux(left, count + 1, count - took))", "doubled|unlimited|lost"),
    ("left & ~took & count.all()", "0", "unlimited|lost"),
    ("grant & header.wait[source]", "held & ~out.valid & header.wait[source]", "lost|doubled"),
    ("& ~grant & ~self.waiting[unit].any()", "& ~grant", "doubled"),
    ("with m.If(~held):", "with m.If(~out.valid):", "changed|doubled|lost"),
])
def test_faults_in_tokens_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Tokens(small(mutated(dispatch, old, new))))


@pytest.mark.parametrize("module", [small(), pytest.param(dispatch, marks=pytest.mark.formal)], ids=["small", "whole"])
def test_decode(module):
    prove(Decode(module))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("offered.eq(1 << unit)", "offered.eq(1 << (unit ^ 1))", "wrong"),
    ("Cat(first, beats.payload)", "Cat(beats.payload, first)", "wrong"),
    ("(header.wait & ~wait).any() | ", "", "wrong"),
    ("beats.ready & ~ending", "beats.ready", "wrong|unfounded"),
    ("[offered.eq(0), end.eq(0), ", "[end.eq(0), ", "wrong|overflow"),
    ("[valid.eq(0), ", "[", "wrong|overflow|stuck|miscounted"),
    ("i.valid.eq(valid & offered[unit] & room[unit])", "i.valid.eq(valid & offered[unit])", "overflow"),
    ("m.d.sync += room.eq(", "late = Signal.like(room)\n        m.d.sync += room.eq(late)\n        m.d.sync += late.eq(", "overflow"),
    ("((offered & room).any() | end)", "(offered.any() | end)", "lost|stuck|miscounted"),
    ("~have_first | ~valid", "1", "lost|miscounted"),
    ("fault.eq(ErrorCode.OPCODE)", "end.eq(1)", "unfounded|miscounted|stuck"),
    ("found.eq(fault)", "found.eq(ErrorCode.OPCODE)", "unfounded|stuck"),
    ("self.index == self.length", "0", "stuck"),
])
def test_faults_in_decode_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Decode(small(mutated(dispatch, old, new))))


def test_fetch():
    prove(Fetch(small()))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("& some & room.any()", "& some", "refused"),
    ("Mux(full, _RUN_BEATS, left << 1)", "_RUN_BEATS", "beyond"),
    ("room + (took & taken.all()) - ask", "room - ask", "unasked"),
])
def test_faults_in_fetch_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Fetch(small(mutated(dispatch, old, new))))
