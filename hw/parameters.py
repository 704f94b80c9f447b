"""A word of the parameter buffer: what DRAIN requantizes four neighbouring output channels with."""

import numpy as np
from amaranth.hdl import unsigned
from amaranth.lib import data

__all__ = ["NEGATIVE_UNIT", "PARAMETER_BYTES", "Parameters", "decode_parameters", "encode_parameters"]

#: What an LSB of `Parameters.negative` is worth in the multiplier's LSBs: ten bits are stored, so the slope of a leaky ReLU is exact to 1/1024.
NEGATIVE_UNIT = 64


class Parameters(data.Struct):
    """Per channel: bias (int32), multiplier, shift, and the multiplier of negative accumulators in units of `NEGATIVE_UNIT`."""

    bias: data.ArrayLayout(unsigned(32), 4)
    multiplier: data.ArrayLayout(unsigned(16), 4)
    shift: data.ArrayLayout(unsigned(6), 4)
    negative: data.ArrayLayout(unsigned(10), 4)


PARAMETER_BYTES = Parameters.as_shape().size // 8

# NumPy's view of the layout above: bias and multiplier lie at bytes, the last eight bytes hold the rest.
_WORD = np.dtype([("bias", "<i4", 4), ("multiplier", "<u2", 4), ("packed", "<u8")])
assert _WORD.itemsize == PARAMETER_BYTES
_PACKED = {
    name: [np.uint64(Parameters.as_shape()[name].offset + k * width - 192) for k in range(4)] for name, width in (("shift", 6), ("negative", 10))
}


def encode_parameters(bias: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, negative: "np.ndarray | None" = None) -> np.ndarray:
    """Words, uint8 (channels / 4 · 32,), of channels in groups of four.

    `negative`: multipliers of negative accumulators, multiples of `NEGATIVE_UNIT` below 2^16 (ValueError if not); None: there are none.
    """
    negative = np.zeros(len(bias), np.uint64) if negative is None else np.asarray(negative, np.uint64)
    if (negative % NEGATIVE_UNIT).any() or (negative >> np.uint64(16)).any():
        raise ValueError(f"multipliers of negative accumulators must be multiples of {NEGATIVE_UNIT} in 0…65535")
    words = np.zeros(len(bias) // 4, _WORD)
    words["bias"], words["multiplier"] = np.reshape(bias, (-1, 4)), np.reshape(multiplier, (-1, 4))
    for name, values in ("shift", np.asarray(shift, np.uint64)), ("negative", negative // NEGATIVE_UNIT):
        for position, column in zip(_PACKED[name], values.reshape(-1, 4).T):
            words["packed"] |= column << position
    return words.view(np.uint8)


def decode_parameters(words: np.ndarray) -> "dict[str, np.ndarray]":
    """bias (int32), multiplier, shift and negative (int64), each (n, 4), of words, uint8 (n, 32); the inverse of :func:`encode_parameters`."""
    words = np.ascontiguousarray(words).view(_WORD)[:, 0]
    packed = {name: np.stack([words["packed"] >> position for position in _PACKED[name]], axis=1) for name in _PACKED}
    return {
        "bias": words["bias"], "multiplier": words["multiplier"].astype(np.int64), "shift": (packed["shift"] & np.uint64(63)).astype(np.int64),
        "negative": (packed["negative"] & np.uint64(1023)).astype(np.int64) * NEGATIVE_UNIT,
    }
