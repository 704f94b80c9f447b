"""A compiled network: instructions, memory image and where its tensors lie; what every device runs."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .config import PLANE, AcceleratorConfig
from .isa import LENGTH_BITS, Base
from .network import Network
from .tensor_file import read_tensors, write_tensors

__all__ = ["Fold", "Placement", "Program", "ProgramError"]


class ProgramError(ValueError):
    """A program that does not fit the device, or a file that holds none."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Windows of a map gathered into channels: channel (ky·kernel[1] + kx)·C + c of pixel (y, x) is channel c of the map at
    (y·stride[0] − top + ky, x·stride[1] − left + kx), or the zero point outside of it.

    The host folds a network's input this way so that a first layer of few channels fills the array's columns.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    #: Top, left, bottom, right.
    padding: tuple[int, int, int, int]

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape (C, H, W) of the folded map."""
        channels, height, width = shape
        top, left, bottom, right = self.padding
        return (channels * self.kernel[0] * self.kernel[1],
                (height + top + bottom - self.kernel[0]) // self.stride[0] + 1, (width + left + right - self.kernel[1]) // self.stride[1] + 1)

    def apply(self, codes: np.ndarray, zero_point: int) -> np.ndarray:
        """Fold codes (N, C, H, W) int8."""
        top, left, bottom, right = self.padding
        padded = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero_point)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, axis=(2, 3))[:, :, ::self.stride[0], ::self.stride[1]]
        batch, _, height, width = windows.shape[:4]
        return np.ascontiguousarray(windows.transpose(0, 4, 5, 1, 2, 3)).reshape(batch, -1, height, width)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a tensor lies in memory: planes of eight channels, (N, ⌈C/8⌉, H, W, 8) bytes. A part of another lies where that one does."""

    tensor: str
    base: Base
    #: Bytes from the base; a multiple of 8.
    offset: int
    #: How the host folds a network's input before it writes it.
    fold: Fold | None = None


