"""Quantization-aware fine-tuning: weights and biases learn to make up for the rounding that the engine does."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .errors import CelosiaError
from .fake_quantize import own_bias, rounded, weighted, weights_of
from .fuse import Groups
from .observers import RangeObserver
from .operations import set_value, value_of

__all__ = ["FineTuning", "fine_tune_graph"]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a network is fine-tuned.

    Without labels the int8 outputs learn to be the float network's: that needs no more than images. With them, cross-entropy of the first output is added.
    """

    epochs: int = 10
    batch_size: int = 32
    #: What an optimizer's first steps change a weight by, in LSB of its tensor, and a bias, in LSB of its layer's output.
    step_lsb: float = 0.05
    seed: int = 0
    #: Float32 batches as for calibration, or None: the calibration's own.
    batches: "Iterable | None" = None
    #: The tensor behind the images of each of `batches`, int64 (N,), is their class.
    labels: bool = False

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise CelosiaError(f"fine-tuning: {name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        if not 0 < self.step_lsb <= 10:
            raise CelosiaError(f"fine-tuning: step_lsb must be above 0 and at most 10, not {self.step_lsb!r}")
        if self.labels and self.batches is None:
            raise CelosiaError("fine-tuning: labels need batches of their own; give batches of (images, labels)")

    def labels_of(self, batches: list, inputs: int) -> "torch.Tensor | None":
        """The classes, int64 (N,), that stand behind the `inputs` tensors of each batch; None if there shall be none. Raises :exc:`CelosiaError` if there are none."""
        if not self.labels:
            return None
        for index, batch in enumerate(batches):
            if not isinstance(batch, (tuple, list)) or len(batch) <= inputs or torch.as_tensor(batch[inputs]).shape != (len(batch[0]),):
                raise CelosiaError(f"fine-tuning batch {index} has no labels; give tuples of images and one class for each")
        return torch.cat([torch.as_tensor(batch[inputs]).long() for batch in batches])


@torch.enable_grad()  # whoever calibrates may be in torch.no_grad()
def fine_tune_graph(prepared: torch.fx.GraphModule, original: torch.fx.GraphModule, groups: Groups, inputs: "tuple[torch.Tensor, ...]", settings: FineTuning, *,
              labels: "torch.Tensor | None" = None, batch: "int | None" = None, progress: "Callable[[str, int], None] | None" = None) -> "list[float]":
    """Train the weights and biases of a prepared and calibrated graph through its rounding (Jacob et al. 2018, arXiv:1712.05877, section 3).

    `inputs` are all images, float32 (N, …) for each argument, `labels` int64 (N,), `batch` the size the graph insists on, if it does. Ranges of maps stay, batch norms
    are folded. Adam's steps fall to 0 along half a cosine. Every eighth image is held out: the weights with the least loss on those are kept, be it those before.
    The loss is the squared difference of the outputs from the float network's, `original`'s, over their mean square; with labels, plus the cross-entropy.
    Returns the loss on the held-out images before and after every epoch.
    """
    if torch.is_inference_mode_enabled():
        raise CelosiaError("fine-tuning: there are no gradients in torch.inference_mode(); calibrate in torch.no_grad() instead")
    progress = progress or (lambda *_: None)
    count = len(inputs[0])
    size = batch or min(settings.batch_size, count)
    apart = count >= 8 * size  # with fewer images none can be spared
    held = torch.arange(0, count, 8) if apart else torch.arange(count)
    train = torch.tensor([index for index in range(count) if index % 8]) if apart else held
    random = torch.Generator().manual_seed(settings.seed)

    def outputs(module, chosen):
        filled = F.pad(chosen[None], (0, size - len(chosen)), "replicate")[0] if batch else chosen
        found = torch.utils._pytree.tree_leaves(module(*(x[filled] for x in inputs)))
        return [output[: len(chosen)] for output in found if output is not None]

    with torch.no_grad():
        wanted = [torch.cat(parts) for parts in zip(*(outputs(original, chosen) for chosen in torch.arange(count).split(size)))]
    power = [max(float(output.square().mean()), 1e-12) for output in wanted]

    def loss(chosen):
        found = outputs(prepared, chosen)
        total = sum((output - target[chosen]).square().mean() / unit for output, target, unit in zip(found, wanted, power))
        return total if labels is None else total + F.cross_entropy(found[0].flatten(1), labels[chosen])

    def held_loss():
        with torch.no_grad():
            return sum(float(loss(chosen)) * len(chosen) for chosen in held.split(size)) / len(held)

    parameters, steps = _parameters(prepared, groups, settings.step_lsb)
    optimizer = torch.optim.Adam([{"params": [value], "lr": step} for value, step in zip(parameters.values(), steps)])
    total, done = settings.epochs * math.ceil(len(train) / size), 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / total))
    with rounded(prepared):
        losses, best = [held_loss()], [value.detach().clone() for value in parameters.values()]
        for _ in range(settings.epochs):
            for chosen in train[torch.randperm(len(train), generator=random)].split(size):
                optimizer.zero_grad()
                loss(chosen).backward()
                optimizer.step()
                schedule.step()
                done += 1
                progress("fine-tune", done)
            losses.append(held_loss())
            if losses[-1] < min(losses[:-1]):
                best = [value.detach().clone() for value in parameters.values()]
        for node, value in zip(parameters, best):
            set_value(prepared, node, value)
    return losses


def _parameters(prepared, groups, step_lsb):
    """The `get_attr` nodes of weights and biases with new values that require gradients, and the first step of each."""
    nodes, parameters, steps = {node.name: node for node in prepared.graph.nodes}, [], []
    for group in weighted(groups):
        node = nodes[group.node]
        weight = weights_of(node)
        if weight.target not in [other.target for other in parameters]:  # layers may share it
            parameters.append(weight)
            steps.append(step_lsb * float(getattr(prepared, node.args[1].target).calculate_qparams()[0].mean()))
        parameters.append(own_bias(prepared, node))
        steps.append(step_lsb * _output_scale(prepared, nodes[group.before or group.last]))
    prepared.recompile()
    return {node: set_value(prepared, node, value_of(prepared, node).clone()).requires_grad_() for node in parameters}, steps


def _output_scale(prepared, node):
    [observer] = [module for user in node.users if user.op == "call_module" and isinstance(module := getattr(prepared, user.target), RangeObserver)]
    return float(observer.calculate_qparams()[0])

