"""The device around the RTL, with hardware in its place that only copies its input to its output, 16 beats an "instruction"."""

import resource

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.hw.build import to_rtlil, to_verilog
from celosia.hw.config import get_config
from celosia.hw.interfaces import Axi4, Axi4Lite
from celosia.hw.isa import Base, Opcode, Unit, encode
from celosia.hw.network import Network, Tensor
from celosia.hw.program import Placement, Program, ProgramError
from celosia.hw.registers import MAGIC, VERSION, Command, ErrorCode, Register, Status
from celosia.sim.device import DeviceError
from celosia.sim.driver import WATCHDOG_CYCLES
from celosia.sim.rtl import BEAT_WRITTEN, MEMORIES, RtlDevice
from celosia.sim.verilate import fast_verilog

CONFIG = get_config("tiny")
BURST = 16


class Copier(wiring.Component):
    """Copies `INSTRUCTIONS` bursts, one after the other. 0 hangs until the watchdog; `skew` is added to every write address. BUILD counts from power-up on."""

    s_axil: In(Axi4Lite())
    m_axi: Out(Axi4())
    trace_retired: Out(len(Unit))

    def __init__(self, skew=0):
        self._skew = skew
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        host, bus = self.s_axil, self.m_axi
        registers = {register: Signal(32, name=register.name) for register in Register}
        build = registers[Register.BUILD] = Signal(32, reset_less=True)
        m.d.sync += build.eq(build + 1)
        status = Signal(Status)
        command = Command(host.wdata[:2])
        write = Signal()
        m.d.comb += [
            registers[Register.MAGIC].eq(MAGIC), registers[Register.VERSION].eq(VERSION), registers[Register.CONFIG].eq(CONFIG.hash),
            registers[Register.STATUS].eq(status),
            write.eq(host.awvalid & host.wvalid & (~host.bvalid | host.bready)), host.awready.eq(write), host.wready.eq(write),
            host.arready.eq(~host.rvalid | host.rready), host.rresp.eq(0),
        ]
        with m.If(host.bready):
            m.d.sync += host.bvalid.eq(0)
        with m.If(host.rready):
            m.d.sync += host.rvalid.eq(0)
        with m.If(write):
            m.d.sync += [host.bvalid.eq(1), host.bresp.eq(2)]
            with m.Switch(host.awaddr):
                for register in (Register.INSTRUCTIONS, Register.BASE_INPUT, Register.BASE_OUTPUT, Register.PROGRAM, Register.WATCHDOG, Register.BASE_MAPS,
                                 Register.BASE_WEIGHTS, Register.COMMAND):
                    with m.Case(register):
                        m.d.sync += [registers[register].eq(host.wdata), host.bresp.eq(0)]
        with m.If(host.arready & host.arvalid):
            m.d.sync += host.rvalid.eq(1)
            with m.Switch(host.araddr):
                for register, value in registers.items():
                    with m.Case(register):
                        m.d.sync += host.rdata.eq(value)

        left, offset, beat = Signal(32), Signal(32), Signal(range(BURST))
        cycles = registers[Register.CYCLES]
        m.d.comb += [
            bus.araddr.eq(registers[Register.BASE_INPUT] + offset), bus.awaddr.eq(registers[Register.BASE_OUTPUT] + offset + self._skew),
            bus.arlen.eq(BURST - 1), bus.awlen.eq(BURST - 1), bus.arsize.eq(3), bus.awsize.eq(3), bus.arburst.eq(1), bus.awburst.eq(1),
            bus.wdata.eq(bus.rdata), bus.wstrb.eq(255), bus.wlast.eq(beat == BURST - 1),
        ]
        with m.If(status.busy):
            m.d.sync += cycles.eq(cycles + 1)
        with m.FSM():
            with m.State("Idle"), m.If(write & (host.awaddr == Register.COMMAND) & command.start):
                m.d.sync += [status.eq(0), status.busy.eq(1), left.eq(registers[Register.INSTRUCTIONS]), offset.eq(0), cycles.eq(0),
                             registers[Register.RETIRED_STORE].eq(0)]
                m.next = "Next"
            with m.State("Next"):
                with m.If(cycles > registers[Register.WATCHDOG]):
                    m.d.sync += [status.busy.eq(0), status.error.eq(ErrorCode.WATCHDOG), status.unit.eq(Unit.COMPUTE), status.waiting.eq(1 << Unit.MAP)]
                    m.next = "Idle"
                with m.Elif(left != 0):
                    m.d.comb += bus.arvalid.eq(1)
                    with m.If(bus.arready):
                        m.next = "Address"
                with m.Elif(registers[Register.INSTRUCTIONS] != 0):
                    m.d.sync += [status.busy.eq(0), status.done.eq(1)]
                    m.next = "Idle"
            with m.State("Address"):
                m.d.comb += bus.awvalid.eq(1)
                with m.If(bus.awready):
                    m.next = "Copy"
            with m.State("Copy"):
                m.d.comb += [bus.wvalid.eq(bus.rvalid), bus.rready.eq(bus.wready)]
                with m.If(bus.rvalid & bus.wready):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(bus.wlast):
                        m.next = "Response"
            with m.State("Response"):
                m.d.comb += bus.bready.eq(1)
                with m.If(bus.bvalid):
                    m.d.comb += self.trace_retired.eq(1 << Unit.STORE)
                    m.d.sync += [left.eq(left - 1), offset.eq(offset + 8 * BURST), registers[Register.RETIRED_STORE].eq(registers[Register.RETIRED_STORE] + 1)]
                    m.next = "Next"
        return m


