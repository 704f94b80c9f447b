"""The device's side of the host link, as the gateware does it (`hw/server.py`), for boards that are simulated."""

from collections import deque
from typing import Protocol

from ..hw.link import MARK_COUNT, MARKS, MAX_DATA, VERSION, WINDOW, Deframer, Kind, Message, Opened

__all__ = ["Board", "FrameServer"]


class Board(Protocol):
    """What a link gives access to. Addresses and sizes are multiples of 8."""

    def read(self, address: int, size: int) -> "bytes | None":
        """Bytes of the memory; None if it answers with an error."""

    def write(self, address: int, data: bytes) -> bool:
        """Into the memory; False if it answers with an error."""

    def read_register(self, address: int) -> "int | None":
        """A register's value; None if the control port refuses."""

    def write_register(self, address: int, value: int) -> bool:
        """Into a register; False if the control port refuses."""

    def read_marks(self, index: int, size: int) -> bytes:
        """Cycles of the marks from `index` on, as :data:`hw.link.MARKS` describes."""

    def write_marks(self, index: int, data: bytes) -> None:
        """Marks from `index` on."""


class FrameServer:
    """Answers the frames of one host after the other, whose window is `window`. `done` counts the requests it has done."""

    def __init__(self, board: Board, window: int = WINDOW):
        self._board, self._deframer, self._window = board, Deframer(), window
        self._session = self._expected = self.done = 0
        # The answers to the last requests: (kind, count, value, data). At first there is none to be asked for.
        self._answers = deque([(Kind.INVALID, 0, 0, b"")] * window, window)

    def feed(self, data: bytes) -> bytes:
        """What the device answers to bytes from the host."""
        return b"".join(answer.frame() for message in self._deframer.feed(data) if (answer := self._answer(message)))

    def _answer(self, request):
        if request.kind >= Kind.DONE:
            return None  # one's own frames, come back
        session = request.session
        if request.kind == Kind.OPEN:
            if session in (0, self._session) or request.value != self._session:
                kind = Kind.DONE if session and session == self._session else Kind.FOREIGN
            else:
                kind, self._session = Kind.DONE, session
            opened = Opened.const({"expected": self._expected, "window": self._window, "version": VERSION}).as_bits()
            return Message(session=self._session, sequence=request.sequence, kind=kind, value=opened if kind == Kind.DONE else 0)
        if session != self._session:
            return Message(session=self._session, sequence=request.sequence, kind=Kind.FOREIGN)
        behind = (self._expected - request.sequence) % (1 << 16)
        if behind == 0:
            self._answers.append(self._do(request))
            self._expected = (self._expected + 1) % (1 << 16)
            self.done += 1
            behind = 1
        if behind > self._window:
            return Message(session=session, sequence=request.sequence, kind=Kind.SKIPPED, value=self._expected)
        kind, count, value, data = self._answers[-behind]
        return Message(session=session, sequence=request.sequence, kind=kind, count=count, value=value, data=data)

    def _do(self, request):
        """Kind, count, value and data of the answer."""
        board, count, value = self._board, request.count, request.value
        if request.kind == Kind.READ_REGISTER:
            result = board.read_register(count)
            return (Kind.FAILED, 0, 0, b"") if result is None else (Kind.DONE, 0, result, b"")
        if request.kind == Kind.WRITE_REGISTER:
            return Kind.DONE if board.write_register(count, value) else Kind.FAILED, 0, 0, b""
        if value % 8 or count % 8 or not 8 <= count <= MAX_DATA:
            return Kind.INVALID, 0, 0, b""
        index = (value - MARKS) // 4 % MARK_COUNT
        if request.kind == Kind.READ:
            data = board.read_marks(index, count) if value >= MARKS else board.read(value, count)
            return (Kind.FAILED, 0, 0, b"") if data is None else (Kind.DONE, count, 0, data)
        if value >= MARKS:
            board.write_marks(index, request.data)
        elif not board.write(value, request.data):
            return Kind.FAILED, 0, 0, b""
        return Kind.DONE, 0, 0, b""
