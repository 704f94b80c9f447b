"""Quantizes a model after training: exports it, calibrates it and lowers it to integers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torchao.quantization.pt2e.observer import ObserverBase, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec

from ..hw.network import Network
from .concatenate import place
from .errors import CelosiaError
from .fuse import Groups, fuse
from .graph import lower
from .operations import FUNCTIONS
from .simplify import check_finite, simplify
from .trace import fixed_batch, input_count, trace

__all__ = ["Calibration", "EngineQuantizer", "QuantizedModel", "quantize"]


class RangeObserver(ObserverBase):
    """The scale of a map from the range of values seen: int8 affine per tensor, with zero exactly representable.

    Clipping the range to the least squared, cubed or fourth-power error cost 3–5 dB at fashion-resnet's output and left
    EfficientNet-Lite0's as it was, within 0.1 dB.
    """

    def __init__(self, dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine, is_dynamic=False, bounds=None, **_):
        super().__init__(dtype, is_dynamic)
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        #: As in `operations.FUNCTIONS`.
        self.bounds = bounds
        self.low, self.high = 0.0, 0.0
        self.least, self.most = math.inf, -math.inf  # of the values alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Note the range of `x`; returns `x`."""
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        self.least, self.most = min(self.least, low), max(self.most, high)
        # Python's min and max drop a NaN, so it is kept by hand.
        self.low, self.high = (min(self.low, low), max(self.high, high)) if math.isfinite(low + high + self.low) else (math.nan, math.nan)
        return x

    def calculate_qparams(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Scale, float32, and zero point, int64."""
        low, high = self.low, self.high
        if self.bounds and self.least <= self.most:
            # Not more than 64 times, or a pooling's ratio could not be expressed.
            bounds = self.bounds(self.least, self.most)
            low, high = max(low, min(bounds[0], low / 64)), min(high, max(bounds[1], high / 64))
        # A map that was always zero gets the range 1.
        scale = torch.tensor(((high - low) or 1.0) / (self.quant_max - self.quant_min), dtype=torch.float32)
        zero_point = torch.clamp(self.quant_min - torch.round(low / scale), self.quant_min, self.quant_max)
        return scale, zero_point.to(torch.int64)


class EngineQuantizer(Quantizer):
    """Places observers where the engine rounds: after each group of operations that becomes one layer, and on weights.

    After preparation, :attr:`groups` holds the groups.
    """

    groups: Groups

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Group the operations and annotate them; called after batch norms are folded. Raises :exc:`UnsupportedError`."""
        self.groups = fuse(model.graph)
        nodes = {node.name: node for node in model.graph.nodes}
        for name in self.groups.inputs:
            _annotation(nodes[name]).output_qspec = _ACTIVATIONS
        shared = {}
        for group in self.groups.groups:
            # Parts of one map have its scale: the first one's, which observes them all.
            whole, _ = self.groups.parts.get(group.output, (group.output, 0))
            first = shared.setdefault(whole, nodes[group.last])
            _annotation(nodes[group.last]).output_qspec = _ACTIVATIONS if first.name == group.last else SharedQuantizationSpec(first)
            if group.function and group.before != group.input:
                _annotation(nodes[group.before]).output_qspec = _activations(FUNCTIONS[nodes[group.function].target])
            if group.op in _WEIGHTS:
                node = nodes[group.node]
                _annotation(node).input_qspec_map[node.args[1]] = _WEIGHTS[group.op]
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing is left to check: :meth:`annotate` refuses what is not supported."""


def _activations(bounds=None):
    return QuantizationSpec(torch.int8, RangeObserver.with_args(bounds=bounds), quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine)


_ACTIVATIONS = _activations()
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
    #: Tensor name, of a `Lookup.before` as well → node of `reference` whose value is that map (int8 codes, or float on the same grid).
    nodes: dict[str, str] = field(default_factory=dict)


def quantize(model: "torch.nn.Module | torch.export.ExportedProgram", calibration_batches: Iterable, *, name: "str | None" = None,
             progress: "Callable[[str, int], None] | None" = None, classes: Iterable[str] = (), preprocess: "dict | None" = None) -> QuantizedModel:
    """Quantize a trained model to int8.

    `calibration_batches` yields float32 batches (N, C, H, W), or tuples that begin with them; a hundred images of the kind the
    model will see are enough. `progress` is called with a stage ("export", "calibrate", "convert") and the batches seen so far.
    `classes` and `preprocess` go into the network. The model stays as it is; a model in training mode is copied and evaluated.

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
    calibration = Calibration(graph, next(_parts(first, batch)))
    for index, inputs in enumerate(_chain(first, batches)):
        if [x.shape[1:] for x in inputs] != [x.shape[1:] for x in first]:
            raise CelosiaError(f"calibration batch {index} has images of shape {tuple(inputs[0].shape[1:])}, "
                               f"the first had {tuple(first[0].shape[1:])}; resize them alike")
        for part in _parts(inputs, batch):
            calibration(*part)
        progress("calibrate", index + 1)
    progress("convert", 0)
    return calibration.convert(name or _name(model), classes=list(classes), preprocess=dict(preprocess or {}), batch=batch)


class Calibration:
    """A simplified graph that notes the ranges of its maps; `example` is one batch of each input, float32.

    Raises :exc:`CelosiaError` for a NaN or an infinity among the parameters, :exc:`UnsupportedError` for what the engine cannot run.
    """

    def __init__(self, graph: torch.fx.GraphModule, example: "tuple[torch.Tensor, ...]"):
        check_finite(graph)
        place(graph, example)
        self._quantizer = EngineQuantizer()
        self._prepared = prepare_pt2e(graph, self._quantizer)

    def __call__(self, *inputs: torch.Tensor):
        """What the graph computes of float32 inputs, in float32; the ranges are noted."""
        with torch.no_grad():
            return self._prepared(*inputs)

    def convert(self, name: str, **fields) -> QuantizedModel:
        """The network of that name, with other `fields` of it, by the ranges seen. Raises :exc:`CelosiaError` naming the layer if they are none. Called once."""
        _check_ranges(self._prepared, self._quantizer.groups)
        converted = convert_pt2e(self._prepared)
        network, nodes = lower(converted, self._quantizer.groups, name=name)
        return QuantizedModel(**network.__dict__ | fields, reference=converted, nodes=nodes).verify()


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
