import random
from itertools import pairwise

import cocotb
import pytest
from bench import parameters, reset, run_cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiRamRead, AxiRamWrite, AxiReadBus, AxiWriteBus

from celosia.hw.config import get_config
from celosia.hw.dma import OUTSTANDING, PATIENCE, BurstCutter, ReadDma, WriteDma
from celosia.hw.interfaces import Run

CONFIG = get_config("tiny")
MEMORY = 1 << 20


def random_runs(generator, count, *, low=0, high=MEMORY):
    """Short and long runs, some up to and across 4 KiB borders."""
    for _ in range(count):
        beats = generator.choice([1, 1, 2, 3, 8, 8, 16, generator.randint(1, 64), generator.randint(65, 700)])
        if generator.random() < 0.5:
            address = generator.randrange(low // 4096 + 2, high // 4096 - 2) * 4096 - 8 * generator.randint(0, beats)
        else:
            address = 8 * generator.randrange(low // 8, high // 8 - beats)
        yield {"address": address, "beats": beats}


def pause(probability):
    while True:
        yield random.random() < probability


async def put_runs(dut, name, runs, probability=1.0):
    """`stream_put`, for ports whose names have one underscore."""
    valid, ready, payload = (getattr(dut, f"{name}_{member}") for member in ("valid", "ready", "payload"))
    for run in runs:
        while random.random() >= probability:
            await RisingEdge(dut.clk)
        payload.value = run if isinstance(run, int) else Run.const(run).as_bits()
        valid.value = 1
        await RisingEdge(dut.clk)
        while not ready.value:
            await RisingEdge(dut.clk)
        valid.value = 0


async def watch_bursts(dut, channel, last, bursts):
    """Record the bursts of an address channel as (address, beats) and check AXI's rules; `last` counts ends. Returns never."""
    valid, ready, address, length = (getattr(dut, f"bus_{channel}{member}") for member in ("valid", "ready", "addr", "len"))
    waiting, in_flight = None, 0
    while True:
        await RisingEdge(dut.clk)
        offered = (int(address.value), int(length.value) + 1) if valid.value else None
        assert waiting in (None, offered), "a burst was changed or taken back"
        waiting = offered if offered and not ready.value else None
        in_flight -= last()
        if offered and ready.value:
            assert offered[1] <= parameters()["max_burst"] and offered[0] % 8 == 0
            assert offered[0] // 4096 == (offered[0] + 8 * offered[1] - 1) // 4096, "a burst crosses 4 KiB"
            in_flight += 1
            bursts.append((*offered, in_flight))


@cocotb.test()
async def reads(dut):
    await reset(dut)
    ram = AxiRamRead(AxiReadBus.from_prefix(dut, "bus"), dut.clk, dut.rst, size=MEMORY)
    content = random.Random(1).randbytes(MEMORY)
    ram.write(0, content)
    if parameters()["pause"]:
        for channel in (ram.ar_channel, ram.r_channel):
            channel.set_pause_generator(pause(parameters()["pause"]))
    bursts = []
    cocotb.start_soon(watch_bursts(dut, "ar", lambda: int(dut.bus_rvalid.value and dut.bus_rready.value and dut.bus_rlast.value), bursts))
    received = [[], [], []]

    async def receive():
        while True:
            await RisingEdge(dut.clk)
            for index in range(3):
                if getattr(dut, f"beats_{index}_valid").value:
                    received[index].append(int(getattr(dut, f"beats_{index}_data").value))

    cocotb.start_soon(receive())
    runs = [list(random_runs(random.Random(seed), 40)) for seed in range(3)]
    tasks = [cocotb.start_soon(put_runs(dut, f"runs_{index}", runs[index], probability)) for index, probability in enumerate((0.05, 0.2, 1))]
    for task in tasks:
        await task
    total = sum(run["beats"] for requester in runs for run in requester)
    for _ in range(20 * total):
        await RisingEdge(dut.clk)
        if sum(map(len, received)) == total:
            break
    for index in range(3):
        expected = b"".join(content[run["address"]: run["address"] + 8 * run["beats"]] for run in runs[index])
        assert b"".join(beat.to_bytes(8, "little") for beat in received[index]) == expected, f"requester {index}"
    assert sum(beats for _, beats, _ in bursts) == total and max(in_flight for *_, in_flight in bursts) >= 4
    assert dut.idle.value and not dut.error.value


async def prompt_memory(dut, latency, delays):
    """A memory that takes every read at once, answers `latency` cycles later without a gap, data = address; records the cycles between beats."""
    pending, cycle, quiet = [], 0, 0
    dut.bus_arready.value = 1
    while True:
        await RisingEdge(dut.clk)
        cycle += 1
        if dut.bus_arvalid.value:
            address, beats = int(dut.bus_araddr.value), int(dut.bus_arlen.value) + 1
            pending += [(cycle + latency, address + 8 * index, index == beats - 1) for index in range(beats)]
        if pending and pending[0][0] <= cycle:
            _, address, last = pending.pop(0)
            dut.bus_rvalid.value, dut.bus_rdata.value, dut.bus_rlast.value = 1, address, int(last)
            delays.append(quiet)
            quiet = 0
        else:
            dut.bus_rvalid.value = 0
            quiet += 1


@cocotb.test()
async def who_comes_first(dut):
    """Requester 1 before 2, which has one of sixteen bursts; requester 0 before both."""
    await reset(dut)
    cocotb.start_soon(prompt_memory(dut, 3, []))
    tasks = [cocotb.start_soon(put_runs(dut, f"runs_{index}", [{"address": index << 24, "beats": 16000}])) for index in (1, 2)]
    order = []
    while len(order) < 300:
        await RisingEdge(dut.clk)
        if dut.bus_arvalid.value:
            order.append(int(dut.bus_araddr.value) >> 24)
        if len(order) == 200 and len(tasks) == 2:
            tasks.append(cocotb.start_soon(put_runs(dut, "runs_0", [{"address": 0, "beats": 8000}])))
    turns = [index for index, requester in enumerate(order) if requester == 2]
    assert all(after - before == PATIENCE + 1 for before, after in pairwise(turns))
    assert len(turns) >= 300 // (PATIENCE + 1)
    first = order.index(0)
    assert [requester for requester in order[first : first + 50] if requester != 2] == [0] * sum(requester != 2 for requester in order[first : first + 50])


@cocotb.test()
async def streams_without_gaps(dut):
    await reset(dut)
    delays = []
    cocotb.start_soon(prompt_memory(dut, 3, delays))
    beats = parameters()["beats"]
    tasks = [cocotb.start_soon(put_runs(dut, f"runs_{index}", [{"address": (index << 16) + 1024 * n, "beats": beats} for n in range(30)])) for index in range(3)]
    for task in tasks:
        await task
    while len(delays) < 90 * beats:
        await RisingEdge(dut.clk)
    assert not any(delays[1:])


@cocotb.test()
async def read_error_stays(dut):
    await reset(dut)
    dut.bus_arready.value = 1
    await put_runs(dut, "runs_1", [{"address": 64, "beats": 2}])
    while not dut.bus_arvalid.value:
        await RisingEdge(dut.clk)
    for resp, last in ((2, 0), (0, 1)):
        dut.bus_rvalid.value, dut.bus_rresp.value, dut.bus_rlast.value = 1, resp, last
        assert not dut.idle.value
        await RisingEdge(dut.clk)
    dut.bus_rvalid.value = 0
    for _ in range(3):
        await RisingEdge(dut.clk)
    assert dut.error.value and dut.idle.value


@cocotb.test()
async def halt_lets_begun_bursts_end(dut):
    await reset(dut)
    delays = []
    cocotb.start_soon(prompt_memory(dut, 20, delays))
    cocotb.start_soon(put_runs(dut, "runs_0", [{"address": 0, "beats": 2000}]))
    while len(delays) < 100:
        await RisingEdge(dut.clk)
    dut.halt.value = 1
    while not dut.idle.value:
        await RisingEdge(dut.clk)
    count = len(delays)
    for _ in range(100):
        await RisingEdge(dut.clk)
        assert not dut.bus_arvalid.value and dut.idle.value, "a burst after the bus was idle"
    assert len(delays) == count and count % CONFIG.max_burst == 0 and 100 <= count <= 100 + (OUTSTANDING + 1) * CONFIG.max_burst
    dut.halt.value = 0
    while len(delays) < 2000:
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=10, timeout_unit="ms")  # an answer that is lost is waited for
async def writes(dut):
    await reset(dut)
    ram = AxiRamWrite(AxiWriteBus.from_prefix(dut, "bus"), dut.clk, dut.rst, size=MEMORY)
    if parameters()["pause"]:
        for channel in (ram.aw_channel, ram.w_channel, ram.b_channel):
            channel.set_pause_generator(pause(parameters()["pause"]))
    bursts, gaps = [], []
    cocotb.start_soon(watch_bursts(dut, "aw", lambda: int(dut.bus_bvalid.value and dut.bus_bready.value), bursts))

    async def watch_data():
        inside = False
        while True:
            await RisingEdge(dut.clk)
            gaps.append(inside and not dut.bus_wvalid.value)
            if dut.bus_wvalid.value and dut.bus_wready.value:
                inside = not dut.bus_wlast.value

    cocotb.start_soon(watch_data())
    expected = bytearray(MEMORY)
    for seed in range(4):
        generator = random.Random(seed)
        runs = list(random_runs(generator, 15))
        beats = [generator.getrandbits(64) for run in runs for _ in range(run["beats"])]
        image = b"".join(beat.to_bytes(8, "little") for beat in beats)
        position = 0
        for run in runs:
            expected[run["address"]: run["address"] + 8 * run["beats"]] = image[position: position + 8 * run["beats"]]
            position += 8 * run["beats"]
        tasks = [cocotb.start_soon(put_runs(dut, "runs", runs, 0.3)), cocotb.start_soon(put_runs(dut, "beats", beats, parameters()["rate"]))]
        for task in tasks:
            await task
        await RisingEdge(dut.clk)
        assert not dut.done.value
        while not dut.done.value:
            await RisingEdge(dut.clk)
        assert ram.read(0, MEMORY) == bytes(expected)
    assert sum(b for _, b, _ in bursts) > 1000 and max(in_flight for *_, in_flight in bursts) <= OUTSTANDING and not dut.error.value
    assert not any(gaps), "data was missing within a burst"


@cocotb.test()
async def write_done_and_error(dut):
    await reset(dut)
    dut.bus_awready.value = dut.bus_wready.value = 1
    assert dut.done.value
    await put_runs(dut, "runs", [{"address": 128, "beats": 3}])
    await RisingEdge(dut.clk)
    assert not dut.done.value
    await put_runs(dut, "beats", [1, 2])
    for _ in range(20):
        await RisingEdge(dut.clk)
        assert not dut.bus_awvalid.value and not dut.done.value and dut.idle.value, "the burst's last beat is missing"
    await put_runs(dut, "beats", [3])
    while not (dut.bus_wvalid.value and dut.bus_wlast.value):
        await RisingEdge(dut.clk)
    for _ in range(20):
        await RisingEdge(dut.clk)
        assert not dut.done.value and not dut.idle.value, "the answer is missing"
    dut.bus_bvalid.value, dut.bus_bresp.value = 1, 3
    await RisingEdge(dut.clk)
    dut.bus_bvalid.value = 0
    for _ in range(3):
        await RisingEdge(dut.clk)
    assert dut.done.value and dut.error.value


@pytest.mark.parametrize("config", ["tiny", "ulx3s-85f"])
@pytest.mark.parametrize("probability", [0, 0.5])
def test_reads(config, probability):
    run_cocotb(ReadDma(get_config(config)), __file__, "reads", {"pause": probability, "max_burst": get_config(config).max_burst})


@pytest.mark.parametrize("beats", [1, 8, 100])
def test_streams_without_gaps(beats):
    run_cocotb(ReadDma(CONFIG), __file__, "streams_without_gaps", {"beats": beats})


def test_who_comes_first():
    run_cocotb(ReadDma(CONFIG), __file__, "who_comes_first")


@pytest.mark.parametrize("case", ["read_error_stays", "halt_lets_begun_bursts_end"])
def test_read_errors(case):
    run_cocotb(ReadDma(CONFIG), __file__, case)


@pytest.mark.parametrize(("probability", "rate"), [(0, 1), (0.5, 1), (0.2, 0.5)])
def test_writes(probability, rate):
    run_cocotb(WriteDma(CONFIG), __file__, "writes", {"pause": probability, "rate": rate, "max_burst": CONFIG.max_burst})


def test_write_done_and_error():
    run_cocotb(WriteDma(CONFIG), __file__, "write_done_and_error")


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="max_burst must be 16, 32 or 64, not 8"):
        BurstCutter(8)
    with pytest.raises(ValueError, match="requesters must be at least 1, not 0"):
        ReadDma(CONFIG, 0)
