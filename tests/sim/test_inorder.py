"""Config up5k: golden's bytes and the cycles of `cycle` from the RTL, random layers and networks; what it has no hardware for is refused by name."""

import numpy as np
import pytest
from cases import Case, Input, LayerCase, Summand
from exercise import Exerciser, search
from networks import network_of, random_layer
from strategies import CORNER_CASES, layer_cases, network_cases

from celosia.host.compile import compile
from celosia.host.errors import CompileError
from celosia.host.source import load_program
from celosia.hw.config import get_config
from celosia.hw.isa import Opcode
from celosia.models import zoo
from celosia.sim.cycle import CycleDevice
from celosia.sim.golden import quantize
from celosia.sim.rtl import RtlDevice

CONFIG = get_config("up5k")


def test_random_cases():
    with Exerciser(CONFIG) as exerciser:
        ran = [case for case in CORNER_CASES if exerciser.run(case)]
        assert len(ran) == 19, "those that fit its memory and need nothing it lacks"
        assert len(search(exerciser, layer_cases(), 60, seed=1)) >= 60
        assert len(search(exerciser, network_cases(), 4, seed=2)) >= 4
    assert all(exerciser.account.opcodes[opcode] for opcode in Opcode)


@pytest.mark.parametrize(("options", "reason"), [
    ({"summand": Summand(map="x0")}, "adds a second map"), ({"table": "random"}, "is or ends in a function looked up in a table"),
    ({"slopes": "random"}, "has a slope for negative values"),
])
def test_what_it_has_no_hardware_for_names_the_layer(options, reason):
    case = Case(inputs=(Input(shape=(4, 5, 5)),), layers=(LayerCase(source="x0", outputs=4), LayerCase(source="y0", outputs=4, **options)))
    with pytest.raises(CompileError, match=rf"layer y1: {reason}, for which config 'up5k' has no hardware"):
        compile(case.network(), CONFIG, 1)
    assert compile(case.network(), "tiny", 1)


def test_its_memory_is_what_the_buffers_leave():
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "a", "x", (64, 40, 40), 8, (1, 1))], (64, 40, 40), rng)
    with pytest.raises(CompileError, match=r"network random: needs [\d,]+ bytes of memory .* config 'up5k' has 98,304"):
        compile(network, CONFIG)


def test_trained_network():
    """Of the zoo, in its memory: golden's bytes, and in every layer the cycles of `cycle`."""
    program, images = load_program("fashion-vgg", "up5k", 1), zoo.get("fashion-vgg").sample_images()[0][:3]
    golden = CycleDevice(CONFIG)
    with RtlDevice(CONFIG) as rtl:
        for image in images:
            codes = [quantize(image[None].numpy(), program.network.tensors[program.network.inputs[0]])]
            found, expected = rtl.run_program(program, codes), golden.run_program(program, codes)
            np.testing.assert_array_equal(found.outputs[0], expected.outputs[0])
            assert (found.cycles, found.layers) == (expected.cycles, expected.layers)
