"""Weights and requantization parameters in the order and form in which the engine reads them."""

import numpy as np

from ..hw.parameters import encode_parameters
from .geometry import Geometry

__all__ = ["pack_parameters", "pack_table", "pack_weights"]


def pack_weights(geometry: Geometry, first: int) -> np.ndarray:
    """Blocks of weights, uint8, for the output channels from `first` on: channel word, kernel row, kernel column, outermost first.

    A block has `outputs` words of `inputs` bytes; word 2·r + h holds at byte 2·j + q the weight of output 2·r + q and input 2·j + h. A diagonal one has one word, in
    which byte k has the weight of channel k.
    """
    dense, inputs = geometry.dense_weight(first), geometry.config.inputs
    outputs, channels, kernel_y, kernel_x = dense.shape
    if geometry.diagonal:
        return np.ascontiguousarray(dense.reshape(channels // inputs, inputs, kernel_y, kernel_x).transpose(0, 2, 3, 1)).reshape(-1).view(np.uint8)
    # (pair, q, word, j, h, ky, kx) → (word, ky, kx, pair, h, j, q)
    blocks = dense.reshape(outputs // 2, 2, channels // inputs, inputs // 2, 2, kernel_y, kernel_x).transpose(2, 5, 6, 0, 4, 3, 1)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def pack_parameters(geometry: Geometry) -> np.ndarray:
    """Parameter words, uint8, of all stored channels of all phases, in groups of four (`hw.parameters`).

    Channels that only fill a plane have multiplier 0, so their code is the zero point.
    """
    layer, fill = geometry.layer, geometry.phase_channels - geometry.conv[0]

    def padded(values, value=0):
        if values is None:
            return None
        values = np.pad(values.reshape(layer.column_phases, -1), ((0, 0), (0, fill)), constant_values=value)
        return values.reshape(layer.column_phases, geometry.blocks, geometry.block).swapaxes(0, 1).reshape(-1)

    return encode_parameters(padded(layer.bias), padded(layer.multiplier), padded(layer.shift, 16), padded(layer.negative))


def pack_table(table: np.ndarray) -> np.ndarray:
    """A table (256,) int8 as the engine reads it, uint8: an entry a beat, by code modulo 256."""
    beats = np.zeros((len(table), 8), np.uint8)
    beats[:, 0] = np.roll(table, 128).view(np.uint8)
    return beats.reshape(-1)
