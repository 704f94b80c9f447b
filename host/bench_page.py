"""A benchmark as a page one looks at: where each layer's cycles go, the roofline, memory over time; one HTML file without scripts, traces for Perfetto, pictures."""

import html
import io
import re
from pathlib import Path

import numpy as np

from ..hw.atomic import write_atomically
from ..hw.isa import Base
from ..hw.program import Program, map_bytes, place_regions
from ..sim.timeline import Timeline
from .allocate import allocate
from .compile import plan_network
from .errors import CelosiaError
from .report import host_time
from .tile import memory_rate
from .timeline import trace, traffic

__all__ = ["expect_pictures", "write_page"]

_CAUSES = {
    "active": ("#2f6f4f", "the array takes a pixel"), "weights": ("#b5533c", "waits for weights"), "maps": ("#d9a441", "waits for maps"),
    "drain": ("#6a5d9a", "waits for a bank of sums"), "instruction": ("#8a8a8a", "has no instruction"),
    "others": ("#d5d5d5", "waits for its turn"),
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
        if not report["layers"]:
            raise CelosiaError(f"--report: device {report['device']} does not tell the cycles of layers; use cycle or rtl")
        stem, cycles = re.sub(r"[^\w.-]+", "_", report["model"]), _cycles(report, programs, found)
        stem += f"-{len(sections) + 1}" * (f"{stem}.trace.json" in names)
        write(f"{stem}.trace.json", trace(programs, found, cycles))
        drawings = {}
        figures = {"layers": _layers(report, found), "roofline": _roofline(report, memory_rate(programs[0].config)),
                   "memory": _memory(report, programs, found, cycles)}
        for kind, figure in figures.items():
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


def expect_pictures() -> None:
    """Raises :exc:`CelosiaError` without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise CelosiaError("--report: its pictures need matplotlib; pip install 'celosia[plots]'") from None


def _figure(width, height):
    expect_pictures()
    import matplotlib
    from matplotlib.figure import Figure

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


def _roofline(report, bytes_per_second):
    """Each layer by what it computes for a byte of memory traffic, and a cycle; the roof is the array, and memory at the rate of the bound."""
    macs_per_cycle, clock_mhz = report["macs_per_cycle"], report["clock_mhz"]
    figure = _figure(6, 4)
    axes, rate = figure.subplots(), bytes_per_second / (clock_mhz * 1e6)
    rows = [row for row in report["layers"] if row["macs"] and row["cycles"] and row["dram_bytes"]]
    x, y = (np.array([row["macs"] / row[key] for row in rows]) for key in ("dram_bytes", "cycles"))
    share = np.array([row["cycles"] for row in rows]) / report["total"]["cycles"]
    low, high = x.min(initial=1) / 1.5, x.max(initial=2 * macs_per_cycle / rate) * 1.5
    roof = np.geomspace(low, high, 200)
    axes.plot(roof, np.minimum(roof * rate, macs_per_cycle), color="black", linewidth=1.2)
    axes.scatter(x, y, s=12 + 900 * share, color=_CAUSES["active"][0], alpha=0.55, linewidths=0)
    named = []
    for index in np.argsort(-share)[:8]:
        if all(abs(np.log(x[index] / x[other])) > 0.3 or abs(np.log(y[index] / y[other])) > 0.2 for other in named):  # else names lie on each other
            named.append(index)
            axes.annotate(rows[index]["name"], (x[index], y[index]), fontsize=6.5, xytext=(4, -8), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(y.min(initial=macs_per_cycle / 50) / 1.5, macs_per_cycle * 1.6),
             xlabel="MACs per byte of memory traffic", ylabel="MACs per cycle")
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_title(f"area: share of the cycles; roof: {macs_per_cycle} MACs a cycle, {bytes_per_second / 1e6:g} MB/s", fontsize=8, loc="left")
    return figure


def _memory(report, programs, found, layers):
    """What lies in memory when, and the traffic; programs one after the other, beside each other's weights."""
    places, top = place_regions(*(program.sizes for program in programs))
    end, traffic_known = sum(timeline.cycles for timeline in found), any(len(timeline.bursts) for timeline in found)
    figure = _figure(9, 4.6 if traffic_known else 3)
    above, *below = figure.subplots(1 + traffic_known, 1, sharex=True, squeeze=False, height_ratios=(3, 2)[: 1 + traffic_known])[:, 0]
    start = 0
    for program, timeline, cycles, bases in zip(programs, found, layers, places, strict=True):
        size = program.sizes[Base.WEIGHTS] / 1e6
        above.broken_barh([(0, end / 1e3)], (bases[Base.WEIGHTS] / 1e6, size), color="#bbbbbb")
        above.text(end / 2e3, bases[Base.WEIGHTS] / 1e6 + size / 2, f"weights of {program.network.name}", ha="center", va="center", fontsize=7)
        _draw_maps(above, program, bases, [start, *(start + np.cumsum(cycles))])
        if below:
            edges = np.linspace(0, timeline.cycles, 241)
            middle = (start + (edges[:-1] + edges[1:]) / 2) / 1e3
            rates = [rate * report["clock_mhz"] for rate in traffic(timeline, edges)]
            below[0].stackplot(middle, *rates, colors=(_READ, _WRITTEN), labels=() if start else ("read", "written"))
        start += timeline.cycles
    above.set(ylabel="MB of memory", ylim=(0, top / 1e6 * 1.02), xlim=(0, end / 1e3))
    if below:
        below[0].axhline(memory_rate(programs[0].config) / 1e6, color="black", linewidth=0.8, linestyle="--")
        below[0].set(ylabel="MB/s")
        below[0].legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    (below or [above])[0].set(xlabel="thousand cycles")
    return figure


def _draw_maps(axes, program, bases, times):
    """Every map from the first layer that writes any of it to the last that writes or reads it; the network's outputs to the end."""
    network, last_layer = program.network, len(program.network.layers) - 1
    memory = allocate(program.config, network, plan_network(network, program.config, program.batch), program.batch)
    if any(memory.sizes[base] != program.sizes[base] for base in Base if base is not Base.WEIGHTS):
        raise CelosiaError(f"{network.name}: was compiled by another version; compile it again for --report")
    colours, wholes = ("#4c8c6a", "#7fb79a", "#a9cdb9"), [name for name in memory.placements if network.part(name).tensor == name]
    for number, name in enumerate(wholes):
        place, inside = memory.placements[name], {other for other in network.tensors if network.part(other).tensor == name}
        uses = [index for index, layer in enumerate(network.layers) if inside & {layer.output, *layer.reads}]
        first = 0 if name in network.inputs else min(uses)
        last = last_layer if inside & set(network.outputs) else max(uses, default=first)
        shape = network.tensors[name].shape
        size = map_bytes(program.batch, place.fold.shape(shape) if place.fold else shape)
        axes.broken_barh([(times[first] / 1e3, (times[last + 1] - times[first]) / 1e3)], ((bases[place.base] + place.offset) / 1e6, size / 1e6),
                         color=colours[number % 3], linewidth=0)


def _section(report, drawings, trace_name):
    total, shown, link = report["total"], html.escape(report["model"]), report["link"]
    lines = [f"<h1>{shown}</h1><p>{html.escape(report['config'])}, batch {report['batch']}, device {html.escape(report['device'])}: {total['cycles']:,} cycles, "
             f"{total['bound_cycles'] / total['cycles']:.1%} of the bound's speed; {total['utilisation']:.1%} of the array used; "
             f"{report['frames_per_second']:.4g} images a second at {report['clock_mhz']:g} MHz, without the time of host and link: "
             f"an image's input and output take {link['seconds'] / report['batch']:.3g} s on a line of 3 Mbaud, the weights once {link['upload_seconds']:.3g} s; "
             f"{host_time(report)}.</p>"]
    for kind, title in (("layers", "Where the cycles go"), ("roofline", "Roofline"), ("memory", "Memory over time")):
        lines.append(f"<h2>{title}</h2>{drawings[kind]}")
    lines.append(f"<p>Every instruction: open <code>{trace_name}</code> at <a href='https://ui.perfetto.dev'>ui.perfetto.dev</a>.</p>")
    head = "".join(f"<th>{column}</th>" for column in ("layer", "op", "MACs", "cycles", "bound", "of the bound", "DRAM bytes", "array used"))
    body = "".join(
        f"<tr><td>{html.escape(row['name'])}</td><td>{row['op']}</td><td>{row['macs']:,}</td><td>{row['cycles']:,}</td><td>{row['bound_cycles']:,}</td>"
        f"<td>{row['bound_cycles'] / max(row['cycles'], 1):.1%}</td><td>{row['dram_bytes']:,}</td><td>{row['utilisation'] or 0:.1%}</td></tr>\n"
        for row in (*report["layers"], total))
    return "\n".join(lines) + f"<details open><summary>Layers</summary><table><tr>{head}</tr>\n{body}</table></details>\n"
