"""Rewrites an exported graph into few operations: no identities, no in-place forms, explicit padding, batch norms that fold."""

import torch

from .errors import CelosiaError
from .operations import CLIPS, CONV, LINEAR, MAX_POOL, PAD, argument, image_shape, is_tensor, pair, refuse, tensor_users

__all__ = ["simplify"]

aten = torch.ops.aten

_IDENTITIES = {aten.dropout, aten.dropout_, aten.feature_dropout, aten.alpha_dropout, aten.contiguous, aten.clone, aten.detach, aten.detach_, aten.alias,
               aten.lift_fresh_copy, aten.requires_grad_, aten.to, aten._to_copy}
_FUNCTIONAL = {aten.add_.Tensor: aten.add.Tensor, aten.relu_.default: aten.relu.default, aten.relu6_.default: aten.relu6.default,
               aten.hardtanh_.default: aten.hardtanh.default, aten.clamp_.default: aten.clamp.default, aten.clamp_min_.default: aten.clamp_min.default,
               aten.clamp_max_.default: aten.clamp_max.default, aten.clip.default: aten.clamp.default, aten.clip_.default: aten.clamp.default,
               aten.constant_pad_nd.default: aten.pad.default, aten.leaky_relu_.default: aten.leaky_relu.default, aten.silu_.default: aten.silu.default,
               aten.hardswish_.default: aten.hardswish.default, aten.hardsigmoid_.default: aten.hardsigmoid.default, aten.mish_.default: aten.mish.default,
               aten.sigmoid_.default: aten.sigmoid.default, aten.tanh_.default: aten.tanh.default, aten.elu_.default: aten.elu.default}


def simplify(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Rewrite the graph in place and return it: float32 in, the same float32 out.

    Raises :exc:`UnsupportedError` for a batch norm that would use the batch's own statistics.
    """
    graph = module.graph
    for node in list(graph.nodes):
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
        if node.target is aten.batch_norm.default:
            _make_foldable(module, node)
    for node in list(graph.nodes):
        if node.target in CLIPS:
            _move_before_pool(node)
    graph.lint()
    module.recompile()
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
        with graph.inserting_before(node):
            padded = graph.call_function(PAD, (source, [left, total[1] - left, top, total[0] - top], "constant", 0.0))
        batch, channels, height, width = source.meta["val"].shape
        padded.meta = node.meta | {"val": source.meta["val"].new_empty((batch, channels, height + total[0], width + total[1]))}
        source, total = padded, [0, 0]
    node.args = (source, node.args[1], argument(node, "bias"), list(pair(argument(node, "stride"))), [n // 2 for n in total], list(dilation), groups)
    node.kwargs = {}
    node.target = CONV


def _make_foldable(module, node):
    """A batch norm that PT2E cannot fold into the operation before it becomes a depthwise 1×1 convolution."""
    graph, source = node.graph, node.args[0]
    if argument(node, "training"):
        raise refuse(node, "that uses the batch's own statistics is not supported", "train it with track_running_stats=True")
    if source.op == "call_function" and source.target in (CONV, LINEAR) and len(tensor_users(source)) == 1:
        weight = source.args[1]
        if sum(user.target is source.target for user in weight.users) == 1:
            return
    if node.meta["val"].dim() != 4:
        raise refuse(node, "after something other than a linear layer is not supported", "put it after a linear layer")
    scale, shift = _affine(module, node)
    with graph.inserting_before(node):
        weight, bias = (_parameter(module, f"{node.name}_{name}", value) for name, value in (("scale", scale.reshape(-1, 1, 1, 1)), ("shift", shift)))
        conv = graph.call_function(CONV, (source, weight, bias, [1, 1], [0, 0], [1, 1], len(scale)))
    conv.meta = dict(node.meta)
    node.replace_all_uses_with(conv)
    graph.erase_node(node)


def _affine(module, node):
    weight, bias, mean, variance = (node.args[i] and _value(module, node.args[i]).double() for i in (1, 2, 3, 4))
    scale = (variance + argument(node, "eps")).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    return scale.float(), shift.float()


def _value(module, node):
    value = module
    for name in node.target.split("."):
        value = getattr(value, name)
    return value.detach()


def _parameter(module, name, value):
    module.register_buffer(name, value)
    node = module.graph.get_attr(name)
    # Metadata of the tensor, for which a fake one would serve as well.
    node.meta["val"] = value
    return node


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
