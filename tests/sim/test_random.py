"""Random layers and networks: golden's bytes from the instruction-level model and from the RTL, and nothing of either left out.

What fails is reported as the smallest case hypothesis finds, as code: `Exerciser(get_config("tiny")).run(Case(…))` runs it again. `tests/soak.py` runs more.
"""

import json
import re
import sys

import numpy as np
import pytest
import soak
from cases import Case, Input, LayerCase, Summand
from corners import CORNERS
from exercise import CONFIGS, Account, Exerciser, MachineDevice, search
from strategies import CORNER_CASES, layer_cases, network_cases

from celosia.hw.config import get_config
from celosia.hw.network import Pool
from celosia.sim.device import RunResult

LAYERS, NETWORKS = 200, 20


@pytest.mark.parametrize("config", CONFIGS)
def test_random_cases(config):
    with Exerciser(CONFIGS[config]) as exerciser:
        for case in CORNER_CASES:
            assert exerciser.run(case), f"refused: {case}"
        assert len(search(exerciser, layer_cases(), LAYERS, seed=1)) >= LAYERS
        assert len(search(exerciser, network_cases(), NETWORKS, seed=2)) >= NETWORKS
    assert exerciser.account.missing() == []


def test_a_case_is_the_code_that_makes_it():
    drawn = []

    class Recorder:
        def run(self, case):
            drawn.append(case)
            return True

    search(Recorder(), network_cases(), 20, seed=3)
    again = list(drawn)
    search(Recorder(), network_cases(), 20, seed=3)
    assert drawn == again * 2, "a seed draws the same"
    for case in again:
        assert eval(repr(case), {each.__name__: each for each in (Case, Input, LayerCase, Summand, Pool)}) == case


class OffByOne(MachineDevice):
    """Adds one to the codes of the first output's third channel, if there is one."""

    def run_program(self, program, inputs):
        outputs = super().run_program(program, inputs).outputs
        outputs[0][:, 2:3] += np.int8(1)
        return RunResult(outputs=outputs)


def test_a_fault_shrinks_to_a_small_layer():
    with Exerciser(get_config("tiny")) as exerciser:
        exerciser.machine = OffByOne(exerciser.config)
        with pytest.raises(AssertionError, match=r"machine of tiny: y0, image 0, channel 2, pixel \(0, 0\) is -?\d+, not -?\d+; 1 of 3 codes differ") as failure:
            search(exerciser, layer_cases(), 200, seed=1)
    [note] = [note for note in failure.value.__notes__ if "Case(" in note]
    assert "Case(inputs=(Input(shape=(1, 1, 1)),), layers=(LayerCase(source='x0', outputs=3),)" in note


def test_what_has_not_run_is_missing():
    with Exerciser(get_config("tiny")) as exerciser:
        exerciser.run(Case(inputs=(Input(shape=(1, 4, 4)),), layers=(LayerCase(source="x0", outputs=1),)))
    missing = exerciser.account.missing()
    assert {"a wait for a token STORE → MAP", "a token left STORE → MAP", "2,048 channels in", "a smaller last tile"} <= set(missing)
    assert not {"opcode COMPUTE", "one channel in", "a wait for a token COMPUTE → DRAIN"} & set(missing)
    assert len(Account().missing()) == 9 + 14 + 14 + len(CORNERS)


def test_soak(tmp_path, monkeypatch, capsys):
    """The command's report, of a few cases."""
    report = tmp_path / "soak.json"
    monkeypatch.setattr(sys, "argv", ["soak", "--layers", "6", "--networks", "2", "--config", "tiny", "--seed", "5", "-o", str(report)])
    monkeypatch.setattr(soak, "CORNER_CASES", CORNER_CASES[-1:])
    assert soak.main() == 1, "six layers do not cover everything"
    assert re.search(r"tiny: 8 cases without a difference; never run: .*a kernel of 32", capsys.readouterr().out)
    found = json.loads(report.read_text())
    assert found["command"] == f"python tests/soak.py --layers 6 --networks 2 --config tiny --seed 5 -o {report}"
    assert found["layers"] == {"tiny": 6} and found["networks"] == {"tiny": 2} and found["differences"] == []
    assert found["coverage"]["tiny"]["opcodes"]["END"] == 9
