"""Concatenations and slices of channels become places in memory: which map lies within which, and the layers that takes.

A concatenation is one map, its whole; what computes a part of it writes it there. A part must begin at a multiple of 8 channels, where a plane of memory does;
parts for which that is not so are gathered by convolutions with weights 0 and 1. A part that is the network's input, a slice, or part of another whole as well is
copied. So is one that is read by itself, too, and would lose more than 1 dB there by the scale that all parts share.
"""

import math
from itertools import accumulate

import torch

from ..hw.config import PLANE
from .operations import ADD, CAT, CONV, COPY, LINEAR, RESHAPES, SLICE, add_parameter, argument, call, image_shape, refuse, source_of, tensor_users

__all__ = ["layout", "place", "rewrite_slices"]

aten = torch.ops.aten

_CATS = {aten.cat.default, aten.concat.default, aten.concatenate.default, aten.hstack.default}
_SPLITS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.tensor_split.sections, aten.tensor_split.indices}
#: What a part that is read by itself may lose there.
_MOST_LOSS_DB = 1.0


def rewrite_slices(node: torch.fx.Node) -> None:
    """Rewrite a concatenation or a choice of channels to `aten.cat` of dimension 1 or `aten.slice` of a step of 1. Raises :exc:`UnsupportedError`."""
    if node.target in _CATS:
        _rewrite_cat(node)
    elif node.target in _SPLITS:
        _rewrite_split(node)
    elif node.target is aten.narrow.default:
        _, dim, first, length = node.args
        node.args, node.target = (node.args[0], dim, first, first + length), SLICE
    if node.target is SLICE:
        _rewrite_slice(node)


def _rewrite_cat(node):
    parts, dims = node.args[0], node.meta["val"].dim()
    dim = 1 if node.target is aten.hstack.default else argument(node, "dim")
    if dim % dims != 1:
        raise refuse(node, f"along dimension {dim} is not supported", "concatenate along the channels (1)")
    shapes = [image_shape(part) for part in parts]
    if dims not in (2, 4) or len({shape[1:] for shape in shapes}) > 1:
        raise refuse(node, f"of tensors of {dims} dimensions is not supported", "concatenate maps (N, C, H, W), or vectors (N, C)")
    if any(part.op == "get_attr" for part in parts):
        raise refuse(node, "with a constant is not supported", "concatenate maps that depend on the input")
    node.args, node.kwargs, node.target = (list(parts), 1), {}, CAT


def _rewrite_split(node):
    source, first = node.args[0], 0
    dim = argument(node, "dim")
    for index, part in enumerate(node.meta["val"]):
        size = part.shape[dim]
        for item in [user for user in node.users if user.args[1] == index and user.users]:
            item.target, item.args = SLICE, (source, dim, first, first + size)
        first += size
    for item in list(node.users):  # those that nobody reads
        node.graph.erase_node(item)
    node.graph.erase_node(node)


def _rewrite_slice(node):
    source, dim = node.args[0], argument(node, "dim") % node.meta["val"].dim()
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if str(before) == str(after):
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
        return
    if dim != 1 or argument(node, "step") != 1:
        raise refuse(node, f"along dimension {dim} with step {argument(node, 'step')} is not supported", "take channels next to each other, or crop on the host")
    size = before[1]
    first = argument(node, "start") or 0
    first = min(first + size if first < 0 else first, size)
    node.args, node.kwargs = (source, 1, first, first + after[1]), {}


def layout(graph: torch.fx.Graph) -> "dict[torch.fx.Node, tuple[torch.fx.Node, int]]":
    """The whole that a map is part of, and its first channel there, of every map that is part of one, in a graph by :func:`place`."""
    return _arrange(graph)[0]


def _arrange(graph):
    """The layout, and for each whole the positions of the parts that must be copied to be part of it."""
    cats = [node for node in graph.nodes if node.target is CAT]
    parts = {cat: [source_of(part) for part in cat.args[0]] for cat in cats}
    places, copied = {}, {}
    # The longest first: a concatenation of some of its parts, as DenseNet has them, lies within it.
    for cat in sorted(cats, key=lambda cat: -len(parts[cat])):
        firsts = [0, *accumulate(image_shape(part)[0] for part in cat.args[0])]
        if (found := _find(parts[cat], {whole: parts[whole] for whole in copied})) is not None:
            whole, position = found
            places[cat] = whole, sum(image_shape(part)[0] for part in whole.args[0][:position])
            continue
        copied[cat] = []
        for index, part in enumerate(parts[cat]):
            if part.op == "placeholder" or part.target is SLICE or part in places:
                copied[cat].append(index)
            else:
                places[part] = cat, firsts[index]
    for node in graph.nodes:
        if node.target is SLICE:
            whole, first = places.get(source_of(node.args[0]), (source_of(node.args[0]), 0))
            places[node] = whole, first + node.args[2]
    return places, copied


def _find(some, wholes):
    """The whole, and the position in it, at which all of `some` parts follow each other; None if there is none."""
    for whole, parts in wholes.items():
        for position in range(len(parts) - len(some) + 1):
            if parts[position : position + len(some)] == some:
                return whole, position
    return None


