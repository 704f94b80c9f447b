"""Where block RAMs and multipliers go: nextpnr's placer, when nearly all of a device's are used, leaves them far from what they are wired to.

A placed design says where everything else is. Each block is then assigned to a site so that the half perimeters of the wires' bounding boxes are shortest in sum,
which is a problem with an exact solution. A second placement that finds the blocks fixed moves everything else towards them.
"""

import re
from collections import defaultdict
from itertools import product

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["BLOCKS", "assign_blocks"]

#: Types of cells that are assigned, one after the other.
BLOCKS = ("DP16KD", "MULT18X18D")

_BEL = re.compile(r"X(\d+)/Y(\d+)/(.+)")
#: So often at most is every type assigned.
_ROUNDS = 4


def assign_blocks(placed: dict) -> "dict[str, str]":
    """The bel of every block, by the cell's name, for a design that nextpnr has placed (what `--write` writes, as read from JSON).

    Sites are those at the columns and rows where the design's cells of a type are: all of a device of which nearly all are used.
    """
    cells = placed["modules"]["top"]["cells"]
    bels = [_BEL.fullmatch(cell["attributes"]["NEXTPNR_BEL"]).groups() for cell in cells.values()]
    bels = [(int(x), int(y), name) for x, y, name in bels]
    kinds = [_Kind([number for number, cell in enumerate(cells.values()) if cell["type"] == kind], bels) for kind in BLOCKS]
    position = np.array([bel[:2] for bel in bels], np.float64)
    nets, wires = _nets(cells, {block for kind in kinds for block in kind.blocks})

    def length():
        return sum(np.ptp(position[net], axis=0).sum() for net in nets)

    shortest = length()
    for _ in range(_ROUNDS):
        before = shortest
        for kind in kinds:
            chosen = kind.assign(position, wires)
            position[kind.blocks] = kind.where[chosen]
            if (now := length()) < shortest:
                shortest, kind.chosen = now, chosen
            position[kind.blocks] = kind.where[kind.chosen]
        if shortest == before:
            break
    names = list(cells)
    return {names[block]: "X{}/Y{}/{}".format(*kind.sites[site]) for kind in kinds for block, site in zip(kind.blocks, kind.chosen)}


class _Kind:
    """Blocks of a type, by number; the sites they may have, and those they have."""

    def __init__(self, blocks, bels):
        columns, rows = ({key(bels[block]) for block in blocks} for key in (lambda bel: (bel[0], bel[2]), lambda bel: bel[1]))
        self.blocks, self.sites = blocks, [(x, y, name) for y, (x, name) in product(sorted(rows), sorted(columns))]
        self.where = np.array([site[:2] for site in self.sites], np.float64).reshape(-1, 2)
        self.chosen = np.array([self.sites.index(bels[block]) for block in blocks], np.intp)

    def assign(self, position, wires):
        """Sites that are best if all other cells stay."""
        cost = np.zeros((len(self.blocks), len(self.sites)))
        for row, block in zip(cost, self.blocks):
            for net in wires[block]:
                others = position[net[net != block]]
                low, high = others.min(axis=0), others.max(axis=0)
                row += (np.maximum(low - self.where, 0) + np.maximum(self.where - high, 0)).sum(axis=1)
        return linear_sum_assignment(cost)[1]


def _nets(cells, blocks):
    """The nets that have a block and something else, arrays of the numbers of their cells; and by block those it is on."""
    cells_of = defaultdict(set)
    for number, cell in enumerate(cells.values()):
        for bits in cell["connections"].values():
            for bit in bits:
                if isinstance(bit, int):
                    cells_of[bit].add(number)
    nets = [np.array(sorted(numbers)) for numbers in cells_of.values() if len(numbers) > 1 and not numbers.isdisjoint(blocks)]
    wires = {block: [] for block in blocks}
    for net in nets:
        for number in blocks.intersection(net.tolist()):
            wires[number].append(net)
    return nets, wires
