"""The command line: its reports."""

import hashlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import celosia as public
from celosia.hw.config import CONFIGS
from celosia.hw.core import FILES
from celosia.sim import golden

# Listings

@pytest.mark.parametrize("command", ["--help", "boards", "doctor", "models", "recipes", "run --help"])
def test_listings_do_not_load_torch(command):
    script = """
        import sys
        from celosia.host.cli import main
        try:
            main(sys.argv[1:])
        except SystemExit as exit:
            assert not exit.code
        assert 'torch' not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), *command.split()], check=True, capture_output=True)


def test_boards(report, celosia):
    rows = {row["config"]: row for row in report("boards")["configs"]}
    assert set(rows) == set(CONFIGS)
    assert rows["ulx3s-85f"]["macs_per_cycle"] == 256 and rows["ulx3s-85f"]["part"] == "LFE5U-85F"
    assert all(name in celosia("boards")[1] for name in CONFIGS)


def test_doctor(report):
    rows = {row["name"]: row for row in report("doctor")["tools"]}
    assert rows["amaranth"]["version"] and rows["amaranth"]["remedy"] is None
    assert all(row["version"] or row["remedy"] for row in rows.values())


def test_models_and_recipes(report):
    assert {row["name"] for row in report("models")["models"]} >= {"fashion-resnet", "resnet18"}
    assert "resnet" in {row["name"] for row in report("recipes")["recipes"]}


# The way through

def test_compile_then_run(report, celosia, network, model, images, tmp_path):
    compiled = report("compile", model, "--config", "tiny", "--batch", 2, "-o", "two.celp")
    assert compiled["memory"]["bytes"] <= compiled["memory"]["available"] and compiled["macs"] == 2 * network.macs
    ran = report("run", "two.celp", images, "--device", "golden", "-o", "picture.png")
    codes = golden.quantize(np.load(tmp_path / images)["images"], network.tensors["x"])
    expected = golden.execute(network, [codes])[0]
    assert ran["outputs_sha256"] == hashlib.sha256(expected.tobytes()).hexdigest()
    assert [row["class"] for row in ran["predictions"]] == [network.classes[index] for index in expected[:, :, 0, 0].argmax(1)]
    assert {"model", "device", "config", "batch", "cycles", "macs", "utilisation", "stalls"} <= set(ran)
    assert ran["batch"] == 2 and ran["images"] == 3 and ran["macs"] == 4 * network.macs
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > picture.height > 100
    code, out, _ = celosia("run", "two.celp", images)
    assert code == 0 and ran["outputs_sha256"] in out


def test_run_is_the_same_from_celq_and_in_any_batch(report, model, images):
    hashes = {report("run", model, images, "--config", "tiny", "--batch", batch)["outputs_sha256"] for batch in (1, 2, 3)}
    assert len(hashes) == 1


def test_photographs_are_scaled_and_cut(report, model, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.linear_gradient("L").resize((40, 20)).save(folder / "a.png")
    Image.radial_gradient("L").convert("RGB").save(folder / "b.jpg")
    assert [row["image"] for row in report("run", model, folder, "--config", "tiny")["predictions"]] == ["a.png", "b.jpg"]


def test_bench(report, model, monkeypatch):
    """Of a network without sample images, in any batch."""
    class Timed(golden.GoldenDevice):
        name = "rtl"

        def __init__(self, config, **options):
            super().__init__(config)

        def run_program(self, program, inputs):
            return replace(super().run_program(program, inputs), cycles=3000, layers=[1000, 2000], counters={"stall_map": 7, "reads": 1})

    monkeypatch.setattr("celosia.sim.rtl.RtlDevice", Timed)
    found = report("bench", model, "--config", "tiny", "--batch", 5)
    assert [row["name"] for row in found["layers"]] == ["first", "last"] and [row["cycles"] for row in found["layers"]] == [1000, 2000]
    assert set(found["total"]) == set(found["layers"][0]) == {"name", "op", "macs", "cycles", "bound_cycles", "dram_bytes", "utilisation"}
    assert found["total"]["cycles"] == 3000 and found["total"]["macs"] == 5 * (4 * 27 * 64 + 5 * 256)
    assert found["frames_per_second"] == pytest.approx(5 * 100e6 / 3000) and found["clock_mhz"] == 100 and found["stalls"] == {"map": 7}


def test_bench_of_several_models_and_its_page(report, celosia, model, tmp_path):
    found = report("bench", model, model, "--config", "tiny", "--device", "cycle", "--batch", 2, "--report", tmp_path / "page")
    assert [network["batch"] for network in found["networks"]] == [2, 2] and found["networks"][0]["total"] == found["networks"][1]["total"]
    assert {path.suffix for path in (tmp_path / "page").iterdir()} == {".html", ".json", ".png"} and len([*(tmp_path / "page").iterdir()]) == 9
    code, out, _ = celosia("bench", model, "--config", "tiny", "--device", "cycle")
    assert code == 0 and "on a line of 3 Mbaud" in out and "s to prepare" in out


def test_bench_refuses_before_it_measures(celosia, model, tmp_path, monkeypatch):
    monkeypatch.setattr("celosia.host.device.Device.time", lambda *_: pytest.fail("it has measured"))
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([model, "--device", "golden"], "--device golden: it does not know time"), (["ssd300_vgg16", "--device", "golden"], "--device golden: it does not know time"),
        ([model, "none.celq", "--device", "cycle"], "none.celq: no such file"), ([model, "--report", tmp_path / "file"], "file: cannot be written"),
    ):
        code, _, err = celosia("bench", *arguments)
        assert code == 2 and message in err


def test_bench_on_cycle(report, model):
    found = report("bench", model, "--config", "tiny", "--device", "cycle")
    assert found["device"] == "cycle" and found["total"]["cycles"] == sum(row["cycles"] for row in found["layers"]) > found["total"]["bound_cycles"]
    assert set(found["stalls"]) == {"weights", "maps", "drain", "instruction"}


def test_diff_of_equal_devices(report, model, images):
    assert report("diff", model, images, "--devices", "golden,golden", "--config", "tiny")["equal"]


def test_diff_names_the_first_difference(celosia, model, images, monkeypatch):
    class Broken(golden.GoldenDevice):
        def __init__(self, config, **options):
            super().__init__(config)

        def run_program(self, program, inputs):
            result = super().run_program(program, inputs)
            for codes in result.outputs:
                if codes.shape[1] == 4:  # the middle map, when it is an output
                    codes[0, 2, 3, 4] ^= 1
                elif len(result.outputs) == 1:
                    codes[0, 1] ^= 1
            return result

    monkeypatch.setattr("celosia.sim.rtl.RtlDevice", Broken, raising=False)
    code, out, err = celosia("diff", model, images, "--config", "tiny", "--json")
    assert code == 1, err
    found = json.loads(out)["difference"]
    assert (found["layer"], found["image"], found["channel"], found["y"], found["x"], found["different"]) == ("first", 0, 2, 3, 4, 3)


def test_check_quantize_and_run_of_a_module(report, factory, images, tmp_path):
    name = factory("""
        def make():
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    """)
    checked = report("check", name, "--shape", "3,8,8", "--config", "tiny")
    assert checked["layers"] and checked["frames_per_second"] > 0
    assert report("quantize", name, "--calibrate", images, "-o", "small.celq")["macs"] == checked["macs"]
    assert len(report("run", "small.celq", images, "--config", "tiny")["predictions"]) == 3


def test_quantize_options_and_report(report, celosia, refused, factory, images, tmp_path):
    name = factory("""
        def make():
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    """)
    options = ("--method", "mse", "--equalize", "--correct-bias", "--qat", "--epochs", "2")
    found = report("quantize", name, "--calibrate", images, "-o", "x.celq", *options, "--report", "quality")
    assert [layer["name"] for layer in found["report"]["layers"]] == ["0", "2"] and found["files"] == ["quality/quantization.json", "quality/quantization.png"]
    assert json.loads((tmp_path / "quality" / "quantization.json").read_text()) == found["report"]
    assert Image.open(tmp_path / "quality" / "quantization.png").width > 500
    code, out, _ = celosia("quantize", name, "--calibrate", images, "-o", "y.celq", *options, "--report", "quality")
    assert code == 0 and "SQNR dB" in out and out.splitlines()[-1].startswith("y.celq: 2 layers")
    assert (tmp_path / "x.celq").read_bytes() == (tmp_path / "y.celq").read_bytes()
    assert "give --qat as well" in refused("quantize", name, "--calibrate", images, "-o", "z.celq", "--epochs", "2")
    assert "method must be one of minmax, histogram, mse" in refused("quantize", name, "--calibrate", images, "-o", "z.celq", "--method", "kl")


def test_python_api(network):
    program = public.compile(network, config="tiny", batch=2)
    images = np.random.default_rng(3).normal(size=(5, 3, 8, 8)).astype(np.float32)
    with public.open_device("golden", program.config) as device:
        result = device.run(program, images)
        one = device.run(program, images[4:])
    assert result.outputs[0].shape == (5, 5) and result.outputs[0].dtype == np.float32
    assert result.codes[0].shape == (5, 5, 1, 1) and result.codes[0].dtype == np.int8
    assert (result.runs, result.cycles, result.layers) == (3, None, [])
    np.testing.assert_array_equal(result.outputs[0], result.codes[0][:, :, 0, 0] / np.float32(32))
    np.testing.assert_array_equal(result.codes[0][4:], one.codes[0])


@pytest.mark.parametrize("images, reason", [
    (np.zeros((1, 3, 8, 8), np.uint8), "input x: is uint8; give float32 images"),
    (np.zeros((1, 3, 8, 9), np.float32), "input x: has shape 1×3×8×9, network two needs N×3×8×8"),
    (np.zeros((0, 3, 8, 8), np.float32), "input x: has shape 0×3×8×8"),
    (np.full((1, 3, 8, 8), 1e39), "input x: contains NaN or infinity"),
    ([], "network two has 1 inputs, 0 were given"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_python_api_refuses(network, images, reason):
    with public.open_device("golden", "tiny") as device, pytest.raises(public.CelosiaError, match=reason):
        device.run(public.compile(network, config="tiny"), images)


def test_golden_has_no_options():
    with pytest.raises(public.CelosiaError, match="device 'golden' has no option 'vcd'"):
        public.open_device("golden", "tiny", vcd="x.vcd")


def test_export(report, monkeypatch, tmp_path):
    """A folder is made; an earlier export is replaced."""
    asked = []

    def core(config, primitives):
        asked.append((config.name, primitives))
        return dict.fromkeys(FILES, f"text {len(asked)}\n")

    monkeypatch.setattr("celosia.hw.core.core", core)
    found = report("export", "--config", "tiny", "-o", "core")
    assert found == {"config": "tiny", "hash": f"{CONFIGS['tiny'].hash:08x}", "primitives": "generic", "output": "core", "files": dict.fromkeys(FILES, 7)}
    report("export", "--config", "ulx3s-25f", "--primitives", "ecp5", "-o", "core")
    assert asked == [("tiny", "generic"), ("ulx3s-25f", "ecp5")]
    assert {path.name: path.read_text() for path in (tmp_path / "core").iterdir()} == dict.fromkeys(FILES, "text 2\n")
