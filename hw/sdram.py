"""SDR SDRAM of 16 bits: what the data sheets ask for, the pins, and the sequencer that gives the commands.

A beat of 64 bits is one burst of four words: no command ends another's burst or masks words that nobody wants, and of four command slots it leaves three for
opening and closing rows meanwhile.
"""

from dataclasses import dataclass
from math import ceil, floor

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .checks import checker

__all__ = ["BANKS", "BEAT_WORDS", "CAS_LATENCY", "MODE", "PARTS", "Command", "SdramPins", "SdramTiming", "Sequencer", "access_layout"]

BANKS = 4
#: Words of a burst: one beat.
BEAT_WORDS = 4
CAS_LATENCY = 3
#: The mode register: CAS latency 3, sequential bursts of four, of writes as well.
MODE = CAS_LATENCY << 4 | 0b010
#: Clocks in which nobody drives the data pins between what is read and what is written: one for the chip to let go, one in reserve for the pads' delays.
_TURN_AROUND = 2
#: Beats of an access at most.
_MAX_BEATS = 64
#: Refreshes at power-up.
_INITIAL_REFRESHES = 8


@dataclass(frozen=True, kw_only=True)
class SdramTiming:
    """A part, as its data sheet describes it, at a clock. Raises ValueError naming the field if a value cannot be.

    Names are the data sheets': `rc_ns` is tRC. tRRD, tWR and tMRD are two clocks at least; where a data sheet says no more, as Winbond's, they are 0 here.
    """

    name: str
    #: 16-bit words of a row.
    columns: int = 512
    rows: int = 8192
    #: Clock period at CAS latency 3 at least.
    ck_ns: float
    #: ACTIVE to ACTIVE of the same bank.
    rc_ns: float
    #: ACTIVE to PRECHARGE, at least and at most.
    ras_ns: float
    ras_max_ns: float
    #: PRECHARGE to ACTIVE or REFRESH.
    rp_ns: float
    #: ACTIVE to READ or WRITE.
    rcd_ns: float
    #: ACTIVE to ACTIVE of another bank.
    rrd_ns: float = 0
    #: REFRESH to REFRESH or ACTIVE.
    rfc_ns: float
    #: The last word written to PRECHARGE.
    wr_ns: float = 0
    #: MODE REGISTER SET to any command.
    mrd_ns: float = 0
    #: Between refreshes, on average.
    refresh_ns: float = 64e6 / 8192
    #: From power-up to the first command.
    power_up_us: float = 200
    clock_mhz: float = 400 / 3
    #: Degrees by which the chip's clock is behind the controller's. Only who makes the clocks needs it.
    clock_phase: float = 0
    #: Clocks from a READ at the controller's outputs to its first word at the inputs: the CAS latency, and registers in the pads, if there are any.
    capture_latency: int = CAS_LATENCY

    def __post_init__(self):
        check = checker(self, f"SDRAM {self.name!r}", ValueError)
        check("columns", self.columns in (256, 512, 1024), "256, 512 or 1024")
        check("rows", 2 <= self.rows <= 8192 and self.rows & self.rows - 1 == 0, "a power of two in 2…8192")
        for name in ("ck_ns", "rc_ns", "ras_ns", "rp_ns", "rcd_ns", "rfc_ns", "power_up_us"):
            check(name, getattr(self, name) > 0, "above 0")
        for name in ("rrd_ns", "wr_ns", "mrd_ns"):
            check(name, getattr(self, name) >= 0, "at least 0")
        check("clock_mhz", 1 <= self.clock_mhz <= 1000 / self.ck_ns + 1e-9, f"in 1…{1000 / self.ck_ns:.1f}")
        check("clock_phase", -360 < self.clock_phase < 360, "in −360…360")
        check("capture_latency", CAS_LATENCY <= self.capture_latency <= 8, f"in {CAS_LATENCY}…8")
        check("ras_ns", self.ras_ns <= self.rc_ns, f"at most rc_ns, which is {self.rc_ns}")
        # A refresh waits for the access being made and for the next one, whose row is open; and rows are closed by refreshes, if by nothing else.
        longest = 2 * BEAT_WORDS * _MAX_BEATS + 8 * self.clocks("rfc")
        check("refresh_ns", self.interval > longest, f"more than {longest} clocks of {1000 / self.clock_mhz:.2f} ns")
        check("ras_max_ns", self.ras_max_ns > 2 * self.refresh_ns, "more than two times refresh_ns")

    def clocks(self, name: str) -> int:
        """Clocks that `name` ("rp" for `rp_ns`) takes at least."""
        least = 2 if name in ("rrd", "wr", "mrd") else 1
        return max(least, ceil(getattr(self, f"{name}_ns") * self.clock_mhz / 1000 - 1e-6))

    @property
    def interval(self) -> int:
        """Clocks from refresh to refresh."""
        return floor(self.refresh_ns * self.clock_mhz / 1000 + 1e-6)

    @property
    def row_beats(self) -> int:
        """Beats of a row."""
        return self.columns // BEAT_WORDS

    @property
    def memory_bytes(self) -> int:
        """Size of the memory."""
        return 2 * self.columns * self.rows * BANKS

    @property
    def bytes_per_second(self) -> float:
        """What the data pins carry at most."""
        return 2e6 * self.clock_mhz


