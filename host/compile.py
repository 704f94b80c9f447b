"""Network → Program: plan every layer, place tensors, pack weights, emit instructions.

Where the memory has no room for a network, linear layers at its end stay on the host: they have most of its weights and few of its MACs, and loading them would take
longer than computing them.
"""

from hashlib import sha256

import numpy as np

from ..hw.config import AcceleratorConfig, get_config
from ..hw.isa import Base
from ..hw.network import Network
from ..hw.program import Program
from .allocate import allocate, check_memory
from .emit import Emitter
from .errors import CompileError, NoRoomError
from .pack import pack_parameters, pack_table, pack_weights
from .tasks import WeightOffsets
from .tile import Plan, plan_layer

__all__ = ["compile", "plan_network"]


def plan_network(network: Network, config: AcceleratorConfig, batch: int) -> list[Plan]:
    """The plan of each layer. Raises CompileError naming the layer that fits no plan."""
    if config.in_order:
        _check_operations(network, config)
    uses = [network.part(name).tensor for name in [*(name for layer in network.layers for name in layer.reads), *network.outputs]]
    return [plan_layer(config, network, layer, batch, layer.input in network.inputs and uses.count(layer.input) == 1) for layer in network.layers]


def compile(network: "Network", config: "str | AcceleratorConfig" = "ulx3s-85f", batch: int = 1) -> Program:
    """Compile a network (or what wraps one as `.network`) for a configuration and a batch size.

    Raises ConfigError for a bad configuration, CompileError where the network does not fit it, and among these NoRoomError if its memory is too small even for what
    comes before the linear layers at its end.
    """
    network, config = getattr(network, "network", network).verify(), get_config(config)
    if not isinstance(batch, int) or not 1 <= batch <= 1024:
        raise CompileError(f"option batch: must be a whole number in 1…1024, not {batch!r}")
    if network.batch not in (None, batch):
        raise CompileError(f"network {network.name}: was exported for batch {network.batch}, not {batch}; compile it for that, or export it with torch.export.Dim.AUTO")
    if not network.layers:
        raise CompileError(f"network {network.name}: has no layers; there is nothing to compile")
    linear = next((index for index, layer in enumerate(reversed(network.layers)) if layer.op != "linear"), len(network.layers))
    refused = None
    for on_host in range(min(linear, len(network.layers) - 1) + 1):
        device, host = network.split(len(network.layers) - on_host)
        try:
            return _compile(device, config, batch, host)
        except NoRoomError as error:
            refused = refused or error
    raise refused


def _compile(network, config, batch, host):
    weights = sum({sha256(layer.weight).digest(): layer.weight.size for layer in network.layers if not layer.parameters}.values())
    check_memory(config, network, {Base.WEIGHTS: weights} | dict.fromkeys([base for base in Base if base is not Base.WEIGHTS], 0))  # before they are packed
    plans = plan_network(network, config, batch)
    memory = allocate(config, network, plans, batch)
    data, offsets = _image(plans)
    check_memory(config, network, memory.sizes | {Base.WEIGHTS: len(data)})
    emitter = Emitter(config, network, plans, memory.placements, offsets)
    words, layers = emitter.emit()
    image = np.concatenate([data, np.frombuffer(b"".join(word.to_bytes(16, "little") for word in words), np.uint8)])
    sizes = memory.sizes | {Base.WEIGHTS: len(image)}
    check_memory(config, network, sizes)
    estimates = [{"compute": plan.compute, "memory": plan.memory, "bytes": plan.bytes, "bound": plan.bound} for plan in plans]
    return Program(config=config, batch=batch, network=network, host=host, image=image, code_offset=len(data), instructions=len(words),
                   layers=np.array(layers, np.uint16), sizes=sizes,
                   inputs=[memory.placements[name] for name in network.inputs], outputs=[memory.placements[name] for name in network.outputs],
                   stores=emitter.stores, estimates=estimates)


def _check_operations(network, config):
    """Raises CompileError naming the layer that needs what an in-order engine leaves out."""
    for layer in network.layers:
        for needed, what in (
            (layer.residual, "adds a second map"), (layer.lookup, "is or ends in a function looked up in a table"), (layer.parameters, "scales a map by another"),
            (layer.negative is not None, "has a slope for negative values"),
        ):
            if needed:
                raise CompileError(f"layer {layer.name}: {what}, for which config {config.name!r} has no hardware; use another config or keep it on the host")


def _image(plans):
    """Parameters and weights, uint8, in the order of first use, and where each layer's lie."""
    parts, offsets, known, end = [], [], {}, 0

    def append(part):
        nonlocal end
        parts.append(part)
        end += len(part)
        return end - len(part)

    for plan in plans:
        geometry = plan.geometry
        parameters, blocks = None, list(range(geometry.blocks))
        if not geometry.layer.parameters:
            packed = pack_parameters(geometry).reshape(geometry.blocks, -1)
            different, which = np.unique(packed, axis=0, return_inverse=True)
            # Blocks share equal parameters where one load brings all there are.
            if len(different) * geometry.block_parameters <= geometry.config.parameter_words // 4:
                packed, blocks = different, which.reshape(-1).tolist()
            parameters = append(packed.reshape(-1))
        table = append(pack_table(geometry.layer.lookup.table)) if geometry.layer.lookup else None
        weights = {}
        for first in [first for block in range(geometry.blocks) for first in geometry.parts(block)]:
            packed = pack_weights(geometry, first)
            digest = sha256(packed).digest()
            # Array loads of equal weights are stored once, and loaded once within a layer: average pooling has such, and layers of the same weights.
            if digest not in known:
                known[digest] = append(packed)
            weights[first] = known[digest]
        offsets.append(WeightOffsets(parameters, blocks, table, weights))
        append(np.zeros(-end % 512, np.uint8))
    return np.concatenate(parts), offsets
