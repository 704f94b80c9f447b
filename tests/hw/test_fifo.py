import random
from collections import deque

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge

from celosia.hw.build import to_verilog
from celosia.hw.fifo import Queue


@cocotb.test()
async def keeps_order(dut):
    """Every element comes out once, in order, whoever hesitates; offered and shown elements stand still until they are taken."""
    await reset(dut)
    generator, held, shown = random.Random(1), deque(), None
    most, taken = 0, True
    for phase, (give, take) in enumerate([(1, 1), (1, 0.1), (0.1, 1), (0.5, 0.5), (1, 0), (0, 1)]):
        for _ in range(600):
            if not dut.i_valid.value or taken:
                dut.i_valid.value = int(generator.random() < give)
                dut.i_payload.value = generator.getrandbits(parameters()["width"])
            dut.o_ready.value = int(generator.random() < take)
            await RisingEdge(dut.clk)
            taken = dut.i_valid.value and dut.i_ready.value
            if dut.o_valid.value:
                assert dut.o_payload.value.to_unsigned() == held[0] and shown in (None, held[0])
                shown = None if dut.o_ready.value else held[0]
                if dut.o_ready.value:
                    held.popleft()
            else:
                assert shown is None, "an element was taken back"
            if taken:
                held.append(dut.i_payload.value.to_unsigned())
            most = max(most, len(held))
            assert len(held) <= parameters()["capacity"], phase
    assert not held and most == parameters()["capacity"]


@cocotb.test()
async def streams(dut):
    """An element a cycle, the first after `latency` cycles."""
    await reset(dut)
    dut.i_valid.value = dut.o_ready.value = 1
    received, latency = [], parameters()["latency"]
    for cycle in range(300):
        dut.i_payload.value = cycle
        await RisingEdge(dut.clk)
        assert dut.i_ready.value
        received += [dut.o_payload.value.to_unsigned()] if dut.o_valid.value else []
    assert received == list(range(300 - latency))


@pytest.mark.parametrize(("width", "depth"), [(9, 2), (64, 16), (64, 64), (37, 128)])
def test_queue(width, depth):
    queue = Queue(width, depth)
    values = {"width": width, "capacity": queue.capacity, "latency": 1 if depth <= 32 else 4}
    assert queue.capacity >= depth
    for test in ("keeps_order", "streams"):
        run_cocotb(to_verilog(queue), __file__, test, values)


@pytest.mark.parametrize("depth", [1, 2.0, 33, 48])
def test_depth_out_of_range(depth):
    with pytest.raises(ValueError, match=f"depth must be .*, not {depth}"):
        Queue(8, depth)