def pack_map(codes: np.ndarray) -> np.ndarray:
    """Codes (N, C, H, W) int8 as they lie in memory: (N, ⌈C/8⌉, H, W, 8) int8, missing channels 0."""
    batch, channels, height, width = codes.shape
    padded = np.zeros((batch, -(-channels // PLANE) * PLANE, height, width), np.int8)
    padded[:, :channels] = codes
    return np.ascontiguousarray(padded.reshape(batch, -1, PLANE, height, width).transpose(0, 1, 3, 4, 2))


def unpack_map(memory: np.ndarray, batch: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The inverse of :func:`pack_map`, from the bytes of the map: a copy, for these may be a device's memory."""
    channels, height, width = shape
    planes = memory.view(np.int8).reshape(batch, -(-channels // PLANE), height, width, PLANE)
    return np.array(planes.transpose(0, 1, 4, 2, 3).reshape(batch, -1, height, width)[:, :channels], order="C")


def map_bytes(batch: int, shape: tuple[int, int, int]) -> int:
    """Bytes a map occupies in memory."""
    return batch * -(-shape[0] // PLANE) * shape[1] * shape[2] * PLANE


def place_regions(*programs: dict[Base, int]) -> tuple[list[dict[Base, int]], int]:
    """A byte address for each region of programs with regions of these sizes, and where the last one ends.

    Their images follow each other from 0; behind them, whichever runs has its maps, inputs and outputs. All are aligned to 4 KiB as AXI bursts like it.
    """
    places, end = [], 0
    for sizes in programs:
        places.append({Base.WEIGHTS: end})
        end += _whole_pages(sizes[Base.WEIGHTS])
    most = end
    for sizes, place in zip(programs, places):
        last = end
        for base in Base:
            if base not in place:
                place[base] = last
                last += _whole_pages(sizes[base])
        most = max(most, last)
    return places, most


def _whole_pages(size):
    return -(-size // 4096) * 4096


@dataclass(kw_only=True)
class Program:
    """A network compiled for one configuration and batch size. Raises :exc:`ProgramError` if it has more instructions than the engine can count.

    Four regions of memory have a base register each: WEIGHTS holds `image`, MAPS the intermediate maps, INPUT and OUTPUT
    the network's own. Their sizes in bytes are `sizes`.
    """

    config: AcceleratorConfig
    batch: int
    #: What the device computes.
    network: Network
    #: uint8: parameters, weights and instructions as they lie at base WEIGHTS.
    image: np.ndarray
    #: Bytes from base WEIGHTS to the first instruction; a multiple of 512.
    code_offset: int
    #: Number of instructions, END included.
    instructions: int
    #: uint16: the layer that each instruction is for.
    layers: np.ndarray
    sizes: dict[Base, int]
    inputs: list[Placement]
    outputs: list[Placement]
    #: Per layer of the network: how many instructions the STORE unit has retired when the layer's output is complete.
    stores: list[int]
    #: Per layer: {"compute": cycles, "memory": cycles, "bytes": bytes, "bound": cycles}, the compiler's estimate.
    estimates: list[dict]
    #: What the host computes of the network's outputs, for which the memory has no room.
    host: Network | None = None

    def __post_init__(self):
        if self.instructions >= 1 << LENGTH_BITS:
            raise ProgramError(f"program {self.network.name} has {self.instructions:,} instructions, the engine counts {(1 << LENGTH_BITS) - 1:,} at most; "
                               "compile it for a smaller batch, or cut the network in two")

    @property
    def macs(self) -> int:
        """MACs of a whole batch."""
        return self.batch * self.network.macs

    @property
    def memory_bytes(self) -> int:
        """Bytes of external memory the program needs."""
        return place_regions(self.sizes)[1]

    def words(self) -> list[int]:
        """The instruction words."""
        raw = self.image[self.code_offset : self.code_offset + 16 * self.instructions].tobytes()
        return [int.from_bytes(raw[i : i + 16], "little") for i in range(0, len(raw), 16)]

    def bases(self) -> dict[Base, int]:
        """The byte address of each region, if the memory is the program's alone."""
        [bases], _ = place_regions(self.sizes)
        return bases

    def output_codes(self, place: Placement, region: np.ndarray) -> np.ndarray:
        """Codes (N, C, H, W) int8 of an output, from the bytes of its region of memory."""
        shape = self.network.tensors[self.network.part(place.tensor).tensor].shape
        whole = unpack_map(region[place.offset :][: map_bytes(self.batch, shape)], self.batch, shape)
        return np.ascontiguousarray(whole[:, *self.network.region(place.tensor)])

    def check_config(self, config: AcceleratorConfig) -> None:
        """Raises :exc:`ProgramError` if the program was made for other hardware, or for more memory than there is."""
        if config.hash != self.config.hash:
            raise ProgramError(f"program for {self.network.name} was made for config {self.config.name!r} ({self.config.hash:08x}), the device has "
                               f"{config.name!r} ({config.hash:08x}); compile it with --config {config.name}")
        if self.memory_bytes > config.memory_bytes:
            raise ProgramError(f"program for {self.network.name} needs {self.memory_bytes:,} bytes of memory, config {config.name!r} has "
                               f"{config.memory_bytes:,}; compile it for a smaller batch or use a config with more memory")

    def _verify(self):
        """Raises ValueError if a device could not even place it in memory: what a file may get wrong, beyond the network."""
        if self.image.dtype != np.uint8 or self.image.size != self.sizes[Base.WEIGHTS] or self.code_offset + 16 * self.instructions > self.image.size:
            raise ValueError("the image is not what the header describes")
        if self.instructions < 1:
            raise ValueError(f"{self.instructions} instructions")
        if self.layers.dtype != np.uint16 or self.layers.shape != (self.instructions,) or self.layers.max() >= len(self.network.layers):
            raise ValueError("its instructions are not for the layers of its network")
        if len(self.stores) != len(self.network.layers):
            raise ValueError(f"{len(self.stores)} ends of {len(self.network.layers)} layers")
        if self.host and self.host.inputs != self.network.outputs:
            raise ValueError("the host's layers do not read what the device puts out")
        for names, places in ((self.network.inputs, self.inputs), (self.network.outputs, self.outputs)):
            if [place.tensor for place in places] != names:
                raise ValueError("its placements are not those of the network's inputs and outputs")
            for place in places:
                shape = self.network.tensors[self.network.part(place.tensor).tensor].shape
                if place.offset < 0 or place.offset + map_bytes(self.batch, place.fold.shape(shape) if place.fold else shape) > self.sizes[place.base]:
                    raise ValueError(f"tensor {place.tensor!r} does not lie in its region")

    def save(self, path: "str | Path") -> None:
        """Write a `.celp` file (safetensors)."""
        network, arrays = self.network.to_arrays()
        header = {"config": self.config.to_json(), "batch": self.batch, "network": network, "code_offset": self.code_offset, "instructions": self.instructions,
                  "sizes": {base.name: size for base, size in self.sizes.items()}, "stores": self.stores, "estimates": self.estimates}
        for name in ("inputs", "outputs"):
            header[name] = [asdict(p) | {"base": Base(p.base).name} for p in getattr(self, name)]
        if self.host:
            header["host"], rest = self.host.to_arrays()
            arrays |= {f"host.{name}": array for name, array in rest.items()}
        write_tensors(path, "celp", header, arrays | {"image": self.image, "layers": self.layers})

    @classmethod
    def load(cls, path: "str | Path") -> "Program":
        """Read a `.celp` file. Raises :exc:`ProgramError` if it is missing, truncated or of another kind."""
        header, arrays = read_tensors(path, "celp", ProgramError)

        def placement(values):
            fold = values["fold"] and Fold(**{k: tuple(v) for k, v in values["fold"].items()})
            return Placement(tensor=values["tensor"], base=Base[values["base"]], offset=values["offset"], fold=fold)

        try:
            rest = {name: arrays.pop(f"host.{name}") for name in [name.removeprefix("host.") for name in arrays if name.startswith("host.")]}
            host = Network.from_arrays(header["host"], rest) if "host" in header else None
            program = cls(host=host, config=AcceleratorConfig.from_json(header["config"]), batch=header["batch"], image=arrays.pop("image"),
                          layers=arrays.pop("layers"), network=Network.from_arrays(header["network"], arrays), code_offset=header["code_offset"],
                          instructions=header["instructions"],
                          sizes={Base[name]: size for name, size in header["sizes"].items()}, stores=header["stores"],
                          estimates=header["estimates"], inputs=[placement(p) for p in header["inputs"]], outputs=[placement(p) for p in header["outputs"]])
            program._verify()
            return program
        except ProgramError as error:
            raise ProgramError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProgramError(f"{path}: is damaged or was made by another version ({error}); compile it again") from None
