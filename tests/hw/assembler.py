"""Hand-made programs for testbenches: a chain of convolutions, each in one tile of pixels, and what they must compute."""

from dataclasses import dataclass, field

import numpy as np

from celosia.hw.config import AcceleratorConfig
from celosia.hw.isa import Base, Opcode, Target, Unit, encode
from celosia.hw.parameters import encode_parameters
from celosia.hw.program import pack_map, unpack_map
from celosia.hw.registers import Register

#: Byte addresses of the regions.
BASES = {Base.WEIGHTS: 0x1000, Base.MAPS: 0x20000, Base.INPUT: 0x30008, Base.OUTPUT: 0x38010}
MEMORY = 1 << 18


@dataclass
class Layer:
    """A convolution (channels, channels·, kernel²) of stride and padding, zero points of map and result, a residual (the network's input) or none."""

    weights: np.ndarray  # (out, in, k, k) int8
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    stride: int = 1
    padding: int = 0
    zero_points: tuple[int, int] = (0, 0)
    bounds: tuple[int, int] = (-128, 127)
    residual: tuple[int, int, int] | None = None  # zero point, multiplier, shift


def random_layer(generator, inputs, outputs, kernel, **options) -> Layer:
    """A layer whose results use most of int8's range."""
    size = inputs * kernel * kernel
    shift = generator.integers(26, 30, outputs)
    multiplier = np.clip(2.0 ** shift / (size**0.5 * 80) * generator.uniform(0.5, 1.0, outputs), 1, 65535).astype(int)
    return Layer(generator.integers(-127, 128, (outputs, inputs, kernel, kernel)), generator.integers(-5000, 5000, outputs), multiplier, shift,
                 zero_points=tuple(map(int, generator.integers(-20, 20, 2))), **options)


def convolve(layer: Layer, codes: np.ndarray, network_input: np.ndarray) -> np.ndarray:
    """The layer's result (C, H, W) of int8 codes, by its definition in docs."""
    kernel, stride, pad = layer.weights.shape[2], layer.stride, layer.padding
    padded = np.pad(codes.astype(np.int64), ((0, 0), (pad, pad), (pad, pad)), constant_values=layer.zero_points[0])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    total = np.einsum("oikl,ihwkl->ohw", layer.weights, windows) + layer.bias[:, None, None]
    product = total * layer.multiplier[:, None, None]
    shift = layer.shift[:, None, None]
    if layer.residual:
        zero_point, multiplier, residual_shift = layer.residual
        product += (network_input.astype(np.int64) - zero_point) * multiplier << (shift - residual_shift)
    return np.clip(layer.zero_points[1] + ((product + (1 << shift - 1)) >> shift), *layer.bounds).astype(np.int8)


