"""Boards as devices: over TCP to `celosia serve-sim` as people start it, over a pseudo-terminal, and to a stand-in for an engine in simulated time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from boards import Recorder
from networks import random_codes, random_network

from celosia.host.cli import main
from celosia.host.compile import compile
from celosia.host.device import open_device
from celosia.host.errors import CelosiaError
from celosia.host.link import Link, LinkError
from celosia.host.pipes import open_pipe
from celosia.host.remote import BoardDevice
from celosia.hw.config import get_config
from celosia.hw.isa import Base
from celosia.hw.link import MARK_COUNT
from celosia.hw.registers import MAGIC, VERSION, Command, ErrorCode, Register, Status
from celosia.sim.device import DeviceError
from celosia.sim.golden import GoldenDevice
from celosia.sim.line import Line
from celosia.sim.link import FrameServer
from celosia.sim.rtl import RtlDevice

CONFIG = get_config("tiny")


class Simulation:
    """`celosia serve-sim` in a process of its own."""

    def __init__(self, *options, port=0):
        command = [sys.executable, "-m", "celosia.host.cli", "serve-sim", "--config", "tiny", "--port", str(port), *options]
        # Ctrl-C reaches it as it would in a terminal, even if this runs in the background, where a shell ignores the signal.
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        line = self.process.stderr.readline()
        assert "config tiny is the device tcp:" in line, line
        self.name = line.split("device ")[1].split(",")[0]
        self.host, self.port = self.name.split(":")[1], int(self.name.split(":")[2])

    def end(self, how=signal.SIGINT):
        """Exit code and what it had to say."""
        self.process.send_signal(how)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log


@pytest.fixture(scope="module")
def simulation():
    simulation = Simulation()
    yield simulation
    assert simulation.end() == (0, ""), "Ctrl-C ends it, and nothing was to be said"


@pytest.fixture(scope="module")
def case():
    """A program, its input, and its output."""
    network = random_network(2, most_layers=3, largest=14)
    program, codes = compile(network, "tiny", 2), random_codes(network, 2, 2)
    return program, [codes], GoldenDevice(CONFIG).run_program(program, [codes]).outputs


def engine(simulation, **options):
    return BoardDevice(CONFIG, open_pipe(simulation.name), **options)


def test_nobody_can_tell_it_from_rtl(simulation, case):
    program, inputs, expected = case
    with RtlDevice(CONFIG) as rtl:
        wanted = rtl.run_program(program, inputs)
    progress = []
    with engine(simulation, progress=lambda *state: progress.append(state)) as device:
        for _ in range(2):
            found = device.run_program(program, inputs)
            assert all((one == other).all() for one, other in zip(found.outputs, expected, strict=True))
            assert (found.cycles, found.layers, found.counters) == (wanted.cycles, wanted.layers, wanted.counters) and len(found.layers) > 1
    assert progress[0][0] == "upload"


def test_public_device(simulation, case):
    program, _, _ = case
    images = np.random.default_rng(1).normal(size=(3, *program.network.tensors[program.network.inputs[0]].shape)).astype(np.float32)
    with open_device("golden", "tiny") as golden, open_device(simulation.name, "tiny") as device:
        expected, found = golden.run(program, images), device.run(program, images)
    assert device.name == simulation.name and found.runs == 2 and found.cycles == sum(found.layers)
    assert all((one == other).all() for one, other in zip(found.codes, expected.codes, strict=True))


def test_command_line(simulation, case, tmp_path, capsys):
    program, _, _ = case
    program.save(tmp_path / "program.celp")
    np.savez(tmp_path / "images.npz", images=np.ones((2, *program.network.tensors[program.network.inputs[0]].shape), np.float32))
    hashes = {}
    for name in ("golden", simulation.name):
        with pytest.raises(SystemExit):
            main(["run", str(tmp_path / "program.celp"), str(tmp_path / "images.npz"), "--device", name, "--json"])
        report = json.loads(capsys.readouterr().out)
        hashes[name] = report["outputs_sha256"]
    assert len(set(hashes.values())) == 1 and report["device"] == simulation.name and report["cycles"] > 0


def test_errors_are_those_of_rtl(simulation, case):
    """And the next program runs well."""
    program, inputs, expected = case
    image = program.image.copy()
    image[program.code_offset + 32] = 0xFF  # tokens of units that share none
    broken = replace(program, image=image)
    sentences = []
    with RtlDevice(CONFIG) as rtl, engine(simulation) as board:
        for device in (rtl, board):
            with pytest.raises(DeviceError) as error:
                device.run_program(broken, inputs)
            sentences.append(str(error.value).partition("cycles")[2])
            assert (device.run_program(program, inputs).outputs[0] == expected[0]).all()
    assert sentences[0] == sentences[1] == f": error EDGE at instruction 2 of {program.instructions}"


def test_another_config(simulation):
    with pytest.raises(DeviceError, match=r"the device is not tcp:.* with the engine of config ulx3s-25f: register CONFIG is \w+, not \w+"):
        open_device(simulation.name, "ulx3s-25f")


def test_one_client_at_a_time(simulation):
    with engine(simulation), pytest.raises(LinkError, match="has closed the connection .* serves another client"):
        engine(simulation)
    engine(simulation).close()


def test_clients_that_are_killed(simulation, case):
    """In the midst of frames, of programs, of answers nobody fetches; the next one finds a board that works."""
    program, inputs, expected = case
    script = f"""
