"""Arithmetic with constants per channel: folded into the weights before it, or a depthwise 1×1 convolution of its own.

So are normalisation of the input, scaled branches, and every batch norm that PT2E cannot fold into the operation before it, such as those behind a concatenation.
"""

import torch

from .operations import (
    ADD,
    BATCH_NORM,
    CONV,
    CONV_TRANSPOSE,
    LINEAR,
    SCALE,
    add_parameter,
    argument,
    call,
    image_shape,
    is_tensor,
    operation,
    refuse,
    tensor_users,
    value_of,
)

__all__ = ["fold_constants", "rewrite_arithmetic", "rewrite_batch_norm"]

aten = torch.ops.aten

#: f, and what x · f(x) is.
_GATED = {aten.sigmoid.default: aten.silu.default, aten.hardsigmoid.default: aten.hardswish.default}
_EXPANSIONS = {aten.expand.default, aten.expand_as.default}
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}


def fold_constants(module: torch.fx.GraphModule) -> None:
    """Compute now what depends on no input: parameters reshaped, weights normalised."""
    graph = module.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or not isinstance(node.target, torch._ops.OpOverload):
            continue
        varies = torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable
        if not varies and all(source.op == "get_attr" for source in node.all_input_nodes):
            arguments, options = torch.fx.map_arg((node.args, node.kwargs), lambda source: value_of(module, source))
            with torch.no_grad(), graph.inserting_before(node):
                constant = add_parameter(module, f"{node.name}_constant", node.target(*arguments, **options).detach().clone())
            node.replace_all_uses_with(constant)
            graph.erase_node(node)


