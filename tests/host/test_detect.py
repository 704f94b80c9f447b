"""The zoo's detectors: what of them runs on a device, and that the rest is torchvision's."""

import pytest
import torch
from torch import nn

from celosia.host.detect import DEFAULT_CONFIG, detect_report, load_images, offloaded
from celosia.host.device import open_device
from celosia.host.errors import NoRoomError
from celosia.models import zoo

NAMES = [pytest.param(name, marks=[pytest.mark.long] * (name != "ssdlite320_mobilenet_v3_large")) for name in zoo.names() if zoo.get(name).parts]


class Replay(nn.Module):
    """Returns what was recorded."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *_):
        return self.output


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_torchvisions_of_what_the_device_puts_out(name):
    entry, outputs = zoo.get(name), {}
    with open_device("golden", DEFAULT_CONFIG) as device, torch.no_grad():
        module = offloaded(entry, device, sketch=True)
        for part in entry.parts:
            module.get_submodule(part).register_forward_hook(lambda _, inputs, output, part=part: outputs.update({part: output}))
        samples = load_images(entry, (), 1)
        report = detect_report(entry, module, device, samples)
    plain = entry.build()
    for part in entry.parts:
        parent, _, last = part.rpartition(".")
        setattr(plain.get_submodule(parent), last, Replay(outputs[part]))
    with torch.no_grad():
        [found] = plain([torch.from_numpy(samples.images[0])])
    objects = report["predictions"][0]["objects"]
    assert len(objects) == len(found["boxes"]) > 10
    assert [item["box"] for item in objects] == [[round(float(edge), 2) for edge in box] for box in found["boxes"]]
    assert [item["index"] for item in objects] == found["labels"].tolist()
    assert report["share"] >= 0.95
    assert sum(row["macs"] for row in report["parts"]) > 0 and {row["submodule"] for row in report["parts"]} == set(entry.parts)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ssd300_vgg16", "fasterrcnn_resnet50_fpn"])
def test_32_megabytes_are_too_few(name):
    with open_device("golden", "ulx3s-85f") as device, pytest.raises(NoRoomError, match=r"need.* [\d,]{10} bytes of memory .* config 'ulx3s-85f' has 33,554,432"):
        offloaded(zoo.get(name), device, sketch=True)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_golden_and_cycle_agree(name):
    entry, hashes = zoo.get(name), []
    for device in ("golden", "cycle"):
        with open_device(device, DEFAULT_CONFIG) as opened:
            hashes.append(detect_report(entry, offloaded(entry, opened, sketch=True), opened, load_images(entry, (), 1))["outputs_sha256"])
    assert hashes[0] == hashes[1]
