"""The device's end of the link, against the model that `celosia serve-sim` serves (`sim/link.py`): the same bytes in, the same answers, the same things done."""

import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteRam, AxiRam
from lines import bytes_of, line_of

from celosia.hw.link import MARKS, MAX_DATA, WINDOW, Deframer, Kind, Message, Opened
from celosia.hw.registers import Command, Register
from celosia.hw.server import FrameServer, HostLink
from celosia.sim.link import FrameServer as Model

SIZE = 1 << 16
ANSWERED = 60_000  # cycles in which a window of requests is


class Device:
    """Memory and registers on the buses, and what is done to them. `failing`: addresses that answer with an error."""

    def __init__(self, dut):
        self.dut = dut
        self.memory = AxiRam(AxiBus.from_prefix(dut, "axi"), dut.clk, dut.rst, size=SIZE)
        self.registers = AxiLiteRam(AxiLiteBus.from_prefix(dut, "axil"), dut.clk, dut.rst, size=4096)
        self.failing, self.log, self.received = set(), [], bytearray()
        self.pause = 0.0
        for name, part in (("memory", self.memory), ("register", self.registers)):
            for interface in (part.read_if, part.write_if):
                self._fail(name, interface)
            channels = [getattr(part.write_if, f"{channel}_channel") for channel in ("aw", "w", "b")]
            for channel in [*channels, part.read_if.ar_channel, part.read_if.r_channel]:
                channel.set_pause_generator(self._pauses())

    def _pauses(self):
        while True:
            yield random.random() < self.pause

    def _fail(self, name, interface):
        """Bus models answer with an error where theirs would raise one."""
        access = "_write" if hasattr(interface, "_write") else "_read"
        good = getattr(interface, access)

        async def checked(address, *arguments, **options):
            if (name, address) in self.failing:
                raise ValueError("an error on the bus")
            if access == "_write":
                self.log.append((name, address, bytes(arguments[0])))
            return await good(address, *arguments, **options)

        setattr(interface, access, checked)


class Reference:
    """The model's board, over the same kinds of things."""

    def __init__(self, content):
        self.content, self.registers, self.failing, self.log = bytearray(content), bytearray(4096), set(), []
        self.marks = bytearray(2048)

    def _fails(self, name, address, size, step):
        return any((name, address + k) in self.failing for k in range(0, size, step))

    def read(self, address, size):
        return None if self._fails("memory", address, size, 8) else bytes(self.content[address : address + size])

    def write(self, address, data):
        good = True
        for k in range(0, len(data), 8):
            if ("memory", address + k) in self.failing:
                good = False
                continue
            self.log.append(("memory", address + k, bytes(data[k : k + 8])))
            self.content[address + k : address + k + 8] = data[k : k + 8]
        return good

    def read_register(self, address):
        return None if ("register", address) in self.failing else int.from_bytes(self.registers[address : address + 4], "little")

    def write_register(self, address, value):
        if ("register", address) in self.failing:
            return False
        self.log.append(("register", address, value.to_bytes(4, "little")))
        self.registers[address : address + 4] = value.to_bytes(4, "little")
        return True

    def read_marks(self, index, size):
        return bytes(size)  # no program has run

    def write_marks(self, index, data):
        pass


async def start(dut):
    """A device after reset, its model, and a task that collects what is sent."""
    dut.i_valid.value, dut.store.value, dut.o_ready.value = 0, 0, 0
    await reset(dut)
    device = Device(dut)
    content = random.Random(0).randbytes(SIZE)
    device.memory.write(0, content)
    device.take = 1.0

    async def collect():
        while True:
            ready = random.random() < device.take
            dut.o_ready.value = int(ready)
            await RisingEdge(dut.clk)
            if ready and dut.o_valid.value:
                device.received.append(dut.o_payload.value.to_unsigned())

    cocotb.start_soon(collect())
    return device, Reference(content)


async def give(dut, data, gap=0.0):
    for byte in data:
        while random.random() < gap:
            dut.i_valid.value = 0
            await RisingEdge(dut.clk)
        dut.i_valid.value, dut.i_data.value = 1, byte
        await RisingEdge(dut.clk)
    dut.i_valid.value = 0


