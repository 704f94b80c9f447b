"""The instruction set executed in NumPy: what each instruction does, without its time.

It stands between compiler and gateware: a program that gives golden's bytes here, in any order its tokens allow, is right, and gateware that
differs is wrong. Units take instructions in order; which unit goes next is drawn at random, some units lagging far behind, so a missing token shows.
"""

import random
from collections import deque
from typing import NamedTuple

import numpy as np

from ..hw import isa
from ..hw.config import PLANE, AcceleratorConfig
from ..hw.isa import EDGES, TABLE_ENTRIES, Base, Opcode, Target, Unit
from ..hw.parameters import PARAMETER_BYTES, decode_parameters
from .golden import look_up, requantize, residual_term

__all__ = ["Machine", "MachineError"]

#: What the dispatcher's queues and token counters hold.
QUEUE_INSTRUCTIONS, MOST_TOKENS = 17, 255


class MachineError(RuntimeError):
    """A program the engine could not finish."""


class _Instruction(NamedTuple):
    """An instruction, and the edges whose tokens it takes and leaves."""

    index: int
    opcode: Opcode
    fields: dict
    unit: Unit
    waits: list[tuple[Unit, Unit]]
    posts: list[tuple[Unit, Unit]]


class Machine:
    """On-chip buffers and units of an accelerator over `memory` (uint8), with base addresses in bytes.

    Buffers begin with random bytes: nothing may rely on them.
    """

    def __init__(self, config: AcceleratorConfig, memory: np.ndarray, bases: "dict[Base, int]", seed: int = 0):
        self.config, self.memory, self.bases = config, memory, bases
        self._random = random.Random(seed)
        junk = np.random.default_rng(seed)
        self._maps = junk.integers(-128, 128, (1 << 14, config.inputs), np.int8)
        self._weights = junk.integers(-127, 128, (config.weight_words, config.inputs), np.int8)
        self._parameters = junk.integers(0, 256, (config.parameter_words, PARAMETER_BYTES), np.uint8)
        self._tables = junk.integers(-128, 128, (TABLE_ENTRIES, 1), np.int8)
        self._residuals = junk.integers(-128, 128, (2, config.stage_pixels, PLANE), np.int8)
        self._staging = junk.integers(-128, 128, (2, config.stage_pixels, PLANE), np.int8)
        self._sums = junk.integers(-1000, 1000, (2, config.tile_pixels, config.outputs), np.int64)
        self._bank = self._drained = 0
        self._strides = self._window = self._pool = None

    def run(self, words: "list[int]", program_order: bool = False) -> None:
        """Execute a program. Raises :exc:`MachineError` on a deadlock, an unknown instruction, or tokens on an edge that does not exist."""
        program, queues = deque(), {unit: deque() for unit in Unit}
        for index, word in enumerate(words):
            try:
                opcode, fields = isa.decode(word)
            except ValueError:
                raise MachineError(f"instruction {index}: unknown opcode {word & 15}") from None
            if opcode is Opcode.END:
                break
            unit = isa.unit_of(opcode)
            waits, posts = ([other for other in Unit if fields[name] >> other & 1] for name in ("wait", "post"))
            program.append(_Instruction(index, opcode, fields, unit, [(other, unit) for other in waits], [(unit, other) for other in posts]))
        else:
            raise MachineError("the program has no END")
        tokens = dict.fromkeys(EDGES, 0)
        pace = {unit: self._random.random() ** 8 for unit in Unit}
        while program or any(queues.values()):
            # Instructions are handed out in the program's order; one that finds its queue full holds up the rest.
            while program and len(queues[program[0].unit]) < QUEUE_INSTRUCTIONS:
                queues[program[0].unit].append(program.popleft())
            ready = [unit for unit, queue in queues.items() if queue and all(tokens.get(edge) for edge in queue[0].waits)]
            if not ready:
                heads = ", ".join(f"{unit.name} at {queue[0].index}" for unit, queue in queues.items() if queue)
                raise MachineError(f"deadlock: {heads}")
            unit = min(ready, key=lambda u: queues[u][0].index) if program_order else self._random.choices(ready, [pace[u] for u in ready])[0]
            instruction = queues[unit].popleft()
            for edge in instruction.waits:
                tokens[edge] -= 1
            getattr(self, f"_{instruction.opcode.name.lower()}")(**instruction.fields)
            for edge in instruction.posts:
                if edge not in tokens:
                    raise MachineError(f"no tokens go from {edge[0].name} to {edge[1].name}")
                tokens[edge] += 1
                if tokens[edge] > MOST_TOKENS:
                    raise MachineError(f"more than {MOST_TOKENS} tokens wait from {edge[0].name} to {edge[1].name}")
        if left := [edge for edge, count in tokens.items() if count]:
            raise MachineError(f"tokens are left over from {left[0][0].name} to {left[0][1].name}")

    def _beats(self, base, offset, count):
        """`count` beats of memory, (count, 8) int8, to read or write."""
        address = self.bases[Base(base)] + 8 * offset
        if address + 8 * count > len(self.memory):
            raise MachineError(f"address {address + 8 * count:#x} is outside the memory of {len(self.memory)} bytes")
        return self.memory[address : address + 8 * count].view(np.int8).reshape(count, PLANE)

    def _load_weights(self, base, offset, target, address, beats, **_):
        data = self._beats(base, offset, beats)
        if target == Target.TABLE:
            data = data[:, 0]
        buffer = {Target.WEIGHTS: self._weights, Target.PARAMETERS: self._parameters.view(np.int8), Target.TABLE: self._tables}[Target(target)]
        data = data.reshape(-1, buffer.shape[1])
        buffer[(address + np.arange(len(data))) % len(buffer)] = data

    def _load_map(self, base, offset, residual, address, pitch, beats, planes, plane_stride, **_):
        for plane in range(planes):
            data = self._beats(base, offset + plane * plane_stride, beats)
            if residual:
                self._residuals[plane & 1, (address + np.arange(beats)) % self.config.stage_pixels] = data
            else:
                group, lane = divmod(plane, self.config.inputs // PLANE)
                self._maps[(address + group * pitch + np.arange(beats)) % (1 << 14), PLANE * lane : PLANE * (lane + 1)] = data

    def _compute_strides(self, **fields):
        self._strides = fields

    def _compute_window(self, **fields):
        self._window = fields

    def _compute(self, address, weights, last_channels, x, y, clear, complete, diagonal, lane, **_):
        strides, window, config = self._strides, self._window, self.config
        counts = [window[f"last_{name}"] + 1 for name in ("image", "row", "column")]
        image, row, column = (grid.reshape(-1) for grid in np.meshgrid(*map(np.arange, counts), indexing="ij"))
        # The strides take back what the inner loops have added: undo that to address pixels directly.
        row_step = strides["row"] + (counts[2] - 1) * strides["column"]
        image_step = strides["image"] + (counts[1] - 1) * row_step + (counts[2] - 1) * strides["column"]
        offsets = image * image_step + row * row_step + column * strides["column"]
        pixels = len(offsets)
        if not config.min_pixels <= pixels <= config.tile_pixels:
            raise MachineError(f"a tile of {pixels} pixels; the config takes {config.min_pixels}…{config.tile_pixels}")
        sums = self._sums[self._bank, :pixels]
        if clear:
            sums[:] = 0
        for _ in range(last_channels + 1):
            for ky in range(window["last_kernel_row"] + 1):
                for kx in range(window["last_kernel_column"] + 1):
                    data = self._maps[(address + offsets) % (1 << 14)]
                    ix = x + column * window["stride_x"] + kx * window["dilation_x"]
                    iy = y + row * window["stride_y"] + ky * window["dilation_y"]
                    outside = (ix < 0) | (ix >= window["width"]) | (iy < 0) | (iy >= window["height"])
                    data = np.where(outside[:, None], np.int8(window["zero_point"]), data)
                    block = self._diagonal(weights, lane) if diagonal else self._block(weights)
                    sums += (data.astype(np.float32) @ block.astype(np.float32)).astype(np.int64)
                    weights += 1 if diagonal else config.block_words
                    last = "channels" if ky == window["last_kernel_row"] else "kernel_row"
                    address += offsets[-1] + strides["kernel_column" if kx < window["last_kernel_column"] else last]
        if complete:
            self._bank ^= 1

    def _block(self, weights):
        """A block of weights, (inputs, outputs)."""
        outputs, inputs = self.config.outputs, self.config.inputs
        words = self._weights[(weights + np.arange(outputs)) % self.config.weight_words]
        return words.reshape(outputs // 2, 2, inputs // 2, 2).transpose(2, 1, 0, 3).reshape(inputs, outputs)

    def _diagonal(self, weights, lane):
        """A block of one word, (inputs, outputs); lanes count modulo 16, of which there may be but eight. Pairs of outputs share a multiplier: `lane` is even."""
        assert lane % 2 == 0, f"COMPUTE's lane must be even, not {lane}"
        lanes = (lane + np.arange(self.config.outputs)) % 16
        block = np.zeros((16, self.config.outputs), np.int8)
        block[lanes, np.arange(self.config.outputs)] = np.resize(self._weights[weights % self.config.weight_words], 16)[lanes]
        return block[: self.config.inputs]

    def _drain(self, pixels, address, group, parameters, zero_point, low, high, residual, residual_address, residual_zero_point,
               residual_multiplier, residual_shift, leaky, table, page, skip, **_):
        config = self.config
        channels = group * config.drain_lanes + np.arange(config.outputs)
        entries = channels % PLANE if config.outputs < PLANE else np.arange(config.outputs)
        words = self._parameters[parameters + entries // 4 - (entries[0] // 4)]
        lane, each = entries % 4, np.arange(config.outputs)
        bias, multiplier, shift, negative = (values[each, lane] for values in decode_parameters(words).values())
        sums = self._sums[self._drained, :pixels] + bias
        if np.abs(sums).max() >= 1 << 31:
            raise MachineError("an accumulator overflows")
        at = np.arange(pixels)[:, None]
        r_term = 0
        if residual:
            codes = self._residuals[channels // PLANE, (residual_address + at) % config.stage_pixels, channels % PLANE]
            r_term = residual_term(codes, residual_zero_point, residual_multiplier, residual_shift, shift)
        codes = requantize(sums, multiplier, shift, zero_point, low, high, r_term, negative if leaky else None)
        if table:
            entries = self._tables[256 * page : 256 * (page + 1), 0]
            codes = look_up(codes, np.roll(entries, 128))
        self._staging[channels // PLANE, (address + at * (skip + 1)) % config.stage_pixels, channels % PLANE] = codes
        self._drained ^= 1

    def _store_window(self, **fields):
        self._pool = fields

    def _store(self, base, offset, address, plane, last_plane, rows, columns, plane_stride, row_stride, **_):
        pool = self._pool
        for index in range(last_plane + 1):
            best = np.full((rows, columns, PLANE), -128, np.int8)
            for ky in range(pool["kernel_y"]):
                for kx in range(pool["kernel_x"]):
                    iy = pool["y"] + np.arange(rows) * pool["stride_y"] + ky
                    ix = pool["x"] + np.arange(columns) * pool["stride_x"] + kx
                    inside = ((iy >= 0) & (iy < pool["height"]))[:, None] & ((ix >= 0) & (ix < pool["width"]))
                    staged = self._staging[plane + index, (address + iy[:, None] * pool["pitch"] + ix) % self.config.stage_pixels]
                    best = np.maximum(best, np.where(inside[:, :, None], staged, np.int8(-128)))
            for row in range(rows):
                self._beats(base, offset + index * plane_stride + row * row_stride, columns)[:] = best[row]
