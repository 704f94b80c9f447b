"""Boards a configuration can be meant for."""

from dataclasses import dataclass

from ..hw.config import CONFIGS, AcceleratorConfig

__all__ = ["BOARDS", "Board", "listing"]


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


BOARDS = {
    board.name: board
    for board in (
        Board(name="ulx3s-25f", part="LFE5U-25F", multipliers=28, block_rams=56, memory="16-bit SDR SDRAM", memory_bytes=32 << 20, link="FT231X UART, 3 Mbaud"),
        Board(name="ulx3s-85f", part="LFE5U-85F", multipliers=156, block_rams=208, memory="16-bit SDR SDRAM", memory_bytes=32 << 20, link="FT231X UART, 3 Mbaud"),
        Board(name="icebreaker", part="iCE40UP5K", multipliers=8, block_rams=30, memory="single-port RAM", memory_bytes=128 << 10, link="FT2232H UART, 3 Mbaud"),
    )
}


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
