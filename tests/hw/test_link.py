"""The frames of the host link."""

import random
import zlib

import pytest

from celosia.hw.link import MAX_DATA, MAX_FRAME, WINDOW, Deframer, Header, Kind, Message, cobs_decode, cobs_encode


@pytest.mark.parametrize(("data", "stuffed"), [
    (b"", b"\x01"),
    (b"\0", b"\x01\x01"),
    (b"\0\0", b"\x01\x01\x01"),
    (b"\0\x11\0", b"\x01\x02\x11\x01"),
    (b"\x11\x22\0\x33", b"\x03\x11\x22\x02\x33"),
    (b"\x11\x22\x33\x44", b"\x05\x11\x22\x33\x44"),
    (bytes(range(1, 254)), b"\xfe" + bytes(range(1, 254))),
    (bytes(range(256)), b"\x01\xff" + bytes(range(1, 255)) + b"\x02\xff"),
])
def test_cobs(data, stuffed):
    """The examples of the paper and of those who have implemented it."""
    assert cobs_encode(data) == stuffed and cobs_decode(stuffed) == data


def any_bytes(generator, size):
    """With few zeros, many, or none."""
    zeros = generator.choice((0.0, 0.004, 0.5))
    return bytes(0 if generator.random() < zeros else generator.randrange(1, 256) for _ in range(size))


def test_cobs_of_all_lengths():
    generator = random.Random(1)
    for size in [*range(520), MAX_FRAME - 1, MAX_FRAME]:
        for data in (any_bytes(generator, size), bytes(size), b"\xff" * size):
            stuffed = cobs_encode(data)
            assert 0 not in stuffed and len(stuffed) <= size + size // 254 + 1 and cobs_decode(stuffed) == data


@pytest.mark.parametrize("stuffed", [b"", b"\x02", b"\x05abc", b"\x03a\0", b"\0", b"\x01\0"])
def test_cobs_refuses(stuffed):
    assert cobs_decode(stuffed) is None


def random_message(generator):
    kind = generator.choice(list(Kind))
    count = 8 * generator.choice((1, 2, MAX_DATA // 8, generator.randrange(1, MAX_DATA // 8)))
    data = any_bytes(generator, count) if kind in (Kind.WRITE, Kind.DONE) else b""
    return Message(session=generator.choice((0, 0xFFFF_FFFF, generator.getrandbits(32))), sequence=generator.choice((0, 0xFFFF, generator.getrandbits(16))), kind=kind,
                   count=count, value=generator.choice((0, 0xFFFF_FFFF, generator.getrandbits(32))), data=data)


def test_message():
    generator = random.Random(2)
    for _ in range(300):
        message = random_message(generator)
        frame = message.frame()
        assert frame.index(0) == len(frame) - 1 and Message.parse(frame[:-1]) == message
        content = cobs_decode(frame[:-1])
        header = Header.from_bits(int.from_bytes(content[:12], "little"))
        assert all(getattr(header, name) == getattr(message, name) for name in ("session", "sequence", "kind", "count", "value"))
        assert content[12:-4] == message.data and int.from_bytes(content[-4:], "little") == zlib.crc32(content[:-4])


def test_layout():
    """Which byte is what: other hosts may rely on it."""
    frame = Message(session=0x04030201, sequence=0x0605, kind=Kind.READ, count=0x108, value=0x0C0B0A09).frame()
    assert cobs_decode(frame[:-1])[:12] == bytes((1, 2, 3, 4, 5, 6, 0x82, 0x10, 9, 10, 11, 12)) and WINDOW == 4


def test_damage_is_seen():
    """Every single flipped bit, lost byte and doubled byte of some frames."""
    generator = random.Random(3)
    for message in (random_message(generator) for _ in range(4)):
        frame = message.frame()[:-1]
        damaged = [frame[:position] + bytes([frame[position] ^ 1 << bit]) + frame[position + 1 :] for position in range(len(frame)) for bit in range(8)]
        damaged += [frame[:position] + frame[position + 1 :] for position in range(len(frame))]
        damaged += [frame[:position] + frame[position : position + 1] + frame[position:] for position in range(len(frame))]
        for other in damaged:
            assert other == frame or Message.parse(other) in (None, message)


@pytest.mark.parametrize("content", [
    b"", bytes(11),
    bytes(12),                                     # no kind
    bytes(6) + b"\x06\0" + bytes(4),               # nor is 6
    bytes(6) + b"\x83\0" + bytes(4) + bytes(16),   # WRITE of 8 bytes with 16
    bytes(6) + b"\x82\0" + bytes(4) + bytes(8),    # READ with data
    bytes(6) + b"\x83\x40" + bytes(4) + bytes(MAX_DATA + 8),
])
def test_what_is_no_message(content):
    assert Message.parse(cobs_encode(content + zlib.crc32(content).to_bytes(4, "little"))) is None


def test_deframer():
    """Whole frames between junk, in pieces of any size; junk without an end is not kept."""
    generator, deframer = random.Random(4), Deframer()
    messages = [random_message(generator) for _ in range(50)]
    stream = b"".join(b"\0" * generator.randrange(3) + generator.choice((b"", b"\x05junk\0")) + message.frame() for message in messages)
    received, position = [], 0
    while position < len(stream):
        size = generator.choice((1, 2, 700, 3000))
        received += deframer.feed(stream[position : position + size])
        position += size
    assert received == messages and deframer.damaged == stream.count(b"\x05junk\0")
    for _ in range(100):
        assert deframer.feed(b"\xff" * 1000) == [] and len(deframer._rest) <= 2 * MAX_FRAME
    assert deframer.feed(b"\0" + messages[0].frame()) == messages[:1]
