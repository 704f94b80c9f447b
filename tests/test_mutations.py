"""The planted faults of mutations.toml still fit the hardware; `python -m tests.mutate` shows that they are found."""

import ast
import json

import pytest
from mutate import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits(mutation, tmp_path):
    """Its text is there once, what becomes of it is Python, it is hardware, and its tests exist."""
    assert mutation.file.startswith("hw/") and mutation.tests
    path = tmp_path / mutation.file
    path.parent.mkdir()
    before = (ROOT / mutation.file).read_text()
    path.write_text(before)
    mutation.apply(tmp_path)
    assert ast.dump(ast.parse(path.read_text())) != ast.dump(ast.parse(before))
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"\ndef {name.partition('[')[0]}(" in (ROOT / file).read_text(), test


def test_text_that_is_not_there_once(tmp_path):
    mutation = Mutation(name="n", fault="", file="a.py", old="x", new="y", tests=[])
    for text in ("", "x x"):
        (tmp_path / "a.py").write_text(text)
        with pytest.raises(ValueError, match=r"mutation n: a.py has [02] × 'x', not one"):
            mutation.apply(tmp_path)


def test_at_least_twenty_with_names_of_their_own():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20


def test_at_least_twenty_were_all_found():
    result = json.loads((ROOT / "results" / "mutations.json").read_text())
    assert result["planted"] == result["found"] == len(result["mutations"]) >= 20
    assert all(row["found_by"] for row in result["mutations"])
