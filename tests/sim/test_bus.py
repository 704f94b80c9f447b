"""The accelerator on a memory port that misbehaves, and with programs that are wrong: it says what is wrong and is as good as new after a soft reset."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from networks import random_codes, random_network

from celosia.host.compile import compile
from celosia.hw.config import get_config
from celosia.hw.isa import INSTRUCTIONS, Base, Opcode, Unit, decode, encode, unit_of
from celosia.hw.registers import Register
from celosia.sim import driver
from celosia.sim.device import DeviceError
from celosia.sim.golden import GoldenDevice
from celosia.sim.rtl import RtlDevice

CONFIG = get_config("tiny")


@pytest.fixture(scope="module")
def good():
    """A program of all kinds of instructions, its input, and what it puts out."""
    network = random_network(2, most_layers=3, largest=14)
    program, codes = compile(network, "tiny", 2), random_codes(network, 2, 2)
    return program, [codes], GoldenDevice(CONFIG).run_program(program, [codes]).outputs[0]


def runs_well(device, good):
    """That the device still gives golden's bytes. It has not been reset by its pin meanwhile."""
    program, inputs, expected = good
    device._memory[program.bases()[program.outputs[0].base] :] = 0x55
    np.testing.assert_array_equal(device.run_program(program, inputs).outputs[0], expected)


@pytest.fixture
def device(monkeypatch):
    """A device that gets no other than soft resets after its first one, and whose watchdog is quick."""
    monkeypatch.setattr(driver, "WATCHDOG_CYCLES", 20_000)
    with RtlDevice(CONFIG, "erratic") as device:
        monkeypatch.setattr(device._board, "reset", lambda: pytest.fail("the engine did not come to rest after a soft reset"))
        yield device


def patched(program, words):
    """The program with other instructions, which lie at the end of its image."""
    raw = b"".join(word.to_bytes(16, "little") for word in words)
    image = np.append(program.image[: program.code_offset], np.frombuffer(raw, np.uint8))
    return replace(program, image=image, instructions=len(words), sizes=program.sizes | {Base.WEIGHTS: image.size})


@pytest.mark.parametrize(("direction", "name"), [("read", "READ"), ("write", "WRITE")])
def test_errors_of_the_bus(device, good, direction, name):
    """SLVERR for each burst in turn: a named error, and the same program runs well after it."""
    for burst in range(1, 1000):
        device.fail(direction, burst)
        try:
            device.run_program(*good[:2])
            break
        except DeviceError as error:
            assert re.fullmatch(rf"program random stopped after \d+ cycles: error {name} at instruction \d+ of \d+", str(error))
        runs_well(device, good)
    assert 5 < burst < 999, "one more than the program has"
    beats = device._read(Register[f"{name}_BEATS"])
    assert (burst - 1) * CONFIG.max_burst >= beats, "a burst whose error was not seen"


@pytest.mark.parametrize(("opcode", "giver"), [
    (Opcode.LOAD_WEIGHTS, Unit.COMPUTE), (Opcode.LOAD_MAP, Unit.STORE), (Opcode.COMPUTE, Unit.MAP), (Opcode.DRAIN, Unit.COMPUTE), (Opcode.STORE, Unit.DRAIN)])
def test_the_watchdog_names_the_stuck_instruction(device, good, opcode, giver):
    """One more instruction than the program has, which waits for a token that nobody leaves."""
    *words, end = good[0].words()
    program = patched(good[0], [*words, encode(opcode, wait=[giver]), end])
    stuck = rf"nothing retired for 20000 cycles, {unit_of(opcode).name} waits for tokens of {giver.name} near instruction {len(words)} of \d+, {opcode.name}"
    with pytest.raises(DeviceError, match=stuck):
        device.run_program(program, good[1])
    runs_well(device, good)


def replaced(program, opcode, change):
    """The program with the first instruction of an opcode changed: (program, its index)."""
    words = program.words()
    index = next(index for index, word in enumerate(words) if decode(word)[0] == opcode)
    words[index] = change(words[index])
    return patched(program, words), index


def with_fields(opcode, **values):
    def change(word):
        fields = decode(word)[1]
        units = {name: [unit for unit in Unit if fields[name] >> unit & 1] for name in ("wait", "post")}
        return encode(opcode, **{name: value for name, value in fields.items() if name not in ("opcode", "wait", "post")} | units | values)
    return change


FAR = (1 << 24) - 1  # beats: beyond the 32 MiB of the config
WRONG = {
    "opcode": (Opcode.DRAIN, lambda word: word & ~15 | 13, "error OPCODE at instruction {index} of"),
    "zero": (Opcode.COMPUTE, lambda word: 0, "error OPCODE at instruction {index} of"),
    "edge": (Opcode.DRAIN, lambda word: word | 1 << 4 + Unit.DRAIN, "error EDGE at instruction {index} of"),
    "no_end": (Opcode.END, lambda word: encode(Opcode.COMPUTE_STRIDES), "error NO_END at instruction"),
    "weights_outside": (Opcode.LOAD_WEIGHTS, with_fields(Opcode.LOAD_WEIGHTS, offset=FAR), "error READ at"),
    "map_outside": (Opcode.LOAD_MAP, with_fields(Opcode.LOAD_MAP, offset=FAR), "error READ at"),
    "store_outside": (Opcode.STORE, with_fields(Opcode.STORE, offset=FAR), "error WRITE at"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_program_is_stopped(device, good, case):
    opcode, change, message = WRONG[case]
    program, index = replaced(good[0], opcode, change)
    with pytest.raises(DeviceError, match=message.format(index=index)):
        device.run_program(program, good[1])
    runs_well(device, good)


def test_nonsense_never_hangs(device, good):
    """Random instructions, with and without sense: END, an error or the watchdog ends them, none breaks a rule of AXI4, none leaves anything behind."""
    device._limit = 2_000_000
    generator = random.Random(1)
    ended = set()
    for _ in range(25):
        words = []
        for _ in range(generator.choice([1, 5, 30])):
            opcode = generator.choice(list(INSTRUCTIONS))
            edges = 0 if generator.random() < 0.8 else generator.getrandbits(10) << 4
            words.append(opcode | edges | generator.getrandbits(114) << 14)
        try:
            device.run_program(patched(good[0], words + [encode(Opcode.END)]), good[1])
            ended.add("END")
        except DeviceError as error:
            assert "stopped after" in str(error), error
            ended.add(str(error).partition(": ")[2].split(" at ")[0].split(",")[0])
        runs_well(device, good)
    assert len(ended) >= 4, ended
