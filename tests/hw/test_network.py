"""What makes a network or its file inconsistent is refused in a sentence that names the layer."""

import json
from dataclasses import replace

import numpy as np
import pytest
from networks import network_of, random_codes, random_layer, random_network, random_parts, random_phases, random_scaled

from celosia.hw.network import Network, NetworkError, Part, Pool, Residual
from celosia.hw.parameters import fill_parameters
from celosia.hw.tensor_file import read_tensors, write_tensors
from celosia.sim.golden import execute


def network(**changes):
    """Two layers of equal shape, of which the second is changed."""
    rng = np.random.default_rng(0)
    first, second = (random_layer(rng, name, source, (8, 6, 6), 8, (3, 3), padding=(1, 1, 1, 1)) for name, source in (("a", "x"), ("b", "a")))
    result = network_of([first, second], (8, 6, 6), rng)
    result.layers[1] = replace(second, **changes)
    return result


@pytest.mark.parametrize(("changes", "message"), [
    ({"input": "nothing"}, "input 'nothing' is not computed before it"),
    ({"output": "a"}, "output 'a' is not described or computed twice"),
    ({"bias": np.zeros(8, np.int64)}, "bias must be int32, not int64"),
    ({"bias": np.zeros(7, np.int32)}, r"must have shape \(8,\)"),
    ({"weight": np.zeros((8, 8, 3), np.int8)}, "weight must have four dimensions, not 3"),
    ({"weight": np.full((8, 8, 3, 3), -128, np.int8)}, "weights must be in −127…127"),
    ({"groups": 2}, "with 2 groups does not fit the input's 8 channels"),
    ({"shift": np.full(8, 48, np.uint8)}, "shifts must be in 16…47"),
    ({"low": 5, "high": 4}, "clamp 5…4 is out of range"),
    ({"stride": (0, 1)}, "strides and groups must be at least 1, dilations at least 0"),
    ({"parameters": "x"}, "its parameters 'x' are not computed before it"),
    ({"padding": (1, 1, -1, 1)}, r"output shape is \(8, 6, 6\), computed \(8, 4, 6\)"),
    ({"pool": Pool(kernel=(2, 2), stride=(2, 2), padding=(2, 0, 0, 0))}, "its padding less than its kernel"),
    ({"pool": Pool(kernel=(2, 2), stride=(2, 2))}, "output shape is"),
    ({"residual": Residual(tensor="y", multiplier=1, shift=16)}, "residual 'y' is not computed before it"),
    ({"residual": Residual(tensor="a", multiplier=1, shift=-1), "shift": np.full(8, 16, np.uint8)}, "residual multiplier or shift is out of range"),
    ({"residual": Residual(tensor="a", multiplier=1, shift=7), "shift": np.full(8, 47, np.uint8)}, "residual multiplier or shift is out of range"),
    ({"bias": np.full(8, -(1 << 31), np.int32)}, "could overflow the 32-bit accumulator"),
])
def test_what_is_refused(changes, message):
    with pytest.raises(NetworkError, match=f"layer b: .*{message}"):
        network(**changes).verify()


@pytest.mark.parametrize(("seed", "tensor", "changes", "message"), [
    (0, "part1", {"within": Part(tensor="part0", channel=8)}, "tensor part1: 'part0', which it is part of, is not described or itself a part"),
    (0, "part1", {"within": Part(tensor="nothing", channel=8)}, "tensor part1: 'nothing', which it is part of, is not described"),
    (0, "part1", {"scale": 0.04}, "tensor part1: its scale and zero point are not those of 'joined'"),
    (0, "part1", {"within": Part(tensor="joined", channel=20)}, "tensor part1: does not lie in 'joined' .* or does not begin at a multiple of 8 channels"),
    (0, "part1", {"within": Part(tensor="joined", channel=40)}, r"tensor part1: does not lie in 'joined' of shape \(56, 16, 9\)"),
    (0, "part0", {"within": Part(tensor="joined", channel=24)}, "layer part1: output 'part1' is not described or computed twice"),
    (0, "first1", {"shape": (49, 16, 9)}, "layer part2: input 'first1' is not computed before it"),
    (0, "part1", {"shape": (24, 16, 8)}, "layer part1: output shape is"),
    (2, "joined", {"shape": (22, 16, 16)}, "layer part1: output 'part1' ends amid a plane of 8 channels"),
])
def test_parts_that_are_refused(seed, tensor, changes, message):
    network = random_parts(seed)
    network.tensors[tensor] = replace(network.tensors[tensor], **changes)
    with pytest.raises(NetworkError, match=message):
        network.verify()


