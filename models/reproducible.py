"""The same numbers on every call and every machine: one order of summation, and a random generator that is nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread", "reproducible"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, so that sums have one order; the caller's thread count comes back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def reproducible() -> Iterator[None]:
    """As :func:`one_thread`, and the caller's generator comes back as well."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        yield
