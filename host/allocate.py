"""Where tensors lie in external memory: maps share addresses as soon as their last reader is done; a residual sum replaces its summand.

A part lies inside its whole, whose place is taken from the first layer that writes any of it to the last that reads any.
"""

from dataclasses import dataclass, replace

from ..hw.config import AcceleratorConfig
from ..hw.isa import Base
from ..hw.network import Network
from ..hw.program import Placement, map_bytes, place_regions
from .errors import NoRoomError
from .tile import Plan

__all__ = ["Memory", "allocate", "check_memory"]

_ALIGNMENT = 512  # bytes: a burst of 64 beats


@dataclass(frozen=True)
class Memory:
    """Placement of every tensor, and bytes of each region but WEIGHTS."""

    placements: dict[str, Placement]
    sizes: dict[Base, int]


def allocate(config: AcceleratorConfig, network: Network, plans: list[Plan], batch: int) -> Memory:
    """Place a network's tensors."""
    whole = {name: network.part(name).tensor for name in network.tensors}
    last_use = dict.fromkeys(network.tensors, -1)
    for index, layer in enumerate(network.layers):
        for name in (*layer.reads, layer.output):
            last_use[whole[name]] = index
    placements, sizes = {}, dict.fromkeys(Base, 0)

    def append(name, base, shape, fold=None):
        placements[name] = Placement(tensor=name, base=base, offset=sizes[base], fold=fold)
        sizes[base] += _aligned(map_bytes(batch, shape))

    for name in network.inputs:
        folded = next((plan.geometry for plan in plans if plan.geometry.layer.input == name and plan.geometry.fold), None)
        append(name, Base.INPUT, folded.shape if folded else network.tensors[name].shape, folded and folded.fold)
    for name in map(whole.get, network.outputs):
        if name not in placements:
            append(name, Base.OUTPUT, network.tensors[name].shape)

    live = {}  # name → (first byte, size)
    for index, layer in enumerate(network.layers):
        name = whole[layer.output]
        if name not in placements:
            size = _aligned(map_bytes(batch, network.tensors[name].shape))
            summand = layer.residual.tensor if layer.residual and layer.pool is None and name == layer.output else None
            if summand in live and last_use[summand] == index and summand != whole[layer.input] and live[summand][1] == size:
                offset = live.pop(summand)[0]
            else:
                offset = _first_fit(live.values(), size)
            live[name] = (offset, size)
            placements[name] = Placement(tensor=name, base=Base.MAPS, offset=offset)
            sizes[Base.MAPS] = max(sizes[Base.MAPS], offset + size)
        live = {name: where for name, where in live.items() if last_use[name] > index}
    return Memory({name: replace(placements[whole[name]], tensor=name) for name in network.tensors if whole[name] in placements}, sizes)


def check_memory(config: AcceleratorConfig, network: Network, sizes: dict[Base, int]) -> None:
    """Raises :exc:`NoRoomError` naming the bytes if the regions exceed the memory."""
    _, needed = place_regions(sizes)
    if needed > config.memory_bytes:
        parts = ", ".join(f"{base.name.lower()} {size:,}" for base, size in sizes.items())
        raise NoRoomError(f"network {network.name}: needs {needed:,} bytes of memory ({parts}), config {config.name!r} has {config.memory_bytes:,}; "
                           "use a config with more memory, a smaller batch or a smaller network")


def _aligned(size):
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _first_fit(taken, size):
    """Lowest offset at which `size` bytes overlap nothing taken."""
    offset = 0
    for first, length in sorted(taken):
        if offset + size <= first:
            break
        offset = max(offset, first + length)
    return offset
