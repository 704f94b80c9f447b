"""A serial line: bytes of eight bits, no parity, one stop bit."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["Bytes", "UartReceiver", "UartTransmitter"]

_PHASE_BITS = 20


class Bytes(wiring.Signature):
    """Bytes that must be taken at once."""

    def __init__(self):
        super().__init__({"valid": Out(1), "data": Out(8)})


def _increment(clock_hz, baud):
    """What is added to the phase of a bit each cycle, of 2^_PHASE_BITS; half a percent off at most. A bit takes at least eight cycles."""
    low, high = 100 * clock_hz / (1 << _PHASE_BITS), clock_hz / 8
    if not (isinstance(baud, int) and low <= baud <= high):
        raise ValueError(f"baud must be an integer in {low:.0f}…{high:.0f} at a clock of {clock_hz / 1e6:g} MHz, not {baud!r}")
    return round((baud << _PHASE_BITS) / clock_hz)


class UartReceiver(wiring.Component):
    """Bytes from a line, each shown in the middle of its stop bit; what has none is dropped. The line may be 2 % faster or slower than `baud`.

    Raises ValueError if the clock cannot tell the bits apart.
    """

    def __init__(self, clock_hz: float, baud: int):
        self._increment = _increment(clock_hz, baud)
        super().__init__({"pin": In(1, init=1), "o": Out(Bytes())})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules += FFSynchronizer(self.pin, line, init=1)
        phase, tick = Signal(_PHASE_BITS), Signal()
        m.d.sync += Cat(phase, tick).eq(phase + self._increment)
        bits = Signal(9)  # the last ones, the latest on top
        left = Signal(range(11))  # bits that the byte still has
        quiet = Signal()  # the line has been high since the last byte
        m.d.sync += self.o.valid.eq(0)
        m.d.comb += self.o.data.eq(bits[:8])
        with m.If(left == 0):
            m.d.sync += quiet.eq(quiet | line)
            with m.If(quiet & ~line):
                m.d.sync += [phase.eq(1 << _PHASE_BITS - 1), tick.eq(0), left.eq(10), quiet.eq(0)]
        with m.Elif(tick):
            m.d.sync += [bits.eq(Cat(bits[1:], line)), left.eq(left - 1)]
            with m.If((left == 10) & line):  # it was no start bit
                m.d.sync += left.eq(0)
            with m.If(left == 1):
                m.d.sync += [self.o.valid.eq(line), quiet.eq(line)]
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a line, one after the other without a pause. Raises ValueError as :class:`UartReceiver`."""

    def __init__(self, clock_hz: float, baud: int):
        self._increment = _increment(clock_hz, baud)
        super().__init__({"i": In(stream.Signature(8)), "pin": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        phase, tick = Signal(_PHASE_BITS), Signal()
        bits = Signal(10, init=-1)
        left = Signal(range(11))  # bits of the byte that the line has not had
        m.d.comb += [self.i.ready.eq((left == 0) | (tick & (left == 1))), self.pin.eq(bits[0])]
        m.d.sync += Cat(phase, tick).eq(Mux(left == 0, 0, phase) + self._increment)
        with m.If(self.i.ready):
            m.d.sync += [bits.eq(Mux(self.i.valid, Cat(Const(0, 1), self.i.payload, Const(1, 1)), (1 << 10) - 1)), left.eq(Mux(self.i.valid, 10, 0))]
        with m.Elif(tick):
            m.d.sync += [bits.eq(Cat(bits[1:], Const(1, 1))), left.eq(left - 1)]
        return m