def _board(name, columns):
    """For a board whose part nobody has looked at: times that are whole clocks of 133.3 MHz, as many as the slowest part of its kind needs."""
    return SdramTiming(name=name, columns=columns, ck_ns=7.5, rc_ns=67.5, ras_ns=45, ras_max_ns=100_000, rp_ns=22.5, rcd_ns=22.5, rrd_ns=15, rfc_ns=67.5, wr_ns=15,
                       mrd_ns=15)


#: Parts by name.
PARTS = {
    part.name: part
    for part in (
        _board("ulx3s-32m", 512),
        _board("ulx3s-64m", 1024),
        # Winbond W9825G6JH, revision A04, table 9.5, column -6; the KH is its successor. tRSC is tMRD.
        SdramTiming(name="W9825G6KH-6", ck_ns=6, rc_ns=60, ras_ns=42, ras_max_ns=100_000, rp_ns=15, rcd_ns=15, rfc_ns=60),
        # Alliance AS4C32M16SB, table 16, column -7.
        SdramTiming(name="AS4C32M16SB-7", columns=1024, ck_ns=7, rc_ns=63, ras_ns=42, ras_max_ns=120_000, rp_ns=21, rcd_ns=21, rrd_ns=14, rfc_ns=63, wr_ns=14,
                    mrd_ns=14),
    )
}


class Command(enum.Enum, shape=3):
    """RAS#, CAS# and WE#, lowest bit first; 1 is a pin that is low."""

    NOP = 0b000
    ACTIVE = 0b001
    READ = 0b010
    REFRESH = 0b011
    PRECHARGE = 0b101
    WRITE = 0b110
    MODE = 0b111


class SdramPins(wiring.Signature):
    """The chip's pins but its clock, named as amaranth-boards does it: `cs`, `ras`, `cas` and `we` are 1 where the pin is low. Outputs are registers."""

    def __init__(self):
        super().__init__({
            "clk_en": Out(1), "cs": Out(1), "ras": Out(1), "cas": Out(1), "we": Out(1), "ba": Out(2), "a": Out(13), "dqm": Out(2, init=0b11),
            "dq_o": Out(16), "dq_oe": Out(1), "dq_i": In(16),
        })


def access_layout(timing: SdramTiming) -> data.StructLayout:
    """Beats of one row, read or written. In the address a row's bank lies below it, so that what follows a row is in another bank."""
    return data.StructLayout({
        "column": range(timing.row_beats), "bank": range(BANKS), "row": range(timing.rows),
        "last": range(_MAX_BEATS),  # beats − 1
        "final": unsigned(1),       # the bus's burst ends with it
        "outside": unsigned(1),     # there is no such memory: what is read is wrong, nothing is written
        "write": unsigned(1),
    })


class _Wait:
    """A counter that tells by its sign that enough clocks have passed."""

    def __init__(self, m, most, name):
        self.count = Signal(signed(max(most - 1, 1).bit_length() + 1), init=-1, name=name)
        with m.If(~self.over):
            m.d.sync += self.count.eq(self.count - 1)

    @property
    def over(self):
        """From `clocks` clocks after `begin` on."""
        return self.count[-1]

    def begin(self, clocks):
        """The statement that begins to wait."""
        return self.count.eq(clocks - 2)


