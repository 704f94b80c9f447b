"""The command line: its reports, and a user's errors, each one sentence and exit code 2."""

import hashlib
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import celosia as public
from celosia.host.cli import main
from celosia.hw.config import CONFIGS, AcceleratorConfig
from celosia.hw.core import FILES
from celosia.hw.network import Layer, Network, Tensor
from celosia.sim import golden


@pytest.fixture
def celosia(capsys, tmp_path, monkeypatch):
    """Calls the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return exit.value.code or 0, out, err

    return call


@pytest.fixture
def report(celosia):
    """Calls a command with --json that must succeed; the object on stdout, which is all there is."""

    def call(*arguments):
        code, out, err = celosia(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def refused(celosia):
    """Calls a command that must fail as a user's error; the sentence."""

    def call(*arguments):
        code, out, err = celosia(*arguments)
        assert code == 2, (out, err)
        assert out == ""
        sentence = err.splitlines()[-1]
        assert sentence.startswith("celosia: ") and "Traceback" not in err
        assert sum(line.startswith("celosia: ") for line in err.splitlines()) == 1
        return sentence

    return call


@pytest.fixture
def network():
    """Two convolutions, 3×8×8 → 4×8×8 → 5 classes."""
    random = np.random.default_rng(1)

    def layer(name, op, input, output, shape, **options):
        return Layer(name=name, op=op, input=input, output=output, weight=random.integers(-127, 128, shape).astype(np.int8),
                     bias=random.integers(-1000, 1000, shape[0]).astype(np.int32), multiplier=np.full(shape[0], 40000, np.uint16),
                     shift=np.full(shape[0], 24, np.uint8), **options)

    tensors = [Tensor(name=name, shape=shape, scale=1 / 32, zero_point=zero)
               for name, shape, zero in (("x", (3, 8, 8), -3), ("middle", (4, 8, 8), 5), ("y", (5, 1, 1), 0))]
    layers = [layer("first", "conv", "x", "middle", (4, 3, 3, 3), padding=(1, 1, 1, 1), macs=4 * 27 * 64),
              layer("last", "linear", "middle", "y", (5, 4, 8, 8), macs=5 * 256)]
    return Network(name="two", tensors={tensor.name: tensor for tensor in tensors}, layers=layers, inputs=["x"], outputs=["y"],
                   classes=["ant", "bee", "cat", "dog", "eel"], output_shapes={"y": (5,)}).verify()


@pytest.fixture
def model(network, tmp_path):
    """The network in a .celq file."""
    network.save(tmp_path / "two.celq")
    return "two.celq"


