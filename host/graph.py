"""Lowers a converted quantize–dequantize graph to a network of integer layers."""

import math
from dataclasses import replace

import numpy as np
import torch
import torchao.quantization.pt2e  # noqa: F401  registers torch.ops.quantized_decomposed

from ..hw.network import Layer, Lookup, Network, Part, Pool, Residual, Tensor, parameter_layer
from ..hw.parameters import CODE_UNIT, MOST_COMPUTED, nearest_short
from ..sim import golden
from .errors import CelosiaError
from .fuse import Group, Groups
from .operations import argument, pair, value_of
from .phases import aligned, phases, taken

__all__ = ["lower", "requantization"]

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default

#: Weights of a scaled map, which meet the same element and count as their sum: nine bits of the scales' ratio.
_SCALE_TAPS = 4

#: Largest |bias| in LSB of the accumulator: a quarter of int32 leaves room for the sums.
_BIAS_LIMIT = 1 << 29


def lower(module: torch.fx.GraphModule, groups: Groups, *, name: str) -> "tuple[Network, dict[str, str]]":
    """The network, and for each of its tensors the node of `module` whose value is that map.

    `module` is what `convert_pt2e` made. Raises :exc:`CelosiaError` naming the layer if its numbers do not fit the engine.
    """
    return _Lowering(module, groups, name).result()


def requantization(ratio: float) -> "tuple[int, int]":
    """Multiplier in 2^15…2^16−1 and shift in 16…47 with multiplier · 2^−shift closest to `ratio`. Raises ValueError if it is 1 or more."""
    if not ratio < 1 - 2**-17:
        raise ValueError(f"ratio must be below 1, not {ratio}")
    if ratio <= 2.0**-32:
        return 1 << 15, 47
    mantissa, exponent = math.frexp(ratio)  # ratio = mantissa · 2^exponent, mantissa in [0.5, 1)
    multiplier, shift = round(mantissa * 65536), 16 - exponent
    return (1 << 15, shift - 1) if multiplier == 1 << 16 else (multiplier, shift)


