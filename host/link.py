"""The host's side of the link to a board: whatever the pipe does to the bytes, each request is done once, and its answer is the one to it."""

import random
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from ..hw.link import MAX_DATA, VERSION, WINDOW, Deframer, Kind, Message, Opened
from ..sim.device import DeviceError

__all__ = ["Link", "LinkCounters", "LinkError", "Pipe"]

#: A request without an answer is sent again after so long at most: a window in both directions takes 28 ms at 3 Mbaud, a USB bridge's buffers at worst 16 ms.
RESEND_SECONDS = 0.1
#: And after so long at least; in between after twice what answers have lately taken, the first time.
_RESEND_SECONDS = 0.005
#: After so long without any progress the link is given up.
TIMEOUT_SECONDS = 5.0
#: Bytes that a READ or WRITE moves at least, on a pipe that damages longer frames.
_MIN_DATA = 64
#: Times a READ or WRITE is sent before it is cut into smaller ones.
_SENDS = 3
#: Answers in a row, none of them asked for twice, after which READ and WRITE move twice as much.
_SMOOTH = 64


class LinkError(DeviceError):
    """A link that is lost, or never was one."""


class Pipe(Protocol):
    """Bytes to a device and back. `name` is what a user calls it."""

    name: str

    def now(self) -> float:
        """Seconds."""

    def write(self, data: bytes) -> None:
        """Raises :exc:`LinkError` if the other side is gone."""

    def read(self, seconds: float) -> bytes:
        """What has come, after waiting for it for at most `seconds`; maybe nothing. Raises :exc:`LinkError` if the other side is gone."""

    def close(self) -> None:
        """Release what it holds."""


@dataclass
class LinkCounters:
    """Frames since the link was opened: `sent`, of which `resent`; `received` whole and `damaged`. `reopened`: how often requests had to be cut."""

    sent: int = 0
    resent: int = 0
    received: int = 0
    damaged: int = 0
    reopened: int = 0


@dataclass
class _Request:
    kind: Kind
    count: int
    value: int
    data: bytes = b""
    sent: float = 0.0
    sends: int = 0
    hurried: bool = False  # sent again since its time-out began
    stub: bool = False     # it is done: only its answer is asked for
    answer: "Message | None" = None

    def cut(self, size):
        """The first `size` bytes of it, and the rest, which may be None."""
        if self.kind not in (Kind.READ, Kind.WRITE) or self.count <= size:
            return self, None
        return (_Request(self.kind, size, self.value, self.data[:size]),
                _Request(self.kind, self.count - size, self.value + size, self.data[size:]))

    @property
    def what(self):
        """For a sentence."""
        if self.kind in (Kind.READ, Kind.WRITE):
            return f"{self.kind.name} of {self.count:,} bytes at {self.value:#x}"
        return f"{self.kind.name} {self.count:#05x}"