async def silence(dut, device, cycles=400):
    """Until nothing is sent for some time."""
    size = -1
    for _ in range(ANSWERED // cycles):
        if size == len(device.received):
            return
        size = len(device.received)
        await ClockCycles(dut.clk, cycles)
    raise AssertionError("it never stops sending")


async def expect(dut, device, model, frames, *, gap=0.0, quiet=400):
    """The bytes of the frames have the answers that the model gives, byte for byte."""
    expected = model.feed(frames)
    await give(dut, frames, gap)
    for _ in range(ANSWERED // 50):
        if len(device.received) >= len(expected):
            break
        await ClockCycles(dut.clk, 50)
    await ClockCycles(dut.clk, quiet)
    found = bytes(device.received)
    device.received.clear()
    assert found == expected, (Deframer().feed(found), Deframer().feed(expected))
    return Deframer().feed(found)


SESSION = 0xC0FF_EE00


def request(generator, sequence, session=SESSION):
    """Any request, some of them wrong."""
    kind = generator.choice((Kind.READ, Kind.WRITE, Kind.READ_REGISTER, Kind.WRITE_REGISTER))
    if kind in (Kind.READ, Kind.WRITE):
        count = 8 * generator.choice((1, 1, 2, 3, generator.randrange(1, 30), MAX_DATA // 8 if generator.random() < 0.3 else 4))
        value = 8 * generator.randrange((SIZE - count) // 8 + 1)
        if generator.random() < 0.1:
            value += generator.choice((1, 4, 7))
        if generator.random() < 0.1:
            count = generator.choice((4, 12, 1020))
        if kind == Kind.READ and generator.random() < 0.05:
            count = generator.choice((0, 1032, 4088))
        return Message(session=session, sequence=sequence, kind=kind, count=count, value=value, data=generator.randbytes(count) if kind == Kind.WRITE else b"")
    return Message(session=session, sequence=sequence, kind=kind, count=4 * generator.randrange(1024), value=generator.getrandbits(32))


def open_frame(previous=0, session=SESSION):
    return Message(session=session, sequence=1, kind=Kind.OPEN, value=previous).frame()


@cocotb.test()
async def does_what_the_model_does(dut):
    """Random requests, one at a time, with errors of the buses; repeated, out of order, of other sessions."""
    device, board = await start(dut)
    model, generator = Model(board), random.Random(parameters()["seed"])
    device.pause, device.take = parameters()["pause"], parameters()["take"]
    assert [answer.kind for answer in await expect(dut, device, model, Message(session=SESSION, sequence=0, kind=Kind.READ_REGISTER).frame())] == [Kind.FOREIGN]
    await expect(dut, device, model, open_frame())
    kinds = set()
    for sequence in range(40):
        message = request(generator, sequence)
        if generator.random() < 0.15:
            name = "memory" if message.kind in (Kind.READ, Kind.WRITE) else "register"
            address = message.value + 8 * generator.randrange(max(message.count // 8, 1)) if name == "memory" else message.count
            device.failing = board.failing = {(name, address)}
        kinds |= {answer.kind for answer in await expect(dut, device, model, message.frame(), gap=generator.choice((0, 0.5)))}
        device.failing = board.failing = set()
        for _ in range(generator.choice((0, 1, 2))):
            other = sequence - generator.randrange(WINDOW) if generator.random() < 0.5 else generator.getrandbits(16)
            session = SESSION if generator.random() < 0.8 else generator.getrandbits(32)
            again = request(generator, other % (1 << 16) if other != sequence + 1 else sequence, session)
            kinds |= {answer.kind for answer in await expect(dut, device, model, again.frame())}
    assert kinds == {Kind.DONE, Kind.FAILED, Kind.INVALID, Kind.SKIPPED, Kind.FOREIGN}
    assert device.log == board.log and device.memory.read(0, SIZE) == board.content


@cocotb.test()
async def sessions(dut):
    device, board = await start(dut)
    model = Model(board)
    for previous, session in ((1, 5), (0, 0), (0, 5), (0, 5), (5, 5), (0, 6), (5, 6), (5, 6), (6, 0), (6, 7)):
        await expect(dut, device, model, open_frame(previous, session))
        await expect(dut, device, model, Message(session=5, sequence=0, kind=Kind.WRITE_REGISTER, count=0x20, value=session).frame())
    answers = await expect(dut, device, model, open_frame(6, 7))
    assert Opened.from_bits(answers[0].value).expected == 1 and device.log == board.log and len(board.log) == 1


@cocotb.test()
async def damaged_bytes(dut):
    """What is no whole frame has no answer and no effect; what follows it has. Among it frames of all kinds that the host never sends, with a right CRC."""
    device, board = await start(dut)
    model, generator = Model(board), random.Random(4)
    await expect(dut, device, model, open_frame())
    for sequence in range(30):
        message = request(generator, sequence)
        frame = bytearray(message.frame())
        for _ in range(generator.choice((1, 1, 3))):
            position = generator.randrange(len(frame))
            match generator.randrange(4):
                case 0:
                    del frame[position]
                case 1:
                    frame[position] ^= 1 << generator.randrange(8)
                case 2:
                    frame[position:position] = frame[position : position + 1]
                case 3:
                    frame.insert(position, generator.randrange(256))
        frame += b"\0" * (not frame.endswith(b"\0"))
        if generator.random() < 0.2:
            frame = generator.randbytes(generator.choice((1, 20, 2500))).replace(b"\0", b"\x01") + b"\0"
        if generator.random() < 0.2:
            frame = Message(session=SESSION, sequence=sequence, kind=generator.choice((Kind.DONE, Kind.FOREIGN, Kind.INVALID)), count=0).frame()
        await expect(dut, device, model, bytes(frame))
        await expect(dut, device, model, message.frame())
    assert device.log == board.log and device.memory.read(0, SIZE) == board.content


@cocotb.test()
async def windows(dut):
    """Requests as a host with a window sends them: without waiting, each up to three times, some lost. All are done once and in order, whatever waits for the line."""
    device, board = await start(dut)
    model, generator = Model(board), random.Random(5)
    device.take = parameters()["take"]
    await expect(dut, device, model, open_frame())
    number, answers = 0, {}
    for _ in range(5):
        batch = [request(generator, number + k) for k in range(WINDOW)]
        expected = Deframer().feed(b"".join(model.feed(message.frame()) for message in batch))
        for _ in range(50):
            missing = [message for message in batch if message.sequence not in answers]
            if not missing:
                break
            for message in missing:
                for _ in range(generator.choice((0, 1, 1, 2))):
                    await give(dut, message.frame())
            await silence(dut, device)
            for answer in Deframer().feed(bytes(device.received)):
                if answer.kind != Kind.SKIPPED:
                    assert answers.setdefault(answer.sequence, answer) == answer
            device.received.clear()
        assert [answers[message.sequence] for message in batch] == expected
        number += WINDOW
    assert device.log == board.log and device.memory.read(0, SIZE) == board.content


@cocotb.test()
async def no_more_than_fits(dut):
    """A host that ignores its credits, while nobody takes the answers and the memory stands still: what finds no room is lost, and what is done is right."""
    device, board = await start(dut)
    model, generator = Model(board), random.Random(6)
    await expect(dut, device, model, open_frame())
    device.take, device.pause = 0.0, 1.0
    messages = [Message(session=SESSION, sequence=k, kind=Kind.WRITE, count=MAX_DATA, value=MAX_DATA * k, data=generator.randbytes(MAX_DATA))
                for k in range(3 * WINDOW)]
    for message in messages:
        await give(dut, message.frame())
    device.take, device.pause = 1.0, 0.0
    await silence(dut, device, 8000)
    kinds = [answer.kind for answer in Deframer().feed(bytes(device.received))]
    assert kinds == [Kind.DONE] * WINDOW
    for message in messages[:WINDOW]:
        model.feed(message.frame())
    assert device.log == board.log and device.memory.read(0, SIZE) == board.content
    device.received.clear()
    await expect(dut, device, model, messages[WINDOW].frame())


@cocotb.test()
async def answers_wait_for_the_line(dut):
    """A slot takes the next answer when the one before has been sent."""
    device, board = await start(dut)
    model = Model(board)
    await expect(dut, device, model, open_frame())
    device.take = 0.05
    requests = [Message(session=SESSION, sequence=k, kind=Kind.READ, count=128, value=128 * k) for k in range(WINDOW + 2)]
    await expect(dut, device, model, b"".join(message.frame() for message in requests), gap=0.97)  # as slowly as a line


@cocotb.test()
async def marks(dut):
    """Cycles from the command's offer on, of retired instructions; of one program after the other, and none of a command that is refused."""
    device, _ = await start(dut)
    sequence = 0

    async def ask(kind, **fields):
        nonlocal sequence
        await give(dut, Message(session=SESSION, sequence=sequence, kind=kind, **fields).frame())
        sequence += kind != Kind.OPEN
        await silence(dut, device, 4000)
        [answer] = Deframer().feed(bytes(device.received))
        device.received.clear()
        return answer

    offers, cycle, expected = [], 0, []

    async def watch():
        nonlocal cycle
        before = 0
        while True:
            await RisingEdge(dut.clk)
            cycle += 1
            if dut.axil_awvalid.value and not before:
                offers.append(cycle)
            before = int(dut.axil_awvalid.value)

    cocotb.start_soon(watch())
    await ask(Kind.OPEN)
    generator, start_command = random.Random(7), Command.const({"start": 1}).as_bits()
    for refused in (False, False, True):
        counts = sorted(generator.sample(range(1, 40), 6)) + [0xFFFF_FFFF, 0xFFFF_FFFF]
        data = b"".join(count.to_bytes(4, "little") for count in counts)
        if not refused:
            assert (await ask(Kind.WRITE, value=MARKS, count=32, data=data)).kind == Kind.DONE
        else:
            device.failing = {("register", Register.COMMAND)}
        offers.clear()
        kind = (await ask(Kind.WRITE_REGISTER, count=Register.COMMAND, value=start_command)).kind
        assert kind == (Kind.FAILED if refused else Kind.DONE) and len(offers) == 1
        times = []
        for _ in range(45):
            await ClockCycles(dut.clk, generator.choice((8, 9, 30)))
            dut.store.value = 1
            await RisingEdge(dut.clk)
            dut.store.value = 0
            times.append(cycle + 1 - offers[0])
        answer = await ask(Kind.READ, value=MARKS, count=24)
        words = [int.from_bytes(answer.data[k : k + 4], "little") for k in range(0, 24, 4)]
        if not refused:
            expected = [times[count - 1] for count in counts[:6]]
        assert words == expected


@pytest.mark.parametrize(("pause", "take"), [(0.0, 1.0), (0.5, 0.3)])
def test_server(pause, take):
    run_cocotb(FrameServer(), __file__, "does_what_the_model_does", {"pause": pause, "take": take, "seed": 1})


@pytest.mark.parametrize("test", ["sessions", "damaged_bytes", "no_more_than_fits", "answers_wait_for_the_line", "marks"])
def test_server_case(test):
    run_cocotb(FrameServer(), __file__, test)


@pytest.mark.parametrize("take", [1.0, 0.05])
def test_window(take):
    run_cocotb(FrameServer(), __file__, "windows", {"take": take})


@cocotb.test()
async def on_a_line(dut):
    """The whole link at its pins: a host's levels in, levels out, at the rate of the line and with the line's own pauses."""
    cycles = parameters()["clock_hz"] / parameters()["baud"]
    dut.rx.value, dut.store.value = 1, 0
    await reset(dut)
    memory = AxiRam(AxiBus.from_prefix(dut, "axi"), dut.clk, dut.rst, size=SIZE)
    AxiLiteRam(AxiLiteBus.from_prefix(dut, "axil"), dut.clk, dut.rst, size=4096)
    content = random.Random(8).randbytes(SIZE)
    memory.write(0, content)
    board = Reference(content)
    model, levels = Model(board), []

    async def listen():
        while True:
            await RisingEdge(dut.clk)
            levels.append(int(dut.tx.value))

    cocotb.start_soon(listen())
    data = random.Random(9).randbytes(128)
    requests = [
        Message(session=SESSION, sequence=1, kind=Kind.OPEN), Message(session=SESSION, sequence=0, kind=Kind.WRITE, count=128, value=256, data=data),
        Message(session=SESSION, sequence=1, kind=Kind.READ, count=256, value=192), Message(session=SESSION, sequence=2, kind=Kind.READ, count=8, value=0),
    ]
    frames = b"\xff" * 3 + b"\0" + b"".join(message.frame() for message in requests)
    expected = model.feed(frames)
    for level in line_of(frames, cycles, random.Random(10), gap=0.2):
        dut.rx.value = level
        await RisingEdge(dut.clk)
    await ClockCycles(dut.clk, round(10 * cycles * len(expected)) + 4000)
    received = bytes(byte for _, byte in bytes_of(levels, cycles))
    assert received == expected and memory.read(0, SIZE) == board.content


def test_host_link():
    values = {"clock_hz": 100e6, "baud": 12_500_000}
    run_cocotb(HostLink(values["clock_hz"], values["baud"]), __file__, "on_a_line", values)


def test_host_link_out_of_range():
    with pytest.raises(ValueError, match=r"baud must be an integer in .* at a clock of 10 MHz, not 3000000"):
        HostLink(10e6)
