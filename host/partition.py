"""Splits a traced graph into stages: those that the engine runs and, where it has no operation, what stays on the host between them.

A node stays on the host if the engine refuses it, or if nothing computed with it is worth moving its maps. Stages alternate: what a device stage reads of the host
was computed by host stages before it.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from operator import getitem

import torch

from .errors import UnsupportedError
from .fuse import fuse
from .operations import RESHAPES, is_tensor, operation, refuse
from .simplify import functional, simplify

__all__ = ["Stage", "partition"]

#: Operations for whose sake maps are moved to the device.
_WORTH = ("conv2d", "conv_transpose2d", "linear")
_TOO_LITTLE = "computes too little there to be worth moving its maps"


@dataclass(kw_only=True)
class Stage:
    """A part of a graph, which reads and computes values that are named by the graph's nodes."""

    device: bool
    #: Takes the inputs and returns a tuple of the outputs, float32 on a device; not simplified yet.
    module: torch.fx.GraphModule
    inputs: list[str]
    outputs: list[str]
    #: On the host: the sentence of the first refusal of each operation.
    reasons: list[str] = field(default_factory=list)


def partition(module: torch.fx.GraphModule) -> "tuple[list[Stage], list[str], list[str]]":
    """The stages of a graph of :func:`~celosia.host.trace.trace` in order of execution, and the names of the values it takes and returns.

    The graph is rewritten. Raises :exc:`UnsupportedError` for what neither a device nor the host may do, such as a dropout that is active.
    """
    return _Partitioner(functional(module)).result()


class _Partitioner:
    def __init__(self, module):
        self.module, self.graph = module, module.graph
        self.graph.eliminate_dead_code()
        self.placeholders = [node for node in self.graph.nodes if node.op == "placeholder" and is_tensor(node)]
        [self.output] = [node for node in self.graph.nodes if node.op == "output"]
        #: What N is called: by each input in a way of its own, unless an operation brings them together.
        self.batches = {str(node.meta["val"].shape[0]) for node in self.placeholders if node.meta["val"].dim()}
        self.refusals = {}  # node → UnsupportedError

    def result(self):
        while self.refused(stages := self.stages()):
            pass
        returned = torch.utils._pytree.tree_leaves(self.output.args)
        return stages, [node.name for node in self.placeholders], [value.name if isinstance(value, torch.fx.Node) else None for value in returned]

    def refused(self, stages):
        """Whether a device stage holds what belongs on the host; it is noted."""
        before = len(self.refusals)
        for stage in [stage for stage in stages if stage.device]:
            self.refusals |= self.unfit(stage) or self.trifles(stage)
        return len(self.refusals) > before

    def unfit(self, stage):
        """Nodes of a device stage that read what cannot be moved, or the one that the engine refuses."""
        found = {}
        for node in stage.module.graph.nodes:
            if node.op == "placeholder" and (reason := self.immovable(node)):
                found |= {user.meta["origin"]: refuse(user.meta["origin"], reason) for user in node.users if "origin" in user.meta}
        if found:
            return found
        trial = torch.fx.GraphModule(stage.module, _copy(stage.module.graph))
        try:
            fuse(simplify(trial).graph)
        except UnsupportedError as error:
            if error.node is None or "origin" not in error.node.meta:
                raise
            return {error.node.meta["origin"]: error}
        return {}

    def immovable(self, node):
        value = node.meta["val"]
        if value.dtype != torch.float32:
            return f"reads {str(value.dtype).removeprefix('torch.')} values, which no device has"
        if value.dim() not in (2, 4) or str(value.shape[0]) not in self.batches or not all(str(size).isdigit() for size in value.shape[1:]):
            return f"reads a tensor of shape {tuple(map(str, value.shape))}, which is no batch of maps of a fixed size"
        return None

    def trifles(self, stage):
        """Nodes of a device stage that are not connected with an operation that is worth it."""
        parent = {}

        def root(node):
            while parent.setdefault(node, node) is not node:
                node = parent[node]
            return node

        nodes = [node for node in stage.module.graph.nodes if node.op == "call_function"]
        for node in nodes:
            for source in node.all_input_nodes:
                if source.op == "call_function":
                    parent[root(source)] = root(node)
        worth = {root(node) for node in nodes if operation(node) in _WORTH}
        return {node.meta["origin"]: refuse(node.meta["origin"], _TOO_LITTLE) for node in nodes if root(node) not in worth}

    def stages(self):
        levels, on_device = {}, set()  # a level is that of the stage; a shape belongs to what it is a shape of
        for node in self.graph.nodes:
            sources = [source for source in node.all_input_nodes if source in levels]
            if node.op == "call_function" and not self.free(node):
                if self.on_host(node, on_device):
                    levels[node] = max((levels[source] for source in sources), default=0)
                else:
                    on_device.add(node)
                    levels[node] = max(levels[source] + (source not in on_device) for source in sources)
            elif node.op == "placeholder":
                levels[node] = 0
        members = defaultdict(list)
        for node, level in levels.items():
            if node.op == "call_function":
                members[level, node not in on_device].append(node)
        last = max(levels[node] for node in self.output.all_input_nodes if node in levels)
        members.setdefault((last, True), [])  # for what is only another shape of a device's map
        drafts = [(host, _Draft(self, nodes, host)) for (_, host), nodes in sorted(members.items())]
        wanted = set(self.output.all_input_nodes)
        for _, draft in reversed(drafts):
            draft.choose(wanted)
            wanted = (wanted - set(draft.outputs)) | set(draft.externals)
        return [Stage(device=not host, module=draft.module(), inputs=[node.name for node in draft.externals], outputs=[node.name for node in draft.outputs],
                      reasons=self.reasons(draft.nodes) if host else []) for host, draft in drafts if draft.outputs]

    def on_host(self, node, on_device):
        sources = [source for source in node.all_input_nodes if not self.free(source)]
        if node in self.refusals or not sources or not isinstance(node.target, torch._ops.OpOverload) and node.target is not getitem:
            return True
        # A shape, or a part of what an operation returns, is where its source is.
        return (node.target in RESHAPES or node.target is getitem) and sources[0] not in on_device

    def free(self, node):
        """Whether a node is a parameter, or a number that follows from the batch's size."""
        if node.op == "get_attr":
            return True
        if node.op != "call_function" or isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
            return False
        if operation(node) == "sym_size":
            return str(node.meta["val"]) in self.batches or str(node.meta["val"]).isdigit()
        return all(self.free(source) for source in node.all_input_nodes)

    def reasons(self, nodes):
        first = {}
        for node in nodes:
            if node in self.refusals:
                first.setdefault(operation(node), str(self.refusals[node]))
        return list(first.values())


