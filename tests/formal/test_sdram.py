"""The SDRAM's sequencer: commands keep their distances, beats go where they should, refreshes and accesses both come in time."""

import pytest
from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, assume, mutated, prove

from celosia.hw import sdram

BANKS, WORDS, LATENCY = sdram.BANKS, sdram.BEAT_WORDS, sdram.CAS_LATENCY
#: Accesses of one or two beats in rows of two: the same counters with fewer bits.
SMALL = (("_MAX_BEATS = 64", "_MAX_BEATS = 2"),)
#: The data sheets' slowest times, but refreshes every 100 clocks.
SLOWEST = {"name": "small", "rows": 2, "columns": 256, "ck_ns": 7.5, "rc_ns": 66, "ras_ns": 44, "ras_max_ns": 100_000, "rp_ns": 21, "rcd_ns": 21, "rrd_ns": 15,
           "rfc_ns": 66, "wr_ns": 15, "mrd_ns": 15, "refresh_ns": 750, "power_up_us": 0.7}
#: As few clocks between refreshes as there may be, with refreshes that are short.
OFTEN = SLOWEST | {"rfc_ns": 15, "refresh_ns": 375, "power_up_us": 0.3}
#: One in which tRC, tRAS and tRRD ask for more than follows from the others.
SPREAD = SLOWEST | {"rc_ns": 105, "ras_ns": 60, "rrd_ns": 30, "wr_ns": 22.5, "mrd_ns": 30}
#: Of the others, the pause after ACTIVE is over by itself before an access is handed over.
LATE = SLOWEST | {"rc_ns": 90, "ras_ns": 60, "rcd_ns": 37.5}
NOP, ACTIVE, READ, WRITE, PRECHARGE, REFRESH, MODE = (sdram.Command[name].value for name in ("NOP", "ACTIVE", "READ", "WRITE", "PRECHARGE", "REFRESH", "MODE"))


def small(old="", new="", module=sdram):
    for pair in (*SMALL, *([(old, new)] if old else [])):
        module = mutated(module, *pair)
    return module


class Since:
    """Clocks since an event, up to `most`; `most` if there has been none."""

    def __init__(self, m, event, most, name):
        self.count = Signal(range(most + 1), init=most, name=name)
        with m.If(event):
            m.d.sync += self.count.eq(1)
        with m.Elif(self.count != most):
            m.d.sync += self.count.eq(self.count + 1)

    def less(self, clocks):
        return self.count < clocks


def any_of(command, *commands):
    result = command == commands[0]
    for each in commands[1:]:
        result = result | (command == each)
    return result


