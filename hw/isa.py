"""The instruction set: what the host encodes and the gateware decodes, written once.

An instruction is one 128-bit word, little-endian in memory: a `Header` and the fields of its class. Five units
work through queues of their own, in order and decoupled from each other:

    WEIGHT   memory → weight buffer, parameter buffer, tables
    MAP      memory → map scratchpad, residual buffer
    COMPUTE  scratchpad × weights → sums
    DRAIN    sums → bias, requantization, residual, clamp, table → output staging
    STORE    staging → max pooling → memory

What orders them are tokens: each pair of units (`EDGES`) has a counter. An instruction starts when every unit of its `wait` mask has
left a token for it (which it takes), and when it has finished leaves one for every unit of its `post` mask.
A count stored as `n` is written as it is; the fields called `last_…` hold the count minus one.
"""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, enum

__all__ = ["EDGES", "INSTRUCTIONS", "LENGTH_BITS", "SETUPS", "TABLE_ENTRIES", "Base", "Compute", "ComputeStrides", "ComputeWindow", "Drain", "Header", "LoadMap",
           "LoadWeights", "Opcode", "Store", "StoreWindow", "End", "Target", "Unit", "decode", "encode", "unit_of"]

INSTRUCTION_BITS = 128
#: Bits of the number of instructions of a program.
LENGTH_BITS = 24
#: Entries of all tables.
TABLE_ENTRIES = 2048


class Unit(enum.IntEnum, shape=3):
    WEIGHT = 0
    MAP = 1
    COMPUTE = 2
    DRAIN = 3
    STORE = 4


#: Token counters that exist, as (from, to).
EDGES = (
    (Unit.WEIGHT, Unit.COMPUTE), (Unit.COMPUTE, Unit.WEIGHT),  # weights are there / no longer needed
    (Unit.WEIGHT, Unit.DRAIN), (Unit.DRAIN, Unit.WEIGHT),      # parameters and tables likewise
    (Unit.MAP, Unit.COMPUTE), (Unit.COMPUTE, Unit.MAP),        # maps in the scratchpad likewise
    (Unit.MAP, Unit.DRAIN), (Unit.DRAIN, Unit.MAP),            # residuals likewise
    (Unit.COMPUTE, Unit.DRAIN), (Unit.DRAIN, Unit.COMPUTE),    # a bank of sums is complete / free
    (Unit.DRAIN, Unit.STORE), (Unit.STORE, Unit.DRAIN),        # a staged tile likewise
    (Unit.STORE, Unit.MAP), (Unit.STORE, Unit.WEIGHT),         # a map is in memory (write responses received)
)


class Opcode(enum.IntEnum, shape=4):
    """Zero is no instruction, so that empty memory stops the engine."""

    LOAD_WEIGHTS = 1
    LOAD_MAP = 2
    COMPUTE_STRIDES = 3
    COMPUTE_WINDOW = 4
    COMPUTE = 5
    DRAIN = 6
    STORE_WINDOW = 7
    STORE = 8
    END = 15


#: What only sets up later instructions of its unit.
SETUPS = frozenset({Opcode.COMPUTE_STRIDES, Opcode.COMPUTE_WINDOW, Opcode.STORE_WINDOW})


class Base(enum.IntEnum, shape=2):
    """Base register added to an instruction's memory offset."""

    WEIGHTS = 0
    MAPS = 1
    INPUT = 2
    OUTPUT = 3


class Target(enum.IntEnum, shape=2):
    """What LOAD_WEIGHTS fills."""

    WEIGHTS = 0
    PARAMETERS = 1
    TABLE = 2


class Header(data.Struct):
    opcode: Opcode
    #: Bit u: take a token from unit u before the start.
    wait: unsigned(5)
    #: Bit u: leave a token for unit u at the end.
    post: unsigned(5)


class LoadWeights(data.Struct):
    """Copy `beats` consecutive 64-bit beats into the weight buffer (two beats a word if `inputs` = 16), the parameter buffer (four a word), or the tables,
    of which a beat's lowest byte is an entry."""

    header: Header
    base: Base
    offset: unsigned(24)      # beats
    target: Target
    address: unsigned(12)     # first word; wraps
    beats: unsigned(14)


