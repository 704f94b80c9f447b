"""What hypothesis draws: layers of every kind with all their parameters, alone and in networks with branches, residuals, several inputs and outputs.

A new kind of layer is a function in `KINDS`. What is drawn shrinks towards the first choice: a 1×1 convolution of one pixel and one channel.
"""

from math import ceil, prod

from cases import BIASES, CODES, SCALES, SHIFTS, SLOPES, TABLES, WEIGHTS, Case, Input, LayerCase, Summand
from hypothesis import assume
from hypothesis import strategies as st

from celosia.hw.config import PLANE
from celosia.hw.network import Pool
from celosia.sim.rtl import MEMORIES

__all__ = ["CORNER_CASES", "KINDS", "layer_cases", "network_cases"]

# What stands twice is drawn twice as often.
FEW_CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40)
MANY_CHANNELS = (50, 64, 100, 130, 256, 300, 512, 1000, 2048)
KERNELS = (1, 3, 1, 2, 3, 1, 3, 4, 5, 7, 11, 32)
STRIDES = (1, 1, 1, 2, 1, 2, 3, 5, 15)
DILATIONS = (1, 1, 1, 2, 1, 3, 0, 31)
POOL_KERNELS = (2, 3, 1, 2, 3, 5, 15)
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17)
#: Longer than what a tile of the smallest configuration holds.
LENGTHS = (65, 130, 300, 1023, 2047)
#: Cycles the smallest array computes for a layer at most, about: for most, and for those of many channels or long sides.
BUDGET, LARGE_BUDGET = 4_000, 40_000

_CODE = st.sampled_from((0, -128, 127)) | st.integers(-128, 127)
_MULTIPLIER = st.sampled_from((1 << 15, 0, (1 << 16) - 1)) | st.integers(0, (1 << 16) - 1)
_SOMETIMES, _SELDOM = st.sampled_from((False,) * 4 + (True,)), st.sampled_from((False,) * 19 + (True,))


def _at_most(values, most):
    """Those of `values` that are not above `most`; the first is there in any case."""
    return st.sampled_from(values[:1] + tuple(value for value in values[1:] if value <= most))


