"""What of an exported graph can run: every node is checked here, before any calibration, and refused in one sentence."""

import math
import re

import torch

from ..hw.network import MOST_PHASES
from .errors import UnsupportedError

__all__ = ["ADD", "AVERAGE_POOLS", "BATCH_NORM", "CAT", "CLIPS", "CONV", "CONV_TRANSPOSE", "COPY", "FUNCTIONS", "LEAKY", "LINEAR", "MAX_POOL", "PAD",
           "RESHAPES", "SCALE", "SLICE", "UPSAMPLES", "add_parameter", "call", "check", "image_shape", "is_tensor", "label", "refuse", "set_value", "source_of",
           "tensor_users", "value_of"]

aten = torch.ops.aten

CONV = aten.conv2d.default
CONV_TRANSPOSE = aten.conv_transpose2d.input
LINEAR = aten.linear.default
ADD = aten.add.Tensor
#: Of a simplified graph: a map by a value for each channel.
SCALE = aten.mul.Tensor
MAX_POOL = aten.max_pool2d.default
PAD = aten.pad.default
BATCH_NORM = aten.batch_norm.default
CAT = aten.cat.default
SLICE = aten.slice.Tensor
#: Of a simplified graph: a map in a place, and with a scale, of its own.
COPY = aten.clone.default
CLIPS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default}
LEAKY = {aten.leaky_relu.default, aten.prelu.default}


def _sigmoid_bounds(low, high):
    half = 1 / (1 + math.exp(-max(high, -30.0))) / 510
    return -math.log(1 / half - 1), math.log(1 / half - 1)


def _tanh_bounds(low, high):
    bound = math.atanh(1 - (math.tanh(max(high, 0)) - math.tanh(min(low, 0)) + 1e-9) / 510)
    return -bound, bound


#: Other pointwise functions, each with what gives, for arguments in low…high, the bounds beyond which its value is constant to within half of 1/255 of its values'
#: range: arguments there need not be told apart. None: there are none.
FUNCTIONS = dict.fromkeys((aten.silu.default, aten.gelu.default, aten.elu.default, aten.mish.default, aten.softplus.default)) | {
    aten.sigmoid.default: _sigmoid_bounds, aten.tanh.default: _tanh_bounds,
    aten.hardswish.default: lambda low, high: (-3.0, math.inf), aten.hardsigmoid.default: lambda low, high: (-3.0, 3.0),
}
AVERAGE_POOLS = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim}
#: Each pixel several times, by whole numbers.
UPSAMPLES = {aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact2d.default}
RESHAPES = {aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
            aten.unsqueeze.default, aten.unflatten.int}
_OPERATIONS = {CONV, CONV_TRANSPOSE, LINEAR, ADD, SCALE, MAX_POOL, PAD, CAT, SLICE, COPY, *FUNCTIONS} | CLIPS | LEAKY | AVERAGE_POOLS | UPSAMPLES | RESHAPES
#: torch.nn classes that hold no operation of their own.
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")

_HOST = "end the model before it and do this step on the host, as celosia.offload does"
_REMEDIES = {
    "softmax": "drop it, the order of the classes stays the same", "log_softmax": "drop it, the order of the classes stays the same",
    "conv1d": "write it as conv2d of height 1", "instance_norm": "use batch norm",
    "group_norm": "use batch norm", "layer_norm": "use batch norm",
}


def label(node: torch.fx.Node) -> "tuple[str, str]":
    """Path of the innermost module a node comes from ('' for the root) and that module's class name."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, kind in reversed(stack.values()):
        return re.sub(r"@\d+$", "", path), (kind if isinstance(kind, str) else kind.__name__).rsplit(".", 1)[-1]
    return "", ""


def is_leaf_module(node: torch.fx.Node) -> bool:
    """Whether the innermost module is one of torch.nn's, so that its path alone names the operation."""
    stack = node.meta.get("nn_module_stack") or {}
    for _, kind in reversed(stack.values()):
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        return kind.startswith("torch.nn.modules.") and not kind.endswith(_CONTAINERS)
    return False


def operation(node: torch.fx.Node) -> str:
    """The ATen name of a node's operation, without overload and in-place mark."""
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def refuse(node: torch.fx.Node, reason: "str | None" = None, remedy: "str | None" = None) -> UnsupportedError:
    """The error that names a node by module path, operation and source line."""
    path, kind = label(node)
    name = operation(node)
    place = f"{path} ({kind})" if path else (f"the model's forward ({kind})" if kind else f"node {node.name}")
    if frames := [frame for frame in re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "") if "/torch/nn/" not in frame[0]]:
        place += ", {}:{}".format(*frames[-1])
    return UnsupportedError(f"{place}: {name} {reason or 'is not supported'}; {remedy or _REMEDIES.get(name, _HOST)}", node)


