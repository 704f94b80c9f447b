"""The way from Amaranth to a running simulation, and the helpers all testbenches use."""

import cocotb
import pytest
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from bench import parameters, reset, run_cocotb, stream_get, stream_put
from cocotb.triggers import ClockCycles

from celosia.sim import toolchain, verilate


class Pair(data.Struct):
    a: unsigned(4)
    b: signed(7)


class Adder(wiring.Component):
    """o = a + b + 1, registered: the smallest block with a stream on either side."""

    i: In(stream.Signature(Pair))
    o: Out(stream.Signature(signed(8)))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload.a + self.i.payload.b + 1)]
        return m


@cocotb.test()
async def adds(dut):
    await reset(dut)
    beats = [{"a": n % 16, "b": n % 128 - 64} for n in range(parameters()["count"])]
    put = cocotb.start_soon(stream_put(dut, "i", beats, shape=Pair, probability=0.7))
    sums = await stream_get(dut, "o", len(beats), shape=data.StructLayout({"sum": signed(8)}), probability=parameters()["ready"])
    await put
    assert [s.sum for s in sums] == [beat["a"] + beat["b"] + 1 for beat in beats]


@cocotb.test()
async def wrong(dut):
    await reset(dut)
    assert dut.i_ready.value == 0, "on purpose"


@cocotb.test()
async def hangs(dut):
    await reset(dut)
    while True:
        await ClockCycles(dut.clk, 100)


@cocotb.test()
async def stalls(dut):
    await reset(dut)
    await stream_put(dut, "i", [0, 0, 0], timeout_cycles=20)


@pytest.mark.parametrize("ready", [1, 0.4])
def test_adds(ready):
    run_cocotb(Adder(), __file__, "adds", {"count": 200, "ready": ready})


def test_failure_shows_the_log():
    with pytest.raises(AssertionError, match=r"(?s)wrong failed.*on purpose"):
        run_cocotb(Adder(), __file__, "wrong")


def test_hang_names_the_test():
    with pytest.raises(AssertionError, match=r"test_verilate\.hangs.*no end after 3 s"):
        run_cocotb(Adder(), __file__, "hangs", timeout_seconds=3)


def test_stalled_stream_names_the_beat():
    with pytest.raises(AssertionError, match="stream i: beat 1 of 3 was not taken within 20 cycles"):
        run_cocotb(Adder(), __file__, "stalls")


def test_unknown_test():
    with pytest.raises(AssertionError, match="nothing .*no such test ran"):
        run_cocotb(Adder(), __file__, "nothing")


def test_cache_hits(tmp_path, monkeypatch):
    monkeypatch.setenv("CELOSIA_CACHE", str(tmp_path))
    source = tmp_path / "value.cpp"
    source.write_text('#include "Vtop.h"\nextern "C" int value() { Vtop top; top.eval(); return top.o; }\n')
    verilog = "module top(output [7:0] o); assign o = 8'd42; endmodule"
    first = verilate.verilate(verilog, sources=[source], shared=True)
    stamp = first.stat().st_mtime_ns
    assert verilate.verilate(verilog, sources=[source], shared=True) == first and first.stat().st_mtime_ns == stamp
    source.write_text(source.read_text() + "// changed\n")
    assert verilate.verilate(verilog, sources=[source], shared=True) != first
    assert not list(tmp_path.glob("verilated/.new-*"))


def test_errors_are_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("CELOSIA_CACHE", str(tmp_path))
    with pytest.raises(toolchain.BuildError, match="Verilator failed:(?s:.*)syntax error"):
        verilate.verilate("module top(; endmodule", sources=[])
    assert not [path for path in tmp_path.glob("verilated/*") if path.is_dir()]
