"""The memory model alone: what it costs, in which order things happen, what it refuses."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

import celosia.sim
from celosia.sim.toolchain import compiler

SIZE = 1 << 25
ENGINE_MHZ = 100
IDEAL, SDRAM = 0, 1


class Result(ctypes.Structure):
    _fields_ = [("cycles", ctypes.c_int64), ("activations", ctypes.c_int64), ("violation_address", ctypes.c_uint64), ("response", ctypes.c_uint8),
                ("violation", ctypes.c_char * 80)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("sdram") / "bench.so"
    subprocess.run([*compiler(), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{celosia.sim.__path__[0]}",
                    str(Path(__file__).parent / "sdram_bench.cpp"), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.traffic.restype = ctypes.c_bool
    return library


@pytest.fixture
def traffic(library):
    """Run bursts (address, beats) and return the result, the data read, and the memory."""

    def run(reads=(), writes=(), *, kind=SDRAM, pause=0, serial=False, size=SIZE, data=None, restless=b""):
        memory = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
        reads, writes = (np.array(bursts, np.uint32).reshape(-1, 2) for bursts in (reads, writes))
        received = np.zeros(int(reads[:, 1].sum()), np.uint64)
        sent = np.arange(int(writes[:, 1].sum()), dtype=np.uint64) + 1 if data is None else data
        result = Result()
        finished = library.traffic(_pointer(memory), ctypes.c_uint64(size), kind, pause, serial, restless, _pointer(reads), len(reads), _pointer(received),
                                   _pointer(writes), len(writes), _pointer(sent), ctypes.c_int64(10_000_000), ctypes.byref(result))
        assert finished or restless
        return result, received, memory

    return run


def _pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def _rate(result, bursts):
    """Megabytes per second."""
    return 8 * sum(beats for _, beats in bursts) / result.cycles * ENGINE_MHZ


def _sequential(count, beats, start=0):
    return [(start + 8 * beats * n, beats) for n in range(count)]


def _random(count, beats, seed=0):
    return [(8 * beats * int(n), beats) for n in np.random.default_rng(seed).integers(0, SIZE // (8 * beats), count)]


def test_rates(traffic):
    """Of at most 266.7 MB/s: four 7.5 ns clocks a beat."""
    for bursts, low, high in [
        (_sequential(2000, 64), 258, 264),  # refresh only
        (_random(2000, 64), 250, 262),
        (_random(4000, 8), 238, 252),       # a quarter hits the bank in use
        (_random(4000, 1), 130, 160),
    ]:
        assert low <= _rate(traffic(bursts)[0], bursts) <= high, bursts[:1]
        assert low <= _rate(traffic((), bursts)[0], bursts) <= high, bursts[:1]


def test_reads_and_writes_share_the_bus(traffic):
    reads, writes = _sequential(1000, 64), _sequential(1000, 64, SIZE // 2)
    assert 245 <= _rate(traffic(reads, writes)[0], reads + writes) <= 264
    reads, writes = _sequential(4000, 8), _sequential(4000, 8, SIZE // 2)
    assert 235 <= _rate(traffic(reads, writes)[0], reads + writes) <= 264


def test_latency(traffic):
    """Closed row: tRCD + CL + four clocks of data = 10 clocks, 7.5 cycles; 10 cycles to the controller and back; request and beat a cycle each."""
    assert 18 <= traffic([(0, 1)])[0].cycles <= 20
    hit = traffic([(0, 1), (8, 1)], serial=True)[0].cycles - traffic([(0, 1)])[0].cycles
    miss = traffic([(0, 1), (4096, 1)], serial=True)[0].cycles - traffic([(0, 1)])[0].cycles
    assert 3 <= miss - hit <= 7  # tRP + tRCD


def test_rows_rotate_over_banks(traffic):
    assert traffic(_sequential(24, 8))[0].activations == 2
    assert traffic([(0, 1), (1024, 1), (2048, 1), (3072, 1)] * 8)[0].activations == 4
    assert traffic([(0, 1), (4096, 1)] * 8)[0].activations == 16


def test_ideal_is_one_beat_a_cycle(traffic):
    assert traffic(_sequential(100, 64), kind=IDEAL)[0].cycles <= 6400 + 110


@pytest.mark.parametrize("kind", [IDEAL, SDRAM])
@pytest.mark.parametrize("pause", [0, 100])
def test_data(traffic, kind, pause):
    reads, writes = _random(300, 16, 1), _random(300, 32, 2)
    reads = [(address % (SIZE // 2), beats) for address, beats in reads]
    writes = [(SIZE // 2 + address % (SIZE // 2), beats) for address, beats in writes]
    result, received, memory = traffic(reads, writes, kind=kind, pause=pause)
    assert (received.reshape(-1, 16) == [memory.view(np.uint64)[address // 8 :][:16] for address, _ in reads]).all()
    expected = dict(zip([address for address, _ in writes], np.arange(300 * 32, dtype=np.uint64).reshape(-1, 32) + 1))
    assert all((memory.view(np.uint64)[address // 8 :][:32] == data).all() for address, data in expected.items())
    assert result.response == 0 and result.violation == b""


@pytest.mark.parametrize("kind", [IDEAL, SDRAM])
def test_read_after_write_response(traffic, kind):
    _, received, _ = traffic([(4096, 64)], [(4096, 32), (4352, 32)], kind=kind, serial=True)
    assert received.tolist() == list(range(1, 65))


def test_deterministic(traffic):
    reads, writes = _random(500, 8, 3), _random(500, 8, 4)
    assert len({traffic(reads, writes)[0].cycles for _ in range(3)}) == 1


def test_outside_of_memory(traffic):
    assert traffic([(SIZE - 64, 8)])[0].response == 0
    assert traffic([(SIZE - 64, 8)], size=SIZE - 8)[0].response == 3
    assert traffic((), [(SIZE - 64, 8)], size=SIZE - 8)[0].response == 3


def test_violations(traffic):
    assert b"4 KiB" in traffic([(4096 - 8, 2)])[0].violation
    assert b"aligned" in traffic([(4, 1)])[0].violation


@pytest.mark.parametrize("pin", ["arvalid", "araddr", "arlen", "arsize", "arburst", "awvalid", "awaddr", "awlen", "awsize", "awburst",
                                 "wvalid", "wdata", "wstrb", "wlast"])
def test_what_is_offered_must_stay(traffic, pin):
    what = {"ar": b"a read address that does not stay", "aw": b"a write address that does not stay"}.get(pin[:2], b"write data that do not stay")
    result = traffic([(512, 16)] * 8, [(4096, 16)] * 8, pause=128, restless=pin.encode())[0]
    assert result.violation.startswith(what) and result.violation_address == (512 if pin.startswith("ar") else 4096)