@pytest.fixture(scope="module")
def verilog():
    return to_verilog(Copier())


def make_program(bursts=8, *, batch=1, image=b""):
    """Copies (batch, 8, 8, 16) codes, with two "layers" of four bursts for each image."""
    tensors = {name: Tensor(name=name, shape=(8, 8, 16), scale=1.0, zero_point=0) for name in "xy"}
    network = Network(name="copy", tensors=tensors, layers=[], inputs=["x"], outputs=["y"])
    image = np.frombuffer(image or bytes(16), np.uint8)
    size = batch * 1024
    return Program(config=CONFIG, batch=batch, network=network, image=image, code_offset=0, instructions=bursts, layers=np.zeros(bursts, np.uint16), estimates=[],
                   stores=[4 * batch, 8 * batch], sizes={Base.WEIGHTS: image.size, Base.MAPS: 0, Base.INPUT: size, Base.OUTPUT: size},
                   inputs=[Placement(tensor="x", base=Base.INPUT, offset=0)], outputs=[Placement(tensor="y", base=Base.OUTPUT, offset=0)])


def codes(batch=1, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, (batch, 8, 8, 16), np.int8)


@pytest.mark.parametrize("memory", MEMORIES)
def test_copies(verilog, memory):
    with RtlDevice(CONFIG, memory, verilog=verilog) as device:
        for batch, seed in [(1, 0), (2, 1), (1, 2)]:
            x = codes(batch, seed)
            result = device.run_program(make_program(8 * batch, batch=batch), [x])
            assert (result.outputs[0] == x).all() and result.outputs[0].dtype == np.int8
            assert sum(result.layers) == result.cycles and len(result.layers) == 2
            assert result.counters["retired_store"] == 8 * batch


@pytest.mark.parametrize("memory", MEMORIES)
def test_cycles_are_deterministic(verilog, memory):
    with RtlDevice(CONFIG, memory, verilog=verilog) as device:
        results = [device.run_program(make_program(), [codes()]) for _ in range(3)]
    assert len({(result.cycles, *result.layers) for result in results}) == 1


def test_cycles(verilog):
    with RtlDevice(CONFIG, verilog=verilog) as device:
        result = device.run_program(make_program(), [codes()])
    # A burst: latency, 16 beats of three cycles read, then written, and the response.
    assert 8 * 110 <= result.cycles <= 8 * 150 and abs(result.layers[0] - result.layers[1]) < 40


