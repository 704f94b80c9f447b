"""Configuration of the accelerator: one frozen, self-validating object that hardware, compiler and devices share."""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .checks import checker
from .parameters import PARAMETER_BYTES

__all__ = ["PLANE", "CONFIGS", "SMALL_MEMORY", "AcceleratorConfig", "ConfigError", "get_config"]

#: Channels of a map's plane in memory: a pixel of a plane is one 64-bit bus beat.
PLANE = 8

#: Bytes of the memory of an engine that is `in_order`: four single-port RAMs of an iCE40 UP5K.
SMALL_MEMORY = 128 << 10


class ConfigError(ValueError):
    """A configuration that cannot be built, or a name or file that is none."""


def _power_of_two(value):
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Everything that shapes the accelerator's hardware.

    Raises :exc:`ConfigError` naming the field if a value cannot be built.
    """

    name: str
    #: Board (`celosia boards`) whose part, memory and link the configuration is meant for.
    board: str = "ulx3s-85f"
    #: Output channels computed at once: rows of the array, two to a multiplier.
    outputs: int = 16
    #: Input channels consumed at once: columns of the array, bytes of a scratchpad and of a weight word.
    inputs: int = 16
    #: Output channels drained, requantized and staged in one cycle.
    drain_lanes: int = 4
    #: Requantizers multiply in hard multipliers (three a lane) or in LUTs.
    drain_multipliers: bool = True
    #: Words of `inputs` bytes of the feature map scratchpad.
    map_words: int = 12800
    #: Words of `inputs` bytes of the weight buffer.
    weight_words: int = 4096
    #: Pixels of a tile at most: depth of each of the two banks of sums.
    tile_pixels: int = 512
    #: Pixels of each of the two 8-channel planes of the output staging buffer; the residual buffer is as large.
    stage_pixels: int = 1024
    #: Groups of four output channels whose bias, multiplier and shift the parameter buffer holds.
    parameter_words: int = 512
    #: Beats of 64 bit in an AXI burst at most (16 for AXI3).
    max_burst: int = 64
    #: External memory in bytes.
    memory_bytes: int = 32 << 20
    #: Engine clock the figures are stated for.
    clock_mhz: float = 100.0
    #: The small engine of `hw/inorder.py` instead: instructions one after the other, buffers and external memory in the same 128 KiB, and neither residuals nor
    #: multipliers of negative sums nor tables.
    in_order: bool = False

    def __post_init__(self):
        check = checker(self, f"config {self.name!r}", ConfigError)
        check("outputs", self.outputs in (2, 4, 8, 16), "2, 4, 8 or 16")
        check("inputs", self.inputs in (8, 16), "8 or 16")
        check("drain_lanes", self.drain_lanes in (2, 4) and self.drain_lanes <= self.outputs, "2 or 4, and at most outputs")
        check("tile_pixels", _power_of_two(self.tile_pixels) and 32 <= self.tile_pixels <= 512, "a power of two in 32…512")
        check("stage_pixels", _power_of_two(self.stage_pixels) and 2 * self.tile_pixels <= self.stage_pixels <= 1024,
              "a power of two in 2·tile_pixels…1024")
        check("map_words", self.map_words % 512 == 0 and 512 <= self.map_words <= 16384, "a multiple of 512 in 512…16384")
        check("weight_words", _power_of_two(self.weight_words) and 16 * self.outputs <= self.weight_words <= 4096,
              "a power of two in 16·outputs…4096")
        check("parameter_words", _power_of_two(self.parameter_words) and 16 <= self.parameter_words <= 512, "a power of two in 16…512")
        check("max_burst", self.max_burst in (16, 32, 64), "16, 32 or 64")
        if self.in_order:
            for name, value in (("outputs", 2), ("inputs", 8), ("drain_lanes", 2), ("drain_multipliers", False)):
                check(name, getattr(self, name) == value, f"{value} if in_order")
            most = SMALL_MEMORY - self.buffer_bytes
            check("memory_bytes", 4096 <= self.memory_bytes <= most and self.memory_bytes % 4096 == 0, f"a multiple of 4096 in 4096…{most & -4096} if in_order")
        else:
            check("memory_bytes", _power_of_two(self.memory_bytes) and 1 << 16 <= self.memory_bytes <= 1 << 27, "a power of two in 64 KiB…128 MiB")
        check("clock_mhz", 1 <= self.clock_mhz <= 1000, "in 1…1000")

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cycle."""
        return self.outputs * self.inputs

    @property
    def multipliers(self) -> int:
        """Hard 18×18 multipliers: two MACs each in the array, three a requantizing lane."""
        return self.macs // 2 + (3 * self.drain_lanes if self.drain_multipliers else 0)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of scratchpad, weight, parameter and staging buffers."""
        return self.inputs * (self.map_words + self.weight_words) + PARAMETER_BYTES * self.parameter_words + 2 * PLANE * self.stage_pixels

    @property
    def block_words(self) -> int:
        """Weight words of one array load, `outputs` × `inputs` weights."""
        return self.outputs

    @property
    def min_pixels(self) -> int:
        """Pixels of a tile at least: the next weights load meanwhile, and a sum is back in its bank before it is read again. In order, nothing happens meanwhile."""
        return 1 if self.in_order else 16

    @property
    def hash(self) -> int:
        """32 bits that identify the hardware; the host compares them with the device's identity register."""
        shape = {k: v for k, v in asdict(self).items() if k not in ("name", "board", "clock_mhz", "memory_bytes")}
        if not self.in_order:  # so that engines made before there was this field keep their hash
            del shape["in_order"]
        return int.from_bytes(hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).digest()[:4], "little")

    def to_json(self) -> dict:
        """Fields as a JSON object; :meth:`from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "AcceleratorConfig":
        """Raises :exc:`ConfigError` if a field is unknown, missing or out of range."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"config {values.get('name', '?')!r}: unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")
        if "name" not in values:
            raise ConfigError("config: field 'name' is missing")
        return cls(**values)