@dataclass
class Assembler:
    """Makes the memory image of a chain of layers that a configuration runs on `codes` (C, H, W)."""

    config: AcceleratorConfig
    codes: np.ndarray
    words: list = field(default_factory=list)
    data: bytes = b""  # weights and parameters, behind the instructions

    def assemble(self, layers: list[Layer]) -> tuple[dict[int, bytes], dict[Register, int], np.ndarray]:
        """(memory contents by address, registers to write, expected codes)."""
        instructions = 512
        self._data_offset = 16 * instructions
        source, codes, used = Base.INPUT, self.codes, (0, 0)
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            used = self._layer(layer, codes.shape, source, 0 if index == 0 else self._map_offset, Base.OUTPUT if last else Base.MAPS, index, used)
            codes = convolve(layer, codes, self.codes)
            source = Base.MAPS
        self.words.append(encode(Opcode.END))
        assert len(self.words) <= instructions and len(self.data) < 0x1000 * 20
        image = b"".join(word.to_bytes(16, "little") for word in self.words)
        memory = {BASES[Base.WEIGHTS]: image, BASES[Base.WEIGHTS] + self._data_offset: self.data, BASES[Base.INPUT]: pack_map(self.codes[None]).tobytes()}
        registers = {Register[f"BASE_{base.name}"]: address for base, address in BASES.items()}
        return memory, registers | {Register.PROGRAM: BASES[Base.WEIGHTS], Register.INSTRUCTIONS: len(self.words)}, codes

    def _put(self, opcode, wait=(), post=(), **fields):
        self.words.append(encode(opcode, wait=wait, post=post, **fields))

    def _place(self, data: bytes) -> int:
        """Offset in beats from base WEIGHTS."""
        offset = self._data_offset + len(self.data)
        self.data += data + bytes(-len(data) % 8)
        return offset // 8

    def _layer(self, layer, shape, source, source_offset, target, index, used):
        config = self.config
        outputs, inputs, kernel, _ = layer.weights.shape
        channels, height, width = shape
        rows, columns = ((size + 2 * layer.padding - kernel) // layer.stride + 1 for size in (height, width))
        pixels, planes = rows * columns, -(-channels // 8)
        groups, tiles = -(-channels // config.inputs), -(-outputs // config.outputs)
        assert config.min_pixels <= pixels <= config.tile_pixels and channels == inputs
        weight_word, parameter_word = used

        # Weights: a block per tile and step; parameters: 32 bytes for four channels.
        blocks = []
        padded = np.zeros((tiles * config.outputs, groups * config.inputs, kernel, kernel), np.int8)
        padded[:outputs, :inputs] = layer.weights
        for tile in range(tiles):
            for group in range(groups):
                for ky in range(kernel):
                    for kx in range(kernel):
                        step = padded[tile * config.outputs:, group * config.inputs:, ky, kx][: config.outputs, : config.inputs]
                        blocks += [step[2 * (word // 2) + byte % 2, 2 * (byte // 2) + word % 2] for word in range(config.outputs) for byte in range(config.inputs)]
        block_data = np.array(blocks, np.int8).tobytes()
        parameters = b""
        for first in range(0, -(-outputs // 8) * 8, 4):
            part = slice(first, first + 4)
            parameters += encode_parameters(*(np.resize(values[part], 4) for values in (layer.bias, layer.multiplier, layer.shift))).tobytes()
        # The weight buffer is a ring: a layer's weights may go where those of the layer before are.
        self._put(Opcode.LOAD_WEIGHTS, post=[Unit.DRAIN], base=Base.WEIGHTS, offset=self._place(parameters), target=Target.PARAMETERS,
                  address=parameter_word, beats=len(parameters) // 8)
        self._put(Opcode.LOAD_WEIGHTS, wait=[Unit.COMPUTE] if index else [], post=[Unit.COMPUTE], base=Base.WEIGHTS,
                  offset=self._place(block_data), address=weight_word % config.weight_words, beats=len(block_data) // 8)

        # Maps of odd layers lie in the scratchpad's other half.
        map_word, pitch = index % 2 * (config.map_words // 2), height * width
        self._put(Opcode.LOAD_MAP, wait=[Unit.STORE] if index else [], post=[Unit.COMPUTE], base=source, offset=source_offset, address=map_word, pitch=pitch,
                  beats=pitch, planes=planes, plane_stride=pitch)
        self._map_offset = 0x1000 * index // 8
        back = (columns - 1) * layer.stride + (rows - 1) * layer.stride * width
        kernel_back = (kernel - 1) * (1 + width) + back
        self._put(Opcode.COMPUTE_STRIDES, column=layer.stride, row=layer.stride * width - (columns - 1) * layer.stride & 0x3FFF, kernel_column=1 - back & 0x3FFF,
                  kernel_row=width - (kernel - 1) - back & 0x3FFF, channels=pitch - kernel_back & 0x3FFF)
        self._put(Opcode.COMPUTE_WINDOW, width=width, height=height, stride_x=layer.stride, stride_y=layer.stride, dilation_x=1, dilation_y=1, last_column=columns - 1,
                  last_row=rows - 1, last_kernel_column=kernel - 1, last_kernel_row=kernel - 1, zero_point=layer.zero_points[0])
        self._put(Opcode.STORE_WINDOW, kernel_x=1, kernel_y=1, stride_x=1, stride_y=1, width=columns, height=rows, pitch=columns)

        lanes = config.drain_lanes
        tiles_a_store = min(tiles, 16 // config.outputs)
        for tile in range(tiles):
            store, part = divmod(tile, tiles_a_store)
            half = store % 2 * (config.stage_pixels // 2)
            first, second = tile == 0, tile < 2
            weights_used = tile == tiles - 1 and target != Base.OUTPUT
            self._put(Opcode.COMPUTE, wait=[Unit.WEIGHT, Unit.MAP] if first else [] if second else [Unit.DRAIN], post=[Unit.DRAIN, *[Unit.WEIGHT] * weights_used],
                      address=map_word - layer.padding * (width + 1) & 0x3FFF,
                      weights=(weight_word + tile * groups * kernel * kernel * config.outputs) % config.weight_words,
                      last_channels=groups - 1, x=-layer.padding, y=-layer.padding, clear=1, complete=1)
            last_of_store = part == tiles_a_store - 1 or tile == tiles - 1
            residual = {}
            wait = [Unit.COMPUTE] + ([Unit.WEIGHT] if first else [])
            if layer.residual:
                if part == 0:
                    # Two planes of the network's input; the residual buffer's half as the staging's.
                    self._put(Opcode.LOAD_MAP, wait=[Unit.DRAIN] if store >= 2 else [], post=[Unit.DRAIN], base=Base.INPUT, offset=2 * store * pixels,
                              residual=1, address=half, beats=pixels, planes=min(2, -(-outputs // 8) - 2 * store), plane_stride=pixels)
                    wait.append(Unit.MAP)
                zero_point, multiplier, shift = layer.residual
                residual = {"residual": 1, "residual_address": half, "residual_zero_point": zero_point, "residual_multiplier": multiplier, "residual_shift": shift}
            if part == 0 and store >= 2:
                wait.append(Unit.STORE)
            post = [Unit.COMPUTE] if tile + 2 < tiles else []
            if last_of_store:
                post += [Unit.STORE] + ([Unit.MAP] if layer.residual and (store + 2) * tiles_a_store < tiles else [])
            group = part * config.outputs // lanes
            self._put(Opcode.DRAIN, wait=wait, post=post, pixels=pixels, address=half, group=group, parameters=parameter_word + tile * config.outputs // 4,
                      zero_point=layer.zero_points[1], low=layer.bounds[0], high=layer.bounds[1], **residual)
            if last_of_store:
                last_plane = min(tile * config.outputs + config.outputs, outputs + -outputs % 8) - store * 16 > 8
                post = [Unit.MAP] if target == Base.MAPS and tile == tiles - 1 else []
                self._put(Opcode.STORE, wait=[Unit.DRAIN], post=post + ([Unit.DRAIN] if (store + 2) * tiles_a_store < tiles else []), base=target,
                          offset=2 * store * pixels + (self._map_offset if target == Base.MAPS else 0), address=half, last_plane=int(last_plane), rows=rows,
                          columns=columns, plane_stride=pixels, row_stride=columns)
        return weight_word + len(block_data) // config.inputs, parameter_word + len(parameters) // 32


def result(read, shape) -> np.ndarray:
    """Codes (C, H, W) of the network's output; `read(address, length)` gives memory."""
    size = -(-shape[0] // 8) * shape[1] * shape[2] * 8
    return unpack_map(np.frombuffer(bytes(read(BASES[Base.OUTPUT], size)), np.uint8), 1, shape)[0]
