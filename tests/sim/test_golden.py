"""The definition against PyTorch's convolution in float64 and against whole numbers of Python."""

import numpy as np
import pytest
from networks import network_of, random_codes, random_layer, random_network, random_parts

from celosia.hw.network import Pool, Tensor
from celosia.sim import golden

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("seed", range(30))
def test_convolution_equals_torch(seed):
    network = random_network(seed, most_layers=1)
    layer, codes, zero_point = network.layers[0], random_codes(network, 2, seed), network.tensors["x"].zero_point
    top, left, bottom, right = layer.padding
    padded = torch.nn.functional.pad(torch.tensor(codes, dtype=torch.float64), (left, right, top, bottom), value=zero_point)
    expected = torch.nn.functional.conv2d(padded, torch.tensor(layer.weight, dtype=torch.float64), torch.tensor(layer.bias, dtype=torch.float64),
                                          layer.stride, 0, layer.dilation, layer.groups)
    np.testing.assert_array_equal(golden.convolve(codes, layer, zero_point), expected.numpy().astype(np.int64))


def test_long_sums_are_exact():
    rng = np.random.default_rng(0)
    layer = random_layer(rng, "a", "x", (2048, 1, 1), 3, (1, 1), extreme=True)
    network = network_of([layer], (2048, 1, 1), rng)
    codes = np.where(layer.weight[0] > 0, 127, -128).astype(np.int8)[None]
    exact = layer.bias.astype(np.int64) + (layer.weight[:, :, 0, 0].astype(np.int64) * codes[0, :, 0, 0]).sum(axis=1)
    np.testing.assert_array_equal(golden.convolve(codes, layer, network.tensors["x"].zero_point)[0, :, 0, 0], exact)


def requantize_in_whole_numbers(acc, multiplier, shift, zero_point, low, high, r_term):
    return max(low, min(high, zero_point + (acc * multiplier + r_term + (1 << shift - 1) >> shift)))


def test_requantization_equals_whole_numbers():
    rng = np.random.default_rng(1)
    for _ in range(20000):
        acc = int(rng.choice([rng.integers(-(1 << 31), 1 << 31), rng.integers(-5000, 5000), -(1 << 31), (1 << 31) - 1]))
        multiplier, shift = int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(16, 48))
        zero_point, r = int(rng.integers(-128, 128)), int(rng.integers(-128, 128))
        low, high = sorted(int(v) for v in rng.integers(-128, 128, 2))
        residual_shift = int(rng.integers(max(shift - 39, 0), shift + 1))
        r_term = (r - 5) * multiplier << shift - residual_shift
        got_term = golden.residual_term(np.array([r], np.int8), 5, multiplier, residual_shift, np.array([shift]))
        assert int(got_term[0]) == r_term
        got = golden.requantize(np.array([acc], np.int32), np.array([multiplier]), np.array([shift]), zero_point, low, high, got_term)
        assert int(got[0]) == requantize_in_whole_numbers(acc, multiplier, shift, zero_point, low, high, r_term)


def test_halves_round_up():
    got = golden.requantize(np.array([-3, -1, 1, 3], np.int32), np.array([1 << 15]), np.array([16]), 0, -128, 127)
    assert got.tolist() == [-1, 0, 1, 2]


def test_phases_are_columns_apart():
    codes = np.arange(2 * 6 * 3 * 4).reshape(2, 6, 3, 4).astype(np.int8)
    columns = golden.interleave(codes, 3)
    assert columns.shape == (2, 2, 3, 12)
    for phase in range(3):
        np.testing.assert_array_equal(columns[..., phase::3], codes[:, 2 * phase : 2 * phase + 2])


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_slices_of_their_whole(seed):
    network, values = random_parts(seed), {"x": random_codes(random_parts(seed), 2, seed)}
    values["x.some"] = values["x"][:, 8 : 8 + network.tensors["x.some"].shape[0]]
    seen = {}
    outputs = golden.execute(network, [values["x"]], lambda name, codes: seen.setdefault(name, codes.copy()))
    for layer in network.layers:
        values[layer.output] = golden.layer(layer, network, values[layer.input], values[layer.residual.tensor] if layer.residual else None)
        np.testing.assert_array_equal(seen[layer.output], values[layer.output])
        parts = [values[name] for name in network.tensors if name.startswith("part") and name in values]
        values["joined"] = values[f"first{len(parts) - 1}"] = np.concatenate(parts, axis=1)
        grid = [values[name] for name in network.tensors if name.startswith("grid[") and name in values]
        if len(grid) == 4:
            values["grid"] = np.concatenate([np.concatenate(grid[:2], axis=3), np.concatenate(grid[2:], axis=3)], axis=2)
    for name, codes in zip(network.outputs, outputs):
        np.testing.assert_array_equal(codes, values[name])


@pytest.mark.parametrize("pool", [Pool(kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1)), Pool(kernel=(2, 2), stride=(2, 2)), Pool(kernel=(3, 2), stride=(1, 2))])
def test_max_pooling_equals_torch(pool):
    codes = np.random.default_rng(2).integers(-128, 128, (2, 5, 13, 14)).astype(np.int8)
    expected = torch.nn.functional.max_pool2d(torch.tensor(codes, dtype=torch.float32), pool.kernel, pool.stride, pool.padding[:2] if pool.padding[0] else 0)
    np.testing.assert_array_equal(golden.max_pool(codes, pool), expected.numpy().astype(np.int8))


def test_codes_and_reals():
    tensor = Tensor(name="x", shape=(1, 1, 5), scale=0.5, zero_point=-3)
    codes = golden.quantize(np.array([0.0, 0.25, 0.75, 1000, -1000]), tensor)
    assert codes.tolist() == [-3, -3, -1, 127, -128], "halves go to the even code"
    np.testing.assert_array_equal(golden.dequantize(codes[:3], tensor), np.array([0, 0, 1], np.float32))
    with pytest.raises(ValueError, match="input x: contains NaN"):
        golden.quantize(np.array([np.nan]), tensor)