class Sequencer(wiring.Component):
    """Gives the commands for accesses, in their order, one `READ` or `WRITE` a beat, every four clocks where rows and directions allow it.

    Rows stay open. While the beats of one access are being given the next one is taken and its row opened; if that is in the bank in use, as soon as this has no
    beats left. `read` and `write` tell that `command` is one of these, `last` that the access ends with it; `final` and `outside` are the access's.

    After reset the chip is initialised, which `ready` tells. Every `interval` clocks a refresh falls due, and comes before any access not yet taken. So it waits
    for two accesses at most, which is less than an interval, and accesses for one refresh.
    """

    def __init__(self, timing: SdramTiming):
        if not isinstance(timing, SdramTiming):
            raise TypeError(f"timing must be an SdramTiming, not {timing!r}")
        self._timing = timing
        super().__init__({
            "accesses": In(stream.Signature(access_layout(timing))),
            "command": Out(Command), "bank": Out(range(BANKS)), "address": Out(13),
            "read": Out(1), "write": Out(1), "last": Out(1), "final": Out(1), "outside": Out(1), "ready": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        timing = self._timing
        clocks = timing.clocks
        rp, rcd, rfc, mrd = map(clocks, ("rp", "rcd", "rfc", "mrd"))
        # A row is open for so long that after tRP there is no tRC left to wait for. None is opened but for a READ or WRITE, tRCD later, and how long it has to stay
        # open after that is known: one counter per bank, which begins with these, tells when it may be closed.
        open_clocks = max(clocks("ras"), clocks("rc") - rp)
        after_read = max(BEAT_WORDS, open_clocks - rcd)
        after_write = max(BEAT_WORDS - 1 + clocks("wr"), open_clocks - rcd)
        read_to_write = BEAT_WORDS + CAS_LATENCY + _TURN_AROUND

        tick, powered = self._refresh_timer(m)
        due = Signal()
        with m.If(tick):
            m.d.sync += due.eq(1)
        holds = [_Wait(m, max(after_read, after_write), f"hold{bank}") for bank in range(BANKS)]  # until a bank may be closed
        # Until the next READ or WRITE; a clock less, as `column` is a register.
        read_wait, write_wait = _Wait(m, BEAT_WORDS - 1, "read_wait"), _Wait(m, read_to_write - 1, "write_wait")

        # Between commands to rows, which have RAS# in common; it begins a clock late, from the command's register.
        pause, row_command = _Wait(m, max(rp, rcd, clocks("rrd"), rfc, mrd) - 1, "pause"), self.command.as_value()[0]
        may_follow = pause.over & ~row_command
        with m.If(row_command), m.Switch(self.command):
            # A cycle less after ACTIVE: the first READ or WRITE is given one after the handing over.
            for kind, wait in (Command.PRECHARGE, rp), (Command.ACTIVE, max(rcd, clocks("rrd")) - 1), (Command.REFRESH, rfc), (Command.MODE, mrd):
                with m.Case(kind):
                    m.d.sync += pause.begin(wait - 1)

        # The access whose beats are being given.
        current, active = Signal(access_layout(timing), reset_less=True), Signal()
        left = Signal(signed(7), reset_less=True)  # beats after the next one, less one
        # The one after it, whose row is being opened.
        ahead, hand_over = Signal.like(current), Signal()
        column = Signal()  # a beat's READ or WRITE is given
        m.d.sync += column.eq(~column & (active | hand_over) & Mux(Mux(hand_over, ahead.write, current.write), write_wait.over, read_wait.over))
        with m.If(column):
            m.d.sync += [
                current.column.eq(current.column + 1), left.eq(left - 1), active.eq(~left[-1]),
                read_wait.begin(BEAT_WORDS - 1), write_wait.begin(Mux(current.write, BEAT_WORDS, read_to_write) - 1),
            ]

        rows = Array(Signal(range(timing.rows), name=f"row{bank}", reset_less=True) for bank in range(BANKS))
        opened = Signal(BANKS)
        open_row, is_open, hit = Signal(range(timing.rows), reset_less=True), Signal(), Signal()
        closable, quiet = Signal(), Signal()  # `ahead`'s bank may be closed; all of them may
        given = self.read | self.write  # and its bank's counter does not know yet
        m.d.sync += [
            closable.eq(Array(hold.over for hold in holds)[ahead.bank] & ~(active & (current.bank == ahead.bank)) & ~(given & (self.bank == ahead.bank))),
            quiet.eq(Cat(hold.over for hold in holds).all() & ~active & ~given),
            hit.eq(open_row == ahead.row),
        ]
        command, address = Signal(Command), Signal(13)  # to rows
        initial = Signal(signed(4), init=_INITIAL_REFRESHES - 2)  # refreshes
        with m.FSM(init="POWER UP"):
            with m.State("POWER UP"), m.If(powered):
                m.next = "CLOSE"
            with m.State("IDLE"):
                m.d.comb += self.accesses.ready.eq(~due)
                m.d.sync += [
                    ahead.eq(self.accesses.payload), open_row.eq(rows[self.accesses.payload.bank]),
                    is_open.eq(opened.bit_select(self.accesses.payload.bank, 1)),
                ]
                with m.If(due):
                    m.next = "CLOSE"
                with m.Elif(self.accesses.valid):
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "DECIDE"
            with m.State("DECIDE"):
                with m.If(~is_open):
                    m.next = "ACTIVATE"
                with m.Elif(hit):
                    m.next = "HAND OVER"
                with m.Else():
                    m.next = "PRECHARGE"
            with m.State("PRECHARGE"):
                m.d.comb += command.eq(Mux(closable, Command.PRECHARGE, Command.NOP))
                with m.If(closable & ~column):
                    m.next = "ACTIVATE"
            with m.State("ACTIVATE"):
                m.d.comb += [command.eq(Mux(may_follow, Command.ACTIVE, Command.NOP)), address.eq(ahead.row)]
                with m.If(may_follow & ~column):
                    m.d.sync += [opened.bit_select(ahead.bank, 1).eq(1), rows[ahead.bank].eq(ahead.row)]
                    m.next = "HAND OVER"
            with m.State("HAND OVER"), m.If(may_follow & ~active):
                m.d.comb += hand_over.eq(1)
                m.d.sync += [active.eq(1), current.eq(ahead), left.eq(ahead.last - 1)]
                m.next = "IDLE"
            with m.State("CLOSE"):
                m.d.comb += [command.eq(Mux(quiet & may_follow, Command.PRECHARGE, Command.NOP)), address.eq(1 << 10)]
                with m.If(quiet & may_follow):
                    m.d.sync += opened.eq(0)
                    m.next = "REFRESH"
            with m.State("REFRESH"):
                m.d.comb += command.eq(Mux(may_follow, Command.REFRESH, Command.NOP))
                with m.If(may_follow):
                    m.d.sync += [initial.eq(initial - 1), due.eq(tick)]
                    with m.If(self.ready):
                        m.next = "IDLE"  # all rows are closed, and to open one has to wait for `pause`
                    with m.Elif(initial[-1]):
                        m.next = "SET MODE"
            with m.State("SET MODE"):
                m.d.comb += [command.eq(Mux(may_follow, Command.MODE, Command.NOP)), address.eq(MODE)]
                with m.If(may_follow):
                    m.d.sync += self.ready.eq(1)
                    m.next = "IDLE"

        # The banks' counters begin two clocks late: behind the command's register, and before that of `closable` and `quiet`.
        for bank, hold in enumerate(holds):
            with m.If(given & (self.bank == bank)):
                m.d.sync += hold.begin(Mux(self.write, after_write, after_read) - 2)
        m.d.sync += [
            self.read.eq(column & ~current.write), self.write.eq(column & current.write),
            self.last.eq(left[-1]), self.final.eq(current.final), self.outside.eq(current.outside),
            self.command.eq(Mux(column, Mux(current.write, Command.WRITE, Command.READ), command)),
            self.bank.eq(Mux(column, current.bank, ahead.bank)),
            self.address.eq(Mux(column, current.column << 2, address)),
        ]
        return m

    def _refresh_timer(self, m):
        """Returns a pulse for each refresh that falls due, and whether the chip has been powered long enough."""
        interval = self._timing.interval
        intervals = ceil(self._timing.power_up_us * self._timing.clock_mhz / interval)
        timer = Signal(signed(interval.bit_length() + 1), init=interval - 2)
        powering_up = Signal(signed(intervals.bit_length() + 1), init=intervals - 1)
        m.d.sync += timer.eq(Mux(timer[-1], interval - 2, timer - 1))
        with m.If(timer[-1] & ~powering_up[-1]):
            m.d.sync += powering_up.eq(powering_up - 1)
        return timer[-1], powering_up[-1]
