"""Groups the operations of a simplified graph into what one layer of the engine does: convolution, residual, activation, pool."""

import math
from dataclasses import dataclass, field

import torch

from .concatenate import layout
from .errors import UnsupportedError
from .operations import (
    ADD,
    AVERAGE_POOLS,
    CAT,
    CLIPS,
    CONV,
    CONV_TRANSPOSE,
    COPY,
    FUNCTIONS,
    LEAKY,
    LINEAR,
    MAX_POOL,
    PAD,
    RESHAPES,
    SCALE,
    SLICE,
    UPSAMPLES,
    argument,
    check,
    clip_bounds,
    image_shape,
    is_leaf_module,
    is_tensor,
    label,
    operation,
    pair,
    refuse,
    tensor_users,
)
from .windows import Windows, average_windows

__all__ = ["Group", "Groups", "View", "fuse"]


@dataclass(kw_only=True)
class Group:
    """One layer to be. Nodes are given by name, since preparing and converting the graph makes new node objects."""

    name: str
    #: conv, conv_transpose, linear, max_pool, avg_pool, upsample, add, mul, activation, copy or pad.
    op: str
    #: What it is to the model's author; another than `op` for convolutions that stand for something else.
    kind: str
    #: The convolution, pooling, …: the first node of the group.
    node: str
    #: The node whose value is quantized: the last one before the pool.
    last: str
    #: The node that ends the group: `last` or the max pooling fused after it.
    output: str
    #: The group outputs, or placeholders, that it reads.
    input: str
    residual: str | None = None
    #: The map of a value for each channel that a mul scales by.
    scale: str | None = None
    #: A leaky or parametric ReLU.
    leaky: str | None = None
    #: A pointwise function, and the node, quantized as well, whose codes it is looked up for.
    function: str | None = None
    before: str | None = None
    pool: str | None = None
    #: Zeros around the input, top, left, bottom, right, from pad operations.
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    #: Of an average pooling.
    windows: Windows | None = None
    #: Real values the output, or what the function is looked up for, is clipped to.
    low: float = -math.inf
    high: float = math.inf
    #: (C, H, W) before and after the pool.
    conv_shape: tuple[int, int, int] = (0, 0, 0)
    shape: tuple[int, int, int] = (0, 0, 0)


@dataclass(kw_only=True)
class View:
    """A concatenation or slice of maps: no layer, but a map that has a name."""

    name: str
    node: str
    shape: tuple[int, int, int]


@dataclass(kw_only=True)
class Groups:
    """The groups in order of execution, the inputs' and outputs' nodes, and every map's shape (C, H, W) by node name."""

    groups: list[Group]
    views: list[View]
    #: Node of a group's output or a view that is part of another map → that map's node, and the first channel there.
    parts: dict[str, tuple[str, int]]
    #: Placeholder name → (C, H, W).
    inputs: dict[str, tuple[int, int, int]]
    #: For each output of the graph: the group output or placeholder, and the shape the caller sees per image.
    outputs: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)


def fuse(graph: torch.fx.Graph) -> Groups:
    """Group every operation of a graph by :func:`~celosia.host.simplify.simplify`. Raises :exc:`UnsupportedError` if one cannot be lowered."""
    return _Fuser(graph).result


_OPS = {CONV: "conv", CONV_TRANSPOSE: "conv_transpose", LINEAR: "linear", MAX_POOL: "max_pool", ADD: "add", SCALE: "mul", PAD: "pad", COPY: "copy"}
_OPS |= dict.fromkeys(AVERAGE_POOLS, "avg_pool") | dict.fromkeys(UPSAMPLES, "upsample")
#: Operations whose layer may add a map.
_CARRIERS = ("conv", "linear", "mul")


