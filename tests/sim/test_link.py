"""The device's side of the link: each request once, in order; the last ones answered again."""

import random

import pytest
from boards import Recorder

from celosia.hw.link import MARKS, MAX_DATA, VERSION, WINDOW, Deframer, Kind, Message, Opened
from celosia.sim.link import FrameServer

SESSION = 0x1234_5678


class Client:
    """Asks, and hands over what is answered."""

    def __init__(self, board):
        self.board = board
        self.server = FrameServer(board)
        self.session = SESSION

    def ask(self, kind, sequence=0, **fields):
        fields = {"session": self.session} | fields
        answers = Deframer().feed(self.server.feed(Message(kind=kind, sequence=sequence, **fields).frame()))
        assert len(answers) == 1
        return answers[0]

    def open(self, previous=0, **fields):
        return self.ask(Kind.OPEN, value=previous, **fields)


@pytest.fixture
def client():
    client = Client(Recorder(4096))
    client.open()
    return client


def test_open():
    client = Client(Recorder(4096))
    answer = client.open(sequence=77)
    opened = Opened.from_bits(answer.value)
    assert (answer.kind, answer.sequence, answer.session) == (Kind.DONE, 77, SESSION)
    assert (opened.expected, opened.window, opened.version) == (0, WINDOW, VERSION)
    assert client.open().kind == Kind.DONE, "an answer that was lost comes again"
    for previous, session in ((0, 5), (6, 5), (SESSION, 0)):
        answer = client.open(previous, session=session)
        assert (answer.kind, answer.session) == (Kind.FOREIGN, SESSION)
    client.ask(Kind.WRITE_REGISTER, 0, count=0x20, value=3)
    assert Opened.from_bits(client.open(SESSION, session=5).value).expected == 1, "numbers go on"
    assert client.ask(Kind.READ_REGISTER, 1, count=0x20).kind == Kind.FOREIGN
    answer = client.ask(Kind.READ_REGISTER, 1, session=5, count=0x20)
    assert (answer.kind, answer.value) == (Kind.DONE, 3)


def test_a_request_is_done_once(client):
    for sequence in range(3 * WINDOW):
        for _ in range(3):
            assert client.ask(Kind.WRITE_REGISTER, sequence, count=0x20, value=sequence).kind == Kind.DONE
        for behind in range(1, min(sequence, WINDOW - 1) + 1):  # whatever it says: it is only an answer that is asked for
            assert client.ask(Kind.READ_REGISTER, sequence - behind).kind == Kind.DONE
    assert client.board.log == [(0x20, value) for value in range(3 * WINDOW)] and client.server.done == 3 * WINDOW


def test_answers_are_kept(client):
    """Also when what they tell is no longer so."""
    client.ask(Kind.WRITE, 0, count=8, value=64, data=b"earlier!")
    first = client.ask(Kind.READ, 1, count=8, value=64)
    client.ask(Kind.WRITE, 2, count=8, value=64, data=b"later...")
    assert client.ask(Kind.READ, 1, count=8, value=64) == first and first.data == b"earlier!"
    assert client.ask(Kind.READ, 3, count=8, value=64).data == b"later..."


def test_order(client):
    for sequence in (1, WINDOW, 0xFFFF - WINDOW, 1000):
        answer = client.ask(Kind.WRITE_REGISTER, sequence, count=0x20, value=1)
        assert (answer.kind, answer.value, answer.sequence) == (Kind.SKIPPED, 0, sequence)
    assert client.ask(Kind.READ_REGISTER, 0xFFFF).kind == Kind.INVALID, "nothing has been done yet"
    assert not client.board.log and client.server.done == 0


def test_sequence_numbers_wrap(client):
    client.server._expected = 0xFFFE
    for sequence in (0xFFFE, 0xFFFF, 0, 1):
        assert client.ask(Kind.WRITE_REGISTER, sequence, count=0x20, value=sequence).kind == Kind.DONE
    assert client.ask(Kind.WRITE_REGISTER, 0xFFFF, count=0x20, value=9).kind == Kind.DONE and client.server.done == 4


@pytest.mark.parametrize(("value", "count", "kind"), [
    (0, 8, Kind.DONE), (4096 - MAX_DATA, MAX_DATA, Kind.DONE), (4096, 8, Kind.FAILED), (4088, 16, Kind.FAILED), (MARKS - 8, 8, Kind.FAILED),
    (4, 8, Kind.INVALID), (8, 4, Kind.INVALID), (0, 0, Kind.INVALID),
])
@pytest.mark.parametrize("write", [False, True])
def test_memory(client, value, count, kind, write):
    data = random.Random(1).randbytes(count)
    if not write:
        client.board.content[: 4096] = random.Random(2).randbytes(4096)
        data = bytes(client.board.content[value : value + count])
    answer = client.ask(Kind.WRITE, value=value, count=count, data=data) if write else client.ask(Kind.READ, value=value, count=count)
    assert answer.kind == kind and answer.data == (data if kind == Kind.DONE and not write else b"")
    if kind == Kind.DONE:
        assert client.board.content[value : value + count] == data


def test_read_of_too_much(client):
    assert client.ask(Kind.READ, value=0, count=MAX_DATA + 8).kind == Kind.INVALID


def test_marks(client):
    data = random.Random(3).randbytes(16)
    assert client.ask(Kind.WRITE, 0, value=MARKS + 2040, count=16, data=data).kind == Kind.DONE
    assert client.board.marks[510:] + client.board.marks[:2] == [int.from_bytes(data[k : k + 4], "little") for k in range(0, 16, 4)]
    assert client.ask(Kind.READ, 1, value=MARKS + 2040, count=16).data == data


def test_registers_that_refuse(client):
    client.board.refused = {0x18}
    assert client.ask(Kind.READ_REGISTER, 0, count=0x18).kind == Kind.FAILED
    assert client.ask(Kind.WRITE_REGISTER, 1, count=0x18, value=1).kind == Kind.FAILED
    assert client.ask(Kind.READ_REGISTER, 0, count=0x20).kind == Kind.FAILED, "the answer it had"


def test_what_is_not_answered(client):
    """Answers, damaged frames, requests of no kind."""
    for kind in (Kind.DONE, Kind.SKIPPED, Kind.FOREIGN):
        assert client.server.feed(Message(session=SESSION, sequence=0, kind=kind).frame()) == b""
    frame = Message(session=SESSION, sequence=0, kind=Kind.WRITE_REGISTER, count=0x20).frame()
    assert client.server.feed(b"\x01" + frame) == b"" and not client.board.log
    assert client.server.feed(frame)
