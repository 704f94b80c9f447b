import random

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge

from celosia.hw.dispatch import Dispatcher
from celosia.hw.interfaces import Run
from celosia.hw.isa import EDGES, INSTRUCTIONS, Opcode, Unit, decode, encode, unit_of
from celosia.hw.registers import ErrorCode

PROGRAM = 0x1230


def random_program(generator, count):
    """Instructions that run in the program's order at the least: each waits only for tokens left before it."""
    tokens = dict.fromkeys(EDGES, 0)
    words = []
    for _ in range(count):
        opcode = generator.choice([opcode for opcode in INSTRUCTIONS if opcode != Opcode.END])
        unit = unit_of(opcode)
        wait = [source for source, target in EDGES if target == unit and tokens[source, target] and generator.random() < 0.7]
        post = [target for source, target in EDGES if source == unit and tokens[source, target] < 200 and generator.random() < 0.6]
        for source in wait:
            tokens[source, unit] -= 1
        for target in post:
            tokens[unit, target] += 1
        words.append(encode(opcode, wait=wait, post=post) | generator.getrandbits(64) << 64)
    return words + [encode(Opcode.END)]


class Bench:
    """Stand-ins for the memory and the units around a dispatcher."""

    def __init__(self, dut, words, *, latency=10, probability=1.0, slowest=1):
        self.dut, self.words, self.latency, self.probability, self.slowest = dut, words, latency, probability, slowest
        self.taken = [[] for _ in Unit]
        self.tokens = dict.fromkeys(EDGES, 0)
        self.retired = [0] * len(Unit)
        self.cycle = 0

    async def start(self):
        await reset(self.dut)
        self.dut.program.value = PROGRAM
        self.dut.length.value = len(self.words)
        cocotb.start_soon(self.memory())
        for unit in Unit:
            cocotb.start_soon(self.unit(unit))
        self.dut.start.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.start.value = 0

    async def memory(self):
        dut, pending, cycle = self.dut, [], 0
        while True:
            taking = random.random() < self.probability
            dut.runs_ready.value = int(taking)
            dut.beats_valid.value = 0
            if pending and pending[0][0] <= cycle and random.random() < self.probability:
                dut.beats_valid.value, dut.beats_data.value = 1, pending.pop(0)[1]
            await RisingEdge(dut.clk)
            cycle += 1
            if taking and dut.runs_valid.value:
                run = Run.from_bits(dut.runs_payload.value.to_unsigned())
                first = (int(run.address) - PROGRAM) // 8
                assert 0 <= first and first + int(run.beats) <= 2 * len(self.words), "fetched beyond the program"
                pending += [(cycle + self.latency, self.words[beat // 2] >> 64 * (beat % 2) & (1 << 64) - 1) for beat in range(first, first + int(run.beats))]

    async def unit(self, unit):
        dut = self.dut
        valid, ready, payload = (getattr(dut, f"instruction_{int(unit)}_{member}") for member in ("valid", "ready", "payload"))
        post, retired, busy = (getattr(dut, f"control_{int(unit)}_{member}") for member in ("post", "retired", "busy"))
        while True:
            ready.value = 1
            await RisingEdge(dut.clk)
            while not valid.value:
                await RisingEdge(dut.clk)
            ready.value, busy.value = 0, 1
            word = payload.value.to_unsigned()
            _, fields = decode(word)
            self.taken[unit].append(word)
            for source in Unit:
                if fields["wait"] >> source & 1:
                    self.tokens[source, unit] -= 1
                    assert self.tokens[source, unit] >= 0, f"{unit.name} started without a token of {source.name}"
            for _ in range(random.randint(0, self.slowest)):
                await RisingEdge(dut.clk)
            post.value, retired.value = fields["post"], 1
            for target in Unit:
                if fields["post"] >> target & 1:
                    self.tokens[unit, target] += 1
            await RisingEdge(dut.clk)
            self.retired[unit] += 1
            post.value, retired.value, busy.value = 0, 0, 0

    async def finish(self, limit=100_000):
        while not self.dut.done.value and not self.dut.error.value:
            await RisingEdge(self.dut.clk)
            self.cycle += 1
            assert self.cycle < limit, "no end"
        return ErrorCode(int(self.dut.error.value))


@cocotb.test()
async def programs_run(dut):
    words = random_program(random.Random(parameters()["seed"]), 600)
    bench = Bench(dut, words, probability=parameters()["probability"], slowest=parameters()["slowest"])
    await bench.start()
    assert await bench.finish() == ErrorCode.NONE
    for unit in Unit:
        expected = [word for word in words if unit_of(Opcode(word & 15)) == unit]
        assert bench.taken[unit] == expected and bench.retired[unit] == len(expected) == int(getattr(dut, f"retired_{int(unit)}").value)
    assert int(dut.index.value) == len(words)


@cocotb.test()
async def throughput(dut):
    """An instruction per two cycles."""
    bench = Bench(dut, [encode(list(INSTRUCTIONS)[index % 8]) for index in range(400)] + [encode(Opcode.END)], slowest=0)
    await bench.start()
    assert await bench.finish() == ErrorCode.NONE
    assert bench.cycle < 2 * 400 + 40, bench.cycle


@cocotb.test()
async def what_follows_end_is_not_run(dut):
    bench = Bench(dut, [encode(Opcode.DRAIN), encode(Opcode.END), encode(Opcode.STORE), 0, 0])
    await bench.start()
    assert await bench.finish() == ErrorCode.NONE
    assert [len(taken) for taken in bench.taken] == [0, 0, 0, 1, 0]


@cocotb.test()
async def waits_are_told(dut):
    words = [encode(Opcode.LOAD_WEIGHTS), encode(Opcode.COMPUTE, wait=[Unit.WEIGHT, Unit.MAP]), encode(Opcode.LOAD_MAP, wait=[Unit.STORE]), encode(Opcode.END)]
    bench = Bench(dut, words)
    await bench.start()
    for _ in range(100):
        await RisingEdge(dut.clk)
    assert [int(getattr(dut, f"waiting_{u}").value) for u in range(5)] == [0, 1 << Unit.STORE, 1 << Unit.WEIGHT | 1 << Unit.MAP, 0, 0]
    assert int(dut.pending.value) == 1 << Unit.MAP | 1 << Unit.COMPUTE and not dut.done.value
    bench.tokens[Unit.WEIGHT, Unit.COMPUTE] += 1
    bench.tokens[Unit.STORE, Unit.MAP] += 1
    dut.control_0_post.value = 1 << Unit.COMPUTE
    dut.control_4_post.value = 1 << Unit.MAP
    await RisingEdge(dut.clk)
    dut.control_0_post.value = dut.control_4_post.value = 0
    for _ in range(30):
        await RisingEdge(dut.clk)
    assert bench.taken[Unit.MAP] and not bench.taken[Unit.COMPUTE] and int(dut.waiting_2.value) == 1 << Unit.MAP


ERRORS = {
    "opcode": ([encode(Opcode.DRAIN)] * 5 + [14, encode(Opcode.END)], ErrorCode.OPCODE, 5),
    "zeros": ([encode(Opcode.DRAIN), 0, 0], ErrorCode.OPCODE, 1),
    "wait": ([encode(Opcode.STORE, wait=[Unit.DRAIN], post=[Unit.MAP]), encode(Opcode.LOAD_MAP, wait=[Unit.WEIGHT])], ErrorCode.EDGE, 1),
    "post": ([encode(Opcode.LOAD_WEIGHTS, post=[Unit.STORE])], ErrorCode.EDGE, 0),
    "end_waits": ([encode(Opcode.END, wait=[Unit.STORE])], ErrorCode.EDGE, 0),
    "no_end": ([encode(Opcode.DRAIN)] * 20, ErrorCode.NO_END, 20),
    "empty": ([], ErrorCode.NO_END, 0),
    "tokens": ([encode(Opcode.DRAIN, post=[Unit.STORE])] * 256 + [encode(Opcode.END)], ErrorCode.TOKENS, None),
}


@cocotb.test()
@cocotb.parametrize(case=list(ERRORS))
async def errors(dut, case):
    words, expected, index = ERRORS[case]
    bench = Bench(dut, words)
    await bench.start()
    assert await bench.finish() == expected
    if index is not None:
        assert int(dut.index.value) == index
    for _ in range(50):
        await RisingEdge(dut.clk)
    taken = list(map(len, bench.taken))
    for _ in range(50):
        await RisingEdge(dut.clk)
        assert int(dut.error.value) == expected and not dut.done.value
    assert taken == list(map(len, bench.taken)), "instructions went out after the error"


@pytest.mark.parametrize(("seed", "probability", "slowest"), [(0, 1, 0), (1, 0.5, 4), (2, 1, 40)])
def test_programs_run(seed, probability, slowest):
    run_cocotb(Dispatcher(), __file__, "programs_run", {"seed": seed, "probability": probability, "slowest": slowest})


def test_throughput():
    run_cocotb(Dispatcher(), __file__, "throughput")


def test_ends_and_waits():
    run_cocotb(Dispatcher(), __file__, "ends_and_waits", testcase="what_follows_end_is_not_run|waits_are_told")


def test_errors():
    run_cocotb(Dispatcher(), __file__, "errors", testcase="errors/.*")
