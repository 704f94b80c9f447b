"""The quantized network: integer tensors and layers, the one input of compiler and golden model.

There is a single kind of layer, because the engine has a single data path. Everything else is lowered to it:
a linear layer is a convolution whose kernel covers the map; average pooling and per-channel affine are depthwise convolutions;
max pooling alone is an identity convolution with `pool`; a residual add alone is an identity convolution with `residual`.

Concatenating maps, and taking some channels of one, is no layer: those tensors lie within another (`Tensor.within`).
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from .config import PLANE
from .parameters import MOST_COMPUTED, nearest_short, parameter_arrays
from .tensor_file import read_tensors, write_tensors

__all__ = ["MOST_PHASES", "MOST_TAPS", "Layer", "Lookup", "Network", "NetworkError", "Part", "Pool", "Residual", "Tensor", "parameter_layer"]

#: Phases of columns that a layer interleaves.
MOST_PHASES = 8
#: Rows or columns of a kernel.
MOST_TAPS = 32


class NetworkError(ValueError):
    """A network that is inconsistent, or a file that holds none."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The place of a tensor inside another, its whole, which has the same scale and zero point: where its first element is.

    The channel is a multiple of 8. Layers may write any rows and columns of a whole, but read all of them only, of any channels.
    """

    tensor: str
    channel: int = 0
    row: int = 0
    column: int = 0
    #: Rows of the whole from one row of the part to the next: 2 are every second row.
    row_step: int = 1


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An int8 feature map per image; `real = scale · (code − zero_point)`."""

    name: str
    #: Channels, height, width.
    shape: tuple[int, int, int]
    scale: float
    zero_point: int
    #: The whole it is part of; that is part of none.
    within: Part | None = None

    @property
    def planes(self) -> int:
        """Planes of eight channels in memory."""
        return -(-self.shape[0] // PLANE)


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A map added before the only rounding: r_term[c] = (r − zero_point) · multiplier << (shift[c] − self.shift)."""

    tensor: str
    multiplier: int  # 16 bit, unsigned
    shift: int


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Max pooling of the requantized codes; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    #: Top, left, bottom, right.
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup:
    """A pointwise function of codes: code c of the map `before`, which is nowhere in memory, becomes table[c + 128]."""

    before: Tensor
    #: int8, (256,).
    table: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """acc = bias + weight ∗ x;  y = clamp(zp + ((acc · m + r_term + 2^(shift−1)) >> shift), low, high);  y = pool(lookup(y)).

    `x` are the input's codes (padding counts as its zero point), `bias` contains −zero_point_x · Σ weight, m is `multiplier`, or `negative` (if there is one)
    where acc < 0, `zp` is the zero point of the output, or of `lookup.before`.

    With `column_phases` P > 1, the convolution has P times the output's channels: those of phase p, channels p · C … p · C + C − 1, become the output's columns
    p, p + P, p + 2P, …, of which the last `cropped` are left out. So a transposed convolution is one layer for each phase of its rows.

    With `parameters`, multipliers differ from image to image: a layer before this one makes their words (:func:`parameter_layer`). So a map is scaled by another.
    """

    name: str
    #: What the layer is to its author: conv, conv_transpose, linear, affine, max_pool, avg_pool, upsample, add, mul, activation, pad, concat, copy, slice; or
    #: parameters, of a mul.
    op: str
    input: str
    output: str
    #: int8, (output channels, input channels / groups, kernel height, kernel width), in −127…127.
    weight: np.ndarray
    #: int32, (output channels,).
    bias: np.ndarray
    #: uint16, (output channels,).
    multiplier: np.ndarray
    #: uint8, (output channels,), in 16…47.
    shift: np.ndarray
    stride: tuple[int, int] = (1, 1)
    #: Top, left, bottom, right; negative: so many rows or columns of the input are left out.
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    #: 0: all taps meet the same element, so that they are one weight of more bits.
    dilation: tuple[int, int] = (1, 1)
    #: Of each phase's channels.
    groups: int = 1
    column_phases: int = 1
    cropped: int = 0
    low: int = -128
    high: int = 127
    #: uint16, (output channels,), with a short form (`hw.parameters`): leaky and parametric ReLU.
    negative: np.ndarray | None = None
    lookup: Lookup | None = None
    residual: Residual | None = None
    pool: Pool | None = None
    #: The tensor whose codes are the parameter words, with this layer's `bias` and `shift`; `multiplier` is the highest of theirs.
    parameters: str | None = None
    #: MACs the author's operation has per image: of convolutions, linear and affine layers; 0 for others, whatever the array does for them.
    macs: int = 0

    @property
    def reads(self) -> list[str]:
        """The tensors it reads: input, summand, parameters."""
        return [name for name in (self.input, self.residual and self.residual.tensor, self.parameters) if name]

    def conv_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the convolution's output, before pooling, for an input of `height` × `width`."""
        top, left, bottom, right = self.padding
        kernel = self.weight.shape[2:]
        return tuple(_windows(size + pad, k, s, d) for size, pad, k, s, d in zip((height, width), (top + bottom, left + right), kernel, self.stride, self.dilation))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the layer's output, its phases interleaved, after pooling."""
        size = self.conv_size(height, width)
        if self.pool is None:
            return (size[0], size[1] * self.column_phases - self.cropped)
        top, left, bottom, right = self.pool.padding
        return tuple(_windows(n + pad, k, s, 1) for n, pad, k, s in zip(size, (top + bottom, left + right), self.pool.kernel, self.pool.stride))


def _windows(size, kernel, stride, dilation):
    return (size - dilation * (kernel - 1) - 1) // stride + 1


def parameter_layer(layer: Layer, codes: Tensor) -> "tuple[Layer, Tensor]":
    """The layer that makes the parameter words of a layer, and their tensor: the multiplier of channel c is 256 · (code + 128) of channel c of `codes`, (C, 1, 1)."""
    arrays, table = parameter_arrays(layer.bias, layer.shift)
    words = Tensor(name=layer.parameters, shape=(len(arrays["weight"]), 1, 1), scale=1.0, zero_point=0)
    before = Tensor(name=f"{words.name}.before", shape=words.shape, scale=1.0, zero_point=0)
    return Layer(name=words.name, op="parameters", input=codes.name, output=words.name, **arrays, groups=codes.shape[0] // arrays["weight"].shape[1],
                 lookup=Lookup(before=before, table=table)), words


def _equal(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and np.array_equal(one, other)


class _Known:
    """Which elements of a network's tensors have been computed."""

    def __init__(self, network):
        self._network, self._written = network, {}

    def add(self, name):
        self._elements(name)[:] = True

    def free(self, name):
        """Whether none of a tensor has been computed."""
        return not self._elements(name).any()

    def written(self, name):
        """Whether all of a tensor has been computed."""
        return name in self._network.tensors and bool(self._elements(name).all())

    def __contains__(self, name):
        """Whether a layer can read a tensor: it has been computed, and it has all rows and columns of its whole."""
        tensors = self._network.tensors
        return self.written(name) and tensors[name].shape[1:] == tensors[self._network.part(name).tensor].shape[1:]

    def _elements(self, name):
        whole = self._network.part(name).tensor
        if whole not in self._written:
            self._written[whole] = np.zeros(self._network.tensors[whole].shape, bool)
        return self._written[whole][self._network.region(name)]


_ARRAYS = ("weight", "bias", "multiplier", "shift")


@dataclass(kw_only=True)
class Network:
    """Tensors by name, layers in order of execution, and the names of the network's inputs and outputs."""

    name: str
    tensors: dict[str, Tensor]
    layers: list[Layer]
    inputs: list[str]
    outputs: list[str]
    #: Names of the classes of a classifier's output, if known.
    classes: list[str] = field(default_factory=list)
    #: How a photograph becomes the input: {"size": [H, W], "mean": [...], "std": [...]}; empty if unknown. "crop", the share of the shorter side
    #: that is used (without it 1), and "resample", bilinear (without it) or bicubic, say how it is scaled.
    preprocess: dict = field(default_factory=dict)
    #: Output name → shape the caller sees per image, where it is not (C, H, W), e.g. (C,) after a flatten.
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: The batch size an exported model insists on, or None.
    batch: int | None = None

    @property
    def macs(self) -> int:
        """MACs per image."""
        return sum(layer.macs for layer in self.layers)

    def part(self, name: str) -> Part:
        """Where a tensor lies: within its whole, or at the beginning of itself."""
        return self.tensors[name].within or Part(tensor=name)

    def maker(self, name: str) -> Layer | None:
        """The layer whose output a tensor is; None: it is an input, or made of parts."""
        return next((layer for layer in self.layers if layer.output == name), None)

    def region(self, name: str) -> "tuple[slice, slice, slice]":
        """The channels, rows and columns that a tensor is of its whole."""
        part = self.part(name)
        channels, rows, columns = self.tensors[name].shape
        return (slice(part.channel, part.channel + channels), slice(part.row, part.row + (rows - 1) * part.row_step + 1, part.row_step),
                slice(part.column, part.column + columns))

    def verify(self) -> "Network":
        """Check that names, shapes, dtypes and ranges agree; returns self. Raises :exc:`NetworkError` naming the layer."""
        for name in [*self.inputs, *self.outputs]:
            if name not in self.tensors:
                raise NetworkError(f"network {self.name}: tensor {name!r} is not described")
        if self.batch is not None and not (isinstance(self.batch, int) and self.batch >= 1):
            raise NetworkError(f"network {self.name}: batch must be a whole number or None, not {self.batch!r}")
        for tensor in self.tensors.values():
            self._verify_tensor(tensor)
            if tensor.within:
                self._verify_part(tensor)
        known = _Known(self)
        for name in self.inputs:
            if self.tensors[name].within:
                raise NetworkError(f"network {self.name}: input {name!r} is part of another tensor")
            known.add(name)
        for layer in self.layers:
            self._verify_layer(layer, known)
            known.add(layer.output)
        if missing := [name for name in self.outputs if not known.written(name)]:
            raise NetworkError(f"network {self.name}: output {missing[0]!r} is computed by no layer")
        return self

    @staticmethod
    def _verify_tensor(tensor):
        if not (np.isfinite(tensor.scale) and tensor.scale > 0 and -128 <= tensor.zero_point <= 127):
            raise NetworkError(f"tensor {tensor.name}: scale {tensor.scale} or zero point {tensor.zero_point} is out of range")

    def _verify_part(self, tensor):
        whole = self.tensors.get(tensor.within.tensor)
        if whole is None or whole.within:
            raise NetworkError(f"tensor {tensor.name}: {tensor.within.tensor!r}, which it is part of, is not described or itself a part")
        if (tensor.scale, tensor.zero_point) != (whole.scale, whole.zero_point):
            raise NetworkError(f"tensor {tensor.name}: its scale and zero point are not those of {whole.name!r}, which it is part of")
        if tensor.within.channel % PLANE or tensor.within.row_step < 1 or any(s.start < 0 or s.stop > size for s, size in zip(self.region(tensor.name), whole.shape)):
            raise NetworkError(f"tensor {tensor.name}: does not lie in {whole.name!r} of shape {whole.shape}, or does not begin at a multiple of {PLANE} channels")

    def _verify_layer(self, layer, known):
        def check(condition, problem):
            if not condition:
                raise NetworkError(f"layer {layer.name}: {problem}")

        check(layer.input in known, f"input {layer.input!r} is not computed before it")
        check(layer.output in self.tensors and known.free(layer.output), f"output {layer.output!r} is not described or computed twice")
        for name, dtype in zip(_ARRAYS, (np.int8, np.int32, np.uint16, np.uint8)):
            check(getattr(layer, name).dtype == dtype, f"{name} must be {np.dtype(dtype)}, not {getattr(layer, name).dtype}")
        x, y = self.tensors[layer.input], self.tensors[layer.output]
        check(layer.weight.ndim == 4, f"weight must have four dimensions, not {layer.weight.ndim}")
        check(min(*layer.stride, layer.groups) >= 1 and min(layer.dilation) >= 0, "strides and groups must be at least 1, dilations at least 0")
        if layer.pool:
            (top, left, bottom, right), (height, width) = layer.pool.padding, layer.pool.kernel
            check(min(layer.pool.stride) >= 1 and 0 <= min(top, left, bottom, right) and max(top, bottom) < height and max(left, right) < width,
                  "pooling strides must be at least 1, its padding less than its kernel")
        channels, inputs = layer.weight.shape[:2]
        check(1 <= layer.column_phases <= MOST_PHASES and channels % layer.column_phases == 0 and 0 <= layer.cropped < layer.column_phases,
              f"{channels} channels, {layer.column_phases} phases of columns and {layer.cropped} cropped do not go together")
        check(layer.column_phases == 1 or not (layer.pool or layer.residual), "phases of columns exclude pooling and residual")
        outputs = channels // layer.column_phases
        check(inputs * layer.groups == x.shape[0] and outputs % layer.groups == 0,
              f"weight {layer.weight.shape} with {layer.groups} groups does not fit the input's {x.shape[0]} channels")
        check(all(getattr(layer, name).shape == (channels,) for name in _ARRAYS[1:]), f"bias, multiplier and shift must have shape ({channels},)")
        check(y.shape == (outputs, *layer.output_size(*x.shape[1:])), f"output shape is {y.shape}, computed {(outputs, *layer.output_size(*x.shape[1:]))}")
        check(min(y.shape) > 0, f"output shape {y.shape} is empty")
        end = self.region(y.name)[0].stop
        check(end % PLANE == 0 or end == self.tensors[self.part(y.name).tensor].shape[0], f"output {y.name!r} ends amid a plane of {PLANE} channels")
        check(int(layer.weight.min(initial=0)) >= -127, "weights must be in −127…127")
        check(16 <= int(layer.shift.min()) and int(layer.shift.max()) <= 47, "shifts must be in 16…47")
        check(-128 <= layer.low <= layer.high <= 127, f"clamp {layer.low}…{layer.high} is out of range")
        if layer.negative is not None:
            check(layer.negative.dtype == np.uint16 and layer.negative.shape == (channels,), f"negative must be uint16 ({channels},)")
            check(np.array_equal(nearest_short(layer.negative), layer.negative), "a multiplier of negative sums has no short form")
        if layer.lookup:
            check(layer.lookup.table.dtype == np.int8 and layer.lookup.table.shape == (256,), "a table must be int8 (256,)")
            check(layer.lookup.before.shape == (channels, *layer.conv_size(*x.shape[1:])), "the map before the table and the convolution differ in shape")
            self._verify_tensor(layer.lookup.before)
        if layer.residual:
            check(layer.residual.tensor in known, f"residual {layer.residual.tensor!r} is not computed before it")
            check(self.tensors[layer.residual.tensor].shape == (channels, *layer.conv_size(*x.shape[1:])), "residual and convolution differ in shape")
            # The sum must stay within the requantizer's 64 bits.
            fits = 0 <= layer.residual.multiplier < 1 << 16 and max(int(layer.shift.max()) - 39, 0) <= layer.residual.shift <= int(layer.shift.min())
            check(fits, "residual multiplier or shift is out of range")
        if layer.parameters:
            self._verify_parameters(layer, known, check)
        # Σ|w|·128 + |bias| bounds every partial sum: padding and codes lie in −128…127.
        weight = np.abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3))
        worst = int((weight * 128 + np.abs(layer.bias.astype(np.int64))).max())
        check(worst < 1 << 31, f"an input could overflow the 32-bit accumulator (worst case {worst})")

    def _verify_parameters(self, layer, known, check):
        maker, channels = self.maker(layer.parameters), len(layer.weight)
        check(maker is not None and layer.parameters in known, f"its parameters {layer.parameters!r} are not computed before it")
        check(layer.column_phases == 1 and layer.negative is None, "parameters that are computed exclude phases of columns and multipliers of negative sums")
        check((layer.multiplier == MOST_COMPUTED).all(), f"multipliers must be {MOST_COMPUTED}, the highest that are computed")
        codes = self.tensors[maker.input]
        check(codes.shape == (channels, 1, 1) and codes.zero_point == -128,
              f"{codes.name!r}, of which its parameters are made, is no map of a number ≥ 0 for each channel")
        expected, words = parameter_layer(layer, codes)
        check(_equal(asdict(maker), asdict(expected)) and self.tensors[maker.output] == words,
              f"its parameters {layer.parameters!r} are made of other numbers than its own")

    def split(self, index: int) -> "tuple[Network, Network | None]":
        """The network of the first `index` layers, which puts out what is left to compute with, and that of the rest, with the whole network's outputs, or None.

        Raises :exc:`NetworkError` if a tensor between them is a part of another or consists of parts.
        """
        if index == len(self.layers):
            return self, None
        first, rest = self.layers[:index], self.layers[index:]
        known = {*self.inputs, *(layer.output for layer in first)}
        between = list(dict.fromkeys(name for name in [*(name for layer in rest for name in layer.reads), *self.outputs] if name in known))
        wholes = {tensor.within.tensor for tensor in self.tensors.values() if tensor.within}
        if split := [name for name in between if self.tensors[name].within or name in wholes]:
            raise NetworkError(f"network {self.name}: cannot be split after {index} layers: tensor {split[0]!r} shares its memory with others")

        def part(layers, inputs, **fields):
            used = {name for layer in layers for name in (*layer.reads, layer.output)} | {*inputs}
            used |= {self.part(name).tensor for name in used}
            return replace(self, layers=layers, inputs=inputs, tensors={name: tensor for name, tensor in self.tensors.items() if name in used}, **fields).verify()

        return part(first, self.inputs, outputs=between, output_shapes={}), part(rest, between)

    def to_arrays(self) -> "tuple[dict, dict[str, np.ndarray]]":
        """A JSON object and the arrays it refers to by name; :meth:`from_arrays` is the inverse."""
        layers, arrays = [], {}
        for index, layer in enumerate(self.layers):
            values = {k: v for k, v in layer.__dict__.items() if not isinstance(v, np.ndarray)}
            values |= {"residual": layer.residual and asdict(layer.residual), "pool": layer.pool and asdict(layer.pool)}
            values["lookup"] = layer.lookup and asdict(layer.lookup.before)
            layers.append(values)
            mine = {name: getattr(layer, name) for name in (*_ARRAYS, "negative")} | {"table": layer.lookup and layer.lookup.table}
            arrays |= {f"{index}.{name}": np.ascontiguousarray(array) for name, array in mine.items() if array is not None}
        header = {k: getattr(self, k) for k in ("name", "inputs", "outputs", "classes", "preprocess", "output_shapes", "batch")}
        return header | {"tensors": [asdict(t) for t in self.tensors.values()], "layers": layers}, arrays

    @classmethod
    def from_arrays(cls, header: dict, arrays: "dict[str, np.ndarray]") -> "Network":
        """Raises KeyError, TypeError or :exc:`NetworkError` if header and arrays do not describe a network."""
        layers = []
        for index, values in enumerate(header["layers"]):
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            if values["residual"]:
                values["residual"] = Residual(**values["residual"])
            if values["pool"]:
                values["pool"] = Pool(**{k: tuple(v) for k, v in values["pool"].items()})
            if values["lookup"]:
                values["lookup"] = Lookup(before=_tensor(values["lookup"]), table=arrays[f"{index}.table"])
            layers.append(Layer(**(values | {"negative": arrays.get(f"{index}.negative")}), **{name: arrays[f"{index}.{name}"] for name in _ARRAYS}))
        tensors = {t["name"]: _tensor(t) for t in header["tensors"]}
        rest = {k: header[k] for k in ("name", "inputs", "outputs", "classes", "preprocess")}
        shapes = {k: tuple(v) for k, v in header["output_shapes"].items()}
        return cls(tensors=tensors, layers=layers, output_shapes=shapes, batch=header.get("batch"), **rest).verify()

    def save(self, path: "str | Path") -> None:
        """Write a `.celq` file (safetensors)."""
        header, arrays = self.to_arrays()
        write_tensors(path, "celq", header, arrays)

    @classmethod
    def load(cls, path: "str | Path") -> "Network":
        """Read a `.celq` file. Raises :exc:`NetworkError` if it is missing, truncated or of another kind."""
        header, arrays = read_tensors(path, "celq", NetworkError)
        try:
            return cls.from_arrays(header, arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NetworkError(f"{path}: is damaged ({error}); quantize the model again") from None


def _tensor(values):
    return Tensor(**(values | {"shape": tuple(values["shape"]), "within": values["within"] and Part(**values["within"])}))
