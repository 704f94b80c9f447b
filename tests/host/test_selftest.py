"""A board that works passes, one with a fault does not, and the report says where; the RTL behind frames, with the registers and the memory of a board."""

import contextlib
import json

import numpy as np
import pytest

from celosia.host import selftest as module
from celosia.host.cli import main
from celosia.host.selftest import selftest
from celosia.hw.board_control import BoardRegister
from celosia.hw.config import get_config
from celosia.hw.registers import Register
from celosia.sim.device import DeviceError
from celosia.sim.link import FrameServer
from celosia.sim.rtl import RtlBoard
from celosia.sim.serve import SimulatedBoard

STEPS = 48


class Faulty(SimulatedBoard):
    """Registers of a board, a memory that works at the phases `good`, and faults; `magic` is what it says it is."""

    def __init__(self, rtl, good=range(-10, 21), bit=None, magic=None, moves=True):
        super().__init__(rtl)
        self.good, self.bit, self.magic, self.moves, self.phase = good, bit, magic, moves, 3

    def read(self, address, size):
        data = super().read(self._place(address), size)
        return data if self.phase in self.good else bytes(len(data))

    def write(self, address, data):
        return super().write(self._place(address), data)

    def _place(self, address):
        return address & ~(1 << self.bit) if self.bit else address

    def read_register(self, address):
        if address == Register.MAGIC and self.magic:
            return self.magic
        values = {BoardRegister.ENGINE_KHZ: 112_500, BoardRegister.PHASE: self.phase & 0xFFFF_FFFF, BoardRegister.PHASE_STEPS: STEPS, BoardRegister.DAMAGED: 0}
        return values[address] if address in values else super().read_register(address)

    def write_register(self, address, value):
        if address == BoardRegister.PHASE:
            if self.moves:
                self.phase = value - (value >> 31 << 32)
            return True
        return super().write_register(address, value)


class Pipe:
    """The board at once, and a clock that each look at it moves."""

    name = "pipe"

    def __init__(self, board):
        self.board, self.server, self.waiting, self.time, self.closed = board, FrameServer(board), b"", 0.0, False

    def now(self):
        return self.time

    def write(self, data):
        self.waiting += self.server.feed(data)

    def read(self, seconds):
        while self.board.busy:
            self.board.advance()
        self.time += 1e-4 if self.waiting else seconds
        data, self.waiting = self.waiting, b""
        return data

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def rtl():
    with contextlib.closing(RtlBoard(get_config("tiny"))) as rtl:
        yield rtl


def test_a_good_board(rtl):
    pipe, lines = Pipe(Faulty(rtl)), []
    report = selftest(pipe, size=1 << 16, log=lines.append)
    assert report["passed"] and report["config"] == "tiny" and report["engine_khz"] == 112_500 and pipe.closed
    assert report["phase"] == {"steps": STEPS, "before": 3, "good": 31, "first_good": -10, "chosen": 5} and pipe.board.phase == 5
    assert report["memory"]["wrong"] == 0 and report["memory"]["bytes"] >= 1 << 16
    assert report["network"]["equal"] and report["network"]["cycles"] > 0
    assert report["link"]["damaged_here"] == report["link"]["damaged_there"] == 0
    assert lines[0] == "identity" and lines[-2:] == ["memory", "network"] and len(lines) == STEPS + 3


@pytest.mark.parametrize("bit", [10, 16, 22, 24])
def test_a_lost_address_line(rtl, bit):
    report = selftest(Pipe(Faulty(rtl, bit=bit)), size=1 << 12)
    assert not report["passed"] and report["memory"]["wrong"] and report["network"] is None


def test_no_phase_works(rtl):
    report = selftest(Pipe(Faulty(rtl, good=())))
    assert not report["passed"] and report["phase"]["chosen"] is None and report["memory"] is None and report["network"] is None


def test_a_network_that_differs(rtl, monkeypatch):
    class Other(module.GoldenDevice):
        def run_program(self, program, codes):
            result = super().run_program(program, codes)
            result.outputs[0] = result.outputs[0] ^ np.int8(1)
            return result

    monkeypatch.setattr(module, "GoldenDevice", Other)
    report = selftest(Pipe(Faulty(rtl)), size=1024)
    assert report["memory"]["wrong"] == 0 and report["network"]["equal"] is False and not report["passed"]


def test_boards_that_are_none(rtl, monkeypatch):
    for options, config, error in [
        ({"magic": 0x12345678}, None, "pipe is no engine of celosia: register MAGIC is 12345678, not 4f4c4543"),
        ({"moves": False}, None, "the phase of the memory's clock of pipe has not come to -21 within 1 s"),
        ({}, get_config("ulx3s-25f"), "the device is not pipe with the engine of config ulx3s-25f"),
    ]:
        pipe = Pipe(Faulty(rtl, **options))
        with pytest.raises(DeviceError, match=error):
            selftest(pipe, config)
        assert pipe.closed
    monkeypatch.setattr(module, "CONFIGS", {})
    with pytest.raises(DeviceError, match=f"an engine of a configuration without a name, {get_config('tiny').hash:08x}; give its file as --config"):
        selftest(Pipe(Faulty(rtl)))


@pytest.mark.parametrize(("good", "code"), [(range(-10, 21), 0), ((), 1)])
def test_command(rtl, monkeypatch, capsys, good, code):
    monkeypatch.setattr("celosia.host.pipes.open_pipe", lambda name: Pipe(Faulty(rtl, good=good)))
    outcomes = []
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["selftest", "serial:X", "--size", "4096", *options])
        outcomes.append((ended.value.code or 0, capsys.readouterr().out))
    assert [outcome for outcome, _ in outcomes] == [code, code]
    assert ("passed" if not code else "FAILED") in outcomes[0][1] and json.loads(outcomes[1][1])["passed"] is not bool(code)
