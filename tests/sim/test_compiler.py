"""A machine without a C++ compiler: PyPI's `ziglang` serves."""

import importlib.util
import re
import sys

import numpy as np
import pytest
from networks import random_codes, random_network

from celosia.host.compile import compile
from celosia.hw.config import get_config
from celosia.sim import toolchain, verilate
from celosia.sim.golden import GoldenDevice
from celosia.sim.rtl import RtlDevice

ZIG = (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """No program can be found, and nothing is in the cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CELOSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELOSIA_CXX", raising=False)
    cached = toolchain.compiler, verilate._tool_versions
    for function in cached:
        function.cache_clear()
    yield monkeypatch
    for function in cached:
        function.cache_clear()


def test_ziglang_is_the_last_choice(bare):
    pytest.importorskip("ziglang")
    assert toolchain.compiler() == ZIG
    bare.setenv("CELOSIA_CXX", f"{sys.executable} -m 'some compiler'")
    toolchain.compiler.cache_clear()
    assert toolchain.compiler() == (sys.executable, "-m", "some compiler")


@pytest.mark.parametrize("command", ["no/such/g++", "'g++", " "])
def test_command_that_is_none(bare, command):
    bare.setenv("CELOSIA_CXX", command)
    with pytest.raises(toolchain.BuildError, match=f"CELOSIA_CXX must be the command of a C.. compiler, not .*{re.escape(command)}.*; correct or unset it"):
        toolchain.compiler()


def test_no_compiler_at_all(bare):
    bare.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(toolchain.BuildError, match="no C.. compiler found; install one with: pip install ziglang"):
        toolchain.compiler()


@pytest.mark.long
def test_rtl_built_by_ziglang(bare):
    pytest.importorskip("ziglang")
    network = random_network(2, most_layers=3, largest=14)
    program, codes = compile(network, "tiny", 2), random_codes(network, 2, 2)
    expected = GoldenDevice(get_config("tiny")).run_program(program, [codes])
    with RtlDevice(get_config("tiny")) as device:
        np.testing.assert_array_equal(device.run_program(program, [codes]).outputs[0], expected.outputs[0])
    assert toolchain.compiler() == ZIG
