"""Runs chosen submodules of a model on a device, wherever the model calls them; the rest of it stays as it is.

A submodule is exported with the inputs it is called with, split into what the engine has operations for and what stays on the host (`partition`), and calibrated by
running the whole model, as its submodules see there what they will see later.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from ..hw.program import Program
from .compile import compile
from .device import Device, Result
from .errors import CelosiaError, NoRoomError
from .partition import Stage, partition
from .qat import FineTuning
from .quantize import Calibration
from .simplify import check_finite, simplify
from .trace import trace

__all__ = ["Offloaded", "offload", "offload_report", "recorded"]

#: Regions and the like that go through a program at a time, at most.
_MOST_BATCH = 64


def offload(module: torch.nn.Module, names: "Sequence[str]", *, calibrate: Iterable, device: Device, batch: "int | None" = None,
            progress: "Callable[[str, int], None] | None" = None, method: str = "minmax", equalize: bool = False, correct_bias: bool = False,
            fine_tune: "FineTuning | bool" = False) -> torch.nn.Module:
    """A copy of `module`, in evaluation mode, whose submodules of these `names` ("" is the module itself) compute on an open `device`.

    `calibrate` yields what the module is called with: a tuple of arguments, or a single one; a tensor (C, H, W) is an image for torchvision's detectors, which take
    a list of them. The submodules may take and return tensors (N, …) in any nesting of lists, tuples and dictionaries, and need not be called with other than the
    tensors' shapes and the constants seen here, but for N. Programs are compiled for `batch` maps at a time, by default for as many as were seen here at once
    (at most 64, and fewer where the memory has no room); N is padded or cut to that. `progress` is called with ("calibrate", batches) and ("compile", programs).
    `method`, `equalize`, `correct_bias` and `fine_tune` are those of :func:`~celosia.host.quantize.quantize`, for each program by itself, on the
    maps it sees in calibration.

    Raises :exc:`CelosiaError` if there is no such submodule, it cannot be exported, or it was never called; :exc:`NoRoomError`, naming the bytes, if the programs
    do not fit the device's memory together.
    """
    progress = progress or (lambda *_: None)
    if isinstance(fine_tune, FineTuning) and fine_tune.batches is not None:
        raise CelosiaError("offload: FineTuning has batches of images, but submodules are fine-tuned on the maps they see in calibration; leave batches out")
    check_finite(module)
    result = copy.deepcopy(module).eval()
    replaced = []
    for name in names:
        try:
            submodule = result.get_submodule(name)
        except AttributeError:
            raise CelosiaError(f"offload: {type(module).__name__} has no submodule {name!r}; name one of its named_modules()") from None
        replaced.append(Offloaded(name, submodule, device, method=method, equalize=equalize, correct_bias=correct_bias, fine_tune=fine_tune))
        if not name:
            result = replaced[-1]
            continue
        parent, _, last = name.rpartition(".")
        setattr(result.get_submodule(parent), last, replaced[-1])
    macs = None
    with torch.no_grad():
        for index, arguments in enumerate(map(_arguments, calibrate)):
            result(*arguments)
            if macs is None:
                macs = _macs(module, arguments)
                for item in replaced:
                    item.note_first()
            progress("calibrate", index + 1)
    for item in replaced:
        item.end_calibration(batch, progress)
    device.hold([program for item in replaced for program in item.programs])
    result.celosia_share = sum(item.macs for item in replaced) / macs if macs else 0.0
    return result


def offload_report(module: torch.nn.Module) -> dict:
    """What of a module by :func:`offload` computes where: `share` of the MACs of the first calibration batch that is on the device, and `parts`.

    There is one for each program and each piece of the host between, with `submodule`, `where`, `layers`, `macs` (per map or region), `batch`, `bytes` of memory,
    and the `reasons` why something of it is on the host.
    """
    parts = [row for item in module.modules() if isinstance(item, Offloaded) for row in item.report()]
    return {"share": module.celosia_share, "parts": parts}


@contextmanager
def recorded(module: torch.nn.Module) -> "Iterator[list[tuple[Program, Result]]]":
    """Within it, what of a module by :func:`offload` runs on the device, and its results, in order."""
    runs, parts = [], [item for item in module.modules() if isinstance(item, Offloaded)]
    for item in parts:
        item.note = runs.append
    try:
        yield runs
    finally:
        for item in parts:
            item.note = None


class Offloaded(torch.nn.Module):
    """A submodule on a device."""

    def __init__(self, name: str, original: torch.nn.Module, device: Device, **quantization):
        super().__init__()
        self.name, self.original, self.device, self.quantization = name, original, device, quantization
        self._plans, self._compiled = {}, False
        self.note = None  # called with each program and its result, for :func:`recorded`

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:  # what the model around it asks a backbone for
            return getattr(super().__getattr__("original"), name)

    def note_first(self) -> None:
        """What follows is not the first calibration batch."""
        for plan in self._plans.values():
            for part in plan.parts:
                part.first = part.count

    @property
    def macs(self) -> int:
        """MACs on the device of the first calibration batch."""
        return sum(part.program.network.macs * part.first for plan in self._plans.values() for part in plan.parts if part.program)

    @property
    def programs(self) -> "list[Program]":
        """In order of execution, for every shape of inputs."""
        return [part.program for plan in self._plans.values() for part in plan.parts if part.program]

    def forward(self, *args, **kwargs):
        """As the submodule itself, in int8. Raises :exc:`CelosiaError` for inputs of another shape than those it was calibrated with."""
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        key = repr(spec), tuple(tuple(leaf.shape[1:]) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        plan = self._plans.get(key)
        if plan is None:
            if self._compiled:
                shapes = " and ".join("N×" + "×".join(map(str, x.shape[1:])) for x in tensors)
                raise CelosiaError(f"submodule {self.name or 'itself'}: is called with {shapes} or other constants than in calibration; bring images to one size, "
                                   "or calibrate with images of all sizes")
            plan = self._plans[key] = _Plan(self, leaves, tensors, spec)
        return plan.run(tensors)

    def end_calibration(self, batch, progress):
        """Quantize and compile by what has been seen. Raises :exc:`CelosiaError` if there was none."""
        if not self._plans:
            raise CelosiaError(f"submodule {self.name}: is never called; offload one that the model's forward uses, and calibrate with at least one image")
        for plan in self._plans.values():
            plan.compile(batch, progress)
        self._compiled = True

    def report(self) -> "list[dict]":
        """One row for each stage."""
        return [{"submodule": self.name} | row for plan in self._plans.values() for row in plan.report()]


class _Plan:
    """The stages of a submodule for one structure and shape of its inputs."""

    def __init__(self, owner, leaves, tensors, spec):
        self.owner, self.most = owner, 1
        flat = _Flat(owner.name, owner.original, leaves, spec)
        graph = trace(flat, tuple(tensors))
        _rename(graph, owner.name)
        stages, self.inputs, self.returned = partition(graph)
        self.parts = [_Part(stage) for stage in stages]
        self.structure = flat.structure

    def run(self, tensors):
        values, count = dict(zip(self.inputs, tensors)), len(tensors[0])
        self.most = max(self.most, count)
        for part in self.parts:
            inputs = [values[name] for name in part.stage.inputs]
            if part.program:
                outputs = part.on_device(self.owner, inputs)
            else:
                outputs = part.calibrate(inputs, self.owner.quantization) if part.stage.device else part.stage.module(*inputs)
            values.update(zip(part.stage.outputs, outputs))
        constants, spec = self.structure
        returned = iter([values[name] for name in self.returned if name])
        return tree_unflatten([next(returned) if constant is _TENSOR else constant for constant in constants], spec)

    def compile(self, batch, progress):
        for index, part in enumerate(self.parts):
            if part.stage.device:
                part.compile(f"{self.owner.name or 'model'}.{index}", self.owner.device.config, batch, min(self.most, _MOST_BATCH))
                progress("compile", index + 1)

    def report(self):
        return [part.report() for part in self.parts if part.program or part.stage.reasons]  # not what is only seen in another shape


class _Part:
    """A stage, and what became of it."""

    def __init__(self, stage: Stage):
        self.stage, self.calibration, self.program = stage, None, None
        self.count = self.first = 0  # maps seen in calibration, and in its first batch

    def calibrate(self, inputs, quantization):
        if self.calibration is None:
            self.calibration = Calibration(simplify(self.stage.module), tuple(inputs), **quantization)
        self.count += len(inputs[0])
        return self.calibration(*inputs)

    def compile(self, name, config, batch, most):
        network = self.calibration.convert(name)
        self.calibration = None
        while True:
            try:
                self.program = compile(network, config, batch or most)
                return
            except NoRoomError:
                if batch or most == 1:
                    raise
                most //= 2

    def on_device(self, owner, inputs):
        network = self.program.network
        arrays = [x.numpy().reshape(len(x), *network.tensors[name].shape) for x, name in zip(inputs, network.inputs)]
        if not len(arrays[0]):  # no region was found
            return [torch.zeros(0, *self._shape(name)) for name in (self.program.host or network).outputs]
        result = owner.device.run(self.program, arrays)
        if owner.note:
            owner.note((self.program, result))
        return [torch.from_numpy(output) for output in result.outputs]

    def _shape(self, name):
        network = self.program.host or self.program.network
        return network.output_shapes.get(name, network.tensors[name].shape)

    def report(self):
        program = self.program
        if not program:
            return {"where": "host", "layers": 0, "macs": 0, "batch": None, "bytes": 0, "reasons": [reason.rpartition("; ")[0] for reason in self.stage.reasons]}
        on_host = [layer.name for layer in program.host.layers] if program.host else []
        return {"where": "device", "layers": len(program.network.layers), "macs": program.network.macs, "batch": program.batch, "bytes": program.memory_bytes,
                "reasons": [f"{name} stays on the host: the memory has no room for its weights" for name in on_host]}


class _TENSOR:
    """Stands for a tensor among constants."""


class _Flat(torch.nn.Module):
    """A submodule as a function of tensors alone."""

    def __init__(self, name, module, leaves, spec):
        super().__init__()
        self.module, self.leaves, self.spec = module, [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
        self.title = f"{name} ({type(module).__name__})" if name else type(module).__name__
        #: Of what it returned last: its leaves that are no tensors, and how they are nested.
        self.structure = None
        self.eval()

    def forward(self, *tensors):
        given = iter(tensors)
        args, kwargs = tree_unflatten([next(given) if leaf is _TENSOR else leaf for leaf in self.leaves], self.spec)
        leaves, spec = tree_flatten(self.module(*args, **kwargs))
        self.structure = [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _rename(module, name):
    """Modules' paths in the model, for those in :class:`_Flat`."""
    for node in module.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = {key: (".".join(filter(None, (name, *path.split(".")[1:]))), kind) for key, (path, kind) in stack.items() if path}


def _macs(module, arguments):
    """Multiplications of a call, float."""
    training = {part: part.training for part in module.modules()}
    try:
        with FlopCounterMode(display=False) as flops:
            module.eval()(*arguments)
    finally:
        for part, mode in training.items():
            part.training = mode
    return flops.get_total_flops() // 2


def _arguments(item):
    if isinstance(item, tuple):
        return item
    return ([item],) if isinstance(item, torch.Tensor) and item.dim() == 3 else (item,)
