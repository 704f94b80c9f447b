import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from modules import Function, conv
from PIL import Image
from torch import nn

from celosia.host.errors import CelosiaError
from celosia.host.quantization_report import quantization_report, report_rows, write_report
from celosia.host.quantize import QuantizedModel, quantize

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8), nn.Flatten(), nn.Linear(512, 5)).eval()
    images = torch.randn(12, 3, 16, 16)
    return model, images, quantize(model, [images], name="chain")


def rows(qmodel, *images):
    return {row["name"]: row for row in quantization_report(qmodel, *images)["layers"]}


def test_figures_are_those_of_the_definition(chain):
    """Of the first layer, whose input is the same for both, and the last."""
    model, images, qmodel = chain
    report = quantization_report(qmodel, images)
    assert (report["model"], report["images"], [row["name"] for row in report["layers"]]) == ("chain", 12, ["0", "3", "5"])
    first, _, last = report["layers"]
    with torch.no_grad():
        wanted, got = model(images), qmodel.reference(images)
    assert last["sqnr_db"] == pytest.approx(10 * float(torch.log10(wanted.square().sum() / (got - wanted).square().sum())), abs=0.3)
    assert 25 < last["sqnr_db"] < last["local_sqnr_db"] < 60
    assert (first["lowest_code"], first["zero_point"], first["scale"]) == (-128, -128, qmodel.tensors["0"].scale)
    assert first["codes_used"] == (first["highest_code"] + 129) / 256 > 0.9
    assert first["saturated_low"] == first["saturated_high"] == 0.0


def test_saturation_is_seen_where_values_leave_the_range(chain):
    _, images, qmodel = chain
    found = rows(qmodel, 3 * images)
    assert found["0"]["saturated_low"] == 0 and found["0"]["saturated_high"] > 0.01 and found["0"]["highest_code"] == 127
    assert found["3"]["saturated_low"] > 0.001 and found["3"]["sqnr_db"] < rows(qmodel, images)["3"]["sqnr_db"] - 5


def test_a_layers_own_error_is_found_in_that_layer_alone(chain):
    model, images, _ = chain
    qmodel = quantize(model, [images])
    before = rows(qmodel, images)
    qmodel.layers[1].multiplier[:] = qmodel.layers[1].multiplier * 0.9
    after = rows(qmodel, images)
    assert after["3"]["local_sqnr_db"] < before["3"]["local_sqnr_db"] - 10 and after["5"]["sqnr_db"] < before["5"]["sqnr_db"] - 10
    assert [after[name]["local_sqnr_db"] for name in "05"] == [before[name]["local_sqnr_db"] for name in "05"]


@pytest.mark.parametrize("model", [
    Function(lambda m, x: torch.cat([m.a(x), F.max_pool2d(m.b(x), 3, 1, 1), x], 1), a=conv(3, 8), b=conv(3, 16)),
    Function(lambda m, x: F.relu(m.a(x) * m.g(x).sigmoid() + m.b(x)), a=conv(3, 8), b=conv(3, 8), g=conv(3, 8, 16, padding=0)),
    nn.Sequential(conv(3, 8), nn.SiLU(), nn.ConvTranspose2d(8, 4, 3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    Function(lambda m, x: (lambda y: (m.b(F.relu(y)).chunk(2, 1)[1], y + x))(m.a(x)), a=conv(3, 3), b=conv(3, 16)),
], ids=["concatenation", "scaled", "phases_and_windows", "two_outputs"])
def test_every_kind_of_layer_has_a_row(model):
    torch.manual_seed(0)
    images = torch.randn(9, 3, 16, 16)  # more than are computed at once
    qmodel = quantize(model.eval(), [images], equalize=True, correct_bias=True)
    found = rows(qmodel, images)
    assert [*found] == [layer.name for layer in qmodel.layers if layer.op != "parameters"]
    assert all(20 < row[key] < 80 for row in found.values() for key in ("sqnr_db", "local_sqnr_db") if row[key] is not None)


def test_it_is_written_and_drawn(chain, tmp_path):
    _, images, qmodel = chain
    report = quantization_report(qmodel, 3 * images.numpy())
    files = write_report(report, tmp_path / "new" / "folder")
    assert json.loads(files[0].read_text()) == report
    picture = np.asarray(Image.open(files[1]).convert("RGB")).reshape(-1, 3)
    assert all((picture == colour).all(1).any() for colour in ((0x5B, 0x8F, 0xC7), (0xD0, 0x30, 0x30), (0x4F, 0x8F, 0x4F)))
    columns, cells = report_rows(report)
    assert len(cells) == 3 and all(len(row) == len(columns) for row in cells)
    (tmp_path / "file").touch()
    with pytest.raises(CelosiaError, match="file: cannot be written"):
        write_report(report, tmp_path / "file")


def test_what_cannot_be_reported_on(chain, tmp_path):
    _, images, qmodel = chain
    qmodel.save(tmp_path / "x.celq")
    with pytest.raises(CelosiaError, match="chain: a loaded network has no float network"):
        quantization_report(QuantizedModel.load(tmp_path / "x.celq"), images)
    for wrong in ((), (images[:0],), (images, images)):
        with pytest.raises(CelosiaError, match="a report needs images for 1 inputs"):
            quantization_report(qmodel, *wrong)


def test_a_fixed_batch():
    torch.manual_seed(0)
    program = torch.export.export(conv(3, 4).eval(), (torch.randn(4, 3, 8, 8),))
    images = torch.randn(6, 3, 8, 8)
    [row] = quantization_report(quantize(program, [images]), images)["layers"]
    assert row["saturated_high"] == 0 and row["sqnr_db"] > 30
