"""The in-order engine, instruction by instruction, against the instruction-level model: random fields, the extremes among them, over buffers of junk."""

import re

import numpy as np
import pytest

from celosia.hw.config import get_config
from celosia.hw.inorder import InOrderEngine
from celosia.hw.inorder_unit import Buffers
from celosia.hw.isa import Base, Opcode, Target, encode
from celosia.hw.parameters import encode_parameters
from celosia.hw.registers import IN_ORDER_COUNTERS, WRITABLE, Command, ErrorCode, Register, Status
from celosia.sim.machine import Machine
from celosia.sim.rtl import ENDED, RtlBoard

CONFIG = get_config("up5k")
BUFFERS = Buffers.of(CONFIG)
BASES = {Base.WEIGHTS: 0x0000, Base.MAPS: 0x4008, Base.INPUT: 0x8010, Base.OUTPUT: 0xC018}
#: Where programs lie: the end of the memory.
PROGRAM = CONFIG.memory_bytes - 4096
STRIDES = ("column", "row", "image", "kernel_column", "kernel_row", "channels")


class Pair:
    """The engine and the model, with the same bytes everywhere."""

    def __init__(self, seed):
        self.board = RtlBoard(CONFIG, seed=seed)
        self.board.reset()
        self.bytes = self.board.memory.base
        self.random = np.random.default_rng(seed)
        self.machine = Machine(CONFIG, self.board.memory.copy(), BASES, seed)
        self._view(BUFFERS.weights, self.machine._weights)[:] = self.machine._weights.view(np.uint8)
        for first, buffer in self._buffers():
            self._view(first, buffer)[:] = buffer.view(np.uint8)

    def _buffers(self):
        machine = self.machine
        return [(BUFFERS.maps, machine._maps[: CONFIG.map_words]), (BUFFERS.weights, machine._weights), (BUFFERS.parameters, machine._parameters),
                (BUFFERS.staging, machine._staging)]

    def _view(self, first, buffer):
        return self.bytes[8 * first :][: buffer.nbytes].reshape(buffer.shape)

    def put(self, *words):
        """Instructions into both memories."""
        image = np.frombuffer(b"".join(word.to_bytes(16, "little") for word in words), np.uint8)
        for memory in self.board.memory, self.machine.memory:
            memory[PROGRAM : PROGRAM + len(image)] = image

    def run(self, *words):
        """Runs instructions on both, and compares all that they can have written."""
        words = [*words, encode(Opcode.END)]
        self.put(*words)
        assert start(self.board, len(words)) == Status.const({"done": 1}).as_bits()
        self.machine.run(words, program_order=True)
        np.testing.assert_array_equal(self.board.memory, self.machine.memory)
        for first, buffer in self._buffers():
            np.testing.assert_array_equal(self._view(first, buffer), buffer.view(np.uint8))

    def integers(self, low, high):
        """One of low … high, these oftener than others."""
        return int(self.random.choice([low, high, self.random.integers(low, high + 1)], p=[0.15, 0.15, 0.7]))


def start(board, instructions):
    """Runs the program at PROGRAM; returns the status."""
    for base, address in BASES.items():
        assert board.write(Register[f"BASE_{base.name}"], address) == 0
    assert board.write(Register.PROGRAM, PROGRAM) == board.write(Register.INSTRUCTIONS, instructions) == 0
    assert board.write(Register.COMMAND, Command.const({"start": 1}).as_bits()) == 0
    assert board.run(10**7) == ENDED
    return board.read(Register.STATUS)[1]


@pytest.fixture
def pair():
    pair = Pair(seed=1)
    yield pair
    pair.board.close()


