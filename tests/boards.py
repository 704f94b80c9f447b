"""A board for tests of the link: it remembers what is done to it."""

from celosia.host.link_bench import Memory
from celosia.hw.link import MARK_COUNT

__all__ = ["Recorder"]


class Recorder(Memory):
    """Memory and registers. `log`: register writes in order; `writes`: how often each byte of the memory has been written; `refused`: registers it does not have."""

    def __init__(self, size: int):
        super().__init__(size)
        self.registers, self.refused, self.log, self.writes = {}, set(), [], [0] * size
        self.marks = [0] * MARK_COUNT

    def write(self, address, data):
        if inside := super().write(address, data):
            for position in range(address, address + len(data)):
                self.writes[position] += 1
        return inside

    def read_register(self, address):
        return None if address in self.refused else self.registers.get(address, 0)

    def write_register(self, address, value):
        if address in self.refused:
            return False
        self.log.append((address, value))
        self.registers[address] = value
        return True

    def read_marks(self, index, size):
        return b"".join(self.marks[(index + k) % MARK_COUNT].to_bytes(4, "little") for k in range(size // 4))

    def write_marks(self, index, data):
        for k in range(len(data) // 4):
            self.marks[(index + k) % MARK_COUNT] = int.from_bytes(data[4 * k : 4 * k + 4], "little")
