"""Bias correction: the mean error of a layer's sums over the calibration images goes into its bias."""

import math

import torch

from .fake_quantize import own_bias, rounded, sums
from .fuse import Groups
from .operations import set_value

__all__ = ["correct_biases"]

#: Elements of the largest map, over all images, that are kept at once.
_MOST_ELEMENTS = 1 << 25


def correct_biases(prepared: torch.fx.GraphModule, original: torch.fx.GraphModule, groups: Groups, batches: "list[tuple[torch.Tensor, ...]]") -> None:
    """Subtract, per channel, what rounding adds to the mean of each layer's sums, residual included; float32 batches as the graph takes them.

    Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D: layer after layer, so that each is corrected with the corrected ones before it.
    `prepared` is calibrated, `original` the float network. As many batches are used as memory allows, at least one.
    """
    largest = max(math.prod(group.conv_shape) for group in groups.groups)
    used, images = [], 0
    for batch in batches:
        if used and (images + len(batch[0])) * largest > _MOST_ELEMENTS:
            break
        used.append(batch)
        images += len(batch[0])
    layers = sums(prepared.graph, groups)
    means = {}

    def note(node, values):
        if node.name in layers:
            means[node.name] = _mean(values)
        return values

    def correct(node, values):
        if node.name not in means:
            return values
        errors[node.name] = _mean(values) - means[node.name]
        return [value - errors[node.name].reshape(-1, *[1] * (value.dim() - 2)) for value in values]

    errors = {}
    with torch.no_grad():
        _side_by_side(original, used, note)
        with rounded(prepared):
            _side_by_side(prepared, used, correct)
    for name, error in errors.items():
        bias = own_bias(prepared, layers[name])
        set_value(prepared, bias, bias.meta["val"] - error)
    prepared.recompile()


def _mean(values):
    """Per channel, over images and pixels of all batches."""
    count = sum(value.numel() // value.shape[1] for value in values)
    return sum(value.sum([dim for dim in range(value.dim()) if dim != 1], dtype=torch.float64) for value in values).div(count).float()


def _side_by_side(module, batches, change):
    """Run a graph node by node on all batches; `change` is given each node and its values, and returns those to go on with."""
    runs = [torch.fx.Interpreter(module) for _ in batches]
    for run, batch in zip(runs, batches):
        run.args_iter = iter(batch)
    for node in module.graph.nodes:
        if node.op == "output":
            break
        values = [run.run_node(node) for run in runs]
        if isinstance(values[0], torch.Tensor) and node.op == "call_function":
            values = change(node, values)
        for run, value in zip(runs, values):
            run.env[node] = value
            for done in run.user_to_last_uses.get(node, []):
                del run.env[done]
