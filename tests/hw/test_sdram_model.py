"""The model of the chip: it keeps the data, lets pass what the data sheet allows, and finds every planted violation."""

from dataclasses import replace

import pytest
from sdram_model import SdramModel, Violation

from celosia.hw.sdram import MODE, PARTS, Command, SdramTiming

#: A part in which each rule is seen by itself: no two of them follow from each other. At 100 MHz the clocks are the nanoseconds' tens.
PART = SdramTiming(name="test", ck_ns=7, clock_mhz=100, rc_ns=120, ras_ns=60, ras_max_ns=20_000, rp_ns=30, rcd_ns=40, rrd_ns=50, rfc_ns=100, wr_ns=30,
                   mrd_ns=70, power_up_us=1)
CLOCKS = {name: PART.clocks(name) for name in ("rc", "ras", "rp", "rcd", "rrd", "rfc", "wr", "mrd")}


class Chip:
    """The model with somebody who gives it commands; `shown` are the words of its pins, an edge each."""

    def __init__(self, timing=PART, ready=True):
        self.model, self.shown = SdramModel(timing), []
        if ready:
            self.initialise()

    def clock(self, count=1, **pins):
        for _ in range(count):
            self.shown.append(self.model.clock(**({"dqm": 0 if self.model.initialised else 3} | pins)))

    def give(self, command, bank=0, address=0, then=0, **pins):
        """A command, and `then` clocks with none: the next one comes `then` + 1 after it."""
        code = command.value
        self.clock(cs=1, ras=code & 1, cas=code >> 1 & 1, we=code >> 2, ba=bank, a=address, **pins)
        self.clock(then)

    def write(self, bank=0, column=0, words=(1, 2, 3, 4), masks=(0, 0, 0, 0)):
        self.give(Command.WRITE, bank, column, dq=words[0], dqm=masks[0], dq_oe=1)
        for word, mask in zip(words[1:], masks[1:]):
            self.clock(dq=word, dqm=mask, dq_oe=1)

    def read(self, bank=0, column=0):
        """The words that come in the four clocks after the CAS latency."""
        first = len(self.shown)
        self.give(Command.READ, bank, column, then=10)
        return self.shown[first + 2 : first + 6]

    def initialise(self, refreshes=8, mode=MODE, then=20):
        self.clock(101)
        self.give(Command.PRECHARGE, address=1 << 10, then=20)
        for _ in range(refreshes):
            self.give(Command.REFRESH, then=20)
        if mode is not None:
            self.give(Command.MODE, address=mode, then=then)


def rc(chip, clocks):
    chip.give(Command.ACTIVE, then=CLOCKS["ras"] - 1)
    chip.give(Command.PRECHARGE, then=clocks - CLOCKS["ras"] - 1)
    chip.give(Command.ACTIVE)


def ras(chip, clocks):
    chip.give(Command.ACTIVE, then=clocks - 1)
    chip.give(Command.PRECHARGE)


def ras_of_all(chip, clocks):
    chip.give(Command.ACTIVE, bank=2, then=clocks - 1)
    chip.give(Command.PRECHARGE, address=1 << 10)


def rp(chip, clocks):
    chip.give(Command.ACTIVE, then=20)
    chip.give(Command.PRECHARGE, then=clocks - 1)
    chip.give(Command.ACTIVE)


def rp_before_refresh(chip, clocks):
    chip.give(Command.ACTIVE, bank=3, then=20)
    chip.give(Command.PRECHARGE, bank=3, then=clocks - 1)
    chip.give(Command.REFRESH)


def rcd(chip, clocks):
    chip.give(Command.ACTIVE, then=clocks - 1)
    chip.give(Command.READ)


def rcd_of_a_write(chip, clocks):
    chip.give(Command.ACTIVE, then=clocks - 1)
    chip.write()


def rrd(chip, clocks):
    chip.give(Command.ACTIVE, bank=0, then=clocks - 1)
    chip.give(Command.ACTIVE, bank=1)


