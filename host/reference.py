"""Compares the integer network with the quantize–dequantize graph it was lowered from, layer by layer on equal inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..hw.network import Layer, Network
from ..sim import golden
from .errors import CelosiaError
from .quantize import QuantizedModel

__all__ = ["LayerRecord", "compare", "reference_codes", "reference_outputs"]


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


class _Recorder(torch.fx.Interpreter):
    def __init__(self, module, names):
        super().__init__(module)
        self.names, self.values = names, {}

    def run_node(self, node):
        value = super().run_node(node)
        if node.name in self.names:
            self.values[node.name] = value
        return value


def reference_codes(qmodel: QuantizedModel, *inputs: torch.Tensor) -> "dict[str, np.ndarray]":
    """Codes (N, C, H, W) int8 of every tensor, by name, as the quantize–dequantize graph computes them from float32 `inputs`.

    Raises :exc:`CelosiaError` if the model was loaded from a file, which holds no reference.
    """
    if qmodel.reference is None:
        raise CelosiaError(f"{qmodel.name}: a loaded network has no reference graph; compare the result of quantize() itself")
    recorder = _Recorder(qmodel.reference, set(qmodel.nodes.values()))
    with torch.no_grad():
        recorder.run(*inputs)
    codes = {}
    for name, node in qmodel.nodes.items():
        value, tensor = recorder.values[node], qmodel.tensors[name]
        if value.is_floating_point():
            value = torch.round(value / tensor.scale) + tensor.zero_point
        codes[name] = value.numpy().astype(np.int8).reshape(-1, *tensor.shape)
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
            layer: "Callable[[Layer, Network, np.ndarray, np.ndarray | None], np.ndarray]" = golden.layer) -> "list[LayerRecord]":
    """One record per layer: each is given the reference's codes, so that errors do not add up.

    `inputs` are float32 (N, C, H, W); `layer` computes a layer's output codes from its input's and residual's.
    Raises :exc:`CelosiaError` as :func:`reference_codes` does.
    """
    codes = reference_codes(qmodel, *inputs)
    records = []
    for item in qmodel.layers:
        got = layer(item, qmodel, codes[item.input], codes[item.residual.tensor] if item.residual else None)
        want = codes[item.output]
        difference = got.astype(np.int64) - want
        noise = float((difference**2).sum())
        signal = float(((want.astype(np.int64) - qmodel.tensors[item.output].zero_point) ** 2).sum())
        with np.errstate(divide="ignore"):
            sqnr = float(10 * np.log10(signal / noise)) if noise else float("inf")
        records.append(LayerRecord(name=item.name, op=item.op, max_lsb_error=int(np.abs(difference).max()), different=float((difference != 0).mean()), sqnr_db=sqnr))
    return records
