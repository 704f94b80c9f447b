"""The device `rtl`: the compiled RTL itself, with a model of the board's memory.

About 250,000 cycles/s of the 256-MAC engine compiled by g++ 12, 330,000 by clang (`CELOSIA_CXX="python -m ziglang c++ -fno-sanitize=undefined"`), on one
busy core; the model and the harness take less than 2 % of it.
"""

import ctypes
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..hw.atomic import write_atomically
from ..hw.config import AcceleratorConfig
from ..hw.isa import Base, Unit, decode, unit_of
from ..hw.program import Program, pack_map
from ..hw.registers import MAGIC, VERSION, Command, ErrorCode, Register, Status
from .device import DeviceError, RunResult, check_inputs
from .toolchain import BuildError, cache_folder
from .verilate import fast_verilog, verilate
from .waveform import VCD_CYCLES, WaveformFile

__all__ = ["BEAT_WRITTEN", "RtlDevice", "build"]

#: The event of :meth:`RtlDevice.stamps` that is not a unit's: the memory takes a beat. Beats come in the order of the STORE instructions.
BEAT_WRITTEN = len(Unit)
#: Memory models of `sdram.hpp`: name → (kind, of 256 the probability of a pause).
MEMORIES = {"ideal": (0, 0), "sdram": (1, 0), "ideal-pauses": (0, 96), "sdram-pauses": (1, 96), "erratic": (2, 96)}
#: Cycles without a retired instruction after which the engine gives up; the longest tile takes fewer.
WATCHDOG_CYCLES = 1 << 22
_COUNTERS = [register for register in Register if Register.CYCLES <= register <= Register.RETIRED_STORE and register != Register.SNAPSHOT]
_BASES = {Base.WEIGHTS: Register.BASE_WEIGHTS, Base.MAPS: Register.BASE_MAPS, Base.INPUT: Register.BASE_INPUT, Base.OUTPUT: Register.BASE_OUTPUT}
_MARK = np.dtype([("event", np.uint32), ("count", np.uint32)])  # as in rtl.cpp
_ENDED, _CONTROL_STUCK, _BUS_VIOLATION = 1, 2, 3
_SECONDS_A_CALL = 0.2
#: In which the bus answers what is outstanding and a soft reset ends.
_RESET_CYCLES = 100_000


def _sources():
    """What the accelerator's Verilog follows from, beside its configuration and the tools."""
    return [path.read_bytes() for path in [*sorted((Path(__file__).parents[1] / "hw").glob("*.py")), Path(__file__).with_name("verilate.py")]]


#: Read as the modules are, for an edit while this process runs must not give its old Verilog the new sources' name.
_SOURCES = hashlib.sha256(repr(_sources()).encode()).hexdigest()


def build(config: AcceleratorConfig, *, trace: bool = False, power_up: bool = True) -> Path:
    """The shared library of a configuration, from the cache if it is there. Raises :exc:`BuildError`."""
    return _build(_verilog(config, power_up), trace, power_up)


def _verilog(config, power_up):
    """The accelerator's Verilog, from the cache if its sources have not changed: generating it takes longer than many a run."""
    try:
        versions = [importlib.metadata.version(name) for name in ("amaranth", "pyosys")]
    except importlib.metadata.PackageNotFoundError as error:
        raise BuildError(f"{error.name} is not installed; install it with: pip install 'celosia[sim]'") from None
    path = cache_folder() / "verilog" / f"{hashlib.sha256(repr((_SOURCES, versions, config.hash, power_up)).encode()).hexdigest()[:32]}.v"
    if not path.exists():
        from ..hw.accelerator import Accelerator
        from ..hw.build import to_rtlil

        verilog = fast_verilog(to_rtlil(Accelerator(config)), power_up=power_up)
        if hashlib.sha256(repr(_sources()).encode()).hexdigest() != _SOURCES:
            return verilog
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, verilog)
    return path.read_text()


