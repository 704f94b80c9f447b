"""Two multiply-accumulates per multiplier: the products of one activation and two weights.

p = x · (w1 · 1024 + w0). The low ten bits of p are those of x·w0. What lies above is x·w1 + ⌊x·w0 / 1024⌋, whose low six bits, less those of x·w1 (known from a
6-bit product, made of a few adders), tell the rest of x·w0, a number in −16…16; the bits above them are ⌊x·w1 / 64⌋. Both products come out exactly.
"""

import numpy as np
from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .primitives import Multiplier, delayed

__all__ = ["PackedMultiplier", "PackedWeights"]


class PackedWeights(data.Struct):
    """A pair of weights as the multiplier takes them: `operand` = w1 · 1024 + w0 without the copies of w0's sign, `residue` = w1 mod 64."""

    operand: unsigned(16)
    residue: unsigned(6)

    @classmethod
    def pack(cls, low: Value, high: Value) -> Value:
        """From two weights of 8 bit, `high` not −128."""
        return Cat(low[:8], (high - low[7])[:8], high[:6])


class PackedMultiplier(wiring.Component):
    """products[k] = activation · w_k for both weights of a pair; one pair of products a cycle, `latency` cycles after the operands.

    Exact for all operands but w1 = −128.
    """

    activation: In(signed(8))
    weights: In(PackedWeights)
    products: Out(data.ArrayLayout(signed(16), 2))

    latency = Multiplier.latency + 2

    @staticmethod
    def model(activation: np.ndarray, low: np.ndarray, high: np.ndarray) -> "tuple[np.ndarray, np.ndarray]":
        """The same operations bit by bit, on integers of equal shape: both products, int64."""
        activation, low, high = (np.asarray(operand, np.int64) for operand in (activation, low, high))
        sign = (low < 0).astype(np.int64)
        operand = low & 0xFF | sign * 0x300 | (high - sign & 0xFF) << 10
        operand = (operand ^ 1 << 17) - (1 << 17)
        residue = _residue_model(activation & 63, high & 63)
        packed = activation * operand & (1 << 26) - 1
        upper = (packed >> 10) - (residue - 32) & 0xFFFF
        products = packed & 0x3FF | (upper & 63 ^ 32) << 10, residue | upper >> 6 << 6
        return tuple((product ^ 0x8000) - 0x8000 for product in products)

    def elaborate(self, platform):
        m = Module()
        m.submodules.multiplier = multiplier = Multiplier(18, 8)
        operand = self.weights.operand
        m.d.comb += [multiplier.a.eq(Cat(operand[:8], operand[7].replicate(2), operand[8:]).as_signed()), multiplier.b.eq(self.activation)]
        packed = delayed(m, multiplier.product.as_unsigned(), name="packed")
        a, b = self.activation[:6], self.weights.residue
        # Sums on an FPGA, a product where that simulates faster.
        residue = _residue(m, a, b) if hasattr(platform, "get_mac") else delayed(m, (a * b)[:6], 2, name="residue")
        residue = delayed(m, residue, self.latency - 3, name="residue")

        # Cat(residue[:5], ~residue[5]), read as a signed number, is residue − 32: the difference's low six bits are x·w0 / 1024 + 32, never negative.
        upper = delayed(m, (packed[10:] - Cat(residue[:5], ~residue[5]).as_signed())[:16], name="upper")
        lower, residue = delayed(m, packed[:10], name="lower"), delayed(m, residue, name="residue")
        m.d.comb += self.products.eq(Cat(lower, upper[:5], ~upper[5], residue, upper[6:]))
        return m


def _residue(m, a, b):
    """a · b mod 64, two cycles later, as sums: Yosys might take a product for one more multiplier."""
    # Written with `and`: a multiplexer with 0 would become a reset line for each register.
    rows = [a[: 6 - k] & b[k].replicate(6 - k) for k in range(6)]
    low, middle, high = (
        delayed(m, (rows[k] + (rows[k + 1] << 1))[: 6 - k], name=f"residue{k}") for k in (0, 2, 4)
    )
    upper = Cat(middle[:2], (middle[2:] + high)[:2])
    return delayed(m, Cat(low[:2], _ripple_sum(m, low[2:], upper)), name="residue")


def _residue_model(a, b):
    low, middle, high = (a * (b >> k & 3) & (1 << 6 - k) - 1 for k in (0, 2, 4))
    upper = middle & 3 | ((middle >> 2) + high & 3) << 2
    return low & 3 | ((low >> 2) + upper & 15) << 2


def _ripple_sum(m, a, b):
    """a + b without the carry out, in LUTs: for a few bits smaller than a carry chain."""
    carry, bits = 0, []
    for k, (p, q) in enumerate(zip(a, b)):
        total, following = Signal(name=f"sum{k}"), Signal(name=f"carry{k}")
        m.d.comb += [total.eq(p ^ q ^ carry), following.eq(p & q | (p | q) & carry)]
        bits.append(total)
        carry = following
    return Cat(bits)
