"""The assertion and the fixture for people's own test suites."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import IMAGE, Faulty, X, Y
from torch import nn

import celosia
from celosia.hw.build import to_rtlil
from celosia.hw.config import get_config
from celosia.sim.toolchain import cache_folder
from celosia.sim.verilate import fast_verilog

pytest_plugins = ["pytester"]
QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.md"
CACHE = cache_folder().absolute()


@pytest.fixture
def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3)).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(4))


def test_equal_devices(model, images):
    result = celosia.assert_bit_exact(model, images)
    assert result.outputs[0].shape == (3, 5, 10, 10) and result.runs == 3 and result.cycles > 0
    assert np.abs(result.outputs[0] - model(images).detach().numpy()).max() < 0.1
    with celosia.open_device("golden", "tiny") as device:
        again = celosia.assert_bit_exact(model, images.numpy(), "ulx3s-85f", device=device, batch=2)
    assert again.runs == 2 and np.array_equal(again.codes[0], result.codes[0])


def test_calibration_decides_the_scales(model, images):
    wide = celosia.assert_bit_exact(model, images, device="golden", calibration_batches=[10 * images])
    fine = celosia.assert_bit_exact(model, images, device="golden")
    assert np.unique(wide.codes[0]).size < np.unique(fine.codes[0]).size


def test_the_first_difference_is_named(model, images):
    verilog = fast_verilog(to_rtlil(Faulty(get_config("tiny"))))
    with celosia.open_device("rtl", "tiny", verilog=verilog) as device, pytest.raises(AssertionError) as error:
        celosia.assert_bit_exact(model, images, device=device, batch=2)
    assert re.fullmatch(rf"sequential: golden and rtl differ first in layer 0, image {IMAGE}, channel 0, pixel \({Y}, {X}\): -?\d+ and -?\d+; "
                        r"\d+ of 1,728 values of that layer differ", str(error.value))


class Sorted(nn.Module):
    """No operation of the engine."""

    def forward(self, x):
        return x.sort().values


@pytest.mark.parametrize("change, sentence", [
    (lambda model, images: (model, images[0]), r"has shape \(3, 12, 12\); yield \(N, C, H, W\)"),
    (lambda model, images: (model, images[:, :2]), "does not accept a batch of shape"),
    (lambda model, images: (model, images.double()), "is float64"),
    (lambda model, images: (model, images / 0), "holds a NaN or an infinity"),
    (lambda model, images: (model, (images, images)), "has 1 inputs, 2 were given"),
    (lambda model, images: (Sorted(), images), "sort"),
], ids=["rank", "channels", "type", "infinity", "inputs", "operation"])
def test_what_is_refused(model, images, change, sentence):
    with pytest.raises(celosia.CelosiaError, match=sentence):
        celosia.assert_bit_exact(*change(model, images), device="golden")


def test_the_fixture_is_opened_once_as_the_options_say(pytester):
    pytester.makepyfile("""
        import pytest

        seen = []

        @pytest.mark.parametrize("run", range(2))
        def test_device(celosia_device, run):
            seen.append(celosia_device)
            assert (celosia_device.name, celosia_device.config.name) == ("golden", "ulx3s-85f") and celosia_device is seen[0]
    """)
    result = pytester.runpytest_subprocess("-W", "error", "--celosia-device", "golden", "--celosia-config", "ulx3s-85f")
    result.assert_outcomes(passed=2)
    result = pytester.runpytest_subprocess("--celosia-device", "nonsense")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["E *CelosiaError: device 'nonsense' is not known; choose golden, cycle, rtl*"])


def test_the_example_of_the_quick_start(pytester, monkeypatch):
    monkeypatch.setenv("CELOSIA_CACHE", str(CACHE))  # pytester's HOME has none
    [example] = [block for block in re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), re.DOTALL) if "celosia_device" in block]
    pytester.makepyfile(example)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
