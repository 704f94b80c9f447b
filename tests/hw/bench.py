"""How every testbench runs: Amaranth component → Verilator → cocotb.

A test file holds coroutines, which run inside the simulator, and pytest functions, which start it:

    import cocotb
    import pytest
    from bench import parameters, reset, run_cocotb, stream_get, stream_put

    @cocotb.test()
    async def doubles(dut):
        await reset(dut)                                    # starts a clock, pulses rst
        sent = list(range(parameters()["count"]))
        put = cocotb.start_soon(stream_put(dut, "i", sent, probability=0.5))
        assert await stream_get(dut, "o", len(sent), probability=0.5) == [2 * n for n in sent]
        await put

    @pytest.mark.parametrize("width", [8, 16])
    def test_doubles(width):
        run_cocotb(Doubler(width), __file__, "doubles", {"count": 100})

The top level is `dut`, its ports are named as in `hw.build`: member `payload` of interface `i` is `dut.i_payload`. Only ports are visible
(`public=True` shows every signal, and is slow). Bus models of cocotbext-axi: `AxiBus.from_prefix(dut, "bus")` finds `dut.bus_araddr`.
In a coroutine drive inputs after a rising edge (`await RisingEdge(dut.clk)`); values read there are those before the edge.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import cocotb
import cocotb_tools.config
import find_libpython
from amaranth.lib import wiring
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge

from celosia.hw.build import to_verilog
from celosia.sim.verilate import verilate

__all__ = ["parameters", "reset", "run_cocotb", "stream_get", "stream_put"]


def run_cocotb(component: "wiring.Component | str", test_module: "str | Path", name: "str | None" = None, parameters: "dict | None" = None, *,
               testcase: "str | None" = None, platform=None, public: bool = False, timeout_seconds: float = 300, seed: int = 1) -> None:
    """Build (cached) and run the cocotb tests of a Python file; raises AssertionError with the log's tail on failure.

    component: what is tested, or Verilog text whose top module is `top`. test_module: usually `__file__`. name: the cocotb test to run, None for all;
    if `testcase` is given that one is run and `name` is a label. parameters: a JSON object the tests read with :func:`parameters`.
    A run that takes longer than `timeout_seconds` has failed.
    """
    verilog = component if isinstance(component, str) else to_verilog(component, platform=platform)
    executable = build_cocotb(verilog, public=public)
    path = Path(test_module)
    case = testcase or name
    label = f"{path.stem}.{name or testcase or '*'} {json.dumps(parameters or {})}"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        environment = os.environ | {
            "COCOTB_TEST_MODULES": path.stem, "COCOTB_TOPLEVEL": "top", "TOPLEVEL_LANG": "verilog", "COCOTB_RESULTS_FILE": str(results),
            "COCOTB_RANDOM_SEED": os.environ.get("COCOTB_RANDOM_SEED", str(seed)), "COCOTB_TRUST_INERTIAL_WRITES": "1", "COCOTB_ANSI_OUTPUT": "0",
            "GPI_USERS": ";".join([find_libpython.find_libpython(), cocotb_tools.config.pygpi_entry_point()]), "PYGPI_PYTHON_BIN": sys.executable,
            "PYTHONPATH": os.pathsep.join([str(path.parent.resolve()), str(Path(__file__).parent), *sys.path]), _PARAMETERS: json.dumps(parameters or {}),
        } | ({"COCOTB_TEST_FILTER": rf"\.({case})$"} if case else {})
        process = subprocess.Popen([executable], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            log, _ = process.communicate(timeout=timeout_seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            log, _ = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise AssertionError(f"{label}: no end after {timeout_seconds} s\n{_tail(log)}") from None
            raise
        if not results.exists():
            raise AssertionError(f"{label}: the simulator ended with code {process.returncode} before the tests did\n{_tail(log)}")
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
        failed = [c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None]
        if failed or not cases or process.returncode:
            raise AssertionError(f"{label}: {', '.join(failed) + ' failed' if failed else 'no such test ran' if not cases else 'an assertion fired'}\n{_tail(log)}")


_PARAMETERS = "CELOSIA_TEST_PARAMETERS"


def parameters() -> dict:
    """What `run_cocotb` was given; to be called inside the simulator."""
    return json.loads(os.environ[_PARAMETERS])


def build_cocotb(verilog: str, *, public: bool = False) -> Path:
    """The simulator with cocotb inside. Raises BuildError."""
    libraries = Path(cocotb_tools.config.libs_dir)
    main = Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"
    return verilate(verilog, sources=[main], runtime=("verilated_vpi.cpp",), options=("--vpi", "--assert", *(["--public-flat-rw"] if public else [])),
                    control="" if public else 'public_flat_rw -module "top" -var "*"',
                    link=(f"-Wl,-rpath,{libraries}", f"-L{libraries}", "-lcocotbvpi_verilator"))


def _tail(log, lines=60):
    return "\n".join(log.splitlines()[-lines:])


async def reset(dut, cycles: int = 4, period_ns: float = 10) -> None:
    """Start the clock and hold reset for some cycles; inputs named in no test are 0."""
    cocotb.start_soon(Clock(dut.clk, period_ns, unit="ns").start())
    dut.rst.value = 1
    await ClockCycles(dut.clk, cycles)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


async def stream_put(dut, name: str, beats: list, *, shape=None, probability: float = 1.0, timeout_cycles: int = 100_000) -> None:
    """Send beats into the stream `name` (amaranth.lib.stream: payload, valid, ready), each offered with `probability` per cycle, then kept until taken.

    A beat is an integer, or what `shape.const()` takes, a dict for a struct. A stream without the port `ready` is always ready.
    """
    valid, ready, payload = _port(dut, name, "valid"), _port(dut, name, "ready"), _port(dut, name, "payload")
    for index, beat in enumerate(beats):
        while random.random() >= probability:
            await RisingEdge(dut.clk)
        payload.value = beat if shape is None else shape.const(beat).as_bits()
        valid.value = 1
        for _ in range(timeout_cycles):
            await RisingEdge(dut.clk)
            if ready is None or ready.value == 1:
                break
        else:
            raise AssertionError(f"stream {name}: beat {index} of {len(beats)} was not taken within {timeout_cycles} cycles")
        valid.value = 0


async def stream_get(dut, name: str, count: int, *, shape=None, probability: float = 1.0, timeout_cycles: int = 100_000) -> list:
    """Receive `count` beats of the stream `name`, ready with `probability` per cycle.

    Returns integers, or what `shape.from_bits()` gives, for a struct an object with its fields. A stream without the port `ready` is only watched.
    """
    valid, ready, payload = _port(dut, name, "valid"), _port(dut, name, "ready"), _port(dut, name, "payload")
    received, waited = [], 0
    while len(received) < count:
        taking = ready is None or random.random() < probability
        if ready is not None:
            ready.value = int(taking)
        await RisingEdge(dut.clk)
        waited += 1
        if taking and valid.value == 1:
            bits = payload.value.to_unsigned()
            received.append(bits if shape is None else shape.from_bits(bits))
            waited = 0
        if waited > timeout_cycles:
            raise AssertionError(f"stream {name}: beat {len(received)} of {count} did not come within {timeout_cycles} cycles")
    if ready is not None:
        ready.value = 0
    return received


def _port(dut, name, member):
    return getattr(dut, f"{name}_{member}", None)