class _Lowering:
    def __init__(self, module, groups, name):
        self.module, self.groups, self.name = module, groups, name
        self.by_name = {node.name: node for node in module.graph.nodes}
        self.tensors: dict[str, Tensor] = {}  # by the node that computes it
        self.nodes, self.layers = {}, []

    def result(self):
        names = {item.name for item in (*self.groups.groups, *self.groups.views)}
        for node, shape in self.groups.inputs.items():
            self.tensor(node, node, f"input.{node}" if node in names else node, shape)
        for group in self.groups.groups:
            self.tensor(group.last, group.output, group.name, group.shape)
        self.views()
        lowered = {"avg_pool": self.average_pool, "conv_transpose": self.transposed, "upsample": self.transposed, "mul": self.scaled}
        for group in self.groups.groups:
            self.layers += lowered.get(group.op, self.layer)(group)
        outputs = [self.tensors[node].name for node, _ in self.groups.outputs]
        shapes = {self.tensors[node].name: tuple(shape) for node, shape in self.groups.outputs if tuple(shape) != self.tensors[node].shape}
        network = Network(name=self.name, tensors={t.name: t for t in self.tensors.values()}, layers=self.layers, outputs=list(dict.fromkeys(outputs)),
                          inputs=[self.tensors[node].name for node in self.groups.inputs], output_shapes=shapes)
        return network, self.nodes

    def tensor(self, quantized, output, name, shape):
        """Describe the map of node `output`, whose codes are those of `quantized` or maxima of them."""
        quantize = self.quantize(quantized)
        scale, zero_point = quantize.args[1:3]
        self.tensors[output] = Tensor(name=name, shape=tuple(shape), scale=float(scale), zero_point=int(zero_point))
        self.nodes[name] = quantize.name if output == quantized else output

    def quantize(self, quantized):
        """The node that quantizes what node `quantized` computes."""
        quantize = next((user for user in self.by_name[quantized].users if user.target is _QUANTIZE), None)
        if quantize is None:  # nothing reads it: an input the model ignores
            raise CelosiaError(f"{quantized} is never used; remove it from the model's arguments")
        return quantize

    def views(self):
        """Describe concatenations and slices, and where the maps lie that are part of one."""
        views = {view.node: view for view in self.groups.views}
        for node, (whole, _) in self.groups.parts.items():
            if node not in views and whole in views:
                self.tensors[whole] = replace(self.tensors[node], name=views[whole].name, shape=views[whole].shape)
        for node, view in views.items():
            whole, _ = self.groups.parts.get(node, (node, 0))
            self.tensors[node] = replace(self.tensors[whole], name=view.name, shape=view.shape)
            self.nodes[view.name] = node
        for node, (whole, first) in self.groups.parts.items():
            self.tensors[node] = replace(self.tensors[node], within=Part(tensor=self.tensors[whole].name, channel=first))

    def layer(self, group):
        x, y, node = self.tensors[group.input], self.tensors[group.output], self.by_name[group.node]
        (before, rest), slopes = self._requantized(group, x, y), self._slopes(group)
        weight, weight_scale, bias = self._weights(group, node, x, before, slopes)
        arrays = _integers(group, weight, weight_scale, bias, x, before, slopes)
        pool = _pool(self.by_name[group.pool], group.conv_shape, group.shape) if group.pool else None
        if group.op == "max_pool":
            pool = _pool(node, x.shape, y.shape)
        macs = math.prod(group.conv_shape) * math.prod(weight.shape[1:]) if group.kind in ("conv", "linear", "affine") else 0
        return [Layer(name=group.name, op=group.kind, input=x.name, output=y.name, **arrays, **_geometry(group, node, x), **rest,
                      residual=self._residual(group, before, arrays["shift"]), pool=pool, macs=macs)]

    def scaled(self, group):
        """A depthwise layer whose multipliers are the codes of another map, and the layer before it that makes its parameters of them."""
        x, y, codes = (self.tensors[name] for name in (group.input, group.output, group.scale))
        if x.shape == codes.shape and codes.zero_point != -128:
            x, codes = codes, x  # either may be the factor
        if codes.zero_point != -128:
            raise CelosiaError(f"layer {group.name}: multiplies by a map that has negative values; let a sigmoid or a ReLU go before")
        (before, rest), channels = self._requantized(group, x, y), x.shape[0]
        try:
            weight, shift = _factor(x.scale * codes.scale / before.scale)
        except ValueError:
            raise CelosiaError(f"layer {group.name}: the product of its maps' scales is {x.scale * codes.scale / before.scale:.3g} times its output's, 2 or more; its "
                               "outputs are far smaller than its maps allow: calibrate with more varied images") from None
        taps = [weight // _SCALE_TAPS + (tap < weight % _SCALE_TAPS) for tap in range(_SCALE_TAPS)]
        arrays = {"weight": np.tile(np.array(taps, np.int8), (channels, 1, 1, 1)), "bias": np.full(channels, -x.zero_point * weight, np.int32),
                  "multiplier": np.full(channels, MOST_COMPUTED, np.uint16), "shift": np.full(channels, shift, np.uint8)}
        layer = Layer(name=group.name, op=group.kind, input=x.name, output=y.name, **arrays, dilation=(1, 0), groups=channels, **rest,
                      residual=self._residual(group, before, arrays["shift"]), parameters=f"{group.name}.parameters")
        maker, words = parameter_layer(layer, codes)
        self.tensors[words.name] = words
        return [maker, layer]

    def _requantized(self, group, x, y):
        """The tensor that sums are requantized to, and what a layer does with its codes: the bounds, and the function's table."""
        lookup = self._lookup(group, x, y) if group.function else None
        before = lookup.before if lookup else y
        low, high = (int(np.clip(round(np.clip(bound / before.scale, -1e6, 1e6)) + before.zero_point, -128, 127)) for bound in (group.low, group.high))
        return before, {"low": low, "high": high, "lookup": lookup}

    def _lookup(self, group, x, y):
        """The function's table: the reference graph's own quantization of its values at all 256 codes."""
        if group.before == group.input:
            before = Tensor(name=x.name, shape=group.conv_shape, scale=x.scale, zero_point=x.zero_point)
        else:
            quantize = self.quantize(group.before)
            before = Tensor(name=f"{group.name}.before", shape=group.conv_shape, scale=float(quantize.args[1]), zero_point=int(quantize.args[2]))
            self.nodes[before.name] = quantize.name
        node, values = self.by_name[group.function], torch.from_numpy(golden.dequantize(np.arange(-128, 128), before))
        return Lookup(before=before, table=golden.quantize(node.target(values, *node.args[1:], **node.kwargs).numpy(), y))

    def _slopes(self, group):
        """What a leaky or parametric ReLU multiplies negative sums by, per channel; None if the group has none."""
        if not group.leaky:
            return None
        node = self.by_name[group.leaky]
        slopes = value_of(self.module, node.args[1]) if node.target is torch.ops.aten.prelu.default else argument(node, "negative_slope")
        return np.broadcast_to(np.asarray(slopes, np.float64), group.conv_shape[:1])

    def average_pool(self, group):
        """A layer for each combination of spans; if there are several, each writes its rows and columns of the output."""
        x, y = self.tensors[group.input], self.tensors[group.output]
        (before, rest), slopes = self._requantized(group, x, y), self._slopes(group)  # a table of a single span only
        spans = [(rows, columns) for rows in group.windows.rows for columns in group.windows.columns]
        layers = []
        for rows, columns in spans:
            output, name = y, group.name
            if len(spans) > 1:
                name = f"{group.name}[{rows.first},{columns.first}]"
                part = y.within or Part(tensor=y.name)
                output = replace(y, name=name, shape=(y.shape[0], rows.count, columns.count), within=replace(part, row=rows.first, column=columns.first))
                self.tensors[name] = output
            divisor = group.windows.divisor or rows.length * columns.length
            arrays = _integers(group, *_depthwise(x, before, (rows.length, columns.length), 1 / divisor, slopes), x, before, slopes)
            # Pads become part of the padding: the windows are those of the padded map.
            top, left, bottom, right = group.padding
            padding = (top - rows.start, left - columns.start, rows.end - top - x.shape[1], columns.end - left - x.shape[2])
            layers.append(Layer(name=name, op="avg_pool", input=x.name, output=output.name, **arrays, stride=(rows.step, columns.step), padding=padding,
                                groups=x.shape[0], **rest))
        return layers

    def transposed(self, group):
        """A layer for each phase of the rows, which interleaves the phases of the columns. Enlarging is a transposed convolution by ones."""
        x, y, node = self.tensors[group.input], self.tensors[group.output], self.by_name[group.node]
        (before, rest), slopes = self._requantized(group, x, y), self._slopes(group)  # a table of a single layer only
        if group.op == "upsample":
            stride = kernel = tuple(large // small for large, small in zip(group.conv_shape[1:], x.shape[1:]))
            padding, dilation, groups = (0, 0), (1, 1), x.shape[0]
            weight, scale, bias = _depthwise(x, before, kernel, 1.0, slopes)
        else:
            stride, padding, dilation = (pair(argument(node, name)) for name in ("stride", "padding", "dilation"))
            groups = argument(node, "groups")
            weight, scale, bias = self._parameters(node)
            kernel = weight.shape[2:]
            # (groups · inputs, outputs, …) → (groups · outputs, inputs, …)
            weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(y.shape[0], -1, *kernel)
            scale = np.tile(scale, groups)
        rows, columns = (phases(*values) for values in zip(stride, kernel, padding, dilation, group.conv_shape[1:]))
        columns = aligned(columns)
        count, bias = len(columns), np.broadcast_to(bias, y.shape[:1])
        left, right = columns[0].padding(x.shape[2], columns[0].count)
        layers = []
        for row in [row for row in rows if row.count]:
            name, output = group.name, y
            if len(rows) > 1:
                name = f"{group.name}[{row.first}]"
                part = y.within or Part(tensor=y.name)
                output = replace(y, name=name, shape=(y.shape[0], row.count, y.shape[2]), within=replace(part, row=part.row + row.first, row_step=len(rows)))
                self.tensors[name] = output
            arrays = _integers(group, np.concatenate([taken(weight, row, column) for column in columns]), np.tile(scale, count), np.tile(bias, count), x, before,
                               None if slopes is None else np.tile(slopes, count))
            top, bottom = row.padding(x.shape[1], row.count)
            taps = sum(tap is not None for tap in row.taps)
            layers.append(Layer(name=name, op=group.kind, input=x.name, output=output.name, **arrays, padding=(top, left, bottom, right), groups=groups,
                                column_phases=count, cropped=columns[0].count * count - y.shape[2], **rest,
                                macs=taps * kernel[1] * weight.shape[0] * weight.shape[1] * x.shape[1] * x.shape[2] if group.op == "conv_transpose" else 0))
        return layers

    def _weights(self, group, node, x, y, slopes):
        """Weights (int8), what an LSB of them is worth (per channel), and the real bias (per channel, or one for all)."""
        if group.op == "conv":
            return self._parameters(node)
        if group.op == "linear":
            weight, scale, bias = self._parameters(node)
            return weight.reshape(-1, *x.shape), scale, bias
        return _depthwise(x, y, (1, 1), 1.0, slopes)

    def _parameters(self, node):
        dequantize = node.args[1]
        weight, scale = (value_of(self.module, argument).numpy() for argument in dequantize.args[:2])
        bias = np.float64(0) if argument(node, "bias") is None else value_of(self.module, argument(node, "bias")).numpy().astype(np.float64)
        return weight, scale.astype(np.float64), bias

    def _residual(self, group, y, shift):
        if not group.residual:
            return None
        tensor = self.tensors[group.residual]
        ratio, limit = tensor.scale / y.scale, int(shift.min())
        while limit >= 0 and round(ratio * 2**limit) >= 1 << 16:
            limit -= 1
        if limit < 0:
            raise CelosiaError(f"layer {group.name}: its residual's scale is {ratio:.3g} times its output's; calibrate with more varied images")
        return Residual(tensor=tensor.name, multiplier=round(ratio * 2**limit), shift=limit)


def _factor(ratio):
    """Weight and shift of a scaled map: weight · `CODE_UNIT` · 2^−shift closest to `ratio`. Raises ValueError if it is about 2 or more."""
    most = 127 * _SCALE_TAPS
    shift = min(max(math.floor(math.log2(most * CODE_UNIT / ratio)), 16), 47)
    weight = round(ratio * 2.0**shift / CODE_UNIT)
    if weight > most:
        raise ValueError(f"ratio must be below {most * CODE_UNIT / 2**16:.3g}, not {ratio}")
    return weight, shift


def _geometry(group, node, x):
    """Stride, padding, dilation and groups of the convolution."""
    if group.op != "conv":
        return {"padding": group.padding, "groups": 1 if group.op == "linear" else x.shape[0]}
    top, left = pair(argument(node, "padding"))
    return {"padding": tuple(a + b for a, b in zip(group.padding, (top, left, top, left))), "stride": pair(argument(node, "stride")),
            "dilation": pair(argument(node, "dilation")), "groups": argument(node, "groups")}


def _pool(node, before, after):
    """A max pooling from a map of shape `before` to one of shape `after`."""
    kernel, padding = pair(argument(node, "kernel_size")), pair(argument(node, "padding"))
    stride = pair(argument(node, "stride") or kernel)
    # With ceil_mode the last window may reach further than the padding.
    ends = [max(p, (out - 1) * s + k - size - p) for size, out, k, s, p in zip(before[1:], after[1:], kernel, stride, padding)]
    return Pool(kernel=kernel, stride=stride, padding=(*padding, *ends))


def _depthwise(x, y, kernel, factor, slopes=None):
    """One weight for every tap: the smallest power of two, at least 2, whose ratio the requantization can express; `factor` is its real value, and
    `slopes` are those of a leaky ReLU behind it."""
    value, steepest = 1 if kernel != (1, 1) else 2, 1 if slopes is None else max(slopes.max(), 1)
    while value < 64 and x.scale * factor * steepest / value / y.scale >= 1 - 2**-17:
        value *= 2
    channels = x.shape[0]
    return np.full((channels, 1, *kernel), value, np.int8), np.full(channels, factor / value), np.float64(0)


def _integers(group: Group, weight, scale, bias, x, y, slopes):
    """Weights, biases, multipliers and shifts of a layer; slopes: of its leaky ReLU per channel, or None.

    The real weight is `weight · scale`. Where a channel's weights are so small (pruned, or scaled down by a batch norm) that its bias
    would leave the accumulator or its ratio the range of shifts, they are rounded again to a coarser scale; that costs less than an LSB.
    """
    empty = ~weight.any(axis=(1, 2, 3))
    coarsest = np.maximum(np.abs(bias) / x.scale / _BIAS_LIMIT, 2.0**-32 * y.scale / x.scale)
    coarse = np.where(empty, coarsest, np.maximum(scale, coarsest))
    if (changed := (coarse != scale) & ~empty).any():
        weight = weight.copy()
        factor = (scale / coarse)[changed].reshape(-1, 1, 1, 1)
        weight[changed] = np.round(weight[changed] * factor).astype(np.int8)
    steepest = np.ones_like(coarse) if slopes is None else np.maximum(slopes, 1)
    ratio = x.scale * coarse / y.scale * steepest
    try:
        multiplier, shift = map(np.array, zip(*map(requantization, ratio)))
    except ValueError:
        channel = int(ratio.argmax())
        slope = f" with its leaky ReLU's slope of {slopes[channel]:.3g}" if slopes is not None and slopes[channel] > 1 else ""
        raise CelosiaError(f"layer {group.name}: output channel {channel} needs a requantization ratio of {ratio[channel]:.3g}{slope}, 1 or more; its outputs are far "
                           "smaller than its weights allow: calibrate with more varied images") from None
    sums = weight.astype(np.int64).sum(axis=(1, 2, 3))
    integer_bias = np.round(bias / (x.scale * coarse)).astype(np.int64) - x.zero_point * sums
    if np.abs(integer_bias).max() >= 1 << 31:
        channel = int(np.abs(integer_bias).argmax())
        raise CelosiaError(f"layer {group.name}: the bias of output channel {channel} does not fit 32 bits; calibrate with more varied images")
    arrays = {"weight": np.ascontiguousarray(weight), "bias": integer_bias.astype(np.int32),
              "multiplier": multiplier.astype(np.uint16), "shift": shift.astype(np.uint8)}
    if slopes is None:
        return arrays
    arrays["multiplier"] = np.round(multiplier / steepest).astype(np.uint16)
    return arrays | {"negative": nearest_short(multiplier * slopes / steepest)}
