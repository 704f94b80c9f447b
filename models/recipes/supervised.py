"""Supervised learning: loss, optimizer, schedule and regularizers are values of one regime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data import ImageData, Preprocess
from .training import SMOKE_STEPS


@dataclass(frozen=True)
class Supervised:
    """Minimize a loss over labelled images; the result is the exponential average of the weights.

    Parameters
    ----------
    loss
        (logits float32 (N, classes), labels int64 (N,)) → scalar.
    optimizer
        Network → optimizer, at its peak learning rate.
    schedule
        Share of the run that is over, in [0, 1) → factor of the learning rate.
    augment
        uint8 (N, H, W) → uint8 (N, H, W), random by torch's generator.
    average_decay
        What a step leaves of the average (Tarvainen and Valpola 2017, arXiv:1703.01780, equation 3).
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    schedule: Callable[[float], float]
    augment: Callable[[Tensor], Tensor]
    epochs: int
    batch_size: int
    average_decay: float

    def start(self, modules: Mapping[str, nn.Module], images: ImageData, preprocess: Preprocess, *, smoke: bool) -> SupervisedSession:
        """Train `modules["network"]`, which maps float32 (N, C, H, W) to logits (N, classes)."""
        return SupervisedSession(self, modules["network"], images, preprocess, smoke=smoke)

    @torch.no_grad()
    def evaluate(self, model: Callable[[Tensor], Tensor], images: ImageData, preprocess: Preprocess) -> dict[str, float]:
        """`accuracy`, the share of test images whose largest logit is the label's, and `images`, their number.

        `model` maps float32 (N, C, H, W), preprocessed, to logits (N, classes).
        """
        correct = 0
        for start in range(0, len(images.test_labels), 500):
            batch = slice(start, start + 500)
            predictions = model(torch.from_numpy(preprocess(images.test_images[batch]))).argmax(1)
            correct += int((predictions == torch.tensor(images.test_labels[batch])).sum())
        return {"accuracy": correct / len(images.test_labels), "images": len(images.test_labels)}


class SupervisedSession:
    """The session of `Supervised`; a batch that an epoch does not fill is left out."""

    def __init__(self, regime: Supervised, network: nn.Module, images: ImageData, preprocess: Preprocess, *, smoke: bool) -> None:
        self._regime, self._images, self._preprocess = regime, images, preprocess
        self._network = network.to(memory_format=torch.channels_last)
        self._average = AveragedModel(self._network, multi_avg_fn=get_ema_multi_avg_fn(regime.average_decay), use_buffers=True)
        self._optimizer = regime.optimizer(self._network)
        self._peak_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._train_images = torch.tensor(images.train_images)
        self._train_labels = torch.tensor(images.train_labels, dtype=torch.int64)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)
        self.steps_per_epoch = len(self._train_labels) // regime.batch_size
        self.steps = SMOKE_STEPS if smoke else regime.epochs * self.steps_per_epoch

    def step(self, number: int, order: np.random.Generator) -> dict[str, float]:
        epoch, position = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.from_numpy(order.permutation(len(self._train_labels)))
        chosen = self._order[position * self._regime.batch_size :][: self._regime.batch_size]
        factor = self._regime.schedule(number / self.steps)
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor
        images = self._regime.augment(self._train_images[chosen])
        self._network.train()
        logits = self._network(torch.from_numpy(self._preprocess(images.numpy())))
        loss = self._regime.loss(logits, self._train_labels[chosen])
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._average.update_parameters(self._network)
        return {"loss": loss.item(), "learning_rate": self._peak_rates[0] * factor}

    def evaluate(self) -> dict[str, float]:
        return self._regime.evaluate(self.result()["network"], self._images, self._preprocess)

    def result(self) -> dict[str, nn.Module]:
        return {"network": self._average.module.eval()}

    def state(self) -> dict[str, Tensor]:
        state = {f"network.{key}": value for key, value in self._network.state_dict().items()}
        state |= {f"average.{key}": value for key, value in self._average.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for key, value in state.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        self._network.load_state_dict(parts["network"])
        self._average.load_state_dict(parts["average"])
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, rest = key.partition(".")
            optimizer.setdefault(int(index), {})[rest] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": optimizer, "param_groups": groups})


def one_cycle(done: float, *, warm_up: float = 0.15) -> float:
    """Linear from 0.04 to 1 over the first `warm_up` of the run, then half a cosine down to 0.

    After Smith and Topin 2019, arXiv:1708.07120.
    """
    if done < warm_up:
        return 0.04 + 0.96 * done / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (done - warm_up) / (1 - warm_up))


def flip_crop_erase(images: Tensor, *, padding: int = 2, size: int = 8, share: float = 0.25) -> Tensor:
    """Mirror half of the images, shift all by up to `padding` pixels, blacken a square of `size` in a `share` of them.

    uint8 (N, H, W) → uint8 (N, H, W). The square's centre is anywhere in the image (DeVries and Taylor 2017,
    arXiv:1708.04552).
    """
    count, height, width = images.shape
    rows = torch.arange(height) + torch.randint(2 * padding + 1, (count, 1))
    columns = torch.arange(width) + torch.randint(2 * padding + 1, (count, 1))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    images = F.pad(images, (padding,) * 4)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    in_rows = _inside(height, size, count)
    in_columns = _inside(width, size, count)
    erased = torch.rand(count, 1, 1) < share
    return images.masked_fill(erased & in_rows[:, :, None] & in_columns[:, None, :], 0)


def _inside(length: int, size: int, count: int) -> Tensor:
    """For `count` random spans of `size`, which of `length` positions lie in it: bool (count, length)."""
    offset = torch.arange(length) - torch.randint(length, (count, 1)) + size // 2
    return (offset >= 0) & (offset < size)