def rfc(chip, clocks):
    chip.give(Command.REFRESH, then=clocks - 1)
    chip.give(Command.ACTIVE)


def rfc_before_refresh(chip, clocks):
    chip.give(Command.REFRESH, then=clocks - 1)
    chip.give(Command.REFRESH)


def wr(chip, clocks):
    chip.give(Command.ACTIVE, then=20)
    chip.write()
    chip.clock(clocks - 1)
    chip.give(Command.PRECHARGE)


def mrd(chip, clocks):
    chip.give(Command.MODE, address=MODE, then=clocks - 1)
    chip.give(Command.ACTIVE)


@pytest.mark.parametrize("rule", [rc, ras, ras_of_all, rp, rp_before_refresh, rcd, rcd_of_a_write, rrd, rfc, rfc_before_refresh, wr, mrd])
def test_spacing(rule):
    name = rule.__name__.partition("_")[0]
    rule(Chip(), CLOCKS[name])
    with pytest.raises(Violation, match=f"t{name.upper()}: "):
        rule(Chip(), CLOCKS[name] - 1)


@pytest.mark.parametrize("name", ["rrd", "wr", "mrd"])
def test_two_clocks_at_least(name):
    timing = replace(PART, rrd_ns=0, wr_ns=0, mrd_ns=0)
    globals()[name](Chip(timing), 2)
    with pytest.raises(Violation, match=f"t{name.upper()}: "):
        globals()[name](Chip(timing), 1)


def test_nanoseconds_count():
    """Not the clocks that the controller makes of them."""
    timing = replace(PART, rp_ns=30.1)
    rp(Chip(timing), 4)
    with pytest.raises(Violation, match="tRP: ACTIVE after PRECHARGE after 3 clocks, 30.0 ns"):
        rp(Chip(timing), 3)


def test_a_row_is_not_open_for_ever():
    chip = Chip()
    for _ in range(8):
        chip.give(Command.REFRESH, then=20)
    chip.give(Command.ACTIVE, then=2000)
    with pytest.raises(Violation, match="tRAS: a row has been open for longer"):
        chip.clock()


def test_refresh_rate():
    """Two may be owed for no longer than a clock."""
    chip = Chip()
    for _ in range(30):
        chip.clock(780)
        chip.give(Command.REFRESH)
    chip.clock(2 * 781 - 50)
    with pytest.raises(Violation, match="refresh rate"):
        chip.clock(100)


@pytest.mark.parametrize(("plant", "message"), [
    (lambda chip: (chip.clock(99), chip.give(Command.PRECHARGE, address=1 << 10)), "PRECHARGE before the chip has had its power"),
    (lambda chip: (chip.clock(101), chip.give(Command.REFRESH)), "REFRESH before PRECHARGE of all banks"),
    (lambda chip: (chip.clock(101), chip.give(Command.MODE, address=MODE)), "MODE before PRECHARGE of all banks"),
    (lambda chip: (chip.clock(101), chip.give(Command.PRECHARGE, bank=1), chip.clock(20), chip.give(Command.REFRESH)), "before PRECHARGE of all banks"),
    (lambda chip: (chip.initialise(refreshes=7), chip.give(Command.ACTIVE)), "initialisation: ACTIVE too early"),
    (lambda chip: (chip.initialise(mode=None), chip.give(Command.ACTIVE)), "initialisation: ACTIVE too early"),
    (lambda chip: (chip.initialise(mode=None), chip.give(Command.READ)), "initialisation: READ too early"),
    (lambda chip: chip.initialise(mode=0x22), "CAS latency 2"),
    (lambda chip: chip.initialise(mode=0x37), "mode 0x37, which the model does not know"),
    (lambda chip: chip.initialise(mode=0x3A), "mode 0x3a"),
    (lambda chip: chip.initialise(mode=0x232), "mode 0x232"),
    (lambda chip: chip.clock(dqm=0b01), "DQM is low before initialisation"),
    (lambda chip: chip.clock(clk_en=0), "the clock is off"),
])
def test_initialisation(plant, message):
    with pytest.raises(Violation, match=message):
        plant(Chip(ready=False))


