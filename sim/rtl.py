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
from ..hw.config import SMALL_MEMORY, AcceleratorConfig
from ..hw.isa import Unit
from ..hw.program import Program
from ..hw.registers import Command, Register
from .device import DeviceError
from .driver import Driver, Stopped
from .toolchain import BuildError, cache_folder
from .verilate import fast_verilog, verilate
from .waveform import VCD_CYCLES, WaveformFile

__all__ = ["BEAT_WRITTEN", "BUS_VIOLATION", "CONTROL_STUCK", "ENDED", "MEMORIES", "RtlBoard", "RtlDevice", "build"]

#: The event of :meth:`RtlDevice.stamps` that is not a unit's: the memory takes a beat. Beats come in the order of the STORE instructions.
BEAT_WRITTEN = len(Unit)
#: Memory models of `sdram.hpp`: name → (kind, of 256 the probability of a pause).
MEMORIES = {"ideal": (0, 0), "sdram": (1, 0), "ideal-pauses": (0, 96), "sdram-pauses": (1, 96), "erratic": (2, 96)}
_MARK = np.dtype([("event", np.uint32), ("count", np.uint32)])  # as in board.hpp
#: What :meth:`RtlBoard.run` returns beside 0, for a program that goes on.
ENDED, CONTROL_STUCK, BUS_VIOLATION = 1, 2, 3
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
    return _build(config, _verilog(config, power_up), trace, power_up)


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
        from ..hw.inorder import InOrderEngine

        engine = InOrderEngine(config) if config.in_order else Accelerator(config)
        verilog = fast_verilog(to_rtlil(engine), power_up=power_up)
        if hashlib.sha256(repr(_sources()).encode()).hexdigest() != _SOURCES:
            return verilog
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, verilog)
    return path.read_text()


def _build(config, verilog, trace, power_up):
    folder = Path(__file__).parent
    sources = [folder / name for name in (("inorder.cpp", "board.hpp") if config.in_order else ("rtl.cpp", "board.hpp", "sdram.hpp"))]
    options = (*(["--trace-vcd"] if trace else []), *([] if power_up else ["--x-assign", "unique", "--x-initial", "unique"]))
    return verilate(verilog, sources=sources, shared=True, options=options, runtime=("verilated_vcd_c.cpp",) if trace else ())


class RtlBoard:
    """The RTL of `config` with its memory, clocked by whoever uses it: what a board is, without a driver. The arguments are those of :class:`RtlDevice`.

    `memory`: its bytes, uint8. Raises :exc:`DeviceError` if it cannot be built.
    """

    def __init__(self, config: AcceleratorConfig, memory: str = "sdram", *, seed: int = 1, verilog: "str | None" = None, power_up: bool = True, trace: bool = False):
        if memory not in MEMORIES:
            raise DeviceError(f"memory must be one of {', '.join(MEMORIES)}, not {memory!r}")
        try:
            path = _build(config, verilog, trace, power_up) if verilog else build(config, trace=trace, power_up=power_up)
        except (RuntimeError, OSError) as error:
            raise DeviceError(f"the RTL of config {config.name} could not be built: {error}") from error
        self._library = _load(path)
        # Random, so that nobody relies on zeros.
        everything = np.random.default_rng(seed).integers(0, 256, SMALL_MEMORY if config.in_order else config.memory_bytes, np.uint8)
        self.memory = everything[: config.memory_bytes]
        self._board = self._library.board_open(everything.ctypes.data, everything.nbytes, *MEMORIES[memory], seed)
        self._marks = self._stamps = None

    @property
    def closed(self) -> bool:
        """Whether the simulator is gone."""
        return self._board is None

    def close(self) -> None:
        """Free the simulator."""
        board, self._board = self._board, None
        if board is not None:
            self._library.board_close(board)

    def read(self, register: int) -> tuple[int, int]:
        """The control port's response, −1 if there is none, and a register's value."""
        value = ctypes.c_uint32()
        return self._library.board_read(self._board, register, ctypes.byref(value)), value.value

    def write(self, register: int, value: int) -> int:
        """Write a register; the response as of :meth:`read`."""
        return self._library.board_write(self._board, register, value)

    def mark(self, marks: Sequence[tuple[int, int]]) -> np.ndarray:
        """From now on `cycles` count, and the cycle is noted in which each event occurs for the count-th time: where, uint64, 0 meanwhile. The memory, which must be
        idle, begins anew, so that equal runs take equally long."""
        self._marks = np.array(marks, _MARK)
        self._stamps = np.zeros(len(self._marks), np.uint64)
        self._library.board_mark(self._board, self._marks.ctypes.data, len(self._marks), self._stamps.ctypes.data)
        return self._stamps

    @property
    def cycles(self) -> int:
        """Since the last :meth:`mark`."""
        return self._library.board_cycles(self._board)

    def run(self, cycles: int) -> int:
        """Clock until the engine is not busy, at most about `cycles`: 0 if it still is, else ENDED, CONTROL_STUCK or BUS_VIOLATION."""
        return self._library.board_run(self._board, cycles, Register.STATUS)

    def violation(self) -> tuple[str, int]:
        """What the engine has put on its memory port, and the address."""
        address = ctypes.c_uint64()
        what = self._library.board_violation(self._board, ctypes.byref(address)).decode()
        return what, address.value

    def reset(self) -> None:
        """Reset the engine and whatever the memory had outstanding."""
        self._library.board_reset(self._board)

    def fail(self, direction: str, burst: int) -> None:
        """The memory answers the `burst`-th "read" or "write" burst from now on (the first is 1) with SLVERR, once."""
        self._library.board_fail(self._board, ("read", "write").index(direction), burst)

    def trace(self, path: Path, cycles: tuple[int, int]) -> None:
        """Write a waveform of the first run: its first cycle and the one after its last. For boards opened with `trace`."""
        self._library.board_trace(self._board, str(path).encode(), *cycles)

    def end_trace(self) -> tuple[int, int]:
        """Complete the waveform: an errno or 0, and the cycles it holds."""
        cycles = ctypes.c_uint64()
        error = self._library.board_trace_end(self._board, ctypes.byref(cycles))
        return error, cycles.value


