"""The host's side of the link, over a line that loses, flips, doubles and inserts bytes, in simulated time: not one wrong byte is taken, nothing is done twice."""

import json
import random

import pytest
from boards import Recorder

from celosia.host.link import Link, LinkError
from celosia.host.link_bench import main, measure
from celosia.hw.link import MAX_DATA, WINDOW, Deframer, Kind
from celosia.sim.device import DeviceError
from celosia.sim.line import Faults, Line
from celosia.sim.link import FrameServer

SIZE = 1 << 14


def opened(faults=None, seed=1, **options):
    board = Recorder(SIZE)
    line = Line(FrameServer(board), faults=faults, seed=seed)
    return board, line, Link(line, seed=seed, **options)


class Transfers:
    """Random reads, writes and register writes, each compared with what a host believes that the board holds."""

    def __init__(self, seed, largest):
        self.random, self.largest = random.Random(seed), largest
        self.done = self.failed = 0
        self.expected = bytearray(SIZE)
        self.number = 0

    def run(self, link, board, count):
        """`count` transfers, or fewer if the link ends them, whose error it returns."""
        for _ in range(count):
            size = 8 * self.random.randrange(1, self.largest // 8 + 1)
            address = 8 * self.random.randrange((SIZE - size) // 8 + 1)
            try:
                match self.random.choice(("read", "write", "register")):
                    case "read":
                        assert link.read(address, size) == self.expected[address : address + size]
                    case "write":
                        self.write(link, board, address, self.random.randbytes(size))
                    case "register":
                        self.number += 1
                        board.log.clear()
                        assert link.write_register(0x20, self.number)
                        assert board.log == [(0x20, self.number)] and link.read_register(0x20) == self.number
            except LinkError as error:
                self.failed += 1
                return str(error)
            finally:
                assert all(count <= 1 for count in board.writes) and len(board.log) <= 1, "something was done twice"
            self.done += 1
        return None

    def write(self, link, board, address, data):
        board.writes = [0] * SIZE
        self.expected[address : address + len(data)] = data
        link.write(address, data)
        assert board.content == self.expected
        assert board.writes == [int(address <= position < address + len(data)) for position in range(SIZE)], "a byte was not written exactly once"
        board.writes = [0] * SIZE


@pytest.mark.parametrize(("rate", "largest"), [(1e-4, 8000), (1e-3, 4000), (1e-2, 600)])
@pytest.mark.parametrize("kinds", ["lose", "flip", "double", "insert", "lose flip double insert delay"])
def test_damaged_bytes(kinds, rate, largest):
    """70 transfers each, 1,050 in all: every one comes to its end, and is right."""
    names = kinds.split()
    faults = Faults(**{name: rate / min(len(names), 4) for name in names if name != "delay"}, delay=0.02 * ("delay" in names), delay_seconds=0.2)
    board, line, link = opened(faults, seed=len(kinds))
    transfers = Transfers(len(kinds), largest)
    assert transfers.run(link, board, 70) is None and transfers.done == 70
    assert link.counters.damaged > 0 or link.counters.resent > 0, "nothing was damaged"


def test_a_device_that_is_restarted():
    """100 times in the midst of something: what is not complete ends in an error at once, and nobody takes what the memory holds afterwards for what was written."""
    transfers, sentences = Transfers(1, 4000), set()
    for seed in range(100):
        board, line, link = opened(Faults(flip=1e-4), seed=seed)
        link.write(0, bytes(transfers.expected))
        board.writes = [0] * SIZE
        moment = line.now() + random.Random(seed).uniform(0, 0.2)

        def restart(now, line=line, moment=moment):
            if now >= moment and line.server.done:
                line.cut()
                line.server, line.before = FrameServer(Recorder(SIZE)), lambda now: None

        line.before = restart
        error = transfers.run(link, board, 100)
        assert error and line.now() < moment + 1, "an error that came late"
        sentences.add(error)
        transfers.expected = bytearray(board.content)
    assert sentences == {"the simulated line has been restarted or taken over by another host, and what its memory held is lost; run again"}
    assert transfers.failed == 100 and transfers.done > 100


def test_a_device_that_is_gone():
    """For good: an error when the time is up, that names the request."""
    for seed in range(20):
        board, line, link = opened(seed=seed)
        link.read_register(0)
        line.server = None
        start = line.now()
        with pytest.raises(LinkError, match=r"the simulated line has not answered (READ|WRITE) of [\d,]+ bytes at 0x\w+, sent \d+ times within 5 s"
                                            r"|the simulated line does not answer any more, OPEN was sent \d+ times within 5 s"):
            link.write(0, bytes(5000)) if seed % 2 else link.read(0, 5000)
        assert 4.99 < line.now() - start < 5.2


def test_a_register_that_nobody_answers():
    _, line, link = opened(timeout_seconds=0.5)
    line.server = None
    with pytest.raises(LinkError, match="has not answered WRITE_REGISTER 0x010, sent .* times within 0.5 s"):
        link.write_register(0x10, 1)


def test_nobody_there():
    line = Line(None)
    with pytest.raises(LinkError, match=r"the simulated line has not answered OPEN, sent 5\d times within 5 s \(0 frames have come back, 0 damaged ones\); check"):
        Link(line)
    assert 4.99 < line.now() < 5.2


def test_nothing_but_noise():
    class Noise:
        def feed(self, data):
            return random.Random(len(data)).randbytes(100) + b"\0"

    with pytest.raises(LinkError, match=r"\(0 frames have come back, [1-9]\d+ damaged ones\)"):
        Link(Line(Noise()))


def test_loopback():
    """A cable from TX to RX: one's own requests answer nothing."""
    class Echo:
        def feed(self, data):
            return data

    with pytest.raises(LinkError, match="has not answered OPEN"):
        Link(Line(Echo()))


def test_another_host_takes_over():
    board, line, link = opened()
    link.write(0, bytes(range(8)))
    other = Link(line, seed=2)
    assert other.read(0, 8) == bytes(range(8))
    with pytest.raises(LinkError, match="restarted or taken over"):
        link.read(0, 8)


def test_after_an_interrupt():
    """Ctrl-C in the midst of a transfer: what has been sent and not answered confuses nothing that follows."""
    for seed in range(20):
        board, line, link = opened(seed=seed)
        moment = line.now() + random.Random(seed).uniform(0, 0.02)

        def interrupt(now, line=line, moment=moment):
            if now >= moment:
                line.before = lambda now: None
                raise KeyboardInterrupt

        line.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            link.write(0, bytes(8192))
        assert link.write_register(0x20, 5) and board.log == [(0x20, 5)]
        data = random.Random(seed).randbytes(8192)
        link.write(0, data)
        assert link.read(0, 8192) == data


def test_memory_that_fails():
    board, _, link = opened()
    for access in (lambda: link.read(SIZE - 4096, 8192), lambda: link.write(SIZE - 4096, bytes(8192))):
        with pytest.raises(DeviceError, match=r"the memory of the simulated line has answered (READ|WRITE) of 1,024 bytes at 0x4000 with an error"):
            access()
        assert link.write_register(0x20, 1) and board.log == [(0x20, 1)]
        board.log.clear()


def test_registers_that_refuse():
    board, _, link = opened()
    board.refused = {0x18}
    assert link.read_register(0x18) is None and not link.write_register(0x18, 1) and link.write_register(0x1C, 1)


def test_nothing_to_do():
    _, line, link = opened()
    sent = line.sent[0]
    assert link.read(0, 0) == b"" and link.write(0, b"") is None and line.sent[0] == sent


def test_sequence_numbers_wrap():
    board, line, link = opened(Faults(flip=2e-4))
    line.server._expected = link._sequence = 0xFFF0
    Transfers(3, 4000).write(link, board, 0, random.Random(1).randbytes(SIZE))


def test_credits():
    """Never more requests under way than the device holds, whatever happens."""
    class Counting(FrameServer):
        ahead = 0

        def feed(self, data):
            for message in Deframer().feed(data):
                ahead = (message.sequence - self._expected) % (1 << 16)
                if message.kind != Kind.OPEN and ahead < 1 << 15:
                    self.ahead = max(self.ahead, ahead)
            return super().feed(data)

    line = Line(Counting(Recorder(SIZE)), faults=Faults(lose=5e-4), latency_seconds=0.01)
    link = Link(line, seed=1)
    for _ in range(5):
        link.write(0, bytes(SIZE))
    assert line.server.ahead == WINDOW - 1


def test_large_frames_come_back():
    """After the line has got better."""
    _, line, link = opened(Faults(flip=1e-2))
    link.write(0, bytes(1000))
    assert link.counters.reopened > 0 and link._data < MAX_DATA
    line.faults = Faults()
    for _ in range(4):
        link.write(0, bytes(SIZE))
    assert link._data == MAX_DATA


def test_rate_of_the_line():
    """Bulk transfers take at least 90 % of 3 Mbaud, also with a latency of 4 ms each way."""
    for latency in (0.0001, 0.001, 0.004):
        row = measure(1 << 17, latency)
        assert row["write"] >= 0.9 and row["read"] >= 0.9 and row["sent_again"] == 0


def test_figures(capsys, monkeypatch):
    monkeypatch.setattr("celosia.host.link_bench._BYTES", 1 << 14)
    outputs = []
    for _ in range(2):
        main(["--json"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and all({"write", "read", "latency_ms", "rate"} <= set(row) for row in json.loads(outputs[0])["rows"])
    main([])
    assert "sent again" in capsys.readouterr().out
