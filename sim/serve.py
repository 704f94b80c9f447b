"""A simulated board behind TCP: the RTL, clocked while a program runs, and the frames of the host link."""

import select
import socket
import time
from collections.abc import Callable

import numpy as np

from ..hw.isa import Unit
from ..hw.link import MARK_COUNT
from ..hw.registers import Command, ErrorCode, Register, Status
from .device import DeviceError
from .link import FrameServer
from .rtl import BUS_VIOLATION, CONTROL_STUCK, RtlBoard

__all__ = ["SimulatedBoard", "listen", "serve"]

#: The engine is clocked for so long before the link is looked at again.
_PIECE_SECONDS = 0.02
#: Bytes that wait for a client which does not take them, before it is listened to no more.
_WAITING = 1 << 16


class SimulatedBoard:
    """The RTL as a link sees it (`sim.link.Board`). `busy`: it wants to be clocked."""

    def __init__(self, board: RtlBoard, log: Callable[[str], None] = lambda text: None):
        self._board, self._log = board, log
        self._marks, self._cycles, self._noted = np.zeros(MARK_COUNT, np.uint32), np.zeros(MARK_COUNT, np.uint32), np.zeros(0, np.uint64)
        self._piece = 10_000
        self.busy = False
        board.reset()

    def read(self, address: int, size: int) -> "bytes | None":
        """Bytes of the memory; None beyond its end."""
        return self._board.memory[address : address + size].tobytes() if address + size <= self._board.memory.nbytes else None

    def write(self, address: int, data: bytes) -> bool:
        """Into the memory; False beyond its end."""
        inside = address + len(data) <= self._board.memory.nbytes
        if inside:
            self._board.memory[address : address + len(data)] = np.frombuffer(data, np.uint8)
        return inside

    def read_register(self, address: int) -> "int | None":
        """A register's value; None if the control port refuses."""
        response, value = self._board.read(address)
        return None if response else value

    def write_register(self, address: int, value: int) -> bool:
        """Into a register; False if the control port refuses."""
        command = Command.from_bits(value & 3) if address == Register.COMMAND else Command.from_bits(0)
        if command.start and not command.reset and self._rests():
            ascending = np.append(True, self._marks[1:] > self._marks[:-1])
            count = int(np.argmin(ascending)) or MARK_COUNT
            self._noted = self._board.mark([(Unit.STORE, int(mark)) for mark in self._marks[:count]])
        accepted = not self._board.write(address, value)
        self.busy |= accepted and bool(command.start or command.reset)
        return accepted

    def read_marks(self, index: int, size: int) -> bytes:
        """Cycles of the marks, as `hw.link.MARKS` says."""
        reached = np.flatnonzero(self._noted)
        self._cycles[reached] = self._noted[reached]
        return np.roll(self._cycles, -index)[: size // 4].tobytes()

    def write_marks(self, index: int, data: bytes) -> None:
        """Marks from `index` on."""
        words = np.frombuffer(data, np.uint32)
        self._marks[(index + np.arange(len(words))) % MARK_COUNT] = words

    def advance(self) -> None:
        """Clock the engine for a moment."""
        start = time.perf_counter()
        outcome = self._board.run(self._piece)
        self._piece = max(1000, min(2 * self._piece, int(self._piece * _PIECE_SECONDS / max(time.perf_counter() - start, 1e-6))))
        self.busy = not outcome
        if outcome == CONTROL_STUCK:
            self._log("the control port does not answer")
        elif outcome == BUS_VIOLATION:
            what, address = self._board.violation()
            self._log(f"the engine has put {what} on its memory port, at address {address:#x}")

    def _rests(self):
        """Whether no program runs, and the last one has left nothing on the bus."""
        status = Status.from_bits(self._board.read(Register.STATUS)[1])
        return not status.busy and status.error == ErrorCode.NONE


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, port 0: any. Raises :exc:`DeviceError` if that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeviceError(f"nobody can listen at {host}:{port}: {reason}; choose another --port or --host") from None
    return listener


def serve(listener: socket.socket, server: FrameServer, board: SimulatedBoard) -> None:
    """Serve one client after the other, for ever. Who comes while another is served is sent away."""
    client, waiting = None, b""
    try:
        while True:
            readers = [listener, client] if client and len(waiting) < _WAITING else [listener]
            ready, writers, _ = select.select(readers, [client] if waiting else [], [], 0 if board.busy else None)
            newcomer = listener in ready and client not in ready  # first hear the end of the client before
            try:
                if client in ready:
                    if not (data := client.recv(1 << 16)):
                        raise ConnectionResetError
                    waiting += server.feed(data)
                if client in writers:
                    waiting = waiting[client.send(waiting) :]
            except BlockingIOError:
                pass
            except OSError:  # killed, as likely as not
                client.close()
                client, waiting = None, b""
            if newcomer:
                connection, _ = listener.accept()
                if client:
                    connection.close()
                else:
                    client = _prepared(connection)
            if board.busy:
                board.advance()
    finally:
        if client:
            client.close()


def _prepared(connection):
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that has vanished makes room within half a minute.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
