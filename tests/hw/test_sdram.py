import random
from dataclasses import replace

import cocotb
import pytest
from bench import parameters, run_cocotb, stream_get, stream_put
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, Combine, RisingEdge, Timer
from cocotbext.axi import AxiBus, AxiMaster, AxiResp
from sdram_bandwidth import measure
from sdram_model import OnePort, SdramModel, start

from celosia.hw.crossing import Crossing
from celosia.hw.dma import Burst
from celosia.hw.sdram import PARTS, Command, SdramTiming, Sequencer, access_layout
from celosia.hw.sdram_port import READ_TURN_BEATS, WRITE_TURN_BEATS, Arbiter, SdramController, Splitter

#: The boards' memories, ready a refresh interval after reset.
QUICK = {name: replace(PARTS[name], power_up_us=7) for name in PARTS}
PAGE = 4096
LOST = {"timeout_time": 2, "timeout_unit": "ms"}  # an answer that is lost is waited for


def pause(probability):
    while True:
        yield random.random() < probability


async def begin(dut, timing=None):
    """The model and an AXI manager, which waits at random."""
    model = SdramModel(timing or QUICK[parameters().get("part", "ulx3s-32m")])
    await start(dut, model, parameters().get("engine_ns", 10))
    axi = AxiMaster(AxiBus.from_prefix(dut, "bus"), dut.clk, dut.rst, max_burst_len=64)
    if probability := parameters().get("pause"):
        for channel in (axi.write_if.aw_channel, axi.write_if.w_channel, axi.write_if.b_channel, axi.read_if.ar_channel, axi.read_if.r_channel):
            channel.set_pause_generator(pause(probability))
    return model, axi


def memory(model):
    """All bytes of the chip."""
    return model.words.tobytes()


async def settle(dut):
    """Answered is not yet written: until all of it must have been."""
    await ClockCycles(dut.memory_clk, 2000)


async def write(axi, address, data, response=AxiResp.OKAY):
    assert (await axi.write(address, data, awid=0)).resp == response


async def read(axi, address, length, response=AxiResp.OKAY):
    answer = await axi.read(address, length, arid=0)
    assert answer.resp == response
    return answer.data


