"""COMPUTE: scratchpad × weights → sums."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .array import Array, PixelControl, WeightLoad
from .buffers import MapBuffer, WeightBuffer
from .config import AcceleratorConfig
from .interfaces import BufferWrite, Instructions, Sums, SumsRead, UnitControl
from .isa import Compute, ComputeStrides, ComputeWindow, Opcode, Unit
from .primitives import delayed

__all__ = ["ComputeUnit", "Sequencer"]

#: Loops of a tile from the innermost on: name in the instructions, bits of `last_…`.
_LOOPS = {"column": 10, "row": 10, "image": 10, "kernel_column": 5, "kernel_row": 5, "channels": 9}
_STEP = 3  # the loops from here on make steps, those before them a step's pixels


class Sequencer(wiring.Component):
    """Runs the loops of tiles: a pixel a cycle, without a pause from a tile's first to its last.

    While a tile runs, setup instructions and the next COMPUTE are accepted, and the next tile's first weights loaded; it follows after one idle cycle.
    From idle, a tile's first pixel is issued max(`outputs`, 4) + 2 cycles after its instruction was taken.

    A pixel is issued (`active`) `latency` cycles before its `address`, `inside` and `pixel`; `zero_point` goes with them. A block's first word of
    weights is addressed two cycles after the issue of the first pixel of the step before; `load` goes with the address. Of a `diagonal` block all words are the
    same one, of which only the byte `lane` counts.

    written_delay: cycles from an `address` to the first in which the pixel's sums are written. With a tile's last pixel the token for DRAIN is posted then,
    and the tile retires; the tokens for WEIGHT and MAP are posted a cycle after its last address. A setup instruction retires two cycles after it was taken.
    """

    latency = 3

    def __init__(self, config: AcceleratorConfig, *, written_delay: int):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        if not (isinstance(written_delay, int) and written_delay >= 2):
            raise ValueError(f"written_delay must be an integer of at least 2, not {written_delay!r}")
        self._config, self._written_delay = config, written_delay
        super().__init__({
            "instruction": In(Instructions), "control": Out(UnitControl()), "active": Out(1),
            "address": Out(14), "inside": Out(1), "pixel": Out(PixelControl), "zero_point": Out(signed(8)),
            "weight_address": Out(12), "load": Out(WeightLoad), "diagonal": Out(1), "lane": Out(4),
        })

    def elaborate(self, _platform):
        m = Module()
        # Instructions are taken into `next_…`; at the start of its tile a COMPUTE moves on, with the setup that holds for it.
        names = {"strides": ComputeStrides, "window": ComputeWindow, "compute": Compute}
        upcoming = {name: Signal(struct, name=f"next_{name}", reset_less=True) for name, struct in names.items()}
        current = {name: Signal(struct, name=name, reset_less=True) for name, struct in names.items()}
        pending = Signal()  # a COMPUTE has been taken and not yet started
        start = Signal()    # the cycle before a tile's first pixel
        with m.If(start):
            m.d.sync += [current[name].eq(upcoming[name]) for name in names] + [pending.eq(0)]

        running, first, first_of_step = Signal(), Signal(), Signal()
        last_step, end, advances = self._loops(m, upcoming, start, running, first_of_step)
        m.d.sync += first.eq(start)
        with m.If(start):
            m.d.sync += running.eq(1)
        with m.Elif(end):
            m.d.sync += running.eq(0)
        loaded = self._weights(m, upcoming["compute"], pending, start, first_of_step, last_step)
        m.d.sync += start.eq(pending & loaded & (~running | end) & ~start)
        m.d.comb += self.active.eq(running)

        self._addresses(m, current, first, advances)
        bank, first_step = Signal(), Signal(reset_less=True)
        with m.If(end):
            m.d.sync += bank.eq(bank ^ current["compute"].complete)
        with m.If(start):
            m.d.sync += first_step.eq(1)
        with m.Elif(first_of_step & ~first):
            m.d.sync += first_step.eq(0)
        issued = Signal(PixelControl)
        m.d.comb += [
            issued.valid.eq(running), issued.first.eq(first_of_step), issued.bank.eq(bank),
            issued.clear.eq(current["compute"].clear & first_step & (first | ~first_of_step)),
            self.pixel.eq(delayed(m, issued, self.latency, reset=True, name="pixel")),
        ]
        self._instructions(m, upcoming, current["compute"].header.post, pending, start | running, end)
        return m

    def _loops(self, m, upcoming, start, running, first_of_step):
        """Counters of the loops. Returns: this is the last step; this is the last pixel; the loop that has advanced to reach the present pixel, one bit each."""
        lasts, advances, carry = [], [], running
        for name, bits in _LOOPS.items():
            # A counter holds what is left minus one, so that its sign marks the last round.
            count = getattr(upcoming["compute" if name == "channels" else "window"], f"last_{name}")
            left, reload, initial = (Signal(bits + 1, name=f"{name}_{what}", reset_less=True) for what in ("left", "reload", "initial"))
            last = left[-1]
            m.d.comb += initial.eq(count - 1)
            with m.If(start):
                m.d.sync += [left.eq(initial), reload.eq(initial)]
            with m.Elif(carry):
                m.d.sync += left.eq(Mux(last, reload, left - 1))
            lasts.append(last)
            advances.append(carry & ~last)
            carry = carry & last
        run_ends = Cat(running, lasts[:_STEP]).all()
        m.d.sync += first_of_step.eq(start | run_ends & ~carry)
        return Cat(lasts[_STEP:]).all(), carry, delayed(m, Cat(advances), name="advance")

    def _weights(self, m, upcoming, pending, start, first_of_step, last_step):
        """Loads a block while the previous one is in use. Returns: the pending tile's first block will have come when its first pixel does."""
        vacant = Signal(init=1)  # no later step of a started tile waits for the next block
        loading, first_block, loaded = Signal(), Signal(), Signal()
        word, lane = (Signal(4, name=name, reset_less=True) for name in ("word", "lane"))
        address, diagonal, first_lane = Signal(12, reset_less=True), Signal(reset_less=True), Signal(4, reset_less=True)
        last_word = self._config.block_words - 1
        m.d.sync += [word.eq(word + 1), lane.eq(lane + 1)]
        with m.If(loading):
            m.d.sync += address.eq(address + (~diagonal | (word == last_word)))
            with m.If(word == last_word):
                m.d.sync += loading.eq(0)
        with m.If(first_of_step & last_step):
            m.d.sync += vacant.eq(1)
        with m.If(pending & vacant):
            m.d.sync += [vacant.eq(0), first_block.eq(1), address.eq(upcoming.weights), diagonal.eq(upcoming.diagonal), first_lane.eq(upcoming.lane)]
            m.d.sync += [loading.eq(1), word.eq(0), lane.eq(upcoming.lane)]
        with m.Elif(first_of_step & ~last_step):
            m.d.sync += [loading.eq(1), word.eq(0), lane.eq(first_lane)]
        # Three words and the pixel are still to come.
        with m.If(first_block & loading & (word == max(last_word - 3, 0))):
            m.d.sync += loaded.eq(1)
        with m.If(start):
            m.d.sync += [loaded.eq(0), first_block.eq(0)]
        load = Signal(WeightLoad)
        m.d.comb += [
            load.valid.eq(loading), load.word.eq(word),
            self.load.eq(delayed(m, load, reset=True, name="load")), self.weight_address.eq(delayed(m, address, name="weight_address")),
            self.diagonal.eq(delayed(m, diagonal, name="diagonal")), self.lane.eq(delayed(m, lane, name="lane")),
        ]
        return loaded

    def _addresses(self, m, current, first, advances):
        """Address and coordinates of the pixel issued three cycles ago."""
        strides, window, compute = current["strides"], current["window"], current["compute"]
        column, row, _, kernel_column, kernel_row, channels = advances
        increment = Signal(14, reset_less=True)
        m.d.sync += increment.eq(_any(getattr(strides, name) & bit.replicate(14) for bit, name in zip(advances, _LOOPS)))
        first_1, first_2 = delayed(m, first), delayed(m, first, 2)
        address = Signal(14, reset_less=True)
        m.d.sync += address.eq(Mux(first_1, compute.address, address + increment))
        m.d.comb += self.address.eq(delayed(m, address, name="address"))

        # Coordinates of the step's first pixel, then those of the pixel itself. 13 bits: pixels of a window reach beyond the map by less than a kernel.
        origin_x, origin_y, x, y = (Signal(signed(13), name=name, reset_less=True) for name in ("origin_x", "origin_y", "x", "y"))
        with m.If(first | kernel_row | channels):
            m.d.sync += origin_x.eq(compute.x)
        with m.Elif(kernel_column):
            m.d.sync += origin_x.eq(origin_x + window.dilation_x)
        with m.If(first | channels):
            m.d.sync += origin_y.eq(compute.y)
        with m.Elif(kernel_row):
            m.d.sync += origin_y.eq(origin_y + window.dilation_y)
        column_1, row_1 = delayed(m, column), delayed(m, row)
        m.d.sync += x.eq(Mux(column_1, x + window.stride_x, origin_x))
        m.d.sync += y.eq(Mux(column_1, y, Mux(row_1, y + window.stride_y, origin_y)))

        # The next tile may start before the bounds of this one have been used.
        width, height = (Signal(11, name=name, reset_less=True) for name in ("width", "height"))
        with m.If(first_1):
            m.d.sync += [width.eq(window.width), height.eq(window.height)]
        with m.If(first_2):
            m.d.sync += self.zero_point.eq(window.zero_point)
        # As unsigned numbers, negative coordinates are beyond every bound.
        inside = [delayed(m, value.as_unsigned() < bound, name="inside") for value, bound in ((x, width), (y, height))]
        m.d.comb += self.inside.eq(inside[0] & inside[1])

    def _instructions(self, m, upcoming, post, pending, busy, end):
        """Takes instructions, posts tokens, reports what has retired."""
        at_read, at_write = 1 << Unit.WEIGHT | 1 << Unit.MAP, 1 << Unit.DRAIN
        read = delayed(m, Mux(end, post & at_read, 0), self.latency, reset=True, name="read")
        flight = Signal(self.latency + self._written_delay - 1)  # tiles whose last pixel has been issued, by age
        drain = Signal.like(flight)
        m.d.sync += [flight.eq(Cat(end, flight)), drain.eq(Cat(end & (post & at_write).any(), drain))]
        written = flight[-1]

        # An instruction rests in `word`, so that what it sets is enabled almost straight from registers.
        taken, word = Signal(), Signal(ComputeWindow.as_shape().size, reset_less=True)
        opcodes = {"strides": Opcode.COMPUTE_STRIDES, "window": Opcode.COMPUTE_WINDOW, "compute": Opcode.COMPUTE}
        kinds = {name: Signal(name=f"is_{name}", reset_less=True) for name in opcodes}
        m.d.comb += self.instruction.ready.eq(~taken)
        with m.If(~taken):
            m.d.sync += [taken.eq(self.instruction.valid), word.eq(self.instruction.payload)]
            for name, opcode in opcodes.items():
                m.d.sync += kinds[name].eq(ComputeWindow(self.instruction.payload[: len(word)]).header.opcode == opcode)
        for name, kind in kinds.items():
            with m.If(kind & taken & ~pending):
                m.d.sync += upcoming[name].eq(word)

        # No token nor retirement of a tile may coincide with one of a setup instruction.
        execute = taken & ~pending & ~read.any() & ~written
        with m.If(execute):
            m.d.sync += [taken.eq(0), pending.eq(kinds["compute"])]
        setup = execute & ~kinds["compute"]
        m.d.sync += [
            self.control.post.eq(read | Mux(drain[-1], at_write, 0) | Mux(setup, ComputeWindow(word).header.post, 0)),
            self.control.retired.eq(setup | written),
        ]
        m.d.comb += self.control.busy.eq(taken | pending | busy | flight.any() | self.control.retired)