def place(module: torch.fx.GraphModule, inputs: "tuple[torch.Tensor, ...]") -> None:
    """Add to a simplified graph what :func:`layout` needs: gathering convolutions and copies.

    `inputs`, a calibration batch, tell which parts would lose by a shared scale.
    """
    graph = module.graph
    for node in [node for node in graph.nodes if node.target is CAT]:
        _flatten(node)
    for node in reversed(graph.nodes):
        if node.target is CAT and not node.users:
            graph.erase_node(node)
    gathered = {}
    for node in [node for node in graph.nodes if node.target is CAT]:
        _gather(module, node, gathered)
    for node in [node for node in graph.nodes if node.target is SLICE and node.args[2] % PLANE]:
        _replace(node, _select(module, node, node.args[0], node.args[2], 0, image_shape(node)[0], "slice"))
    for node in [node for node in graph.nodes if node.target is CAT and len(node.args[0]) == 1]:
        _replace(node, node.args[0][0])
    _copy(graph)
    for whole, index in _losers(module, inputs):
        _copy_part(graph, whole, index)
    graph.lint()
    module.recompile()


def _flatten(cat):
    """Parts that are concatenations themselves, by their parts."""
    parts = []
    for part in cat.args[0]:
        parts += part.args[0] if part.target is CAT else [part]
    cat.args = (parts, 1)


def _gather(module, cat, gathered):
    """One part in the place of several that do not begin at a plane."""
    parts, pending = [], []
    for index, part in enumerate(cat.args[0]):
        pending.append(part)
        if sum(image_shape(part)[0] for part in pending) % PLANE == 0 or index + 1 == len(cat.args[0]):
            key = tuple(pending)
            if len(pending) > 1 and key not in gathered:
                gathered[key] = _gathered(module, cat, pending)
            parts.append(gathered.get(key, part))
            pending = []
    cat.args = (parts, 1)


def _gathered(module, cat, parts):
    channels, first, total = sum(image_shape(part)[0] for part in parts), 0, None
    for part in parts:
        selected = _select(module, cat, part, 0, first, channels, "concat")
        if total is not None:
            with cat.graph.inserting_before(cat):
                selected = call(cat.graph, ADD, (selected, total), like=selected)
        total, first = selected, first + image_shape(part)[0]
    return total


def _select(module, node, source, first, at, channels, op):
    """A convolution whose outputs from `at` on are the source's channels from `first` on, and 0 before and behind them."""
    inputs = image_shape(source)[0]
    count = min(inputs - first, channels - at)
    weight = torch.zeros(channels, inputs)
    weight[at : at + count, first : first + count] = torch.eye(count)
    batch, _, *size = source.meta["val"].shape
    with node.graph.inserting_before(node):
        weight = add_parameter(module, f"{node.name}_selection", weight.reshape(channels, inputs, *[1] * len(size)))
        arguments = (source, weight, None, [1, 1], [0, 0], [1, 1], 1) if size else (source, weight, None)
        selected = call(node.graph, CONV if size else LINEAR, arguments, like=node, shape=(batch, channels, *size))
    selected.meta["op"] = op
    return selected


def _replace(node, other):
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _copy(graph):
    while True:
        _, copied = _arrange(graph)
        todo = next(((whole, positions[0]) for whole, positions in copied.items() if positions), None)
        if todo is None:
            return
        _copy_part(graph, *todo)


def _copy_part(graph, whole, index):
    """A copy in the place of a part, in the whole and in what lies within it."""
    parts = list(whole.args[0])
    places, _ = _arrange(graph)
    part = parts[index]
    with graph.inserting_after(part):
        copy = call(graph, COPY, (part,), like=part)
    copy.meta["op"] = "copy"
    for cat in [whole, *(node for node in places if node.target is CAT and places[node][0] is whole)]:
        _, position = _find([source_of(part) for part in cat.args[0]], {whole: [source_of(part) for part in parts]})
        cat.args = ([copy if position + offset == index else part for offset, part in enumerate(cat.args[0])], 1)


def _losers(module, inputs):
    """(whole, position) of parts that are read by themselves and lose too much by the whole's scale."""
    _, copied = _arrange(module.graph)
    wanted = {source_of(part) for whole in copied for part in whole.args[0]}
    alone = {part for part in wanted if any(user.target is not CAT for user in _readers(part))}
    if not alone:
        return []
    ranges = _Ranges(module, wanted)
    with torch.no_grad():
        ranges.run(*inputs)
    result = []
    for whole in copied:
        spans = {part: ranges.seen[part] for part in map(source_of, whole.args[0])}
        shared = max(high for _, high in spans.values()) - min(low for low, _ in spans.values())
        for index, part in enumerate(map(source_of, whole.args[0])):
            low, high = spans[part]
            if part in alone and part.target is not COPY and high > low and 20 * math.log10(shared / (high - low)) > _MOST_LOSS_DB:
                result.append((whole, index))
    return result


def _readers(node):
    """Users of a map, through what only reshapes it."""
    for user in tensor_users(node):
        yield from _readers(user) if user.target in RESHAPES else [user]


class _Ranges(torch.fx.Interpreter):
    """Runs a module and notes the range, with zero, of some nodes' values."""

    def __init__(self, module, nodes):
        super().__init__(module)
        self._nodes, self.seen = nodes, {}

    def run_node(self, node):
        value = super().run_node(node)
        if node in self._nodes:
            low, high = torch.aminmax(value)
            self.seen[node] = min(float(low), 0.0), max(float(high), 0.0)
        return value
