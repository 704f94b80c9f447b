"""Compares the integer network with the quantize–dequantize graph it was lowered from, layer by layer on equal inputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..hw.network import Layer, Network
from ..hw.parameters import CODE_UNIT, fill_parameters
from ..sim import golden
from .errors import CelosiaError
from .quantize import QuantizedModel

__all__ = ["LayerRecord", "OutputRecord", "Recorder", "compare", "decibels", "output_sqnr", "reference_codes", "reference_outputs"]


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """How far a layer's integer result is from the reference, given the reference's own input codes."""

    name: str
    op: str
    #: Largest difference of an output code; the contract is at most 1.
    max_lsb_error: int
    #: Share of codes that differ.
    different: float
    #: Signal to difference in dB, infinite if all codes are equal.
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class OutputRecord:
    """Signal to error in dB of an output, against the float network's; infinite if there is no error."""

    name: str
    #: Of the integer network.
    engine_db: float
    #: Of the quantize–dequantize graph; the contract is that both are within 0.5 dB.
    reference_db: float


class Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps the `values` of the nodes of those names; those in `instead` are read by the nodes behind them in place of what was computed."""

    def __init__(self, module: torch.fx.GraphModule, names: "set[str]", instead: "dict[str, torch.Tensor] | None" = None):
        super().__init__(module)
        self.names, self.instead, self.values = names, instead or {}, {}

    def run_node(self, node):
        value = super().run_node(node)
        if node.name in self.names:
            self.values[node.name] = value
        return self.instead.get(node.name, value)


def reference_codes(qmodel: QuantizedModel, *inputs: torch.Tensor) -> "dict[str, np.ndarray]":
    """Codes (N, C, H, W) int8 of every tensor, by name, as the quantize–dequantize graph computes them from float32 `inputs`.

    Raises :exc:`CelosiaError` if the model was loaded from a file, which holds no reference.
    """
    if qmodel.reference is None:
        raise CelosiaError(f"{qmodel.name}: a loaded network has no reference graph; compare the result of quantize() itself")
    recorder = Recorder(qmodel.reference, set(qmodel.nodes.values()))
    with torch.no_grad():
        recorder.run(*inputs)
    codes, tensors = {}, qmodel.tensors | {item.lookup.before.name: item.lookup.before for item in qmodel.layers if item.lookup}
    for name, node in qmodel.nodes.items():
        value, tensor = recorder.values[node], tensors[name]
        if value.is_floating_point():
            value = torch.round(value / tensor.scale) + tensor.zero_point
        codes[name] = value.numpy().astype(np.int8).reshape(-1, *tensor.shape)
    for item in qmodel.layers:
        if item.parameters:
            codes[item.parameters] = _words(item, codes[qmodel.maker(item.parameters).input])
    for name in qmodel.tensors:
        if name not in codes:  # rows and columns of a map, which the graph has as a whole only
            part = qmodel.part(name)
            codes[name] = codes[part.tensor][:, *qmodel.region(name)]
    return codes


def reference_outputs(qmodel: QuantizedModel, *inputs: torch.Tensor) -> "list[torch.Tensor]":
    """The float32 outputs of the quantize–dequantize graph. Raises :exc:`CelosiaError` as :func:`reference_codes` does."""
    if qmodel.reference is None:
        raise CelosiaError(f"{qmodel.name}: a loaded network has no reference graph; compare the result of quantize() itself")
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(qmodel.reference(*inputs))


def compare(qmodel: QuantizedModel, *inputs: torch.Tensor,
            layer: "Callable[[Layer, Network, np.ndarray, np.ndarray | None, np.ndarray | None], np.ndarray]" = golden.layer) -> "list[LayerRecord]":
    """One record per layer: each is given the reference's codes, so that errors do not add up.

    `inputs` are float32 (N, C, H, W); `layer` computes a layer's output codes from its input's, residual's and parameters'.
    Raises :exc:`CelosiaError` as :func:`reference_codes` does.
    """
    codes = reference_codes(qmodel, *inputs)
    records = []
    for item in qmodel.layers:
        pairs = list(_pairs(item, qmodel, codes, layer))
        difference = np.concatenate([(got.astype(np.int64) - want).reshape(-1) for got, want, _ in pairs])
        signal = np.concatenate([(want.astype(np.int64) - tensor.zero_point).reshape(-1) for _, want, tensor in pairs])
        records.append(LayerRecord(name=item.name, op=item.op, max_lsb_error=int(np.abs(difference).max()), different=float((difference != 0).mean()),
                                   sqnr_db=_sqnr(signal, difference)))
    return records


def output_sqnr(qmodel: QuantizedModel, *inputs: torch.Tensor) -> "list[OutputRecord]":
    """One record per output: how far the integer network and the quantize–dequantize graph are from the float network, on float32 `inputs` (N, C, H, W).

    Raises :exc:`CelosiaError` as :func:`reference_codes` does.
    """
    wanted = reference_outputs(qmodel, *inputs)
    with torch.no_grad():
        real = torch.utils._pytree.tree_leaves(qmodel.original(*inputs))
    codes = [golden.quantize(x.numpy(), qmodel.tensors[name]).reshape(-1, *qmodel.tensors[name].shape) for x, name in zip(inputs, qmodel.inputs)]
    engine = golden.execute(qmodel, codes)
    records = []
    for name, got, want, exact in zip(qmodel.outputs, engine, wanted, real, strict=True):
        exact, got = exact.numpy().reshape(-1), golden.dequantize(got, qmodel.tensors[name]).reshape(-1)
        records.append(OutputRecord(name=name, engine_db=_sqnr(exact, got - exact), reference_db=_sqnr(exact, want.numpy().reshape(-1) - exact)))
    return records


def decibels(signal: float, noise: float) -> float:
    """Signal to noise in dB of two sums of squares: infinite without noise, minus infinity without a signal."""
    return (10 * math.log10(signal / noise) if signal else -math.inf) if noise else math.inf


def _sqnr(signal, noise):
    return decibels(*(float(np.square(x, dtype=np.float64).sum()) for x in (signal, noise)))


def _words(item, codes):
    """Codes of the parameter words of a layer, which the graph does not have, for the codes that scale it."""
    multipliers = CODE_UNIT * (codes.reshape(len(codes), -1).astype(np.int64) + 128)
    return np.stack([fill_parameters(item.bias, each, item.shift) for each in multipliers]).view(np.int8)[:, :, None, None]


def _pairs(item, qmodel, codes, layer):
    """(codes got, codes wanted, tensor) of a layer's output; of a layer that ends with a function, of the map before it and of the function alone,
    which are two operations of the reference: what the function makes of a difference of one LSB is not its error."""
    others, want = (item.residual and codes[item.residual.tensor], item.parameters and codes[item.parameters]), codes[item.output]
    before = item.lookup and item.lookup.before
    if before and before.name in codes and before.name != item.input:
        network = replace(qmodel, tensors=qmodel.tensors | {before.name: before})
        yield layer(replace(item, lookup=None, pool=None, output=before.name), network, codes[item.input], *others), codes[before.name], before
        result = golden.look_up(codes[before.name], item.lookup.table)
        yield golden.max_pool(result, item.pool) if item.pool else result, want, qmodel.tensors[item.output]
    else:
        yield layer(item, qmodel, codes[item.input], *others), want, qmodel.tensors[item.output]