def test_an_input_is_no_part():
    network = random_parts(0)
    network.inputs.append("part0")
    with pytest.raises(NetworkError, match="network parts: input 'part0' is part of another tensor"):
        network.verify()


def test_rows_and_columns_can_only_be_written():
    network = random_parts(0)
    network.layers[-1] = replace(network.layers[-1], input="grid[0,0]")
    with pytest.raises(NetworkError, match=r"layer y: input 'grid\[0,0\]' is not computed before it"):
        network.verify()


def scaled_network(layer, **changes):
    """A network with computed parameters, of which a layer is changed."""
    network = random_scaled(5)
    index = [each.name for each in network.layers].index(layer)
    network.layers[index] = replace(network.layers[index], **changes)
    return network


@pytest.mark.parametrize(("layer", "changes", "message"), [
    ("scaled", {"input": "a", "negative": np.zeros(24, np.uint16)}, "parameters that are computed exclude phases of columns and multipliers of negative sums"),
    ("scaled", {"bias": np.zeros(24, np.int32)}, "its parameters 'scaled.parameters' are made of other numbers than its own"),
    ("scaled", {"multiplier": np.full(24, 65279, np.uint16)}, "multipliers must be 65280, the highest that are computed"),
    ("scaled.parameters", {"low": -127}, "its parameters 'scaled.parameters' are made of other numbers than its own"),
])
def test_computed_parameters_that_are_refused(layer, changes, message):
    with pytest.raises(NetworkError, match=f"layer scaled: {message}"):
        scaled_network(layer, **changes).verify()


def test_parameters_are_made_of_numbers_that_are_not_negative():
    network = random_scaled(5)
    network.tensors["gate"] = replace(network.tensors["gate"], zero_point=-127)
    with pytest.raises(NetworkError, match="layer scaled: 'gate', of which its parameters are made, is no map of a number ≥ 0 for each channel"):
        network.verify()


@pytest.mark.parametrize("seed", range(8))
def test_computed_parameters_are_those_that_would_be_packed(seed):
    network, codes = random_scaled(seed), {}
    execute(network, [random_codes(network, 2, seed)], lambda name, values: codes.setdefault(name, values.copy()))
    [scaled] = [layer for layer in network.layers if layer.parameters]
    for image in range(2):
        multiplier = 256 * (codes["gate"][image, :, 0, 0].astype(np.int64) + 128)
        words = fill_parameters(scaled.bias, multiplier, scaled.shift)
        np.testing.assert_array_equal(codes["scaled.parameters"][image, :, 0, 0].view(np.uint8), words)


@pytest.mark.parametrize("make", [random_network, random_parts, random_phases, random_scaled])
def test_a_file_holds_the_network(tmp_path, make):
    original, path = make(6), tmp_path / "n.celq"
    original.save(path)
    codes = random_codes(original, 1, 0)
    np.testing.assert_array_equal(execute(Network.load(path), [codes])[0], execute(original, [codes])[0])


@pytest.mark.parametrize("damage", [
    lambda header: header.pop("tensors"), lambda header: header.update(layers=[7]), lambda header: header["layers"][0].update(stride=[0, 0]),
    lambda header: header["layers"][0].update(kind="new"), lambda header: header.update(output_shapes=[]),
])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "n.celq"
    random_network(6).save(path)
    header, arrays = read_tensors(path, "celq", NetworkError)
    damage(header)
    write_tensors(path, "celq", json.loads(json.dumps(header)), arrays)
    with pytest.raises(NetworkError, match=r"n\.celq: is damaged .*quantize the model again"):
        Network.load(path)
