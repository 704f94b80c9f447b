"""The assertion for people's own test suites: a module computes on a device, byte for byte, what the golden model says."""

from collections.abc import Iterable

import numpy as np

from ..hw.config import AcceleratorConfig
from .compile import compile
from .device import Device, Result
from .quantize import quantize
from .report import compare, equal_codes, run_on, verdict

__all__ = ["assert_bit_exact"]


def assert_bit_exact(module, example, config: "str | AcceleratorConfig" = "tiny", *, device: "str | Device" = "rtl",
                     calibration_batches: "Iterable | None" = None, batch: "int | None" = None) -> Result:
    """Quantize a module, compile it for `config`, and assert that `device` and `golden` put out the same int8 codes.

    `module` is an nn.Module or an exported program; `example` are float32 images (N, C, H, W), a torch tensor or NumPy array, or a tuple of one for each input.
    The quantizer sees them unless `calibration_batches`, as :func:`celosia.quantize` takes them, are given. `batch` is that of the program, 1 or what the module
    was exported for unless told otherwise; N may be any. An open `device` is used as it is, with its own configuration instead of `config`.

    Returns what the device computed, with its cycles. Raises :exc:`AssertionError` naming the first layer, image, channel and pixel that differ and both values,
    and :exc:`CelosiaError` for a module, images or a configuration that cannot be used.
    """
    __tracebackhide__ = True  # pytest: the failure is the caller's line
    if isinstance(device, Device):
        config = device.config
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    network = quantize(module, [inputs] if calibration_batches is None else calibration_batches)
    program = compile(network, config, batch or network.batch or 1)
    images = [np.asarray(x.detach() if hasattr(x, "detach") else x) for x in inputs]
    devices = ["golden", device]
    results = [run_on(each, program, images) for each in devices]
    if not equal_codes(*results):
        raise AssertionError(f"{network.name}: {verdict(compare(network, program, devices, images, compile, results=results))}")
    return results[-1]
