"""A benchmark as a page one looks at: where each layer's cycles go, the roofline, memory over time; one HTML file without scripts, traces for Perfetto, pictures."""

import html
import io
import re
from pathlib import Path

import numpy as np

from ..hw.atomic import write_atomically
from ..hw.isa import Base
from ..hw.program import Program, map_bytes
from ..sim.timeline import Timeline
from .allocate import Memory, allocate
from .compile import plan_network
from .errors import CelosiaError
from .tile import MEMORY_RATE
from .timeline import trace, traffic

__all__ = ["write_page"]

_CAUSES = {
    "active": ("#2f6f4f", "the array takes a pixel"), "weights": ("#b5533c", "waits for weights"), "maps": ("#d9a441", "waits for maps"),
    "drain": ("#6a5d9a", "waits for a bank of sums"), "instruction": ("#8a8a8a", "has no instruction"),
}
_READ, _WRITTEN = "#3c6ea5", "#b5533c"
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}th,td{padding:.15em .7em;text-align:right;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,td:nth-child(2){text-align:left}svg{max-width:100%;height:auto}summary{cursor:pointer}"""


def write_page(folder: "str | Path", networks: "list[tuple[dict, list[Program], list[Timeline]]]") -> "list[str]":
    """Write `index.html` and, of each network, `NAME.trace.json`, `NAME-layers.png`, `NAME-memory.png` and `NAME-roofline.png`; returns the files' names.

    A network is the object of `celosia bench --json`, its programs in the order of its layers, and what a run of each does when.
    Raises :exc:`CelosiaError` without matplotlib, or if a file cannot be written.
    """
    folder, names, sections = Path(folder), [], []

    def write(name, content):
        names.append(name)
        try:
            write_atomically(folder / name, content)
        except OSError as error:
            raise CelosiaError(f"{folder / name}: cannot be written: {error.strerror}") from None

    for report, programs, found in networks:
        stem, cycles = re.sub(r"[^\w.-]+", "_", report["model"]), _cycles(report, programs, found)
        write(f"{stem}.trace.json", trace(programs, found, cycles))
        drawings = {}
        for kind, figure in (("layers", _layers(report, found)), ("roofline", _roofline(report)), ("memory", _memory(report, programs, found, cycles))):
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
            write(f"{stem}-{kind}.png", picture.getvalue())
            drawings[kind] = _svg(figure, f"{stem}-{kind}-")
        sections.append(_section(report, drawings, f"{stem}.trace.json"))
    title = html.escape(", ".join(report["model"] for report, *_ in networks))
    write("index.html", f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}: celosia bench</title><style>{_STYLE}</style>\n'
                        f"{''.join(sections)}</html>\n")
    return names


def _cycles(report, programs, found):
    """Cycles of each program's layers in one run of it, however often it ran."""
    rows, result = iter(report["layers"]), []
    for program, timeline in zip(programs, found, strict=True):
        cycles = np.array([next(rows)["cycles"] for _ in program.network.layers])
        result.append(cycles * timeline.cycles // max(cycles.sum(), 1))
    return result


def _figure(width, height):
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise CelosiaError("--report: its pictures need matplotlib; pip install 'celosia[plots]'") from None
    matplotlib.rcParams.update({"svg.hashsalt": "celosia", "svg.fonttype": "none", "font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False})
    return Figure((width, height), layout="constrained")


def _svg(figure, prefix):
    """The drawing, with identifiers that no other drawing of the page has."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", drawing[drawing.index("<svg"):])


def _layers(report, found):
    """A bar for each layer, by what the array does, and its bound."""
    rows = report["layers"]
    figure = _figure(9, max(0.17 * len(rows) + 1, 2.2))
    axes, left, at = figure.subplots(), np.zeros(len(rows)), np.arange(len(rows))
    for cause, share in _shares(rows, found).items():
        colour, label = _CAUSES[cause]
        axes.barh(at, share, left=left, color=colour, label=label, height=0.78)
        left += share
    axes.plot([row["bound_cycles"] / 1e3 for row in rows], at, "|", color="black", markersize=7, markeredgewidth=1.4, label="bound")
    axes.set_yticks(at, [row["name"][-38:] for row in rows], fontsize=6.5)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="thousand cycles")
    axes.xaxis.grid(True, color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", frameon=False, ncols=6, fontsize=7.5)
    return figure


def _shares(rows, found):
    """By cause, thousands of cycles of each layer: its measured cycles, in the proportions that the timing model has for its instructions."""
    cycles = np.array([row["cycles"] for row in rows], float)
    counted = {cause: np.concatenate([timeline.array[cause] for timeline in found]) for cause in _CAUSES if all(cause in timeline.array for timeline in found)}
    scale = cycles / np.maximum(sum(counted.values()), 1) / 1e3
    return {cause: values * scale for cause, values in counted.items()}


def _roofline(report):
    """Each layer by what it computes for a byte of memory traffic, and a cycle; the roof is the array, and memory at the rate of the bound."""
    macs_per_cycle, clock_mhz = report["macs_per_cycle"], report["clock_mhz"]
    figure = _figure(6, 4)
    axes, rate = figure.subplots(), MEMORY_RATE / (clock_mhz * 1e6)
    rows = [row for row in report["layers"] if row["macs"] and row["cycles"] and row["dram_bytes"]]
    x, y = (np.array([row["macs"] / row[key] for row in rows]) for key in ("dram_bytes", "cycles"))
    share = np.array([row["cycles"] for row in rows]) / report["total"]["cycles"]
    low, high = x.min(initial=1) / 1.5, x.max(initial=2 * macs_per_cycle / rate) * 1.5
    roof = np.geomspace(low, high, 200)
    axes.plot(roof, np.minimum(roof * rate, macs_per_cycle), color="black", linewidth=1.2)
    axes.scatter(x, y, s=12 + 900 * share, color=_CAUSES["active"][0], alpha=0.55, linewidths=0)
    for index in np.argsort(-share)[:5]:
        axes.annotate(rows[index]["name"], (x[index], y[index]), fontsize=6.5, xytext=(4, -8), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(y.min(initial=macs_per_cycle / 50) / 1.5, macs_per_cycle * 1.6),
             xlabel="MACs per byte of memory traffic", ylabel="MACs per cycle")
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_title(f"area: share of the cycles; roof: {macs_per_cycle} MACs a cycle, {MEMORY_RATE / 1e6:g} MB/s", fontsize=8, loc="left")
    return figure


def _memory(report, programs, found, layers):
    """What lies in memory when, and the traffic; programs one after the other."""
    figure = _figure(9, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    start, top = 0, 0
    for program, timeline, cycles in zip(programs, found, layers, strict=True):
        _draw_regions(above, program, [start, *(start + np.cumsum(cycles))])
        top = max(top, program.memory_bytes)
        edges = np.linspace(0, timeline.cycles, 241)
        read, written = traffic(timeline, edges)
        middle = (start + (edges[:-1] + edges[1:]) / 2) / 1e3
        below.stackplot(middle, read * report["clock_mhz"], written * report["clock_mhz"], colors=(_READ, _WRITTEN), labels=() if start else ("read", "written"))
        start += timeline.cycles
    above.set(ylabel="MB of memory", ylim=(0, top / 1e6 * 1.02), xlim=(0, start / 1e3))
    below.axhline(MEMORY_RATE / 1e6, color="black", linewidth=0.8, linestyle="--")
    below.set(xlabel="thousand cycles", ylabel="MB/s")
    if below.get_legend_handles_labels()[0]:
        below.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    return figure


def _draw_regions(axes, program, times):
    """Weights and instructions, and every map from the layer that writes it to the last that reads it."""
    network, bases = program.network, program.bases()
    axes.broken_barh([(times[0] / 1e3, (times[-1] - times[0]) / 1e3)], (0, program.sizes[Base.WEIGHTS] / 1e6), color="#bbbbbb")
    axes.text((times[0] + times[-1]) / 2e3, program.sizes[Base.WEIGHTS] / 2e6, "weights", ha="center", va="center", fontsize=7)
    colours = ("#4c8c6a", "#7fb79a", "#a9cdb9")
    for number, (name, place) in enumerate(_placements(program).placements.items()):
        if network.part(name).tensor != name:
            continue
        inside = [other for other in network.tensors if network.part(other).tensor == name]
        written = [index for index, layer in enumerate(network.layers) if layer.output in inside]
        read = [index for index, layer in enumerate(network.layers) if set(layer.reads) & set(inside)]
        first = 0 if name in network.inputs else min(written)
        last = len(network.layers) - 1 if name in network.outputs else max(read, default=first)
        shape = network.tensors[name].shape
        size = map_bytes(program.batch, place.fold.shape(shape) if place.fold else shape)
        axes.broken_barh([(times[first] / 1e3, (times[last + 1] - times[first]) / 1e3)], ((bases[place.base] + place.offset) / 1e6, size / 1e6),
                         color=colours[number % 3], linewidth=0)


def _placements(program) -> Memory:
    return allocate(program.config, program.network, plan_network(program.network, program.config, program.batch), program.batch)


def _section(report, drawings, trace_name):
    total, shown = report["total"], html.escape(report["model"])
    lines = [f"<h1>{shown}</h1><p>{report['config']}, batch {report['batch']}, device {report['device']}: {total['cycles']:,} cycles, "
             f"{total['bound_cycles'] / total['cycles']:.1%} of the bound's speed; {total['utilisation']:.1%} of the array used; "
             f"{report['frames_per_second']:.4g} images a second at {report['clock_mhz']:g} MHz, without the time of host and link: "
             f"an image's input and output take {report['link']['seconds']:.3g} s on a line of 3 Mbaud, once {report['link']['upload_seconds']:.3g} s for weights.</p>"]
    for kind, title in (("layers", "Where the cycles go"), ("roofline", "Roofline"), ("memory", "Memory over time")):
        lines.append(f"<h2>{title}</h2>{drawings[kind]}")
    lines.append(f"<p>Every instruction: open <code>{trace_name}</code> at <a href='https://ui.perfetto.dev'>ui.perfetto.dev</a>.</p>")
    head = "".join(f"<th>{column}</th>" for column in ("layer", "op", "MACs", "cycles", "bound", "of the bound", "DRAM bytes", "array used"))
    body = "".join(
        f"<tr><td>{html.escape(row['name'])}</td><td>{row['op']}</td><td>{row['macs']:,}</td><td>{row['cycles']:,}</td><td>{row['bound_cycles']:,}</td>"
        f"<td>{row['bound_cycles'] / max(row['cycles'], 1):.1%}</td><td>{row['dram_bytes']:,}</td><td>{row['utilisation'] or 0:.1%}</td></tr>\n"
        for row in (*report["layers"], total))
    return "\n".join(lines) + f"<details open><summary>Layers</summary><table><tr>{head}</tr>\n{body}</table></details>\n"
