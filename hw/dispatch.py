"""The dispatcher: fetches a program, hands its instructions to the units and keeps the tokens between them."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .dma import Beats
from .fifo import Queue
from .interfaces import BEAT_BITS, Instructions, Run, UnitControl
from .isa import EDGES, INSTRUCTION_BITS, LENGTH_BITS, Header, Opcode, Unit, unit_of
from .registers import ErrorCode

__all__ = ["Dispatcher"]

#: Instructions fetched at once, and how often that fits into the fetch buffer.
FETCH_INSTRUCTIONS = 16
FETCH_RUNS = 4
#: Instructions a unit's queue holds, beside the one that waits for its tokens.
QUEUE_INSTRUCTIONS = 16

_RUN_BEATS = FETCH_INSTRUCTIONS * INSTRUCTION_BITS // BEAT_BITS


class Dispatcher(wiring.Component):
    """Runs one program after each reset: `length` instructions from the byte address `program`, from the cycle of `start` on.

    Instructions are handed out in the program's order, one per two cycles, into a queue per unit, and leave it when their tokens are there, one per four cycles
    and unit.
    Fetching runs ahead as far as its buffer reaches, never beyond the program.

    `done` rises when END has been reached, all queues are empty and no unit is busy. On an error (`error`, with the instruction's `index` where there is one) nothing
    further is handed out. `waiting[u]` bit v: the next instruction of unit u waits for a token of unit v; `pending` bit u: unit u has an instruction to take.
    """

    start: In(1)
    program: In(32)
    length: In(LENGTH_BITS)
    runs: Out(stream.Signature(Run))
    beats: In(Beats())
    instruction: Out(Instructions).array(len(Unit))
    control: In(UnitControl()).array(len(Unit))
    done: Out(1)
    error: Out(ErrorCode)
    index: Out(LENGTH_BITS)
    retired: Out(32).array(len(Unit))
    waiting: Out(len(Unit)).array(len(Unit))
    pending: Out(len(Unit))

    def elaborate(self, platform):
        m = Module()
        ending = Signal()
        m.submodules.fetched = fetched = Queue(BEAT_BITS, FETCH_RUNS * _RUN_BEATS)
        queues = [Queue(INSTRUCTION_BITS, QUEUE_INSTRUCTIONS) for _ in Unit]
        self._fetch(m, fetched)
        self._decode(m, fetched.o, queues, ending)
        self._issue(m, queues)

        quiet = Signal(2)
        m.d.sync += [
            quiet.eq(Cat(ending & (self.error == ErrorCode.NONE) & ~self.pending.any() & ~Cat(control.busy for control in self.control).any(), quiet)),
            self.done.eq(quiet.all()),
        ]
        for unit in Unit:
            m.d.sync += self.retired[unit].eq(self.retired[unit] + self.control[unit].retired)
        return m

    def _fetch(self, m, fetched):
        """Ask for runs as long as there is room for their beats."""
        left = Signal(LENGTH_BITS)  # instructions
        some, full = Signal(), Signal()  # that many: at least one, at least a run; a cycle behind, for `left` changes every other cycle at most
        beat = Signal(29)
        room = Signal(range(FETCH_RUNS + 1), init=FETCH_RUNS)  # runs
        taken = Signal(range(_RUN_BEATS))
        ask = Signal()
        run = self.runs.payload
        m.d.comb += [
            fetched.i.valid.eq(self.beats.valid),
            fetched.i.payload.eq(self.beats.data),
            ask.eq(~self.runs.valid & some & room.any()),
        ]
        m.d.sync += [some.eq(left.any()), full.eq(left[FETCH_INSTRUCTIONS.bit_length() - 1:].any())]
        took = fetched.o.valid & fetched.o.ready
        m.d.sync += [taken.eq(taken + took), room.eq(room + (took & taken.all()) - ask)]
        with m.If(ask):
            m.d.sync += [self.runs.valid.eq(1), run.address.eq(beat << 3), run.beats.eq(Mux(full, _RUN_BEATS, left << 1))]
            m.d.sync += [beat.eq(beat + _RUN_BEATS), left.eq(Mux(full, left - FETCH_INSTRUCTIONS, 0))]
        with m.Elif(self.runs.ready):
            m.d.sync += self.runs.valid.eq(0)
        with m.If(self.start):
            m.d.sync += [left.eq(self.length), beat.eq(self.program[3:])]

    def _decode(self, m, beats, queues, ending):
        """Two beats make an instruction; its header, in the first, says where it goes."""
        first = Signal(BEAT_BITS, reset_less=True)
        have_first = Signal()
        instruction = Signal(INSTRUCTION_BITS, reset_less=True)
        valid = Signal()             # it is one, and then it is one of these:
        offered = Signal(len(Unit))  # to whom it is offered: to one at most
        end = Signal()               # it is END
        fault = Signal(ErrorCode)    # it is faulty
        taken = Signal()
        room = Signal(len(Unit))     # of their queues, a cycle late: one takes an instruction every other cycle at most, so what has been free still is
        running = Signal()
        header = Header(first[:Header.as_shape().size])
        m.d.comb += [
            taken.eq(valid & ((offered & room).any() | end)),
            beats.ready.eq(~have_first | ~valid),  # not in the cycle in which END is taken: what follows it is not looked at
        ]
        m.d.sync += room.eq(Cat(queue.i.ready for queue in queues))
        with m.If(taken):
            m.d.sync += [valid.eq(0), self.index.eq(self.index + 1), ending.eq(end)]
        with m.If(beats.valid & beats.ready & ~ending):
            m.d.sync += have_first.eq(~have_first)
            with m.If(have_first):
                m.d.sync += [valid.eq(1), instruction.eq(Cat(first, beats.payload))]
            with m.Else():
                m.d.sync += first.eq(beats.payload)
        with m.If(~valid):
            m.d.sync += [offered.eq(0), end.eq(0), fault.eq(ErrorCode.NONE)]
            with m.Switch(header.opcode):
                for opcode in Opcode:
                    unit = unit_of(opcode)
                    wait, post = (sum(1 << edge[1 - side] for edge in EDGES if edge[side] == unit) for side in (1, 0))
                    with m.Case(opcode):
                        with m.If((header.wait & ~wait).any() | (header.post & ~post).any()):
                            m.d.sync += fault.eq(ErrorCode.EDGE)
                        with m.Else():
                            m.d.sync += end.eq(1) if unit is None else offered.eq(1 << unit)
                with m.Default():
                    m.d.sync += fault.eq(ErrorCode.OPCODE)
        for unit in Unit:
            m.d.comb += [queues[unit].i.valid.eq(valid & offered[unit] & room[unit]), queues[unit].i.payload.eq(instruction)]

        with m.If(self.start):
            m.d.sync += running.eq(1)
        # What is found is an error a cycle later: it comes from everywhere. Nothing that is found here is handed out.
        found = Signal(ErrorCode)
        m.d.sync += found.eq(ErrorCode.NONE)
        with m.If(valid & (fault != ErrorCode.NONE)):
            m.d.sync += found.eq(fault)
        with m.Elif(running & ~ending & ~valid & (self.index == self.length)):
            m.d.sync += found.eq(ErrorCode.NO_END)
        with m.If(self.error == ErrorCode.NONE):  # overruled by the errors of `_issue`, which come later
            m.d.sync += self.error.eq(found)

    def _issue(self, m, queues):
        """Each unit's next instruction takes its tokens, then waits for the unit."""
        tokens = {edge: Signal(8, name=f"tokens_{edge[0].name}_{edge[1].name}".lower()) for edge in EDGES}
        overflow = Signal(len(EDGES))
        for unit in Unit:
            m.submodules[f"queue_{unit.name.lower()}"] = queue = queues[unit]
            out = self.instruction[unit]
            held = Signal(name=f"held_{unit.name.lower()}")    # `payload` is an instruction
            grant = Signal(name=f"grant_{unit.name.lower()}")  # it takes its tokens, which were there a cycle ago: nobody else takes them
            payload = Signal(INSTRUCTION_BITS, name=f"payload_{unit.name.lower()}", reset_less=True)
            header = Header(payload[:Header.as_shape().size])
            m.d.comb += [out.payload.eq(payload), queue.o.ready.eq(~held), self.pending[unit].eq(held | queue.o.valid)]
            m.d.sync += grant.eq(held & ~out.valid & ~grant & ~self.waiting[unit].any() & (self.error == ErrorCode.NONE))
            with m.If(grant & (self.error == ErrorCode.NONE)):
                m.d.sync += out.valid.eq(1)
            with m.If(out.valid & out.ready):
                m.d.sync += [held.eq(0), out.valid.eq(0)]
            with m.If(~held):
                m.d.sync += [held.eq(queue.o.valid), payload.eq(queue.o.payload)]
            for (source, target), count in tokens.items():
                if target == unit:
                    m.d.comb += self.waiting[unit][source].eq(held & ~out.valid & header.wait[source] & ~count.any())
                    left, took = self.control[source].post[unit], grant & header.wait[source]
                    m.d.sync += count.eq(count + left - took)
                    m.d.sync += overflow[EDGES.index((source, target))].eq(left & ~took & count.all())
        with m.If(overflow.any() & (self.error == ErrorCode.NONE)):
            m.d.sync += self.error.eq(ErrorCode.TOKENS)
