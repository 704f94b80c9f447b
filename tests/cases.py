"""Networks described in few words: values by name and seed, not by the byte. The repr of a case is the code that makes it again."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from celosia.hw.network import Layer, Lookup, Network, Pool, Residual, Tensor, parameter_layer
from celosia.hw.parameters import MOST_COMPUTED, nearest_short

__all__ = ["BIASES", "CODES", "SCALES", "SHIFTS", "SLOPES", "TABLES", "WEIGHTS", "Case", "Input", "LayerCase", "Summand"]

#: Each takes a generator and the shape, and gives weights in −127…127.
WEIGHTS = {
    "one": lambda rng, shape: np.ones(shape, np.int64),
    "random": lambda rng, shape: rng.integers(-127, 128, shape),
    "sparse": lambda rng, shape: rng.integers(-127, 128, shape) * (rng.random(shape) < 0.1),
    "ends": lambda rng, shape: rng.choice([-127, 127], shape),
    "lowest": lambda rng, shape: np.full(shape, -127),
    "highest": lambda rng, shape: np.full(shape, 127),
}
#: Each takes a generator and the largest magnitude with which no input overflows a sum, per channel.
BIASES = {
    "zero": lambda rng, most: np.zeros_like(most),
    "random": lambda rng, most: np.clip(rng.integers(-5000, 5001, most.shape), -most, most),
    "ends": lambda rng, most: rng.choice([-1, 1], most.shape) * most,
    "lowest": lambda rng, most: -most,
    "highest": lambda rng, most: most,
}
#: Each takes a generator and the magnitude of a channel's sums, and gives multipliers and shifts. "fitting" spreads the sums over the codes.
SCALES = {
    "fitting": lambda rng, sums: _normalise(100 / sums * 2.0 ** rng.uniform(-1, 1, sums.shape)),
    "random": lambda rng, sums: (_ends_among(rng, sums.shape, 0, (1 << 16) - 1), _ends_among(rng, sums.shape, 16, 47)),
    "smallest": lambda rng, sums: (np.full(sums.shape, 1 << 15), np.full(sums.shape, 47)),
    "largest": lambda rng, sums: (np.full(sums.shape, (1 << 16) - 1), np.full(sums.shape, 16)),
}
#: Each takes a generator and the multipliers, and gives those of negative sums.
SLOPES = {
    "small": lambda rng, multiplier: multiplier * 0.01,
    "random": lambda rng, multiplier: rng.integers(0, 1 << 16, multiplier.shape) >> rng.integers(0, 16, multiplier.shape),
    "steepest": lambda rng, multiplier: np.full(multiplier.shape, (1 << 16) - 1),
}
#: Each takes a generator, and gives a function of the 256 codes.
TABLES = {
    "rising": lambda rng: np.arange(-128, 128) // 2,
    "random": lambda rng: rng.integers(-128, 128, 256),
}
#: Each takes the lowest and the highest shift a summand may have, and the one at which it counts as a code.
SHIFTS = {
    "fitting": lambda low, high, whole: min(max(whole, low), high),
    "lowest": lambda low, high, whole: low,
    "highest": lambda low, high, whole: high,
}
#: Each takes a generator, a shape and the zero point.
CODES = {
    "random": lambda rng, shape, zero: _ends_among(rng, shape, -128, 127),
    "ends": lambda rng, shape, zero: rng.choice([-128, 127], shape),
    "lowest": lambda rng, shape, zero: np.full(shape, -128),
    "highest": lambda rng, shape, zero: np.full(shape, 127),
    "zero point": lambda rng, shape, zero: np.full(shape, zero),
}


def _ends_among(rng, shape, low, high):
    """Integers in low…high, the ends as a fifth of them."""
    return np.where(rng.random(shape) < 0.2, rng.choice([low, high], shape), rng.integers(low, high + 1, shape))


def _normalise(ratio):
    """16-bit multipliers and shifts in 16…47 whose quotients come closest to `ratio`."""
    shift = np.clip(np.floor(16 - np.log2(ratio)), 16, 47).astype(np.int64)
    return np.clip(np.round(ratio * 2.0**shift), 1, (1 << 16) - 1).astype(np.int64), shift


class _Code:
    """The repr of a dataclass without the fields that have their default value."""

    def __repr__(self):
        values = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values)})"

    def _repr_pretty_(self, printer, cycle):
        """As hypothesis prints it."""
        printer.text(repr(self))


@dataclass(frozen=True, kw_only=True, repr=False)
class Input(_Code):
    """An input of the network: channels, height, width."""

    shape: tuple[int, int, int]
    zero_point: int = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class Summand(_Code):
    """A residual: the map's name, the multiplier, and a name in `SHIFTS`."""

    map: str
    multiplier: int = 1 << 15
    shift: str = "fitting"


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerCase(_Code):
    """A layer but for its values, of which `weight`, `bias` and `scale` are names in the tables above. `zero_point` is its output's."""

    source: str
    outputs: int
    op: str = "conv"
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight: str = "random"
    bias: str = "zero"
    scale: str = "fitting"
    zero_point: int = 0
    low: int = -128
    high: int = 127
    #: Names in `SLOPES` and `TABLES`.
    slopes: str | None = None
    table: str | None = None
    column_phases: int = 1
    cropped: int = 0
    summand: Summand | None = None
    pool: Pool | None = None
    #: The map (outputs, 1, 1), of zero point −128, that the outputs are multiplied by.
    factors: str | None = None

    def layer(self, name: str, input_shape: tuple[int, int, int], rng: np.random.Generator) -> Layer:
        """The layer for an input of a shape; its output is named as itself."""
        shape = (self.outputs * self.column_phases, input_shape[0] // self.groups, *self.kernel)
        weight = WEIGHTS[self.weight](rng, shape)
        magnitude = np.abs(weight).sum(axis=(1, 2, 3))
        bias = BIASES[self.bias](rng, (1 << 31) - 1 - 128 * magnitude)
        sums = np.abs(bias) + 60 * np.sqrt((weight.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
        multiplier, shift = SCALES[self.scale](rng, np.maximum(sums, 1))
        residual = None
        if self.summand:
            low, high = max(int(shift.max()) - 39, 0), int(shift.min())
            whole = self.summand.multiplier.bit_length()
            residual = Residual(tensor=self.summand.map, multiplier=self.summand.multiplier, shift=SHIFTS[self.summand.shift](low, high, whole))
        layer = Layer(name=name, op=self.op, input=self.source, output=name, weight=weight.astype(np.int8), bias=bias.astype(np.int32),
                      multiplier=multiplier.astype(np.uint16), shift=shift.astype(np.uint8), stride=self.stride, padding=self.padding, dilation=self.dilation,
                      groups=self.groups, column_phases=self.column_phases, cropped=self.cropped, low=self.low, high=self.high, residual=residual, pool=self.pool)
        if self.factors:
            layer = dataclasses.replace(layer, multiplier=np.full(len(weight), MOST_COMPUTED, np.uint16), parameters=f"{name}.parameters")
        if self.slopes:
            layer = dataclasses.replace(layer, negative=nearest_short(SLOPES[self.slopes](rng, multiplier)))
        if self.table:
            before = Tensor(name=f"{name}.before", shape=(len(weight), *layer.conv_size(*input_shape[1:])), scale=0.05, zero_point=self.zero_point)
            layer = dataclasses.replace(layer, lookup=Lookup(before=before, table=TABLES[self.table](rng).astype(np.int8)))
        return layer


@dataclass(frozen=True, kw_only=True, repr=False)
class Case(_Code):
    """A network, its batch, its input's codes (a name in `CODES`) and the memory it meets. Inputs are called x0, x1, …, layers and their outputs y0, y1, …"""

    inputs: tuple[Input, ...]
    layers: tuple[LayerCase, ...]
    outputs: tuple[str, ...] = ("y0",)
    batch: int = 1
    codes: str = "random"
    memory: str = "sdram"
    seed: int = 0

    def network(self) -> Network:
        """The network, verified."""
        tensors = {name: Tensor(name=name, shape=given.shape, scale=0.05, zero_point=given.zero_point) for name, given in self._named_inputs()}
        layers = []
        for index, described in enumerate(self.layers):
            shape = tensors[described.source].shape
            layer = described.layer(f"y{index}", shape, np.random.default_rng([self.seed, index]))
            if described.factors:
                maker, words = parameter_layer(layer, tensors[described.factors])
                layers.append(maker)
                tensors[words.name] = words
            layers.append(layer)
            size = layer.output_size(*shape[1:])
            tensors[layer.output] = Tensor(name=layer.output, shape=(described.outputs, *size), scale=0.05, zero_point=described.zero_point)
        return Network(name="random", tensors=tensors, layers=layers, inputs=[name for name, _ in self._named_inputs()], outputs=list(self.outputs)).verify()

    def input_codes(self) -> list[np.ndarray]:
        """Codes of the inputs, int8 (N, C, H, W)."""
        rng = np.random.default_rng(self.seed)
        return [CODES[self.codes](rng, (self.batch, *given.shape), given.zero_point).astype(np.int8) for given in self.inputs]

    def _named_inputs(self):
        return [(f"x{index}", given) for index, given in enumerate(self.inputs)]