@pytest.fixture
def images(tmp_path):
    """Three random images in an .npz file."""
    array = np.random.default_rng(2).normal(size=(3, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "three.npz", images=array)
    return "three.npz"


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Writes a module with a function `make`; its name on the command line."""

    def write(source):
        name = "made_" + hashlib.sha256(source.encode()).hexdigest()[:8]
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        return f"{name}:make"

    return write


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


# A user's errors

def test_export_spares_what_is_not_its_own(refused, monkeypatch, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("celosia.hw.core.core", lambda *_: pytest.fail("the work was done first"))
    assert "full: holds notes.txt" in refused("export", "-o", "full")
    assert "file: is a file" in refused("export", "-o", "file")
    assert "no folder nowhere" in refused("export", "-o", "nowhere/core")
    assert "must be generic or ecp5, not 'asic'" in refused("export", "--primitives", "asic", "-o", "core")
    assert "'nonsense'" in refused("export", "--config", "nonsense", "-o", "core")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


def test_unsupported_layer(refused, report, factory, images):
    name = factory("""
        class Sine(nn.Module):
            def forward(self, x):
                return torch.sin(x)
        def make():
            return nn.Sequential(nn.Conv2d(3, 8, 3), Sine())
        def alone():
            return Sine()
    """)
    checked = report("check", name, "--shape", "3,8,8", "--config", "tiny")
    device, host = checked["parts"]
    assert device["where"] == "device" and device["macs"] == 8 * 27 * 36 and host["where"] == "host" and checked["share"] == 1.0
    assert re.fullmatch(r"1 \(Sine\), .*\.py:\d+: sin is not supported", host["reasons"][0])
    assert "sin is not supported; end the model before it" in refused("quantize", name, "--calibrate", images, "-o", "x.celq")
    assert "sin is not supported" in refused("check", name.replace(":make", ":alone"), "--shape", "3,8,8")


def test_a_detector_runs(report, refused, tmp_path):
    name = "ssdlite320_mobilenet_v3_large"
    ran = report("run", name, "-o", "found.png")
    assert {row["submodule"] for row in ran["parts"]} == {"backbone", "head"} and ran["share"] > 0.95
    assert len(ran["outputs_sha256"]) == 64 and ran["config"] == "ulx3s-85f-64m"
    assert {"box", "class", "score"} <= set(ran["predictions"][0]["objects"][0]) and Path("found.png").stat().st_size > 10_000
    assert "is a detector, of which backbone and head run on a device" in refused("compile", name, "-o", "x.celp")
    assert "--batch" in refused("run", name, "--batch", "2")


def test_nan_weights(refused, factory, images):
    name = factory("""
        def make():
            module = nn.Sequential(nn.Conv2d(3, 8, 3))
            module[0].weight.data[1] = float("nan")
            return module
    """)
    sentence = refused("quantize", name, "--calibrate", images, "-o", "x.celq")
    assert "NaN" in sentence and "0.weight" in sentence


def test_wrong_shape(refused, model, tmp_path):
    np.savez(tmp_path / "wrong.npz", np.zeros((2, 1, 8, 8), np.float32))
    sentence = refused("run", model, "wrong.npz", "--config", "tiny")
    assert "2×1×8×8" in sentence and "N×3×8×8" in sentence


def test_image_with_nan(refused, model, tmp_path):
    np.savez(tmp_path / "nan.npz", np.full((1, 3, 8, 8), np.nan, np.float32))
    assert "NaN" in refused("run", model, "nan.npz", "--config", "tiny")


@pytest.mark.parametrize("arguments", [
    ("run", "missing.celq"), ("run", "missing.celp"), ("run", "missing.pt2"), ("run", "missing"), ("compile", "missing.celq", "-o", "x.celp"),
    ("check", "missing.pt2"), ("quantize", "missing.pt2", "--calibrate", "x.npz", "-o", "x.celq"), ("bench", "missing.celp"),
])
def test_missing_model(refused, arguments):
    assert arguments[1] in refused(*arguments)


def test_missing_image(refused, model):
    assert "missing.png: no such file" in refused("run", model, "missing.png", "--config", "tiny")


def test_missing_calibration(refused, factory):
    name = factory("def make():\n    return nn.Conv2d(3, 8, 3)")
    assert "--calibrate" in refused("quantize", name, "-o", "x.celq")
    assert "missing.npz: no such file" in refused("quantize", name, "--calibrate", "missing.npz", "-o", "x.celq")


@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["celq", "celp", "png", "npz"])
def test_truncated_file(refused, report, model, images, tmp_path, kind, part):
    report("compile", model, "--config", "tiny", "-o", "two.celp")
    Image.effect_noise((64, 64), 50).save(tmp_path / "noise.png")
    file = tmp_path / {"celq": "two.celq", "celp": "two.celp", "png": "noise.png", "npz": "three.npz"}[kind]
    content = file.read_bytes()
    broken = f"broken.{kind}"
    (tmp_path / broken).write_bytes(content[: int(len(content) * part)])
    sentence = refused("run", broken) if kind.startswith("cel") else refused("run", model, broken, "--config", "tiny")
    assert broken in sentence


def test_truncated_pt2(refused, tmp_path, images):
    torch = pytest.importorskip("torch")
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 8, 3).eval(), (torch.zeros(2, 3, 8, 8),)), tmp_path / "whole.pt2")
    content = (tmp_path / "whole.pt2").read_bytes()
    (tmp_path / "half.pt2").write_bytes(content[: len(content) // 2])
    assert "half.pt2" in refused("quantize", "half.pt2", "--calibrate", images, "-o", "x.celq")


def test_network_larger_than_memory(refused, model, tmp_path):
    config = AcceleratorConfig.from_json(CONFIGS["tiny"].to_json() | {"name": "small", "memory_bytes": 1 << 16})
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.to_json().items()]
    (tmp_path / "small.toml").write_text("\n".join(lines))
    sentence = refused("compile", model, "--config", "small.toml", "--batch", 200, "-o", "x.celp")
    assert "bytes" in sentence and "65,536" in sentence


def test_program_for_another_config(refused, report, model, images):
    report("compile", model, "--config", "tiny", "-o", "two.celp")
    sentence = refused("run", "two.celp", images, "--config", "ulx3s-25f")
    assert "'tiny'" in sentence and "'ulx3s-25f'" in sentence


    for command in ("check", "compile"):
        rest = ("-o", "x.celp") if command == "compile" else ()
        assert "'tiny'" in refused(command, "two.celp", "--config", "ulx3s-25f", *rest)


@pytest.mark.parametrize("name, content, reason", [
    ("single.npz", lambda file: np.save(file, np.zeros((1, 3, 8, 8), np.float32)), "an .npy file, a single array"),
    ("many.npz", lambda file: np.savez(file, a=np.zeros(1), b=np.zeros(1)), "must hold one array or one named 'images', not a, b"),
    ("none.npz", lambda file: np.savez(file, images=np.zeros((0, 3, 8, 8), np.float32)), "has shape 0×3×8×8"),
    ("whole.npz", lambda file: np.savez(file, images=np.zeros((1, 3, 8, 8), np.int64)), "of int64, the network needs uint8 N×8×8×3 or float N×3×8×8"),
    ("large.npz", lambda file: np.savez(file, images=np.full((1, 3, 8, 8), 1e300)), "NaN or infinity"),
    ("text.png", lambda file: file.write(b"no picture"), "is truncated or no image"),
    ("empty.png", lambda file: None, "is truncated or no image"),
])
def test_files_that_hold_no_images(refused, model, tmp_path, name, content, reason):
    with (tmp_path / name).open("wb") as file:
        content(file)
    assert reason in refused("run", model, name, "--config", "tiny")


def test_calibration_that_does_not_fit(refused, factory, images, tmp_path):
    name = factory("def make():\n    return nn.Conv2d(3, 8, 3)")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    np.savez(tmp_path / "wide.npz", np.zeros((1, 3, 8, 9), np.float32))
    assert "a.png: the shape of the model's input is not known" in refused("quantize", name, "--calibrate", "a.png", "-o", "x.celq")
    sentence = refused("quantize", name, "--calibrate", images, "--calibrate", "wide.npz", "-o", "x.celq")
    assert "wide.npz: has images of shape 3×8×9, those before have 3×8×8" in sentence


def test_two_inputs_need_python(refused, factory):
    name = factory("""
        class Sum(nn.Module):
            def forward(self, x, y):
                return x + y

        make = Sum
    """)
    assert "takes 2 inputs; quantize it from Python" in refused("check", name, "--shape", "3,8,8")


@pytest.mark.parametrize("text", [
    "=", "outputs = 3", 'outputs = "16"', "outputs = true", "nonsense = 1", "clock_mhz = nan", "map_words = [1]", "[outputs]", "memory_bytes = -1", "\xff",
])
def test_bad_config_file(refused, model, tmp_path, text):
    (tmp_path / "odd.toml").write_bytes(text.encode("latin-1"))
    assert "odd" in refused("compile", model, "--config", "odd.toml", "-o", "x.celp")


def test_options(refused, model, images):
    assert "ulx3s-85f" in refused("run", model, images, "--config", "nonsense")
    assert "golden" in refused("run", model, images, "--device", "nonsense")
    assert "must be tcp:HOST:PORT" in refused("run", model, images, "--device", "tcp:localhost")
    assert "--vcd" in refused("run", model, images, "--vcd", "x.vcd")
    assert "name images" in refused("run", model)
    for shape in ("3x4", "3,4", "3,-4,4", "3,0,4", "1,2,3,4"):
        assert "--shape" in refused("check", "fashion-resnet", "--shape", shape)
    assert "leave out --shape" in refused("check", model, "--weights", "x.safetensors")
    assert "no folder nowhere" in refused("run", model, images, "-o", "nowhere/x.png")
    assert "x.foo: its format is not known" in refused("run", model, images, "-o", "x.foo")
    assert "two devices" in refused("diff", model, images, "--devices", "golden")
    assert "cannot be written" in refused("compile", model, "--config", "tiny", "-o", "nowhere/x.celp")
    assert "two.celq: cannot be written" in refused("train", "resnet", "--smoke", "-o", "two.celq")
    assert "recipe 'nonsense'" in refused("eval", "nonsense")
    assert "--all" in refused("verify")


def test_unknown_option_is_exit_code_2(celosia):
    code, out, err = celosia("boards", "--nonsense")
    assert code == 2 and out == "" and "--nonsense" in err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken():
        raise ValueError("an internal sum is wrong")

    monkeypatch.setattr("celosia.host.board.listing", broken)
    with pytest.raises(ValueError, match="internal"):
        main(["boards"])
