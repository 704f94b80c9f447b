"""Pipes of bytes to boards: a serial port, or TCP to a board that is simulated (`celosia serve-sim`) or elsewhere."""

import contextlib
import select
import socket
import time

from .errors import CelosiaError
from .link import LinkError, Pipe

__all__ = ["BAUD", "open_pipe"]

#: The FT231X of the ULX3S does no more.
BAUD = 3_000_000
#: In which a connection is made, and the other side takes what is written.
_SECONDS = 5.0
#: A serial port is looked at so often.
_POLL_SECONDS = 0.01


def open_pipe(name: str) -> Pipe:
    """The pipe `serial:PORT` or `tcp:HOST:PORT`. Raises :exc:`CelosiaError` if it is called otherwise, :exc:`LinkError` if it cannot be opened."""
    kind, _, where = name.partition(":")
    if kind == "serial":
        if not where:
            raise CelosiaError(f"device {name!r} must be serial:PORT, for example serial:/dev/ttyUSB0 or serial:COM3")
        return _SerialPipe(name, where)
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise CelosiaError(f"device {name!r} must be tcp:HOST:PORT, for example tcp:127.0.0.1:3456")
    return _TcpPipe(name, host.strip("[]"), int(port))


class _TcpPipe:
    def __init__(self, name, host, port):
        self.name = name
        try:
            self._socket = socket.create_connection((host, port), _SECONDS)
        except (OSError, UnicodeError) as error:
            raise LinkError(f"{name} does not accept a connection ({_reason(error)}); start `celosia serve-sim --port {port}` there, or correct the name") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def now(self):
        return time.monotonic()

    def write(self, data):
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise LinkError(f"{self.name} has taken no bytes for {_SECONDS:g} s; end what hangs there and run again") from None
        except OSError as error:
            raise self._closed(_reason(error)) from None

    def read(self, seconds):
        try:
            if not select.select([self._socket], [], [], seconds)[0]:
                return b""
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise self._closed(_reason(error)) from None
        if not data:
            raise self._closed("its side has ended it")
        return data

    def close(self):
        self._socket.close()

    def _closed(self, reason):
        return LinkError(f"{self.name} has closed the connection ({reason}): it has ended, or serves another client; start it again if need be, and run again")


class _SerialPipe:
    def __init__(self, name, port):
        try:
            import serial
        except ModuleNotFoundError:
            raise CelosiaError(f"device {name!r} needs pyserial; pip install 'celosia[board]'") from None
        self.name, self._error = name, serial.SerialException
        try:
            self._port = serial.Serial(port, BAUD, timeout=_POLL_SECONDS, write_timeout=_SECONDS, exclusive=True)
        except (serial.SerialException, ValueError, OSError) as error:
            raise LinkError(f"{name} cannot be opened ({_reason(error)}); check that the board is plugged in, that the port is right, that no other program has it, "
                            "and that you may use it (group dialout)") from None
        # An FTDI bridge otherwise keeps what it has received for 16 ms. Not every system and bridge can be told.
        with contextlib.suppress(AttributeError, NotImplementedError, ValueError, OSError):
            self._port.set_low_latency_mode(True)

    def now(self):
        return time.monotonic()

    def write(self, data):
        try:
            self._port.write(data)
        except (self._error, OSError) as error:
            raise self._closed(error) from None

    def read(self, seconds):
        end = self.now() + seconds
        try:
            while True:
                data = self._port.read(max(1, self._port.in_waiting))
                if data or self.now() >= end:
                    return data
        except (self._error, OSError) as error:
            raise self._closed(error) from None

    def close(self):
        self._port.close()

    def _closed(self, error):
        return LinkError(f"{self.name} is gone ({_reason(error)}); plug the board in again and run again")


def _reason(error):
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
