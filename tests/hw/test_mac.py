"""The packed multiplier, for every triple of operands."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.hw.build import to_verilog
from celosia.hw.mac import PackedMultiplier, PackedWeights
from celosia.hw.primitives import EcpPrimitives
from celosia.sim.verilate import verilate

CODES = np.arange(-128, 128)


def test_model_for_all_triples():
    low = CODES[:, None]
    for high in range(-127, 128):
        products = PackedMultiplier.model(CODES[None, :], low, np.int64(high))
        np.testing.assert_array_equal(products[0], CODES * low)
        np.testing.assert_array_equal(products[1], np.broadcast_to(CODES * high, products[1].shape))


def test_minus_128_would_be_wrong():
    """Why weights are not −128: the operand of the multiplier would need one bit more."""
    _, high = PackedMultiplier.model(CODES, np.int64(-1), np.int64(-128))
    assert (high != CODES * -128).any()


# One triple a cycle through the compiled RTL.
_ALL_TRIPLES = """
#include "Vtop.h"
extern "C" long wrong(int latency) {
    static VerilatedContext context;
    Vtop top(&context);
    const long count = 256L * 256 * 255;
    long wrong = 0;
    for (long n = 0; n < count + latency; n++) {
        top.activation = n; top.low = n >> 8; top.high = (n >> 16) + 129;
        top.clk = 0; top.eval();
        if (n >= latency) {
            const long past = n - latency;
            const int x = (int8_t)past, low = (int8_t)(past >> 8), high = (int8_t)((past >> 16) + 129);
            wrong += (int16_t)top.products != x * low || (int16_t)(top.products >> 16) != x * high;
        }
        top.clk = 1; top.eval();
    }
    return wrong;
}
"""


class Top(wiring.Component):
    """PackedMultiplier with plain weights as ports."""

    activation: In(signed(8))
    low: In(signed(8))
    high: In(signed(8))
    products: Out(32)

    def elaborate(self, _platform):
        m = Module()
        m.submodules.multiplier = multiplier = PackedMultiplier()
        m.d.comb += [
            multiplier.activation.eq(self.activation), multiplier.weights.eq(PackedWeights.pack(self.low, self.high)), self.products.eq(multiplier.products),
        ]
        return m


@pytest.mark.parametrize("platform", [None, EcpPrimitives()], ids=["twin", "ecp5"])
def test_rtl_for_all_triples(platform, tmp_path):
    source = tmp_path / "all_triples.cpp"
    source.write_text(_ALL_TRIPLES)
    verilog = to_verilog(Top(), platform=platform) + (Path(__file__).parent / "ecp5.v").read_text()
    library = ctypes.CDLL(str(verilate(verilog, sources=[source], shared=True)))
    library.wrong.restype = ctypes.c_long
    assert library.wrong(PackedMultiplier.latency) == 0
