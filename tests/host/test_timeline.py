"""What `bench --report` shows: the timing model's account of a run, as a trace and as a page."""

import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from networks import random_network

from celosia.host.bench_page import write_page
from celosia.host.compile import compile
from celosia.host.device import open_device
from celosia.host.errors import CelosiaError
from celosia.host.report import bench_report
from celosia.host.timeline import timelines, trace, traffic
from celosia.hw.isa import Unit, decode, unit_of


@pytest.fixture(scope="module", params=["tiny", "ulx3s-25f", "up5k"])
def measured(request):
    """A program, its timeline and what `bench` reports of it."""
    network = random_network(4, largest=16, most_layers=6)
    counted = [layer if layer.op == "avg_pool" else replace(layer, macs=layer.weight.size * prod(network.tensors[layer.output].shape[1:])) for layer in network.layers]
    if request.param == "up5k":  # which has no more than that
        counted = [replace(layer, residual=None, lookup=None, negative=None) for layer in counted]
    program = compile(replace(network, layers=counted), request.param, 2)
    with open_device("cycle", program.config) as device:
        result = device.time(program)
    [found] = timelines([program])
    return program, found, result, bench_report("some/net:work", device, 2, [(program, result)], {})


def test_accounts_for_every_instruction_and_cycle(measured):
    program, found, result, _ = measured
    assert found.cycles == result.cycles
    opcodes = [decode(word)[0] for word in program.words()]
    for unit in Unit:
        indices, first, last = found.spans[unit].T
        assert {unit_of(opcodes[index]) for index in indices} == {unit} and (np.diff(indices) > 0).all()
        assert first.min() >= 0 and last.max() <= found.cycles and (first < last).all() and (last[:-1] <= first[1:]).all()
    assert {len(cycles) for cycles in found.array.values()} == {len(program.network.layers)} and found.array["active"].sum() == result.counters["active"]
    if program.config.in_order:
        assert (sum(found.array.values()) == result.layers).all() and not len(found.bursts)
        return
    for name in set(found.array) - {"active"}:
        assert found.array[name].sum() == result.counters[f"stall_{name}"]
    sizes = found.bursts[:, 2]
    assert sizes[sizes > 0].sum() == 8 * result.counters["read_beats"] and -sizes[sizes < 0].sum() == 8 * result.counters["write_beats"]
    assert (found.bursts[1:, 0] >= found.bursts[:-1, 1]).all(), "one burst after the other"
    edges = np.linspace(0, found.cycles, 8)
    read, written = traffic(found, edges)
    assert (np.diff(edges) * (read + written)).sum() == pytest.approx(np.abs(sizes).sum()) and max(read + written) < 8 / 3


def test_layers_of_instructions(measured):
    """Each instruction is for the layer whose part of the program it is in; loads may run ahead of it."""
    program, *_ = measured
    stored = 0
    for word, layer in zip(program.words(), program.layers.tolist()):
        unit = unit_of(decode(word)[0])
        now = next((index for index, stores in enumerate(program.stores) if stored < stores), len(program.stores) - 1)
        assert layer >= now if unit in (Unit.WEIGHT, Unit.MAP) else layer == now or unit is None
        stored += unit is Unit.STORE


def test_trace(measured):
    program, found, result, _ = measured
    events = json.loads(trace([program, program], [found, found], [result.layers] * 2))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    threads = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert [threads[2, thread] for thread in range(6)] == ["layers", "load weights", "load maps", "compute", "drain", "store"]
    for thread in threads:
        mine = sorted((event["ts"], event["dur"]) for event in spans if (event["pid"], event["tid"]) == thread)
        assert mine and all(ts + dur <= following + 1e-6 for (ts, dur), (following, _) in pairwise(mine)), "spans of a thread do not overlap"
    assert {event["name"] for event in spans} == {layer.name for layer in program.network.layers}
    end = 2 * found.cycles / program.config.clock_mhz
    assert max(event["ts"] + event["dur"] for event in spans) == pytest.approx(end) and min(event["ts"] for event in spans) == 0


def test_page(measured, tmp_path):
    program, found, _, report = measured
    twice = [(report, [program], [found]), (report | {"config": "<b>"}, [program, program], [found, found])]
    twice[1][0]["layers"] = 2 * report["layers"]
    names = write_page(tmp_path, twice)
    files = [f"{stem}{ending}" for stem in ("some_net_work", "some_net_work-2") for ending in (".trace.json", "-layers.png", "-roofline.png", "-memory.png")]
    assert names == [*files, "index.html"] and sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    page = (tmp_path / "index.html").read_text()
    assert all(layer.name in page for layer in program.network.layers) and f"{report['total']['cycles']:,} cycles" in page
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert not re.search(r"<script|src=|https?://(?!ui\.perfetto\.dev|www\.w3\.org|purl\.org|creativecommons)", page), "self-contained"
    identifiers = re.findall(r'id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers)) and set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(identifiers)
    before = {name: (tmp_path / name).read_bytes() for name in names}
    assert names == write_page(tmp_path, twice) and before == {name: (tmp_path / name).read_bytes() for name in names}


def test_page_that_cannot_be_written(measured, tmp_path, monkeypatch):
    program, found, _, report = measured
    with pytest.raises(CelosiaError, match="--report: device cycle does not tell the cycles of layers"):
        write_page(tmp_path, [(report | {"layers": []}, [program], [found])])
    with pytest.raises(CelosiaError, match=r"none/some_net_work\.trace\.json: cannot be written: No such file"):
        write_page(tmp_path / "none", [(report, [program], [found])])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CelosiaError, match="--report: its pictures need matplotlib; pip install"):
        write_page(tmp_path, [(report, [program], [found])])