class _Fuser:
    def __init__(self, graph):
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.claimed, self.names = set(), set()
        self.maps = {}  # see map_of
        groups, views, inputs, outputs = [], [], {}, []
        for node in graph.nodes:
            check(node)
        for node in graph.nodes:
            if node.op == "placeholder" and is_tensor(node):
                if len(image_shape(node)) not in (1, 3):
                    raise refuse(node, f"of {len(image_shape(node)) + 1} dimensions is not supported", "use a model with (N, C, H, W) inputs")
                inputs[node.name] = self.map_of(node)
            elif node.op == "output":
                flat = torch.utils._pytree.tree_leaves(node.args)
                outputs = [(self.source(value).name, image_shape(value)) for value in flat if is_tensor(value)]
                if len(outputs) != len([value for value in flat if value is not None]):
                    raise UnsupportedError("the model's output holds something other than feature maps; return tensors that depend on the input")
                if len(outputs) != len({name for name, _ in outputs}):
                    raise UnsupportedError("the model's output holds one map twice; return it once")
            elif node.target in (CAT, SLICE):
                views.append(self.view(node))
            elif node not in self.claimed and is_tensor(node) and node.target not in RESHAPES and not self.absorbed(node):
                groups.append(self.group(node))
        if not groups:
            raise UnsupportedError("the model computes nothing: its output is its input; use a model with at least one layer")
        position = {node.name: index for node, index in self.order.items()}
        groups.sort(key=lambda group: position[group.output])
        parts = {node.name: (whole.name, first) for node, (whole, first) in layout(graph).items()}
        self.result = Groups(groups=groups, views=views, parts=parts, inputs=inputs, outputs=outputs)

    def view(self, node):
        for source in node.args[0] if node.target is CAT else [node.args[0]]:
            self.expect_map(node, source)
        return View(name=self.name(node), node=node.name, shape=self.map_of(node))

    def group(self, node):
        op = _OPS.get(node.target, "activation")
        source, padding = node.args[0], (0, 0, 0, 0)
        if self.absorbed(source):
            padding, source = _padding(source), source.args[0]
        if op == "pad":
            padding = _padding(node)
        if op in ("conv", "conv_transpose", "max_pool", "avg_pool", "upsample", "pad"):
            self.expect_map(node, source)
        values = {"name": self.name(node), "op": op, "kind": node.meta.get("op", op), "node": node.name, "input": self.source(source).name, "padding": padding}
        last = node
        if op == "avg_pool":
            values["windows"] = average_windows(node)
        shape = self.map_of(node)
        if op == "add":
            values["residual"] = self.residual(node, node.args[1], shape)
        if op == "mul":
            values["scale"] = self.scale(node, shape)
        if op in _CARRIERS and (add := self.sole_user(node)) is not None and add.target is ADD and self.carrier(add) is node:
            other = add.args[1] if add.args[0] is node else add.args[0]
            values["residual"] = self.residual(add, other, shape)
            self.claimed.add(add)
            last = add
        if op != "max_pool":
            several = (op == "avg_pool" and len(values["windows"].rows) * len(values["windows"].columns) > 1
                       or op == "conv_transpose" and pair(argument(node, "stride"))[0] > 1
                       or op == "upsample" and shape[1] > self.map_of(source)[1])
            activation, last = self.activation(node if op == "activation" else None, last, "residual" in values or op == "mul", several)
            values |= activation
        output = last
        if op == "conv" and "residual" not in values and (user := self.sole_user(last)) is not None and user.target is MAX_POOL:
            self.claimed.add(user)
            values["pool"], output = user.name, user
        return Group(**values, last=last.name, output=output.name, conv_shape=shape, shape=self.map_of(output))

    def activation(self, first, last, one_slope, several):
        """What follows `last` of leaky ReLU, clips and function, in the order in which a layer does them, as fields of the group; and its last node.

        first: the operation that begins the group, if it is itself an activation. one_slope: no leaky ReLU can be among them. several: the group may become
        several layers, which no function follows.
        """
        fields, (low, high) = {}, (-math.inf, math.inf)
        user = first or self.sole_user(last)
        while user is not None:
            if user.target in CLIPS:
                bounds = clip_bounds(user)
                low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in (low, high))
            elif user.target in LEAKY and not fields and not one_slope and (low, high) == (-math.inf, math.inf):
                fields["leaky"] = user.name
            elif user.target in FUNCTIONS and not several:
                fields |= {"function": user.name, "before": self.source(user.args[0]).name}
            else:
                break
            self.claimed.add(user)
            last = user
            user = None if "function" in fields else self.sole_user(last)
        return fields | {"low": low, "high": high}, last

    def residual(self, add, other, shape):
        if self.map_of(other) != shape:
            raise refuse(add, f"of maps {shape} and {self.map_of(other)}, flattened differently, is not supported", "add them in one shape")
        return self.source(other).name

    def scale(self, node, shape):
        one, other = map(self.map_of, node.args)
        if one != shape or other != (shape[0], 1, 1):
            raise refuse(node, f"of maps {one} and {other} is not supported", "multiply a map by one value for each channel")
        return self.source(node.args[1]).name

    def carrier(self, add):
        """The convolution or product whose requantization takes the sum: of those that only this addition reads, the last."""
        if add.args[0] is add.args[1]:
            return None
        candidates = [node for node in add.args[:2] if _OPS.get(node.target) in _CARRIERS and self.sole_user(node) is add]
        return max(candidates, key=self.order.get, default=None)

    def sole_user(self, node):
        users = tensor_users(node)
        return users[0] if len(users) == 1 and users[0].op != "output" else None

    def absorbed(self, node):
        """Whether a padding belongs to the convolutions and average poolings behind it and needs no layer of its own."""
        return (is_tensor(node) and node.target is PAD and
                all(user.target is CONV or (user.target in AVERAGE_POOLS and operation(user) == "avg_pool2d") for user in tensor_users(node)))

    def source(self, node):
        """The node that computes the map a node's value is another shape of."""
        while node.op == "call_function" and node.target in RESHAPES:
            inner = node.args[0]
            if not _same_map(image_shape(node), image_shape(inner)):
                raise refuse(node, f"from {image_shape(inner)} to {image_shape(node)} per image is not supported", "flatten the whole map or leave it as it is")
            node = inner
        return node

    def expect_map(self, node, source):
        shape = self.map_of(source)
        if _map_shape(source) != shape:
            raise refuse(node, f"of a map reshaped from {shape} to {image_shape(source)} is not supported", "leave out the reshaping")

    def map_of(self, node):
        """(C, H, W) of the map that a node's value is, or is another shape of. An activation, copy or sum of flattened maps is one of the maps themselves."""
        node = self.source(node)
        if node not in self.maps:
            alike = node.target in CLIPS | LEAKY | {*FUNCTIONS, ADD, COPY}
            self.maps[node] = self.map_of(node.args[0]) if alike else _map_shape(node)
        return self.maps[node]

    def name(self, node):
        path, _ = label(node)
        kind = node.meta.get("op")
        name = path if path and is_leaf_module(node) and kind in (None, "affine") else ".".join(filter(None, (path, kind or operation(node))))
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}#{count}"
        self.names.add(unique)
        return unique


def _map_shape(node):
    shape = image_shape(node)
    return shape if len(shape) == 3 else (*shape, 1, 1)


def _same_map(one, other):
    """Whether two shapes are one map, or one of them is the other flattened."""
    one, other = ([size for size in shape if size != 1] for shape in (one, other))
    return one == other or [math.prod(one)] == other or one == [math.prod(other)]


def _padding(node):
    """Top, left, bottom, right of an ATen pad, which lists left, right, top, bottom."""
    pads = [*node.args[1], 0, 0, 0, 0]
    return (pads[2], pads[0], pads[3], pads[1])
