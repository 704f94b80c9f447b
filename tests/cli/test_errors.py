"""A user's errors on the command line, each one sentence and exit code 2."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from celosia.host.cli import main
from celosia.hw.config import CONFIGS, AcceleratorConfig


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