def test_image_is_written_once(verilog):
    with RtlDevice(CONFIG, verilog=verilog) as device:
        program = make_program(image=bytes(range(32)))
        device.run_program(program, [codes()])
        assert bytes(device._memory[:32]) == bytes(range(32))
        device._memory[:32] = 7
        device.run_program(program, [codes()])
        assert (device._memory[:32] == 7).all()
        device.run_program(make_program(), [codes()])
        device.run_program(program, [codes()])
        assert bytes(device._memory[:32]) == bytes(range(32))


def test_progress(verilog):
    seen = []
    with RtlDevice(CONFIG, verilog=verilog, progress=lambda cycles, rate: seen.append((cycles, rate))) as device:
        device.run_program(make_program(), [codes()])
    assert seen and seen[-1][0] > 800 and seen[-1][1] > 0


def test_interrupt(verilog):
    def interrupt(cycles, rate):
        raise KeyboardInterrupt

    with RtlDevice(CONFIG, verilog=verilog, progress=interrupt) as device:
        with pytest.raises(KeyboardInterrupt):
            device.run_program(make_program(0), [codes()])
        device._progress = None
        assert (device.run_program(make_program(), [codes()]).outputs[0] == codes()).all()


def test_limit(verilog):
    with RtlDevice(CONFIG, verilog=verilog, limit_cycles=10_000) as device:
        with pytest.raises(DeviceError, match=r"has not ended within 10\d\d\d cycles; instructions retired: .*STORE 0"):
            device.run_program(make_program(0), [codes()])
        assert device.run_program(make_program(), [codes()]).cycles > 0


def test_watchdog_names_the_instruction(verilog):
    words = [encode(Opcode.LOAD_MAP), encode(Opcode.COMPUTE_WINDOW), encode(Opcode.END)]
    program = make_program(0, image=b"".join(word.to_bytes(16, "little") for word in words))
    program.words = lambda: words
    with RtlDevice(CONFIG, verilog=verilog) as device, pytest.raises(
            DeviceError, match=rf"nothing retired for {WATCHDOG_CYCLES} cycles, COMPUTE waits for tokens of MAP near instruction 1 of \d+, COMPUTE_WINDOW"):
        device.run_program(program, [codes()])


def test_bus_violation():
    with RtlDevice(CONFIG, verilog=to_verilog(Copier(skew=4))) as device, pytest.raises(DeviceError, match="not aligned to 8 bytes on its memory port, at address"):
        device.run_program(make_program(), [codes()])


def test_power_up(verilog):
    def counted(verilog, seed, **options):
        with RtlDevice(CONFIG, verilog=verilog, seed=seed, **options) as device:
            return device._read(Register.BUILD)

    assert counted(verilog, 1) == counted(verilog, 2) < 100
    without = fast_verilog(to_rtlil(Copier()), power_up=False)
    first, second = (counted(without, seed, power_up=False) for seed in (1, 2))
    assert first != second == counted(without, 2, power_up=False) and max(first, second) > 1000


def test_vcd(verilog, tmp_path):
    path = tmp_path / "dump.vcd"
    with RtlDevice(CONFIG, verilog=verilog, vcd=path, vcd_range=(100, 200)) as device:
        device.run_program(make_program(), [codes()])
    text = path.read_text()
    assert "m_axi_araddr" in text and "#200" in text and "#399" in text and "#400" not in text and "#199\n" not in text
    assert device.waveform == (100, 200) and list(tmp_path.iterdir()) == [path]


def test_vcd_holds_the_first_run_from_its_start_to_its_end(verilog, tmp_path):
    path = tmp_path / "dump.vcd"
    with RtlDevice(CONFIG, verilog=verilog, vcd=path) as device:
        cycles = device.run_program(make_program(), [codes()]).cycles
        device.run_program(make_program(16, batch=2), [codes(2)])
    times = [int(line[1:]) for line in path.read_text().splitlines() if line.startswith("#")]
    first, end = device.waveform
    assert times == list(range(2 * end)) and first == 0 and cycles <= end < cycles + 100