class RtlDevice(Driver):
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
        super().__init__(config)
        if not 0 <= vcd_range[0] < vcd_range[1] < 1 << 64:
            raise DeviceError(f"vcd_range must be the first cycle and the one after the last, not {vcd_range!r}")
        #: First cycle of the waveform and the one after its last, once the device is closed; None if there is no file.
        self.waveform: tuple[int, int] | None = None
        self._progress, self._limit = progress, limit_cycles
        self._vcd, self._vcd_first, self._vcd_over = None, vcd_range[0], False
        self._noted: np.ndarray | None = None
        self._board = RtlBoard(config, memory, seed=seed, verilog=verilog, power_up=power_up, trace=bool(vcd))
        try:
            if vcd:
                self._vcd = WaveformFile(vcd)
                self._board.trace(self._vcd.temporary, vcd_range)
            self._board.reset()
            self._identify()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the simulator. The waveform has its name after it, unless its cycles were not reached or the run was interrupted.

        Raises :exc:`DeviceError` if it could not be written.
        """
        if self._board.closed:
            return
        try:
            if self._vcd:
                error, cycles = self._board.end_trace()
                if self._vcd.finish(error, cycles):
                    self.waveform = self._vcd_first, self._vcd_first + cycles
        finally:
            self._board.close()

    def fail(self, direction: str, burst: int) -> None:
        """The memory answers the `burst`-th "read" or "write" burst from now on (the first is 1) with SLVERR, once: for tests of what follows."""
        self._board.fail(direction, burst)

    def stamps(self, program: Program, inputs: list[np.ndarray], marks: Sequence[tuple[int, int]]) -> list[int]:
        """Run a program as :meth:`run_program` does; for each mark (event, count ≥ 1) the cycle in which the event occurs for the count-th time, 0 if never.
        Events are BEAT_WRITTEN and the units: one retires an instruction."""
        return self._run(program, self._place(program, inputs), marks)[0]

    @property
    def _memory(self):
        return self._board.memory

    def _fetch(self, address, size):
        return self._memory[address : address + size]

    def _put(self, address, data):
        self._memory[address : address + data.size] = data

    def _mark(self, marks):
        self._noted = self._board.mark(marks)

    def _stamps(self):
        return self._noted.tolist()

    def _place(self, program, inputs):
        if self._board.closed:
            raise DeviceError("the device is closed")
        return super()._place(program, inputs)

    def _execute(self, program, bases, marks):
        stamps = super()._execute(program, bases, marks)
        self._vcd_over = True
        return stamps

    def _recover(self, error):
        # A run that stopped by itself is what a waveform is wanted for.
        if self._vcd and not self._vcd_over and not isinstance(error, DeviceError):
            self._vcd.discard()
        if not isinstance(error, Stopped) or not self._soft_reset():
            self._board.reset()

    def _wait(self, program):
        """Clock until the engine is no longer busy; in pieces, so that Ctrl-C and progress get their turn."""
        piece, begin = 50_000, time.perf_counter()
        while True:
            start, done = time.perf_counter(), self._cycles()
            outcome = self._board.run(min(piece, max(self._limit - done, 1)))
            now, cycles = time.perf_counter(), self._cycles()
            if self._progress:
                self._progress(cycles, cycles / (now - begin))
            if outcome == ENDED:
                return
            if outcome == CONTROL_STUCK:
                raise DeviceError(f"program {program.network.name}: the control port has not answered after {cycles} cycles")
            if outcome == BUS_VIOLATION:
                what, address = self._board.violation()
                raise DeviceError(f"program {program.network.name}: the engine has put {what} on its memory port, at address {address:#x} in cycle {cycles}")
            if cycles >= self._limit:
                raise DeviceError(f"program {program.network.name} has not ended within {cycles} cycles; instructions retired: {self._retired()}")
            piece = max(10_000, int((cycles - done) / max(now - start, 1e-6) * _SECONDS_A_CALL))

    def _cycles(self):
        return self._board.cycles

    def _soft_reset(self):
        """What a board's driver can do; False if the engine does not come to rest."""
        self._write(Register.COMMAND, Command.const({"reset": 1}).as_bits())
        return self._board.run(_RESET_CYCLES) == ENDED

    def _read(self, register):
        response, value = self._board.read(register)
        self._check(response, "read", register)
        return value

    def _write(self, register, value):
        self._check(self._board.write(register, value), "write", register)

    def _check(self, response, what, register):
        if response:
            raise DeviceError(f"the control port {'has not answered' if response < 0 else 'has refused'} a {what} of register {register.name}")


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