def test_loads(pair):
    for _ in range(100):
        base = Base(pair.integers(0, 3))
        target = Target(pair.integers(0, 1))
        words = CONFIG.weight_words if target == Target.WEIGHTS else CONFIG.parameter_words
        beats = pair.integers(1, 60) * (4 if target == Target.PARAMETERS else 1)
        pair.run(encode(Opcode.LOAD_WEIGHTS, base=base, offset=pair.integers(0, 2000), target=target, address=pair.integers(0, words - 1), beats=beats))
        planes, beats = pair.integers(1, 5), pair.integers(1, 200)
        pitch = pair.integers(beats, 450)
        pair.run(encode(Opcode.LOAD_MAP, base=base, offset=pair.integers(0, 500), address=pair.integers(0, CONFIG.map_words - planes * pitch), pitch=pitch,
                        beats=beats, planes=planes, plane_stride=pair.integers(0, 300)))


def test_tiles(pair):
    for _ in range(60):
        columns, rows, images = pair.integers(1, 9), pair.integers(1, 4), pair.integers(1, 3)
        kernel_x, kernel_y, channels = pair.integers(1, 3), pair.integers(1, 3), pair.integers(1, 3)
        setup = encode(Opcode.COMPUTE_WINDOW, width=pair.integers(1, 12), height=pair.integers(1, 12), stride_x=pair.integers(1, 15), stride_y=pair.integers(1, 15),
                       dilation_x=pair.integers(0, 31), dilation_y=pair.integers(0, 31), last_column=columns - 1, last_row=rows - 1, last_image=images - 1,
                       last_kernel_column=kernel_x - 1, last_kernel_row=kernel_y - 1, zero_point=pair.integers(-128, 127))
        # Addresses that stay in the scratchpad, whose end they never reach.
        strides = {name: pair.integers(0, 1) for name in STRIDES}
        computes = []
        pieces = pair.integers(1, 3)
        for piece in range(pieces):
            computes.append(encode(Opcode.COMPUTE, address=pair.integers(0, 600), weights=pair.integers(0, CONFIG.weight_words - 1), last_channels=channels - 1,
                                   x=pair.integers(-40, 12), y=pair.integers(-40, 12), clear=piece == 0, complete=piece == pieces - 1))
        shift = pair.random.integers(16, 48, 4)
        parameters = encode_parameters(pair.random.integers(-10**6, 10**6, 4), pair.random.integers(0, 1 << 16, 4), shift)
        word = pair.integers(0, CONFIG.parameter_words - 1)
        pair.machine._parameters[word] = parameters
        pair._view(BUFFERS.parameters, pair.machine._parameters)[word] = parameters
        drain = encode(Opcode.DRAIN, pixels=columns * rows * images, address=pair.integers(0, 1023), group=pair.integers(0, 7), parameters=word,
                       zero_point=pair.integers(-128, 127), low=pair.integers(-128, 0), high=pair.integers(0, 127), skip=pair.integers(0, 7))
        pair.run(encode(Opcode.COMPUTE_STRIDES, **strides), setup, *computes, drain)


def test_two_banks_of_sums(pair):
    """Two tiles may be complete before the first of them is drained, and an incomplete one goes on in its bank."""
    strides = encode(Opcode.COMPUTE_STRIDES, column=1, row=1, image=1, kernel_column=1, kernel_row=1, channels=1)
    window = encode(Opcode.COMPUTE_WINDOW, width=2047, height=2047, stride_x=1, stride_y=1, last_column=CONFIG.tile_pixels - 1)
    first, second = (encode(Opcode.COMPUTE, address=address, weights=address, clear=1, complete=1) for address in (0, 300))
    drains = [encode(Opcode.DRAIN, pixels=CONFIG.tile_pixels, address=address, parameters=3, low=-128, high=127) for address in (0, 128)]
    pair.machine._parameters[3] = parameters = encode_parameters(np.zeros(4), np.full(4, 40000), np.full(4, 26))
    pair._view(BUFFERS.parameters, pair.machine._parameters)[3] = parameters
    pair.run(strides, window, first, second, *drains)


