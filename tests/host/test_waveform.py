"""Waveforms of the command line: around a planted fault, and of chosen cycles of a run."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from faulty import IMAGE, Faulty, X, Y
from networks import network_of, random_layer, random_network, random_parts, random_phases

from celosia.host.cli import main
from celosia.host.compile import compile
from celosia.host.waveform import makers
from celosia.hw.build import to_rtlil
from celosia.hw.config import PLANE, get_config
from celosia.hw.isa import Opcode, Unit, decode, unit_of
from celosia.sim.golden import GoldenDevice
from celosia.sim.rtl import BEAT_WRITTEN
from celosia.sim.verilate import fast_verilog
from celosia.sim.waveform import VCD_CYCLES

CONFIG = get_config("tiny")


@pytest.fixture(scope="module")
def faulty_verilog():
    return fast_verilog(to_rtlil(Faulty(CONFIG)))


@pytest.fixture
def celosia(capsys, tmp_path, monkeypatch, faulty_verilog):
    """Calls the command line in a folder with a model and three images, the hardware faulty: (exit code, stdout, stderr)."""
    rng = np.random.default_rng(5)
    layers = [random_layer(rng, "first", "x", (3, 12, 12), 4, (3, 3), padding=(1, 1, 1, 1)), random_layer(rng, "last", "first", (4, 12, 12), 5, (3, 3))]
    layers = [replace(layer, low=-128, high=127) for layer in layers]
    network_of(layers, (3, 12, 12), rng).save(tmp_path / "two.celq")
    np.savez(tmp_path / "three.npz", images=rng.normal(size=(3, 3, 12, 12)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("celosia.sim.rtl._verilog", lambda *_: faulty_verilog)

    def call(command, *arguments):
        with pytest.raises(SystemExit) as exit:
            main([command, "two.celq", "three.npz", "--config", "tiny", *map(str, arguments)])
        return exit.value.code or 0, *capsys.readouterr()

    return call


def cycles_of(path, signal):
    """First and last cycle of a waveform, and those in which a one-bit signal is high."""
    text = path.read_text()
    code = re.search(rf"\$var wire 1 (\S+) {signal} \$end", text)[1]
    steps, high, value = [], set(), "0"
    for line in text[text.index("$enddefinitions"):].splitlines():
        if line.startswith("#"):
            if value == "1" and steps[-1] % 2 == 0:  # after the clock's edge the next cycle's values begin to show
                high.add(steps[-1] // 2)
            steps.append(int(line[1:]))
        elif line[1:] == code:
            value = line[0]
    return steps[0] // 2, steps[-1] // 2, high


def test_diff_writes_the_cycles_that_make_the_wrong_pixel(celosia, tmp_path):
    code, out, err = celosia("diff", "--batch", 2, "--vcd", "x.vcd", "--json")
    assert code == 1, err
    report = json.loads(out)
    assert [report["difference"][key] for key in ("layer", "image", "y", "x")] == ["first", IMAGE, Y, X]
    waveform = report["waveform"]
    assert waveform["file"] == "x.vcd" and waveform["value"] == report["difference"]["values"]["rtl"]
    first, last, planted = cycles_of(tmp_path / "x.vcd", "planted")
    assert (first, last) == (waveform["first_cycle"], waveform["last_cycle"]) and first == waveform["tile_first_cycle"] > 0
    assert planted == {last}, "the file ends as the wrong beat reaches the memory"
    assert last - first < 3000, "a tile, not the layer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.npz", "two.celq", "x.vcd"]
    code, out, _ = celosia("diff", "--batch", 2, "--vcd", "y.vcd")
    assert code == 1 and f"y.vcd: cycles {first:,} to {last:,}, in which" in out
    assert (tmp_path / "x.vcd").read_bytes() == (tmp_path / "y.vcd").read_bytes()


def test_diff_bounds_a_long_tile(celosia, tmp_path, monkeypatch):
    monkeypatch.setattr("celosia.host.waveform.VCD_CYCLES", 100)
    code, out, _ = celosia("diff", "--batch", 2, "--vcd", "x.vcd")
    first, last, planted = cycles_of(tmp_path / "x.vcd", "planted")
    assert code == 1 and last - first + 1 == 100 and planted == {last} and "without the beginning of its tile from cycle" in out


def test_diff_of_devices_that_agree_writes_nothing(celosia, tmp_path, faulty_verilog):
    code, out, err = celosia("diff", "--devices", "rtl,rtl", "--vcd", "x.vcd")
    assert code == 0 and "x.vcd: not written: there is no differing pixel to show" in out, err
    code, out, _ = celosia("diff", "--devices", "rtl,rtl", "--vcd", "x.vcd", "--json")
    assert json.loads(out)["waveform"] is None and not (tmp_path / "x.vcd").exists()


def test_diff_that_finds_no_pixel_writes_nothing(celosia, tmp_path, monkeypatch):
    class Sharing(GoldenDevice):
        """Wrong only where layers' outputs are not kept."""

        def __init__(self, config, **options):
            super().__init__(config)

        def run_program(self, program, inputs):
            result = super().run_program(program, inputs)
            result.outputs[0][:] ^= len(result.outputs) == 1
            return result

    monkeypatch.setattr("celosia.sim.rtl.RtlDevice", Sharing)
    code, out, _ = celosia("diff", "--vcd", "x.vcd")
    assert code == 1 and "only where maps share memory" in out and "x.vcd: not written" in out and not (tmp_path / "x.vcd").exists()