def _count(size, kernel, stride, dilation, before, after):
    """Windows along an axis."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


@st.composite
def _axes(draw, size, most_taps):
    """Kernel, stride, dilation, padding before and after along an axis of `size`."""
    kernel, stride = draw(_at_most(KERNELS, most_taps)), draw(st.sampled_from(STRIDES))
    dilation = draw(st.sampled_from(DILATIONS)) if kernel > 1 else 1
    extent = dilation * (kernel - 1) + 1
    if draw(st.booleans()):  # as many outputs as inputs, but for the stride: what a residual is added to
        before = draw(st.integers(0, extent - 1))
        return kernel, stride, dilation, before, extent - 1 - before
    before = draw(st.integers(0, min(extent + 1, 8)))
    least = max(extent - size - before, 0)
    return kernel, stride, dilation, before, draw(st.integers(least, least + 3))


def _window(draw, size, most_taps):
    """Attributes of a window over a map of `size`, of `most_taps` at most."""
    y = draw(_axes(size[0], most_taps))
    x = draw(_axes(size[1], most_taps // y[0]))
    kernel, stride, dilation, before, after = zip(y, x)
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": before + after}


@st.composite
def _pools(draw, size):
    """Max pooling of a map of `size`."""
    kernel = tuple(draw(st.sampled_from(POOL_KERNELS)) for _ in size)
    before = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    after = tuple(draw(st.integers(max(k - n - b, 0), k - 1)) for k, n, b in zip(kernel, size, before))
    return Pool(kernel=kernel, stride=tuple(draw(st.sampled_from(STRIDES)) for _ in size), padding=before + after)


# ---- kinds of layers ---------------------------------------------------------------------------------------------------------


def _conv(draw, shape, budget, channels):
    words = ceil(shape[0] / PLANE)
    outputs = draw(_at_most(channels, 2 * budget // words))
    return {"outputs": outputs} | _window(draw, shape[1:], budget // (words * ceil(outputs / 2)))


def _depthwise(draw, shape, budget, channels):
    outputs = shape[0] * draw(_at_most((1, 2, 3), budget // shape[0]))
    return {"outputs": outputs, "groups": shape[0]} | _window(draw, shape[1:], 2 * budget // outputs)


def _grouped(draw, shape, budget, channels):
    groups = draw(st.sampled_from(tuple(n for n in range(1, shape[0] + 1) if shape[0] % n == 0)))
    words = ceil(shape[0] / groups / PLANE) + 1
    outputs = groups * draw(_at_most((1, 2, 3, 5, 8), 2 * budget // (words * groups)))
    return {"outputs": outputs, "groups": groups} | _window(draw, shape[1:], budget // (words * ceil(outputs / 2)))


def _linear(draw, shape, budget, channels):
    kernel = tuple(min(n, 32) for n in shape[1:])
    return {"op": "linear", "kernel": kernel, "outputs": draw(_at_most(channels, 2 * budget // (ceil(shape[0] / PLANE) * prod(kernel))))}


def _average(draw, shape, budget, channels):
    return {"op": "avg_pool", "outputs": shape[0], "groups": shape[0], "weight": "one"} | _window(draw, shape[1:], 2 * budget // shape[0])


def _max_pool(draw, shape, budget, channels):
    return {"op": "max_pool", "outputs": shape[0], "groups": shape[0], "weight": "one", "pool": draw(_pools(shape[1:]))}


def _add(draw, shape, budget, channels):
    return {"op": "add", "outputs": shape[0], "groups": shape[0], "weight": "one", "summand": True}


def _phases(draw, shape, budget, channels):
    phases = draw(st.sampled_from((2, 3, 8)))
    groups = draw(st.sampled_from((1, shape[0])))
    outputs = shape[0] if groups > 1 else draw(_at_most(channels, 2 * budget // (phases * ceil(shape[0] / PLANE))))
    window = _window(draw, shape[1:], budget // (phases * ceil(shape[0] / PLANE) * ceil(outputs / 2)))
    return {"op": "conv_transpose", "outputs": outputs, "groups": groups, "column_phases": phases, "cropped": draw(st.integers(0, phases - 1)),
            "summand": False, "pool": None, "factors": False} | window


#: Each takes `draw`, the shape of the layer's input, array loads it may take, and channels it may choose from, and gives attributes of a :class:`LayerCase`.
#: Attributes that it leaves out are drawn alike for all kinds.
KINDS = {"conv": _conv, "depthwise": _depthwise, "grouped": _grouped, "linear": _linear, "avg_pool": _average, "max_pool": _max_pool, "add": _add,
         "phases": _phases}


# ---- layers and networks -------------------------------------------------------------------------------------------------------


class _Drawing:
    """A network under construction: the shape of each map by name."""

    def __init__(self, draw, budget, channels, lengths):
        self.draw, self._budget, self._channels, self._lengths = draw, budget, channels, lengths
        self.batch = draw(st.sampled_from((1, 2, 1, 3, 1, 2, 9)))
        self.maps, self.inputs, self.layers = {}, [], []
        self._factors = {}  # those of `maps` that hold numbers ≥ 0

    def input(self, shape=None, zero_point=None) -> str:
        """Add an input of `shape` and zero point, or of any."""
        if shape is None:
            height, width = self.draw(st.sampled_from(SIZES)), self.draw(st.sampled_from(SIZES))
            if self._lengths and self.draw(_SOMETIMES):
                height, width = self.draw(st.permutations((self.draw(st.sampled_from(self._lengths)), min(height, 3))))
            shape = (self.draw(st.sampled_from(self._channels)), height, width)
        name = f"x{len(self.inputs)}"
        self.inputs.append(Input(shape=shape, zero_point=self.draw(_CODE) if zero_point is None else zero_point))
        self.maps[name] = shape
        self._factors |= {name: shape} if self.inputs[-1].zero_point == -128 else {}
        return name

    def layer(self, source) -> None:
        """Add a layer that reads `source`."""
        draw, shape = self.draw, self.maps[source]
        values = KINDS[draw(st.sampled_from(tuple(KINDS)))](draw, shape, self._budget // 16, self._channels)
        one = LayerCase(source=source, **values | {"summand": None, "factors": None})
        size = tuple(map(_count, shape[1:], one.kernel, one.stride, one.dilation, one.padding[:2], one.padding[2:]))
        loads = one.column_phases * prod(one.kernel) * ceil(one.outputs / 2) * ceil(shape[0] / one.groups / PLANE)
        assume(loads * self.batch * prod(size) <= 2 * self._budget)
        if values.pop("summand", draw(st.booleans())):
            values["summand"] = self._summand((one.outputs, *size))
        values.setdefault("weight", draw(st.sampled_from(("random",) * 3 + tuple(WEIGHTS))))
        if "pool" not in values and draw(_SOMETIMES):
            values["pool"] = draw(_pools(size))
        values |= {"slopes": draw(st.sampled_from((None,) * 6 + tuple(SLOPES))), "table": draw(st.sampled_from((None,) * 4 + tuple(TABLES)))}
        if values.pop("factors", draw(_SOMETIMES)):
            there = [name for name, other in self._factors.items() if other == (one.outputs, 1, 1)]
            values |= {"slopes": None, "factors": draw(st.sampled_from(there[::-1])) if there else self.input((one.outputs, 1, 1), -128)}
        if draw(_SOMETIMES):
            values["low"], values["high"] = sorted((draw(_CODE), draw(_CODE)))
        values |= {"bias": draw(st.sampled_from(tuple(BIASES))), "scale": draw(st.sampled_from(("fitting",) * 6 + tuple(SCALES))), "zero_point": draw(_CODE)}
        if pool := values.get("pool"):
            size = tuple(map(_count, size, pool.kernel, pool.stride, (1, 1), pool.padding[:2], pool.padding[2:]))
        name = f"y{len(self.layers)}"
        self.maps[name] = (one.outputs, size[0], size[1] * one.column_phases - one.cropped)
        self._factors |= {name: self.maps[name]} if values["zero_point"] == -128 else {}
        self.layers.append(LayerCase(source=source, **values))

    def _summand(self, shape):
        """A map of `shape`: one that is there, or else an input."""
        there = [name for name, other in self.maps.items() if other == shape]
        name = self.draw(st.sampled_from(there[::-1])) if there else self.input(shape)
        return Summand(map=name, multiplier=self.draw(_MULTIPLIER), shift=self.draw(st.sampled_from(tuple(SHIFTS))))

    def case(self, outputs) -> Case:
        codes, memory = self.draw(st.sampled_from(("random",) * 3 + tuple(CODES))), self.draw(st.sampled_from(tuple(MEMORIES)))
        return Case(inputs=tuple(self.inputs), layers=tuple(self.layers), outputs=tuple(outputs), batch=self.batch, codes=codes, memory=memory,
                    seed=self.draw(st.integers(0, (1 << 32) - 1)))


@st.composite
def layer_cases(draw) -> Case:
    """One layer, with a second input where it adds one."""
    large = draw(_SELDOM)
    drawing = _Drawing(draw, *((LARGE_BUDGET, FEW_CHANNELS + MANY_CHANNELS, LENGTHS) if large else (BUDGET, FEW_CHANNELS, ())))
    drawing.layer(drawing.input())
    return drawing.case(["y0"])


@st.composite
def network_cases(draw) -> Case:
    """Two to six layers. Each reads any map there is; what nothing reads is put out, and so may be what something reads."""
    drawing = _Drawing(draw, BUDGET, FEW_CHANNELS, ())
    for _ in range(draw(st.integers(1, 2))):
        drawing.input()
    for _ in range(draw(st.integers(2, 6))):
        drawing.layer(draw(st.sampled_from(tuple(drawing.maps)[::-1])))
    read = {name for layer in drawing.layers for name in (layer.source, layer.summand and layer.summand.map, layer.factors)}
    return drawing.case(name for name in drawing.maps if name not in read or draw(_SOMETIMES))


#: What is drawn too seldom to wait for.
CORNER_CASES = (
    # 2,048 channels, whose parameters fill the buffer; those of a second layer take their place
    Case(inputs=(Input(shape=(2048, 1, 1)),), outputs=("y1",), layers=(
        LayerCase(source="x0", outputs=2048, op="add", groups=2048, weight="one", summand=Summand(map="x0")),
        LayerCase(source="y0", outputs=2048, groups=2048, bias="random"),
    )),
    # the largest sum, reached
    Case(inputs=(Input(shape=(2048, 1, 1)),), layers=(LayerCase(source="x0", outputs=9, weight="lowest", bias="highest"),), codes="lowest"),
    # a kernel of which the weight buffer's quarter holds some rows
    Case(inputs=(Input(shape=(9, 11, 12)),), layers=(LayerCase(source="x0", outputs=2, kernel=(11, 11)),)),
    # tables after tables, more than there is room for at once
    Case(inputs=(Input(shape=(3, 4, 4)),), outputs=("y9",), layers=tuple(
        LayerCase(source=f"y{index - 1}" if index else "x0", outputs=3, table="random", slopes=("small", None)[index % 2]) for index in range(10))),
    # phases whose parameters come in several loads
    Case(inputs=(Input(shape=(100, 1, 1)),), layers=(LayerCase(source="x0", outputs=100, op="conv_transpose", groups=100, column_phases=8),)),
    # an input worth folding to cells of the stride
    Case(inputs=(Input(shape=(1, 17, 17)),), layers=(LayerCase(source="x0", outputs=3, kernel=(7, 7), stride=(4, 4), padding=(3, 3, 3, 3)),)),
    # for several chunks of the map: weights that fill the buffer, of either size, or of which it holds a block, or not even that
    *(Case(inputs=(Input(shape=(300, 11, 11)),), layers=(LayerCase(source="x0", outputs=outputs),)) for outputs in (12, 24, 32)),
    Case(inputs=(Input(shape=(256, 12, 12)),), layers=(LayerCase(source="x0", outputs=1, kernel=(3, 3)),)),
    # rows of which several tiles must be staged before a pooling window is whole, for either size of tile
    *(Case(inputs=(Input(shape=(2, 17, width)),), layers=(LayerCase(source="x0", outputs=2, pool=Pool(kernel=(15, 2), stride=(1, 1))),)) for width in (5, 20)),
    # a full tile, likewise
    *(Case(inputs=(Input(shape=(8, size, size)),), layers=(LayerCase(source="x0", outputs=16, kernel=(3, 3), padding=(1, 1, 1, 1)),)) for size in (8, 16)),
    Case(inputs=(Input(shape=(2, 3, 300)),), layers=(LayerCase(source="x0", outputs=2, kernel=(3, 1)),)),  # a row longer than a tile
    Case(inputs=(Input(shape=(4, 65, 6)),), layers=(LayerCase(source="x0", outputs=3, kernel=(2, 2), stride=(15, 1)),)),
    Case(inputs=(Input(shape=(2, 3, 40)),), layers=(LayerCase(source="x0", outputs=2, kernel=(1, 32), stride=(1, 2), scale="random"),)),
    # more images than a tile of either size holds
    Case(inputs=(Input(shape=(8, 5, 5)),), layers=(LayerCase(source="x0", outputs=16, kernel=(3, 3), padding=(1, 1, 1, 1)),), batch=24),
    # several images, each with parameters of its own, of channels that fill no word; and parameters in several loads
    Case(inputs=(Input(shape=(12, 9, 10)), Input(shape=(12, 1, 1), zero_point=-128)), batch=3, layers=(
        LayerCase(source="x0", outputs=12, op="mul", kernel=(1, 4), dilation=(1, 0), groups=12, bias="random", summand=Summand(map="x0"), factors="x1"),
    )),
    Case(inputs=(Input(shape=(600, 2, 2)), Input(shape=(600, 1, 1), zero_point=-128)), batch=2, layers=(
        LayerCase(source="x0", outputs=600, op="mul", kernel=(1, 4), dilation=(1, 0), groups=600, factors="x1"),
    )),
    # several images in several chunks each, for which an image's parameters stay
    Case(inputs=(Input(shape=(40, 20, 20)), Input(shape=(40, 1, 1), zero_point=-128)), batch=2, layers=(
        LayerCase(source="x0", outputs=40, op="mul", kernel=(1, 4), dilation=(1, 0), groups=40, factors="x1"),
    )),
    # the longest side, and windows that go on far beyond it
    Case(inputs=(Input(shape=(1, 1, 2047), zero_point=5),), layers=(
        LayerCase(source="x0", outputs=1, kernel=(1, 32), stride=(1, 15), padding=(0, 0, 0, 961), dilation=(1, 31)),
    )),
    Case(inputs=(Input(shape=(1, 2047, 1), zero_point=5),), layers=(
        LayerCase(source="x0", outputs=1, kernel=(32, 1), stride=(15, 1), padding=(0, 0, 961, 0), dilation=(31, 1)),
    )),
    Case(inputs=(Input(shape=(3, 4, 5), zero_point=-128),), layers=(
        LayerCase(source="x0", outputs=4, kernel=(2, 2), padding=(31, 0, 0, 35), dilation=(31, 31), zero_point=127),
    )),
)