@cocotb.test(**LOST)
async def random_traffic(dut):
    """Four clients, each with bytes of its own, in the same rows and banks."""
    model, axi = await begin(dut)
    expected = bytearray(memory(model))

    async def client(number):
        generator = random.Random(number)
        for _ in range(parameters()["count"]):
            length = generator.choice([1, 8, 8, 64, generator.randint(1, 100), generator.randint(100, 700)])
            # A row's end, a page's end, or anywhere; pages of eight rows of a bank, a quarter of them for each client.
            page = 4 * generator.choice([0, 1, 2, 3, 500, len(expected) // PAGE // 4 - 1]) + number
            offset = generator.choice([0, 1024 - length // 2, 2048 - length // 2, PAGE - length, generator.randrange(PAGE - length)])
            address = PAGE * page + offset // 8 * 8 if generator.random() < 0.5 else PAGE * page + offset
            if generator.random() < 0.5:
                data = generator.randbytes(length)
                expected[address : address + length] = data
                await write(axi, address, data)
            else:
                assert await read(axi, address, length) == expected[address : address + length]

    await Combine(*(cocotb.start_soon(client(number)) for number in range(4)))
    await settle(dut)
    assert memory(model) == bytes(expected)
    assert min(model.commands[command] for command in Command if command != Command.NOP) > 0


@cocotb.test(**LOST)
async def bursts(dut):
    """Every length, across a row's end where it can be; bursts of the same direction follow each other, since nobody waits for the answers."""
    model, axi = await begin(dut)
    generator = random.Random(1)
    places = []
    for beats in range(1, 65):
        border = PAGE * generator.randrange(1000) + generator.choice([1024, 2048, 3072])
        places.append((border - 8 * generator.randint(0, beats), 8 * beats))
    before = memory(model)
    tasks = [cocotb.start_soon(read(axi, *place)) for place in places]
    for task, (address, length) in zip(tasks, places):
        assert await task == before[address : address + length]
    expected = bytearray(before)
    tasks = []
    for address, length in places:
        data = generator.randbytes(length)
        expected[address : address + length] = data
        tasks.append(cocotb.start_soon(write(axi, address, data)))
    await Combine(*tasks)
    address, length = places[-1]
    assert await read(axi, address, length) == expected[address : address + length]  # not yet written, perhaps, but before it is read
    await settle(dut)
    assert memory(model) == bytes(expected)


@cocotb.test(**LOST)
async def refreshes(dut):
    """Under full load and without any: a refresh every interval, late by two accesses at most, and an access waits for no more than one."""
    model, axi = await begin(dut)
    edges = []

    async def watch():
        clocks = RisingEdge(dut.memory_clk)
        seen, edge = model.commands[Command.REFRESH], 0
        while True:
            await clocks
            edge += 1
            if model.commands[Command.REFRESH] != seen:
                seen = model.commands[Command.REFRESH]
                edges.append(edge)

    await read(axi, 0, 8)
    cocotb.start_soon(watch())
    interval = model.timing.interval
    if parameters()["busy"]:
        tasks = [cocotb.start_soon(task) for task in (write(axi, 0, bytes(16 * PAGE // 4)), read(axi, 100 * PAGE, 16 * PAGE // 4))]
        for address in range(200 * PAGE, 204 * PAGE, 512):
            tasks += [cocotb.start_soon(write(axi, address, bytes(512))), cocotb.start_soon(read(axi, address + 4 * PAGE, 512))]
        await Combine(*tasks)
    else:
        await ClockCycles(dut.memory_clk, 12 * interval)
    gaps = [after - before for before, after in zip(edges, edges[1:])]
    late = 2 * 4 * 64 + 30
    assert len(gaps) >= 8 and abs(sum(gaps) - len(gaps) * interval) <= (late if parameters()["busy"] else 0)
    assert max(gaps) <= interval + late and (parameters()["busy"] or set(gaps) == {interval})


@cocotb.test(**LOST)
async def reset_in_the_middle(dut):
    """Whatever is going on: what was asked for is forgotten, and all begins anew."""
    model, axi = await begin(dut)
    for number in range(6):
        tasks = [cocotb.start_soon(task) for task in (axi.write(PAGE, bytes(3 * PAGE), awid=0), axi.read(5 * PAGE, 3 * PAGE, arid=0))]
        await ClockCycles(dut.memory_clk, (500, 1700, 2000, 2222, 2405, 2681)[number])
        dut.rst.value = dut.memory_rst.value = 1
        await RisingEdge(dut.memory_clk)
        await Timer(1, "ns")  # the model has seen the last command
        model.power_up()
        for task in tasks:
            task.cancel()
        await ClockCycles(dut.clk, 8)
        dut.rst.value = dut.memory_rst.value = 0
        for _ in range(100):
            await RisingEdge(dut.clk)
            assert not dut.bus_rvalid.value and not dut.bus_bvalid.value, "an answer from before"
        data = random.randbytes(1500)
        await write(axi, 77 + 3000 * number, data)
        assert await read(axi, 77 + 3000 * number, 1500) == data


@cocotb.test(**LOST)
async def outside_of_memory(dut):
    model, axi = await begin(dut)
    before, size = memory(model), len(memory(model))
    await write(axi, size - 64, bytes(range(64)))
    await write(axi, size, bytes(2000), AxiResp.DECERR)
    await write(axi, 1 << 31, bytes(8), AxiResp.DECERR)
    await read(axi, size, 600, AxiResp.DECERR)
    assert await read(axi, size - 64, 64) == bytes(range(64))
    assert memory(model) == before[: size - 64] + bytes(range(64))


@cocotb.test(**LOST)
async def waits(dut):
    """How long one beat takes: of a closed row, of an open one, of a closed one in another bank, of another row in the same bank."""
    model = SdramModel(QUICK["ulx3s-32m"])
    await start(dut, model)
    while model.commands[Command.REFRESH] < 10:
        await RisingEdge(dut.memory_clk)
    found = []
    for address in (PAGE, PAGE + 8, PAGE + 1024, 2 * PAGE):
        await ClockCycles(dut.clk, 20)
        dut.bus_araddr.value, dut.bus_arlen.value, dut.bus_arvalid.value, dut.bus_rready.value = address, 0, 1, 1
        cycles = 0
        while not dut.bus_rvalid.value:
            await RisingEdge(dut.clk)
            dut.bus_arvalid.value = 0
            cycles += 1
        found.append(cycles)
    cocotb.log.info("cycles to an answer: %s", found)
    miss, hit, other_bank, conflict = found
    assert hit <= 27 and hit + 1 <= miss == other_bank <= hit + 3 and other_bank < conflict <= hit + 6


@cocotb.test()
async def power_up(dut):
    """The real time, which the model demands."""
    model, axi = await begin(dut, PARTS["ulx3s-32m"])
    await read(axi, 0, 8)
    assert [model.commands[command] for command in (Command.PRECHARGE, Command.REFRESH, Command.MODE)] == [1, 8, 1]


def split(burst, row_beats):
    """Rows' parts of a burst: (beat, last, final)."""
    beat, last = burst["beat"], burst["last"]
    to_border = row_beats - 1 - beat % row_beats
    return [(beat, last, 1)] if last <= to_border else [(beat, to_border, 0), (beat + to_border + 1, last - to_border - 1, 1)]


@cocotb.test()
async def splits(dut):
    timing = PARTS[parameters()["part"]]
    beats = timing.memory_bytes // 8
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    dut.rst.value = 1
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    sent = []
    for _ in range(300):
        last = random.choice([0, 1, 62, 63, random.randrange(64)])
        page = random.choice([0, beats // 512 - 1, beats // 512, random.randrange(1 << 20)])
        sent.append({"beat": 512 * page + random.choice([0, 511 - last, random.randrange(512 - last)]), "last": last})
    expected = [part for burst in sent for part in split(burst, timing.row_beats)]
    put = cocotb.start_soon(stream_put(dut, "bursts", sent, shape=Burst, probability=0.8))
    layout = access_layout(timing)
    for (beat, last, final), got in zip(expected, await stream_get(dut, "accesses", len(expected), shape=layout, probability=0.5)):
        place = got.column + timing.row_beats * (got.bank + 4 * got.row)
        assert (place, got.last, got.final, got.outside, got.write) == (beat % beats, last, final, beat >= beats, 1)
    await put


@cocotb.test(**LOST)
async def takes_turns(dut):
    """Nothing is lost, each direction keeps its order, and a turn that ends while there is more to do has had its beats."""
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    dut.rst.value = 1
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    layout = access_layout(PARTS["ulx3s-32m"])
    dut.reads_fit.value = dut.writes_complete.value = 1
    greedy = parameters()["greedy"]
    lengths = random.choices([1, 8, 8, 16, 63, 64], k=400)
    sent = [[{"row": number, "last": length - 1, "write": write} for number, length in enumerate(lengths[write::2])] for write in (0, 1)]
    for name, accesses in zip(("reads", "writes"), sent):
        cocotb.start_soon(stream_put(dut, name, accesses, shape=layout, probability=1 if greedy else 0.1))
    received = await stream_get(dut, "accesses", 400, shape=layout, probability=0.3)
    for write in (0, 1):
        assert [access.row for access in received if access.write == write] == list(range(200))
    turns, beats = [], 0
    for before, access in zip([received[0], *received], received):
        if access.write != before.write:
            turns.append((WRITE_TURN_BEATS if before.write else READ_TURN_BEATS, beats))
            beats = 0
        beats += access.last + 1
    assert len(turns) > 20
    if greedy:  # until one direction has come to its end
        assert all(least <= beats < least + 64 for least, beats in turns[:-1])


@cocotb.test(**LOST)
async def crosses(dut):
    cocotb.start_soon(Clock(dut.clk, parameters()["source_ns"], unit="ns").start())
    cocotb.start_soon(Clock(dut.memory_clk, parameters()["destination_ns"], unit="ns").start())
    dut.rst.value = dut.memory_rst.value = 1
    await ClockCycles(dut.clk, 8)
    dut.rst.value = dut.memory_rst.value = 0
    await RisingEdge(dut.clk)
    put = cocotb.start_soon(stream_put(dut, "i", list(range(300)), probability=parameters()["put"]))
    received, edge = [], RisingEdge(dut.memory_clk)
    while len(received) < 300:
        ready = random.random() < parameters()["get"]
        dut.o_ready.value = int(ready)
        await edge
        if ready and dut.o_valid.value:
            received.append(int(dut.o_payload.value))
    await put
    assert received == list(range(300))


def run(case, part="ulx3s-32m", timing=None, **settings):
    run_cocotb(OnePort(SdramController(timing or QUICK[part])), __file__, case, settings | {"part": part})


@pytest.mark.parametrize(("part", "probability", "engine_ns"), [
    ("ulx3s-32m", 0, 10), ("ulx3s-32m", 0.5, 7.9), ("ulx3s-64m", 0.3, 10), ("W9825G6KH-6", 0.1, 13.1),
])
def test_random_traffic(part, probability, engine_ns):
    run("random_traffic", part, pause=probability, engine_ns=engine_ns, count=30)


@pytest.mark.parametrize("part", ["ulx3s-32m", "ulx3s-64m"])
def test_bursts(part):
    run("bursts", part)


def test_registers_in_pads():
    """One on the way out and one on the way in: the words come two clocks later."""
    timing = replace(QUICK["ulx3s-32m"], capture_latency=5)
    run_cocotb(OnePort(SdramController(timing), registers=True), __file__, "bursts", {"part": "ulx3s-32m"})


@pytest.mark.parametrize("busy", [False, True])
def test_refreshes(busy):
    run("refreshes", busy=busy)


@pytest.mark.parametrize("case", ["reset_in_the_middle", "outside_of_memory", "waits"])
def test_controller(case):
    run(case)


def test_power_up():
    run("power_up", timing=PARTS["ulx3s-32m"])


@pytest.mark.parametrize("part", ["ulx3s-32m", "ulx3s-64m"])
def test_splits(part):
    run_cocotb(Splitter(PARTS[part], write=True), __file__, "splits", {"part": part})


@pytest.mark.parametrize("greedy", [True, False])
def test_takes_turns(greedy):
    run_cocotb(Arbiter(PARTS["ulx3s-32m"]), __file__, "takes_turns", {"greedy": greedy})


@pytest.mark.parametrize(("source_ns", "destination_ns", "put", "get"), [
    (10, 7.5, 1, 1), (7.5, 10, 1, 1), (10, 7.5, 1, 0.2), (7.5, 10, 0.5, 0.5), (7.5, 31, 1, 0.5), (31, 7.5, 0.5, 1),
])
def test_crosses(source_ns, destination_ns, put, get):
    run_cocotb(Crossing(16, source="sync", destination="memory"), __file__, "crosses",
               {"source_ns": source_ns, "destination_ns": destination_ns, "put": put, "get": get})


@pytest.mark.parametrize(("pattern", "least"), [
    ("sequential reads", 0.98), ("sequential writes", 0.98), ("sequential reads and writes in turn", 0.975), ("mixed runs of 64 to 512 bytes", 0.955),
])
def test_bandwidth(pattern, least):
    assert measure(pattern)["share"] >= least


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    part = PARTS[name]
    assert part.name == name and part.memory_bytes == (64 << 20 if part.columns == 1024 else 32 << 20) and part.interval == 1041
    Sequencer(part)


def test_clocks():
    part = PARTS["ulx3s-32m"]
    assert {name: part.clocks(name) for name in ("rc", "ras", "rp", "rcd", "rrd", "rfc", "wr", "mrd")} == {
        "rc": 9, "ras": 6, "rp": 3, "rcd": 3, "rrd": 2, "rfc": 9, "wr": 2, "mrd": 2}
    assert PARTS["W9825G6KH-6"].clocks("rcd") == 2 and replace(part, rp_ns=22.6).clocks("rp") == 4


@pytest.mark.parametrize(("values", "message"), [
    ({"columns": 128}, "SDRAM 'x': columns must be 256, 512 or 1024, not 128"),
    ({"rows": 1000}, "rows must be a power of two in 2…8192, not 1000"),
    ({"rp_ns": 0}, "rp_ns must be above 0, not 0"),
    ({"rp_ns": "18"}, "rp_ns must be a number, not '18'"),
    ({"wr_ns": -1}, "wr_ns must be at least 0, not -1"),
    ({"clock_mhz": 150}, r"clock_mhz must be in 1…133.3, not 150"),
    ({"clock_phase": 360}, "clock_phase must be in −360…360, not 360"),
    ({"capture_latency": 2}, "capture_latency must be in 3…8, not 2"),
    ({"capture_latency": 3.5}, "capture_latency must be int, not 3.5"),
    ({"ras_ns": 70}, "ras_ns must be at most rc_ns, which is 67.5, not 70"),
    ({"refresh_ns": 4000}, "refresh_ns must be more than 584 clocks of 7.50 ns, not 4000"),
    ({"ras_max_ns": 10_000}, "ras_max_ns must be more than two times refresh_ns, not 10000"),
])
def test_timing_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        replace(PARTS["ulx3s-32m"], **({"name": "x"} | values))


def test_parameters_are_checked():
    with pytest.raises(TypeError, match="timing must be an SdramTiming, not 'ulx3s-32m'"):
        SdramController("ulx3s-32m")
    assert isinstance(SdramController(PARTS["ulx3s-32m"]).timing, SdramTiming)