def is_tensor(node: object) -> bool:
    """Whether a node computes a feature map (and not a size, a parameter or a check)."""
    return isinstance(node, torch.fx.Node) and node.op in ("placeholder", "call_function") and isinstance(node.meta.get("val"), torch.Tensor)


def tensor_users(node: torch.fx.Node) -> "list[torch.fx.Node]":
    """Users that consume the values, the graph's output included; sizes and assertions do not count."""
    return [user for user in node.users if user.op == "output" or is_tensor(user)]


def image_shape(node: torch.fx.Node) -> "tuple[int, ...]":
    """Shape of a node's value per image: (C, H, W) or (C,)."""
    return tuple(node.meta["val"].shape[1:])


def argument(node: torch.fx.Node, name: str) -> object:
    """An argument of an ATen call by its schema's name, with its default."""
    for index, entry in enumerate(node.target._schema.arguments):
        if entry.name == name:
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, entry.default_value)
    raise KeyError(name)


def pair(value: object) -> "tuple[int, int]":
    """A size argument as (height, width): ATen accepts one number for both."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


def clip_bounds(node: torch.fx.Node) -> "tuple[float, float]":
    """Lowest and highest value an activation lets through."""
    name = operation(node)
    if name in ("relu", "relu6"):
        return (0.0, math.inf if name == "relu" else 6.0)
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = (argument(node, n) if n in [a.name for a in node.target._schema.arguments] else None for n in names)
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def source_of(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose value a node's is in another shape."""
    while node.op == "call_function" and node.target in RESHAPES:
        node = node.args[0]
    return node


def value_of(module: torch.fx.GraphModule, node: torch.fx.Node) -> torch.Tensor:
    """The parameter, buffer or constant that a `get_attr` node names."""
    value = module
    for name in node.target.split("."):
        value = getattr(value, name)
    return value.detach()


