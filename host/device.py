"""Devices as a caller sees them: real numbers in, real numbers out, whatever computes in between."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..hw.config import AcceleratorConfig, get_config
from ..hw.isa import Base
from ..hw.program import Program, place_regions
from ..sim.golden import dequantize, execute, quantize
from .errors import CelosiaError, NoRoomError

__all__ = ["BOARDS", "DEVICES", "Device", "Result", "open_device"]

#: What `open_device` opens.
DEVICES = ("golden", "cycle", "rtl")
#: What names a board begins with.
BOARDS = ("serial:", "tcp:")
_CHOICES = f"{', '.join(DEVICES)}, serial:PORT or tcp:HOST:PORT"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a device computed for N images, and what it cost."""

    #: float32, one array (N, …) per network output, in the shape the module itself returns.
    outputs: "list[np.ndarray]"
    #: int8, the same outputs as codes (N, C, H, W).
    codes: "list[np.ndarray]"
    #: Clock cycles of all runs; None where the device does not know time.
    cycles: "int | None"
    #: Cycles of each layer of the program, over all runs; empty where the device does not know time.
    layers: "list[int]"
    #: The device's own counters, among them stalls by cause, over all runs.
    counters: "dict[str, int]"
    #: How often the program ran.
    runs: int


class Device:
    """A device that runs programs for one configuration; a context manager."""

    def __init__(self, name: str, config: AcceleratorConfig, engine):
        self.name, self.config, self._engine = name, config, engine

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Release what the device holds."""
        if close := getattr(self._engine, "close", None):
            close()

    @property
    def waveform(self) -> "tuple[int, int] | None":
        """After the device is closed: the first cycle its waveform holds and the one after its last, counted from the start of the first run; None without one."""
        return getattr(self._engine, "waveform", None)

    def run(self, program: Program, images: "np.ndarray | Sequence[np.ndarray]") -> Result:
        """Run a program on float images (N, C, H, W), one array per network input. N need not be the program's batch: the program runs
        as often as it takes, the last time with zeros behind.

        Raises :exc:`CelosiaError` for images of another shape or that are not finite, :exc:`ProgramError` for a program made for another config.
        """
        program.check_config(self.config)
        codes = _input_codes(program, images)
        count = len(codes[0])
        results = [self._engine.run_program(program, part) for part in _batches(program, codes)]
        outputs = [np.concatenate(parts)[:count] for parts in zip(*(result.outputs for result in results))]
        network = program.host or program.network
        if program.host:
            outputs = execute(program.host, outputs)
        real = [dequantize(array, network.tensors[name]).reshape(count, *network.output_shapes.get(name, array.shape[1:]))
                for name, array in zip(network.outputs, outputs)]
        timed = results[0].cycles is not None
        return Result(
            outputs=real,
            codes=outputs,
            cycles=sum(result.cycles for result in results) if timed else None,
            layers=[sum(cycles) for cycles in zip(*(result.layers or () for result in results))],
            counters=_total(result.counters or {} for result in results),
            runs=len(results),
        )

    def time(self, program: Program) -> Result:
        """What a run of one batch costs, which does not depend on data; `outputs` may be empty. Raises as :meth:`run`."""
        program.check_config(self.config)
        if timed := getattr(self._engine, "time_program", None):
            result = timed(program)
            return Result(outputs=[], codes=[], cycles=result.cycles, layers=result.layers, counters=result.counters, runs=1)
        return self.run(program, [np.zeros((program.batch, *program.network.tensors[name].shape), np.float32) for name in program.network.inputs])

    def hold(self, programs: "Sequence[Program]") -> None:
        """Give these programs places in the memory beside each other, so that their weights stay there when they run in turn, until another program runs or
        others are held.

        Raises :exc:`NoRoomError`, naming the bytes, if they do not fit together, and :exc:`ProgramError` for one made for another config.
        """
        for program in programs:
            program.check_config(self.config)
        _, needed = place_regions(*(program.sizes for program in programs))
        if needed > self.config.memory_bytes:
            weights = ", ".join(f"{program.network.name} {program.sizes[Base.WEIGHTS]:,}" for program in programs)
            raise NoRoomError(f"the programs need {needed:,} bytes of memory (weights {weights}), config {self.config.name!r} has {self.config.memory_bytes:,}; "
                              "use a config with more memory, or offload less")
        self._engine.hold(programs)

    def stamps(self, program: Program, images: np.ndarray, marks: "Sequence[tuple[int, int]]") -> "list[int]":
        """Run a program on one batch of images; the cycle of each mark, as :meth:`RtlDevice.stamps` describes. Device `rtl`."""
        [codes] = _batches(program, _input_codes(program, images))
        return self._engine.stamps(program, codes, marks)


def open_device(name: str, config: "str | AcceleratorConfig" = "ulx3s-85f", **options) -> Device:
    """Open a device by name, for a configuration. Options go to the device (`vcd`, `progress` for "rtl", `progress` for boards).

    Raises :exc:`CelosiaError` if the name is not known or the device cannot be had.
    """
    config = get_config(config)
    if name in ("golden", "cycle") and options:
        raise CelosiaError(f"device {name!r} has no option {next(iter(options))!r}")
    if name == "golden":
        from ..sim.golden import GoldenDevice

        return Device(name, config, GoldenDevice(config))
    if name == "cycle":
        from ..sim.cycle import CycleDevice

        return Device(name, config, CycleDevice(config))
    if name == "rtl":
        from ..sim.rtl import RtlDevice

        return Device(name, config, RtlDevice(config, **options))
    if name.startswith(BOARDS):
        if unknown := set(options) - {"progress"}:
            raise CelosiaError(f"device {name!r} has no option {min(unknown)!r}")
        from .pipes import open_pipe
        from .remote import BoardDevice

        return Device(name, config, BoardDevice(config, open_pipe(name), **options))
    raise CelosiaError(f"device {name!r} is not known; choose {_CHOICES}")


def _input_codes(program, images):
    network = program.network
    arrays = [images] if hasattr(images, "shape") else list(images)
    if len(arrays) != len(network.inputs):
        raise CelosiaError(f"network {network.name} has {len(network.inputs)} inputs, {len(arrays)} were given")
    codes = []
    for name, array in zip(network.inputs, arrays):
        array, tensor = np.asarray(array), network.tensors[name]
        if not np.issubdtype(array.dtype, np.floating):
            raise CelosiaError(f"input {name}: is {array.dtype}; give float32 images, normalised as in training")
        if array.ndim != 4 or array.shape[1:] != tensor.shape or not len(array):
            shape = "×".join(map(str, array.shape))
            raise CelosiaError(f"input {name}: has shape {shape}, network {network.name} needs N×{'×'.join(map(str, tensor.shape))}")
        if not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise CelosiaError(f"input {name}: contains NaN or infinity; give finite numbers")
        codes.append(quantize(array, tensor))
    if len({len(array) for array in codes}) > 1:
        raise CelosiaError(f"network {network.name}: its inputs must have the same number of images, not {[len(array) for array in codes]}")
    return codes


def _batches(program, codes):
    for first in range(0, len(codes[0]), program.batch):
        parts = [array[first : first + program.batch] for array in codes]
        missing = program.batch - len(parts[0])
        yield [np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0))) for part in parts] if missing else parts


def _total(counters):
    total = {}
    for values in counters:
        for name, value in values.items():
            total[name] = total.get(name, 0) + value
    return total
