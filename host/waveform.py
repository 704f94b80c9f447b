"""The waveform around a wrong value: which instructions made it, and in which cycles."""

from collections import Counter
from pathlib import Path

import numpy as np

from ..hw.config import PLANE
from ..hw.isa import Opcode, Unit, decode, unit_of
from ..hw.program import Program
from ..sim.rtl import BEAT_WRITTEN
from ..sim.waveform import VCD_CYCLES
from .device import open_device

__all__ = ["makers", "record"]


def makers(program: Program, layer: int, image: int, channel: int, y: int, x: int) -> "tuple[tuple[int, int] | None, tuple[int, int]]":
    """Between which events a pixel of a layer's output, which is one of the program's, is made: the last instruction of COMPUTE before the pixel's tile, None
    before the first tile, and the beat that brings the pixel to memory; both as marks of `RtlDevice.stamps`.
    """
    name = program.network.layers[layer].output
    place = next(place for place in program.outputs if place.tensor == name)
    part = program.network.part(name)
    whole = program.network.tensors[part.tensor]
    plane = image * whole.planes + (part.channel + channel) // PLANE
    beat = place.offset // 8 + (plane * whole.shape[1] + part.row + y * part.row_step) * whole.shape[2] + part.column + x
    first_store, last_store = program.stores[layer - 1] + 1 if layer else 1, program.stores[layer]
    retired, written, before, tile_is_stored = Counter(), 0, 0, False
    for word in program.words():
        opcode, fields = decode(word)
        unit = unit_of(opcode)
        if unit == Unit.COMPUTE and tile_is_stored:
            before, tile_is_stored = retired[unit], False
        retired[unit] += 1
        if opcode == Opcode.STORE:
            tile_is_stored = True
            index = _index(fields, beat) if first_store <= retired[unit] <= last_store and fields["base"] == place.base else None
            if index is not None:
                return (Unit.COMPUTE, before) if before else None, (BEAT_WRITTEN, written + index + 1)
            written += (fields["last_plane"] + 1) * fields["rows"] * fields["columns"]
    raise AssertionError(f"no instruction stores pixel ({y}, {x}) of {name}")


def record(program: Program, layer: int, image: int, channel: int, y: int, x: int, images: np.ndarray, vcd: Path, **options) -> dict:
    """Write the waveform of the cycles in which the RTL makes a pixel of a layer's output, which is one of the program's; the object that `celosia diff --json`
    prints of it, with the `value` that this run has given: of the images, only those of the pixel's batch take part.

    A first run tells the cycles; the second one, with a build that traces, writes them: VCD_CYCLES at most, the last ones.
    """
    first_image = image - image % program.batch
    images, image = images[first_image : first_image + program.batch], image - first_image
    before, beat = makers(program, layer, image, channel, y, x)
    with open_device("rtl", program.config, **options) as device:
        *start, end = device.stamps(program, images, [mark for mark in (before, beat) if mark])
    begin, end = start[0] if start else 0, end + 1
    with open_device("rtl", program.config, vcd=vcd, vcd_range=(max(begin, end - VCD_CYCLES), end), **options) as device:
        value = int(device.run(program, images).codes[layer][image, channel, y, x])
    first, last = device.waveform
    return {"file": str(vcd), "first_cycle": first, "last_cycle": last - 1, "tile_first_cycle": begin, "value": value}


def _index(store, beat):
    """Which of the beats that a STORE writes, plane after plane and row after row, is the one at an offset; None if none is."""
    for plane in range(store["last_plane"] + 1):
        row, column = divmod(beat - store["offset"] - plane * store["plane_stride"], store["row_stride"])
        if 0 <= row < store["rows"] and column < store["columns"]:
            return (plane * store["rows"] + row) * store["columns"] + column
    return None
