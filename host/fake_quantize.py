"""A prepared graph as the float network it was, and with every rounding to int8 in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

from .fuse import Group, Groups
from .observers import RangeObserver
from .operations import ADD, add_parameter, argument, tensor_users, value_of

__all__ = ["own_bias", "rounded", "sums", "weighted", "weights_of", "without_observers"]


class _Rounded(nn.Module):
    """A map on its int8 grid; the gradient is that of the identity within the range and 0 beyond (Bengio et al. 2013, arXiv:1308.3432)."""

    def __init__(self, observer):
        super().__init__()
        self.scale, self.zero_point = observer.calculate_qparams()

    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, float(self.scale), int(self.zero_point), -128, 127)


class _RoundedWeights(nn.Module):
    """Weights on the grid that their present range gives; the gradient is that of the identity."""

    def __init__(self, observer):
        super().__init__()
        self.observer = observer

    def forward(self, weight):
        self.observer.reset_min_max_vals()
        self.observer(weight.detach())
        scale, zero_point = self.observer.calculate_qparams()
        return torch.fake_quantize_per_channel_affine(weight, scale, zero_point.int(), self.observer.ch_axis, -127, 127)


@contextmanager
def rounded(prepared: torch.fx.GraphModule) -> "Iterator[None]":
    """Within, a prepared and calibrated graph computes what the converted one will, and has gradients.

    Afterwards the observers are back: maps' with their ranges, weights' with those of the weights as they are then.
    """
    observers = {name: module for name, module in prepared.named_children() if isinstance(module, (RangeObserver, PerChannelMinMaxObserver))}
    substitutes = {id(module): (_Rounded if isinstance(module, RangeObserver) else _RoundedWeights)(module) for module in observers.values()}
    for name, module in observers.items():
        setattr(prepared, name, substitutes[id(module)])
    try:
        yield
    finally:
        for name, module in observers.items():
            setattr(prepared, name, module)
        for node in prepared.graph.nodes:
            if node.op == "call_module" and isinstance(observer := observers.get(node.target), PerChannelMinMaxObserver):
                observer.reset_min_max_vals()
                observer(value_of(prepared, node.args[0]))


def without_observers(prepared: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The float network that a prepared graph observes, with the same nodes' names, and with its weights even if that graph gets others."""
    graph, values = torch.fx.Graph(), {}
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            values[node] = values[node.args[0]]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            assert values[node].name == node.name
    return torch.fx.GraphModule(prepared, graph)


def weighted(groups: Groups) -> "list[Group]":
    """The groups that have weights of the model's author."""
    return [group for group in groups.groups if group.op in ("conv", "conv_transpose", "linear") and group.kind in (group.op, "affine")]


def sums(graph: torch.fx.Graph, groups: Groups) -> "dict[str, torch.fx.Node]":
    """The node of the sums, residual included, of each group with weights → the node with the weights."""
    nodes, result = {node.name: node for node in graph.nodes}, {}
    for group in weighted(groups):
        node = nodes[group.node]
        result[tensor_users(node)[0].name if group.residual else node.name] = node
        assert not group.residual or tensor_users(node)[0].target is ADD
    return result


def weights_of(node: torch.fx.Node) -> torch.fx.Node:
    """The `get_attr` node of a layer's weights in a prepared graph, where an observer stands between."""
    return node.args[1].args[0] if node.args[1].op == "call_module" else node.args[1]


def own_bias(prepared: torch.fx.GraphModule, node: torch.fx.Node) -> torch.fx.Node:
    """The `get_attr` node of a layer's bias, float32 (C,), which is made no other layer's: a copy of what it had, or zeros."""
    bias = argument(node, "bias")
    channels = node.meta["val"].shape[1]
    with prepared.graph.inserting_before(node):
        own = add_parameter(prepared, f"{node.name}_bias", torch.zeros(channels) if bias is None else value_of(prepared, bias).clone())
    node.args = (*node.args[:2], own, *node.args[3:])
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
    return own
