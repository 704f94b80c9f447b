"""Cross-layer equalization: what one layer's channel is scaled by, the next layer's weights undo."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

from .operations import (
    AVERAGE_POOLS,
    CLIPS,
    CONV,
    CONV_TRANSPOSE,
    COPY,
    LEAKY,
    LINEAR,
    MAX_POOL,
    PAD,
    RESHAPES,
    UPSAMPLES,
    argument,
    clip_bounds,
    image_shape,
    set_value,
    tensor_users,
    value_of,
)

__all__ = ["equalize"]

_WEIGHTED = {CONV, CONV_TRANSPOSE, LINEAR}
_HOMOGENEOUS = {MAX_POOL, PAD, COPY} | LEAKY | AVERAGE_POOLS | UPSAMPLES
#: A scale beyond is no help: what it would equalize is next to nothing.
_MOST = 2.0**8
#: Of the pairs; more would change nothing that matters.
_ROUNDS = 30


@dataclass(frozen=True)
class _Pair:
    """A layer and the only one that reads it, with nothing between that would not pass on a positive factor of a channel."""

    first: torch.fx.Node
    second: torch.fx.Node
    channels: int


def equalize(module: torch.fx.GraphModule, inputs: "tuple[torch.Tensor, ...]") -> int:
    """Scale channels between two layers so that a channel of the map there has the range of the weights that read it; the number of such pairs of layers.

    `module` is a graph by :func:`~celosia.host.simplify.simplify`; its batch norms are folded and its weights replaced. It computes what it did, but for
    float rounding. `inputs` is a calibration batch, float32 (N, …) for each argument.

    Channel i of the first layer is divided by s_i, and the second's weights of it are multiplied, with s_i = √(r1_i / r2_i), pair by pair until nothing changes:
    Nagel et al. 2019, arXiv:1906.04721, equations 9–11, but that r1 is the range of the map's channel and not of the weights that make it, whose scales are their
    own for each output channel anyway: 0.1–0.5 dB better on four networks (docs/quantization.md).

    Between the two may stand max, average and zero padding, enlarging and any ReLU without an upper bound; ReLU6's would become another for each channel.
    """
    _fuse_conv_bn_(module)
    _fuse_linear_bn_(module)
    pairs = list(_pairs(module.graph))
    weights = {node: value_of(module, node.args[1]).double().contiguous() for pair in pairs for node in (pair.first, pair.second)}
    biases = {pair.first: value_of(module, bias).double() for pair in pairs if (bias := argument(pair.first, "bias")) is not None}
    recorder = _MapRanges(module, pairs)
    with torch.no_grad():
        recorder.run(*inputs)
    maps = recorder.found
    for _ in range(_ROUNDS):
        largest = 1.0
        for pair in pairs:
            made, read = _made(pair.first, weights[pair.first]), _read(pair, weights[pair.second])
            of_map, of_weights = maps[pair.first], read.abs().flatten(2).amax(2).flatten()
            scale = torch.where((of_map > 0) & (of_weights > 0), (of_map / of_weights).sqrt(), 1.0).clamp(1 / _MOST, _MOST)
            for view, factor in ((made, 1 / scale), (read, scale)):
                view *= factor.reshape(*view.shape[:2], *[1] * (view.dim() - 2))
            maps[pair.first] /= scale
            if pair.first in biases:
                biases[pair.first] /= scale
            largest = max(largest, float(torch.maximum(scale, 1 / scale).max()))
        if largest < 1.001:
            break
    for node, weight in weights.items():
        set_value(module, node.args[1], weight.float())
    for node, bias in biases.items():
        set_value(module, argument(node, "bias"), bias.float())
    return len(pairs)


def _made(node, weight):
    """A view of the weights that make each channel: (1, channels, …)."""
    return (weight.transpose(0, 1) if node.target is CONV_TRANSPOSE else weight)[None]


def _read(pair, weight):
    """A view of the weights that read each channel: (groups, channels / groups, …)."""
    if pair.second.target is CONV_TRANSPOSE:
        return weight[None]
    if pair.second.target is LINEAR:
        return weight.reshape(len(weight), pair.channels, -1).transpose(0, 1)[None]
    groups = argument(pair.second, "groups")
    return weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).transpose(1, 2)


def _pairs(graph) -> Iterator[_Pair]:
    for first in graph.nodes:
        if not _has_own_weights(first) or (first.target is CONV_TRANSPOSE and argument(first, "groups") != 1):
            continue
        channels, node = image_shape(first)[0], first
        while len(users := tensor_users(node)) == 1 and _passes(users[0], channels):
            node = users[0]
        if len(users) == 1 and _has_own_weights(users[0]) and users[0].args[0] is node and image_shape(node)[0] % channels == 0:
            yield _Pair(first, users[0], channels)


def _has_own_weights(node):
    """Whether a node is a layer whose weights and bias are no other's."""
    values = [value for value in node.args[1:3] if isinstance(value, torch.fx.Node)] if node.target in _WEIGHTED else []
    users = [user for value in values for other in node.graph.nodes if other.op == "get_attr" and other.target == value.target for user in other.users]
    return bool(values) and all(value.op == "get_attr" for value in values) and users == [node] * len(values)


def _passes(node, channels):
    """Whether a positive factor of a channel before a node is the same factor of it behind the node."""
    if node.target in RESHAPES:
        shape = image_shape(node)
        return shape[0] == channels or shape == (image_shape(node.args[0])[0] * math.prod(image_shape(node.args[0])[1:]),)
    return node.target in _HOMOGENEOUS or (node.target in CLIPS and clip_bounds(node) == (0.0, math.inf))


class _MapRanges(torch.fx.Interpreter):
    """Notes, for the first layer of each pair, the largest magnitude of each channel of what reaches the second: float64 (channels,)."""

    def __init__(self, module, pairs):
        super().__init__(module)
        self.pairs, self.found = {pair.second.args[0]: pair for pair in pairs}, {}

    def run_node(self, node):
        value = super().run_node(node)
        if pair := self.pairs.get(node):
            self.found[pair.first] = value.abs().reshape(len(value), pair.channels, -1).amax((0, 2)).double()
        return value
