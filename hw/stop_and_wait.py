"""The device's end of the host link where there is little room: a window of one request, so that a buffer for its data is all that it needs."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .cobs import CobsDecoder, CobsEncoder
from .ice40 import BeatPort
from .interfaces import Axi4Lite
from .link import CRC_BYTES, HEADER_BYTES, MAX_DATA, MAX_FRAME, VERSION, Header, Kind, Opened
from .uart import Bytes, UartReceiver, UartTransmitter

__all__ = ["StopAndWaitLink", "StopAndWaitServer"]

_MEMORY_BITS = 17


class StopAndWaitServer(wiring.Component):
    """Frames from a host and back to it, one at a time: what comes while a request is done and answered is lost, as a damaged frame is.

    `memory` is accessed in cycles with `memory_ready`, by bytes; outside of it, where there are no marks either, READ and WRITE are FAILED. A request that comes again
    is answered again: a READ or READ_REGISTER by being done again, which changes nothing.
    """

    def __init__(self):
        super().__init__({"i": In(Bytes()), "o": Out(stream.Signature(8)), "memory": Out(BeatPort(8)), "memory_ready": In(1), "axil": Out(Axi4Lite())})

    def elaborate(self, platform):
        m = Module()
        m.submodules.decoder = decoder = CobsDecoder(MAX_FRAME)
        m.submodules.encoder = encoder = CobsEncoder()
        m.submodules.checksum = crc = CRC32_ISO_HDLC(data_width=8).create()
        m.submodules.buffer = buffer = Memory(shape=8, depth=MAX_DATA, init=[])
        data_in, data_out = buffer.write_port(), buffer.read_port()
        wiring.connect(m, encoder.o, wiring.flipped(self.o))

        header = Signal(Header)  # of the request, then of the answer
        session, expected = Signal(32), Signal(16)
        kept, harmless = Signal(Kind, init=Kind.INVALID), Signal()  # the answer to the last request; it may be done again
        again = Signal()  # this is the last request once more
        position = Signal(range(MAX_FRAME + 1))  # bytes received, moved or sent
        listening, sending, sent = Signal(), Signal(), Signal()
        with_data, tail = Signal(), Signal()  # the answer has data; its CRC is what is sent
        byte, read = Signal(8), Signal(8)
        kind, count, value = header.kind, header.count, header.value
        in_memory = (kind == Kind.READ) | (kind == Kind.WRITE)
        reads = (kind == Kind.READ) | (kind == Kind.READ_REGISTER)
        received = HEADER_BYTES + CRC_BYTES + Mux(kind == Kind.WRITE, count, 0)
        m.d.comb += [
            decoder.i.valid.eq(self.i.valid & listening), decoder.i.data.eq(self.i.data),
            encoder.i.valid.eq(sending), encoder.i.payload.data.eq(byte), encoder.i.payload.last.eq(tail & (position == CRC_BYTES - 1)),
            sent.eq(sending & encoder.i.ready),
            crc.data.eq(Mux(listening, decoder.o.data, byte)), crc.valid.eq(Mux(listening, decoder.o.valid, sent)), crc.start.eq(~with_data & ~tail & (position == 0)),
            data_in.data.eq(decoder.o.data), data_in.addr.eq(position - HEADER_BYTES), data_out.addr.eq(position),
            self.memory.address.eq(value[3:] + position[3:]), self.memory.write_data.eq(data_out.data),
            byte.eq(header.as_value()[:8]),
        ]
        with m.If(sent):
            m.d.sync += position.eq(position + 1)

        def answer(of, *, value=0, count=0):
            return [kind.eq(of), header.value.eq(value), header.count.eq(count)]

        for channel in ("ar", "aw", "w"):
            with m.If(getattr(self.axil, f"{channel}ready")):
                m.d.sync += getattr(self.axil, f"{channel}valid").eq(0)
        with m.FSM():
            with m.State("Listen"):
                m.d.comb += listening.eq(1)
                with m.If(decoder.o.valid):
                    m.d.sync += position.eq(position + 1)
                    with m.If(position < HEADER_BYTES):
                        m.d.sync += header.as_value().eq(Cat(header.as_value()[8:], decoder.o.data))
                    with m.Else():
                        m.d.comb += data_in.en.eq(position < HEADER_BYTES + MAX_DATA)
                with m.If(decoder.end):
                    m.d.sync += position.eq(0)
                    with m.If(decoder.good & crc.match_detected & (position == received)):
                        m.next = "Look"
            with m.State("Look"):
                mine, behind = header.session == session, (expected - header.sequence)[:16]
                m.d.sync += again.eq(behind == 1)
                m.next = "Send"
                with m.Switch(kind):
                    with m.Case(Kind.OPEN):
                        opened = Signal(Opened)
                        m.d.comb += [opened.expected.eq(expected), opened.window.eq(1), opened.version.eq(VERSION)]
                        m.d.sync += answer(Kind.DONE, value=opened)
                        with m.If(header.session.any() & (value == session)):
                            m.d.sync += session.eq(header.session)
                        with m.Elif(~header.session.any() | ~mine):
                            m.d.sync += [*answer(Kind.FOREIGN), header.session.eq(session)]
                    with m.Case(Kind.READ, Kind.WRITE, Kind.READ_REGISTER, Kind.WRITE_REGISTER):
                        with m.If(~mine):
                            m.d.sync += [*answer(Kind.FOREIGN), header.session.eq(session)]
                        with m.Elif((behind == 0) | ((behind == 1) & harmless & reads)):
                            m.next = "Do"
                        with m.Elif(behind == 1):
                            m.d.sync += answer(kept)
                        with m.Else():
                            m.d.sync += answer(Kind.SKIPPED, value=expected)
                    with m.Default():
                        m.next = "Listen"
            with m.State("Do"):
                with m.If(~again):
                    m.d.sync += harmless.eq(reads)
                m.next = "Done"
                with m.If(~in_memory):
                    m.d.sync += [self.axil.arvalid.eq(reads), self.axil.awvalid.eq(~reads), self.axil.wvalid.eq(~reads)]
                    m.next = "Register"
                with m.Elif(value[:3].any() | count[:3].any() | ~count.any() | (count > MAX_DATA)):
                    m.d.sync += answer(Kind.INVALID)
                with m.Elif(value[_MEMORY_BITS:].any() | (value[:_MEMORY_BITS] + count > 1 << _MEMORY_BITS)):
                    m.d.sync += answer(Kind.FAILED)
                with m.Elif(reads):
                    m.d.sync += [kind.eq(Kind.DONE), with_data.eq(1)]
                with m.Else():
                    m.next = "Load"
            self._access_register(m, header, answer)
            with m.State("Load"):
                m.next = "Store"
            with m.State("Store"):
                m.d.comb += [self.memory.valid.eq(1), self.memory.write.eq(1 << position[:3])]
                with m.If(self.memory_ready):
                    m.d.sync += position.eq(position + 1)
                    m.next = "Load"
                    with m.If(position + 1 == count):
                        m.d.sync += [position.eq(0), *answer(Kind.DONE)]
                        m.next = "Done"
            with m.State("Done"):
                with m.If(~again):
                    m.d.sync += [kept.eq(kind), expected.eq(expected + 1)]
                m.next = "Send"
            with m.State("Send"):
                m.d.comb += sending.eq(1)
                with m.If(with_data & (position >= HEADER_BYTES - 4)):
                    m.d.comb += byte.eq(0)  # what is there is where the data are
                with m.If(sent):
                    m.d.sync += header.as_value().eq(header.as_value().rotate_right(8))
                    with m.If(position == HEADER_BYTES - 1):
                        m.d.sync += position.eq(0)
                        m.next = "Check"
                        with m.If(with_data):
                            m.next = "Fetch"
            with m.State("Fetch"):
                m.d.comb += self.memory.valid.eq(1)
                with m.If(self.memory_ready):
                    m.next = "Take"
            with m.State("Take"):
                m.d.sync += read.eq(self.memory.read_data.word_select(position[:3], 8))
                m.next = "Put"
            with m.State("Put"):
                m.d.comb += [sending.eq(1), byte.eq(read)]
                with m.If(sent):
                    m.next = "Fetch"
                    with m.If(position + 1 == count):
                        m.d.sync += position.eq(0)
                        m.next = "Check"
            with m.State("Check"):
                m.d.sync += [header.as_value()[:32].eq(crc.crc), tail.eq(1)]
                m.next = "Tail"
            with m.State("Tail"):
                m.d.comb += sending.eq(1)
                with m.If(sent):
                    m.d.sync += header.as_value().eq(header.as_value().rotate_right(8))
                    with m.If(position == CRC_BYTES - 1):
                        m.d.sync += [position.eq(0), tail.eq(0), with_data.eq(0)]
                        m.next = "Listen"
        return m

    def _access_register(self, m, header, answer):
        bus = self.axil
        m.d.comb += [
            bus.araddr.eq(header.count), bus.awaddr.eq(header.count), bus.wdata.eq(header.value), bus.wstrb.eq(0xF), bus.rready.eq(1), bus.bready.eq(1),
        ]
        with m.State("Register"), m.If(bus.bvalid | bus.rvalid):
            failed = Mux(bus.bvalid, bus.bresp[1], bus.rresp[1])
            m.d.sync += answer(Mux(failed, Kind.FAILED, Kind.DONE), value=Mux(bus.rvalid & ~failed, bus.rdata, 0))
            m.next = "Done"


class StopAndWaitLink(wiring.Component):
    """A :class:`StopAndWaitServer` on a serial line of `baud`, in a clock of `clock_hz`. Raises ValueError for a baud that the clock cannot make."""

    def __init__(self, clock_hz: float, baud: int = 3_000_000):
        self._receiver, self._transmitter = UartReceiver(clock_hz, baud), UartTransmitter(clock_hz, baud)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "memory": Out(BeatPort(8)), "memory_ready": In(1), "axil": Out(Axi4Lite())})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver, m.submodules.transmitter = self._receiver, self._transmitter
        m.submodules.server = server = StopAndWaitServer()
        wiring.connect(m, self._receiver.o, server.i)
        wiring.connect(m, server.o, self._transmitter.i)
        wiring.connect(m, server.memory, wiring.flipped(self.memory))
        wiring.connect(m, server.axil, wiring.flipped(self.axil))
        m.d.comb += [self._receiver.pin.eq(self.rx), self.tx.eq(self._transmitter.pin), server.memory_ready.eq(self.memory_ready)]
        return m
