"""The commands for boards: making, loading, testing and simulating them."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from .console import emit, progress_bar, table
from .options import Config, Json

__all__ = ["app"]

app = typer.Typer()


@app.command()
def serve_sim(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The TCP port; 0: any that is free.")],
    config: Config = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 127.0.0.1 can be reached from this machine only.")] = "127.0.0.1",
) -> None:
    """Be a board: the RTL, simulated, for the device tcp:HOST:PORT, until Ctrl-C."""
    from ..hw.config import get_config
    from ..hw.link import WINDOW
    from ..sim.link import FrameServer
    from ..sim.rtl import RtlBoard
    from ..sim.serve import SimulatedBoard, listen, serve
    from .source import DEFAULT_CONFIG

    def log(text):
        print(f"serve-sim: {text}", file=sys.stderr, flush=True)

    chosen = get_config(config or DEFAULT_CONFIG)
    # The board first, which may have to be compiled: whoever connects meanwhile is refused, instead of waiting for an answer.
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(RtlBoard(chosen)) as rtl, contextlib.closing(listen(host, port)) as listener:
        board = SimulatedBoard(rtl, log)
        log(f"config {chosen.name} is the device tcp:{host}:{listener.getsockname()[1]}, until Ctrl-C")
        serve(listener, FrameServer(board, 1 if chosen.in_order else WINDOW), board)


@app.command()
def synth(
    board: Annotated[str, typer.Argument(help="A board of `celosia boards`.")],
    config: Annotated[str | None, typer.Option(help="A configuration, or a .toml file.", show_default="the board's own")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Placements to try; the fastest is kept.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Placements at a time.")] = 2,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bitstream.", show_default="BOARD.bit")] = None,
    work: Annotated[Path, typer.Option(help="Folder for netlists, logs and reports; what is there is not made again.")] = Path("build/synth"),
    as_json: Json = False,
) -> None:
    """Make a board's bitstream; a quarter of an hour and more for each seed."""
    from ..hw.config import get_config
    from ..hw.synth import synthesize
    from .board import get_board

    chosen = get_config(config or get_board(board).config)

    with progress_bar(f"synth {board}") as progress:
        report = synthesize(board, chosen, range(1, seeds + 1), output or Path(f"{board}.{'bin' if board == 'icebreaker' else 'bit'}"), work, jobs=jobs,
                            log=progress or (lambda line: print(f"synth: {line}", file=sys.stderr, flush=True)))
    if as_json:
        return emit(report)
    table(("", ""), [("bitstream", report["bitstream"]), ("config", report["config"]), ("multipliers", report["mult18"]), ("block RAMs", report["ebr"]),
                     ("cells", f"{report['comb']:,}"), ("flip-flops", f"{report['ff']:,}"),
                     ("clocks set", f"engine {report['engine_mhz']:g} MHz, memory {report['memory_mhz']:g} MHz, of seed {report['seed']}")])
    rows = [(seed, "not routed", "", "", "", "") for seed in report["unrouted_seeds"]]
    for run in report["runs"]:
        for clock, mhz in run["clocks"].items():
            path = run["critical_paths"].get(clock)
            longest = (f"{path['from']} → {path['to']}", f"{path['logic_ns']} ns", f"{path['routing_ns']} ns") if path else ("", "", "")
            rows.append((run["seed"], clock, mhz, *longest))
    return table(("seed", "clock", "MHz", "longest path", "logic", "wires"), rows)


@app.command()
def flash(
    board: Annotated[str, typer.Argument(help="A board of `celosia boards`.")],
    file: Annotated[Path, typer.Argument(help="The bitstream of `celosia synth`.")],
    keep: Annotated[bool, typer.Option(help="Into the flash memory, from which the board starts, not into the FPGA alone.")] = False,
) -> None:
    """Load a bitstream into a board that is connected, with openFPGALoader."""
    from . import flash as loader
    from .board import get_board

    loader.flash(get_board(board), file, keep=keep)
    print(f"flash: {file} is loaded", file=sys.stderr)


@app.command()
def selftest(
    device: Annotated[str, typer.Argument(help="serial:PORT or tcp:HOST:PORT.")],
    config: Annotated[str | None, typer.Option(help="The configuration it should have, or a .toml file.", show_default="what it says")] = None,
    size: Annotated[int, typer.Option(min=1024, help="Bytes of its memory that are tested.")] = 1 << 18,
    as_json: Json = False,
) -> None:
    """Test a board: identity, memory with a sweep of its clock's phase, a small network, the link; exit code 1 if it does not pass."""
    from ..hw.config import get_config
    from .pipes import open_pipe
    from .selftest import selftest as test

    chosen = get_config(config) if config else None
    with progress_bar(f"selftest {device}") as progress:
        report = test(open_pipe(device), chosen, size=size, log=progress or (lambda line: None))
    if as_json:
        emit(report)
    else:
        phase, memory, network, link = (report[name] for name in ("phase", "memory", "network", "link"))
        table(("", ""), [
            ("config", f"{report['config']}, build {report['build']}"),
            ("engine", f"{report['engine_khz'] / 1000:g} MHz" if report["engine_khz"] else "simulated"),
            ("memory's clock", f"works at {phase['good']} of {phase['steps']} phases, now at {phase['chosen']}" if phase else "has no phase"),
            ("memory", f"{memory['wrong']} of {memory['bytes'] >> 10} blocks of 1 KiB wrong" if memory else "not tested"),
            ("network", ("equal to golden" if network["equal"] else "DIFFERENT from golden") if network else "not run"),
            ("link", f"{link['sent']} frames, {link['resent']} sent again, {link['damaged_here']} came damaged"),
            ("", "passed" if report["passed"] else "FAILED"),
        ])
    if not report["passed"]:
        raise typer.Exit(1)