def rewrite_arithmetic(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Rewrite an addition, subtraction, multiplication, division or negation with a constant. Of two maps a plain sum stays, and a
    product, whose second factor is the smaller map.

    Raises :exc:`UnsupportedError`.
    """
    name = operation(node)
    if name not in _ARITHMETIC or not is_tensor(node):
        return
    maps = [source for source in node.args[:2] if is_tensor(source)]
    if len(maps) == 2:
        _rewrite_maps(module, node, name)
    elif len(maps) == 1 and "rounding_mode" not in _names(node):
        _apply(module, node, maps[0], *_coefficients(module, node, name))


def _names(node):
    return [entry.name for entry in node.target._schema.arguments]


def _rewrite_maps(module, node, name):
    """a − b and a + alpha · b are sums of a and a scaled b; a · sigmoid(a) is SiLU; of other products the larger map comes first."""
    if name == "mul":
        for one, other in (node.args[:2], node.args[1::-1]):
            if other.target in _GATED and other.args[0] is one and tensor_users(other) == [node]:
                node.target, node.args = _GATED[other.target], (one,)
                node.graph.erase_node(other)
                return
        if image_shape(node.args[0]) != image_shape(node) or node.args[0].target in _EXPANSIONS:
            node.args = node.args[::-1]
        factor = node.args[1]
        if factor.target in _EXPANSIONS and image_shape(node.args[0]) == image_shape(node):
            node.args = (node.args[0], factor.args[0])
            if not factor.users:
                node.graph.erase_node(factor)
        node.target, node.kwargs = SCALE, {}
        return
    if name not in ("add", "sub"):
        raise refuse(node, "of two maps is not supported", "use an architecture that adds or multiplies them")
    factor = (-1 if name == "sub" else 1) * argument(node, "alpha")
    if factor != 1:
        with node.graph.inserting_before(node):
            scaled = call(node.graph, aten.mul.Tensor, (node.args[1], factor), like=node.args[1])
        node.args = (node.args[0], scaled)
        rewrite_arithmetic(module, scaled)
    node.target, node.kwargs = ADD, {}


def _coefficients(module, node, name):
    """Scale and shift: what the node computes is scale · map + shift."""
    if name == "neg":
        return -1.0, 0.0
    first, second = (value_of(module, value) if isinstance(value, torch.fx.Node) and value.op == "get_attr" else value for value in node.args[:2])
    constant_first = not is_tensor(node.args[0])
    constant = torch.as_tensor(first if constant_first else second, dtype=torch.float64)
    if name == "mul":
        return constant, 0.0
    if name == "div":
        if constant_first:
            raise refuse(node, "by a map is not supported", "use an architecture without it")
        return 1 / constant, 0.0
    alpha = argument(node, "alpha")
    of_first, of_second = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[name]
    return (of_second, of_first * constant) if constant_first else (of_first, of_second * constant)


def rewrite_batch_norm(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Rewrite a batch norm that PT2E cannot fold into the operation before it.

    Raises :exc:`UnsupportedError` for one that would use the batch's own statistics.
    """
    source = node.args[0]
    if argument(node, "training"):
        raise refuse(node, "that uses the batch's own statistics is not supported", "train it with track_running_stats=True")
    foldable = source.op == "call_function" and source.target in (CONV, LINEAR) and len(tensor_users(source)) == 1
    if foldable and sum(user.target is source.target for user in source.args[1].users) == 1:
        return
    weight, bias, mean, variance = (node.args[i] and value_of(module, node.args[i]).double() for i in (1, 2, 3, 4))
    scale = (variance + argument(node, "eps")).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    _apply(module, node, source, *(value.reshape(-1, *[1] * (node.meta["val"].dim() - 2)) for value in (scale, shift)))


def _apply(module, node, source, scale, shift):
    """Replace a node by scale · source + shift, numbers or tensors that broadcast against the source's channels."""
    scale, shift = (_per_channel(node, value) for value in (scale, shift))
    if not bool(torch.isfinite(scale + shift).all()):
        raise refuse(node, "divides by zero or uses a NaN or an infinity", "use finite constants")
    if source.op == "call_function" and source.target in (BATCH_NORM, CONV, CONV_TRANSPOSE, LINEAR) and len(tensor_users(source)) == 1 and _has_parameters(source):
        _scale(module, source, scale, shift)
        result = source
    else:
        if node.meta["val"].dim() != 4:
            raise refuse(node, "after something other than a linear layer is not supported", "put it after a linear layer")
        with node.graph.inserting_before(node):
            weight, bias = (add_parameter(module, f"{node.name}_{name}", value) for name, value in (("scale", scale.reshape(-1, 1, 1, 1)), ("shift", shift)))
            result = call(node.graph, CONV, (source, weight, bias, [1, 1], [0, 0], [1, 1], len(scale)), like=node)
        result.meta["op"] = "affine"
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _has_parameters(source):
    return all(value is None or value.op == "get_attr" for value in source.args[1:3])


def _scale(module, source, scale, shift):
    """Scale the weights and biases of a convolution, linear layer or batch norm, and shift the biases."""
    _, weight, bias, *rest = *source.args, *[None] * (3 - len(source.args))
    weight = torch.ones(len(scale)) if weight is None else value_of(module, weight)
    bias = torch.zeros(len(scale)) if bias is None else value_of(module, bias)
    with source.graph.inserting_before(source):
        if source.target is CONV_TRANSPOSE:  # its weights are (input channels, output channels / groups, …)
            groups = argument(source, "groups")
            factors = scale.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(*weight.shape[:2], 1, 1)
        else:
            factors = scale.reshape(-1, *[1] * (weight.dim() - 1))
        scaled = add_parameter(module, f"{source.name}_scaled", weight * factors)
        shifted = add_parameter(module, f"{source.name}_shifted", bias * scale + shift)
    source.args = (source.args[0], scaled, shifted, *rest)


def _per_channel(node, value):
    """A number or tensor as float32 (C,). Raises :exc:`UnsupportedError` if it differs from pixel to pixel."""
    shape = image_shape(node)
    value = torch.as_tensor(value, dtype=torch.float64).detach()
    value = value.reshape(*[1] * (len(shape) + 1 - value.dim()), *value.shape)
    if value.dim() != len(shape) + 1 or value.shape[0] != 1 or any(size != 1 for size in value.shape[2:]) or value.shape[1] not in (1, shape[0]):
        raise refuse(node, f"with a constant of shape {tuple(value.shape[1:])} on a map of {tuple(shape)} is not supported", "use one value for each channel")
    return value.reshape(-1).float().expand(shape[0]).clone()
