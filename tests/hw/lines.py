"""Serial lines as their levels."""

import random
from collections.abc import Iterable

__all__ = ["bytes_of", "line_of"]


def line_of(data: Iterable[int], cycles_per_bit: float, generator: random.Random, gap: float = 0) -> list[int]:
    """Levels of a line, one a cycle, that carries bytes; up to `gap` bits of silence between them."""
    levels, time = [], 0.0

    def hold(level, bits):
        nonlocal time
        time += bits * cycles_per_bit
        levels.extend([level] * (round(time) - len(levels)))

    hold(1, 2)
    for byte in data:
        for level in (0, *(byte >> bit & 1 for bit in range(8)), 1):
            hold(level, 1)
        hold(1, generator.random() * gap)
    hold(1, 2)
    return levels


def bytes_of(levels: list[int], cycles_per_bit: float) -> list[tuple[int, int]]:
    """The cycle in which each byte begins, and the byte; the levels are those of whole bytes with good stop bits."""
    result, position = [], 0
    while 0 in levels[position:]:
        start = levels.index(0, position)
        bits = [levels[start + round((bit + 0.5) * cycles_per_bit)] for bit in range(10)]
        assert bits[0] == 0 and bits[9] == 1
        result.append((start, sum(level << bit for bit, level in enumerate(bits[1:9]))))
        position = start + round(9.5 * cycles_per_bit)
    return result
