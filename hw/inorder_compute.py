"""COMPUTE of the in-order engine: scratchpad × weights → sums."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import AcceleratorConfig
from .ice40 import ByteMultiplier
from .inorder_unit import ADDRESS_BITS, InOrderUnit
from .isa import Compute, ComputeStrides, ComputeWindow, Opcode
from .primitives import delayed

__all__ = ["InOrderCompute"]


class InOrderCompute(InOrderUnit):
    """A step of P pixels takes P + 2 cycles, in the first two of which its weights are read; a tile's first step begins in the cycle after `start`.

    A tile is `done` with its last pixel, whose sums are in their bank five cycles later. `sums` follow `sums_pixel`, of the bank `sums_bank`, in the next cycle.
    A setup instruction is `done` as it starts.
    """

    def __init__(self, config: AcceleratorConfig):
        super().__init__(config, sums_bank=In(1), sums_pixel=In(range(config.tile_pixels)), sums=Out(data.ArrayLayout(signed(32), 2)), active=Out(1))

    def elaborate(self, _platform):
        m = Module()
        config, buffers, memory = self._config, self._buffers, self.memory
        compute, new_strides, new_window = (struct(self.instruction[: struct.as_shape().size]) for struct in (Compute, ComputeStrides, ComputeWindow))
        strides, window = Signal(ComputeStrides, reset_less=True), Signal(ComputeWindow, reset_less=True)

        # Loops, the innermost first; those after `image` make steps.
        loops = {"column": 10, "row": 10, "image": 10, "kernel_column": 5, "kernel_row": 5, "channels": 9}
        counts = {name: Signal(bits, name=f"count_{name}") for name, bits in loops.items()}
        last = {name: count == getattr(compute if name == "channels" else window, f"last_{name}") for name, count in counts.items()}
        stepping = Cat(last[name] for name in ("column", "row", "image")).all()  # with this pixel a step ends
        address, weights = Signal(ADDRESS_BITS), Signal(exact_log2(config.weight_words))
        origin_x, origin_y, x, y = (Signal(signed(13), name=name) for name in ("origin_x", "origin_y", "x", "y"))
        pixel, bank, fresh = Signal(exact_log2(config.tile_pixels)), Signal(), Signal()
        reading = Signal(2)  # the first, the second word of weights

        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [
                    address.eq(buffers.maps + compute.address), weights.eq(compute.weights), origin_x.eq(compute.x), origin_y.eq(compute.y),
                    fresh.eq(compute.clear), *(count.eq(0) for count in counts.values()),
                ]
                with m.If(self.start), m.Switch(compute.header.opcode):
                    with m.Case(Opcode.COMPUTE_STRIDES):
                        m.d.sync += strides.eq(new_strides)
                        m.d.comb += self.done.eq(1)
                    with m.Case(Opcode.COMPUTE_WINDOW):
                        m.d.sync += window.eq(new_window)
                        m.d.comb += self.done.eq(1)
                    with m.Default():
                        m.next = "Even"
            for state, following in ("Even", "Odd"), ("Odd", "Pixels"):
                with m.State(state):
                    m.d.comb += [memory.valid.eq(1), memory.address.eq(buffers.weights | weights), reading.eq(1 if state == "Even" else 2)]
                    m.d.sync += [weights.eq(weights + 1), x.eq(origin_x), y.eq(origin_y), pixel.eq(0)]
                    m.next = following
            with m.State("Pixels"):
                m.d.comb += [memory.valid.eq(1), memory.address.eq(address), self.active.eq(1)]
                m.d.sync += pixel.eq(pixel + 1)
                with m.If(~last["column"]):
                    m.d.sync += x.eq(x + window.stride_x)
                with m.Else():
                    m.d.sync += [x.eq(origin_x), y.eq(Mux(last["row"], origin_y, y + window.stride_y))]
                self._count(m, counts, last, strides, address)
                with m.If(stepping):
                    with m.If(~last["kernel_column"]):
                        m.d.sync += origin_x.eq(origin_x + window.dilation_x)
                    with m.Else():
                        m.d.sync += [origin_x.eq(compute.x), origin_y.eq(Mux(last["kernel_row"], compute.y, origin_y + window.dilation_y))]
                    m.d.sync += fresh.eq(0)
                    m.next = "Even"
                    with m.If(Cat(last.values()).all()):
                        m.d.comb += self.done.eq(1)
                        m.d.sync += bank.eq(bank ^ compute.complete)
                        m.next = "Idle"

        # As unsigned numbers, negative coordinates are beyond every bound.
        inside = delayed(m, (x.as_unsigned() < window.width) & (y.as_unsigned() < window.height))
        totals = self._multiply(m, delayed(m, reading, reset=True), inside, window.zero_point)
        self._accumulate(m, totals, *(delayed(m, value, 4, reset=True) for value in (self.active, Cat(pixel, bank), fresh)))
        return m

    def _count(self, m, counts, last, strides, address):
        """To the next pixel: the innermost loop that has not ended advances, those within it begin again."""
        names = list(counts)
        for position, name in enumerate(names):
            with (m.Elif if position else m.If)(~last[name]):
                m.d.sync += [address.eq(address + getattr(strides, name)), counts[name].eq(counts[name] + 1), *(counts[inner].eq(0) for inner in names[:position])]

    def _multiply(self, m, load, inside, zero_point):
        """For each output the sum of the products of the beat that is read, four cycles later."""
        beat, pairs = self.memory.read_data, []
        for k in range(0, 8, 2):
            even, odd = cells = ByteMultiplier(registered=False), ByteMultiplier(registered=True)
            for half, cell in enumerate(cells):
                m.submodules[f"multiplier{k + half}"] = cell
                m.d.comb += [
                    cell.a.eq(Mux(inside, beat.word_select(k + half, 8), zero_point)),
                    cell.load.eq(load[half]), cell.weights.eq(beat.word_select(k // 2, 16)),
                ]
            m.d.comb += odd.addends.eq(even.sums)  # two products fit sixteen bits
            pairs.append(odd.sums)
        return [delayed(m, (pairs[0][output] + pairs[1][output]) + (pairs[2][output] + pairs[3][output])) for output in range(2)]

    def _accumulate(self, m, totals, valid, place, fresh):
        """Totals into the sums. `valid`, `place` and `fresh` come a cycle ahead of them."""
        m.submodules.sums = memory = Memory(shape=64, depth=2 * self._config.tile_pixels, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            read.addr.eq(Mux(valid, place, Cat(self.sums_pixel, self.sums_bank))), self.sums.eq(read.data),
            write.en.eq(delayed(m, valid, reset=True)), write.addr.eq(delayed(m, place)),
            write.data.eq(Cat((Mux(delayed(m, fresh), 0, self.sums[k]) + total)[:32] for k, total in enumerate(totals))),
        ]

