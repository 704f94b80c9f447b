import json
import pickle
import shutil
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from celosia.host.compile import compile
from celosia.host.errors import CelosiaError, UnsupportedError
from celosia.host.quantize import quantize
from celosia.host.trace import fixed_batch, load_exported, load_model, trace
from celosia.hw.network import Network

torch.set_num_threads(1)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def export(path, batch=torch.export.Dim.AUTO):
    model = small()
    shapes = ({0: batch},) if batch else None
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes), path)
    return model


def rewrite(path, change):
    """Rewrite an archive: `change(name, content)` gives the new content."""
    old = path.with_suffix(".old")
    shutil.move(path, old)
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))


def test_batch_is_dynamic_and_a_training_model_is_copied():
    model = small().train()
    graph = trace(model, (torch.randn(1, 3, 8, 8),))
    assert fixed_batch(graph) is None and model.training
    assert graph(torch.randn(5, 3, 8, 8)).shape == (5, 4, 6, 6)


def test_exported_file(tmp_path):
    model = export(tmp_path / "m.pt2")
    qmodel = quantize(load_model(str(tmp_path / "m.pt2")), [torch.randn(3, 3, 8, 8)])
    assert qmodel.batch is None
    weight = model[0].weight.detach()[0]
    assert torch.allclose(torch.tensor(qmodel.layers[0].weight[0] / 127), (weight / weight.abs().max()).double(), atol=0.005)


def test_fixed_batch_says_so(tmp_path, caplog):
    export(tmp_path / "m.pt2", batch=None)
    program = load_exported(tmp_path / "m.pt2")
    assert "fixed batch of 2" in caplog.text
    qmodel = quantize(program, [torch.randn(n, 3, 8, 8) for n in (1, 5)])
    assert qmodel.batch == 2
    qmodel.save(tmp_path / "m.celq")
    for network in (qmodel, Network.load(tmp_path / "m.celq")):
        assert compile(network, "tiny", 2).batch == 2
        with pytest.raises(CelosiaError, match=r"was exported for batch 2, not 1; .*torch\.export\.Dim\.AUTO"):
            compile(network, "tiny")


def test_dynamic_image_size_is_refused(tmp_path):
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 8, 3).eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=sizes), tmp_path / "m.pt2")
    with pytest.raises(UnsupportedError, match="has a dynamic size .*export it with a dynamic batch only"):
        quantize(load_exported(tmp_path / "m.pt2"), [torch.randn(2, 3, 8, 8)])


def test_exported_for_another_size(tmp_path):
    export(tmp_path / "m.pt2")
    with pytest.raises(CelosiaError, match=r"takes images of shape \(3, 8, 8\), not \(3, 9, 9\)"):
        quantize(load_exported(tmp_path / "m.pt2"), [torch.randn(2, 3, 9, 9)])


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


def flag(name, content):
    if name.endswith("model_weights_config.json"):
        config = json.loads(content)
        config["config"]["0.bias"]["use_pickle"] = True
        return json.dumps(config)
    return pickle.dumps(Bomb()) if name.endswith("weight_1") else content


def samples(name, content):
    return pickle.dumps(Bomb()) if name.endswith("sample_inputs/model.pt") else content


def size(name, content):
    return content.replace(b'"expr_str": "', b'"expr_str": "exec(chr(49))+') if name.endswith("models/model.json") else content


@pytest.mark.parametrize("change, message", [(flag, "stores '0.bias' pickled"), (samples, "holds the pickled entry 'm/data/sample_inputs/model.pt'"),
                                             (size, r"holds the size expression .exec")])
def test_pickled_entries_are_refused(tmp_path, change, message):
    export(tmp_path / "m.pt2")
    rewrite(tmp_path / "m.pt2", change)
    with pytest.raises(CelosiaError, match=f"{message}.*, which could run any code; pass --trust"):
        load_exported(tmp_path / "m.pt2")


