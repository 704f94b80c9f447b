"""Submodules on a device: what is split off, what a detector-like module returns, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import celosia
from celosia.host.errors import CelosiaError, NoRoomError
from celosia.host.offload import offload, offload_report, recorded
from celosia.host.partition import partition
from celosia.host.trace import trace
from celosia.hw.config import get_config


class Trunk(nn.Module):
    """Maps of two sizes, one of them normalised by what no device can do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, stride=2, padding=1)

    def forward(self, x):
        x = self.first(x).relu_()
        return {"fine": functional.normalize(x) * 3, "coarse": self.second(x)}


class Heads(nn.Module):
    """One answer of all maps, as SSD's heads give."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)])

    def forward(self, maps):
        answers = [head(x) for head, x in zip(self.heads, maps)]
        return torch.cat([x.view(x.shape[0], 2, 3, *x.shape[2:]).permute(0, 3, 4, 1, 2).reshape(x.shape[0], -1, 3) for x in answers], 1)


class Regions(nn.Module):
    """As the box head of a Faster R-CNN."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8 * 4 * 4, 20)

    def forward(self, x):
        return self.fc(x.flatten(start_dim=1)).relu()


class Detector(nn.Module):
    """Takes a list of images; so many regions are looked at as there are bright pixels."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.regions, self.width = Trunk(), Heads(), Regions(), 8

    def forward(self, images):
        maps = self.trunk(torch.stack(images))
        count = int(sum((image > 1.3).sum() for image in images))
        regions = functional.adaptive_avg_pool2d(maps["coarse"], 4).repeat(count, 1, 1, 1)[:count]
        return {"answers": self.head(list(maps.values())), "regions": self.regions(regions), "count": count}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(1)
    return Detector().eval()


def images(seed, count=1):
    return [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed + index)) for index in range(count)]


def near(one, other):
    error = (one - other).square().mean() / other.square().mean()
    return float(error) < 1e-3


@pytest.fixture(scope="module")
def offloaded(detector):
    with celosia.open_device("golden", "tiny") as device:
        yield offload(detector, ["trunk", "head", "regions"], calibrate=images(0, 4), device=device)


@pytest.mark.parametrize("count", [1, 3])
def test_the_module_around_it_works_unchanged(detector, offloaded, count):
    given = images(100, count)
    with torch.no_grad():
        want, got = detector(given), offloaded(given)
    assert want["count"] == got["count"] and got["regions"].shape == (want["count"], 20) and want["count"] > 64, "more regions than a program takes at once"
    assert near(got["answers"], want["answers"]) and near(got["regions"], want["regions"])
    assert not torch.equal(got["answers"], want["answers"]), "int8 rounds"


@pytest.mark.parametrize("options", [{"method": "histogram"}, {"equalize": True}, {"correct_bias": True}, {"fine_tune": True}], ids=str)
def test_ways_of_quantizing(options):
    """They give the network that `quantize` makes of the submodule, although the model goes on with the submodule's input."""
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            x = x.clone()
            return self.body(x) + x.mul_(20).mean()

    torch.manual_seed(4)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 6)).eval()
    given, seen = torch.randn(2, 16, 3, 8, 8)
    plain, quantized = celosia.quantize(body, [seen]), celosia.quantize(body, [seen], **options)
    with celosia.open_device("golden", "tiny") as device, torch.no_grad():
        fast = offload(Around(), ["body"], calibrate=[seen], device=device, **options)
        with recorded(fast) as runs:
            fast(given)
        [want], [other] = (device.run(celosia.compile(network, "tiny", 16), given.numpy()).codes for network in (quantized, plain))
    assert torch.equal(torch.from_numpy(runs[0][1].codes[0]), torch.from_numpy(want)) and (want != other).any()


def test_fine_tuning_is_on_the_maps_of_calibration(detector):
    with celosia.open_device("golden", "tiny") as device, pytest.raises(CelosiaError, match="FineTuning has batches of images"):
        offload(detector, ["trunk"], calibrate=images(0), device=device, fine_tune=celosia.FineTuning(batches=[torch.zeros(1, 3, 16, 16)]))
    with celosia.open_device("golden", "tiny") as device, torch.inference_mode(), pytest.raises(CelosiaError, match=r"no gradients in torch.inference_mode\(\)"):
        offload(detector, ["regions"], calibrate=images(0), device=device, fine_tune=True)


def test_weights_stay_in_memory(detector):
    with celosia.open_device("rtl", "tiny") as device, torch.no_grad():
        fast = offload(detector, ["trunk", "head"], calibrate=images(0, 2), device=device)
        programs, put, written = fast.trunk.programs + fast.head.programs, device._engine._put, []
        device._engine._put = lambda address, data: (written.append(data), put(address, data))
        for seed in (7, 8, 9):
            fast(images(seed))
    assert [index for data in written for index, program in enumerate(programs) if data is program.image] == [0, 1]


