"""How the scale of a map follows from the values seen while calibrating."""

import math

import torch
from torchao.quantization.pt2e.observer import HistogramObserver, ObserverBase

__all__ = ["METHODS", "RangeObserver"]


class RangeObserver(ObserverBase):
    """The scale of a map from the range of values seen: int8 affine per tensor, with zero exactly representable.

    The default: what clipping it brings is little, and of either sign (docs/quantization.md).
    """

    def __init__(self, dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine, is_dynamic=False, bounds=None, **_):
        super().__init__(dtype, is_dynamic)
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        #: As in `operations.FUNCTIONS`.
        self.bounds = bounds
        self.low, self.high = 0.0, 0.0
        self.least, self.most = math.inf, -math.inf  # of the values alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Note the range of `x`; returns `x`."""
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        self.least, self.most = min(self.least, low), max(self.most, high)
        # Python's min and max drop a NaN, so it is kept by hand.
        self.low, self.high = (min(self.low, low), max(self.high, high)) if math.isfinite(low + high + self.low) else (math.nan, math.nan)
        if math.isfinite(low + high):
            self.note(x.detach())
        return x

    def note(self, values: torch.Tensor) -> None:
        """Take in finite values beyond their range; a range alone needs no more."""

    def range(self) -> "tuple[float, float]":
        """Lowest and highest value to be told apart, `low` … 0 and 0 … `high`."""
        return self.low, self.high

    def calculate_qparams(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Scale, float32, and zero point, int64."""
        low, high = self.range()
        if self.bounds and self.least <= self.most:
            # Not more than 64 times, or a pooling's ratio could not be expressed.
            bounds = self.bounds(self.least, self.most)
            low, high = max(low, min(bounds[0], low / 64)), min(high, max(bounds[1], high / 64))
        # A map that was always zero gets the range 1.
        scale = torch.tensor(((high - low) or 1.0) / (self.quant_max - self.quant_min), dtype=torch.float32)
        zero_point = torch.clamp(self.quant_min - torch.round(low / scale), self.quant_min, self.quant_max)
        return scale, zero_point.to(torch.int64)


class _HistogramRange(RangeObserver):
    """The range that torchao's :class:`HistogramObserver` cuts a histogram to: outliers go while the expected squared error falls."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.histogram = HistogramObserver(dtype=torch.int8, qscheme=torch.per_tensor_affine)

    def note(self, values):
        """Add `values` to the histogram."""
        self.histogram(values)

    def range(self):
        """The histogram's cut, with zero in it."""
        if not self.least < self.most:
            return super().range()
        low, high = (float(value) for value in self.histogram._non_linear_param_search())
        return max(min(low, 0.0), self.low), min(max(high, 0.0), self.high)


class _LeastSquares(RangeObserver):
    """The range with the least squared error of rounding and clipping a sample of the values (Nagel et al. 2021, arXiv:2106.08295, equation 9).

    Each end in turn is drawn in, by steps of 3 % down to a tenth, until neither moves.
    """

    #: Values kept.
    _MOST = 1 << 17
    _FACTORS = 0.97 ** torch.arange(76)

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.random = torch.Generator().manual_seed(0)
        self.sample, self.share = torch.empty(0), 1.0

    def note(self, values):
        """Keep the same share of these values as of all before."""
        values = values.reshape(-1)
        count = math.ceil(len(values) * self.share)
        while len(self.sample) + count > self._MOST:
            self.sample, self.share = self.sample[torch.rand(len(self.sample), generator=self.random) < 0.5], self.share / 2
            count = math.ceil(len(values) * self.share)
        chosen = values if self.share == 1 else values[torch.randint(len(values), (count,), generator=self.random)]
        self.sample = torch.cat([self.sample, chosen.float()])

    def range(self):
        """The range of least error."""
        ends, factors = [self.low, self.high], [1.0, 1.0]
        for _ in range(4):
            before = list(factors)
            for end in (0, 1):
                if ends[end]:
                    errors = [self._error(*(limit * (factor if side == end else kept) for side, (limit, kept) in enumerate(zip(ends, factors))))
                              for factor in self._FACTORS.tolist()]
                    factors[end] = self._FACTORS[errors.index(min(errors))].item()
            if factors == before:
                break
        return ends[0] * factors[0], ends[1] * factors[1]

    def _error(self, low, high):
        scale = (high - low) / (self.quant_max - self.quant_min)
        first = round(low / scale)
        codes = torch.clamp(torch.round(self.sample / scale), first, first + self.quant_max - self.quant_min)
        return float((codes * scale - self.sample).square().sum())


#: How ranges of maps are found, by name: from the values' extremes, torchao's histogram, or the least squared error.
METHODS = {"minmax": RangeObserver, "histogram": _HistogramRange, "mse": _LeastSquares}
