"""The host link: what its two sides say to each other, written once.

A pipe of bytes that may damage them, but keeps their order (a UART, TCP), carries frames: a message and its CRC-32, stuffed by COBS (Cheshire and Baker, "Consistent
overhead byte stuffing", IEEE/ACM Transactions on Networking 7, 1999), so that the byte 0 only ever ends a frame. A message is a `Header` and, in a WRITE and in the
answer to a READ, up to `MAX_DATA` bytes.

The host asks, the device answers each request once it is done. Requests are numbered and done in this order, each exactly once: what is not the next one's turn is not
done, and one of the last `WINDOW` already done is answered again from memory. So a host repeats what it gets no answer to. It may send request n + WINDOW once it has
the answer to request n; that many frames the device can hold, so that it needs no other flow control.

A session keeps apart what different hosts, or one before and after it has given up a request, have under way: only requests of the last opened one are done.
"""

import zlib
from dataclasses import dataclass

from amaranth.hdl import unsigned
from amaranth.lib import data, enum

__all__ = ["MARKS", "MARK_COUNT", "MAX_DATA", "MAX_FRAME", "VERSION", "WINDOW", "Deframer", "Header", "Kind", "Message", "Opened", "cobs_decode", "cobs_encode"]

#: What `Opened.version` says: the version of all that this file defines.
VERSION = 1
#: Requests under way at most; a power of two.
WINDOW = 4
#: Bytes that a READ or WRITE moves at most.
MAX_DATA = 1024
#: From this address on READ and WRITE do not mean memory: `MARK_COUNT` words of 32 bits, ascending numbers of retired STORE instructions when they are written. Each
#: reads as the cycle in which that many had retired, 0 being the one in which the command was given that started the program; what was not reached, as before.
MARKS = 1 << 31
MARK_COUNT = 512


class Kind(enum.IntEnum, shape=4):
    """What a message is. Memory is accessed in multiples of 8 bytes at multiples of 8."""

    OPEN = 1            # begin `session`, if `value` is the present one (0 after power-up), in any order; `sequence` is only repeated
    READ = 2            # `count` bytes of memory from address `value`
    WRITE = 3           # likewise
    READ_REGISTER = 4   # the register at address `count` (registers.Register)
    WRITE_REGISTER = 5  # `value` into the register at address `count`

    # Answers, with the request's `sequence` and, but for FOREIGN, `session`.
    DONE = 8            # `value`: of the register; after OPEN, Opened. After READ, `count` bytes
    FAILED = 9          # done, and the memory or the control port has answered with an error
    INVALID = 10        # not done: address or count are no multiples of 8, or count is not in 8…MAX_DATA
    SKIPPED = 11        # not done: request `value` comes first
    FOREIGN = 12        # not done: `session` is the present one


class Header(data.Struct):
    """The first bytes of every message, the lowest first."""

    session: unsigned(32)
    sequence: unsigned(16)
    kind: unsigned(4)
    count: unsigned(12)
    value: unsigned(32)


class Opened(data.Struct):
    """`Header.value` of the answer to OPEN."""

    #: The sequence number of the next request to be done. The numbers go on from session to session, and so do the answers that are kept.
    expected: unsigned(16)
    window: unsigned(8)
    version: unsigned(8)


_FIELDS = [(name, field.offset, (1 << field.width) - 1) for name, field in Header.as_shape()]
HEADER_BYTES = Header.as_shape().size // 8
CRC_BYTES = 4
#: Bytes of a frame before it is stuffed.
MAX_FRAME = HEADER_BYTES + MAX_DATA + CRC_BYTES


def cobs_encode(data: bytes) -> bytes:
    """The bytes without zeros, and without the zero that ends a frame."""
    stuffed = bytearray()
    for block in data.split(b"\0"):
        while len(block) >= 254:
            stuffed += b"\xff" + block[:254]
            block = block[254:]
        stuffed.append(len(block) + 1)
        stuffed += block
    return bytes(stuffed)


def cobs_decode(stuffed: bytes) -> "bytes | None":
    """The inverse of :func:`cobs_encode`; None if that gives no such bytes."""
    result, position = bytearray(), 0
    while position < len(stuffed):
        code = stuffed[position]
        block = stuffed[position + 1 : position + code]
        position += code
        if not code or position > len(stuffed) or 0 in block:
            return None
        result += block
        if code < 255 and position < len(stuffed):
            result.append(0)
    return bytes(result) if stuffed else None


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request or an answer."""

    session: int
    sequence: int
    kind: Kind
    count: int = 0
    value: int = 0
    data: bytes = b""

    def frame(self) -> bytes:
        """The message as it goes through the pipe, with the zero that ends it."""
        header = sum(getattr(self, name) << offset for name, offset, _ in _FIELDS)
        content = header.to_bytes(HEADER_BYTES, "little") + self.data
        return cobs_encode(content + zlib.crc32(content).to_bytes(CRC_BYTES, "little")) + b"\0"

    @classmethod
    def parse(cls, frame: bytes) -> "Message | None":
        """The message of a frame, given without its zero; None if it is damaged, or has other data than its kind demands."""
        content = cobs_decode(frame)
        if content is None or not HEADER_BYTES + CRC_BYTES <= len(content) <= MAX_FRAME:
            return None
        content, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
        if zlib.crc32(content) != int.from_bytes(crc, "little"):
            return None
        header, data = int.from_bytes(content[:HEADER_BYTES], "little"), content[HEADER_BYTES:]
        fields = {name: header >> offset & mask for name, offset, mask in _FIELDS}
        if fields["kind"] not in Kind._value2member_map_:
            return None
        fields["kind"] = Kind(fields["kind"])
        if len(data) != (fields["count"] if fields["kind"] in (Kind.WRITE, Kind.DONE) else 0):
            return None
        return cls(**fields, data=data)


class Deframer:
    """Messages out of a stream of bytes. `damaged` counts frames that were none."""

    def __init__(self):
        self.damaged = 0
        self._rest = b""

    def feed(self, data: bytes) -> "list[Message]":
        """The messages that end in `data`."""
        *frames, self._rest = (self._rest + data).split(b"\0")
        self._rest = self._rest[: 2 * MAX_FRAME]  # nothing so long can become a message
        messages = [Message.parse(frame) for frame in frames if frame]
        self.damaged += messages.count(None)
        return [message for message in messages if message]
