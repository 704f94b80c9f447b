"""A word of the parameter buffer: what DRAIN requantizes four neighbouring output channels with.

There is room for eleven bits of the multiplier of negative sums: a floating-point number with three bits of exponent, whose values are the even numbers up to 1022
and beyond them those of nine significant bits.
"""

import numpy as np
from amaranth.hdl import Cat, unsigned
from amaranth.lib import data

__all__ = ["CODE_UNIT", "MOST_COMPUTED", "PARAMETER_BYTES", "SHORT_BITS", "Parameters", "decode_parameters", "encode_parameters", "expand", "fill_parameters",
           "nearest_short", "parameter_arrays"]

#: Bits of a multiplier of negative sums.
SHORT_BITS = 11
_FRACTION = 8
_MOST = 511 << 7
#: Multiplier for each step of a code above −128, of words that a layer makes.
CODE_UNIT = 1 << 8
#: The highest multiplier of such words.
MOST_COMPUTED = 255 * CODE_UNIT


class Parameters(data.Struct):
    """Per channel: bias (int32), multiplier, shift less 16, and the short multiplier of negative sums."""

    bias: data.ArrayLayout(unsigned(32), 4)
    multiplier: data.ArrayLayout(unsigned(16), 4)
    shift: data.ArrayLayout(unsigned(5), 4)
    negative: data.ArrayLayout(unsigned(SHORT_BITS), 4)


PARAMETER_BYTES = Parameters.as_shape().size // 8

# NumPy's view of the layout above: bias and multiplier lie at bytes, the last eight bytes hold the rest.
_WORD = np.dtype([("bias", "<i4", 4), ("multiplier", "<u2", 4), ("packed", "<u8")])
assert _WORD.itemsize == PARAMETER_BYTES
_PACKED = {
    name: [np.uint64(Parameters.as_shape()[name].offset + k * width - 192) for k in range(4)] for name, width in (("shift", 5), ("negative", SHORT_BITS))
}


def expand(short):
    """The multiplier, 16 bit, that a short one of `SHORT_BITS` bits stands for, in gateware."""
    fraction, exponent = short[:_FRACTION], short[_FRACTION:]
    return (Cat(fraction, exponent.any()) << (exponent | ~exponent.any()))[:16]


def nearest_short(multipliers: np.ndarray) -> np.ndarray:
    """The closest multipliers, uint16, that have a short form, to numbers of at least 0."""
    multipliers = np.minimum(np.asarray(multipliers, np.float64), _MOST)
    unit = 2.0 ** np.maximum(np.frexp(multipliers)[1] - 1 - _FRACTION, 1)
    return (np.rint(multipliers / unit) * unit).astype(np.uint16)


def _shorten(multipliers):
    multipliers = np.asarray(multipliers, np.int64)
    if not np.array_equal(nearest_short(np.maximum(multipliers, 0)), multipliers):
        raise ValueError("a multiplier of negative sums has no short form")
    exponent = np.maximum(np.frexp(multipliers)[1] - 1 - _FRACTION, 0)
    return np.where(exponent == 0, multipliers >> 1, (exponent << _FRACTION) + (multipliers >> exponent) - (1 << _FRACTION))


def encode_parameters(bias: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, negative: "np.ndarray | None" = None) -> np.ndarray:
    """Words, uint8 (channels / 4 · 32,), of channels in groups of four; shifts are 16…47.

    `negative`: multipliers of negative sums; None: there are none. Raises ValueError for one that :func:`nearest_short` would change.
    """
    packed = {"shift": np.asarray(shift, np.int64) - 16, "negative": _shorten(np.zeros(len(bias)) if negative is None else negative)}
    words = np.zeros(len(bias) // 4, _WORD)
    words["bias"], words["multiplier"] = np.reshape(bias, (-1, 4)), np.reshape(multiplier, (-1, 4))
    for name, values in packed.items():
        for position, column in zip(_PACKED[name], values.astype(np.uint64).reshape(-1, 4).T):
            words["packed"] |= column << position
    return words.view(np.uint8)


def fill_parameters(bias: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Words as of :func:`encode_parameters` of any number of channels, and of further ones of multiplier 0 up to a multiple of 8."""
    fill = (0, -len(bias) % 8)
    return encode_parameters(np.pad(bias, fill), np.pad(multiplier, fill), np.pad(shift, fill, constant_values=16))


def decode_parameters(words: np.ndarray) -> "dict[str, np.ndarray]":
    """bias (int32), multiplier, shift and negative (int64), each (n, 4), of words, uint8 (n, 32); the inverse of :func:`encode_parameters`."""
    words = np.ascontiguousarray(words).view(_WORD)[:, 0]
    packed = {name: np.stack([words["packed"] >> position for position in _PACKED[name]], axis=1).astype(np.int64) for name in _PACKED}
    short = packed["negative"] & (1 << SHORT_BITS) - 1
    exponent, fraction = short >> _FRACTION, short & (1 << _FRACTION) - 1
    return {
        "bias": words["bias"], "multiplier": words["multiplier"].astype(np.int64), "shift": 16 + (packed["shift"] & 31),
        "negative": np.where(exponent == 0, fraction << 1, fraction + (1 << _FRACTION) << exponent),
    }


def parameter_arrays(bias: np.ndarray, shift: np.ndarray) -> "tuple[dict[str, np.ndarray], np.ndarray]":
    """How a 1×1 convolution of codes (C, 1, 1) and a table (256,) int8 behind it make the words of C channels whose multipliers are `CODE_UNIT` · (code + 128):
    the convolution's weight, bias, multiplier and shift, as of a `Layer`, whose output channels are the words' bytes (up to a multiple of 8 channels' words).

    A multiplier's high byte is its code with the sign bit changed, which the table does; all other bytes are constant. Weight 2, multiplier 2^15 and shift 16
    leave a code as it is.
    """
    channels, constant = len(bias), fill_parameters(bias, np.zeros(len(bias)), shift)
    sums = 2 * (constant ^ 0x80).view(np.int8).astype(np.int32)
    channel = np.arange(channels)
    high = channel // 4 * PARAMETER_BYTES + _WORD.fields["multiplier"][1] + 1 + 2 * (channel % 4)
    sums[high] = 0
    inputs = channels if channels % 8 else 4  # a word's channels, in groups, where that comes out even
    weight = np.zeros((len(constant), inputs, 1, 1), np.int8)
    weight[high, channel % inputs] = 2
    arrays = {"weight": weight, "bias": sums, "multiplier": np.full(len(constant), 1 << 15, np.uint16), "shift": np.full(len(constant), 16, np.uint8)}
    return arrays, np.arange(256).astype(np.uint8).view(np.int8)
