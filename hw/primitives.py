"""Hard blocks of the FPGA with the registers they contain.

Yosys infers neither the registers of a multiplier nor the output register of a block RAM, and without them a big array is slow; and it merges registers
of equal content, even if their wires have the attribute `keep`. So `Multiplier`, `BlockRam` and `copies` ask the platform for instances (`get_mac`,
`get_block_ram`, `get_register`); a platform without these methods gets behavioural twins of the same latency. (The second is not called `get_memory`:
that is what Amaranth asks for each of its own memories.)
"""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["BlockRam", "EcpPrimitives", "Multiplier", "WideRam", "copies", "delayed"]

#: Words of a block RAM by their width.
_BLOCK_DEPTHS = {1: 16384, 2: 8192, 4: 4096, 9: 2048, 18: 1024, 36: 512}


def delayed(m: Module, value, cycles: int = 1, *, reset: bool = False, name: "str | None" = None):
    """`value` as it was some cycles ago. reset: the registers are cleared by reset."""
    for _ in range(cycles):
        register = Signal(value.shape(), name=name, reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value


def copies(m: Module, platform, value, count: int, name: str) -> list:
    """`value` as it was a cycle ago, `count` times: registers without reset, each of which can lie near what it drives; a single one in simulation."""
    if not hasattr(platform, "get_register"):
        return [delayed(m, value, name=name)] * count
    result = [Signal(value.shape(), name=f"{name}{number}") for number in range(count)]
    for number, copy in enumerate(result):
        m.submodules[f"{name}{number}"] = platform.get_register(value, copy)
    return result


def _check(name, value, low, high):
    if not (isinstance(value, int) and low <= value <= high):
        raise ValueError(f"{name} must be an integer in {low}…{high}, not {value!r}")


class Multiplier(wiring.Component):
    """product = a · b, both signed; one product a cycle, `latency` cycles after its operands.

    One hard 18×18 multiplier with its input, pipeline and output registers.
    """

    latency = 3

    def __init__(self, a_width: int = 18, b_width: int = 18):
        _check("a_width", a_width, 1, 18)
        _check("b_width", b_width, 1, 18)
        super().__init__({"a": In(signed(a_width)), "b": In(signed(b_width)), "product": Out(signed(a_width + b_width))})

    def elaborate(self, platform):
        if hasattr(platform, "get_mac"):
            return platform.get_mac(self)
        m = Module()
        product = delayed(m, self.a) * delayed(m, self.b)
        m.d.comb += self.product.eq(delayed(m, product, self.latency - 1))
        return m


class BlockRam(wiring.Component):
    """A block RAM with one port that writes and one that reads: `read_data` follows `read_address` after `latency` cycles.

    What is read while it is being written is undefined. Raises ValueError if the words do not fit one block RAM (512×36, 1K×18, 2K×9, 4K×4, 8K×2, 16K×1).
    """

    latency = 2

    def __init__(self, width: int, depth: int):
        _check("width", width, 1, 36)
        self._block_width = min(w for w in _BLOCK_DEPTHS if w >= width)
        _check(f"depth of {width} bits", depth, 1, _BLOCK_DEPTHS[self._block_width])
        self._depth = depth
        super().__init__({
            "write_address": In(range(depth)), "write_data": In(width), "write_enable": In(1),
            "read_address": In(range(depth)), "read_data": Out(width),
        })

    @property
    def depth(self) -> int:
        """Number of words."""
        return self._depth

    @property
    def block_width(self) -> int:
        """Data width for which the block RAM is set up: 1, 2, 4, 9, 18 or 36."""
        return self._block_width

    def elaborate(self, platform):
        if hasattr(platform, "get_block_ram"):
            return platform.get_block_ram(self)
        m = Module()
        m.submodules.memory = memory = Memory(shape=unsigned(len(self.read_data)), depth=self._depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.addr.eq(self.write_address), write.data.eq(self.write_data), write.en.eq(self.write_enable), read.addr.eq(self.read_address),
            self.read_data.eq(delayed(m, read.data, self.latency - 1)),
        ]
        return m


class WideRam(wiring.Component):
    """A memory of many block RAMs: a word is written and a word is read each cycle, `read_data` follows `read_address` after `latency` cycles.

    A word is written in lanes of `lane_width` bits, one bit of `write_enable` each. A read sees all that was written in earlier cycles; what is read in the
    cycle in which it is written is undefined. masked: there is an input `read_enable`, and what is read without it is 0.

    On an FPGA addresses go through two levels of registers to groups of eight block RAMs. The depth is cut into powers of two, each made of block RAMs of
    just that depth, since a wide multiplexer across the die would limit the clock: 13312 words are 8K×2, 4K×4 and 1K×18 and need one of 3:1.
    In simulation a lane is one memory.
    """

    latency = 5
    #: Cycles from an address to the block RAMs.
    _hops = 2
    _group, _groups_per_copy = 8, 3
    #: Bits whose multiplexers share a register of the select lines.
    _select_bits = 16

    def __init__(self, *, width: int, depth: int, lane_width: "int | None" = None, masked: bool = False):
        lane_width = width if lane_width is None else lane_width
        _check("width", width, 1, 1024)
        _check("depth", depth, 2, 16384)
        if not (isinstance(lane_width, int) and lane_width > 0 and width % lane_width == 0):
            raise ValueError(f"lane_width must be a divisor of the width {width}, not {lane_width!r}")
        self._depth, self._lane_width, self._masked = depth, lane_width, masked
        super().__init__({
            "write_address": In(range(depth)), "write_data": In(width), "write_enable": In(width // lane_width),
            "read_address": In(range(depth)), "read_data": Out(width),
        } | ({"read_enable": In(1)} if masked else {}))

    @property
    def depth(self) -> int:
        """Number of words."""
        return self._depth

    @property
    def segments(self) -> "list[tuple[int, int]]":
        """First word and number of words of each part of the depth, a power of two from 512 on."""
        result, start = [], 0
        while start < self._depth:
            blocks = -(-(self._depth - start) // 512)
            size = 512 << blocks.bit_length() - 1
            result.append((start, size))
            start += size
        return result

    @property
    def blocks(self) -> int:
        """Block RAMs it needs on an FPGA."""
        return sum(len(self._parts(size)) for _, size in self.segments) * len(self.write_enable)

    def _parts(self, size):
        """(first bit, bits) of the block RAMs that make a lane of a segment."""
        width = next(w for w, depth in _BLOCK_DEPTHS.items() if depth == size)
        count = -(-self._lane_width // width)
        step = -(-self._lane_width // count)
        return [(bit, min(step, self._lane_width - bit)) for bit in range(0, self._lane_width, step)]

    def elaborate(self, platform):
        m = Module()
        if hasattr(platform, "get_block_ram"):
            self._elaborate_blocks(m, platform)
        else:
            self._elaborate_memories(m)
        return m

    def _elaborate_memories(self, m):
        words = []
        for lane, enable in enumerate(self.write_enable):
            m.submodules[f"lane{lane}"] = memory = Memory(shape=unsigned(self._lane_width), depth=self._depth, init=[])
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.addr.eq(self.write_address), write.data.eq(self.write_data.word_select(lane, self._lane_width)), write.en.eq(enable),
                read.addr.eq(self.read_address),
            ]
            word = Mux(delayed(m, self.read_enable), read.data, 0) if self._masked else read.data
            words.append(delayed(m, word, self.latency - 1))
        m.d.comb += self.read_data.eq(Cat(words))

    def _elaborate_blocks(self, m, platform):
        # Each list entry: (lane, segment, the block RAMs of a group).
        groups = [
            (lane, segment, parts[first : first + self._group])
            for segment, (_, size) in enumerate(self.segments) for lane in range(len(self.write_enable))
            for parts in [self._parts(size)] for first in range(0, len(parts), self._group)
        ]
        write_address, write_data = delayed(m, self.write_address, name="write_address"), delayed(m, self.write_data, name="write_data")
        write_enable = delayed(m, self.write_enable, name="write_enable")
        read_addresses = copies(m, platform, self.read_address, -(-len(groups) // self._groups_per_copy), "read_address")
        words = [[[] for _ in self.segments] for _ in self.write_enable]
        for number, (lane, segment, parts) in enumerate(groups):
            start, size = self.segments[segment]
            bits = (min(size, self._depth) - 1).bit_length()
            first, last = parts[0][0], sum(parts[-1])
            enable = write_enable[lane] & self._in_segment(write_address, start, size)
            (group_read,) = copies(m, platform, read_addresses[number // self._groups_per_copy][:bits], 1, f"group{number}_read")
            (group_write,) = copies(m, platform, Cat(enable, write_address[:bits]), 1, f"group{number}_write")
            (group_data,) = copies(m, platform, write_data.word_select(lane, self._lane_width)[first:last], 1, f"group{number}_data")
            for bit, width in parts:
                m.submodules[f"block{lane}_{segment}_{bit}"] = block = BlockRam(width, 1 << bits)
                m.d.comb += [
                    block.write_address.eq(group_write[1:]), block.write_data.eq(group_data[bit - first :][:width]), block.write_enable.eq(group_write[0]),
                    block.read_address.eq(group_read),
                ]
                words[lane][segment].append(block.read_data)
        read = [Cat(*(Cat(lane[segment]) for lane in words)) for segment in range(len(self.segments))]
        if len(read) == 1 and not self._masked:
            m.d.comb += self.read_data.eq(delayed(m, read[0], name="read"))
            return
        enable = self.read_enable if self._masked else Const(1)
        select = Cat(enable & self._in_segment(self.read_address, start, size) for start, size in self.segments)
        select = delayed(m, select, self._hops + BlockRam.latency - 1, name="select")
        starts = range(0, len(self.read_data), self._select_bits)
        for bit, copy in zip(starts, copies(m, platform, select, len(starts), "select")):
            part = slice(bit, min(bit + self._select_bits, len(self.read_data)))
            selected = [word[part] & line.replicate(part.stop - bit) for word, line in zip(read, copy)]
            m.d.comb += self.read_data[part].eq(delayed(m, _any(selected), name=f"read{bit}"))

    def _in_segment(self, address, start, size):
        return address[size.bit_length() - 1 :] == start // size if len(self.segments) > 1 else Const(1)


def _any(words):
    result = words[0]
    for word in words[1:]:
        result = result | word
    return result


class EcpPrimitives:
    """What a platform for the ECP5 answers: a mix-in for Amaranth platforms, and by itself enough to generate RTLIL for `synth_ecp5`."""

    #: Passes of Yosys after which it knows the instances' ports.
    cell_library = ("read_verilog -lib +/ecp5/cells_sim.v +/ecp5/cells_bb.v",)

    def get_mac(self, multiplier: Multiplier) -> Module:
        """MULT18X18D with its input, pipeline and output registers (Lattice FPGA-TN-02205)."""
        m = Module()
        operands = Signal(signed(18)), Signal(signed(18))
        product = Signal(36)
        m.d.comb += [operands[0].eq(multiplier.a), operands[1].eq(multiplier.b), multiplier.product.eq(product)]
        registers = {
            f"p_REG_{register}_{pin}": source
            for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT") for pin, source in (("CLK", "CLK0"), ("CE", "CE0"), ("RST", "RST0"))
        }
        m.submodules.instance = Instance(
            "MULT18X18D", **registers, p_CLK0_DIV="ENABLED", p_GSR="DISABLED", p_SOURCEB_MODE="B_SHIFT", p_RESETMODE="SYNC", p_MULT_BYPASS="DISABLED",
            i_CLK0=ClockSignal(), i_CE0=Const(1), i_RST0=Const(0), i_SIGNEDA=Const(1), i_SIGNEDB=Const(1), i_SOURCEA=Const(0), i_SOURCEB=Const(0),
            **_pins("i_A", operands[0]), **_pins("i_B", operands[1]), **_pins("o_P", product),
        )
        return m

    def get_register(self, d, q) -> Module:
        """A flip-flop for each bit of `q`, as `synth_ecp5` would make them of q.eq(d)."""
        m = Module()
        for k, (d_bit, q_bit) in enumerate(zip(d, q)):
            m.submodules[f"bit{k}"] = Instance(
                "TRELLIS_FF", p_GSR="AUTO", p_CEMUX="1", p_CLKMUX="CLK", p_LSRMUX="LSR", p_REGSET="RESET",
                i_CLK=ClockSignal(), i_LSR=Const(0), i_DI=d_bit, o_Q=q_bit,
            )
        return m

    def get_block_ram(self, ram: BlockRam) -> Module:
        """DP16KD, port A writing, port B reading, with the output register (Lattice FPGA-TN-02204).

        512×36 is its pseudo dual-port mode: both ports' data pins serve one port, and byte enables take the place of the write enable.
        """
        m = Module()
        width = ram.block_width
        unused = {36: 5, 18: 4, 9: 3, 4: 2, 2: 1, 1: 0}[width]  # low address bits
        byte_enables = {36: ram.write_enable.replicate(4), 18: Const(0b11, 2)}.get(width, Const(0, 1))
        write_address, read_address, write_data, read_data = Signal(14), Signal(14), Signal(36), Signal(36)
        m.d.comb += [
            write_address.eq((ram.write_address << unused) | byte_enables), read_address.eq(ram.read_address << unused),
            write_data.eq(ram.write_data), ram.read_data.eq(read_data),
        ]
        low, high = ("o_DOA", "o_DOB") if width == 36 else ("o_DOB", "o_DOA")
        constants = {f"i_CS{port}{k}": Const(0) for port in "AB" for k in range(3)}
        for port in "AB":
            constants |= {f"p_DATA_WIDTH_{port}": width, f"p_REGMODE_{port}": "OUTREG", f"p_CSDECODE_{port}": "0b000", f"p_WRITEMODE_{port}": "NORMAL"}
            constants |= {f"p_CLK{port}MUX": f"CLK{port}", f"i_CLK{port}": ClockSignal(), f"i_CE{port}": Const(1), f"i_OCE{port}": Const(1), f"i_RST{port}": Const(0)}
        m.submodules.instance = Instance(
            "DP16KD", **constants, p_RESETMODE="SYNC", p_ASYNC_RESET_RELEASE="SYNC", p_GSR="DISABLED",
            i_WEA=Const(1) if width == 36 else ram.write_enable, i_WEB=Const(0),
            **_pins("i_ADA", write_address), **_pins("i_ADB", read_address), **_pins("i_DIA", write_data[:18]), **_pins("i_DIB", write_data[18:]),
            **_pins(low, read_data[:18]), **(_pins(high, read_data[18:]) if width == 36 else {}),
        )
        return m


def _pins(name, value):
    """The pins of an instance, one for each bit."""
    return {f"{name}{k}": bit for k, bit in enumerate(value)}
