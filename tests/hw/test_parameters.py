"""Parameter words: what is encoded is what the gateware's struct says, and comes back."""

import numpy as np
import pytest

from celosia.hw.parameters import PARAMETER_BYTES, SHORT_BITS, Parameters, decode_parameters, encode_parameters, nearest_short


def test_encoding_is_the_struct_and_decoding_its_inverse():
    rng = np.random.default_rng(1)
    values = {"bias": rng.integers(-(1 << 31), 1 << 31, 256), "multiplier": rng.integers(0, 1 << 16, 256), "shift": rng.integers(16, 48, 256),
              "negative": nearest_short(rng.integers(0, 1 << 16, 256) >> rng.integers(0, 16, 256))}
    words = encode_parameters(*values.values()).reshape(-1, PARAMETER_BYTES)
    for name, decoded in decode_parameters(words).items():
        np.testing.assert_array_equal(decoded.reshape(-1), values[name], err_msg=name)
    for index, word in enumerate(words):
        struct = Parameters.from_bits(int.from_bytes(word.tobytes(), "little"))
        for k in range(4):
            short = struct.negative[k]
            negative = short << 1 if short < 256 else (256 + short % 256) << (short >> 8)
            expected = tuple(values[name][4 * index + k] for name in ("multiplier", "shift", "negative"))
            assert (struct.bias[k], (struct.multiplier[k], struct.shift[k] + 16, negative)) == (values["bias"][4 * index + k] % (1 << 32), expected)


def test_short_multipliers_are_close():
    words = np.arange(1 << SHORT_BITS, dtype=np.uint64)
    short = decode_parameters(np.stack([np.zeros_like(words)] * 3 + [words << np.uint64(20)], axis=1).view(np.uint8))["negative"][:, 0]
    assert short[0] == 0 and short[-1] == 511 << 7 and (np.diff(short) > 0).all()
    values = np.linspace(0, 65535, 100_003)
    nearest = nearest_short(values).astype(np.int64)
    closest = short[np.abs(short[None] - values[::97, None]).argmin(axis=1)]
    np.testing.assert_array_equal(np.abs(nearest[::97] - values[::97]), np.abs(closest - values[::97]))
    assert np.abs(nearest - values)[(values >= 512) & (values <= 65408)].max() < 65536 / 1024 and np.abs(nearest - values)[values < 512].max() <= 1


def test_multipliers_without_a_short_form_are_refused():
    for value in (1, 513, 65535, -2):
        with pytest.raises(ValueError, match="has no short form"):
            encode_parameters(np.zeros(4), np.zeros(4), np.full(4, 16), np.full(4, value))