def test_maps_that_nothing_brings_together_are_of_one_batch():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, maps):
            return [self.conv(x).relu() for x in maps]

    with celosia.open_device("golden", "tiny") as device, torch.no_grad():
        fast = offload(Shared(), [""], calibrate=[([torch.randn(2, 8, 6, 6), torch.randn(2, 8, 3, 3)],)], device=device)
        assert [row["where"] for row in offload_report(fast)["parts"]] == ["device"] and offload_report(fast)["share"] == 1.0


def test_no_region_at_all(detector, offloaded):
    dark = [torch.zeros(3, 16, 16)]
    with torch.no_grad():
        assert offloaded(dark)["regions"].shape == detector(dark)["regions"].shape == (0, 20)


def test_report(detector, offloaded):
    report = offload_report(offloaded)
    assert report["share"] == 1.0
    where = [(row["submodule"], row["where"]) for row in report["parts"]]
    assert where == [("trunk", "device"), ("trunk", "host"), ("head", "device"), ("head", "host"), ("regions", "device")]
    [reason, *_] = report["parts"][1]["reasons"]
    assert reason.startswith("trunk (Trunk), ")
    assert "linalg_vector_norm is not supported" in reason and "test_offload.py" in reason
    assert offloaded.width == 8 and offloaded.trunk.first is not detector.trunk.first, "a copy"


def test_the_same_bytes_on_golden_and_cycle(detector):
    codes = []
    for name in ("golden", "cycle"):
        with celosia.open_device(name, "tiny") as device, torch.no_grad():
            fast = offload(detector, ["trunk", "head"], calibrate=images(0, 2), device=device)
            with recorded(fast) as runs:
                fast(images(7))
            fast(images(8))
            codes.append([code.tobytes() for _, result in runs for code in result.codes])
            assert all((result.cycles is not None) == (name == "cycle") for _, result in runs)
    assert codes[0] == codes[1] and len(codes[0]) == 4


def test_stages_compute_what_the_module_does(detector):
    x = torch.randn(2, 3, 16, 16)
    stages, inputs, outputs = partition(trace(detector.trunk, (x,)))
    assert [stage.device for stage in stages] == [True, False]
    values = dict(zip(inputs, [x]))
    with torch.no_grad():
        for stage in stages:
            values.update(zip(stage.outputs, stage.module(*[values[name] for name in stage.inputs])))
        for name, want in zip(outputs, detector.trunk(x).values()):
            torch.testing.assert_close(values[name], want)


def test_what_is_around_an_operation_of_the_host_comes_back_to_the_device():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            x = self.a(x)
            y = self.b(torch.sort(x, 1).values + x).relu().mean((2, 3))
            return self.c(y).softmax(1), y

    torch.manual_seed(2)
    model, x = Model().eval(), torch.randn(3, 3, 12, 12)
    stages, inputs, outputs = partition(trace(model, (x,)))
    assert [stage.device for stage in stages] == [True, False, True, False]
    values = dict(zip(inputs, [x]))
    with torch.no_grad():
        for stage in stages:
            values.update(zip(stage.outputs, stage.module(*[values[name] for name in stage.inputs])))
        for name, want in zip(outputs, model(x)):
            torch.testing.assert_close(values[name], want)


@pytest.mark.parametrize(("change", "error", "problem"), [
    (lambda d, i: offload(d, ["neck"], calibrate=i, device=None), CelosiaError, "offload: Detector has no submodule 'neck'; name one of its named_modules()"),
    (lambda d, i: offload(d, ["regions"], calibrate=[], device=None), CelosiaError, "submodule regions: is never called; offload one that the model's forward uses"),
    (lambda d, i: offload(d, [""], calibrate=i, device=None), CelosiaError, "Detector does not accept a batch of shape (2, 16, 16)"),
])
def test_refused(detector, change, error, problem):
    with pytest.raises(error) as caught:
        change(detector, images(0))
    assert problem in str(caught.value)


def test_another_size_is_refused(offloaded):
    with pytest.raises(CelosiaError, match=r"^submodule trunk: is called with N×3×20×20 or other constants than in calibration; bring"), torch.no_grad():
        offloaded([torch.zeros(3, 20, 20)])


def test_programs_must_fit_together():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3)

        def forward(self, x):
            return self.b(self.a(x).relu())

    config = replace(get_config("tiny"), name="small", memory_bytes=1 << 16)
    with celosia.open_device("golden", config) as device, torch.no_grad():
        offload(Two(), ["a"], calibrate=[torch.randn(2, 64, 6, 6)], device=device)
        with pytest.raises(NoRoomError, match=r"^the programs need [\d,]+ bytes of memory \(weights a.0 [\d,]+, b.0 [\d,]+\), config .small. has 65,536"):
            offload(Two(), ["a", "b"], calibrate=[torch.randn(2, 64, 6, 6)], device=device)
