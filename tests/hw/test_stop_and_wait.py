"""The device's end of the link with a window of one request, against the model (`sim/link.py`): the same bytes in, the same answers, the same things done."""

import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteRam
from lines import bytes_of, line_of
from test_server import SESSION, Reference, give, open_frame, request

from celosia.hw.link import MARKS, MAX_DATA, Deframer, Kind, Message
from celosia.hw.stop_and_wait import StopAndWaitLink, StopAndWaitServer
from celosia.sim.link import FrameServer as Model

SIZE = 128 << 10
PORT = ("address", "write", "write_data")


class Board(Reference):
    """Memory of the size of the device's, and no marks."""

    def read(self, address, size):
        return super().read(address, size) if address + size <= SIZE else None

    def write(self, address, data):
        return address + len(data) <= SIZE and super().write(address, data)

    def read_marks(self, index, size):
        return None

    def write_marks(self, index, data):
        raise AssertionError("there are none")


class Device:
    """The device's memory and registers; what it sends is in `received`. `ready`, `take`: how often the memory and the line do."""

    def __init__(self, dut, board, ready=1.0, take=1.0):
        self.dut, self.board, self.ready, self.take = dut, board, ready, take
        self.memory, self.received = bytearray(board.content), bytearray()
        self.registers = AxiLiteRam(AxiLiteBus.from_prefix(dut, "axil"), dut.clk, dut.rst, size=4096)
        cocotb.start_soon(self._remember())

    async def _remember(self):
        dut = self.dut
        while True:
            ready = random.random() < self.ready
            dut.memory_ready.value = int(ready)
            await RisingEdge(dut.clk)
            dut.memory_read_data.value = random.getrandbits(64)
            if ready and dut.memory_valid.value:
                address, write, data = (getattr(dut, f"memory_{name}").value.to_unsigned() for name in PORT)
                for k in range(8):
                    if write >> k & 1:
                        self.memory[8 * address + k] = data
                if not write:
                    dut.memory_read_data.value = int.from_bytes(self.memory[8 * address : 8 * address + 8], "little")

    async def listen(self):
        dut = self.dut
        while True:
            ready = random.random() < self.take
            dut.o_ready.value = int(ready)
            await RisingEdge(dut.clk)
            if ready and dut.o_valid.value:
                self.received.append(dut.o_payload.value.to_unsigned())

    async def expect(self, model, frame):
        """A frame, and the answer that the model gives to it."""
        expected = model.feed(frame)
        self.received.clear()
        await give(self.dut, frame, random.choice((0, 0.5)))
        for _ in range(4000):
            if len(self.received) >= len(expected):
                break
            await ClockCycles(self.dut.clk, 50)
        await ClockCycles(self.dut.clk, 50)
        assert self.received == expected, (Deframer().feed(bytes(self.received)), Deframer().feed(expected))
        assert self.memory == self.board.content and self.registers.read(0, 4096) == self.board.registers
        return Deframer().feed(expected)


async def start(dut, **shares):
    board = Board(random.Random(0).randbytes(SIZE))
    dut.i_valid.value, dut.o_ready.value, dut.memory_ready.value = 0, 0, 0
    await reset(dut)
    device = Device(dut, board, **shares)
    cocotb.start_soon(device.listen())
    return device, Model(board, window=1)


@cocotb.test()
async def does_what_the_model_does(dut):
    """Random requests, among them wrong ones and such as reach beyond the memory; again, out of order, of other sessions, damaged."""
    device, model = await start(dut, ready=parameters()["ready"], take=parameters()["take"])
    generator, kinds = random.Random(parameters()["seed"]), set()
    kinds |= {answer.kind for answer in await device.expect(model, Message(session=SESSION, sequence=0, kind=Kind.READ_REGISTER).frame())}
    await device.expect(model, open_frame())
    for sequence in range(50):
        message = request(generator, sequence)
        if message.kind in (Kind.READ, Kind.WRITE) and generator.random() < 0.2:
            value = generator.choice((SIZE - message.count, SIZE - message.count + 8, SIZE, 1 << 30, MARKS))
            if not (message.kind == Kind.WRITE and value == MARKS):
                message = Message(session=SESSION, sequence=sequence, kind=message.kind, count=message.count, value=value, data=message.data)
        frame = bytearray(message.frame())
        if generator.random() < 0.2:
            position = generator.randrange(len(frame) - 1)
            frame[position] = frame[position] ^ 1 << generator.randrange(8) or 255
            await device.expect(model, bytes(frame))
        kinds |= {answer.kind for answer in await device.expect(model, message.frame())}
        for _ in range(generator.choice((0, 1, 2))):
            stub = Message(session=SESSION, sequence=sequence, kind=Kind.READ_REGISTER)  # how a host asks for the answer to a WRITE alone
            await device.expect(model, generator.choice((message, stub) if message.kind == Kind.WRITE else (message,)).frame())
        if generator.random() < 0.3:
            other = request(generator, generator.choice((sequence - 1, sequence + 2, sequence + 500)) % (1 << 16))
            kinds |= {answer.kind for answer in await device.expect(model, other.frame())}
    assert kinds == {Kind.DONE, Kind.FAILED, Kind.INVALID, Kind.SKIPPED, Kind.FOREIGN}


