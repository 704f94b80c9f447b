import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb, stream_get, stream_put
from cocotb.triggers import RisingEdge

from celosia.hw.cobs import CobsDecoder, CobsEncoder, FrameByte
from celosia.hw.link import cobs_decode, cobs_encode

LIMIT = 600


def contents(generator, largest):
    """Frames of few zeros, many, or none; of lengths around those of a block."""
    for size in (1, 2, 253, 254, 255, 256, 508, 509, largest, *(generator.randrange(1, 300) for _ in range(15))):
        if size <= largest:
            zeros = generator.choice((0.0, 0.004, 0.5, 1.0))
            yield bytes(0 if generator.random() < zeros else generator.randrange(1, 256) for _ in range(size))


def damaged(generator, frame):
    """A frame with bytes lost, changed, doubled and inserted; it may hold zeros."""
    result = bytearray()
    for byte in frame:
        fault = generator.random()
        if fault < 0.01:
            continue
        result.append(generator.randrange(256) if fault < 0.02 else byte)
        if fault > 0.99:
            result.append(generator.choice((byte, generator.randrange(256))))
    return bytes(result)


def model(stream):
    """Of each frame in a stream of bytes that ends with a zero: what comes out, and whether it is good."""
    for stuffed in stream.split(b"\0")[:-1]:
        if stuffed:
            content = cobs_decode(stuffed)
            yield content if content is not None and len(content) <= LIMIT else None


@cocotb.test()
async def decodes(dut):
    """What the model does, for good frames and bad ones, too long ones among them; never more than `limit` bytes of any."""
    dut.i_valid.value = 0
    await reset(dut)
    generator, stream = random.Random(1), b""
    for content in contents(generator, LIMIT + 100):
        frame = cobs_encode(content)
        if generator.random() < 0.4:
            frame = damaged(generator, frame)
        stream += frame + b"\0" * generator.choice((1, 1, 2))
    expected, found, shown = list(model(stream)), [], bytearray()
    for byte in [*stream, None, None, None]:
        while byte is not None and generator.random() >= parameters()["probability"]:
            dut.i_valid.value = 0
            await watch(dut, found, shown)
        dut.i_valid.value = int(byte is not None)
        dut.i_data.value = byte or 0
        await watch(dut, found, shown)
    assert found == expected and expected.count(None) > 5 and len(expected) - expected.count(None) > 10


async def watch(dut, found, shown):
    await RisingEdge(dut.clk)
    assert not (dut.o_valid.value and dut.end.value) and not (dut.good.value and not dut.end.value)
    if dut.o_valid.value:
        shown.append(dut.o_data.value.to_unsigned())
        assert len(shown) <= LIMIT
    if dut.end.value:
        found.append(bytes(shown) if dut.good.value else None)
        shown.clear()


@cocotb.test()
async def encodes(dut):
    await reset(dut)
    generator = random.Random(2)
    frames = list(contents(generator, 1040))
    beats = [{"data": byte, "last": int(index == len(frame) - 1)} for frame in frames for index, byte in enumerate(frame)]
    expected = b"".join(cobs_encode(frame) + b"\0" for frame in frames)
    put = cocotb.start_soon(stream_put(dut, "i", beats, shape=FrameByte, probability=parameters()["give"]))
    assert bytes(await stream_get(dut, "o", len(expected), probability=parameters()["take"])) == expected
    await put


@pytest.mark.parametrize("probability", [1.0, 0.3])
def test_decoder(probability):
    run_cocotb(CobsDecoder(LIMIT), __file__, "decodes", {"probability": probability})


@pytest.mark.parametrize(("give", "take"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.1), (0.5, 0.5)])
def test_encoder(give, take):
    run_cocotb(CobsEncoder(), __file__, "encodes", {"give": give, "take": take})


@pytest.mark.parametrize("limit", [0, -1, 2.0])
def test_limit_out_of_range(limit):
    with pytest.raises(ValueError, match=f"limit must be an integer of at least 1, not {limit}"):
        CobsDecoder(limit)
