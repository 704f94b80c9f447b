"""Boards a configuration can be meant for."""

from dataclasses import dataclass

from ..hw.config import CONFIGS, AcceleratorConfig
from .errors import CelosiaError

__all__ = ["BOARDS", "Board", "get_board", "listing"]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board as its maker describes it; memory in bytes."""

    name: str
    part: str
    multipliers: int
    block_rams: int
    memory: str
    memory_bytes: int
    link: str
    #: The configuration it gets, unless another is asked for.
    config: str
    #: What openFPGALoader calls it.
    loader: str


def _ulx3s(size, multipliers, block_rams, config=None):
    name = f"ulx3s-{size}f"
    return Board(name=name, part=f"LFE5U-{size}F", multipliers=multipliers, block_rams=block_rams, memory="16-bit SDR SDRAM", memory_bytes=32 << 20,
                 link="FT231X UART, 3 Mbaud", config=config or name, loader="ulx3s")


BOARDS = {
    board.name: board
    for board in (
        _ulx3s(12, 28, 56, config="ulx3s-25f"),  # the same chip
        _ulx3s(25, 28, 56),
        _ulx3s(45, 72, 108),
        _ulx3s(85, 156, 208),
        Board(name="icebreaker", part="iCE40UP5K", multipliers=8, block_rams=30, memory="single-port RAM", memory_bytes=128 << 10, link="FT2232H UART, 3 Mbaud",
              config="up5k", loader="ice40_generic"),
    )
}


def get_board(name: str) -> Board:
    """A board by name. Raises :exc:`CelosiaError` if there is none."""
    if name not in BOARDS:
        raise CelosiaError(f"board {name!r} is not known; choose {', '.join(BOARDS)}")
    return BOARDS[name]


def listing() -> "list[dict]":
    """Every named configuration with its board: the rows of `celosia boards`."""
    return [_row(config) for config in CONFIGS.values()]


def _row(config: AcceleratorConfig) -> dict:
    board = BOARDS.get(config.board)
    return {
        "config": config.name,
        "board": config.board,
        "part": board.part if board else None,
        "array": f"{config.outputs}×{config.inputs}",
        "macs_per_cycle": config.macs,
        "multipliers": config.multipliers,
        "map_bytes": config.map_words * config.inputs,
        "weight_bytes": config.weight_words * config.inputs,
        "memory_bytes": config.memory_bytes,
        "memory": board.memory if board else "simulated",
        "link": board.link if board else None,
        "clock_mhz": config.clock_mhz,
        "hash": f"{config.hash:08x}",
    }
