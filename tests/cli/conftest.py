"""The command line as a user calls it, and what it is given."""

import hashlib
import json
import textwrap

import numpy as np
import pytest

from celosia.host.cli import main
from celosia.hw.network import Layer, Network, Tensor


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
