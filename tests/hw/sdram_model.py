"""A model of the SDRAM chip on its pins: it stores what is written, and raises `Violation` where a rule of the data sheet is broken.

It knows nothing of the controller: times are nanoseconds, from edge to edge, and the mode register decides when it answers. What a chip allows and the model does not
know it refuses: bursts that are cut short, auto precharge, burst stop, a clock that is switched off.
"""

import cocotb
import numpy as np
from amaranth.hdl import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge

from celosia.hw.sdram import BANKS, Command, SdramTiming

__all__ = ["OnePort", "SdramModel", "Violation", "attach", "start"]

#: Outputs to the chip and their widths.
PINS = {"clk_en": 1, "cs": 1, "ras": 1, "cas": 1, "we": 1, "ba": 2, "a": 13, "dqm": 2, "dq": 16, "dq_oe": 1}

#: Refreshes that may be owed at any time. On average there has to be one an interval.
_POSTPONED = 1
_BURST_STOP = 0b100


class Violation(AssertionError):
    """A rule of the data sheet is broken."""


class SdramModel:
    """The chip. `words` is its memory in the order of row:bank:column, 16 bits each; it holds anything at first.

    `clock` is a rising edge of its clock, with what the pins show at this edge, and returns the word that they have to show at the next one, or None.
    """

    def __init__(self, timing: SdramTiming, seed: int = 0):
        self.timing = timing
        self.words = np.tile(np.random.default_rng(seed).integers(0, 1 << 16, 4099, np.uint16), timing.memory_bytes // 2 // 4099 + 1)[: timing.memory_bytes // 2]
        self.commands = dict.fromkeys(Command, 0)
        self._period = 1000 / timing.clock_mhz
        self._edge = 0
        self.power_up()

    def power_up(self) -> None:
        """Begins anew; what was stored stays."""
        self._begin = self._edge
        self._rows = [None] * BANKS
        never = self._edge - 10**9
        self._active, self._precharged, self._column, self._written = ([never] * BANKS for _ in range(4))  # edges of the last one
        self._last_active, self._last_column, self._refreshed, self._mode_set = never, never, never, never
        self._all_precharged, self._refreshes, self._latency, self.initialised = False, 0, None, False
        self._refresh_by = self._close_by = float("inf")
        self._burst = None  # bank, row, column, word of what is being written
        self._outputs = {}  # edge → place of the word that the chip shows at it
        self._masks = [0b11, 0b11]  # DQM at the last two edges

    def idle(self, edges: int) -> None:
        """Edges without a command, on which the chip shows nothing."""
        if edges and (self._burst or any(edge >= self._edge for edge in self._outputs)):
            self._fail("nobody looks at the pins while words are on their way")
        self._edge += edges

    def clock(self, *, clk_en=1, cs=0, ras=0, cas=0, we=0, ba=0, a=0, dqm=0, dq=0, dq_oe=0) -> "int | None":
        code = (ras | cas << 1 | we << 2) if cs else 0
        if not clk_en:
            self._fail("the clock is off")
        if not self.initialised and dqm != 0b11:
            self._fail("DQM is low before initialisation")
        if self._edge > self._refresh_by:
            self._fail(f"refresh rate: {_POSTPONED + 1} refreshes are owed")
        if self._edge > self._close_by:
            self._fail("tRAS: a row has been open for longer than its maximum")
        if code:
            if code == _BURST_STOP:
                self._fail("burst stop, which the model does not know")
            self._command(Command(code), ba, a)
        if dq_oe and any(edge in self._outputs for edge in (self._edge - 1, self._edge, self._edge + 1)):
            self._fail("bus contention: the chip drives DQ, or has just done so or is about to")
        if self._burst:
            self._write(dq, dqm, dq_oe)
        self._outputs.pop(self._edge - 1, None)
        self._masks = [self._masks[1], dqm]
        self._edge += 1
        place = self._outputs.get(self._edge)
        if place is None:
            return None
        # The mask of two edges before; who reads masked bytes finds something else.
        hidden = sum(0xFF << 8 * byte for byte in range(2) if self._masks[0] >> byte & 1)
        return int(self.words[place]) ^ hidden

    def _fail(self, what):
        raise Violation(f"edge {self._edge}: {what}")

    def _spaced(self, name, edge, what):
        """At least tNAME since an edge."""
        least = getattr(self.timing, f"{name}_ns")
        clocks = self._edge - edge
        if clocks * self._period < least - 1e-3 or (name in ("rrd", "wr", "mrd") and clocks < 2):
            self._fail(f"t{name.upper()}: {what} after {clocks} clocks, {clocks * self._period:.1f} ns")

    def _command(self, command, bank, address):
        self.commands[command] += 1
        name = command.name
        self._spaced("mrd", self._mode_set, name)
        if self._burst and command in (Command.REFRESH, Command.MODE):
            self._fail(f"{name} while a burst is being written")
        if (self._edge - self._begin) * self._period < 1000 * self.timing.power_up_us - 1e-3:
            self._fail(f"initialisation: {name} before the chip has had its power for {self.timing.power_up_us} us")
        if not self.initialised and command in (Command.ACTIVE, Command.READ, Command.WRITE):
            self._fail(f"initialisation: {name} too early")
        {
            Command.ACTIVE: self._activate, Command.READ: self._access, Command.WRITE: self._access, Command.PRECHARGE: self._precharge,
            Command.REFRESH: self._refresh, Command.MODE: self._set_mode,
        }[command](command, bank, address)

    def _activate(self, _command, bank, row):
        if self._rows[bank] is not None:
            self._fail(f"ACTIVE of bank {bank}, which is open")
        self._spaced("rfc", self._refreshed, "ACTIVE after REFRESH")
        self._spaced("rc", self._active[bank], "ACTIVE after ACTIVE")
        self._spaced("rp", self._precharged[bank], "ACTIVE after PRECHARGE")
        self._spaced("rrd", self._last_active, "ACTIVE after ACTIVE of another bank")
        self._rows[bank] = row
        self._active[bank] = self._last_active = self._edge
        self._find_close_by()

    def _access(self, command, bank, address):
        if self._rows[bank] is None:
            self._fail(f"{command.name} of bank {bank}, which is not open")
        if address >> 10:
            self._fail("auto precharge, which the model does not know")
        if address >= self.timing.columns:
            self._fail(f"column {address} of {self.timing.columns}")
        if self._edge - self._last_column < self._length:
            self._fail(f"{command.name} cuts a burst short")
        self._spaced("rcd", self._active[bank], f"{command.name} after ACTIVE")
        self._column[bank] = self._last_column = self._edge
        if command == Command.WRITE:
            self._burst = (bank, address, 0)
            return
        for word in range(self._length):
            self._outputs[self._edge + self._latency + word] = self._place(bank, address, word)

    def _place(self, bank, column, word):
        column = column - column % self._length + (column + word) % self._length
        return (self._rows[bank] * BANKS + bank) * self.timing.columns + column

    def _write(self, dq, dqm, dq_oe):
        bank, column, word = self._burst
        if not dq_oe:
            self._fail("nobody drives DQ in a WRITE")
        place = self._place(bank, column, word)
        hidden = sum(0xFF << 8 * byte for byte in range(2) if dqm >> byte & 1)
        self.words[place] = int(self.words[place]) & hidden | dq & ~hidden & 0xFFFF
        self._written[bank] = self._edge
        self._burst = (bank, column, word + 1) if word + 1 < self._length else None

    def _precharge(self, _command, bank, address):
        everything = address >> 10 & 1
        for each in range(BANKS) if everything else [bank]:
            if self._rows[each] is not None:
                self._spaced("ras", self._active[each], "PRECHARGE after ACTIVE")
                if self._edge - self._column[each] < self._length:
                    self._fail("PRECHARGE cuts a burst short")
                self._spaced("wr", self._written[each], "PRECHARGE after the last word written")
            if self._rows[each] is not None or not self.initialised:
                self._precharged[each] = self._edge
            self._rows[each] = None
        self._all_precharged |= bool(everything)
        self._find_close_by()

    def _idle(self, command):
        """What REFRESH and MODE demand."""
        if not self._all_precharged:
            self._fail(f"initialisation: {command.name} before PRECHARGE of all banks")
        if any(row is not None for row in self._rows):
            self._fail(f"{command.name} while a bank is open")
        self._spaced("rp", max(self._precharged), f"{command.name} after PRECHARGE")
        self._spaced("rfc", self._refreshed, f"{command.name} after REFRESH")

    def _refresh(self, command, _bank, _address):
        self._idle(command)
        self._spaced("rc", self._last_active, "REFRESH after ACTIVE")
        self._refreshed = self._edge
        self._refreshes += 1
        self._refresh_by += self.timing.refresh_ns / self._period
        self._begin_to_work()

    def _set_mode(self, command, _bank, mode):
        self._idle(command)
        if mode & 0b111 not in (0, 1, 2, 3) or mode >> 3 & 1 or mode >> 7:
            self._fail(f"mode {mode:#x}, which the model does not know")
        self._latency, self._length = mode >> 4 & 0b111, 1 << (mode & 0b111)
        if self._latency != 3:
            self._fail(f"CAS latency {self._latency} at a clock period of {self._period:.1f} ns")
        self._mode_set = self._edge
        self._begin_to_work()

    def _begin_to_work(self):
        if not self.initialised and self._latency and self._refreshes >= 8:
            self.initialised = True
            self._refresh_by = self._edge + (1 + _POSTPONED) * self.timing.refresh_ns / self._period

    def _find_close_by(self):
        opened = [edge for edge, row in zip(self._active, self._rows) if row is not None]
        self._close_by = min(opened) + self.timing.ras_max_ns / self._period if opened else float("inf")


#: Without anybody's doing: the clock is on, the masks are high.
_AT_POWER_UP = 1 | 0b11 << sum(width for name, width in list(PINS.items())[: list(PINS).index("dqm")])


class OnePort(wiring.Component):
    """A controller whose outputs to the chip are one port, which a test reads in a fifth of the time: `outputs`, in the order of `PINS`.

    registers: with one more between it and the pins, in both directions, as pads have them.
    """

    def __init__(self, controller, registers=False):
        self._controller, self._registers = controller, registers
        super().__init__({
            name: member for name, member in controller.signature.members.items() if name != "pins"
        } | {"outputs": Out(sum(PINS.values()), init=_AT_POWER_UP), "dq_i": In(16)})

    def elaborate(self, _platform):
        m = Module()
        m.submodules.controller = controller = self._controller
        for name in self.signature.members:
            if name not in ("outputs", "dq_i"):
                wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(controller, name))
        domain = m.d.memory if self._registers else m.d.comb
        domain += [self.outputs.eq(Cat(getattr(controller.pins, "dq_o" if name == "dq" else name) for name in PINS)), controller.pins.dq_i.eq(self.dq_i)]
        return m


async def attach(dut, model: SdramModel) -> None:
    """Connect the model to a `OnePort`; a violation ends the test. Returns never."""
    fields, first = [], 0
    for name, width in PINS.items():
        fields.append((name, first, (1 << width) - 1))
        first += width
    edge, outputs, dq_i = RisingEdge(dut.memory_clk), dut.outputs, dut.dq_i
    shown = 0
    while True:
        await edge
        value = outputs.value.to_unsigned()
        word = model.clock(**{name: value >> first & mask for name, first, mask in fields})
        if word != shown:
            shown = word
            dq_i.value = 0xDEAD if word is None else word  # nobody drives the pins between words


async def start(dut, model: SdramModel, engine_ns: float = 10) -> None:
    """Start both clocks, reset, and connect the model."""
    cocotb.start_soon(Clock(dut.memory_clk, round(1000 / model.timing.clock_mhz, 3), unit="ns").start())
    cocotb.start_soon(Clock(dut.clk, engine_ns, unit="ns").start())
    dut.rst.value = dut.memory_rst.value = 1
    cocotb.start_soon(attach(dut, model))
    await ClockCycles(dut.clk, 8)
    dut.rst.value = dut.memory_rst.value = 0
    await RisingEdge(dut.clk)
