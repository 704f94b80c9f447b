"""Programs on the instruction-level model."""

import numpy as np

from celosia.hw.isa import Base
from celosia.hw.program import Program, pack_map
from celosia.sim.machine import Machine


def run_on_machine(program: Program, inputs: list[np.ndarray], seed: int, words: list[int] | None = None) -> list[np.ndarray]:
    """Output codes of a program for its inputs' codes, int8 (N, C, H, W). Memory, no more than it needs, and buffers are full of junk.

    The junk and the order of the instructions follow from the seed; 0 is the program's own order. words: other instructions.
    """
    bases, tensors = program.bases(), program.network.tensors
    memory = np.random.default_rng(seed).integers(0, 256, program.memory_bytes, np.uint8)
    memory[bases[Base.WEIGHTS] :][: len(program.image)] = program.image
    for place, codes in zip(program.inputs, inputs):
        folded = place.fold.apply(codes, tensors[place.tensor].zero_point) if place.fold else codes
        data = pack_map(folded).reshape(-1).view(np.uint8)
        memory[bases[place.base] + place.offset :][: len(data)] = data
    Machine(program.config, memory, bases, seed).run(program.words() if words is None else words, program_order=seed == 0)
    return [program.output_codes(place, memory[bases[place.base] :]) for place in program.outputs]
