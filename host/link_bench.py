"""What the host link makes of a serial line: payload in percent of its 3 Mbaud, by latency and by damaged bytes. In simulated time, so that it is the same every time.

    python -m celosia.host.link_bench [--json]
"""

import argparse
import random

from ..hw.link import MAX_DATA
from ..sim.line import Faults, Line
from ..sim.link import FrameServer
from .console import emit, table
from .link import Link
from .pipes import BAUD

__all__ = ["Memory", "main", "measure"]

_BYTES = 1 << 19
#: One way. A USB bridge told to wait 1 ms at most takes about that, one told nothing up to 16 ms back to the host.
_LATENCIES_MS = (0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
_RATES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)


class Memory:
    """A board (`sim.link.Board`) that is nothing but memory."""

    def __init__(self, size: int):
        self.content = bytearray(size)

    def read(self, address: int, size: int) -> "bytes | None":
        """Bytes; None beyond its end."""
        return bytes(self.content[address : address + size]) if address + size <= len(self.content) else None

    def write(self, address: int, data: bytes) -> bool:
        """Into it; False beyond its end."""
        if address + len(data) > len(self.content):
            return False
        self.content[address : address + len(data)] = data
        return True


def measure(size: int, latency_seconds: float, rate: float = 0.0) -> dict:
    """Write `size` bytes and read them: bytes of payload by bytes the line could have carried meanwhile, and the frames it took. `rate`: of bytes lost, flipped,
    doubled or having another before them."""
    each = rate / 4
    line = Line(FrameServer(Memory(size)), baud=BAUD, latency_seconds=latency_seconds, faults=Faults(lose=each, flip=each, double=each, insert=each))
    link, data = Link(line, seed=1), random.Random(1).randbytes(size)
    start = line.now()
    link.write(0, data)
    written = line.now()
    assert link.read(0, size) == data
    read = line.now()
    counters = link.counters
    return {"latency_ms": 1e3 * latency_seconds, "rate": rate, "bytes": size, "write": round(size / (written - start) / (BAUD / 10), 4),
            "read": round(size / (read - written) / (BAUD / 10), 4), "frames": counters.sent, "sent_again": counters.resent, "damaged": counters.damaged}


def main(arguments: "list[str] | None" = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    as_json = parser.parse_args(arguments).json
    rows = [measure(_BYTES, latency / 1e3) for latency in _LATENCIES_MS]
    rows += [measure(_BYTES // 8, 0.001, rate) for rate in _RATES]
    if as_json:
        return emit({"baud": BAUD, "frame_bytes": MAX_DATA, "rows": rows})
    cells = [(f"{row['latency_ms']:g} ms", f"{row['rate']:g}", f"{row['bytes']:,}", f"{row['write']:.1%}", f"{row['read']:.1%}", row["frames"], row["sent_again"])
             for row in rows]
    return table(("latency", "damaged bytes", "bytes", "write", "read", "frames", "sent again"), cells)


if __name__ == "__main__":
    main()