import sys
from celosia.host.link import Link
from celosia.host.pipes import open_pipe
link = Link(open_pipe({simulation.name!r}))
print("ready", flush=True)
while True:
    link.write(0, bytes(1 << 20))
    link.read(0, 1 << 20)
"""
    for delay in (0.0, 0.03, 0.1):
        client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert client.stdout.readline() == b"ready\n"
        time.sleep(delay)
        client.kill()
        client.communicate()
        with engine(simulation) as device:
            assert (device.run_program(program, inputs).outputs[0] == expected[0]).all()
    for junk in (b"\x05ab", os.urandom(5000)):
        with socket.create_connection((simulation.host, simulation.port)) as client:
            client.sendall(junk)
        with engine(simulation) as device:
            assert device._read(Register.MAGIC) == MAGIC


def test_a_program_that_still_runs(simulation, case):
    """Its host has gone away; the next one ends it."""
    program, inputs, expected = case
    with engine(simulation) as device:
        bases = device._place(program, inputs)
        device._write(Register.PROGRAM, bases[Base.WEIGHTS] + program.code_offset)
        device._write(Register.INSTRUCTIONS, program.instructions)
        device._write(Register.COMMAND, Command.const({"start": 1}).as_bits())
    with engine(simulation) as device:
        assert not Status.from_bits(device._read(Register.STATUS)).busy
        assert (device.run_program(program, inputs).outputs[0] == expected[0]).all()


def test_a_simulation_that_is_killed(case):
    """In the midst of a transfer, and started again at the same port."""
    first = Simulation()
    device = engine(first)
    threading.Timer(0.1, first.process.kill).start()
    start = time.monotonic()
    with pytest.raises(LinkError, match=r"has closed the connection \(.*\): it has ended, or serves another client; start it again if need be"):
        while time.monotonic() < start + 60:
            device._link.write(0, bytes(1 << 20))
    first.process.communicate()
    second = Simulation(port=first.port)
    program, inputs, expected = case
    with engine(second) as device:
        assert (device.run_program(program, inputs).outputs[0] == expected[0]).all()
        assert second.end() == (0, ""), "also while a client is connected"


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.count("celosia: ") == 1
    return err.splitlines()[-1]


def test_a_port_in_use(simulation, capsys):
    assert "choose another --port" in refused(["serve-sim", "--config", "tiny", "--port", str(simulation.port)], capsys)
    assert "choose another --port or --host" in refused(["serve-sim", "--config", "tiny", "--port", "0", "--host", "no.such.host.invalid"], capsys)


def test_only_this_machine_unless_told_otherwise(simulation):
    assert simulation.host == "127.0.0.1"
    if addresses := {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError):
            socket.create_connection((addresses.pop(), simulation.port), 2)


@pytest.mark.parametrize("name", ["tcp:", "tcp:1234", "tcp:host:", "tcp:host:0", "tcp:host:65536", "tcp:host:x", "serial:"])
def test_names(name):
    with pytest.raises(CelosiaError, match="must be (tcp:HOST:PORT|serial:PORT), for example"):
        open_device(name, "tiny")


def test_no_options_of_rtl():
    with pytest.raises(CelosiaError, match="has no option 'vcd'"):
        open_device("tcp:127.0.0.1:1", "tiny", vcd="x.vcd")


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(LinkError, match=rf"does not accept a connection \(Connection refused\); start `celosia serve-sim --port {port}` there"):
        open_device(f"tcp:127.0.0.1:{port}", "tiny")


def test_a_peer_that_says_nothing():
    """The time-out holds on a real clock."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe, start = open_pipe(f"tcp:127.0.0.1:{listener.getsockname()[1]}"), time.monotonic()
        with pytest.raises(LinkError, match="has not answered OPEN, sent .* within 0.5 s"):
            Link(pipe, timeout_seconds=0.5)
        assert time.monotonic() - start < 5
        pipe.close()


