"""What openFPGALoader is called with, and what is said if it cannot do it."""

import pytest

from celosia.host import flash as loader
from celosia.host.board import get_board
from celosia.host.errors import CelosiaError
from celosia.host.flash import flash

BOARD = get_board("ulx3s-12f")


@pytest.fixture
def bitstream(tmp_path):
    path = tmp_path / "board.bit"
    path.write_bytes(b"bits")
    return path


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A program in place of openFPGALoader, from the lines of a shell script; it notes its arguments."""

    def make(*lines):
        path = tmp_path / "loader"
        path.write_text("\n".join(["#!/bin/sh", f'echo "$@" > {tmp_path / "arguments"}', *lines]))
        path.chmod(0o755)
        monkeypatch.setenv("OPENFPGALOADER", str(path))
        return tmp_path / "arguments"

    return make


def test_arguments(bitstream, tool):
    arguments = tool("exit 0")
    flash(BOARD, bitstream)
    assert arguments.read_text().split() == ["-b", "ulx3s", str(bitstream)]
    flash(BOARD, bitstream, keep=True)
    assert arguments.read_text().split() == ["-b", "ulx3s", "--write-flash", str(bitstream)]


@pytest.mark.parametrize(("lines", "said"), [
    (["echo Jtag frequency: 6 MHz", "echo 'unable to open ftdi device: -3 (device not found)'", "exit 1"], r"\(unable to open ftdi device: -3 \(device not found\)\)"),
    (["exit 4"], r"\(exit code 4\)"),
])
def test_no_board(bitstream, tool, lines, said):
    tool(*lines)
    with pytest.raises(CelosiaError, match=f"board ulx3s-12f does not answer openFPGALoader {said}; check its USB cable"):
        flash(BOARD, bitstream)


def test_a_loader_that_hangs(bitstream, tool, monkeypatch):
    tool("exec sleep 60")
    monkeypatch.setattr(loader, "_SECONDS", 0.2)
    with pytest.raises(CelosiaError, match=r"openFPGALoader has not ended within 0\.2 s; take the board's USB cable out"):
        flash(BOARD, bitstream)


def test_no_loader(bitstream, monkeypatch):
    monkeypatch.delenv("OPENFPGALOADER", raising=False)
    monkeypatch.setenv("PATH", str(bitstream.parent))
    with pytest.raises(CelosiaError, match="openFPGALoader is not installed; install it"):
        flash(BOARD, bitstream)
    monkeypatch.setenv("OPENFPGALOADER", str(bitstream.parent / "none"))
    with pytest.raises(CelosiaError, match=r"openFPGALoader, .*none, does not run: .*; install it, or correct \$OPENFPGALOADER"):
        flash(BOARD, bitstream)


@pytest.mark.parametrize(("name", "reason"), [("none.bit", "there is no such file"), ("board.txt", "must be a .bit or .bin file")])
def test_no_bitstream(bitstream, tool, name, reason):
    tool("exit 0")
    with pytest.raises(CelosiaError, match=f"bitstream .*{name}: {reason}; make one with `celosia synth ulx3s-12f`"):
        flash(BOARD, bitstream.with_name(name))


def test_no_such_board():
    with pytest.raises(CelosiaError, match="board 'de10' is not known; choose ulx3s-12f, ulx3s-25f"):
        get_board("de10")
