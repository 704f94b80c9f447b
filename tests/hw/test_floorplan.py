"""Block RAMs are assigned to the sites where their wires are shortest, as trying every assignment finds."""

import random
from itertools import permutations

import pytest

from celosia.hw.floorplan import assign_blocks

SITES = [(x, y, f"EBR{x % 4}") for x in (4, 6, 9) for y in (22, 46)]


def random_design(seed, shared, kinds=("DP16KD",) * 4):
    """Four blocks, each wired to registers of its own and, if `shared`, all to some, placed at random, as nextpnr writes a design."""
    rng = random.Random(seed)
    cells = {f"ff{k}": cell("TRELLIS_FF", rng.randrange(20), rng.randrange(60), "SLICEA.FF0", [k]) for k in range(20)}
    sites = rng.sample(SITES, 4)
    # Every row and column has one, so that all sites are known.
    while len({x for x, *_ in sites}) < 3 or len({y for _, y, _ in sites}) < 2:
        sites = rng.sample(SITES, 4)
    for k, site in enumerate(sites):
        cells[f"ram{k}"] = cell(kinds[k], *site, [*range(5 * k, 5 * k + 3), *(range(3, 20, 5) if shared else []), "0"])
    return {"modules": {"top": {"cells": cells}}}


def cell(kind, x, y, name, bits):
    return {"type": kind, "attributes": {"NEXTPNR_BEL": f"X{x}/Y{y}/{name}"}, "connections": {f"P{k}": [bit] for k, bit in enumerate(bits)}}


def length(design, bels):
    """Half perimeters of all nets' boxes, in sum, with block RAMs at `bels`."""
    boxes = {}
    for name, each in design["modules"]["top"]["cells"].items():
        x, y = (int(word[1:]) for word in bels.get(name, each["attributes"]["NEXTPNR_BEL"]).split("/")[:2])
        for bit in sum(each["connections"].values(), []):
            boxes.setdefault(bit, []).append((x, y))
    return sum(max(axis) - min(axis) for bit, pins in boxes.items() if bit != "0" for axis in zip(*pins))


@pytest.mark.parametrize("seed", range(8))
def test_no_assignment_of_blocks_has_shorter_wires(seed):
    design = random_design(seed, shared=False)
    found = assign_blocks(design)
    names = ["X{}/Y{}/{}".format(*site) for site in SITES]
    assert sorted(found) == [f"ram{k}" for k in range(4)] and len({*found.values()}) == 4 and {*found.values()} <= {*names}
    assert length(design, found) == min(length(design, dict(zip(sorted(found), chosen))) for chosen in permutations(names, 4))


@pytest.mark.parametrize("seed", range(8))
def test_wires_from_block_to_block_do_not_make_it_longer(seed):
    design = random_design(seed, shared=True)
    assert length(design, assign_blocks(design)) <= length(design, {})


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_both_types_are_assigned_to_sites_of_their_own(seed):
    design = random_design(seed, shared=True, kinds=("DP16KD", "MULT18X18D") * 2)
    found, cells = assign_blocks(design), design["modules"]["top"]["cells"]
    assert length(design, found) <= length(design, {})
    for kind in ("DP16KD", "MULT18X18D"):
        names = [name for name, each in cells.items() if each["type"] == kind]
        axes = [{cells[name]["attributes"]["NEXTPNR_BEL"].split("/")[axis] for name in names} for axis in range(3)]
        assert len({found[name] for name in names}) == 2 and all(found[name].split("/")[axis] in axes[axis] for name in names for axis in range(3))


def test_a_design_without_blocks_has_no_floorplan():
    design = random_design(0, shared=True)
    for k in range(4):
        del design["modules"]["top"]["cells"][f"ram{k}"]
    assert assign_blocks(design) == {}