class LoadMap(data.Struct):
    """Copy `planes` runs of `beats` pixels, `plane_stride` apart in memory.

    Scratchpad, `inputs` = 16: planes go to the low and the high half of a word alternately, beginning with the low half at `address`;
    after each high half `pitch` is added. `inputs` = 8: `pitch` is added after each plane.
    Residual buffer (`residual` = 1): plane k goes to pixel `address` of plane k & 1 of the buffer; at most two planes.
    """

    header: Header
    base: Base
    offset: unsigned(24)        # beats
    residual: unsigned(1)
    address: unsigned(14)       # words; wraps in the residual buffer
    pitch: unsigned(14)         # words
    beats: unsigned(14)
    planes: unsigned(9)
    plane_stride: unsigned(20)  # beats


class ComputeStrides(data.Struct):
    """What is added to the scratchpad address after a pixel, by the outermost loop that advances; modulo 2^14.

    Each already takes back what the inner loops have added. Holds for the following COMPUTE instructions.
    """

    header: Header
    column: unsigned(14)
    row: unsigned(14)
    image: unsigned(14)
    kernel_column: unsigned(14)
    kernel_row: unsigned(14)
    channels: unsigned(14)


class ComputeWindow(data.Struct):
    """Loop counts of a tile, and the map's bounds, outside of which an activation is the zero point.

    Loops, outermost first: channel groups (`Compute.last_channels`), kernel rows, kernel columns, images, rows, columns.
    A step is one (channel group, kernel row, kernel column); its images × rows × columns pixels are a run of the tile.
    """

    header: Header
    width: unsigned(11)
    height: unsigned(11)
    stride_x: unsigned(4)
    stride_y: unsigned(4)
    dilation_x: unsigned(5)
    dilation_y: unsigned(5)
    last_column: unsigned(10)
    last_row: unsigned(10)
    last_image: unsigned(10)
    last_kernel_column: unsigned(5)
    last_kernel_row: unsigned(5)
    zero_point: signed(8)


class Compute(data.Struct):
    """Run a tile's steps: sums[pixel] += weights[step] @ map[pixel, step].

    The activation of column ox, row oy, kernel column kx, row ky has the coordinates (x + ox·stride_x + kx·dilation_x, y + oy·stride_y + ky·dilation_y).
    """

    header: Header
    address: unsigned(14)       # scratchpad word of the first activation (wraps, may lie outside the map)
    weights: unsigned(12)       # weight word of the first step's block; blocks follow each other; wraps
    last_channels: unsigned(9)
    x: signed(12)
    y: signed(12)
    clear: unsigned(1)          # the first step replaces the sums instead of adding to them
    complete: unsigned(1)       # the last step completes the sums: the next tile takes the other bank
    diagonal: unsigned(1)       # a block is one word: output k has the weight of input lane + k, modulo 16, and no other; lane is even
    lane: unsigned(4)


class Drain(data.Struct):
    """Requantize `pixels` × `outputs` sums of the oldest complete bank into the staging buffer.

    Channels go in groups of `drain_lanes`: group g of the tile becomes group `group` + g of the staged pixel, whose planes hold
    8 / `drain_lanes` groups each. Parameters of channel c of the tile: word `parameters` + c // 4, entry c % 4 (with `drain_lanes` = 2 and `group` odd
    the tile begins at entry 2).

    With `leaky`, negative accumulators have a multiplier of their own. With `table`, a code c becomes entry c mod 256 of the table at 256 · `page`.
    """

    header: Header
    pixels: unsigned(10)
    address: unsigned(10)           # staging pixel of the first; wraps
    group: unsigned(3)
    parameters: unsigned(9)
    zero_point: signed(8)
    low: signed(8)
    high: signed(8)
    residual: unsigned(1)
    residual_address: unsigned(10)  # residual pixel of the first; wraps; planes and groups as staged
    residual_zero_point: signed(8)
    residual_multiplier: unsigned(16)
    residual_shift: unsigned(6)     # r_term = (r − zero point) · multiplier << (shift[c] − residual_shift)
    leaky: unsigned(1)
    table: unsigned(1)
    page: unsigned(3)
    skip: unsigned(3)               # staged pixels from one to the next, less one


