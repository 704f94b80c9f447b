import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from celosia.models import data, recipes, vgg
from celosia.models import resnet as network
from celosia.models.recipes import resnet as recipe
from celosia.models.recipes.recipe import Recipe, Target
from celosia.models.recipes.supervised import flip_crop_erase, one_cycle
from celosia.models.recipes.training import TrainingError


class Interrupted(Exception):
    pass


@pytest.fixture
def tiny(monkeypatch) -> Recipe:
    """The recipe with a small network, on 96 images, for three epochs of three steps."""
    sample = data.sample("fashion-mnist")
    images = data.ImageData(sample.train_images[:96], sample.train_labels[:96], sample.test_images[:32], sample.test_labels[:32])
    monkeypatch.setattr(data, "load", lambda name: images)
    # Torch 2.14 crashes in the backward pass of 4-channel convolutions in channels_last.
    modules = lambda: {"network": network.SmallResNet(channels=(8, 8, 8))}  # noqa: E731
    return replace(recipe.RECIPE, modules=modules, regime=replace(recipe.RECIPE.regime, epochs=3, batch_size=32))


def interrupt_after(steps):
    def progress(progress):
        if progress.step == steps:
            raise Interrupted

    return progress


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_listing_does_not_import_torch():
    code = "import sys; from celosia.models import recipes; [recipes.summary(n) for n in recipes.names()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("action", [recipes.get, recipes.summary])
def test_unknown_name(action):
    with pytest.raises(ValueError, match="recipe must be one of resnet, vgg, not 'lenet'"):
        action("lenet")


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_is_complete(name):
    found = recipes.get(name)
    assert found.name == name and found.summary == recipes.summary(name)
    assert found.data in data.names()
    assert set(found.offloads) <= set(found.modules())
    assert found.oracles and found.targets


@pytest.mark.parametrize("name", recipes.names())
def test_smoke_run(name, tmp_path):
    steps = []
    result = recipes.get(name).train(tmp_path, smoke=True, progress=lambda progress: steps.append(progress.step))
    assert steps == list(range(1, 21))
    assert result["command"] == f"celosia train {name} --seed 1 --smoke"
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    recipes.get(name).modules()["network"].load_state_dict(load_file(tmp_path / "network.safetensors"))


def test_smoke_run_whose_loss_rises(tiny, tmp_path):
    count = itertools.count()
    regime = replace(tiny.regime, loss=lambda logits, labels: 0 * logits.sum() + next(count))
    with pytest.raises(TrainingError, match=r"the loss of resnet does not fall: 0\.000 at first, 19\.000 at last"):
        replace(tiny, regime=regime).train(tmp_path, smoke=True)


def test_loss_that_is_not_finite(tiny, tmp_path):
    regime = replace(tiny.regime, loss=lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss of resnet is nan at step 0"):
        replace(tiny, regime=regime).train(tmp_path)


@pytest.mark.parametrize("optimizer", [recipe.sgd, lambda network: torch.optim.AdamW(network.parameters(), 0.01)])
@pytest.mark.parametrize("steps", [4, 6, 9])
def test_resumed_run_equals_a_straight_one(steps, optimizer, tiny, tmp_path):
    tiny = replace(tiny, regime=replace(tiny.regime, optimizer=optimizer))
    straight = tiny.train(tmp_path / "straight")
    with pytest.raises(Interrupted):
        tiny.train(tmp_path / "parts", progress=interrupt_after(steps))
    resumed = tiny.train(tmp_path / "parts", resume=True)
    assert resumed["figures"] == straight["figures"]
    for file in ("network.safetensors", "checkpoint.safetensors"):
        assert_same(load_file(tmp_path / "straight" / file), load_file(tmp_path / "parts" / file))
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("straight", "parts")]
    records = [[{**json.loads(line), "seconds": 0} for line in part] for part in lines]
    assert records[0] == records[1] and len(records[0]) == 3


def test_seed_changes_the_run(tiny, tmp_path):
    first = tiny.train(tmp_path / "1", seed=1)
    assert tiny.train(tmp_path / "2", seed=2)["figures"]["loss"] != first["figures"]["loss"]


