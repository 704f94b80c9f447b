"""Weights and requantization parameters in the order and form in which the engine reads them."""

import numpy as np

from .geometry import Geometry

__all__ = ["pack_parameters", "pack_weights"]


def pack_weights(geometry: Geometry, first: int) -> np.ndarray:
    """Blocks of weights, uint8, for the output channels from `first` on: channel word, kernel row, kernel column, outermost first.

    A block has `outputs` words of `inputs` bytes; word 2·r + h holds at byte 2·j + q the weight of output 2·r + q and input 2·j + h.
    """
    config, weight = geometry.config, geometry.weight
    outputs, inputs = config.outputs, config.inputs
    low, high = geometry.reduction(first)
    last = min(first + outputs, weight.shape[0])
    kernel_y, kernel_x = weight.shape[2:]
    dense = np.zeros((outputs, (high - low) * inputs, kernel_y, kernel_x), np.int8)
    group_outputs, group_inputs = weight.shape[0] // geometry.layer.groups, weight.shape[1]
    for group in range(first // group_outputs, (max(last, first + 1) - 1) // group_outputs + 1):
        mine = slice(max(group * group_outputs, first), min((group + 1) * group_outputs, last))
        column = group * group_inputs - low * inputs
        if mine.start < mine.stop:
            dense[mine.start - first : mine.stop - first, column : column + group_inputs] = weight[mine]
    # (pair, q, word, j, h, ky, kx) → (word, ky, kx, pair, h, j, q)
    blocks = dense.reshape(outputs // 2, 2, high - low, inputs // 2, 2, kernel_y, kernel_x).transpose(2, 5, 6, 0, 4, 3, 1)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def pack_parameters(geometry: Geometry) -> np.ndarray:
    """Parameter words, uint8, of all stored channels, 32 bytes for four: bias int32, multiplier uint16, shift uint8, four bytes reserved.

    Channels that only fill a plane have multiplier 0, so their code is the zero point.
    """
    layer, channels = geometry.layer, geometry.blocks * geometry.block
    words = np.zeros(channels // 4, np.dtype([("bias", "<i4", 4), ("multiplier", "<u2", 4), ("shift", "u1", 4), ("reserved", "u1", 4)]))
    for name in ("bias", "multiplier", "shift"):
        values = np.full(channels, 16 if name == "shift" else 0, words[name].dtype)
        values[: geometry.conv[0]] = getattr(layer, name)
        words[name] = values.reshape(-1, 4)
    return words.view(np.uint8).reshape(-1)
