"""DRAIN: sums → bias, requantization, residual, clamp, table → output staging."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import PLANE, AcceleratorConfig
from .fifo import Queue
from .interfaces import BEAT_BITS, BufferWrite, Instructions, StagedWrite, Sums, SumsRead, UnitControl
from .isa import TABLE_ENTRIES, Drain, Unit
from .parameters import PARAMETER_BYTES, Parameters
from .primitives import BlockRam, WideRam, delayed
from .requantize import Requantizer

__all__ = ["IN_FLIGHT", "DrainUnit"]

#: DRAIN instructions whose sums have been requested but not all received, at most.
IN_FLIGHT = 4


class DrainUnit(wiring.Component):
    """Requantizes the oldest complete bank of sums into the staging buffer, a group of `drain_lanes` channels a cycle.

    One request of sums every `outputs` / `drain_lanes` cycles, also from one instruction of several cycles to the next: one is taken ahead. What an
    instruction's sums need is read as they arrive, whatever their latency (at least 3). `staged` follows `sums` after `latency` cycles.

    The token for COMPUTE (the bank is free) is posted a cycle after the last sum has arrived, the others a cycle after the last code was staged, as the instruction
    retires. `saturated` counts the codes clamped among those staged in the cycle before. Banks are drained alternately, beginning with bank 0 after reset.
    """

    #: Cycles from sums to the staged codes.
    latency = WideRam.latency + Requantizer.latency + BlockRam.latency + 1

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self._config = config
        super().__init__({
            "instruction": In(Instructions), "control": Out(UnitControl()),
            "parameter_write": In(BufferWrite(9, 2)), "residual_write": In(BufferWrite(10, 1)), "table_write": In(BufferWrite(exact_log2(TABLE_ENTRIES), 1)),
            "sums_read": Out(SumsRead()), "sums": In(Sums(config)), "staged": Out(StagedWrite(config)),
            "saturated": Out(range(config.drain_lanes + 1)),
        })

    def elaborate(self, _platform):
        m = Module()
        config = self._config
        lanes, groups = config.drain_lanes, config.outputs // config.drain_lanes
        part_bits = exact_log2(PLANE // lanes)  # of a group's number, which of a plane's groups it is; the bit above is the plane

        # Requests. An instruction rests in `request`, near what it sets; then its fields wait in `arriving` for its sums.
        m.submodules.arriving = arriving = Queue(Drain, IN_FLIGHT)
        taken, request = Signal(), Signal(Drain, reset_less=True)
        m.d.comb += self.instruction.ready.eq(~taken)
        with m.If(~taken):
            m.d.sync += [taken.eq(self.instruction.valid), request.eq(self.instruction.payload)]
        requesting, bank = Signal(), Signal()
        pixel = Signal(10)
        more = Signal(11)  # pixels after the present one, less one: its sign marks the last
        beat = Signal(range(max(groups, 2)))  # Verilog has no signals without bits
        requested = Signal()  # the last cycle of the last request
        accepted, begun, sent = Signal(), Signal(), Signal()
        m.d.sync += [begun.eq(accepted), sent.eq(begun)]
        # `arriving` may lie far away, with what its fields go to: they reach it two cycles after they are accepted (the register that a LUT sets lies beside it),
        # and its elements are counted here.
        waiting, room = Signal(range(IN_FLIGHT + 1)), Signal()
        m.d.sync += [
            waiting.eq(waiting + accepted - (arriving.o.valid & arriving.o.ready)),
            room.eq(waiting != IN_FLIGHT),  # a cycle late: none is accepted in the cycle after another
        ]
        if groups == 1:
            m.d.comb += requested.eq(requesting & more[-1])
        else:  # known a cycle ahead, for much follows from it
            m.d.sync += requested.eq(requesting & (beat == groups - 2) & more[-1])
        m.d.comb += [
            accepted.eq(taken & room & (~requesting | requested)),
            arriving.i.payload.eq(delayed(m, request)),
            arriving.i.valid.eq(sent),
            self.sums_read.valid.eq(requesting & (beat == 0)),
            self.sums_read.bank.eq(bank),
            self.sums_read.pixel.eq(pixel),
        ]
        with m.If(requesting):
            m.d.sync += beat.eq(Mux(beat == groups - 1, 0, beat + 1))
            with m.If(beat == groups - 1):
                m.d.sync += [pixel.eq(pixel + 1), more.eq(more - 1)]
        with m.If(requested):
            m.d.sync += [requesting.eq(0), bank.eq(~bank)]
        with m.If(accepted):
            m.d.sync += [taken.eq(0), requesting.eq(1), pixel.eq(0), more.eq(request.pixels - 2)]

        # Arrivals: counters run ahead to the next group to come.
        now, following = Signal(Drain), arriving.o.payload
        expecting = Signal()
        left, group = Signal(11), Signal.like(beat)  # `left` as `more` above
        staged_pixel, residual_pixel = Signal(10), Signal(10)
        first_word = Signal(9)
        last_group = Signal(init=groups == 1)
        ending = Signal()  # the next group is the last of all
        arrived = self.sums.valid & ending
        if groups == 1:
            m.d.comb += ending.eq(left[-1])
        with m.If(self.sums.valid):
            if groups > 1:  # known a group ahead, for much follows from it
                m.d.sync += [last_group.eq(group == groups - 2), ending.eq((group == groups - 2) & left[-1])]
            m.d.sync += group.eq(Mux(last_group, 0, group + 1))
            with m.If(last_group):
                m.d.sync += [left.eq(left - 1), staged_pixel.eq(staged_pixel + now.skip + 1), residual_pixel.eq(residual_pixel + 1)]
        m.d.comb += arriving.o.ready.eq(~expecting | arrived)
        with m.If(arriving.o.ready):
            m.d.sync += [
                expecting.eq(arriving.o.valid), now.eq(following), left.eq(following.pixels - 2),
                staged_pixel.eq(following.address), residual_pixel.eq(following.residual_address), first_word.eq(following.parameters),
            ]
        # What only later stages need is taken a cycle after, so that what decides it reaches few registers.
        turned, followed, settled = Signal(), Signal(Drain, reset_less=True), Signal(Drain, reset_less=True)
        m.d.sync += [turned.eq(arriving.o.ready), followed.eq(following)]
        with m.If(turned):
            m.d.sync += settled.eq(followed)

        # The buffers are read as the sums arrive, which wait for them.
        position = Signal(3)  # of the group in the staged pixel
        plane, part = position[part_bits], position[:part_bits]
        channel = Signal(range(config.outputs + PLANE))  # of the group in the parameter buffer, counted from its first word
        m.submodules.parameters = parameters = WideRam(width=8 * PARAMETER_BYTES, depth=config.parameter_words, lane_width=BEAT_BITS)
        m.submodules.residuals = residuals = WideRam(width=BEAT_BITS, depth=2 * config.stage_pixels)
        m.d.comb += [
            position.eq(now.group + group),
            channel.eq(lanes * (group + (now.group[0] if lanes == 2 else 0))),
            parameters.read_address.eq(first_word + (channel >> 2)),
            residuals.read_address.eq(Cat(plane, residual_pixel[: exact_log2(config.stage_pixels)])),
            parameters.write_address.eq(self.parameter_write.address), parameters.write_data.eq(self.parameter_write.data.replicate(4)),
            parameters.write_enable.eq(Mux(self.parameter_write.valid, 1 << self.parameter_write.lane, 0)),
            residuals.write_address.eq(Cat(self.residual_write.lane, self.residual_write.address[: exact_log2(config.stage_pixels)])),
            residuals.write_data.eq(self.residual_write.data), residuals.write_enable.eq(self.residual_write.valid),
        ]
        wait = WideRam.latency
        entry, part = delayed(m, channel[1], wait), delayed(m, part, wait)
        word = Parameters(parameters.read_data)
        residual = data.View(data.ArrayLayout(lanes * 8, PLANE // lanes), residuals.read_data)[part]
        constants = {
            "residual_zero_point": settled.residual_zero_point, "residual_multiplier": Mux(settled.residual, settled.residual_multiplier, 0),
            "residual_shift": settled.residual_shift, "zero_point": settled.zero_point, "low": settled.low, "high": settled.high, "leaky": settled.leaky,
        }
        constants = {name: delayed(m, value, wait - 1) for name, value in constants.items()}
        requantizers = [Requantizer(multipliers=config.drain_multipliers) for _ in range(lanes)]
        for k, lane in enumerate(requantizers):
            m.submodules[f"lane{k}"] = lane
            index = k if lanes == 4 else Cat(k, entry)
            m.d.comb += [
                lane.sum.eq(delayed(m, self.sums.data[k], wait)),
                lane.bias.eq(word.bias[index]), lane.multiplier.eq(word.multiplier[index]), lane.shift.eq(word.shift[index] + 16),
                lane.negative.eq(word.negative[index]),
                lane.residual.eq(residual.word_select(k, 8)),
                *(getattr(lane, name).eq(value) for name, value in constants.items()),
            ]

        # Every lane has a copy of the tables.
        look_up, page = (delayed(m, value, WideRam.latency + Requantizer.latency - 1) for value in (settled.table, settled.page))
        looked_up = delayed(m, look_up, BlockRam.latency)
        write = {name: delayed(m, getattr(self.table_write, name), name=f"table_{name}") for name in ("valid", "address", "data")}
        for k, lane in enumerate(requantizers):
            m.submodules[f"table{k}"] = table = BlockRam(8, TABLE_ENTRIES)
            m.d.comb += [
                table.write_address.eq(write["address"]), table.write_data.eq(write["data"]), table.write_enable.eq(write["valid"]),
                table.read_address.eq(Cat(lane.code, page)),
            ]
            m.d.sync += self.staged.data[k].eq(Mux(looked_up, table.read_data, delayed(m, lane.code, BlockRam.latency)))

        # What is staged where, and the end of an instruction, travel beside the lanes.
        valid, retired = (delayed(m, value, self.latency, reset=True) for value in (self.sums.valid, arrived))
        post = delayed(m, settled.header.post, self.latency - 1)
        m.d.comb += [
            self.staged.valid.eq(valid),
            self.staged.group.eq(delayed(m, position, self.latency)),
            self.staged.pixel.eq(delayed(m, staged_pixel, self.latency)),
        ]
        compute = 1 << Unit.COMPUTE
        clamped = delayed(m, Cat(lane.clamped for lane in requantizers), BlockRam.latency + 1)
        m.d.sync += [
            self.control.post.eq(Mux(retired, post & ~compute, 0) | Mux(arrived, now.header.post & compute, 0)),
            self.control.retired.eq(retired),
            self.saturated.eq(Mux(valid, sum(clamped), 0)),
        ]
        unfinished = Signal(6)  # instructions begun and not retired: each has at least one group, so the pipeline's length bounds them
        m.d.sync += unfinished.eq(unfinished + begun - retired)
        m.d.comb += self.control.busy.eq(taken | begun | unfinished.any())
        return m
