"""Messages out of the bytes of a line, and into them: framing, CRC-32, and the buffers for data (`hw/link.py`)."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from .cobs import CobsDecoder, FrameByte
from .fifo import Queue
from .link import CRC_BYTES, HEADER_BYTES, MAX_DATA, MAX_FRAME, WINDOW, Header, Kind
from .primitives import BlockRam, delayed
from .uart import Bytes

__all__ = ["Answer", "FrameReceiver", "FrameSender", "SLOT_WORDS"]

#: 64-bit words of a buffer's slot.
SLOT_WORDS = MAX_DATA // 8
_SLOT_BITS = WINDOW.bit_length() - 1


class _Buffer(wiring.Component):
    """`WINDOW` slots of `MAX_DATA` bytes in two block RAMs; `read_data` follows `read_address` after `BlockRam.latency` cycles."""

    def __init__(self):
        words = range(WINDOW * SLOT_WORDS)
        super().__init__({"write_enable": In(1), "write_address": In(words), "write_data": In(64), "read_address": In(words), "read_data": Out(64)})

    def elaborate(self, platform):
        m = Module()
        for half in range(2):
            m.submodules[f"half{half}"] = ram = BlockRam(32, WINDOW * SLOT_WORDS)
            m.d.comb += [
                ram.write_address.eq(self.write_address), ram.write_data.eq(self.write_data.word_select(half, 32)), ram.write_enable.eq(self.write_enable),
                ram.read_address.eq(self.read_address), self.read_data.word_select(half, 32).eq(ram.read_data),
            ]
        return m


class FrameReceiver(wiring.Component):
    """Headers of the whole, undamaged messages among the bytes of a line, in order; up to `WINDOW` of them wait, and one that finds no room is lost like a damaged one.

    While a header is shown, `read_data` is the word at `read_address` of its data, `BlockRam.latency` cycles later. `damaged` pulses for each frame that is lost.
    """

    def __init__(self):
        super().__init__({
            "i": In(Bytes()), "o": Out(stream.Signature(Header)), "read_address": In(range(SLOT_WORDS)), "read_data": Out(64), "damaged": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.decoder = decoder = CobsDecoder(MAX_FRAME)
        m.submodules.checksum = crc = CRC32_ISO_HDLC(data_width=8).create()
        m.submodules.headers = headers = Queue(Header, WINDOW)
        m.submodules.buffer = buffer = _Buffer()
        wiring.connect(m, wiring.flipped(self.i), decoder.i)
        wiring.connect(m, headers.o, wiring.flipped(self.o))

        index = Signal(range(MAX_FRAME + 1))  # bytes of the frame so far
        room = Signal()  # as its header came; nobody else takes it meanwhile
        header = Signal(Header)
        word = Signal(64)
        received, released = Signal(_SLOT_BITS), Signal(_SLOT_BITS)
        byte, first = decoder.o, Signal(init=1)
        m.d.comb += [crc.data.eq(byte.data), crc.valid.eq(byte.valid), crc.start.eq(first)]
        with m.If(byte.valid):
            m.d.sync += [index.eq(index + 1), first.eq(0), word.eq(Cat(word[8:], byte.data))]
            with m.If(index < HEADER_BYTES):
                m.d.sync += [header.as_value().eq(Cat(header.as_value()[8:], byte.data)), room.eq(headers.i.ready)]
        with m.If(decoder.end):
            m.d.sync += [index.eq(0), first.eq(1)]

        # A word is complete with its eighth byte; the CRC, which comes behind the last one, never completes one.
        position = index - HEADER_BYTES
        m.d.comb += [
            buffer.write_enable.eq(byte.valid & room & (index >= HEADER_BYTES) & position[:3].all()),
            buffer.write_address.eq(Cat(position[3 : 3 + SLOT_WORDS.bit_length() - 1], received)),
            buffer.write_data.eq(Cat(word[8:], byte.data)),
            buffer.read_address.eq(Cat(self.read_address, released)),
            self.read_data.eq(buffer.read_data),
        ]
        # Judged two cycles after its end, as the first byte of the next frame comes at the earliest. The size is known with the header, long before.
        size, fits, match = Signal(range(HEADER_BYTES + (1 << len(header.count)) + CRC_BYTES)), Signal(), Signal()
        ended, whole = Signal(), Signal()
        m.d.sync += [
            size.eq(HEADER_BYTES + CRC_BYTES + Mux(header.kind == Kind.WRITE, header.count, 0)), fits.eq(index == size), match.eq(crc.match_detected),
            ended.eq(delayed(m, decoder.end, reset=True)), whole.eq(delayed(m, decoder.good) & room & match & fits),
        ]
        m.d.comb += [headers.i.payload.eq(header), headers.i.valid.eq(ended & whole), self.damaged.eq(ended & ~whole)]
        m.d.sync += [received.eq(received + headers.i.valid), released.eq(released + (self.o.valid & self.o.ready))]
        return m


class Answer(data.Struct):
    """What is to be sent: a header, and `header.count` bytes of a slot if `header.kind` is DONE. `kept`: the slot answers for it, and is told when it has been sent."""

    header: Header
    slot: unsigned(_SLOT_BITS)
    kept: unsigned(1)


class FrameSender(wiring.Component):
    """Messages as the bytes of frames, not yet stuffed; their data come from a buffer that is written by words. `sent` pulses as the last byte of a kept answer goes,
    `sent_slot` tells which.
    """

    def __init__(self):
        super().__init__({
            "i": In(stream.Signature(Answer)), "o": Out(stream.Signature(FrameByte)), "sent": Out(1), "sent_slot": Out(_SLOT_BITS),
            "write_enable": In(1), "write_address": In(range(WINDOW * SLOT_WORDS)), "write_data": In(64),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.checksum = crc = CRC32_ISO_HDLC(data_width=8).create()
        m.submodules.buffer = buffer = _Buffer()
        answer = Signal(Answer)
        m.d.sync += answer.eq(self.i.payload)
        shift = Signal(8 * HEADER_BYTES)
        left = Signal(range(HEADER_BYTES + 1))  # bytes of `shift`
        words, position = Signal(range(SLOT_WORDS + 1)), Signal(range(SLOT_WORDS))
        wait = Signal(range(BlockRam.latency + 1))
        going, tail = Signal(), Signal()
        m.d.comb += [
            buffer.write_enable.eq(self.write_enable), buffer.write_address.eq(self.write_address), buffer.write_data.eq(self.write_data),
            buffer.read_address.eq(Cat(position, answer.slot)),
            self.o.payload.data.eq(shift[:8]), self.o.payload.last.eq(tail & (left == 1)), self.sent_slot.eq(answer.slot),
            going.eq(self.o.valid & self.o.ready), crc.data.eq(shift[:8]), crc.valid.eq(going),
        ]
        with m.If(going):
            m.d.sync += [shift.eq(shift >> 8), left.eq(left - 1)]
        with m.FSM():
            with m.State("Idle"), m.If(self.i.valid):
                m.next = "Begin"
            with m.State("Begin"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [
                    shift.eq(answer.header), left.eq(HEADER_BYTES), tail.eq(0), position.eq(0), wait.eq(BlockRam.latency),
                    words.eq(Mux(answer.header.kind == Kind.DONE, answer.header.count >> 3, 0)),
                ]
                m.next = "Send"
            with m.State("Send"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(going & (left == 1)):
                    m.next = "Next"
            with m.State("Next"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(tail):
                    m.d.comb += [self.i.ready.eq(1), self.sent.eq(answer.kept)]
                    m.next = "Idle"
                with m.Elif(words == 0):
                    m.d.sync += [shift.eq(crc.crc), left.eq(CRC_BYTES), tail.eq(1)]
                    m.next = "Send"
                with m.Elif(wait == 0):
                    m.d.sync += [shift.eq(buffer.read_data), left.eq(8), words.eq(words - 1), position.eq(position + 1), wait.eq(BlockRam.latency)]
                    m.next = "Send"
        return m