def opened():
    chip = Chip()
    chip.give(Command.ACTIVE, address=5, then=20)
    return chip


@pytest.mark.parametrize(("plant", "message"), [
    (lambda chip: chip.give(Command.ACTIVE), "ACTIVE of bank 0, which is open"),
    (lambda chip: chip.give(Command.READ, bank=1), "READ of bank 1, which is not open"),
    (lambda chip: chip.write(bank=3), "WRITE of bank 3, which is not open"),
    (lambda chip: chip.give(Command.REFRESH), "REFRESH while a bank is open"),
    (lambda chip: chip.give(Command.MODE, address=MODE), "MODE while a bank is open"),
    (lambda chip: chip.give(Command.READ, address=1 << 10), "auto precharge"),
    (lambda chip: chip.give(Command.READ, address=512), "column 512 of 512"),
    (lambda chip: chip.clock(cs=1, we=1), "burst stop"),
    (lambda chip: (chip.give(Command.READ, then=2), chip.give(Command.READ)), "READ cuts a burst short"),
    (lambda chip: (chip.give(Command.READ, then=2), chip.give(Command.PRECHARGE)), "PRECHARGE cuts a burst short"),
    (lambda chip: (chip.give(Command.WRITE, dq_oe=1), chip.clock(2, dq_oe=1), chip.give(Command.READ, dq_oe=1)), "READ cuts a burst short"),
    (lambda chip: chip.give(Command.WRITE), "nobody drives DQ"),
    (lambda chip: (chip.give(Command.WRITE, dq_oe=1), chip.clock(2, dq_oe=1), chip.clock()), "nobody drives DQ"),
])
def test_commands(plant, message):
    with pytest.raises(Violation, match=message):
        plant(opened())


@pytest.mark.parametrize("clocks", range(12))
def test_bus_contention(clocks):
    """The chip drives in the clocks 3 to 6 after a READ, and neither the one before nor the one after is anybody else's."""
    chip = opened()
    chip.give(Command.READ, then=clocks - 1 if clocks else 0, dq_oe=int(clocks == 0))
    if 2 <= clocks <= 7:
        with pytest.raises(Violation, match="bus contention"):
            chip.clock(dq_oe=1)
    else:
        chip.clock(dq_oe=1)


def test_what_is_written_is_read():
    chip = opened()
    chip.write(column=8, words=(0x1111, 0x2222, 0x3333, 0x4444))
    chip.give(Command.ACTIVE, bank=1, address=8191, then=20)
    chip.write(bank=1, column=508, words=(5, 6, 7, 8))
    assert chip.read(column=8) == [0x1111, 0x2222, 0x3333, 0x4444]
    assert chip.read(column=10) == [0x3333, 0x4444, 0x1111, 0x2222]
    assert chip.read(bank=1, column=508) == [5, 6, 7, 8]
    assert chip.model.words[(5 * 4 + 0) * 512 + 8] == 0x1111 and chip.model.words[(8191 * 4 + 1) * 512 + 508] == 5
    assert chip.shown.count(None) == len(chip.shown) - 12, "it drives at other times"


def test_masks():
    """Those of a write at once, those of a read two clocks later."""
    chip = opened()
    chip.write(column=4, words=(0, 0, 0, 0))
    chip.write(column=4, words=(0xABCD,) * 4, masks=(0b00, 0b01, 0b10, 0b11))
    assert chip.read(column=4) == [0xABCD, 0xAB00, 0x00CD, 0]
    first = len(chip.shown)
    chip.give(Command.READ, address=4)
    chip.clock(dqm=0b01)
    chip.clock(5)
    assert chip.shown[first + 2] == 0xABCD ^ 0xFF and chip.shown[first + 3] == 0xAB00


def test_parts():
    for part in PARTS.values():
        assert SdramModel(part).words.nbytes == part.memory_bytes
