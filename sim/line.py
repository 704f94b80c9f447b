"""A serial line in simulated time, to a device that answers frames: its rate, its latency, and what it does to the bytes. Nothing here takes real time."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Faults", "Line"]

_BITS_PER_BYTE = 10  # with start and stop bit


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities, for each byte, that it is lost, has a bit flipped, comes twice, or has a random one inserted before it. `delay`: that a frame comes up to
    `delay_seconds` later, and what follows behind it."""

    lose: float = 0.0
    flip: float = 0.0
    double: float = 0.0
    insert: float = 0.0
    delay: float = 0.0
    delay_seconds: float = 0.3

    def damage(self, data: bytes, source: random.Random) -> bytes:
        """What comes out for what goes in."""
        total = self.lose + self.flip + self.double + self.insert
        result, position = bytearray(), 0
        while total:
            hit = position + int(source.expovariate(total))
            if hit >= len(data):
                break
            result += data[position:hit]
            byte, position = data[hit], hit + 1
            match source.choices("lfdi", (self.lose, self.flip, self.double, self.insert))[0]:
                case "f":
                    result.append(byte ^ 1 << source.randrange(8))
                case "d":
                    result += bytes((byte, byte))
                case "i":
                    result += bytes((source.randrange(256), byte))
        return bytes(result + data[position:])


class Line:
    """A pipe (`host.link.Pipe`) to `server`, whose `feed` answers bytes with bytes, at `baud`, each direction `latency_seconds` long; errors follow from the seed.

    `server` may be replaced, or be None: nobody answers. `sent`: bytes so far, to the device and back.
    """

    name = "the simulated line"

    def __init__(self, server: "object | None", *, baud: float = 3e6, latency_seconds: float = 0.001, faults: Faults | None = None, seed: int = 1):
        self.server, self.faults = server, faults or Faults()
        self.sent = [0, 0]
        self._byte_seconds, self._latency = _BITS_PER_BYTE / baud, latency_seconds
        self._random = random.Random(seed)
        self._now = 0.0
        self._free = [0.0, 0.0]  # when the line can take the next byte, to the device and back
        self._arrived = [0.0, 0.0]
        self._under_way = deque(), deque()
        #: Called before the device takes bytes, with the time: what happens meanwhile.
        self.before: Callable[[float], None] = lambda now: None

    def now(self) -> float:
        """Simulated seconds."""
        return self._now

    def write(self, data: bytes) -> None:
        """Bytes to the device; the caller does not wait for them to be sent."""
        self._put(0, self._now, data)

    def read(self, seconds: float) -> bytes:
        """What comes back within `seconds`, which pass until it does."""
        end = self._now + seconds
        while True:
            to_device, to_host = self._under_way
            times = [queue[0][0] if queue else float("inf") for queue in (to_device, to_host)]
            if min(times) > end:
                self._now = end
                return b""
            self._now = max(self._now, min(times))
            if times[1] <= times[0]:
                return to_host.popleft()[1]
            data = to_device.popleft()[1]
            self.before(self._now)
            if self.server and (answer := self.server.feed(data)):
                self._put(1, self._now, answer)

    def cut(self) -> None:
        """Whatever is under way is lost."""
        for queue in self._under_way:
            queue.clear()

    def close(self) -> None:
        """Nothing to release."""

    def _put(self, way, now, data):
        """Whole frames, each of which arrives with its last byte."""
        for frame in data.split(b"\0"):
            end = min(len(frame) + 1, len(data))
            part, data = data[:end], data[end:]
            if not part:
                break
            self.sent[way] += len(part)
            self._free[way] = max(self._free[way], now) + len(part) * self._byte_seconds
            late = self._random.random() * self.faults.delay_seconds if self.faults.delay and self._random.random() < self.faults.delay else 0.0
            self._arrived[way] = max(self._arrived[way], self._free[way] + self._latency + late)
            if damaged := self.faults.damage(part, self._random):
                self._under_way[way].append((self._arrived[way], damaged))
