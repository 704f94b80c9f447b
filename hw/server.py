"""The device's end of the host link: requests of memory and registers, each done once (`hw/link.py`)."""

from amaranth.hdl import Array, Cat, DomainRenamer, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .cobs import CobsEncoder, FrameByte
from .crossing import Crossing
from .fifo import Queue
from .frames import SLOT_WORDS, Answer, FrameReceiver, FrameSender
from .interfaces import Axi4, Axi4Lite
from .link import MARK_COUNT, MAX_DATA, VERSION, WINDOW, Header, Kind, Opened
from .marks import Marks
from .primitives import BlockRam
from .registers import Command, Register
from .uart import Bytes, UartReceiver, UartTransmitter

__all__ = ["FrameServer", "HostLink"]


class _Kept(data.Struct):
    """An answer, as it can be given again."""

    kind: Kind
    count: unsigned(12)
    value: unsigned(32)


class FrameServer(wiring.Component):
    """Frames from a host and back to it. `axi` and `axil` reach the memory and the engine's registers; `store` pulses for each retired STORE instruction,
    `damaged` for each frame that is lost.

    A request is done within a few hundred cycles, but for those of memory: one beat at a time, so that 1 KB take about 3,000 where a beat takes 20, a hundredth of
    what a line of 3 Mbaud takes for them. A bus that never answers keeps the request, and all that follow, unanswered.
    """

    def __init__(self):
        super().__init__({"i": In(Bytes()), "o": Out(stream.Signature(8)), "axi": Out(Axi4()), "axil": Out(Axi4Lite()), "store": In(1), "damaged": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = FrameReceiver()
        m.submodules.sender = sender = FrameSender()
        m.submodules.encoder = encoder = CobsEncoder()
        m.submodules.marks = marks = Marks()
        m.submodules.answers = answers = Queue(Answer, 2 * WINDOW)
        wiring.connect(m, wiring.flipped(self.i), receiver.i)
        wiring.connect(m, answers.o, sender.i)
        m.submodules.bytes = queue = Queue(FrameByte, 2, registered=True)  # they may lie far apart
        wiring.connect(m, sender.o, queue.i)
        wiring.connect(m, queue.o, encoder.i)
        wiring.connect(m, encoder.o, wiring.flipped(self.o))
        m.d.comb += [marks.event.eq(self.store), self.damaged.eq(receiver.damaged)]
        self._serve(m, receiver, sender, answers.i, marks)
        return m

    def _serve(self, m, receiver, sender, answers, marks):
        session, expected = Signal(32), Signal(16)
        kept = Array(Signal(_Kept, init={"kind": Kind.INVALID}, name=f"kept{slot}") for slot in range(WINDOW))
        pending = Signal(WINDOW)  # slots whose answer is on its way
        # Nothing here is in a hurry: a byte of the line lasts for dozens of cycles. So what is compared, and what comes from a bus, passes a register first.
        request = Signal(Header)
        m.d.sync += request.eq(receiver.o.payload)
        slot = request.sequence[: WINDOW.bit_length() - 1]
        result = Signal(_Kept)  # of the request that is being done
        put, keep = Signal(), Signal()
        answer = answers.payload
        m.d.comb += [
            answers.valid.eq(put), answer.header.session.eq(session), answer.header.sequence.eq(request.sequence), answer.slot.eq(slot), answer.kept.eq(keep),
            Cat(answer.header.kind, answer.header.count, answer.header.value).eq(Mux(keep, kept[slot].as_value(), result.as_value())),
        ]
        with m.If(sender.sent):
            m.d.sync += pending.bit_select(sender.sent_slot, 1).eq(0)
        with m.If(put & answers.ready & keep):
            m.d.sync += pending.bit_select(slot, 1).eq(1)

        mine, turn, done, busy, aligned = (Signal(name=name) for name in ("mine", "turn", "done", "busy", "aligned"))
        behind, named, known = Signal(16), Signal(), Signal()
        m.d.sync += [
            behind.eq(expected - request.sequence), turn.eq(behind == 0), done.eq((behind != 0) & (behind <= WINDOW)),
            mine.eq(request.session == session), named.eq(request.session.any()), known.eq(request.value == session),
            aligned.eq(~request.value[:3].any() & ~request.count[:3].any() & request.count.any() & (request.count <= MAX_DATA)),
        ]
        m.d.comb += busy.eq(pending.bit_select(slot, 1))
        for bus in self.axi, self.axil:
            for channel in ("ar", "aw", "w"):
                with m.If(getattr(bus, f"{channel}ready")):
                    m.d.sync += getattr(bus, f"{channel}valid").eq(0)
        with m.FSM():
            with m.State("Idle"), m.If(receiver.o.valid):
                m.next = "Compare"
            with m.State("Compare"):
                m.next = "Judge"
            with m.State("Judge"):
                m.next = "Look"
            with m.State("Look"):
                m.d.sync += result.eq(0)
                with m.Switch(request.kind):
                    with m.Case(Kind.OPEN):
                        m.next = "Open"
                    with m.Case(Kind.READ, Kind.WRITE, Kind.READ_REGISTER, Kind.WRITE_REGISTER):
                        with m.If(~mine):
                            m.d.sync += result.kind.eq(Kind.FOREIGN)
                            m.next = "Tell"
                        with m.Elif(turn), m.If(~busy):  # else what the slot holds is still being sent
                            m.next = "Do"
                        with m.Elif(~done):
                            m.d.sync += [result.kind.eq(Kind.SKIPPED), result.value.eq(expected)]
                            m.next = "Tell"
                        with m.Else():
                            m.next = "Next"
                            with m.If(~busy):  # else its answer comes anyhow
                                m.next = "Repeat"
                    with m.Default():
                        m.next = "Next"
            with m.State("Open"):
                opened = Signal(Opened)
                m.d.comb += [opened.expected.eq(expected), opened.window.eq(WINDOW), opened.version.eq(VERSION)]
                m.d.sync += [result.kind.eq(Kind.DONE), result.value.eq(opened)]
                with m.If(named & known):
                    m.d.sync += session.eq(request.session)
                with m.Elif(~named | ~mine):
                    m.d.sync += [result.kind.eq(Kind.FOREIGN), result.value.eq(0)]
                m.next = "Tell"
            with m.State("Do"):
                with m.If((request.kind == Kind.READ_REGISTER) | (request.kind == Kind.WRITE_REGISTER)):
                    m.next = "Register"
                with m.Elif(aligned):
                    m.next = "Fetch"
                with m.Else():
                    m.d.sync += result.kind.eq(Kind.INVALID)
                    m.next = "Done"
            self._access_register(m, request, result, marks)
            self._access_memory(m, request, result, slot, receiver, sender, marks)
            with m.State("Done"):
                m.d.sync += [kept[slot].eq(result), expected.eq(expected + 1)]
                m.next = "Repeat"
            with m.State("Repeat"):
                m.d.comb += [put.eq(1), keep.eq(1)]
                with m.If(answers.ready):
                    m.next = "Next"
            with m.State("Tell"):
                m.d.comb += put.eq(1)
                with m.If(answers.ready):
                    m.next = "Next"
            with m.State("Next"):
                m.d.comb += receiver.o.ready.eq(1)
                m.next = "Settle"
            with m.State("Settle"):  # until the next request is shown
                m.next = "Idle"

    def _access_register(self, m, request, result, marks):
        bus = self.axil
        command = Command(request.value[: Command.as_shape().size])
        write, starts = Signal(), Signal()
        answered, failed, value = Signal(), Signal(), Signal(32)
        m.d.sync += [
            marks.accepted.eq(0),
            write.eq(request.kind == Kind.WRITE_REGISTER), starts.eq(write & (request.count == Register.COMMAND) & command.start & ~command.reset),
            answered.eq(bus.bvalid | bus.rvalid), failed.eq(Mux(bus.bvalid, bus.bresp[1], bus.rresp[1])), value.eq(bus.rdata),
        ]
        m.d.comb += [bus.araddr.eq(request.count), bus.awaddr.eq(request.count), bus.wdata.eq(request.value), bus.wstrb.eq(0xF), bus.rready.eq(1), bus.bready.eq(1)]
        with m.State("Register"):
            m.d.sync += [bus.arvalid.eq(~write), bus.awvalid.eq(write), bus.wvalid.eq(write)]
            m.d.comb += marks.offered.eq(1)
            m.next = "Registered"
        with m.State("Registered"):
            m.d.sync += [result.kind.eq(Mux(failed, Kind.FAILED, Kind.DONE)), result.value.eq(Mux(failed | write, 0, value))]
            with m.If(answered):
                m.d.sync += marks.accepted.eq(starts & ~failed)
                m.next = "Done"

    def _access_memory(self, m, request, result, slot, receiver, sender, marks):
        """Word by word: fetch what is to be written, a beat on the bus, store what has been read."""
        bus = self.axi
        word, last, failed = Signal(range(SLOT_WORDS + 1)), Signal(), Signal()
        address = Signal(29)
        wait = Signal(range(2 * BlockRam.latency + 2))
        low, beat = Signal(32), Signal(64)
        is_marks, write = request.value[31], Signal()
        answered, erred, value = Signal(), Signal(), Signal(64)
        m.d.sync += [
            write.eq(request.kind == Kind.WRITE), last.eq(word + 1 == request.count >> 3),
            answered.eq(bus.bvalid | bus.rvalid), erred.eq(Mux(bus.bvalid, bus.bresp[1], bus.rresp[1])), value.eq(bus.rdata),
        ]
        index = address[: (MARK_COUNT // 2).bit_length() - 1]
        m.d.comb += [
            receiver.read_address.eq(word), sender.write_address.eq(Cat(word[:-1], slot)), sender.write_data.eq(beat),
            *(value.eq(constant) for channel in ("ar", "aw")
              for value, constant in ((getattr(bus, f"{channel}addr"), address << 3), (getattr(bus, f"{channel}size"), 3), (getattr(bus, f"{channel}burst"), 1))),
            bus.wdata.eq(beat), bus.wstrb.eq(0xFF), bus.wlast.eq(1), bus.rready.eq(1), bus.bready.eq(1),
            marks.write_data.eq(Mux(wait[0], beat[32:], beat[:32])), marks.write_address.eq(Cat(wait[0], index)),
            marks.read_address.eq(Cat(wait > BlockRam.latency, index)),
        ]
        with m.State("Fetch"):
            m.d.sync += [word.eq(0), failed.eq(0), address.eq(request.value >> 3), wait.eq(0)]
            m.next = "Word"
        with m.State("Word"):
            m.d.sync += [wait.eq(wait + 1), beat.eq(receiver.read_data)]
            with m.If(wait == BlockRam.latency):
                m.d.sync += wait.eq(0)
                m.next = "Marks"
                with m.If(~is_marks):
                    m.d.sync += [bus.arvalid.eq(~write), bus.awvalid.eq(write), bus.wvalid.eq(write)]
                    m.next = "Beat"
        with m.State("Beat"), m.If(answered):
            m.d.sync += [failed.eq(failed | erred), beat.eq(value)]
            m.next = "Store"
        with m.State("Marks"):
            # Halves one after the other: written in the first two cycles, read with the latency of the block RAM.
            m.d.sync += wait.eq(wait + 1)
            m.d.comb += marks.write_enable.eq(write & (wait < 2))
            with m.If(wait == BlockRam.latency):
                m.d.sync += low.eq(marks.read_data)
            with m.If(wait == 2 * BlockRam.latency + 1):
                m.d.sync += beat.eq(Cat(low, marks.read_data))
                m.next = "Store"
        with m.State("Store"):
            m.d.comb += sender.write_enable.eq(~write)
            m.d.sync += [word.eq(word + 1), address.eq(address + 1), wait.eq(0)]
            m.next = "Word"
            with m.If(last):
                m.d.sync += [result.kind.eq(Mux(failed, Kind.FAILED, Kind.DONE)), result.count.eq(Mux(write | failed, 0, request.count))]
                m.next = "Done"


class HostLink(wiring.Component):
    """A :class:`FrameServer` on a serial line of `baud`, whose clock is that of the domain `line`, of `line_hz`. Raises ValueError for a baud that it cannot make."""

    def __init__(self, line_hz: float, baud: int = 3_000_000, *, line: str = "sync"):
        self._receiver, self._transmitter = UartReceiver(line_hz, baud), UartTransmitter(line_hz, baud)
        self._line = line
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "axi": Out(Axi4()), "axil": Out(Axi4Lite()), "store": In(1), "damaged": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.server = server = FrameServer()
        to_line = DomainRenamer(self._line)
        m.submodules.receiver, m.submodules.transmitter = to_line(self._receiver), to_line(self._transmitter)
        # Bytes are slower than the crossings, which therefore have room for each one that comes.
        m.submodules.received = received = Crossing(8, source=self._line, destination="sync")
        m.submodules.transmitted = transmitted = Crossing(8, source="sync", destination=self._line)
        wiring.connect(m, server.o, transmitted.i)
        wiring.connect(m, transmitted.o, self._transmitter.i)
        wiring.connect(m, server.axi, wiring.flipped(self.axi))
        wiring.connect(m, server.axil, wiring.flipped(self.axil))
        m.d.comb += [
            received.i.valid.eq(self._receiver.o.valid), received.i.payload.eq(self._receiver.o.data), received.o.ready.eq(1),
            server.i.valid.eq(received.o.valid), server.i.data.eq(received.o.payload),
            self._receiver.pin.eq(self.rx), self.tx.eq(self._transmitter.pin), server.store.eq(self.store), self.damaged.eq(server.damaged),
        ]
        return m
