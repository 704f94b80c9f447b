"""Programs that no compiler wrote, for what time and tokens make of them: the results mean nothing."""

import random

import numpy as np

from celosia.hw.config import AcceleratorConfig
from celosia.hw.isa import EDGES, SETUPS, Base, Opcode, Unit, decode, encode, unit_of
from celosia.hw.network import Network, Tensor
from celosia.hw.program import Placement, Program

__all__ = ["crowded_instructions", "program_of", "random_instructions"]

#: Where loads and stores begin at most, and the distance of their planes at most, in beats of base MAPS.
_OFFSETS, _PLANES = 1 << 14, 2000


def program_of(config: AcceleratorConfig, words: "list[int]") -> Program:
    """A program of these instructions, whose output is its input, a pixel that they leave alone. Every instruction of STORE ends a "layer"."""
    x = Tensor(name="x", shape=(8, 1, 1), scale=1.0, zero_point=0)
    network, place = Network(name="instructions", tensors={"x": x}, layers=[], inputs=["x"], outputs=["x"]), Placement(tensor="x", base=Base.INPUT, offset=0)
    image = np.frombuffer(b"".join(word.to_bytes(16, "little") for word in words), np.uint8)
    stores = sum(unit_of(decode(word)[0]) is Unit.STORE for word in words)
    return Program(config=config, batch=1, network=network, image=image, code_offset=0, instructions=len(words), layers=np.zeros(len(words), np.uint16), estimates=[],
                   stores=list(range(1, stores + 1)), sizes={Base.WEIGHTS: image.size, Base.MAPS: 8 << 15, Base.INPUT: 8, Base.OUTPUT: 0},
                   inputs=[place], outputs=[place])


def random_instructions(config: AcceleratorConfig, seed: int, count: int = 150) -> "list[int]":
    """Instructions of random sizes that run in the program's order at the least: each waits only for tokens left before it. Those that set COMPUTE up leave none, as
    they overtake the tile in front of them."""
    draw = random.Random(seed)
    opcodes = [opcode for opcode in Opcode if opcode is not Opcode.END]
    shares, most_beats = [16 ** draw.random() for _ in opcodes], {opcode: draw.choice([4, 32, 256]) for opcode in opcodes}
    waiting, posting = draw.choice([(0.7, 0.5), (0.7, 0.1), (1, 0.05)])
    tokens, words = dict.fromkeys(EDGES, 0), []

    def transfer(opcode):
        return {"base": Base.MAPS, "offset": draw.randrange(_OFFSETS)} | ({} if opcode is Opcode.LOAD_WEIGHTS else {"plane_stride": draw.randrange(_PLANES)})

    def fields(opcode):
        match opcode:
            case Opcode.LOAD_WEIGHTS:
                return transfer(opcode) | {"beats": draw.randint(1, most_beats[opcode])}
            case Opcode.LOAD_MAP:
                return transfer(opcode) | {"beats": draw.randint(1, most_beats[opcode]), "planes": draw.randint(1, 4)}
            case Opcode.COMPUTE_WINDOW:
                rows = draw.randint(1, 4)
                columns = draw.randint(-(-config.min_pixels // rows), config.tile_pixels // rows)
                return {"last_row": rows - 1, "last_column": columns - 1, "last_kernel_row": draw.randrange(2), "last_kernel_column": draw.randrange(3)}
            case Opcode.COMPUTE:
                diagonal = draw.randrange(2)
                block = {"diagonal": diagonal, "lane": diagonal * draw.randrange(0, 16, 2)}
                return {"last_channels": draw.randrange(3), "clear": 1, "complete": draw.randrange(2), **block}
            case Opcode.DRAIN:
                return {"pixels": draw.randint(config.min_pixels, config.tile_pixels)}
            case Opcode.STORE_WINDOW:
                kernel = draw.choice([1, 1, 1, 2, 3])
                strides = {"stride_x": draw.randint(1, 2), "stride_y": draw.randint(1, 3)}
                return strides | {"kernel_x": kernel, "kernel_y": draw.randint(1, kernel), "y": draw.randint(-2, 5)}
            case Opcode.STORE:
                rows = draw.randint(1, 8)
                columns = draw.randint(1, min(config.stage_pixels // rows, most_beats[opcode]))
                area = {"rows": rows, "columns": columns, "row_stride": columns + draw.choice([0, draw.randrange(100)])}
                return transfer(opcode) | area | {"last_plane": draw.randrange(2)}
        return {}

    for opcode in [Opcode.COMPUTE_WINDOW, Opcode.STORE_WINDOW, Opcode.COMPUTE, *draw.choices(opcodes, shares, k=count)]:
        unit = unit_of(opcode)
        wait = [source for source, target in EDGES if target == unit and tokens[source, target] and draw.random() < waiting]
        post = [target for source, target in EDGES if source == unit and opcode not in SETUPS and tokens[source, target] < 100 and draw.random() < posting]
        for source in wait:
            tokens[source, unit] -= 1
        for target in post:
            tokens[unit, target] += 1
        words.append(encode(opcode, wait=wait, post=post, **fields(opcode)))
    return [*words, encode(Opcode.END)]


def crowded_instructions(config: AcceleratorConfig, seed: int, count: int = 40) -> "list[int]":
    """Stores that fill the write buffer and the memory's, so that instructions retire long before their beats have left. On that depends when maps are asked for,
    and they come before most of the weights, which are asked for all the time."""
    draw = random.Random(seed)
    words = [encode(Opcode.COMPUTE_WINDOW, last_column=15), encode(Opcode.COMPUTE, clear=1)]
    words.append(encode(Opcode.STORE_WINDOW, kernel_x=1, kernel_y=1, stride_x=1, stride_y=1))
    for index in range(count):
        weights, store, maps = ({"base": Base.MAPS, "offset": draw.randrange(_OFFSETS)} for _ in range(3))
        columns = draw.randint(config.stage_pixels // 2, config.stage_pixels)
        if index % 3 == 0:
            words.append(encode(Opcode.LOAD_WEIGHTS, beats=draw.randint(100, 400), **weights))
        words.append(encode(Opcode.STORE, rows=1, columns=columns, row_stride=columns, last_plane=1, plane_stride=draw.randrange(_PLANES), **store))
        words.append(encode(Opcode.LOAD_MAP, beats=draw.randint(1, 40), planes=2, plane_stride=draw.randrange(_PLANES), **maps))
    return [*words, encode(Opcode.END)]
