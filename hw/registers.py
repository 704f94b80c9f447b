"""The register map: what the control port decodes and the host's driver accesses, written once.

All registers are 32 bits wide. A read of no register, a write to one that cannot be written, and a write that the engine's state forbids are answered with SLVERR.
"""

from amaranth.hdl import unsigned
from amaranth.lib import data, enum

from .isa import Unit

__all__ = ["COUNTERS", "IN_ORDER_COUNTERS", "MAGIC", "VERSION", "WRITABLE", "Command", "ErrorCode", "Register", "Snapshot", "Status"]

#: What `Register.MAGIC` reads: the bytes "CELO".
MAGIC = int.from_bytes(b"CELO", "little")
#: What `Register.VERSION` reads: the version of this register map and of the instruction set.
VERSION = 2


class Register(enum.IntEnum, shape=12):
    """Byte addresses. Counters count from the start of the program and keep their values until the next start or reset."""

    MAGIC = 0x000
    VERSION = 0x004
    CONFIG = 0x008             # AcceleratorConfig.hash
    BUILD = 0x00C              # identifies the bitstream; 0 in simulation
    COMMAND = 0x010            # write only: Command
    STATUS = 0x014             # Status
    ERROR_INDEX = 0x018        # instructions handed out; after OPCODE, EDGE and NO_END the index of the faulty one
    WATCHDOG = 0x01C           # cycles without a retired instruction after which a program is stopped; 0: never
    PROGRAM = 0x020            # byte address of the first instruction, a multiple of 16
    INSTRUCTIONS = 0x024       # number of instructions, END included; LENGTH_BITS bits
    BASE_WEIGHTS = 0x030       # byte addresses of the four regions of memory, multiples of 8
    BASE_MAPS = 0x034
    BASE_INPUT = 0x038
    BASE_OUTPUT = 0x03C
    CYCLES = 0x040             # from start to the end of the program
    ACTIVE = 0x044             # cycles in which the array took a pixel
    STALL_WEIGHTS = 0x048      # cycles in which it did not, by cause: COMPUTE waits for the token of …
    STALL_MAPS = 0x04C
    STALL_DRAIN = 0x050
    STALL_INSTRUCTION = 0x054  # … has no instruction
    READ_BEATS = 0x058
    WRITE_BEATS = 0x05C
    SATURATED = 0x060          # codes that requantization has clamped, modulo 2^32
    SNAPSHOT = 0x064           # Snapshot of two cycles ago, after the program of one of its last ones
    RETIRED_WEIGHT = 0x070     # instructions retired by each unit
    RETIRED_MAP = 0x074
    RETIRED_COMPUTE = 0x078
    RETIRED_DRAIN = 0x07C
    RETIRED_STORE = 0x080


#: Registers that can be written while no program runs; COMMAND can always be.
WRITABLE = (Register.WATCHDOG, Register.PROGRAM, Register.INSTRUCTIONS, Register.BASE_WEIGHTS, Register.BASE_MAPS, Register.BASE_INPUT, Register.BASE_OUTPUT)
#: Counters of a program, and those of them that the in-order engine has.
COUNTERS = tuple(register for register in Register if Register.CYCLES <= register != Register.SNAPSHOT)
IN_ORDER_COUNTERS = (Register.CYCLES, Register.ACTIVE, *(Register[f"RETIRED_{unit.name}"] for unit in Unit))


class Command(data.Struct):
    #: Reset the engine, clear error and counters, and run the program. Refused while busy.
    start: unsigned(1)
    #: Stop whatever runs, wait for the bus to answer what is outstanding, reset the engine. Overrules `start`.
    reset: unsigned(1)


class ErrorCode(enum.IntEnum, shape=4):
    NONE = 0
    OPCODE = 1      # instruction ERROR_INDEX has an unknown opcode
    EDGE = 2        # instruction ERROR_INDEX waits for or posts to a unit it shares no tokens with
    NO_END = 3      # the program ended without END
    TOKENS = 4      # more than 255 tokens between two units
    READ = 5        # the bus answered a read with an error
    WRITE = 6       # the bus answered a write with an error
    WATCHDOG = 7    # nothing retired for too long; Status.unit and waiting say why


class Status(data.Struct):
    """`busy` from a start or reset until the program has ended or the reset is done; `done` and `error` until the next of them."""

    busy: unsigned(1)
    done: unsigned(1)
    error: ErrorCode
    #: After WATCHDOG: the lowest unit that is busy without waiting for tokens, else that waits for some while others wait for it, else that waits; else 7: the fetch.
    #: The instruction is the unit's RETIRED-th one, counted from 0, or the one after.
    unit: unsigned(3)
    #: After WATCHDOG: bit u: that unit waits for a token of unit u. 0: for the bus or for data.
    waiting: unsigned(len(Unit))


class Snapshot(data.Struct):
    """What the units do: `waiting[u]` bit v: the next instruction of unit u waits for a token of unit v; `busy` bit u: unit u has work in flight."""

    waiting: data.ArrayLayout(len(Unit), len(Unit))
    busy: unsigned(len(Unit))
