"""From a trained PyTorch module to a running device, one file per stage, in the order the data flows.

Importing this package does not import torch: :mod:`~celosia.host.trace`, :mod:`~celosia.host.quantize` and
:mod:`~celosia.host.graph` do.
"""
