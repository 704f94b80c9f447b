"""A run of programs as a trace that https://ui.perfetto.dev shows: layers, units, and the memory's traffic."""

import json

import numpy as np

from ..hw.isa import Unit, decode
from ..hw.program import Program
from ..sim.cycle import CycleDevice
from ..sim.timeline import Timeline

__all__ = ["timelines", "trace", "traffic"]

#: Threads of a process, beside "layers": what a unit does, in the order of the data.
_THREADS = {Unit.WEIGHT: "load weights", Unit.MAP: "load maps", Unit.COMPUTE: "compute", Unit.DRAIN: "drain", Unit.STORE: "store"}
#: Of an instruction, what a trace shows.
_SHOWN = ("target", "address", "weights", "beats", "planes", "pixels", "rows", "columns", "last_channels", "residual")


def timelines(programs: "list[Program]") -> "list[Timeline]":
    """What a run of each program does when, by the timing model. Raises :exc:`DeviceError` for a program that does not come to its end."""
    return [CycleDevice(program.config).timeline(program) for program in programs]


def traffic(timeline: Timeline, edges: np.ndarray) -> "tuple[np.ndarray, np.ndarray]":
    """Bytes a cycle, read and written, between neighbouring `edges`, cycles in ascending order: float64 (edges − 1,) each."""
    rates = []
    for sign in (1, -1):
        bursts = timeline.bursts[timeline.bursts[:, 2] * sign > 0]
        done = np.repeat(np.cumsum(np.abs(bursts[:, 2])), 2)
        done[::2] -= np.abs(bursts[:, 2])
        rates.append(np.diff(np.interp(edges, bursts[:, :2].reshape(-1), done)) / np.diff(edges) if len(bursts) else np.zeros(len(edges) - 1))
    return tuple(rates)


def trace(programs: "list[Program]", found: "list[Timeline]", layers: "list[np.ndarray]") -> str:
    """The trace of programs that run one after the other, Chrome's JSON; `layers`: cycles of each program's layers."""
    events, start = [], 0
    for number, (program, timeline, cycles) in enumerate(zip(programs, found, layers, strict=True), 1):
        events += _program(number, program, timeline, cycles, start)
        start += timeline.cycles
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}, separators=(",", ":")) + "\n"


def _program(process, program, timeline, cycles, start):
    def microseconds(cycle):
        return round(float(cycle) / program.config.clock_mhz, 4)

    def span(thread, name, first, last, **arguments):
        begin, end = (microseconds(start + cycle) for cycle in (first, last))
        return {"ph": "X", "pid": process, "tid": thread, "name": name, "ts": begin, "dur": round(end - begin, 4), "args": arguments}

    def named(what, name, **where):
        return {"ph": "M", "pid": process, "name": what, "args": {"name": name}, **where}

    names, words = [layer.name for layer in program.network.layers], program.words()
    yield named("process_name", f"{program.network.name}, batch {program.batch}, {program.config.name}")
    yield named("thread_name", "layers", tid=0)
    ends = np.cumsum(cycles)
    for name, first, last in zip(names, ends - cycles, ends):
        yield span(0, name, first, last, cycles=int(last - first))
    for thread, (unit, title) in enumerate(_THREADS.items(), 1):
        yield named("thread_name", title, tid=thread)
        for index, first, last in timeline.spans[unit].tolist():
            opcode, fields = decode(words[index])
            yield span(thread, names[program.layers[index]], first, last, instruction=index, opcode=opcode.name, cycles=last - first,
                       **{name: fields[name] for name in _SHOWN if name in fields})
    edges = np.linspace(0, timeline.cycles, 1 + min(2000, 1 + timeline.cycles // 500))
    for first, read, written in zip(edges, *traffic(timeline, edges)):
        rates = {name: round(float(rate) * program.config.clock_mhz, 1) for name, rate in (("read", read), ("written", written))}
        yield {"ph": "C", "pid": process, "name": "memory, MB/s", "ts": microseconds(start + first), "args": rates}
