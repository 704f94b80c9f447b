"""Random quantized networks, for compiler, devices and hardware."""

import random
from dataclasses import replace

import numpy as np

from celosia.hw.network import Layer, Lookup, Network, Part, Pool, Residual, Tensor, parameter_layer
from celosia.hw.parameters import MOST_COMPUTED, nearest_short


def random_layer(rng: np.random.Generator, name: str, source: str, shape, outputs: int, kernel, *, op="conv", extreme=False, **attributes) -> Layer:
    """A convolution on a map of `shape` whose weights, scales and clamp are random; its output is named as the layer.

    `extreme`: weights and multipliers at the ends of their ranges.
    """
    groups = attributes.get("groups", 1)
    weights = (outputs, shape[0] // groups, *kernel)
    terms = weights[1] * kernel[0] * kernel[1]
    weight = rng.choice([-127, 127], weights) if extreme else rng.integers(-127, 128, weights)
    if op == "avg_pool":
        weight = np.ones(weights, np.int64)
    ratio = rng.uniform(0.5, 2, outputs) * 40 / (128 * 60 * np.sqrt(terms))
    shift = np.floor(16 - np.log2(ratio)).astype(np.int64)
    multiplier = np.clip(np.round(ratio * 2.0**shift), 1 << 15, (1 << 16) - 1)
    low, high = sorted(rng.integers(-128, 128, 2)) if rng.random() < 0.3 else (-128, 127)
    return Layer(name=name, op=op, input=source, output=name, weight=weight.astype(np.int8), bias=rng.integers(-5000, 5000, outputs).astype(np.int32),
                 multiplier=multiplier.astype(np.uint16), shift=shift.astype(np.uint8), low=int(low), high=int(high), **attributes)


def random_function(rng: np.random.Generator, name: str, shape, kind: str) -> dict:
    """Attributes of a layer that is `kind`: "leaky", with a "lookup", both, or none."""
    result = {}
    if "leaky" in kind:
        result["negative"] = nearest_short(rng.choice([0, 2, 300, 5000, 65535], shape[0]))
    if "lookup" in kind:
        before = Tensor(name=f"{name}.before", shape=shape, scale=0.05, zero_point=int(rng.integers(-30, 30)))
        result["lookup"] = Lookup(before=before, table=rng.integers(-128, 128, 256).astype(np.int8))
    return result


def network_of(layers: list[Layer], shape, rng: np.random.Generator) -> Network:
    """A verified network of layers of which the first reads `x` of `shape`; it puts out what the last layer computes. MACs are the array's."""
    tensors = {"x": Tensor(name="x", shape=tuple(shape), scale=0.05, zero_point=int(rng.integers(-20, 20)))}
    for layer in layers:
        size = layer.output_size(*tensors[layer.input].shape[1:])
        tensors[layer.output] = Tensor(name=layer.output, shape=(layer.weight.shape[0], *size), scale=0.05, zero_point=int(rng.integers(-30, 30)))
    return Network(name="random", tensors=tensors, layers=layers, inputs=["x"], outputs=[layers[-1].output]).verify()


def random_network(seed: int, most_layers: int = 4, largest: int = 40) -> Network:
    """A chain with residuals: any kernel, stride, padding, dilation, grouping, pooling and clamp."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    first = shape = (draw.choice([1, 3, 4, 8, 16, 20]), draw.randint(1, largest), draw.randint(1, largest))
    source, layers, shapes = "x", [], {}
    count = draw.randint(1, most_layers)
    while len(layers) < count:
        channels, *size = shape
        kernel, padding = (draw.choice([1, 1, 2, 3, 3, 5, 7]), draw.choice([1, 3, 3, 5])), tuple(draw.randint(0, 3) for _ in range(4))
        stride, dilation = (draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2])), (draw.choice([1, 1, 2]), draw.choice([1, 1, 3]))
        conv = [(n + padding[axis] + padding[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1 for axis, n in enumerate(size)]
        if min(conv) < 1:
            continue
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        groups = draw.choice([1, 1, channels, draw.choice(divisors)])
        outputs = groups * draw.choice([1, 2]) if groups > 1 else draw.choice([1, 5, 8, 16, 17, 32, 50])
        summands = [name for name, other in shapes.items() if other == (outputs, *conv)]
        residual = Residual(tensor=draw.choice(summands), multiplier=draw.randint(1, 65535), shift=draw.randint(8, 16)) if summands and draw.random() < 0.8 else None
        pool = Pool(kernel=(draw.choice([2, 3]), draw.choice([2, 3])), stride=(draw.choice([1, 2, 3]), draw.choice([1, 2])),
                    padding=tuple(draw.randint(0, 1) for _ in range(4)))
        if draw.random() < 0.6 or any(n + pool.padding[axis] + pool.padding[axis + 2] < pool.kernel[axis] for axis, n in enumerate(conv)):
            pool = None
        op = "avg_pool" if groups == channels == outputs and draw.random() < 0.5 else "conv"
        function = random_function(rng, f"layer{len(layers)}", (outputs, *conv), draw.choice(["", "", "leaky", "lookup", "leaky lookup"]))
        layer = random_layer(rng, f"layer{len(layers)}", source, shape, outputs, kernel, op=op, extreme=draw.random() < 0.2, stride=stride, padding=padding,
                             dilation=dilation, groups=groups, residual=residual, pool=pool, **function)
        layers.append(layer)
        source, shape = layer.output, (outputs, *layer.output_size(*size))
        shapes[source] = shape
    return network_of(layers, first, rng)


def random_parts(seed: int, largest: int = 16) -> Network:
    """Parts and wholes: branches side by side in channels, of which later ones read earlier ones, alone or the first few together, as inputs and summands;
    channels of the input; and a map whose rows and columns several layers write, each from a part of its input. Some of them are outputs."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    height, width = draw.randint(3, largest), draw.randint(3, largest)
    tensors, layers = {}, []

    def describe(name, shape, within=None):
        scale, zero_point = (tensors[within.tensor].scale, tensors[within.tensor].zero_point) if within else (0.05, int(rng.integers(-30, 30)))
        tensors[name] = Tensor(name=name, shape=tuple(shape), scale=scale, zero_point=zero_point, within=within)
        return name

    def add(name, source, output, kernel=(1, 1), **attributes):
        layer = random_layer(rng, name, source, tensors[source].shape, tensors[output].shape[0], kernel, **attributes)
        layers.append(replace(layer, output=output))

    describe("x", (draw.choice([16, 21, 40]), height, width))
    readable = ["x", describe("x.some", (draw.choice([3, 8]), height, width), Part(tensor="x", channel=8))]
    sizes = [draw.choice([8, 8, 16, 24]) for _ in range(draw.randint(1, 3))] + [draw.choice([5, 8, 20])]
    describe("joined", (sum(sizes), height, width))
    for index, size in enumerate(sizes):
        first = sum(sizes[:index])
        part = describe(f"part{index}", (size, height, width), Part(tensor="joined", channel=first))
        summands = [name for name in readable if tensors[name].shape[0] == size]
        residual = Residual(tensor=draw.choice(summands), multiplier=draw.randint(1, 65535), shift=draw.randint(8, 16)) if summands else None
        k = draw.choice([1, 3])
        add(part, draw.choice(readable), part, (k, k), padding=(k // 2,) * 4, residual=residual)
        readable.append(part)
        if index:
            readable.append(describe(f"first{index}", (first + size, height, width), Part(tensor="joined")))
    row, column = draw.randint(1, height - 1), draw.randint(1, width - 1)
    source = draw.choice([readable[-1], readable[-1], "part0"])
    channels = tensors[source].shape[0]
    describe("grid", (channels, height, width))
    for top, rows in ((0, row), (row, height - row)):
        for left, columns in ((0, column), (column, width - column)):
            part = describe(f"grid[{top},{left}]", (channels, rows, columns), Part(tensor="grid", row=top, column=left))
            around = (-top, -left, top + rows - height, left + columns - width)
            add(part, source, part, op="avg_pool", groups=channels, padding=around)
    describe("y", (draw.choice([4, 10]), height, width))
    add("y", "grid", "y", (3, 3), padding=(1, 1, 1, 1))
    outputs = ["y", *draw.sample([*readable[2:], "joined", "grid"], draw.randint(0, 2))]
    return Network(name="parts", tensors=tensors, layers=layers, inputs=["x"], outputs=outputs).verify()


def random_phases(seed: int, largest: int = 16) -> Network:
    """A transposed convolution: for each phase of the rows a layer that interleaves the phases of the columns; and a convolution that reads it."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    channels, height, width = draw.choice([1, 8, 16, 24]), draw.randint(1, largest), draw.randint(1, largest)
    groups = draw.choice([1, 1, channels])
    outputs, row_phases, column_phases = groups * draw.choice([1, 2, 3, 20][: 2 if groups > 1 else 4]), draw.choice([1, 2, 3]), draw.choice([1, 2, 2, 3, 8])
    cropped = draw.randrange(column_phases)
    tensors = {"x": Tensor(name="x", shape=(channels, height, width), scale=0.05, zero_point=3)}
    rows, size = height * row_phases - draw.randrange(row_phases), width * column_phases - cropped
    tensors["up"] = Tensor(name="up", shape=(outputs, rows, size), scale=0.05, zero_point=-7)
    layers = []
    for phase in range(row_phases):
        count, name = -(-(rows - phase) // row_phases), f"up{phase}"
        if count == 0:
            continue
        kernel, within = (draw.choice([1, 2, 3]), draw.choice([1, 2, 3])), Part(tensor="up", row=phase, row_step=row_phases)
        tensors[name] = replace(tensors["up"], name=name, shape=(outputs, count, size), within=None if row_phases == 1 else within)
        top, left = (draw.randint(0, k - 1) for k in kernel)
        function = random_function(rng, name, (column_phases * outputs, count, width), draw.choice(["", "leaky", "lookup"]))
        layers.append(random_layer(rng, name, "x", tensors["x"].shape, column_phases * outputs, kernel, groups=groups, column_phases=column_phases,
                                   cropped=cropped, padding=(top, left, count - height + kernel[0] - 1 - top, kernel[1] - 1 - left), **function))
    source = "up" if row_phases > 1 else "up0"
    tensors["y"] = Tensor(name="y", shape=(5, rows, size), scale=0.05, zero_point=0)
    layers.append(replace(random_layer(rng, "y", source, tensors[source].shape, 5, (3, 3), padding=(1, 1, 1, 1)), output="y"))
    return Network(name="phases", tensors=tensors, layers=layers, inputs=["x"], outputs=["y", source]).verify()


def random_scaled(seed: int, largest: int = 16) -> Network:
    """A map scaled by what is made of it, a value for each channel and image, perhaps added to itself; and a convolution that reads it."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    shape = (draw.choice([1, 8, 12, 16, 24, 40, 72]), draw.randint(1, largest), draw.randint(1, largest))
    tensors = {"x": Tensor(name="x", shape=(3, *shape[1:]), scale=0.05, zero_point=3)}
    for name, size, zero_point in (("a", shape, -9), ("gate", (shape[0], 1, 1), -128), ("scaled", shape, 20), ("y", (5, *shape[1:]), 0)):
        tensors[name] = Tensor(name=name, shape=size, scale=0.05, zero_point=zero_point)
    residual = Residual(tensor="a", multiplier=draw.randint(1, 65535), shift=draw.randint(8, 16)) if draw.random() < 0.5 else None
    scaled = random_layer(rng, "scaled", "a", shape, shape[0], (1, 4), op="mul", groups=shape[0], dilation=(1, 0), residual=residual, parameters="scaled.parameters")
    scaled = replace(scaled, multiplier=np.full(shape[0], MOST_COMPUTED, np.uint16))
    maker, tensors["scaled.parameters"] = parameter_layer(scaled, tensors["gate"])
    layers = [random_layer(rng, "a", "x", tensors["x"].shape, shape[0], (3, 3), padding=(1, 1, 1, 1)),
              random_layer(rng, "gate", "a", shape, shape[0], shape[1:], groups=shape[0]), maker, scaled,
              random_layer(rng, "y", "scaled", shape, 5, (1, 1))]
    return Network(name="scaled", tensors=tensors, layers=layers, inputs=["x"], outputs=draw.choice([["y"], ["y", "scaled"]])).verify()


def random_codes(network: Network, batch: int, seed: int) -> np.ndarray:
    """Input codes, int8 (N, C, H, W), extremes among them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (batch, *network.tensors["x"].shape))
    return np.where(rng.random(codes.shape) < 0.1, rng.choice([-128, 127], codes.shape), codes).astype(np.int8)