class Link:
    """A session with the device at the other end of `pipe`, which is closed with it.

    Raises :exc:`LinkError` if no device answers, here and in every method: what was asked, of whom and for how long. seed: of the session's number, for tests.
    """

    def __init__(self, pipe: Pipe, *, resend_seconds: float = RESEND_SECONDS, timeout_seconds: float = TIMEOUT_SECONDS, seed: "int | None" = None):
        self.counters = LinkCounters()
        self._pipe, self._resend_seconds, self._timeout_seconds = pipe, resend_seconds, timeout_seconds
        self._random = random.SystemRandom() if seed is None else random.Random(seed)
        self._deframer, self._messages = Deframer(), deque()
        self._session, self._window, self._data, self._smooth = 0, WINDOW, MAX_DATA, 0
        self._latest = resend_seconds / 2  # what answers take
        self._broken = False
        self._sequence = self._open(first=True)

    @property
    def name(self) -> str:
        """The pipe's."""
        return self._pipe.name

    def now(self) -> float:
        """Seconds, as the pipe counts them."""
        return self._pipe.now()

    def close(self) -> None:
        """Close the pipe."""
        self._pipe.close()

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the device's memory; address and size are multiples of 8."""
        requests = self._exchange(_Request(Kind.READ, size, address)) if size else []
        return b"".join(request.answer.data for request in sorted(requests, key=lambda request: request.value))

    def write(self, address: int, data: bytes) -> None:
        """Bytes into the device's memory; address and size are multiples of 8."""
        if data:
            self._exchange(_Request(Kind.WRITE, len(data), address, memoryview(data)))

    def read_register(self, address: int) -> "int | None":
        """A register's value; None if the control port refuses."""
        [request] = self._exchange(_Request(Kind.READ_REGISTER, address, 0))
        return request.answer.value if request.answer.kind == Kind.DONE else None

    def write_register(self, address: int, value: int) -> bool:
        """Into a register; False if the control port refuses."""
        [request] = self._exchange(_Request(Kind.WRITE_REGISTER, address, value))
        return request.answer.kind == Kind.DONE

    def pause(self, seconds: float) -> None:
        """Let time pass; what comes meanwhile answers nothing."""
        end = self._pipe.now() + seconds
        while (left := end - self._pipe.now()) > 0:
            self._take(self._pipe.read(left))
        self._messages.clear()

    def _exchange(self, whole):
        """Have a request done, in pieces if need be; all of them, with their answers. Raises DeviceError if the memory answers with an error."""
        if self._broken:
            self._sequence = self._open()
        self._broken = True  # until all answers are here
        todo, waiting, done = deque([whole]), {}, []  # `waiting`: by sequence number, the first one the oldest
        deadline = self._pipe.now() + self._timeout_seconds
        while todo or waiting:
            while todo and (not waiting or (self._sequence - next(iter(waiting))) % (1 << 16) < self._window):
                request, rest = todo.popleft().cut(self._data)
                if rest:
                    todo.appendleft(rest)
                waiting[self._sequence] = request
                self._send(self._sequence, request)
                self._sequence = (self._sequence + 1) % (1 << 16)
            oldest = next(iter(waiting.values()))
            message = self._receive(min(deadline, oldest.sent + self._patience(oldest)))
            if message is None:
                if self._pipe.now() >= deadline:
                    raise self._silence(f"has not answered {oldest.what}, sent {oldest.sends} times")
                if oldest.sends >= _SENDS and oldest.kind in (Kind.READ, Kind.WRITE) and self._data > _MIN_DATA:
                    self._give_up(todo, waiting, deadline)
                for sequence, request in waiting.items():
                    request.hurried = False
                    self._send(sequence, request)
                continue
            if message.kind == Kind.FOREIGN and message.session != self._session:
                raise self._lost()
            if message.kind == Kind.FOREIGN or message.session != self._session or message.sequence not in waiting:
                continue  # the answer to what was given up, or sent twice
            if message.kind != Kind.SKIPPED:
                request = waiting.pop(message.sequence)
                deadline = self._pipe.now() + self._timeout_seconds
                self._answered(request, message, todo, done)
            self._hurry(waiting, message)
        self._broken = False
        return done

    def _patience(self, request):
        """Seconds until it is sent again: each time twice as many, for what is sent in vain only makes the rest later."""
        return min(max(2 * self._latest, _RESEND_SECONDS) * 2 ** (request.sends - 1), self._resend_seconds)

    def _answered(self, request, message, todo, done):
        if request.kind in (Kind.READ, Kind.WRITE):
            if message.kind != Kind.DONE:
                raise DeviceError(f"the memory of {self.name} has answered {request.what} with an error; load the bitstream again and run again")
            if len(message.data) != (request.count if request.kind == Kind.READ else 0):
                raise DeviceError(f"{self.name} has answered {request.what} with {len(message.data)} bytes; load a bitstream made by this version of celosia")
        request.answer = message
        done.append(request)
        if request.sends == 1:  # else nobody knows which of them was answered
            self._latest = max(0.9 * self._latest, self._pipe.now() - request.sent)
        self._smooth = self._smooth + 1 if request.sends == 1 else 0
        if self._smooth >= _SMOOTH:
            self._data, self._smooth = min(2 * self._data, MAX_DATA), 0

    def _hurry(self, waiting, message):
        """An answer tells that those before it, or the requests they belong to, are lost: send these again, once until their time-out."""
        for sequence, request in waiting.items():
            if (message.sequence - sequence) % (1 << 16) >= self._window:
                break
            if not request.hurried:
                request.hurried = True
                self._send(sequence, request)

    def _give_up(self, todo, waiting, deadline):
        """What gets through in no piece of this size is asked for in smaller ones, in a new session, for then nothing of the old one is done any more."""
        self.counters.reopened += 1
        self._data = max(self._data // 2, _MIN_DATA)
        self._sequence = self._open(deadline=deadline)
        again = []
        for sequence, request in list(waiting.items()):
            executed = 0 < (self._sequence - sequence) % (1 << 16) <= self._window
            request.sends, request.stub = 0, executed and request.kind == Kind.WRITE
            if not request.stub:
                again.append(waiting.pop(sequence))
        todo.extendleft(reversed(again))

    def _open(self, *, first=False, deadline=None):
        """Begin a session; returns the next sequence number."""
        previous, session = self._session, self._random.randrange(1, 1 << 32)
        deadline = deadline or self._pipe.now() + self._timeout_seconds
        number = sends = 0
        while True:
            number, sends = number + 1, sends + 1
            self._put(Message(session=session, sequence=number, kind=Kind.OPEN, value=previous).frame(), again=sends > 1)
            end = min(deadline, self._pipe.now() + self._resend_seconds)
            while message := self._receive(end):
                if message.kind == Kind.DONE and message.session == session:
                    return self._opened(session, Opened.from_bits(message.value))
                if message.kind == Kind.FOREIGN and message.sequence == number:
                    if not first:
                        raise self._lost()
                    previous = message.session
                    break
            if self._pipe.now() >= deadline:
                raise self._silence(f"has not answered OPEN, sent {sends} times" if first else f"does not answer any more, OPEN was sent {sends} times")

    def _opened(self, session, opened):
        if opened.version != VERSION:
            raise LinkError(f"{self.name} has version {opened.version} of the link, this is version {VERSION}; load a bitstream made by this version of celosia")
        self._session, self._window = session, min(opened.window, WINDOW)
        return opened.expected

    def _send(self, sequence, request):
        request.sent = self._pipe.now()
        request.sends += 1
        message = Message(session=self._session, sequence=sequence, kind=Kind.READ_REGISTER) if request.stub else Message(
            session=self._session, sequence=sequence, kind=request.kind, count=request.count, value=request.value, data=bytes(request.data))
        self._put(message.frame(), again=request.sends > 1)

    def _put(self, frame, again):
        self.counters.sent += 1
        self.counters.resent += again
        # A zero before what is not the first: it may follow a frame that has lost its own.
        self._pipe.write(b"\0" * again + frame)

    def _receive(self, end):
        """The next message; None at the time `end`."""
        while not self._messages:
            if (left := end - self._pipe.now()) <= 0:
                return None
            self._take(self._pipe.read(left))
        return self._messages.popleft()

    def _take(self, data):
        messages = self._deframer.feed(data)
        self._messages.extend(message for message in messages if message.kind >= Kind.DONE)
        self.counters.received += len(messages)
        self.counters.damaged = self._deframer.damaged

    def _silence(self, what):
        heard = f"{self.counters.received} frames have come back, {self.counters.damaged} damaged ones"
        return LinkError(f"{self.name} {what} within {self._timeout_seconds:g} s ({heard}); check that it is switched on, that the name is right and that its "
                         "bitstream is loaded, then run again")

    def _lost(self):
        return LinkError(f"{self.name} has been restarted or taken over by another host, and what its memory held is lost; run again")