def test_run_writes_the_cycles_asked_for(celosia, tmp_path):
    code, out, err = celosia("run", "--device", "rtl", "--batch", 3, "--vcd", "x.vcd", "--vcd-cycles", "500:699", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["waveform"] == {"first_cycle": 500, "last_cycle": 699} and cycles_of(tmp_path / "x.vcd", "planted")[:2] == (500, 699)
    assert f"x.vcd: cycles 500 to 699 of {report['cycles']:,}; --vcd-cycles FIRST:LAST records others" in err
    code, _, err = celosia("run", "--device", "rtl", "--vcd", "x.vcd", "--vcd-cycles", "0:0")
    assert code == 0 and re.search(r"x\.vcd: cycles 0 to 0 of [\d,]+ of the first of 3 runs;", err)


def test_help_names_the_cycles_that_are_written(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert f"0:{VCD_CYCLES - 1}" in capsys.readouterr().out


def test_run_writes_a_short_program_whole(celosia, tmp_path):
    code, _, err = celosia("run", "--device", "rtl", "--vcd", "x.vcd")
    assert code == 0 and "x.vcd: cycles 0 to " in err and "records others" not in err
    assert cycles_of(tmp_path / "x.vcd", "interrupt")[2], "the program's end is in it"


def test_run_ends_before_the_cycles_asked_for(celosia, tmp_path):
    code, out, err = celosia("run", "--device", "rtl", "--vcd", "x.vcd", "--vcd-cycles", "1000000:1000009")
    assert code == 2 and "outputs sha256" in out and re.search(r"x\.vcd: not written: the run took [\d,]+ cycles, fewer than --vcd-cycles begins at", err)
    assert not list(tmp_path.glob("*.vcd*")) and not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize("arguments, sentence", [
    (("run", "--vcd", "x.vcd"), "device 'golden' has no waveform"),
    (("run", "--device", "rtl", "--vcd-cycles", "1:2"), "--vcd-cycles: there is no waveform; name its file with --vcd"),
    *((("run", "--device", "rtl", "--vcd", "x.vcd", "--vcd-cycles", text), f"--vcd-cycles must be FIRST:LAST, for example 1000:1999, not {text!r}")
      for text in ("5", "5:4", "-1:4", "a:b", "1:", "1:2:3", "0:" + "9" * 5000)),
    (("run", "--device", "rtl", "--vcd", "nowhere/x.vcd"), "there is no folder nowhere"),
    (("run", "--device", "rtl", "--vcd", "."), "the waveform . cannot be written: Is a directory"),
    (("diff", "--vcd", "nowhere/x.vcd"), "there is no folder nowhere"),
    (("diff", "--devices", "golden,golden", "--vcd", "x.vcd"), "--vcd: neither device of --devices golden,golden has a waveform; name rtl as one of them"),
], ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:60])
def test_what_is_refused(celosia, arguments, sentence):
    code, out, err = celosia(*arguments)
    assert (code, out) == (2, "") and sentence in err and err.count("celosia: ") == 1


@pytest.mark.parametrize("make", [random_network, random_parts, random_phases])
@pytest.mark.parametrize("seed", range(6))
def test_each_pixel_is_a_beat(seed, make):
    """Of random networks with pooling, residuals and several images: the pixels' beats are all that the program writes, each once, and lie behind their tile."""
    batch = 1 + seed % 2
    network = make(seed, largest=4 if make is random_phases else 9)  # eight phases of columns make many pixels of one
    program = compile(replace(network, outputs=[layer.output for layer in network.layers], output_shapes={}), CONFIG, batch)
    retired, computed = Counter(), []  # COMPUTE instructions before each beat's STORE
    for word in program.words():
        opcode, fields = decode(word)
        retired[unit_of(opcode)] += 1
        if opcode == Opcode.STORE:
            computed += [retired[Unit.COMPUTE]] * (fields["rows"] * fields["columns"] * (fields["last_plane"] + 1))
    named = []
    for index, layer in enumerate(network.layers):
        channels, height, width = network.tensors[layer.output].shape
        for image, plane, y, x in np.ndindex(batch, -(-channels // PLANE), height, width):
            before, (event, beat) = makers(program, index, image, PLANE * plane, y, x)
            assert event == BEAT_WRITTEN and (before is None or 0 < before[1] < computed[beat - 1])
            named.append(beat)
    assert sorted(named) == list(range(1, len(computed) + 1))