CONFIGS = {
    config.name: config
    for config in (
        AcceleratorConfig(name="tiny", board="none", outputs=2, inputs=8, drain_lanes=2, drain_multipliers=False, map_words=2048,
                          weight_words=512, tile_pixels=64, stage_pixels=128, parameter_words=64, memory_bytes=1 << 25),
        AcceleratorConfig(name="ulx3s-25f", board="ulx3s-25f", outputs=4, inputs=8, drain_lanes=2, map_words=3072, weight_words=1024,
                          tile_pixels=256, stage_pixels=512, parameter_words=512),
        AcceleratorConfig(name="ulx3s-45f", board="ulx3s-45f", outputs=8, drain_lanes=2, map_words=5632, weight_words=2048,
                          tile_pixels=256, stage_pixels=512),
        AcceleratorConfig(name="ulx3s-85f"),
        AcceleratorConfig(name="ulx3s-85f-64m", memory_bytes=64 << 20),
        AcceleratorConfig(name="up5k", board="icebreaker", in_order=True, outputs=2, inputs=8, drain_lanes=2, drain_multipliers=False, map_words=2560,
                          weight_words=512, tile_pixels=128, stage_pixels=256, parameter_words=128, memory_bytes=96 << 10, clock_mhz=24.0),
    )
}


def get_config(config: "str | Path | AcceleratorConfig") -> AcceleratorConfig:
    """A configuration by name, from a TOML file whose keys are the fields, or as it is.

    Raises :exc:`ConfigError` for an unknown name, an unreadable file, or a value out of range.
    """
    if isinstance(config, AcceleratorConfig):
        return config
    if str(config) in CONFIGS:
        return CONFIGS[str(config)]
    path = Path(config)
    if path.suffix != ".toml":
        raise ConfigError(f"config {str(config)!r} is not known; choose {', '.join(CONFIGS)} or name a .toml file")
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {path}: cannot be read: {error}") from None
    return AcceleratorConfig.from_json({"name": path.stem} | values)