def test_unknown_entries_are_refused(tmp_path):
    export(tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2", "a") as archive:
        archive.writestr("m/data/aotinductor/model/x.so", b"")
    with pytest.raises(CelosiaError, match=r"holds 'm/data/aotinductor/model/x\.so'"):
        load_exported(tmp_path / "m.pt2")


def test_trust(tmp_path):
    export(tmp_path / "m.pt2")

    def plain(name, content):
        if name.endswith("model_weights_config.json"):
            config = json.loads(content)
            config["config"]["0.bias"]["use_pickle"] = True
            return json.dumps(config)
        if name.endswith("weight_1"):
            torch.save(nn.Parameter(torch.zeros(4)), tmp_path / "w")
            return (tmp_path / "w").read_bytes()
        return content

    rewrite(tmp_path / "m.pt2", plain)
    assert not load_exported(tmp_path / "m.pt2", trust=True).state_dict["0.bias"].any()


@pytest.mark.parametrize("content, message", [(None, "no such file"), (b"", "damaged"), (b"nonsense", "damaged")])
def test_files_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(CelosiaError, match=message):
        load_exported(tmp_path / "m.pt2")


def test_truncated(tmp_path):
    export(tmp_path / "m.pt2")
    content = (tmp_path / "m.pt2").read_bytes()
    (tmp_path / "m.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(CelosiaError, match="damaged"):
        load_exported(tmp_path / "m.pt2")


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module `factories` in the current folder."""
    (tmp_path / "factories.py").write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n\n"
                                           "def number():\n    return 3\n\ndef failing():\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("factories", None)


def test_factory_with_weights(factories):
    state = load_model("factories:net").state_dict()
    state["0.weight"].fill_(0.5)
    del state["1.num_batches_tracked"]
    save_file(state, factories / "w.safetensors")
    model = load_model("factories:net", weights=factories / "w.safetensors")
    assert not model.training and bool((model[0].weight == 0.5).all())


@pytest.mark.parametrize("spec, message", [
    ("nowhere:net", "module 'nowhere' cannot be imported"), ("factories:other", "no attribute 'other'; name a function"),
    ("factories:number", "returned int; it must return an nn.Module"), ("factories:failing", "raised ZeroDivisionError: division by zero"),
    ("no-such-net", "model must be one of .*'no-such-net'; or name a .pt2 file"),
])
def test_models_that_are_none(factories, spec, message):
    with pytest.raises(CelosiaError, match=message):
        load_model(spec)


@pytest.mark.parametrize("change, message", [
    (lambda state: state.pop("0.bias"), r"'0\.bias' is missing \(1 missing, 0 unknown\)"),
    (lambda state: state.update(head=torch.zeros(1)), r"'head' is not in the model"),
    (lambda state: state.update({"0.bias": torch.zeros(5)}), r"0\.bias has shape \(5,\), the model's has \(4,\)"),
])
def test_weights_of_another_model(factories, change, message):
    state = load_model("factories:net").state_dict()
    change(state)
    save_file(state, factories / "w.safetensors")
    with pytest.raises(CelosiaError, match=message):
        load_model("factories:net", weights=factories / "w.safetensors")


@pytest.mark.parametrize("content, message", [(None, "no such file"), (b"", "truncated or no safetensors"), (b"\x10\0\0\0\0\0\0\0{", "truncated or no safetensors")])
def test_weights_that_cannot_be_read(factories, content, message):
    if content is not None:
        (factories / "w.safetensors").write_bytes(content)
    with pytest.raises(CelosiaError, match=message):
        load_model("factories:net", weights=factories / "w.safetensors")


def test_weights_with_an_exported_model():
    with pytest.raises(CelosiaError, match="holds its weights already"):
        load_model("m.pt2", weights="w.safetensors")


def test_code_that_cannot_be_exported():
    class Branching(nn.Module):
        def forward(self, x):
            return x if bool((x > 0).all()) else -x

    with pytest.raises(UnsupportedError, match=r"Branching cannot be exported at .*test_trace\.py:\d+"):
        trace(Branching(), (torch.randn(2, 3),))