def test_vcd_of_a_run_that_has_stopped(verilog, tmp_path):
    with RtlDevice(CONFIG, verilog=verilog, vcd=tmp_path / "dump.vcd", vcd_range=(9000, 9100), limit_cycles=10_000) as device, pytest.raises(DeviceError):
        device.run_program(make_program(0), [codes()])
    assert device.waveform == (9000, 9100) and (tmp_path / "dump.vcd").stat().st_size > 0


def test_no_vcd_of_an_interrupted_run(verilog, tmp_path):
    def interrupt(cycles, rate):
        raise KeyboardInterrupt

    with RtlDevice(CONFIG, verilog=verilog, vcd=tmp_path / "dump.vcd", progress=interrupt) as device, pytest.raises(KeyboardInterrupt):
        device.run_program(make_program(0), [codes()])
    assert device.waveform is None and not list(tmp_path.iterdir())


def test_no_vcd_without_its_cycles(verilog, tmp_path):
    (tmp_path / "dump.vcd").write_text("of another run")
    with RtlDevice(CONFIG, verilog=verilog, vcd=tmp_path / "dump.vcd", vcd_range=(100_000, 100_001)) as device:
        device.run_program(make_program(), [codes()])
    assert device.waveform is None and (tmp_path / "dump.vcd").read_text() == "of another run"


def test_vcd_larger_than_the_room_for_it(verilog, tmp_path):
    device = RtlDevice(CONFIG, verilog=verilog, vcd=tmp_path / "dump.vcd")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert (device.run_program(make_program(), [codes()]).outputs[0] == codes()).all()
        with pytest.raises(DeviceError, match=r"waveform .*dump\.vcd cannot be written: File too large"):
            device.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_stamps(verilog):
    with RtlDevice(CONFIG, verilog=verilog) as device:
        result = device.run_program(make_program(), [codes()])
        stamps = device.stamps(make_program(), [codes()], [(Unit.STORE, 8), (Unit.STORE, 4), (Unit.STORE, 9), (BEAT_WRITTEN, 4 * BURST), (BEAT_WRITTEN, 4 * BURST + 1)])
    assert stamps[1] == result.layers[0] and result.layers[0] < stamps[0] < result.cycles + 20 and stamps[2] == 0
    assert stamps[3] < stamps[1] < stamps[4], "a STORE retires when its last beat has been written"


@pytest.mark.parametrize("range_", [(5, 5), (5, 4), (-1, 4)])
def test_vcd_range(range_):
    with pytest.raises(DeviceError, match="vcd_range must be the first cycle and the one after the last, not"):
        RtlDevice(CONFIG, vcd="x.vcd", vcd_range=range_)


def test_vcd_in_no_folder(verilog, tmp_path):
    with pytest.raises(DeviceError, match=r"waveform .*dump\.vcd cannot be written: No such file"):
        RtlDevice(CONFIG, verilog=verilog, vcd=tmp_path / "nowhere" / "dump.vcd")


@pytest.mark.parametrize(("inputs", "message"), [
    ([], "has 1 inputs, 0 were given"),
    ([codes(2)], r"input x must be int8 \(1, 8, 8, 16\), not int8 \(2, 8, 8, 16\)"),
    ([codes().astype(float)], "not float64"),
])
def test_wrong_inputs(verilog, inputs, message):
    with RtlDevice(CONFIG, verilog=verilog) as device, pytest.raises(DeviceError, match=message):
        device.run_program(make_program(), inputs)


def test_too_large(verilog):
    program = make_program()
    program.sizes = program.sizes | {Base.MAPS: 1 << 25}
    with RtlDevice(CONFIG, verilog=verilog) as device, pytest.raises(ProgramError, match="bytes of memory, config 'tiny' has 33,554,432"):
        device.run_program(program, [codes()])


def test_other_hardware(verilog):
    with pytest.raises(DeviceError, match="register CONFIG is"):
        RtlDevice(get_config("ulx3s-25f"), verilog=verilog)


def test_closed(verilog):
    device = RtlDevice(CONFIG, verilog=verilog)
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.run_program(make_program(), [codes()])


def test_unknown_memory():
    with pytest.raises(DeviceError, match="memory must be one of ideal, sdram"):
        RtlDevice(CONFIG, "fast")
