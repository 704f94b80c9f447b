"""DRAIN of the in-order engine: sums → bias, requantization, clamp → output staging."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import AcceleratorConfig
from .inorder_unit import PARAMETER_BEATS, InOrderUnit
from .isa import Drain
from .parameters import Parameters
from .primitives import delayed

__all__ = ["InOrderDrain", "SerialRequantizer"]


class SerialRequantizer(wiring.Component):
    """code = clamp(zero_point + (((sum + bias) · multiplier + 2^(shift−1)) >> shift), low, high), a digit of the multiplier a cycle.

    `start` takes sum, multiplier and shift (less 16: 0…31) if `ready`, as it is again ⌈shift / 4⌉ + 1 cycles later; `valid` shows the code two cycles after that.
    sum + bias is an int32. What `start` does not take must stay until then.
    """

    #: Bits of a digit.
    digit_bits = 4

    sum: In(signed(32))
    bias: In(signed(32))
    multiplier: In(16)
    shift: In(5)
    zero_point: In(signed(8))
    low: In(signed(8))
    high: In(signed(8))
    start: In(1)
    ready: Out(1)
    valid: Out(1)
    code: Out(signed(8))

    def elaborate(self, _platform):
        m = Module()
        step = self.digit_bits
        align_bits = exact_log2(step)
        # The product grows from the multiplier's lowest bit on, a shift to the right for each; behind its sixteen come zeros. A shift that is no multiple of a
        # digit is made one by zeros below the lowest bit.
        factor = Signal(signed(32), reset_less=True)
        digits = Signal(16 + step - 1, reset_less=True)
        partial = Signal(signed(32), reset_less=True)
        dropped = Signal(reset_less=True)  # the last bit that has been shifted out
        left = Signal(range(-(-47 // step) + 1))
        following = partial
        for k in range(step):
            total = Signal(signed(33), name=f"total{k}")
            m.d.comb += total.eq(following + Mux(digits[k], factor, 0))
            following = total >> 1
        running = left.any()
        m.d.comb += self.ready.eq(~running)
        m.d.sync += [partial.eq(following), dropped.eq(total[0]), digits.eq(digits >> step)]
        with m.If(running):
            m.d.sync += left.eq(left - 1)
        with m.Elif(self.start):
            below = (-self.shift)[:align_bits]
            m.d.sync += [
                factor.eq(self.sum + self.bias), partial.eq(0), digits.eq(self.multiplier << below),
                left.eq(16 // step + (self.shift >> align_bits) + below.any()),
            ]

        # |zero_point − bound| < 2^8: what exceeds ten bits is clamped whatever the zero point.
        ended = delayed(m, left == 1, reset=True)
        fits = partial[10:] == partial[-1].replicate(22)
        narrow = delayed(m, Mux(fits, partial[:11].as_signed(), Mux(partial[-1], Const(-1024, signed(11)), Const(1023, signed(11)))))
        code = delayed(m, narrow + self.zero_point + delayed(m, Cat(dropped, Const(0, 1)).as_signed()))
        m.d.comb += [
            self.valid.eq(delayed(m, ended, 2, reset=True)),
            self.code.eq(Mux(code < self.low, self.low, Mux(code > self.high, self.high, code))),
        ]
        return m


class InOrderDrain(InOrderUnit):
    """Requantizes one channel of all pixels after the other: seven cycles each, and ⌈shift / 4⌉ + 1 a code.

    `sums` are those of `sums_pixel` in the bank `sums_bank` a cycle before; `code` is what `memory` writes.
    """

    def __init__(self, config: AcceleratorConfig):
        super().__init__(config, sums_bank=Out(1), sums_pixel=Out(range(config.tile_pixels)), sums=In(data.ArrayLayout(signed(32), 2)), code=Out(signed(8)))

    def elaborate(self, _platform):
        m = Module()
        config, buffers, memory = self._config, self._buffers, self.memory
        drain = Drain(self.instruction[: Drain.as_shape().size])
        m.submodules.requantizer = requantizer = SerialRequantizer()
        channel, bank = Signal(), Signal()
        pixel, staged = Signal(exact_log2(config.tile_pixels)), Signal(exact_log2(config.stage_pixels))
        left = Signal.like(drain.pixels)
        bias, multiplier, shift = (Signal(len(getattr(requantizer, name)), name=name, reset_less=True) for name in ("bias", "multiplier", "shift"))
        entry = Cat(channel, drain.group[0])  # of the parameter word
        word = Parameters(Cat(memory.read_data, memory.read_data, memory.read_data, memory.read_data))
        m.d.comb += [
            self.sums_bank.eq(bank), self.sums_pixel.eq(pixel),
            requantizer.sum.eq(self.sums[channel]), requantizer.bias.eq(bias), requantizer.multiplier.eq(multiplier), requantizer.shift.eq(shift),
            requantizer.zero_point.eq(drain.zero_point), requantizer.low.eq(drain.low), requantizer.high.eq(drain.high),
            self.code.eq(requantizer.code),
        ]

        def read(beat):
            return [memory.valid.eq(1), memory.address.eq(buffers.parameters | Cat(beat, drain.parameters)[: exact_log2(PARAMETER_BEATS * config.parameter_words)])]

        with m.FSM():
            with m.State("Idle"):
                m.d.sync += channel.eq(0)
                with m.If(self.start):
                    m.next = "Bias"
            with m.State("Bias"):
                m.d.comb += read(Cat(drain.group[0], Const(0, 1)))
                m.d.sync += [pixel.eq(0), staged.eq(drain.address), left.eq(drain.pixels)]
                m.next = "Multiplier"
            with m.State("Multiplier"):
                m.d.comb += read(Const(2, 2))
                m.d.sync += bias.eq(word.bias[channel])
                m.next = "Shift"
            with m.State("Shift"):
                m.d.comb += read(Const(3, 2))
                m.d.sync += multiplier.eq(word.multiplier[entry])
                m.next = "Begin"
            with m.State("Begin"):
                m.d.sync += shift.eq(word.shift[entry])
                m.next = "Run"
            with m.State("Run"):
                m.d.comb += requantizer.start.eq(left.any())
                with m.If(left.any() & requantizer.ready):
                    m.d.sync += [pixel.eq(pixel + 1), left.eq(left - 1)]
                with m.If(requantizer.valid):
                    m.d.comb += [
                        memory.valid.eq(1), memory.address.eq(buffers.staging | Cat(staged, drain.group[2])),
                        memory.write.eq(1 << Cat(channel, drain.group[:2])),
                    ]
                    m.d.sync += staged.eq(staged + drain.skip + 1)
                    with m.If(~left.any() & requantizer.ready):  # it was the last one
                        m.d.sync += channel.eq(1)
                        m.next = "Bias"
                        with m.If(channel):
                            m.d.comb += self.done.eq(1)
                            m.d.sync += bank.eq(~bank)
                            m.next = "Idle"
        return m