class StoreWindow(data.Struct):
    """Window of the following STORE instructions: a stored pixel is the maximum over its window's pixels inside the bounds.

    Pixel (oy, ox) covers the rows y + oy·stride_y … + kernel_y − 1 and likewise columns, of which those in 0…height−1, 0…width−1 count.
    """

    header: Header
    kernel_x: unsigned(4)
    kernel_y: unsigned(4)
    stride_x: unsigned(4)
    stride_y: unsigned(4)
    x: signed(6)
    y: signed(6)
    width: unsigned(11)
    height: unsigned(11)
    pitch: unsigned(10)   # staged pixels from a row to the next


class Store(data.Struct):
    """Store `rows` × `columns` pixels of one or both staged planes. Staged pixel (0, 0) of the window's coordinates is `address`."""

    header: Header
    base: Base
    offset: unsigned(24)        # beats
    address: unsigned(10)       # staging pixel; wraps
    plane: unsigned(1)          # first plane
    last_plane: unsigned(1)     # planes − 1
    rows: unsigned(10)
    columns: unsigned(11)
    plane_stride: unsigned(20)  # beats in memory
    row_stride: unsigned(14)    # beats in memory


class End(data.Struct):
    """Wait until every unit is idle, then report that the program has finished."""

    header: Header


INSTRUCTIONS = {
    Opcode.LOAD_WEIGHTS: LoadWeights, Opcode.LOAD_MAP: LoadMap, Opcode.COMPUTE_STRIDES: ComputeStrides, Opcode.COMPUTE_WINDOW: ComputeWindow,
    Opcode.COMPUTE: Compute, Opcode.DRAIN: Drain, Opcode.STORE_WINDOW: StoreWindow, Opcode.STORE: Store, Opcode.END: End,
}

_UNITS = {
    Opcode.LOAD_WEIGHTS: Unit.WEIGHT, Opcode.LOAD_MAP: Unit.MAP, Opcode.COMPUTE_STRIDES: Unit.COMPUTE, Opcode.COMPUTE_WINDOW: Unit.COMPUTE,
    Opcode.COMPUTE: Unit.COMPUTE, Opcode.DRAIN: Unit.DRAIN, Opcode.STORE_WINDOW: Unit.STORE, Opcode.STORE: Unit.STORE, Opcode.END: None,
}


def unit_of(opcode: Opcode) -> "Unit | None":
    """The unit that executes an instruction; None for END, which the dispatcher itself does."""
    return _UNITS[opcode]


def _fields(layout, offset=0):
    """(name, first bit, width, signed) of every field; the header's are named as in `Header`."""
    for name, field in layout:
        if isinstance(field.shape, type) and issubclass(field.shape, data.Struct):
            yield from _fields(data.Layout.cast(field.shape), offset + field.offset)
        else:
            shape = field.shape if hasattr(field.shape, "width") else unsigned(field.width)
            yield name, offset + field.offset, field.width, getattr(shape, "signed", False)


_LAYOUTS = {opcode: tuple(_fields(data.Layout.cast(struct))) for opcode, struct in INSTRUCTIONS.items()}
assert all(data.Layout.cast(struct).size <= INSTRUCTION_BITS for struct in INSTRUCTIONS.values())


def encode(opcode: Opcode, *, wait=(), post=(), **values) -> int:
    """The 128-bit word of an instruction; `wait` and `post` are units. Fields not given are 0.

    Raises ValueError if a field is unknown or its value does not fit.
    """
    word = 0
    values |= {"opcode": int(opcode), "wait": sum(1 << u for u in set(wait)), "post": sum(1 << u for u in set(post))}
    for name, offset, width, is_signed in _LAYOUTS[opcode]:
        value = int(values.pop(name, 0))
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)
        if not low <= value <= high:
            raise ValueError(f"{opcode.name}.{name} must be in {low}…{high}, not {value}")
        word |= (value & (1 << width) - 1) << offset
    if values:
        raise ValueError(f"{opcode.name} has no field {sorted(values)[0]!r}")
    return word


def decode(word: int) -> "tuple[Opcode, dict]":
    """The opcode and the fields (header's among them) of an instruction word. Raises ValueError for an unknown opcode."""
    opcode = Opcode(word & 15)
    values = {}
    for name, offset, width, is_signed in _LAYOUTS[opcode]:
        value = word >> offset & (1 << width) - 1
        values[name] = value - (1 << width) if is_signed and value >> width - 1 else value
    values["opcode"] = opcode
    return opcode, values