def test_run_leaves_the_callers_generator_and_threads(tiny, tmp_path):
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    tiny.train(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_nothing_to_resume(tiny, tmp_path):
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors not found: there is nothing to resume"):
        tiny.train(tmp_path, resume=True)


def test_resuming_another_run(tiny, tmp_path):
    tiny.train(tmp_path, seed=1)
    with pytest.raises(TrainingError, match="is of a run with seed 1, not 2"):
        tiny.train(tmp_path, seed=2, resume=True)
    with pytest.raises(TrainingError, match="is of a run with steps 9, not 20"):
        tiny.train(tmp_path, seed=1, resume=True, smoke=True)


def test_evaluate(tiny):
    labels = torch.tensor(data.load("fashion-mnist").test_labels[:20], dtype=torch.int64)
    labels[:5] = (labels[:5] + 1) % 10
    figures = tiny.evaluate(lambda images: nn.functional.one_hot(labels, 10).float(), limit=20)
    assert figures == {"accuracy": 0.75, "images": 20}


@pytest.mark.parametrize("name", recipes.names())
def test_oracles_hold(name):
    for oracle, holds, detail in recipes.get(name).verify():
        assert holds, f"{oracle}: {detail}"


def drop_shortcut(monkeypatch):
    monkeypatch.setattr(network.BasicBlock, "forward", lambda self, x: self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))))


def narrow_second_convolution(monkeypatch):
    build = network.BasicBlock.__init__

    def mutated(self, *args):
        build(self, *args)
        self.conv2 = nn.Conv2d(self.conv2.in_channels, self.conv2.out_channels, 1, bias=False)

    monkeypatch.setattr(network.BasicBlock, "__init__", mutated)


def bias_in_first_convolution(monkeypatch):
    build = network.BasicBlock.__init__

    def mutated(self, *args):
        build(self, *args)
        self.conv1.bias = nn.Parameter(torch.zeros(self.conv1.out_channels))

    monkeypatch.setattr(network.BasicBlock, "__init__", mutated)


def pool_averages(monkeypatch):
    build = vgg.SmallVgg.__init__

    def mutated(self, **options):
        build(self, **options)
        self.features[3] = nn.AvgPool2d(2)

    monkeypatch.setattr(vgg.SmallVgg, "__init__", mutated)


@pytest.mark.parametrize(
    ("name", "oracle", "mutate"),
    [
        ("resnet", "torchvision", drop_shortcut),
        ("resnet", "torchvision", narrow_second_convolution),
        ("resnet", "parameters", bias_in_first_convolution),
        ("vgg", "torchvision", pool_averages),
    ],
)
def test_oracle_fails_under_a_mutation(name, oracle, mutate, monkeypatch):
    mutate(monkeypatch)
    (result,) = [holds for found, holds, _ in recipes.get(name).verify() if found == oracle]
    assert not result


def test_network_refuses_other_stages():
    with pytest.raises(ValueError, match=r"must have three entries, not \(16, 32\) and \(1, 1, 1\)"):
        network.SmallResNet(channels=(16, 32))


def test_decay_spares_biases_and_batch_norms():
    model = network.SmallResNet()
    decayed, others = recipe.sgd(model).param_groups
    assert decayed["weight_decay"] > 0 == others["weight_decay"]
    expected = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {id(parameter) for parameter in decayed["params"]} == expected
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_one_cycle():
    values = np.array([one_cycle(done) for done in np.linspace(0, 1, 101)])
    assert values[0] == pytest.approx(0.04) and values[15] == pytest.approx(1) and values[-1] == pytest.approx(0)
    assert (np.diff(values[:16]) > 0).all() and (np.diff(values[15:]) < 0).all()


def test_augmentation_mirrors_shifts_and_erases():
    torch.manual_seed(0)
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[10, 5] = 9
    moved = flip_crop_erase(image.expand(4000, 28, 28), share=0.0)
    assert moved.dtype == torch.uint8 and (moved.sum((1, 2)) == 9).all()
    rows, columns = moved.nonzero()[:, 1], moved.nonzero()[:, 2]
    assert set(rows.tolist()) == set(range(8, 13))
    assert set(columns.tolist()) == {*range(3, 8), *range(20, 25)}
    assert 0.45 < (columns > 14).float().mean() < 0.55
    erased = flip_crop_erase(torch.ones(4000, 28, 28, dtype=torch.uint8), padding=0, size=8, share=0.25)
    counts = (erased == 0).sum((1, 2))
    assert counts.max() == 64 and 0.22 < (counts > 0).float().mean() < 0.28


def test_target():
    figures = {"float": {"accuracy": 0.94}, "int8": {"accuracy": 0.937}}
    assert Target("accuracy", 0.935, "int8", "a source").reached(figures)
    assert not Target("accuracy", 0.938, "int8", "a source").reached(figures)
    assert Target("accuracy", -0.003, "int8", "a source", above="float").reached(figures)
    assert not Target("accuracy", -0.002, "int8", "a source", above="float").reached(figures)