# A serial port

def test_serial_port():
    """A pseudo-terminal in place of the bridge; at its other end a board."""
    pytest.importorskip("serial")
    board, (outer, inner) = Recorder(1 << 14), os.openpty()
    server = FrameServer(board)

    def answer():
        try:
            while data := os.read(outer, 4096):
                os.write(outer, server.feed(data))
        except OSError:
            pass

    pipe = open_pipe(f"serial:{os.ttyname(inner)}")
    with pytest.raises(LinkError, match="cannot be opened"):
        open_pipe(f"serial:{os.ttyname(inner)}")
    threading.Thread(target=answer, daemon=True).start()
    link, data = Link(pipe), os.urandom(1 << 14)
    link.write(0, data)
    assert link.read(0, len(data)) == data == bytes(board.content) and link.write_register(0x20, 7)
    os.close(inner)
    os.close(outer)
    with pytest.raises(LinkError, match=r"serial:.* is gone"):
        link.read(0, 1024)
    link.close()


def test_no_serial_port():
    pytest.importorskip("serial")
    with pytest.raises(LinkError, match="serial:/dev/nothing cannot be opened .*; check that the board is plugged in"):
        open_device("serial:/dev/nothing", "tiny")


def test_without_pyserial(monkeypatch):
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(CelosiaError, match=r"device 'serial:COM3' needs pyserial; pip install 'celosia\[board\]'"):
        open_device("serial:COM3", "tiny")


# A stand-in for an engine, in simulated time

class Engine(Recorder):
    """Runs any program in no time, or, if it is `stuck`, never."""

    def __init__(self, stuck=False):
        super().__init__(CONFIG.memory_bytes)
        self.stuck, self.uploads = stuck, 0
        self.registers |= {Register.MAGIC: MAGIC, Register.VERSION: VERSION, Register.CONFIG: CONFIG.hash}

    def write(self, address, data):
        self.uploads += address == 0
        self.content[address : address + len(data)] = data
        return True

    def write_register(self, address, value):
        if address == Register.COMMAND:
            busy = self.stuck
            self.registers[Register.STATUS] = Status.const({"busy": busy, "done": not busy, "error": ErrorCode.NONE}).as_bits()
            return True
        return super().write_register(address, value)


def on_stand_in(**options):
    board = Engine(**options)
    return board, BoardDevice(CONFIG, Line(FrameServer(board)))


def test_the_image_is_written_once(case):
    program, inputs, _ = case
    board, device = on_stand_in()
    for _ in range(3):
        device.run_program(program, inputs)
    assert board.uploads == 1 and bytes(board.content[: program.image.size]) == program.image.tobytes()
    device.run_program(replace(program), inputs)
    assert board.uploads == 2


def test_a_program_that_never_ends(case):
    program, inputs, _ = case
    board, device = on_stand_in(stuck=True)
    start = device.link.now()
    with pytest.raises(DeviceError, match="program random on the simulated line: no instruction has retired for 120 s .* instructions retired: WEIGHT 0, MAP 0"):
        device.run_program(program, inputs)
    assert 120 < device.link.now() - start < 130, "the soft reset's time-out among it"
    board.stuck = False
    device.run_program(program, inputs)


def test_a_reset_that_does_not_end():
    board, device = on_stand_in(stuck=True)
    with pytest.raises(DeviceError, match="has not come to rest within 5 s after a reset"):
        device._soft_reset()


def test_more_layers_than_marks(case):
    program, inputs, _ = case
    _, device = on_stand_in()
    assert device.run_program(replace(program, stores=list(range(1, MARK_COUNT + 2))), inputs).layers == []
    assert len(device.run_program(replace(program, stores=list(range(1, MARK_COUNT + 1))), inputs).layers) == MARK_COUNT


def test_a_register_that_is_refused(case):
    board, device = on_stand_in()
    board.refused = {Register.PROGRAM}
    with pytest.raises(DeviceError, match="the control port of the simulated line has refused a write of register PROGRAM; load the bitstream again"):
        device.run_program(*case[:2])
