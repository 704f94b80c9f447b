"""Requantization of one channel's sums to int8 codes; `celosia.sim.golden.requantize` defines the result."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .parameters import SHORT_BITS, expand
from .primitives import Multiplier, delayed

__all__ = ["LutMultiplier", "Requantizer"]


class LutMultiplier(wiring.Component):
    """product = a · b in LUTs: `a` signed, `b` unsigned. One product a cycle; no tool takes these sums for a hard multiplier."""

    latency = Multiplier.latency

    def __init__(self, a_width: int, b_width: int):
        super().__init__({"a": In(signed(a_width)), "b": In(unsigned(b_width)), "product": Out(signed(a_width + b_width))})

    def elaborate(self, _platform):
        m = Module()
        a, b = delayed(m, self.a, 1), delayed(m, self.b, 1)
        rows = [Mux(bit, a << k, 0) for k, bit in enumerate(b)]
        quarter = -(-len(rows) // 4)
        parts = [Signal(self.product.shape(), reset_less=True) for _ in rows[::quarter]]
        for k, part in enumerate(parts):
            m.d.sync += part.eq(sum(rows[k * quarter : (k + 1) * quarter]))
        m.d.sync += self.product.eq(sum(parts))
        return m


class Requantizer(wiring.Component):
    """code = clamp(zero_point + (((sum + bias) · m + r_term + 2^(shift−1)) >> shift), low, high), m = `negative` (in its short form) where
    sum + bias < 0 and `leaky`, else `multiplier`, r_term = (residual − residual_zero_point) · residual_multiplier << (shift − residual_shift).

    One result a cycle, `latency` cycles after its operands, which all belong to one cycle. shift is 16…47, residual_shift 0…shift, sum + bias an int32.
    0 as `residual_multiplier` leaves the residual out; `clamped` tells that a bound was used.
    Sums are taken modulo 2^64 as in the golden model's int64; they are exact for shift − residual_shift ≤ 39.

    multipliers: use three hard multipliers, else LUTs.
    """

    #: Cycles from the operands to the code.
    latency = 12 + Multiplier.latency

    def __init__(self, *, multipliers: bool):
        if not isinstance(multipliers, bool):
            raise TypeError(f"multipliers must be a bool, not {multipliers!r}")
        self._multipliers = multipliers
        super().__init__({
            "sum": In(signed(32)), "bias": In(signed(32)), "multiplier": In(16), "shift": In(6), "negative": In(SHORT_BITS), "leaky": In(1),
            "residual": In(signed(8)), "residual_zero_point": In(signed(8)), "residual_multiplier": In(16), "residual_shift": In(6),
            "zero_point": In(signed(8)), "low": In(signed(8)), "high": In(signed(8)),
            "code": Out(signed(8)), "clamped": Out(1),
        })

    def _multiply(self, a_width, b_width):
        return Multiplier(a_width, 17) if self._multipliers else LutMultiplier(a_width, b_width)

    def elaborate(self, _platform):
        m = Module()
        at = 0  # cycles between the operands and what is being written

        def register(value, shape=None):
            result = Signal(shape or value.shape(), reset_less=True)
            m.d.sync += result.eq(value)
            return result

        def now(operand):
            """An operand of the component, delayed to the present stage."""
            return delayed(m, operand, at)

        # The sum is split for two multipliers: acc = upper · 2^17 + lower.
        acc = register((self.sum + self.bias)[:32].as_signed())
        difference = register(self.residual - self.residual_zero_point)  # −255…255: 9 bits
        left = register((self.shift - self.residual_shift)[:6])
        negative = register(expand(self.negative))
        at = 1
        multiplier = register(Mux(now(self.leaky) & acc[-1], negative, now(self.multiplier)))
        acc, difference, left = register(acc), register(difference), register(left)
        at += 1

        # The last three bits of the residual's shift precede its multiplication (9 + 7 bits), the others follow it.
        shifted = register(difference << left[:3], signed(16))
        left, residual_multiplier = register(left[3:]), delayed(m, self.residual_multiplier, at + 1)
        m.submodules.upper = upper = self._multiply(15, 16)
        m.submodules.lower = lower = self._multiply(18, 16)
        m.submodules.term = term = self._multiply(16, 16)
        m.d.comb += [
            upper.a.eq(acc[17:].as_signed()), upper.b.eq(multiplier),
            lower.a.eq(acc[:17]), lower.b.eq(multiplier),
            term.a.eq(shifted), term.b.eq(residual_multiplier),
        ]
        at += upper.latency

        # |acc · m| ≤ 2^31 · (2^16 − 1) < 2^47: 48 bits, of which the lower 17 need no addition.
        product = register(Cat(lower.product[:17], (lower.product[17:33] + upper.product[:31])[:31]).as_signed())
        left = delayed(m, left, upper.latency)
        at += 1

        # |(r − zp_r) · m_r| < 2^24, shifted left by 39 at most: 64 bits.
        r_term = register((term.product[:32].as_signed() << Cat(Const(0, 3), left))[:64].as_signed())
        product = register(product)
        at += 1

        # |acc · m + r_term| ≤ 2^47 + (2^24 − 65791) · 2^39 < 2^63: 64 bits, in two halves.
        low_half = register(product[:32] + r_term[:32])
        high_parts = register(product[32:]), register(r_term[32:])
        at += 1
        total = register(Cat(low_half[:32], (high_parts[0].as_signed() + high_parts[1].as_signed() + low_half[32])[:32])[15:].as_signed())
        at += 1

        # Shifted right by shift − 1, one bit less than asked, of which 15 were just dropped.
        right = (now(self.shift) - 16)[:5]
        coarse = register(total >> Cat(Const(0, 3), right[3:]))
        fine = delayed(m, right[:3], 1)
        at += 1
        doubled = register(coarse >> fine)
        at += 1

        # Beyond ±1024 the code is clamped whatever the zero point: 11 bits suffice. Rounding half up: (v + 1) >> 1 = (v >> 1) + v mod 2.
        negative = doubled[-1]
        fits = doubled[10:] == negative.replicate(len(doubled) - 10)
        narrow = register(Mux(fits, doubled[:11].as_signed(), Mux(negative, Const(-1024, signed(11)), Const(1023, signed(11)))), signed(11))
        at += 1
        code = register(narrow[1:].as_signed() + Cat(narrow[0], Const(0, 1)).as_signed() + now(self.zero_point))
        at += 1
        bounds = now(self.low), now(self.high)
        below, above = register(code < bounds[0]), register(code > bounds[1])
        code, low, high = register(code[:8].as_signed()), register(bounds[0]), register(bounds[1])
        at += 1
        m.d.sync += [self.code.eq(Mux(below, low, Mux(above, high, code))), self.clamped.eq(below | above)]
        assert at + 1 == self.latency
        return m
