"""LOAD_WEIGHTS and LOAD_MAP of the in-order engine: beats from one place of its memory to another."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.utils import exact_log2

from .inorder_unit import ADDRESS_BITS, PARAMETER_BEATS, InOrderUnit
from .isa import LoadMap, LoadWeights, Opcode, Target

__all__ = ["InOrderLoad"]


class InOrderLoad(InOrderUnit):
    """Copies a beat every two cycles, from the cycle after `start` on: what is written is what was read in the cycle before."""

    def elaborate(self, _platform):
        m = Module()
        config, buffers, memory = self._config, self._buffers, self.memory
        words, planes = (struct(self.instruction[: struct.as_shape().size]) for struct in (LoadWeights, LoadMap))
        is_map = planes.header.opcode == Opcode.LOAD_MAP
        is_parameters = words.target == Target.PARAMETERS

        source, plane_source, target, plane_target = (Signal(ADDRESS_BITS, name=name) for name in ("source", "plane_source", "target", "plane_target"))
        beats_left, planes_left = Signal.like(planes.beats), Signal.like(planes.planes)
        last_beat = beats_left == 0
        beats = Mux(is_map, planes.beats, words.beats) - 1
        next_source, next_target = plane_source + planes.plane_stride, plane_target + planes.pitch
        with m.FSM():
            with m.State("Idle"):
                into = Mux(is_map, buffers.maps + planes.address,
                           Mux(is_parameters, buffers.parameters + PARAMETER_BEATS * words.address, buffers.weights + words.address))
                m.d.sync += [
                    source.eq(self.place), plane_source.eq(self.place), target.eq(into), plane_target.eq(into),
                    beats_left.eq(beats), planes_left.eq(Mux(is_map, planes.planes - 1, 0)),
                ]
                with m.If(self.start):
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += [memory.valid.eq(1), memory.address.eq(source)]
                m.next = "Write"
            with m.State("Write"):
                m.d.comb += [memory.valid.eq(1), memory.address.eq(target), memory.write.eq(~0)]
                m.d.sync += [source.eq(source + 1), beats_left.eq(beats_left - 1), target.eq(target + 1)]
                for condition, size in ((~is_map & ~is_parameters, config.weight_words), (~is_map & is_parameters, PARAMETER_BEATS * config.parameter_words)):
                    with m.If(condition):  # it wraps
                        m.d.sync += target[exact_log2(size) :].eq(target[exact_log2(size) :])
                m.next = "Read"
                with m.If(last_beat):
                    m.d.sync += [
                        source.eq(next_source), plane_source.eq(next_source), target.eq(next_target), plane_target.eq(next_target),
                        beats_left.eq(beats), planes_left.eq(planes_left - 1),
                    ]
                    with m.If(planes_left == 0):
                        m.d.comb += self.done.eq(1)
                        m.next = "Idle"
        return m