class _Draft:
    """A stage to be: its nodes, then what of them is read elsewhere, and what they read."""

    def __init__(self, partitioner, nodes, host):
        self.partitioner, self.nodes, self.host = partitioner, nodes, host
        self.own = set(nodes)
        self.outputs, self.externals, self.needed = [], [], set()

    def choose(self, wanted):
        """`wanted` are the values that later stages read or the graph returns. The host makes shapes of a device's maps, and parameters, where they are read."""
        everything = self.partitioner.graph.nodes
        self.outputs = [node for node in everything if node in wanted and (node in self.own or (self.host and self.copied(node)))]
        self.needed = set(self.outputs)
        for node in reversed(everything):
            if node in self.needed and self.made_here(node) and operation(node) != "sym_size":
                self.needed.update(node.all_input_nodes)
        self.externals = [node for node in everything if node in self.needed and not self.made_here(node)]
        sized = any(operation(node) == "sym_size" for node in self.needed)
        if sized and not any(self.has_batch(node) for node in self.externals):
            self.externals.insert(0, self.partitioner.placeholders[0])

    def made_here(self, node):
        return node in self.own or self.copied(node)

    def copied(self, node):
        return self.partitioner.free(node) or (self.host and node.op == "call_function" and node.target in RESHAPES)

    def has_batch(self, node):
        return is_tensor(node) and str(node.meta["val"].shape[0]) in self.partitioner.batches

    def module(self):
        graph, copies = torch.fx.Graph(), {}
        for external in self.externals:
            copies[external] = graph.placeholder(external.name)
            copies[external].meta = {"val": external.meta["val"]}
        sized = next((copies[node] for node in self.externals if self.has_batch(node)), None)
        for node in self.partitioner.graph.nodes:
            if node not in self.needed or node in copies:
                continue
            if operation(node) == "sym_size":
                size = str(node.meta["val"])
                copies[node] = int(size) if size.isdigit() else graph.call_function(node.target, (sized, 0))
            else:
                copies[node] = graph.node_copy(node, lambda source: copies[source])
            if isinstance(copies[node], torch.fx.Node):
                copies[node].meta = dict(node.meta) | {"origin": node}
        graph.output(tuple(copies[node] for node in self.outputs))
        return torch.fx.GraphModule(self.partitioner.module, graph)


def _copy(graph):
    """The same graph of other nodes."""
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied
