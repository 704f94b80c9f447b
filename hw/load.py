"""Loading: memory → weight and parameter buffers and tables, memory → map scratchpad and residual buffer.

Both units ask for the runs of an instruction while the beats of earlier ones still arrive; the instructions that are asked for wait in a queue for their beats.
"""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import AcceleratorConfig
from .dma import Beats
from .fifo import Queue
from .interfaces import BEAT_BITS, BufferWrite, Instructions, Run, UnitControl
from .isa import TABLE_ENTRIES, Base, LoadMap, Target, Unit
from .isa import LoadWeights as LoadWeightsInstruction
from .parameters import PARAMETER_BYTES
from .primitives import delayed

__all__ = ["LoadMaps", "LoadWeights"]

#: Instructions asked for whose beats have not all arrived, beside the one they arrive for.
AHEAD = 4


class Planes(data.Struct):
    """Runs of equal length, `plane_stride` apart."""

    base: Base
    offset: unsigned(24)        # beats
    beats: unsigned(14)
    planes: unsigned(9)
    plane_stride: unsigned(20)  # beats


class _Request(wiring.Component):
    """Turns planes into runs: one per cycle, the first two cycles after the planes were taken."""

    planes: In(stream.Signature(Planes))
    bases: In(data.ArrayLayout(32, len(Base)))
    runs: Out(stream.Signature(Run))
    idle: Out(1)

    def elaborate(self, platform):
        m = Module()
        planes = Signal(Planes)
        more = Signal(10)  # planes after the present one, less one: its sign marks the last
        beat = Signal(29)
        with m.FSM():
            with m.State("Idle"):
                m.d.comb += [self.idle.eq(1), self.planes.ready.eq(1)]
                m.d.sync += [planes.eq(self.planes.payload), more.eq(self.planes.payload.planes - 2)]
                with m.Switch(self.planes.payload.base):
                    for base in Base:
                        with m.Case(base):
                            m.d.sync += beat.eq(self.bases[base][3:])
                with m.If(self.planes.valid):
                    m.next = "Offset"
            with m.State("Offset"):
                m.d.sync += beat.eq(beat + planes.offset)
                m.next = "Run"
            with m.State("Run"):
                m.d.comb += self.runs.valid.eq(1)
                with m.If(self.runs.ready):
                    m.d.sync += [beat.eq(beat + planes.plane_stride), more.eq(more - 1)]
                    with m.If(more[-1]):
                        m.next = "Idle"
        m.d.comb += [self.runs.payload.address.eq(beat << 3), self.runs.payload.beats.eq(planes.beats)]
        return m


class _Load(wiring.Component):
    """What both units have in common: instructions are split into planes to ask for and an `arrival` that tells where their beats go."""

    def __init__(self, config, instruction, arrival, **writes):
        self._config = config
        self._instruction = instruction
        self._arrival = arrival
        super().__init__({
            "instruction": In(Instructions), "control": Out(UnitControl()), "bases": In(data.ArrayLayout(32, len(Base))),
            "runs": Out(stream.Signature(Run)), "beats": In(Beats()),
        } | {name: Out(write) for name, write in writes.items()})

    def elaborate(self, platform):
        m = Module()
        m.submodules.request = request = _Request()
        m.submodules.arrivals = arrivals = Queue(self._arrival, AHEAD)
        wiring.connect(m, request.runs, wiring.flipped(self.runs))
        instruction = self._instruction(self.instruction.payload[:self._instruction.as_shape().size])
        m.d.comb += [
            self.instruction.ready.eq(request.planes.ready & arrivals.i.ready),
            request.planes.valid.eq(self.instruction.valid & arrivals.i.ready),
            arrivals.i.valid.eq(self.instruction.valid & request.planes.ready),
            request.bases.eq(self.bases),
        ]
        fields = dict(iter(self._instruction.as_shape()))
        for name, _ in Planes.as_shape():
            m.d.comb += request.planes.payload[name].eq(instruction[name] if name in fields else {"planes": 1, "plane_stride": 0}[name])
        for name, _ in self._arrival.as_shape():
            m.d.comb += arrivals.i.payload[name].eq(instruction[name] if name in fields else instruction.header[name])

        active = Signal()   # beats arrive for `arrival`
        arrival = Signal(self._arrival)
        final = Signal()    # the next beat is the instruction's last
        end = Signal()
        ended = Signal()    # its write is under way
        ended_post = Signal(len(Unit))
        m.d.comb += [end.eq(self.beats.valid & final), arrivals.o.ready.eq(~active | end)]
        m.d.sync += [ended.eq(end), ended_post.eq(arrival.post), self.control.retired.eq(ended), self.control.post.eq(Mux(ended, ended_post, 0))]
        m.d.comb += self.control.busy.eq(~request.idle | arrivals.o.valid | active | ended)
        self._write(m, arrival, final)
        with m.If(arrivals.o.ready):
            m.d.sync += [active.eq(arrivals.o.valid), arrival.eq(arrivals.o.payload)]
            self._begin(m, arrivals.o.payload)
        return m


class LoadWeights(_Load):
    """LOAD_WEIGHTS: one run, written a beat per cycle, one cycle after the beat came.

    Beats of an instruction arrive at the earliest five cycles after it was taken; a further one is taken every three cycles, until `AHEAD` wait for their beats.
    It retires and posts the cycle after its last write. Errors of the bus are the DMA's affair: their beats count as data.
    """

    class Arrival(data.Struct):
        post: unsigned(len(Unit))
        target: Target
        address: unsigned(12)
        beats: unsigned(14)

    def __init__(self, config: AcceleratorConfig):
        writes = {"weight_write": BufferWrite(12, 1), "parameter_write": BufferWrite(9, 2), "table_write": BufferWrite(exact_log2(TABLE_ENTRIES), 1)}
        super().__init__(config, LoadWeightsInstruction, self.Arrival, **writes)

    def _begin(self, m, arrival):
        m.d.sync += [self._lane.eq(0), self._more.eq(arrival.beats - 2)]

    def _write(self, m, arrival, final):
        self._lane = lane = Signal(2)
        self._more = more = Signal(15)  # beats after the next one, less one: its sign marks the last
        last_lane = Signal(2)
        m.d.comb += final.eq(more[-1])
        with m.Switch(arrival.target):
            for target, lanes in (Target.WEIGHTS, self._config.inputs // 8), (Target.PARAMETERS, PARAMETER_BYTES * 8 // BEAT_BITS):
                with m.Case(target):
                    m.d.comb += last_lane.eq(lanes - 1)
        with m.If(self.beats.valid):
            m.d.sync += [more.eq(more - 1), lane.eq(lane + 1)]
            with m.If(lane == last_lane):
                m.d.sync += [arrival.address.eq(arrival.address + 1), lane.eq(0)]
        for target, write in (Target.WEIGHTS, self.weight_write), (Target.PARAMETERS, self.parameter_write), (Target.TABLE, self.table_write):
            m.d.sync += write.valid.eq(self.beats.valid & (arrival.target == target))
            m.d.comb += [write.address.eq(delayed(m, arrival.address)), write.lane.eq(delayed(m, lane)), write.data.eq(delayed(m, self.beats.data))]


class LoadMaps(_Load):
    """LOAD_MAP: a run per plane, one asked for per cycle, written a beat per cycle, one cycle after the beat came. Timing and errors as in `LoadWeights`."""

    class Arrival(data.Struct):
        post: unsigned(len(Unit))
        residual: unsigned(1)
        address: unsigned(14)  # of the plane's first word
        pitch: unsigned(14)
        beats: unsigned(14)
        planes: unsigned(9)

    def __init__(self, config: AcceleratorConfig):
        super().__init__(config, LoadMap, self.Arrival, map_write=BufferWrite(14, 1), residual_write=BufferWrite(10, 1))

    def _begin(self, m, arrival):
        m.d.sync += [
            self._more.eq(arrival.beats - 2), self._reload.eq(arrival.beats - 2), self._more_planes.eq(arrival.planes - 2),
            self._address.eq(arrival.address), self._lane.eq(0),
        ]

    def _write(self, m, arrival, final):
        # Beats of the plane after the next one, planes after this one, less one each: the sign marks the last.
        self._more, self._reload, self._more_planes = more, reload, more_planes = Signal(15), Signal(15), Signal(10)
        self._address = address = Signal(14)  # of the next beat
        self._lane = lane = Signal()          # parity of the plane
        last_beat = Signal()
        next_plane = Signal(14)
        m.d.comb += [
            last_beat.eq(more[-1]),
            final.eq(last_beat & more_planes[-1]),
            next_plane.eq(arrival.address + Mux(~arrival.residual & (lane if self._config.inputs == 16 else 1), arrival.pitch, 0)),
        ]
        with m.If(self.beats.valid):
            m.d.sync += [more.eq(more - 1), address.eq(address + 1)]
            with m.If(last_beat):
                m.d.sync += [more.eq(reload), address.eq(next_plane), lane.eq(~lane), arrival.address.eq(next_plane), more_planes.eq(more_planes - 1)]
        m.d.sync += [self.map_write.valid.eq(self.beats.valid & ~arrival.residual), self.residual_write.valid.eq(self.beats.valid & arrival.residual)]
        m.d.comb += [self.map_write.lane.eq(delayed(m, lane) if self._config.inputs == 16 else 0), self.residual_write.lane.eq(delayed(m, lane))]
        for write in self.map_write, self.residual_write:
            m.d.comb += [write.address.eq(delayed(m, address)), write.data.eq(delayed(m, self.beats.data))]
