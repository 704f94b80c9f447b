"""The definition of every result: integer arithmetic in NumPy. Whatever else computes a network must give these bytes.

`real = scale · (code − zero_point)`; codes are int8, accumulators int32, and requantization is the only rounding.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..hw.config import AcceleratorConfig
from ..hw.network import Layer, Network, Pool, Tensor
from ..hw.parameters import PARAMETER_BYTES, decode_parameters
from ..hw.program import Program
from .device import RunResult, check_inputs

__all__ = ["GoldenDevice", "convolve", "dequantize", "execute", "interleave", "layer", "look_up", "max_pool", "multipliers", "quantize", "requantize", "residual_term"]

# A sum of products is exact in float32 as long as no partial sum reaches 2^24: BLAS serves.
_EXACT_TERMS = (1 << 24) // (128 * 127)


def quantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Codes, int8, of real `values`: round half to even, as torch.quantize_per_tensor does. Raises ValueError if a value is not finite."""
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"input {tensor.name}: contains NaN or infinity; give finite numbers")
    codes = np.rint(values * np.float32(1 / tensor.scale)) + tensor.zero_point
    return np.clip(codes, -128, 127).astype(np.int8)


def dequantize(codes: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Real values, float32, of int8 `codes`."""
    return (codes.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


def convolve(codes: np.ndarray, layer: Layer, zero_point: int) -> np.ndarray:
    """Accumulators (N, O, OH, OW) int32 of codes (N, C, H, W) int8: bias + weight ∗ codes, padding being `zero_point`; phases follow each other."""
    top, left, bottom, right = layer.padding
    (batch, _, height, width), (kernel_y, kernel_x) = codes.shape, layer.weight.shape[2:]
    rows, columns = layer.conv_size(height, width)
    padded = codes[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    if max(layer.padding) > 0:
        padded = np.pad(padded, ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in ((top, bottom), (left, right)))), constant_values=zero_point)

    def tap(y, x):
        y, x = y * layer.dilation[0], x * layer.dilation[1]
        return padded[:, :, y : y + (rows - 1) * layer.stride[0] + 1 : layer.stride[0], x : x + (columns - 1) * layer.stride[1] + 1 : layer.stride[1]]

    outputs, inputs = layer.weight.shape[:2]
    sums = np.empty((batch, outputs, rows, columns), np.int32)
    sums[:] = layer.bias[:, None, None]
    groups = layer.groups * layer.column_phases  # every phase's first group reads the first inputs again
    if inputs == 1 and groups == outputs:
        for y in range(kernel_y):
            for x in range(kernel_x):
                sums += layer.weight[:, 0, y, x].astype(np.int32)[:, None, None] * np.tile(tap(y, x), (1, layer.column_phases, 1, 1))
        return sums
    terms = inputs * kernel_y * kernel_x
    window = np.empty((inputs, kernel_y, kernel_x, rows, columns), np.float32)
    group_outputs = outputs // groups
    for image in range(batch):
        for group in range(groups):
            first_input = group % layer.groups * inputs
            mine = slice(first_input, first_input + inputs)
            for y in range(kernel_y):
                for x in range(kernel_x):
                    window[:, y, x] = tap(y, x)[image, mine]
            matrix = window.reshape(terms, rows * columns)
            weight = layer.weight[group * group_outputs : (group + 1) * group_outputs].reshape(group_outputs, terms).astype(np.float32)
            out = sums[image, group * group_outputs : (group + 1) * group_outputs].reshape(group_outputs, -1)
            for first in range(0, terms, _EXACT_TERMS):
                part = slice(first, first + _EXACT_TERMS)
                out += (weight[:, part] @ matrix[part]).astype(np.int32)
    return sums


def residual_term(codes: np.ndarray, zero_point: int, multiplier: int, residual_shift: int, shift: np.ndarray) -> np.ndarray:
    """(r − zero_point) · multiplier << (shift − residual_shift), int64; `shift` broadcasts against `codes`."""
    return (codes.astype(np.int64) - zero_point) * multiplier << (np.asarray(shift, np.int64) - residual_shift)


def requantize(sums: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, zero_point: int, low: int, high: int, r_term: "np.ndarray | int" = 0,
               negative: "np.ndarray | None" = None) -> np.ndarray:
    """clamp(zero_point + ((sums · m + r_term + 2^(shift−1)) >> shift), low, high) as int8, m = multiplier: round half up, the only rounding.

    negative: m where a sum is negative. Multipliers and `shift` broadcast against `sums` (int32).
    """
    shift = np.asarray(shift, np.int64)
    exact = sums.astype(np.int64)
    exact *= np.asarray(multiplier, np.int64) if negative is None else np.where(sums < 0, negative, multiplier).astype(np.int64)
    exact += r_term
    exact += np.int64(1) << (shift - 1)
    exact >>= shift
    exact += zero_point
    return np.clip(exact, low, high, out=exact).astype(np.int8)


def multipliers(words: np.ndarray) -> np.ndarray:
    """Multipliers (N, C), int64, of parameter words that are codes (N, 8 · C, 1, 1) int8."""
    content = np.ascontiguousarray(words).view(np.uint8).reshape(-1, PARAMETER_BYTES)
    return decode_parameters(content)["multiplier"].reshape(len(words), -1)


def look_up(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[code + 128] of each code, int8."""
    return table[codes.astype(np.int16) + 128]


def interleave(codes: np.ndarray, phases: int) -> np.ndarray:
    """Codes (N, phases · C, H, W) as (N, C, H, W · phases): column x of phase p becomes column x · phases + p."""
    batch, channels, height, width = codes.shape
    codes = codes.reshape(batch, phases, channels // phases, height, width)
    return codes.transpose(0, 2, 3, 4, 1).reshape(batch, channels // phases, height, width * phases)


def max_pool(codes: np.ndarray, pool: Pool) -> np.ndarray:
    """Maximum over each window of codes (N, C, H, W) int8; padding never wins."""
    top, left, bottom, right = pool.padding
    padded = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-128) if any(pool.padding) else codes
    rows, columns = ((size - k) // s + 1 for size, k, s in zip(padded.shape[2:], pool.kernel, pool.stride))
    result = None
    for y in range(pool.kernel[0]):
        for x in range(pool.kernel[1]):
            tap = padded[:, :, y : y + (rows - 1) * pool.stride[0] + 1 : pool.stride[0], x : x + (columns - 1) * pool.stride[1] + 1 : pool.stride[1]]
            result = tap.copy() if result is None else np.maximum(result, tap, out=result)
    return result


def layer(layer: Layer, network: Network, codes: np.ndarray, residual: "np.ndarray | None" = None, parameters: "np.ndarray | None" = None) -> np.ndarray:
    """Output codes (N, O, H, W) int8 of one layer for input codes (N, C, H, W) int8, and those of its residual and of its parameters if it has them."""
    sums = convolve(codes, layer, network.tensors[layer.input].zero_point)
    shift = layer.shift[:, None, None]
    r_term = 0
    if layer.residual:
        zero_point = network.tensors[layer.residual.tensor].zero_point
        r_term = residual_term(residual, zero_point, layer.residual.multiplier, layer.residual.shift, shift)
    multiplier = layer.multiplier if parameters is None else multipliers(parameters)[:, : len(shift)]
    negative = None if layer.negative is None else layer.negative[:, None, None]
    before = layer.lookup.before if layer.lookup else network.tensors[layer.output]
    result = requantize(sums, multiplier[..., None, None], shift, before.zero_point, layer.low, layer.high, r_term, negative)
    if layer.lookup:
        result = look_up(result, layer.lookup.table)
    if layer.column_phases > 1:
        result = interleave(result, layer.column_phases)[..., : network.tensors[layer.output].shape[2]]
    return max_pool(result, layer.pool) if layer.pool else result


def execute(network: Network, inputs: "list[np.ndarray]", observe: "Callable[[str, np.ndarray], None] | None" = None) -> "list[np.ndarray]":
    """Output codes of a network for its input codes, in graph order; `observe(name, codes)` sees every layer's output."""
    codes = dict(zip(network.inputs, inputs))  # of wholes
    last_use = {network.part(name).tensor: index for index, item in enumerate(network.layers) for name in item.reads}
    kept = {*(network.part(name).tensor for name in network.outputs)}

    def view(name):
        return codes[network.part(name).tensor][:, *network.region(name)]

    for index, item in enumerate(network.layers):
        result = layer(item, network, view(item.input), item.residual and view(item.residual.tensor), item.parameters and view(item.parameters))
        whole = network.part(item.output).tensor
        if whole == item.output:
            codes[whole] = result
        else:
            if whole not in codes:
                codes[whole] = np.empty((len(result), *network.tensors[whole].shape), np.int8)
            view(item.output)[:] = result
        if observe:
            observe(item.output, result)
        for name in {network.part(name).tensor for name in item.reads} - kept:
            if last_use[name] == index:
                del codes[name]
    return [np.ascontiguousarray(view(name)) for name in network.outputs]


class GoldenDevice:
    """The definition as a device: exact and fast, without time."""

    name = "golden"

    def __init__(self, config: AcceleratorConfig):
        self.config = config

    def run_program(self, program: Program, inputs: "list[np.ndarray]") -> RunResult:
        """Run a program's network on int8 codes (N, C, H, W). Raises ProgramError or DeviceError if they do not fit."""
        program.check_config(self.config)
        check_inputs(program, inputs)
        return RunResult(outputs=execute(program.network, inputs))

    def hold(self, programs: "Sequence[Program]") -> None:
        """Nothing to hold: it has no memory."""

    def close(self) -> None:
        """Nothing to release."""
