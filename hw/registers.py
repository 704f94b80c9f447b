"""The register map: what the control port decodes, the host's driver accesses and an exported core documents (`register_map.py`), written once.

All registers are 32 bits wide. A read of no register, a write to one that cannot be written, and a write that the engine's state forbids are answered with SLVERR.
"""

from amaranth.hdl import unsigned
from amaranth.lib import data, enum

from .config import AcceleratorConfig
from .isa import LENGTH_BITS, Unit

__all__ = [
    "COUNTERS", "IN_ORDER_COUNTERS", "MAGIC", "MEANINGS", "VERSION", "WRITABLE", "Access", "Command", "ErrorCode", "Register", "Snapshot", "Status", "identity",
]

#: What `Register.MAGIC` reads: the bytes "CELO".
MAGIC = int.from_bytes(b"CELO", "little")
#: What `Register.VERSION` reads: the version of this register map and of the instruction set.
VERSION = 3


class Command(data.Struct):
    start: unsigned(1)
    reset: unsigned(1)


class ErrorCode(enum.IntEnum, shape=4):
    NONE = 0
    OPCODE = 1
    EDGE = 2
    NO_END = 3
    TOKENS = 4
    READ = 5
    WRITE = 6
    WATCHDOG = 7


class Status(data.Struct):
    busy: unsigned(1)
    done: unsigned(1)
    error: ErrorCode
    unit: unsigned(3)
    waiting: unsigned(len(Unit))


class Snapshot(data.Struct):
    waiting: data.ArrayLayout(len(Unit), len(Unit))
    busy: unsigned(len(Unit))


#: What the fields of a register and the codes of an error mean.
MEANINGS = {
    Command: {
        "start": "Reset the engine, clear error and counters, and run the program. Refused while busy.",
        "reset": "Stop whatever runs, wait for the bus to answer what is outstanding, reset the engine. Overrules start.",
    },
    Status: {
        "busy": "From a start or reset until the program has ended or the reset is done.",
        "done": "The program has ended well; until the next start or reset.",
        "error": "Why the program has been stopped; until the next start or reset.",
        "unit": "After WATCHDOG: the lowest unit that is busy without waiting for tokens, else that waits for some while others wait for it, else that waits; "
                "else 7: the fetch. The instruction is the unit's RETIRED-th one, counted from 0, or the one after.",
        "waiting": "After WATCHDOG: bit u: that unit waits for a token of unit u. 0: for the bus or for data.",
    },
    Snapshot: {
        "waiting": f"Bit {len(Unit)}*u + v: the next instruction of unit u waits for a token of unit v.",
        "busy": "Bit u: unit u has work in flight.",
    },
    ErrorCode: {
        "NONE": "No error.",
        "OPCODE": "Instruction ERROR_INDEX has an unknown opcode.",
        "EDGE": "Instruction ERROR_INDEX waits for or posts to a unit it shares no tokens with.",
        "NO_END": "The program ended without END.",
        "TOKENS": "More than 255 tokens between two units.",
        "READ": "The bus answered a read with an error.",
        "WRITE": "The bus answered a write with an error.",
        "WATCHDOG": "Nothing retired for too long; unit and waiting say why.",
    },
}


class Access(enum.Enum):
    READ = "read"
    #: Always.
    WRITE = "write"
    #: Written only while no program runs.
    READ_WRITE = "read, write"


class Register(enum.IntEnum):
    """Byte addresses, each with its `access`, its `meaning` and its `fields`, a struct or None.

    Counters count from the start of the program and keep their values until the next start or reset.
    """

    def __new__(cls, address: int, access: Access, meaning: str, fields: "type[data.Struct] | None" = None):
        register = int.__new__(cls, address)
        register._value_, register.access, register.meaning, register.fields = address, access, meaning, fields
        return register

    MAGIC = 0x000, Access.READ, 'The bytes "CELO".'
    VERSION = 0x004, Access.READ, "Version of this register map and of the instruction set."
    CONFIG = 0x008, Access.READ, "Hash of the configuration; programs are compiled for one."
    BUILD = 0x00C, Access.READ, "Identifies the bitstream; 0: nobody has given a number."
    COMMAND = 0x010, Access.WRITE, "What to do.", Command
    STATUS = 0x014, Access.READ, "What is being done, and how the last program ended.", Status
    ERROR_INDEX = 0x018, Access.READ, "Instructions handed out; after OPCODE, EDGE and NO_END the index of the faulty one."
    WATCHDOG = 0x01C, Access.READ_WRITE, "Cycles without a retired instruction after which a program is stopped; 0: never."
    PROGRAM = 0x020, Access.READ_WRITE, "Byte address of the first instruction, a multiple of 16."
    INSTRUCTIONS = 0x024, Access.READ_WRITE, f"Number of instructions, END included; {LENGTH_BITS} bits."
    BASE_WEIGHTS = 0x030, Access.READ_WRITE, "Byte address of the weights, a multiple of 8."
    BASE_MAPS = 0x034, Access.READ_WRITE, "Byte address of the maps between layers, a multiple of 8."
    BASE_INPUT = 0x038, Access.READ_WRITE, "Byte address of the input, a multiple of 8."
    BASE_OUTPUT = 0x03C, Access.READ_WRITE, "Byte address of the output, a multiple of 8."
    CYCLES = 0x040, Access.READ, "Cycles from the start to the end of the program."
    ACTIVE = 0x044, Access.READ, "Cycles in which the array took a pixel."
    STALL_WEIGHTS = 0x048, Access.READ, "Cycles without a pixel in which COMPUTE waited for a token of WEIGHT."
    STALL_MAPS = 0x04C, Access.READ, "Cycles without a pixel in which COMPUTE waited for a token of MAP, but for none of WEIGHT."
    STALL_DRAIN = 0x050, Access.READ, "Cycles without a pixel in which COMPUTE waited for a token of DRAIN only."
    STALL_INSTRUCTION = 0x054, Access.READ, "Cycles without a pixel in which COMPUTE had no instruction."
    READ_BEATS = 0x058, Access.READ, "Beats of 8 bytes read from memory."
    WRITE_BEATS = 0x05C, Access.READ, "Beats of 8 bytes written to memory."
    SATURATED = 0x060, Access.READ, "Codes that requantization has clamped, modulo 2^32."
    SNAPSHOT = 0x064, Access.READ, "What the units did two cycles ago; after the program, in one of its last cycles.", Snapshot
    RETIRED_WEIGHT = 0x070, Access.READ, "Instructions retired by WEIGHT."
    RETIRED_MAP = 0x074, Access.READ, "Instructions retired by MAP."
    RETIRED_COMPUTE = 0x078, Access.READ, "Instructions retired by COMPUTE."
    RETIRED_DRAIN = 0x07C, Access.READ, "Instructions retired by DRAIN."
    RETIRED_STORE = 0x080, Access.READ, "Instructions retired by STORE."


#: Registers that can be written while no program runs.
WRITABLE = tuple(register for register in Register if register.access is Access.READ_WRITE)
#: Counters of a program, and those of them that the in-order engine has.
COUNTERS = tuple(register for register in Register if Register.CYCLES <= register != Register.SNAPSHOT)
IN_ORDER_COUNTERS = (Register.CYCLES, Register.ACTIVE, *(Register[f"RETIRED_{unit.name}"] for unit in Unit))


def identity(config: AcceleratorConfig, build: int = 0) -> dict[Register, int]:
    """What the registers read that say what an engine is."""
    return {Register.MAGIC: MAGIC, Register.VERSION: VERSION, Register.CONFIG: config.hash, Register.BUILD: build}
