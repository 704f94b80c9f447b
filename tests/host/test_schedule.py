"""Tokens of instructions that are long in waiting."""

import pytest

from celosia.host.schedule import Schedule
from celosia.hw.isa import Opcode, Unit, decode


@pytest.mark.parametrize("ahead", [0, 237, 238, 999])
def test_no_more_tokens_are_left_than_a_counter_holds(ahead):
    """Each of 1,000 maps is read when `ahead` more have been stored; 17 instructions may be waiting in the queue of those who read."""
    schedule, stores = Schedule(), []
    for ordinal in range(1000 + ahead):
        if ordinal < 1000:
            stores.append(schedule.emit(Opcode.STORE, layer=0))
        if ordinal >= ahead:
            schedule.emit(Opcode.LOAD_MAP, [stores[ordinal - ahead]], layer=1)
    left, stored, loaded, taken, most = [], 0, 0, -1, 0
    for word in schedule.words():
        opcode, fields = decode(word)
        if opcode == Opcode.STORE:
            if fields["post"] >> Unit.MAP & 1:
                left.append(stored)
            stored += 1
        elif opcode == Opcode.LOAD_MAP:
            if fields["wait"] >> Unit.STORE & 1:
                taken = left.pop(0)
            assert taken >= loaded, "it begins after what it waits for"
            loaded += 1
        most = max(most, len(left))
    assert loaded == 1000 and not left and most == min(ahead + 1, 238)
