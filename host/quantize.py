"""Quantizes a model after training: exports it, calibrates it and lowers it to integers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec

from ..hw.network import Network
from . import equalize as equalization
from .concatenate import place
from .correct import correct_biases
from .errors import CelosiaError
from .fake_quantize import without_observers
from .fuse import Groups, fuse
from .graph import lower
from .observers import METHODS, RangeObserver
from .operations import FUNCTIONS
from .qat import FineTuning, fine_tune_graph
from .simplify import check_finite, simplify
from .trace import fixed_batch, input_count, trace

__all__ = ["Calibration", "EngineQuantizer", "QuantizedModel", "quantize"]


class EngineQuantizer(Quantizer):
    """Places observers where the engine rounds: after each group of operations that becomes one layer, and on weights.

    `method` is that of :func:`quantize`. After preparation, :attr:`groups` holds the groups.
    """

    groups: Groups

    def __init__(self, method: str = "minmax"):
        super().__init__()
        if method not in METHODS:
            raise CelosiaError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        self._observer = METHODS[method]

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Group the operations and annotate them; called after batch norms are folded. Raises :exc:`UnsupportedError`."""
        self.groups = fuse(model.graph)
        nodes = {node.name: node for node in model.graph.nodes}
        for name in self.groups.inputs:
            _annotation(nodes[name]).output_qspec = self._activations()
        shared = {}
        for group in self.groups.groups:
            # Parts of one map have its scale: the first one's, which observes them all.
            whole, _ = self.groups.parts.get(group.output, (group.output, 0))
            first = shared.setdefault(whole, nodes[group.last])
            _annotation(nodes[group.last]).output_qspec = self._activations() if first.name == group.last else SharedQuantizationSpec(first)
            if group.function and group.before != group.input:
                _annotation(nodes[group.before]).output_qspec = self._activations(FUNCTIONS[nodes[group.function].target])
            if group.op in _WEIGHTS:
                node = nodes[group.node]
                _annotation(node).input_qspec_map[node.args[1]] = _WEIGHTS[group.op]
        return model

    def _activations(self, bounds=None):
        return QuantizationSpec(torch.int8, self._observer.with_args(bounds=bounds), quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine)

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing is left to check: :meth:`annotate` refuses what is not supported."""


#: By operation; the axis is that of the output channels.
_WEIGHTS = {
    op: QuantizationSpec(torch.int8, PerChannelMinMaxObserver, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric, ch_axis=axis)
    for op, axis in (("conv", 0), ("linear", 0), ("conv_transpose", 1))
}


def _annotation(node):
    return node.meta.setdefault("quantization_annotation", QuantizationAnnotation(_annotated=True))


@dataclass(kw_only=True)
class QuantizedModel(Network):
    """The integer network and, if it was just made, the quantize–dequantize graph it was lowered from."""

    #: Float32 in and out, like the model, but with every rounding to int8; None after loading.
    reference: "torch.fx.GraphModule | None" = None
    #: The float network, after equalization, its batch norms folded; its nodes are named like those of `reference`. None after loading.
    original: "torch.fx.GraphModule | None" = None
    #: Tensor name, of a `Lookup.before` as well → node of `reference` whose value is that map (int8 codes, or float on the same grid).
    nodes: dict[str, str] = field(default_factory=dict)


def quantize(model: "torch.nn.Module | torch.export.ExportedProgram", calibration_batches: Iterable, *, name: "str | None" = None,
             progress: "Callable[[str, int], None] | None" = None, classes: Iterable[str] = (), preprocess: "dict | None" = None, method: str = "minmax",
             equalize: bool = False, correct_bias: bool = False, fine_tune: "FineTuning | bool" = False) -> QuantizedModel:
    """Quantize a trained model to int8.

    `calibration_batches` yields float32 batches (N, C, H, W), or tuples that begin with them; a hundred images of the kind the
    model will see are enough. `progress` is called with a stage ("export", "calibrate", "convert") and the batches seen so far.
    `classes` and `preprocess` go into the network. The model stays as it is; a model in training mode is copied and evaluated.

    `method` is how ranges of maps are found, one of :data:`~celosia.host.observers.METHODS`. `equalize` scales channels across layers
    (:func:`~celosia.host.equalize.equalize`), `correct_bias` puts layers' mean errors into their biases (:func:`~celosia.host.correct.correct_biases`),
    `fine_tune` trains the weights through the rounding (:class:`~celosia.host.qat.FineTuning`, or True for its defaults); the latter two keep the batches in
    memory. docs/quantization.md has what each brings, and why none is the default.

    Raises :exc:`CelosiaError` for NaN or infinite weights or images, images of a wrong shape or type, and
    :exc:`UnsupportedError` naming the first operation that the engine cannot run.
    """
    progress = progress or (lambda *_: None)
    count = input_count(model)
    if isinstance(model, torch.nn.Module):
        check_finite(model)
    batches = (_check_batch(batch, count, index) for index, batch in enumerate(calibration_batches))
    first = next(batches, None)
    if first is None:
        raise CelosiaError("calibration: there is no batch; give at least one batch of images")
    progress("export", 0)
    graph = simplify(trace(model, first))
    batch = fixed_batch(graph)
    calibration = Calibration(graph, next(_parts(first, batch)), batch=batch, method=method, equalize=equalize, correct_bias=correct_bias, fine_tune=fine_tune)
    for index, inputs in enumerate(_chain(first, batches)):
        if [x.shape[1:] for x in inputs] != [x.shape[1:] for x in first]:
            raise CelosiaError(f"calibration batch {index} has images of shape {tuple(inputs[0].shape[1:])}, "
                               f"the first had {tuple(first[0].shape[1:])}; resize them alike")
        calibration(*inputs)
        progress("calibrate", index + 1)
    return calibration.convert(name or _name(model), progress, classes=list(classes), preprocess=dict(preprocess or {}))


class Calibration:
    """A simplified graph that notes the ranges of its maps; `example` is one batch of each input, float32, `batch` the size that the graph insists on, if it does,
    and `method`, `equalize`, `correct_bias` and `fine_tune` are those of :func:`quantize`.

    Raises :exc:`CelosiaError` for a NaN or an infinity among the parameters, :exc:`UnsupportedError` for what the engine cannot run.
    """

    def __init__(self, graph: torch.fx.GraphModule, example: "tuple[torch.Tensor, ...]", *, batch: "int | None" = None, method: str = "minmax",
                 equalize: bool = False, correct_bias: bool = False, fine_tune: "FineTuning | bool" = False):
        check_finite(graph)
        if equalize:
            equalization.equalize(graph, example)
        place(graph, example)
        self._quantizer = EngineQuantizer(method)
        self._prepared = prepare_pt2e(graph, self._quantizer)
        self._original = without_observers(self._prepared)
        self._batch, self._correct_bias, self._fine_tune = batch, correct_bias, FineTuning() if fine_tune is True else fine_tune
        self._seen = []  # what fine-tuning and correction see again

    def __call__(self, *inputs: torch.Tensor):
        """What the graph computes of float32 inputs, in float32; the ranges are noted. If it insists on a batch size, of the last so many."""
        if (self._correct_bias or self._fine_tune) and len(inputs[0]):
            self._seen.append(tuple(x.clone() for x in inputs))  # the caller may go on with theirs
        with torch.no_grad():
            for part in _parts(inputs, self._batch):
                output = self._prepared(*part)
        return output

    def convert(self, name: str, progress: "Callable[[str, int], None] | None" = None, **fields) -> QuantizedModel:
        """The network of that name, with other `fields` of it, by the ranges seen. Raises :exc:`CelosiaError` naming the layer if they are none. Called once."""
        _check_ranges(self._prepared, self._quantizer.groups)
        graphs = self._prepared, self._original, self._quantizer.groups
        if settings := self._fine_tune:
            inputs, labels = _training_data(settings, self._seen)
            fine_tune_graph(*graphs, inputs, settings, labels=labels, batch=self._batch, progress=progress)
        if self._correct_bias:
            correct_biases(*graphs, [part for inputs in self._seen for part in _parts(inputs, self._batch)])
        if progress:
            progress("convert", 0)
        converted = convert_pt2e(self._prepared)
        network, nodes = lower(converted, self._quantizer.groups, name=name)
        return QuantizedModel(**network.__dict__ | fields | {"batch": self._batch}, reference=converted, nodes=nodes, original=self._original).verify()


def _training_data(settings, seen):
    """All images, a tensor for each input, and their labels or None: of the batches that `settings` name, or those `seen` while calibrating."""
    if settings.batches is None:
        return tuple(map(torch.cat, zip(*seen))), None
    batches = list(settings.batches)
    if not batches:
        raise CelosiaError("fine-tuning: there is no batch; give at least one batch of images, or none to use those of the calibration")
    labels, shapes = settings.labels_of(batches, len(seen[0])), [x.shape[1:] for x in seen[0]]
    inputs = [_check_batch(item, len(shapes), index) for index, item in enumerate(batches)]
    if any([x.shape[1:] for x in item] != shapes for item in inputs):
        raise CelosiaError(f"fine-tuning: there are images of another shape than calibration's {tuple(shapes[0])}; resize them alike")
    return tuple(map(torch.cat, zip(*inputs))), labels


def _name(model):
    return type(model).__name__.lower() if isinstance(model, torch.nn.Module) else "exported"


def _chain(first, rest):
    yield first
    yield from rest


def _check_batch(batch, count, index):
    """The batch as a tuple of `count` float32 tensors. Raises :exc:`CelosiaError`."""
    inputs = tuple(batch)[:count] if isinstance(batch, (tuple, list)) else (batch,)
    if len(inputs) != count:
        raise CelosiaError(f"calibration batch {index} holds {len(inputs)} tensors, the model takes {count}; yield a tuple of them")
    for x in inputs:
        if not isinstance(x, torch.Tensor):
            x = x if hasattr(x, "__array__") else None
        if x is None:
            raise CelosiaError(f"calibration batch {index} is no tensor but {type(batch).__name__}; yield float32 tensors (N, C, H, W)")
    inputs = tuple(torch.as_tensor(x) for x in inputs)
    for x in inputs:
        if x.dtype != torch.float32:
            raise CelosiaError(f"calibration batch {index} is {str(x.dtype).removeprefix('torch.')}; yield float32 images, normalised as in training")
        if x.dim() not in (2, 4) or not x.numel():
            raise CelosiaError(f"calibration batch {index} has shape {tuple(x.shape)}; yield (N, C, H, W), one image as (1, C, H, W)")
        if not bool(torch.isfinite(x).all()):
            raise CelosiaError(f"calibration batch {index} holds a NaN or an infinity; leave out the images that cause it")
    return inputs


def _parts(inputs, batch):
    """The inputs as they are, or cut to a fixed batch size with the last image repeated."""
    if batch is None:
        yield inputs
        return
    for start in range(0, len(inputs[0]), batch):
        parts = tuple(x[start : start + batch] for x in inputs)
        yield tuple(torch.cat([x, *[x[-1:]] * (batch - len(x))]) for x in parts)


def _check_ranges(prepared, groups):
    """Raises :exc:`CelosiaError` naming the first layer that computed a NaN or an infinity."""
    layers = {group.before: group.name for group in groups.groups} | {group.last: group.name for group in groups.groups}
    for node in prepared.graph.nodes:
        observer = getattr(prepared, node.target, None) if node.op == "call_module" else None
        if isinstance(observer, RangeObserver) and not math.isfinite(observer.low + observer.high):
            raise CelosiaError(f"layer {layers.get(node.args[0].name, node.args[0].name)} computes a NaN or an infinity from the calibration images; "
                               "check weights and images")