def _build(verilog, trace, power_up):
    folder = Path(__file__).parent
    options = (*(["--trace-vcd"] if trace else []), *([] if power_up else ["--x-assign", "unique", "--x-initial", "unique"]))
    return verilate(verilog, sources=[folder / "rtl.cpp", folder / "sdram.hpp"], shared=True, options=options, runtime=("verilated_vcd_c.cpp",) if trace else ())


class _Stopped(DeviceError):
    """The engine has stopped the program by itself."""


class RtlDevice:
    """Runs programs on the RTL of `config`, cycle by cycle; a context manager.

    memory: "sdram" (the board's, with its costs), "ideal" (a beat a cycle), either with "-pauses" (random ones, from `seed`), or "erratic": with pauses and a random
    latency for each burst, so that reads and writes overtake each other.
    vcd: a file for the waveform of the first run; needs a build of its own and is slow. `vcd_range`: its first cycle and the one after its last, counted from the
    program's start as those of layers and `stamps` are; cycle n is the time steps 2n, with its values, and 2n + 1, after the clock's edge.
    progress: called about every 0.2 s with the cycles done and the cycles per second. verilog: other hardware with the same ports.
    power_up: if False, registers that reset leaves alone and memories begin with random bits, from `seed`, instead of the FPGA's power-up values; such values
    in a `verilog` of one's own stay.
    limit_cycles: after which a run is given up. Raises :exc:`DeviceError` if the device cannot be built or is not what `config` describes.
    """

    name = "rtl"

    def __init__(self, config: AcceleratorConfig, memory: str = "sdram", *, vcd: "str | Path | None" = None, vcd_range: tuple[int, int] = (0, VCD_CYCLES),
                 progress: "Callable[[int, float], None] | None" = None, limit_cycles: int = 10**10, seed: int = 1, verilog: "str | None" = None,
                 power_up: bool = True):
        if memory not in MEMORIES:
            raise DeviceError(f"memory must be one of {', '.join(MEMORIES)}, not {memory!r}")
        if not 0 <= vcd_range[0] < vcd_range[1] < 1 << 64:
            raise DeviceError(f"vcd_range must be the first cycle and the one after the last, not {vcd_range!r}")
        self.config = config
        #: First cycle of the waveform and the one after its last, once the device is closed; None if there is no file.
        self.waveform: tuple[int, int] | None = None
        self._progress, self._limit = progress, limit_cycles
        try:
            path = _build(verilog, bool(vcd), power_up) if verilog else build(config, trace=bool(vcd), power_up=power_up)
        except (RuntimeError, OSError) as error:
            raise DeviceError(f"the RTL of config {config.name} could not be built: {error}") from error
        self._vcd, self._vcd_first, self._vcd_over = None, vcd_range[0], False
        self._library = _load(path)
        # Random, so that nobody relies on zeros.
        self._memory = np.random.default_rng(seed).integers(0, 256, config.memory_bytes, np.uint8)
        self._board = self._library.board_open(self._memory.ctypes.data, self._memory.nbytes, *MEMORIES[memory], seed)
        self._resident = None
        try:
            if vcd:
                self._vcd = WaveformFile(vcd)
                self._library.board_trace(self._board, str(self._vcd.temporary).encode(), *vcd_range)
            self._reset()
            self._identify()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RtlDevice":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Free the simulator. The waveform has its name after it, unless its cycles were not reached or the run was interrupted.

        Raises :exc:`DeviceError` if it could not be written.
        """
        if self._board is None:
            return
        board, self._board = self._board, None
        try:
            if self._vcd:
                cycles = ctypes.c_uint64()
                error = self._library.board_trace_end(board, ctypes.byref(cycles))
                if self._vcd.finish(error, cycles.value):
                    self.waveform = self._vcd_first, self._vcd_first + cycles.value
        finally:
            self._library.board_close(board)

    def run_program(self, program: Program, inputs: list[np.ndarray]) -> RunResult:
        """Run a program on int8 codes (N, C, H, W), one array per input. The image is written only if it is not the last program's.

        Raises :exc:`ProgramError` if the program does not fit the config, :exc:`DeviceError` if the inputs do not fit, the engine reports an error, or it does not
        come to its end.
        """
        bases = self._place(program, inputs)
        stamps, counters = self._run(program, bases, [(Unit.STORE, count) for count in program.stores])
        cycles = counters.pop("cycles")
        ends = [*stamps[:-1], cycles]
        return RunResult(outputs=[program.output_codes(placement, self._memory[bases[placement.base] :]) for placement in program.outputs], cycles=cycles,
                         layers=[end - start for start, end in zip([0, *ends], ends)], counters=counters)

    def fail(self, direction: str, burst: int) -> None:
        """The memory answers the `burst`-th "read" or "write" burst from now on (the first is 1) with SLVERR, once: for tests of what follows."""
        self._library.board_fail(self._board, ("read", "write").index(direction), burst)

    def stamps(self, program: Program, inputs: list[np.ndarray], marks: Sequence[tuple[int, int]]) -> list[int]:
        """Run a program as :meth:`run_program` does; for each mark (event, count ≥ 1) the cycle in which the event occurs for the count-th time, 0 if never.
        Events are BEAT_WRITTEN and the units: one retires an instruction."""
        return self._run(program, self._place(program, inputs), marks)[0]

    def _place(self, program, inputs):
        """Program and inputs into memory; returns the bases of its regions."""
        if self._board is None:
            raise DeviceError("the device is closed")
        program.check_config(self.config)
        check_inputs(program, inputs)
        bases = program.bases()
        if self._resident is not program:
            self._memory[bases[Base.WEIGHTS] :][: program.image.size] = program.image
            self._resident = program
        for placement, codes in zip(program.inputs, inputs):
            tensor = program.network.tensors[placement.tensor]
            folded = placement.fold.apply(codes, tensor.zero_point) if placement.fold else codes
            packed = pack_map(folded).view(np.uint8).ravel()
            self._memory[bases[placement.base] + placement.offset :][: packed.size] = packed
        return bases

    def _run(self, program, bases, marks):
        """The stamps of a run's marks, and its counters."""
        try:
            stamps = self._execute(program, bases, marks)
            self._vcd_over = True
            return stamps, {register.name.lower(): self._read(register) for register in _COUNTERS}
        except BaseException as error:
            # A run that stopped by itself is what a waveform is wanted for.
            if self._vcd and not self._vcd_over and not isinstance(error, DeviceError):
                self._vcd.discard()
            if not isinstance(error, _Stopped) or not self._soft_reset():
                self._reset()
            raise

    def _identify(self):
        for register, expected in [(Register.MAGIC, MAGIC), (Register.VERSION, VERSION), (Register.CONFIG, self.config.hash)]:
            if (value := self._read(register)) != expected:
                raise DeviceError(f"the device is not the RTL of config {self.config.name}: register {register.name} is {value:08x}, not {expected:08x}")

    def _execute(self, program, bases, marks):
        """Start and wait; returns the cycle of each mark."""
        for base, register in _BASES.items():
            self._write(register, bases[base])
        self._write(Register.PROGRAM, bases[Base.WEIGHTS] + program.code_offset)
        self._write(Register.INSTRUCTIONS, program.instructions)
        self._write(Register.WATCHDOG, WATCHDOG_CYCLES)
        marks = np.array(marks, _MARK)
        stamps = np.zeros(len(marks), np.uint64)
        self._library.board_mark(self._board, marks.ctypes.data, len(marks), stamps.ctypes.data)
        self._write(Register.COMMAND, Command.const({"start": 1}).as_bits())
        self._wait(program)
        status = Status.from_bits(self._read(Register.STATUS))
        if status.error != ErrorCode.NONE:
            raise _Stopped(f"program {program.network.name} stopped after {self._cycles()} cycles: {self._explain(program, status)}")
        return stamps.tolist()

    def _wait(self, program):
        """Clock until the engine is no longer busy; in pieces, so that Ctrl-C and progress get their turn."""
        piece, begin = 50_000, time.perf_counter()
        while True:
            start, done = time.perf_counter(), self._cycles()
            outcome = self._library.board_run(self._board, min(piece, max(self._limit - done, 1)), Register.STATUS)
            now, cycles = time.perf_counter(), self._cycles()
            if self._progress:
                self._progress(cycles, cycles / (now - begin))
            if outcome == _ENDED:
                return
            if outcome == _CONTROL_STUCK:
                raise DeviceError(f"program {program.network.name}: the control port has not answered after {cycles} cycles")
            if outcome == _BUS_VIOLATION:
                address = ctypes.c_uint64()
                what = self._library.board_violation(self._board, ctypes.byref(address)).decode()
                raise DeviceError(f"program {program.network.name}: the engine has put {what} on its memory port, at address {address.value:#x} in cycle {cycles}")
            if cycles >= self._limit:
                retired = ", ".join(f"{unit.name} {self._read(Register[f'RETIRED_{unit.name}'])}" for unit in Unit)
                raise DeviceError(f"program {program.network.name} has not ended within {cycles} cycles; instructions retired: {retired}")
            piece = max(10_000, int((cycles - done) / max(now - start, 1e-6) * _SECONDS_A_CALL))

    def _explain(self, program, status):
        if status.error != ErrorCode.WATCHDOG:
            return f"error {status.error.name} at instruction {self._read(Register.ERROR_INDEX)} of {program.instructions}"
        if status.unit >= len(Unit):
            return f"nothing retired for {WATCHDOG_CYCLES} cycles, fetching instructions is stuck"
        unit = Unit(status.unit)
        waits = " and ".join(u.name for u in Unit if status.waiting >> u & 1)
        retired = self._read(Register[f"RETIRED_{unit.name}"])
        own = [(index, opcode) for index, opcode in enumerate(map(_opcode, program.words())) if opcode and unit_of(opcode) == unit]
        where = "behind its last instruction"
        if retired < len(own):
            index, opcode = own[retired]
            where = f"near instruction {index} of {program.instructions}, {opcode.name}"
        return f"nothing retired for {WATCHDOG_CYCLES} cycles, {unit.name} waits for {f'tokens of {waits}' if waits else 'its bus or its data'} {where}"

    def _cycles(self):
        return self._library.board_cycles(self._board)

    def _soft_reset(self):
        """What a board's driver can do; False if the engine does not come to rest."""
        self._write(Register.COMMAND, Command.const({"reset": 1}).as_bits())
        return self._library.board_run(self._board, _RESET_CYCLES, Register.STATUS) == _ENDED

    def _reset(self):
        self._library.board_reset(self._board)

    def _read(self, register):
        value = ctypes.c_uint32()
        self._check(self._library.board_read(self._board, register, ctypes.byref(value)), "read", register)
        return value.value

    def _write(self, register, value):
        self._check(self._library.board_write(self._board, register, value), "write", register)

    def _check(self, response, what, register):
        if response:
            raise DeviceError(f"the control port {'has not answered' if response < 0 else 'has refused'} a {what} of register {register.name}")


def _opcode(word):
    """An instruction's opcode; None if it has none, as behind a program's END."""
    try:
        return decode(word)[0]
    except ValueError:
        return None


def _load(path):
    library = ctypes.CDLL(str(path))
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    signatures = {
        "board_open": (pointer, [pointer, u64, ctypes.c_int, ctypes.c_uint, u64]), "board_close": (None, [pointer]), "board_reset": (None, [pointer]),
        "board_fail": (None, [pointer, ctypes.c_int, u64]),
        "board_read": (ctypes.c_int, [pointer, u32, pointer]), "board_write": (ctypes.c_int, [pointer, u32, u32]),
        "board_mark": (None, [pointer, pointer, u32, pointer]), "board_run": (ctypes.c_int, [pointer, u64, u32]),
        "board_cycles": (u64, [pointer]), "board_violation": (ctypes.c_char_p, [pointer, pointer]),
        "board_trace": (None, [pointer, ctypes.c_char_p, u64, u64]), "board_trace_end": (ctypes.c_int, [pointer, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        if function := getattr(library, name, None):
            function.restype, function.argtypes = result, arguments
    return library