class Spacing(wiring.Component):
    """The sequencer with any accesses and any refreshes; one bank is followed, which one is free."""

    def __init__(self, module, times=SLOWEST):
        self._timing = module.SdramTiming(**times)
        free = self._free = Signal(2)
        self._sequencer = type("Part", (module.Sequencer,), {"_refresh_timer": lambda self, m: (free[0], free[1])})(self._timing)
        super().__init__({
            "access": In(len(self._sequencer.accesses.payload.as_value())), "valid": In(1), "tick": In(1), "powered": In(1), "follow": In(2),
            "rc": Out(1), "ras": Out(1), "rp": Out(1), "rcd": Out(1), "rrd": Out(1), "rfc": Out(1), "wr": Out(1), "mrd": Out(1),
            "opened": Out(1),      # ACTIVE of an open bank
            "closed": Out(1),      # READ or WRITE of a closed one
            "not_idle": Out(1),    # REFRESH or MODE with an open bank
            "cut": Out(1),         # a burst is cut short
            "contention": Out(1),  # a WRITE while the chip may still drive
            "too_early": Out(1),   # before the chip is initialised
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.sequencer = sequencer = self._sequencer
        m.d.comb += [
            sequencer.accesses.payload.eq(self.access), sequencer.accesses.valid.eq(self.valid), self._free.eq(self.tick | self.powered << 1),
        ]
        clocks = self._timing.clocks
        begun, followed = Signal(), Signal(range(BANKS))
        m.d.sync += begun.eq(1)
        with m.If(~begun):
            m.d.sync += followed.eq(self.follow)
        command, everything = sequencer.command.as_value(), sequencer.address[10]
        mine = sequencer.bank == followed
        active, column = any_of(command, ACTIVE), any_of(command, READ, WRITE)
        precharge = (command == PRECHARGE) & (mine | everything)
        to_all = any_of(command, REFRESH, MODE)

        is_open = Signal()
        with m.If(precharge):
            m.d.sync += is_open.eq(0)
        with m.If(active & mine):
            m.d.sync += is_open.eq(1)
        since_active = Since(m, active & mine, clocks("rc"), "since_active")
        since_other = Since(m, active & ~mine, clocks("rrd"), "since_other")
        since_precharge = Since(m, precharge, clocks("rp"), "since_precharge")
        since_refresh = Since(m, command == REFRESH, clocks("rfc"), "since_refresh")
        since_mode = Since(m, command == MODE, clocks("mrd"), "since_mode")
        since_read = Since(m, command == READ, WORDS + LATENCY + 1, "since_read")
        since_column = Since(m, column, WORDS, "since_column")
        since_mine = Since(m, column & mine, WORDS, "since_mine")
        since_write = Since(m, (command == WRITE) & mine, WORDS - 1 + clocks("wr"), "since_write")
        refreshes, mode = Signal(range(9)), Signal()
        with m.If((command == REFRESH) & (refreshes != 8)):
            m.d.sync += refreshes.eq(refreshes + 1)
        with m.If(command == MODE):
            m.d.sync += mode.eq(1)
        m.d.comb += [
            self.rc.eq((active & mine | to_all) & since_active.less(clocks("rc"))),
            self.ras.eq(precharge & is_open & since_active.less(clocks("ras"))),
            self.rp.eq((active & mine | to_all) & since_precharge.less(clocks("rp"))),
            self.rcd.eq(column & mine & since_active.less(clocks("rcd"))),
            self.rrd.eq(active & mine & since_other.less(clocks("rrd"))),
            self.rfc.eq((active | to_all) & since_refresh.less(clocks("rfc"))),
            self.wr.eq(precharge & is_open & since_write.less(WORDS - 1 + clocks("wr"))),
            self.mrd.eq((command != NOP) & since_mode.less(clocks("mrd"))),
            self.opened.eq(active & mine & is_open),
            self.closed.eq(column & mine & ~is_open),
            self.not_idle.eq(to_all & is_open),
            self.cut.eq(column & since_column.less(WORDS) | precharge & since_mine.less(WORDS)),
            self.contention.eq((command == WRITE) & since_read.less(WORDS + LATENCY + 1)),
            self.too_early.eq((active | column) & ~(mode & (refreshes == 8))),
        ]
        return m


class Order(wiring.Component):
    """The sequencer beside a list of the accesses it has taken, of which there are two at most."""

    def __init__(self, module):
        timing = module.SdramTiming(**SLOWEST)
        free = self._free = Signal(2)
        self._layout = module.access_layout(timing)
        self._sequencer = type("Part", (module.Sequencer,), {"_refresh_timer": lambda self, m: (free[0], free[1])})(timing)
        super().__init__({
            "access": In(self._layout.size), "valid": In(1), "tick": In(1), "powered": In(1),
            "phantom": Out(1),    # a beat that nobody asked for
            "astray": Out(1),     # a beat in another place, or the other direction
            "mismarked": Out(1),  # a beat that is said to be what it is not
            "too_many": Out(1),   # a third access is taken
        })

    def elaborate(self, _platform):
        m = Module()
        m.submodules.sequencer = sequencer = self._sequencer
        taken = sequencer.accesses.payload
        m.d.comb += [taken.eq(self.access), sequencer.accesses.valid.eq(self.valid), self._free.eq(self.tick | self.powered << 1)]
        command = sequencer.command.as_value()
        open_rows = Array(Signal(name=f"open_row{bank}") for bank in range(BANKS))
        with m.If(command == ACTIVE):
            m.d.sync += open_rows[sequencer.bank].eq(sequencer.address)
        first, second = Signal(self._layout), Signal(self._layout)
        count = Signal(range(4))
        beat = any_of(command, READ, WRITE)
        put, drop = sequencer.accesses.valid & sequencer.accesses.ready, beat & (first.last == 0)
        m.d.sync += count.eq(count + put - drop)
        with m.If(beat):
            m.d.sync += [first.last.eq(first.last - 1), first.column.eq(first.column + 1)]
        with m.If(drop):
            m.d.sync += first.eq(second)
        with m.If(put & (count - drop == 0)):
            m.d.sync += first.eq(taken)
        with m.Elif(put):
            m.d.sync += second.eq(taken)
        # A row's last column is followed by none.
        m.d.comb += assume(~(taken.column.all() & (taken.last != 0)))
        m.d.comb += [
            self.phantom.eq(beat & (count == 0)),
            self.astray.eq(beat & (count != 0) & ~(
                (sequencer.bank == first.bank) & (open_rows[first.bank] == first.row) & (sequencer.address == first.column << 2)
                & (command == Mux(first.write, WRITE, READ)))),
            self.mismarked.eq((sequencer.read != (command == READ)) | (sequencer.write != (command == WRITE)) | beat & ~(
                (sequencer.last == (first.last == 0)) & (sequencer.final == first.final) & (sequencer.outside == first.outside))),
            self.too_many.eq(count == 3),
        ]
        return m


class Refreshes(wiring.Component):
    """The sequencer with its timer and any accesses."""

    #: Clocks that an access waits at most, until it is taken: for the beats before it, a row to be closed and another to be opened, and one refresh.
    patience = 64

    def __init__(self, module):
        self._ticks = []

        def keep(sequencer, m):
            tick, powered = module.Sequencer._refresh_timer(sequencer, m)
            self._ticks.append(tick)
            return tick, powered

        self._sequencer = type("Part", (module.Sequencer,), {"_refresh_timer": keep})(module.SdramTiming(**OFTEN))
        super().__init__({
            "access": In(len(self._sequencer.accesses.payload.as_value())), "valid": In(1),
            "owed": Out(1),     # two refreshes are, or one has been forgotten
            "surplus": Out(1),  # one too many
            "starved": Out(1),  # an access waits for longer
        })

    def elaborate(self, _platform):
        m = Module()
        sequencer = self._sequencer
        m.submodules.sequencer = sequencer.elaborate(None)  # now, for the timer inside
        (tick,) = self._ticks
        m.d.comb += [sequencer.accesses.payload.eq(self.access), sequencer.accesses.valid.eq(self.valid)]
        owed = Signal(range(3))
        given = sequencer.command.as_value() == REFRESH
        # A refresh is given the clock before it is seen.
        with m.If(~sequencer.ready):
            m.d.sync += owed.eq(0)
        with m.Else():
            m.d.sync += owed.eq(owed + tick - given)
        waited = Signal(range(self.patience + 1))
        m.d.sync += waited.eq(0)
        with m.If(sequencer.ready & self.valid & ~sequencer.accesses.ready):
            m.d.sync += waited.eq(waited + 1)
        m.d.comb += [self.owed.eq(owed == 2), self.surplus.eq((owed == 0) & given & sequencer.ready & ~tick), self.starved.eq(waited == self.patience)]
        return m


def rest(*cases):
    """Those that only `make prove` runs."""
    return [pytest.param(*case, marks=pytest.mark.formal) for case in cases]


def test_spacing():
    prove(Spacing(small()))


@pytest.mark.formal
@pytest.mark.parametrize("times", [SPREAD, LATE], ids=["spread", "late"])
def test_spacing_of_other_times(times):
    prove(Spacing(small(), times))


@pytest.mark.formal
def test_order():
    prove(Order(small()))


@pytest.mark.formal
def test_refreshes():
    prove(Refreshes(small()), seconds=1200)


@pytest.mark.parametrize(("old", "new", "fault", "times"), [
    ("(Command.REFRESH, rfc)", "(Command.REFRESH, rfc - 1)", "rfc", SLOWEST),
    ("after_read = max(BEAT_WORDS, open_clocks - rcd)", "after_read = open_clocks - rcd", "cut", SLOWEST),
    *rest(
        ("(Command.PRECHARGE, rp)", "(Command.PRECHARGE, rp - 1)", "rp", SLOWEST),
        ("pause.over & ~row_command", "pause.over", "rp|rcd|rfc", SLOWEST),
        ('max(rcd, clocks("rrd")) - 1', 'max(rcd, clocks("rrd")) - 2', "rcd", LATE),
        ("(Command.MODE, mrd)", "(Command.MODE, 2)", "mrd", SPREAD),
        ('max(clocks("ras"), clocks("rc") - rp)', 'clocks("ras")', "rc", SPREAD),
        ("after_read = max(BEAT_WORDS, open_clocks - rcd)", "after_read = BEAT_WORDS", "ras|rc", SPREAD),
        ('BEAT_WORDS - 1 + clocks("wr")', 'BEAT_WORDS - 2 + clocks("wr")', "wr", SLOWEST),
        ("BEAT_WORDS + CAS_LATENCY + _TURN_AROUND", "BEAT_WORDS + CAS_LATENCY", "contention", SLOWEST),
        (" & ~(given & (self.bank == ahead.bank))", "", "cut|ras|wr", SLOWEST),
        ("& ~active & ~given", "& ~given", "cut|closed|ras|wr", SLOWEST),
        ("m.d.sync += opened.eq(0)", "pass", "closed|rfc", SLOWEST),
        ("_INITIAL_REFRESHES = 8", "_INITIAL_REFRESHES = 7", "too_early", SLOWEST),
    ),
])
def test_faults_in_spacing_show(old, new, fault, times):
    with pytest.raises(Refuted, match=fault):
        prove(Spacing(small(old, new), times))


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("left.eq(ahead.last - 1)", "left.eq(ahead.last)", "phantom|mismarked|astray"),
    *rest(
        ("hit.eq(open_row == ahead.row)", "hit.eq(1)", "astray"),
        ("current.column.eq(current.column + 1)", "current.column.eq(current.column)", "astray"),
        ("m.If(may_follow & ~active)", "m.If(may_follow)", "astray|mismarked|too_many"),
        ("self.last.eq(left[-1])", "self.last.eq(current.last == 0)", "mismarked"),
    ),
])
def test_faults_in_order_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Order(small(old, new)))


@pytest.mark.formal
@pytest.mark.parametrize(("old", "new", "fault"), [
    ("m.d.sync += due.eq(1)", "m.d.sync += due.eq(0)", "owed"),
    ("due.eq(tick)]", "due.eq(due)]", "surplus|starved"),
])
def test_faults_in_refreshes_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        prove(Refreshes(small(old, new)), engine="bmc3 -F 200")