def set_value(module: torch.fx.GraphModule, node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
    """Give a `get_attr` node a new value in the place of its old one, which a model outside may share and keeps; the parameter or buffer it is now."""
    *path, name = node.target.split(".")
    owner = module.get_submodule(".".join(path))
    parameter = name in owner._parameters
    delattr(owner, name)
    if parameter:
        owner.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(name, value)
    return getattr(owner, name)


def add_parameter(module: torch.fx.GraphModule, name: str, value: torch.Tensor) -> torch.fx.Node:
    """A `get_attr` node of a new buffer, at the graph's point of insertion."""
    unique, count = name, 1
    while hasattr(module, unique):
        count += 1
        unique = f"{name}_{count}"
    module.register_buffer(unique, value)
    node = module.graph.get_attr(unique)
    # Metadata of the tensor, for which a fake one would serve as well.
    node.meta["val"] = value
    return node


def call(graph: torch.fx.Graph, target: object, arguments: tuple, *, like: torch.fx.Node, shape: "tuple | None" = None) -> torch.fx.Node:
    """A call at the graph's point of insertion, from the place in the model and, unless `shape` (N, …) is given, of the shape of the node `like`."""
    node = graph.call_function(target, arguments)
    node.meta = dict(like.meta)
    if shape is not None:
        node.meta["val"] = like.meta["val"].new_empty(shape)
    return node


def check(node: torch.fx.Node) -> None:
    """Raises :exc:`UnsupportedError` if a node of a simplified graph cannot be lowered."""
    if node.op != "call_function" or not is_tensor(node):
        if node.op == "call_module" or (node.op == "call_function" and isinstance(node.meta.get("val"), (tuple, list))):
            raise refuse(node)
        return
    value, source = node.meta["val"], node.args[0][0] if node.target is CAT else node.args[0]
    if node.target is BATCH_NORM:
        return  # folded before the groups are made
    if node.target not in _OPERATIONS:
        raise refuse(node)
    if value.dtype != torch.float32:
        raise refuse(node, f"in {str(value.dtype).removeprefix('torch.')} is not supported", "use a float32 model")
    if not is_tensor(source):
        raise refuse(node, "of a constant is not supported", "compute it before the export")
    if str(value.shape[0]) != str(source.meta["val"].shape[0]):
        raise refuse(node, "changes the batch dimension", "keep the images of a batch apart")
    _CHECKS.get(node.target, _check_map if node.target in AVERAGE_POOLS | {PAD} else lambda _: None)(node)


def _check_map(node):
    if len(image_shape(node.args[0])) != 3:
        raise refuse(node, f"of a tensor of {len(image_shape(node.args[0])) + 1} dimensions is not supported", "give it (N, C, H, W)")
    if node.target is PAD:
        pads = argument(node, "pad")
        if argument(node, "mode") != "constant" or argument(node, "value"):
            raise refuse(node, f"with mode {argument(node, 'mode')!r} and value {argument(node, 'value')} is not supported", "pad with zeros")
        if len(pads) > 4 or min(pads) < 0:
            raise refuse(node, f"by {tuple(pads)} is not supported", "pad height and width only, by positive amounts")
    if node.target is aten.mean.dim and sorted(d % 4 for d in argument(node, "dim")) != [2, 3]:
        raise refuse(node, f"over dimensions {argument(node, 'dim')} is not supported", "take the mean over height and width (2, 3)")


def _check_conv(node):
    _check_map(node)
    if node.args[1].op != "get_attr":
        raise refuse(node, "with computed weights is not supported", "make the weights parameters")


def _check_transposed(node):
    _check_conv(node)
    _check_phases(node, pair(argument(node, "stride"))[1])


def _check_upsample(node):
    _check_map(node)
    sizes = list(zip(image_shape(node)[1:], image_shape(node.args[0])[1:]))
    if any(large % small for large, small in sizes):
        raise refuse(node, f"from {sizes[0][1]}×{sizes[1][1]} to {sizes[0][0]}×{sizes[1][0]} is not supported", "enlarge by whole numbers")
    _check_phases(node, sizes[1][0] // sizes[1][1])


def _check_phases(node, columns):
    if columns > MOST_PHASES:
        raise refuse(node, f"by {columns} along rows exceeds the engine's {MOST_PHASES}", "do it in several steps")


def _check_linear(node):
    if len(image_shape(node.args[0])) != 1:
        raise refuse(node, f"of a tensor of {len(image_shape(node.args[0])) + 1} dimensions is not supported", "flatten the map first, or use a 1×1 convolution")
    if node.args[1].op != "get_attr":
        raise refuse(node, "with computed weights is not supported", "make the weights parameters")


def _check_add(node):
    other = node.args[1]
    if not is_tensor(other) or image_shape(other) != image_shape(node.args[0]):
        raise refuse(node, "of maps of different shapes is not supported", "add two maps of one shape")


def _check_scale(node):
    shape, other = map(image_shape, node.args)
    if other != (shape[0], *[1] * (len(shape) - 1)):
        raise refuse(node, f"of maps of shapes {shape} and {other} is not supported", "multiply a map by one value for each channel, of shape (C, 1, 1)")


def _check_max_pool(node):
    _check_map(node)
    if pair(argument(node, "dilation")) != (1, 1):
        raise refuse(node, f"with dilation {pair(argument(node, 'dilation'))} is not supported", "use dilation 1")


def _check_clip(node):
    low, high = clip_bounds(node)
    if not low <= high:
        raise refuse(node, f"with bounds {low}…{high} leaves nothing", "exchange the bounds")


def _check_leaky(node):
    if node.target is aten.leaky_relu.default:
        slope = argument(node, "negative_slope")
    elif node.args[1].op == "get_attr":
        slopes = value_of(node.graph.owning_module, node.args[1])
        if slopes.numel() > 1 and image_shape(source_of(node.args[0]))[0] != len(slopes):
            raise refuse(node, f"of {len(slopes)} slopes, one for each element, is not supported", "use one slope, or put it before the flattening")
        slope = float(slopes.min())
    else:
        raise refuse(node, "with computed slopes is not supported", "make the slopes parameters")
    if slope < 0:
        raise refuse(node, f"of slope {slope:.3g} is not supported", "keep the slopes at 0 or more and fine-tune")


_CHECKS = {CONV: _check_conv, CONV_TRANSPOSE: _check_transposed, LINEAR: _check_linear, ADD: _check_add, SCALE: _check_scale, MAX_POOL: _check_max_pool}
_CHECKS |= dict.fromkeys(CLIPS, _check_clip) | dict.fromkeys(LEAKY, _check_leaky) | dict.fromkeys(UPSAMPLES, _check_upsample)
