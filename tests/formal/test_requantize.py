"""The requantizer equals golden's formula, for all operands for which golden's int64 holds it: shift − residual_shift ≤ 39.

Products of free numbers are beyond what SAT solvers decide, so the multipliers are taken out: what they are given is checked, what they return is free within a
product's bounds. That they multiply is for tests/hw to show, that (2^17·u + l)·m = 2^17·(u·m) + l·m for arithmetic. So is what lets the pipeline be cut after its
sum, of which it drops the last 15 bits: (e + 2^(s−1)) >> s = ((e >> 15) + 2^(s−16)) >> (s − 15) for s ≥ 16.
"""

import pytest
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from prove import Refuted, assume, mutated, prove

from celosia.hw import requantize
from celosia.hw.parameters import expand

#: Cycles from the operands to those of the multipliers of the sum, of the residual, and to the total; and a multiplier's.
SUM, RESIDUAL, TOTAL, MULTIPLIER = 2, 3, 9, requantize.Multiplier.latency
MOST = 65535
#: The end of the statement that makes the total.
CUT = "low_half[32])[:32])[15:].as_signed())"


class _Product(wiring.Component):
    """In place of a multiplier."""

    latency = MULTIPLIER

    def __init__(self, a_width, b_width):
        super().__init__({"a": In(signed(a_width)), "b": In(b_width), "product": Out(signed(a_width + b_width))})

    def elaborate(self, _platform):
        return Module()


class Lane(wiring.Component):
    """A requantizer with free operands in every cycle. Those of the cycle after reset, `shift` among them, are followed. Behind the total it goes on with any other."""

    def __init__(self, module, shift):
        self._shift = shift
        module = mutated(module, CUT, f"{CUT}\n        self.total, self.cut = total, Signal(signed(49))\n        total = self.cut")
        self._lane, self._products = module.Requantizer(multipliers=True), []
        self._lane._multiply = self._multiply
        self._operands = {name: member for name, member in self._lane.signature.members.items() if member.flow == In}
        super().__init__(self._operands | {
            "upper": In(signed(31)), "lower": In(33), "term": In(signed(32)), "total": In(signed(49)),
            "misled": Out(1),     # a multiplier is given other operands than it should
            "wrong_sum": Out(1),  # the total is not that of the products
            "wrong": Out(1),      # the code is not that of the total
        })

    def _multiply(self, a_width, b_width):
        self._products.append(_Product(a_width, b_width))
        return self._products[-1]

    def elaborate(self, _platform):
        m = Module()
        lane = self._lane
        m.submodules.lane = lane.elaborate(None)  # now, for its multipliers
        cycle = Signal(range(lane.latency + 2))
        with m.If(cycle <= lane.latency):
            m.d.sync += cycle.eq(cycle + 1)
        kept = {name: Signal(member.shape, name=f"kept_{name}") for name, member in self._operands.items()}
        for name, value in kept.items():
            operand = getattr(self, name)
            m.d.comb += getattr(lane, name).eq(operand if name != "shift" else Mux(cycle == 0, self._shift, operand))
            with m.If(cycle == 0):
                m.d.sync += value.eq(operand)
        shift, left = self._shift, (self._shift - kept["residual_shift"])[:6]
        m.d.comb += assume((cycle == 0) | (kept["residual_shift"] <= shift) & (left <= 39) & (kept["low"] <= kept["high"]))

        # What the multipliers return, in the cycle in which it matters.
        for product, value in zip(self._products, (self.upper, self.lower, self.term)):
            m.d.comb += product.product.eq(value)
        upper, lower, term = (Signal.like(value, name=f"kept_{name}") for name, value in (("upper", self.upper), ("lower", self.lower), ("term", self.term)))
        with m.If(cycle == SUM + MULTIPLIER):
            m.d.sync += [upper.eq(self.upper), lower.eq(self.lower)]
        with m.If(cycle == RESIDUAL + MULTIPLIER):
            m.d.sync += term.eq(self.term)
        m.d.comb += assume((self.upper >= -MOST << 14) & (self.upper <= MOST * ((1 << 14) - 1)) & (self.lower <= MOST * ((1 << 17) - 1)))

        most_term = Signal(31)
        m.d.comb += most_term.eq((255 * MOST) << left[:3])
        m.d.comb += assume((cycle != RESIDUAL + MULTIPLIER) | (self.term <= most_term) & (self.term >= -most_term))

        # Golden's formula. What is shifted is shifted by eights last: the multiplier has had the rest.
        r_term, exact, total = Signal(64), Signal(signed(64)), Signal(signed(49))
        rounded, code = Signal(signed(51)), Signal(signed(8))
        with m.If(cycle == TOTAL):
            m.d.sync += total.eq(self.total)
        m.d.comb += [
            lane.cut.eq(self.total),
            r_term.eq(term << Cat(Const(0, 3), left[3:])),
            exact.eq((upper << 17) + lower + r_term),
            rounded.eq(((total + (1 << shift - 16)) >> shift - 15) + kept["zero_point"]),
            code.eq(Mux(rounded < kept["low"], kept["low"], Mux(rounded > kept["high"], kept["high"], rounded))),
        ]
        accumulator = (kept["sum"] + kept["bias"])[:32].as_signed()
        multiplier = Signal(16)
        m.d.comb += multiplier.eq(Mux(kept["leaky"] & (accumulator < 0), expand(kept["negative"]), kept["multiplier"]))
        upper_in, lower_in, term_in = self._products
        difference = kept["residual"] - kept["residual_zero_point"]
        m.d.comb += [
            self.misled.eq(Mux(cycle == SUM, (upper_in.a != accumulator >> 17) | (lower_in.a != accumulator[:17]) | (upper_in.b != multiplier) |
                               (lower_in.b != multiplier), 0)
                           | Mux(cycle == RESIDUAL, (term_in.a != difference << left[:3]) | (term_in.b != kept["residual_multiplier"]), 0)),
            self.wrong_sum.eq((cycle == TOTAL) & (lane.total != exact >> 15)),
            self.wrong.eq((cycle == lane.latency) & (lane.code != code)),
        ]
        return m


def check(shift, module=requantize):
    # The lane keeps nothing longer than it takes: these cycles are all there are.
    prove(Lane(module, shift), engine=f"bmc3 -F {requantize.Requantizer.latency + 2}")


QUICK = (16, 30, 47)


@pytest.mark.parametrize("shift", [pytest.param(shift, marks=() if shift in QUICK else pytest.mark.formal) for shift in range(16, 48)])
def test_requantizer(shift):
    check(shift)


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("acc[17:].as_signed()", "acc[16:].as_signed()", "misled"),
    ("now(self.leaky) & acc[-1]", "now(self.leaky)", "misled"),
    ("narrow[1:].as_signed() + Cat(narrow[0], Const(0, 1)).as_signed()", "narrow[1:].as_signed()", "wrong"),
    ("total >> Cat", "total.as_unsigned() >> Cat", "wrong"),
    ("Mux(above, high, code)", "Mux(above, low, code)", "wrong"),
    ("product = register(product)", "product = product", "wrong_sum"),
    ("(now(self.shift) - 16)[:5]", "(now(self.shift) - 15)[:5]", "wrong"),
])
def test_faults_show(old, new, fault):
    with pytest.raises(Refuted, match=fault):
        check(30, mutated(requantize, old, new))