def test_stores(pair):
    for _ in range(60):
        kernel_x, kernel_y = pair.integers(1, 4), pair.integers(1, 4)
        window = encode(Opcode.STORE_WINDOW, kernel_x=kernel_x, kernel_y=kernel_y, stride_x=pair.integers(1, 4), stride_y=pair.integers(1, 4),
                        x=pair.integers(-32, 31), y=pair.integers(-32, 31), width=pair.integers(1, 20), height=pair.integers(1, 20), pitch=pair.integers(1, 1023))
        plane = pair.integers(0, 1)
        store = encode(Opcode.STORE, base=Base(pair.integers(0, 3)), offset=pair.integers(0, 400), address=pair.integers(0, 1023), plane=plane,
                       last_plane=pair.integers(0, 1 - plane), rows=pair.integers(1, 5), columns=pair.integers(1, 20), plane_stride=pair.integers(0, 500),
                       row_stride=pair.integers(0, 60))
        pair.run(window, store)


@pytest.mark.parametrize("word", [0, 9, encode(Opcode.LOAD_WEIGHTS, target=Target.TABLE, beats=1), encode(Opcode.LOAD_MAP, residual=1, beats=1, planes=1),
                                  encode(Opcode.COMPUTE, diagonal=1),
                                  *(encode(Opcode.DRAIN, pixels=1, **{name: 1}) for name in ("residual", "leaky", "table"))])
def test_what_there_is_no_hardware_for_is_an_error(pair, word):
    pair.put(encode(Opcode.COMPUTE_STRIDES), word, encode(Opcode.END))
    assert start(pair.board, 3) == Status.const({"error": ErrorCode.OPCODE}).as_bits()
    assert pair.board.read(Register.ERROR_INDEX) == (0, 1)
    pair.run(encode(Opcode.COMPUTE_STRIDES))  # and it starts anew


def test_a_program_without_end_is_an_error(pair):
    pair.put(encode(Opcode.COMPUTE_STRIDES), encode(Opcode.COMPUTE_STRIDES))
    assert start(pair.board, 2) == Status.const({"error": ErrorCode.NO_END}).as_bits()
    assert pair.board.read(Register.ERROR_INDEX) == (0, 2)


def test_registers(pair):
    board = pair.board
    known = {*WRITABLE, *IN_ORDER_COUNTERS, *(register for register in Register if register < Register.COMMAND), Register.STATUS, Register.ERROR_INDEX}
    for register in Register:
        assert (board.read(register)[0] == 0) == (register in known)
        assert (board.write(register, 0) == 0) == (register in WRITABLE or register == Register.COMMAND)
    assert board.read(0x7FC)[0] != 0 and board.write(0x7FC, 0) != 0
    for register in set(WRITABLE) - {Register.WATCHDOG}:
        assert board.write(register, 0x12340) == 0
        assert board.read(register) == (0, 0x12340 & (0x1FFF if register == Register.INSTRUCTIONS else 0x1FFF8))


def test_a_reset_stops_the_program(pair):
    pair.put(encode(Opcode.LOAD_MAP, beats=(1 << 14) - 1, planes=511), encode(Opcode.END))
    board, memory = pair.board, pair.bytes.copy()
    board.write(Register.PROGRAM, PROGRAM)
    board.write(Register.INSTRUCTIONS, 2)
    board.write(Register.COMMAND, Command.const({"start": 1}).as_bits())
    assert board.run(1000) == 0 and board.read(Register.STATUS)[1] == Status.const({"busy": 1}).as_bits()
    assert board.write(Register.PROGRAM, 0) != 0 and board.write(Register.COMMAND, Command.const({"start": 1}).as_bits()) != 0, "refused while it runs"
    assert board.write(Register.COMMAND, Command.const({"reset": 1}).as_bits()) == 0
    assert board.read(Register.STATUS)[1] == 0
    pair.bytes[:] = memory
    pair.run(encode(Opcode.COMPUTE_STRIDES))


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="config must be an AcceleratorConfig that is in_order, not .*tiny"):
        InOrderEngine(get_config("tiny"))
    with pytest.raises(ValueError, match=re.escape("build must be in 0…2^32−1, not -1")):
        InOrderEngine(CONFIG, -1)
