"""Trained PyTorch CNNs on FPGAs with open tools.

Everything is imported when first used: `import celosia` loads neither torch nor Amaranth.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("celosia")

#: Public name → module that defines it.
_PUBLIC = {
    "quantize": "celosia.host.quantize",
    "QuantizedModel": "celosia.host.quantize",
    "FineTuning": "celosia.host.qat",
    "quantization_report": "celosia.host.quantization_report",
    "compile": "celosia.host.compile",
    "offload": "celosia.host.offload",
    "offload_report": "celosia.host.offload",
    "open_device": "celosia.host.device",
    "Result": "celosia.host.device",
    "assert_bit_exact": "celosia.host.bit_exact",
    "AcceleratorConfig": "celosia.hw.config",
    "get_config": "celosia.hw.config",
    "Network": "celosia.hw.network",
    "Program": "celosia.hw.program",
    "CelosiaError": "celosia.host.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'celosia' has no attribute {name!r}")


def __dir__():
    return __all__