def _any(words):
    first, *rest = words
    for word in rest:
        first = first | word
    return first


class ComputeUnit(wiring.Component):
    """Executes COMPUTE instructions: sequencer, feature map scratchpad, weight buffer and array. `active`: a pixel is issued in this cycle.

    A tile of R steps of P pixels (at least 16) takes R · P cycles, one more if it follows another, and is complete `latency` cycles after its last pixel.
    `sums` follow `sums_read` after `drain_latency` cycles; they may be asked for as the token for DRAIN is posted. As the tokens for WEIGHT and MAP are
    posted, a write into a buffer can no longer reach the tile.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self._array, self._maps, self._weights = Array(config), MapBuffer(config), WeightBuffer(config)
        # An activation comes one cycle behind its control.
        self._control_delay = self._maps.latency - 1
        self._sequencer = Sequencer(config, written_delay=self._control_delay + self._array.write_latency)
        super().__init__({
            "instruction": In(Instructions), "control": Out(UnitControl()), "active": Out(1),
            "map_write": In(BufferWrite(14, 1)), "weight_write": In(BufferWrite(12, 1)),
            "sums_read": In(SumsRead()), "sums": Out(Sums(config)),
        })

    @property
    def latency(self) -> int:
        """Cycles from a pixel's issue to the token for DRAIN, if it is the tile's last."""
        return Sequencer.latency + self._control_delay + self._array.write_latency

    @property
    def drain_latency(self) -> int:
        """Cycles from a request to the first of its sums."""
        return self._array.drain_latency

    def elaborate(self, _platform):
        m = Module()
        m.submodules.sequencer, m.submodules.maps, m.submodules.weights, m.submodules.array = self._sequencer, self._maps, self._weights, self._array
        sequencer, maps, weights, array = self._sequencer, self._maps, self._weights, self._array
        # A block's first word, addressed one cycle before the first pixel of the step before, reaches the array one cycle before that pixel's control.
        assert weights.latency == self._control_delay
        wiring.connect(m, wiring.flipped(self.instruction), sequencer.instruction)
        wiring.connect(m, wiring.flipped(self.control), sequencer.control)
        wiring.connect(m, wiring.flipped(self.map_write), maps.write)
        wiring.connect(m, wiring.flipped(self.weight_write), weights.write)
        wiring.connect(m, wiring.flipped(self.sums_read), array.sums_read)
        wiring.connect(m, wiring.flipped(self.sums), array.sums)
        # Which bytes of a word count is known a cycle before it comes, so that each is masked by a register.
        diagonal, lane = (delayed(m, value, weights.latency - 1) for value in (sequencer.diagonal, sequencer.lane))
        counts = Signal(self._config.inputs, reset_less=True)
        m.d.sync += counts.eq(Cat(~diagonal | (lane == byte) for byte in range(self._config.inputs)))
        m.d.comb += [
            self.active.eq(sequencer.active),
            maps.address.eq(sequencer.address), maps.inside.eq(sequencer.inside), maps.zero_point.eq(sequencer.zero_point),
            weights.address.eq(sequencer.weight_address),
            array.activations.eq(maps.word), array.control.eq(delayed(m, sequencer.pixel, self._control_delay, reset=True)),
            *(array.weights[byte].eq(weights.word[byte] & counts[byte].replicate(8)) for byte in range(self._config.inputs)),
            array.load.eq(delayed(m, sequencer.load, weights.latency, reset=True)),
        ]
        return m
