"""README and docs say what is there: commands, files and figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import typer

from celosia.host.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands():
    """Commands in indented lines of the pages, without their comments."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("    celosia "):
                yield line.partition("#")[0].split()[1:]


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    if "my_resnet18" in EXAMPLES[number]:
        torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "my_resnet18.pth")
        np.save("my_images.npy", random.standard_normal((4, 3, 64, 64)).astype(np.float32))
    if "my_ssd" in EXAMPLES[number]:
        detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(num_classes=4, weights_backbone=None)
        torch.save(detector.state_dict(), "my_ssd.pth")
        np.save("my_photographs.npy", random.random((1, 3, 320, 320)).astype(np.float32))
    exec(compile(EXAMPLES[number], "README.md", "exec"), {})
    assert EXAMPLES[number].count("\n") <= 20
    told = (r"\[\d+ \d+\] [\d,]+ cycles", "100% of the MACs on the device", r"[\d,]+ cycles, the same bytes")
    assert re.search(told[number], capsys.readouterr().out)


def test_tables_are_those_of_the_results():
    subprocess.run([sys.executable, ROOT / "scripts" / "tables", "--check"], check=True)


@pytest.mark.parametrize("file", sorted((ROOT / "results").rglob("*.json")), ids=lambda file: str(file.relative_to(ROOT)))
def test_results_name_what_made_them(file):
    result = json.loads(file.read_text())
    program = next(word for word in result["command"].split() if "=" not in word)  # behind variables
    assert program in ("celosia", "python", "scripts/results")
    assert re.fullmatch("[0-9a-f]{40}", result["commit"]) and not result.get("modified")
    assert result.get("versions") or result["tools"]


def test_results_are_those_of_the_script():
    listed = subprocess.run([sys.executable, ROOT / "scripts" / "results", "--list"], check=True, capture_output=True, text=True).stdout
    written = {str(file.relative_to(ROOT)) for file in (ROOT / "results").rglob("*.json")}
    alone = {f"results/{name}.json" for name in ("gate", "soak", "mutations", "sdram")}  # by commands of their own
    assert {line.split()[1] for line in listed.splitlines()} == written - alone


@pytest.mark.parametrize("words", list(_commands()), ids=" ".join)
def test_commands_exist(words):
    command = typer.main.get_command(app).commands[words[0]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_changelog_names_every_command():
    names = typer.main.get_command(app).commands
    assert all(f"`{name}`" in (ROOT / "CHANGELOG.md").read_text() for name in names)