@cocotb.test()
async def sessions(dut):
    device, model = await start(dut)
    for previous, session in ((1, 5), (0, 0), (0, 5), (0, 5), (5, 5), (0, 6), (5, 6), (5, 6), (6, 0), (6, 7)):
        await device.expect(model, open_frame(previous, session))
        await device.expect(model, Message(session=5, sequence=0, kind=Kind.WRITE_REGISTER, count=0x20, value=session).frame())
    assert model.done == 1


@cocotb.test()
async def deaf_while_it_answers(dut):
    """What comes meanwhile is lost, and does not harm what comes then."""
    device, model = await start(dut)
    await device.expect(model, open_frame())
    device.received.clear()
    device.take = 0.0
    message = Message(session=SESSION, sequence=0, kind=Kind.WRITE, count=MAX_DATA, value=0, data=random.Random(1).randbytes(MAX_DATA))
    await give(dut, message.frame())
    await ClockCycles(dut.clk, 5000)
    for _ in range(3):
        await give(dut, Message(session=SESSION, sequence=1, kind=Kind.WRITE_REGISTER, count=0x20, value=1).frame())
    device.take = 1.0
    await ClockCycles(dut.clk, 500)
    assert device.received == model.feed(message.frame())
    await device.expect(model, b"\0" + Message(session=SESSION, sequence=1, kind=Kind.READ, count=MAX_DATA, value=8).frame())


@cocotb.test()
async def on_a_line(dut):
    """The whole link at its pins, at the rate of the board."""
    cycles = 8
    dut.rx.value, dut.memory_ready.value = 1, 1
    await reset(dut)
    board = Board(random.Random(8).randbytes(SIZE))
    model, device, levels = Model(board, window=1), Device(dut, board), []

    async def listen():
        while True:
            await RisingEdge(dut.clk)
            levels.append(int(dut.tx.value))

    cocotb.start_soon(listen())
    for message in (
        Message(session=SESSION, sequence=1, kind=Kind.OPEN),
        Message(session=SESSION, sequence=0, kind=Kind.WRITE, count=128, value=256, data=random.Random(9).randbytes(128)),
        Message(session=SESSION, sequence=1, kind=Kind.READ, count=256, value=192),
    ):
        expected = model.feed(message.frame())
        levels.clear()
        for level in line_of(message.frame(), cycles, random.Random(10), gap=0.2):
            dut.rx.value = level
            await RisingEdge(dut.clk)
        await ClockCycles(dut.clk, 10 * cycles * len(expected) + 6000)
        assert bytes(byte for _, byte in bytes_of(levels, cycles)) == expected
    assert device.memory == board.content


@pytest.mark.parametrize(("ready", "take"), [(1.0, 1.0), (0.5, 0.3)])
def test_server(ready, take):
    run_cocotb(StopAndWaitServer(), __file__, "does_what_the_model_does", {"ready": ready, "take": take, "seed": 1})


@pytest.mark.parametrize("test", ["sessions", "deaf_while_it_answers"])
def test_server_case(test):
    run_cocotb(StopAndWaitServer(), __file__, test)


def test_link():
    run_cocotb(StopAndWaitLink(24e6), __file__, "on_a_line")


def test_link_out_of_range():
    with pytest.raises(ValueError, match=r"baud must be an integer in .* at a clock of 10 MHz, not 3000000"):
        StopAndWaitLink(10e6)
