"""Is it the board it should be, and does it work? Identity, memory with a sweep of its clock's phase, a small network, the link's errors meanwhile."""

import random
from collections.abc import Callable

import numpy as np

from ..hw.board_control import BoardRegister
from ..hw.config import CONFIGS, AcceleratorConfig
from ..hw.network import Layer, Network, Pool, Tensor
from ..hw.registers import MAGIC, Register
from ..sim.device import DeviceError
from ..sim.golden import GoldenDevice
from .compile import compile
from .link import Link, Pipe
from .remote import BoardDevice

__all__ = ["selftest"]

#: Bytes of the memory's pattern at each phase, and of a block of the test after it.
_BLOCK = 1024
#: In which the phase comes to where it is told to go.
_MOVE_SECONDS = 1.0


def selftest(pipe: Pipe, config: "AcceleratorConfig | None" = None, *, size: int = 1 << 18, log: "Callable[[str], None]" = lambda line: None) -> dict:
    """Test the board behind `pipe`, which is closed after it. `size`: bytes of its memory that are written and read. Without `config` the board says what it has.

    Returns the report; its `passed` tells whether all is well. Raises :exc:`LinkError` if no device answers, :exc:`DeviceError` if it is no engine, or another one.
    """
    try:
        log("identity")
        config = config or _identify(Link(pipe))
        device = BoardDevice(config, pipe)
        link = device.link
        values = {register: link.read_register(register) for register in BoardRegister}
        report = {"device": pipe.name, "config": config.name, "build": f"{link.read_register(Register.BUILD) or 0:08x}", "engine_khz": values[BoardRegister.ENGINE_KHZ]}
        steps = values[BoardRegister.PHASE_STEPS]  # none: a board that is simulated has no clocks
        report["phase"] = _sweep(link, steps, config.memory_bytes, log) if steps else None
        works = not steps or report["phase"]["chosen"] is not None
        log("memory")
        report["memory"] = _test_memory(link, config.memory_bytes, size) if works else None
        log("network")
        report["network"] = _test_network(device) if works and not report["memory"]["wrong"] else None
        counters, damaged = link.counters, link.read_register(BoardRegister.DAMAGED)
        report["link"] = {"sent": counters.sent, "resent": counters.resent, "damaged_here": counters.damaged,
                          "damaged_there": damaged if damaged is None else damaged - values[BoardRegister.DAMAGED]}
        return report | {"passed": bool(report["network"] and report["network"]["equal"])}
    finally:
        pipe.close()


def _identify(link):
    magic, config = link.read_register(Register.MAGIC), link.read_register(Register.CONFIG)
    if magic != MAGIC:
        raise DeviceError(f"{link.name} is no engine of celosia: register MAGIC is {magic or 0:08x}, not {MAGIC:08x}; load a bitstream of `celosia synth`")
    known = [each for each in CONFIGS.values() if each.hash == config]
    if not known:
        raise DeviceError(f"{link.name} has an engine of a configuration without a name, {config:08x}; give its file as --config")
    return known[0]


def _test_memory(link, memory_bytes, size):
    """Blocks of random bytes all over the memory, written first and then read: at every power of two, where a lost address line shows, and evenly between."""
    count = max(size // _BLOCK, 1)
    places = {0, *(1 << bit for bit in range(_BLOCK.bit_length() - 1, memory_bytes.bit_length() - 1))}
    places |= {memory_bytes // count * number // _BLOCK * _BLOCK for number in range(count)}
    generator = random.Random(1)
    blocks = {place: generator.randbytes(_BLOCK) for place in sorted(places)}
    for place, block in blocks.items():
        link.write(place, block)
    wrong = [place for place, block in blocks.items() if link.read(place, _BLOCK) != block]
    return {"bytes": _BLOCK * len(blocks), "wrong": len(wrong), "first_wrong": wrong[0] if wrong else None}


def _sweep(link, steps, memory_bytes, log):
    """The memory's clock through a whole period, a pattern at each phase; in the end in the middle of the longest run of phases that worked."""
    generator, good = random.Random(2), []
    home = _signed(link.read_register(BoardRegister.PHASE))
    for phase in range(home - steps // 2, home + steps - steps // 2):
        log(f"phase {phase - home:+}")
        _move(link, phase)
        pattern, place = generator.randbytes(_BLOCK), generator.randrange(memory_bytes // _BLOCK) * _BLOCK
        link.write(place, pattern)
        good.append(link.read(place, _BLOCK) == pattern)
    begin, length = _longest_run(good)
    chosen = home - steps // 2 + begin + length // 2 if length else None
    _move(link, home if chosen is None else chosen)
    return {"steps": steps, "before": home, "good": length, "first_good": home - steps // 2 + begin if length else None, "chosen": chosen}


def _longest_run(good):
    """Where the longest run of true values begins, and how many they are."""
    best, begin = (0, 0), 0
    for index, each in enumerate([*good, False]):
        if not each:
            best, begin = max(best, (begin, index - begin), key=lambda run: run[1]), index + 1
    return best


def _signed(value):
    return value - (1 << 32) if value >> 31 else value


def _move(link, phase):
    link.write_register(BoardRegister.PHASE, phase & 0xFFFF_FFFF)
    end = link.now() + _MOVE_SECONDS
    while _signed(link.read_register(BoardRegister.PHASE)) != phase:
        if link.now() >= end:
            raise DeviceError(f"the phase of the memory's clock of {link.name} has not come to {phase} within {_MOVE_SECONDS:g} s; load the bitstream again")


def _test_network(device):
    """Two convolutions and a pooling on the board, compared with golden."""
    rng = np.random.default_rng(3)

    def layer(name, source, weight, **attributes):
        outputs = len(weight)
        return Layer(name=name, op="conv", input=source, output=name, weight=weight.astype(np.int8), bias=rng.integers(-5000, 5000, outputs).astype(np.int32),
                     multiplier=rng.integers(1 << 15, 1 << 16, outputs).astype(np.uint16), shift=np.full(outputs, 26, np.uint8), **attributes)

    tensors = {name: Tensor(name=name, shape=shape, scale=0.05, zero_point=zero_point)
               for name, shape, zero_point in (("image", (3, 16, 16), 5), ("first", (16, 8, 8), -128), ("second", (10, 8, 8), 3))}
    network = Network(name="selftest", tensors=tensors, inputs=["image"], outputs=["second"], layers=[
        layer("first", "image", rng.integers(-127, 128, (16, 3, 3, 3)), padding=(1, 1, 1, 1), pool=Pool(kernel=(2, 2), stride=(2, 2))),
        layer("second", "first", rng.integers(-127, 128, (10, 16, 1, 1))),
    ]).verify()
    program = compile(network, device.config, 1)
    codes = [rng.integers(-128, 128, (1, *tensors["image"].shape)).astype(np.int8)]
    result, expected = device.run_program(program, codes), GoldenDevice(device.config).run_program(program, codes)
    return {"equal": all(map(np.array_equal, result.outputs, expected.outputs)), "cycles": result.cycles}
