"""The host's encoding is the gateware's: one layout, read from both sides."""

import random

import pytest
from amaranth.lib import data

from celosia.hw.isa import EDGES, INSTRUCTION_BITS, INSTRUCTIONS, Opcode, Target, Unit, decode, encode, unit_of


def fields_of(struct):
    """Name → (lowest, highest) of an instruction's own fields."""
    shapes = {name: field.shape for name, field in data.Layout.cast(struct) if name != "header"}
    shapes = {name: shape.as_shape() if isinstance(shape, type) else shape for name, shape in shapes.items()}
    return {name: (-(1 << s.width - 1), (1 << s.width - 1) - 1) if s.signed else (0, (1 << s.width) - 1) for name, s in shapes.items()}


@pytest.mark.parametrize("opcode", Opcode)
def test_encoding_is_the_struct(opcode):
    rng, struct = random.Random(0), INSTRUCTIONS[opcode]
    for _ in range(50):
        wait, post = ({unit for unit in Unit if rng.random() < 0.5} for _ in range(2))
        values = {name: rng.choice([*bounds, rng.randint(*bounds)]) for name, bounds in fields_of(struct).items()}
        if "target" in values:
            values["target"] = rng.choice(list(Target))  # not every number is one
        masks = {"wait": sum(1 << unit for unit in wait), "post": sum(1 << unit for unit in post)}
        word = encode(opcode, wait=wait, post=post, **values)
        assert word == struct.const(values | {"header": {"opcode": opcode} | masks}).as_bits() < 1 << INSTRUCTION_BITS
        assert decode(word) == (opcode, values | masks | {"opcode": opcode})


@pytest.mark.parametrize("opcode", Opcode)
def test_what_does_not_fit_is_refused(opcode):
    for name, (low, high) in fields_of(INSTRUCTIONS[opcode]).items():
        for value in (low - 1, high + 1):
            with pytest.raises(ValueError, match=rf"{opcode.name}\.{name} must be in {low}…{high}, not {value}"):
                encode(opcode, **{name: value})
    with pytest.raises(ValueError, match="has no field 'speed'"):
        encode(opcode, speed=1)


def test_units_and_edges():
    assert {unit_of(opcode) for opcode in Opcode} == {*Unit, None} and unit_of(Opcode.END) is None
    assert len(set(EDGES)) == len(EDGES) and all(source != target for source, target in EDGES)
    with pytest.raises(ValueError, match="0"):
        decode(0)
