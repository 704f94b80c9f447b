"""Rewrites an exported graph into few operations: no identities, no in-place forms, explicit padding, no arithmetic with constants."""

import torch

from .affine import fold_constants, rewrite_arithmetic, rewrite_batch_norm
from .concatenate import rewrite_slices
from .errors import CelosiaError
from .operations import AVERAGE_POOLS, BATCH_NORM, CLIPS, CONV, MAX_POOL, PAD, argument, call, image_shape, is_tensor, pair, refuse, tensor_users
from .windows import equal_parts

__all__ = ["functional", "simplify"]

aten = torch.ops.aten

_IDENTITIES = {aten.dropout, aten.dropout_, aten.feature_dropout, aten.alpha_dropout, aten.contiguous, aten.clone, aten.detach, aten.detach_, aten.alias,
               aten.lift_fresh_copy, aten.requires_grad_, aten.to, aten._to_copy}
_FUNCTIONAL = {aten.add_.Tensor: aten.add.Tensor, aten.sub_.Tensor: aten.sub.Tensor, aten.mul_.Tensor: aten.mul.Tensor, aten.div_.Tensor: aten.div.Tensor,
               aten.neg_.default: aten.neg.default, aten.relu_.default: aten.relu.default, aten.relu6_.default: aten.relu6.default,
               aten.hardtanh_.default: aten.hardtanh.default, aten.clamp_.default: aten.clamp.default, aten.clamp_min_.default: aten.clamp_min.default,
               aten.clamp_max_.default: aten.clamp_max.default, aten.clip.default: aten.clamp.default, aten.clip_.default: aten.clamp.default,
               aten.constant_pad_nd.default: aten.pad.default, aten.leaky_relu_.default: aten.leaky_relu.default, aten.silu_.default: aten.silu.default,
               aten.hardswish_.default: aten.hardswish.default, aten.hardsigmoid_.default: aten.hardsigmoid.default, aten.mish_.default: aten.mish.default,
               aten.sigmoid_.default: aten.sigmoid.default, aten.tanh_.default: aten.tanh.default, aten.elu_.default: aten.elu.default}


def simplify(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Rewrite the graph in place and return it: float32 in, the same float32 out.

    Raises :exc:`UnsupportedError` for a batch norm, arithmetic, concatenation or choice of channels that cannot be expressed.
    """
    graph = functional(module).graph
    for node in graph.nodes:
        if node.target is BATCH_NORM:
            rewrite_batch_norm(module, node)
        elif node.op == "call_function":
            rewrite_slices(node)
            rewrite_arithmetic(module, node)
    for node in list(graph.nodes):
        if node.target in CLIPS:
            _move_before_pool(node)
        elif node.target in AVERAGE_POOLS:
            _average_in_steps(node)
    graph.lint()
    module.recompile()
    return module


def functional(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Rewrite the graph in place, without what is no operation of a device, and return it: no identities, no in-place forms, explicit padding, constants computed."""
    graph = module.graph
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if node.target in _FUNCTIONAL:
            _make_functional(node)
        if node.target is aten.conv2d.padding:
            _make_padding_explicit(graph, node)
    fold_constants(module)
    return module


def _is_identity(node):
    if node.target is aten.adaptive_avg_pool2d.default:
        return image_shape(node) == image_shape(node.args[0])
    if getattr(node.target, "overloadpacket", None) not in _IDENTITIES:
        return False
    if node.target in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default) and node.args[2]:
        raise refuse(node, "is active in evaluation", "pass training=self.training to it")
    source = node.args[0]
    return is_tensor(source) and node.meta["val"].dtype == source.meta["val"].dtype


def _make_functional(node):
    """An in-place operation becomes an ordinary one; later readers of its argument read the result, as they would in eager mode."""
    if node.target._schema.is_mutable:
        source, later = node.args[0], False
        for other in list(node.graph.nodes):
            if later and source in other.all_input_nodes:
                other.replace_input_with(source, node)
            later |= other is node
    node.target = _FUNCTIONAL[node.target]


def _make_padding_explicit(graph, node):
    """padding="same" and "valid" as numbers; what "same" adds on one side only goes into a pad of its own."""
    source, mode = node.args[0], argument(node, "padding")
    dilation, kernel = pair(argument(node, "dilation")), node.args[1].meta["val"].shape[2:]
    total = [d * (k - 1) if mode == "same" else 0 for d, k in zip(dilation, kernel)]
    groups = argument(node, "groups")
    if any(n % 2 for n in total):
        top, left = (n // 2 for n in total)
        batch, channels, height, width = source.meta["val"].shape
        with graph.inserting_before(node):
            padded = call(graph, PAD, (source, [left, total[1] - left, top, total[0] - top], "constant", 0.0), like=node,
                          shape=(batch, channels, height + total[0], width + total[1]))
        source, total = padded, [0, 0]
    node.args = (source, node.args[1], argument(node, "bias"), list(pair(argument(node, "stride"))), [n // 2 for n in total], list(dilation), groups)
    node.kwargs = {}
    node.target = CONV


def _average_in_steps(node):
    """Means of windows that are too large become those of their equal parts' means."""
    if len(image_shape(node.args[0])) != 3 or (node.target is aten.mean.dim and sorted(dim % 4 for dim in argument(node, "dim")) != [2, 3]):
        return
    while axes := equal_parts(node):
        window, kernel, stride = map(list, zip(*axes))
        source = node.args[0]
        batch, channels, *size = source.meta["val"].shape
        with node.graph.inserting_before(node):
            shape = (batch, channels, *(length // part for length, part in zip(size, window)))
            means = call(node.graph, aten.avg_pool2d.default, (source, window, window), like=node, shape=shape)
        node.replace_input_with(source, means)
        if node.target is aten.avg_pool2d.default:
            node.args, node.kwargs = (means, kernel, stride), {}


def _move_before_pool(node):
    """clip(max_pool(x)) = max_pool(clip(x)): both are monotonic, and the clip then belongs to the convolution before."""
    pool = node.args[0]
    if not (is_tensor(pool) and pool.target is MAX_POOL and len(tensor_users(pool)) == 1):
        return
    source = pool.args[0]
    if source.op == "placeholder" or len(tensor_users(source)) != 1:
        return
    node.replace_all_uses_with(pool)
    node.args = (source, *node.args[1:])
    node.meta["val"] = source.meta["val"]
    pool.replace_input_with(source, node)
    pool.prepend(node)


def check_finite(module: torch.nn.Module) -> None:
    """Raises :exc:`CelosiaError` naming the first parameter or buffer that holds a NaN or an infinity, or nothing yet."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if torch.nn.parameter.is_lazy(value):
            raise CelosiaError(f"parameter {name} is not initialized; call the model with an image and load its weights first")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CelosiaError(f"parameter {name} holds a NaN or an infinity; load weights that are trained")
