"""The array: weights stay, activations stream, sums lie in block RAM.

`outputs` / 2 row pairs × `inputs` columns of packed multipliers. Weights, activations and all control hop from row pair to row pair, one cycle
each, so that no net crosses the array. A row pair adds up its columns in a pipelined tree and adds the result to the sums of its two outputs, in
one of two banks; from the other bank sums are drained.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import AcceleratorConfig
from .interfaces import Sums, SumsRead
from .mac import PackedMultiplier, PackedWeights
from .primitives import BlockRam, delayed

__all__ = ["Array", "PixelControl", "WeightLoad"]


class PixelControl(data.Struct):
    """What goes with a pixel into the array."""

    valid: unsigned(1)
    #: The first pixel of a step: takes the weights loaded last; pixels are counted from here.
    first: unsigned(1)
    #: Its products replace the sums instead of being added to them.
    clear: unsigned(1)
    #: Where its sums lie.
    bank: unsigned(1)


class WeightLoad(data.Struct):
    """What goes with a word of weights into the array."""

    valid: unsigned(1)
    #: Number of the word in its block.
    word: unsigned(4)


def _tree_levels(config):
    return exact_log2(config.inputs)


class _RowPair(wiring.Component):
    """Two outputs of the array: sums[q] = Σ_i weight[q][i] · activation[i], `latency` cycles after the activations.

    The weights in use are replaced by the loaded ones (`swap`) from the activations of the next cycle on. `load` leads its word of weights by two cycles.
    What has come goes on to the next row pair a cycle later.
    """

    def __init__(self, config: AcceleratorConfig, index: int):
        self._config, self._index = config, index
        self._columns = config.inputs
        members = {
            "activations": data.ArrayLayout(signed(8), self._columns), "swap": unsigned(1),
            "load": WeightLoad, "weights": data.ArrayLayout(PackedWeights, self._columns // 2),
        }
        super().__init__(
            {name: In(shape) for name, shape in members.items()} | {f"{name}_on": Out(shape) for name, shape in members.items()}
            | {"sums": Out(data.ArrayLayout(signed(16 + _tree_levels(config)), 2))}
        )

    @property
    def latency(self) -> int:
        return 1 + PackedMultiplier.latency + _tree_levels(self._config)

    def elaborate(self, _platform):
        m = Module()
        for name in ("swap", "load", "weights"):
            m.d.comb += getattr(self, f"{name}_on").eq(delayed(m, getattr(self, name), name=name))
        mine = [self.load.valid & (self.load.word == 2 * self._index + half) for half in range(2)]
        captures = [delayed(m, hit, 2, name="capture") for hit in mine]

        products = [[], []]
        for column in range(self._columns):
            loaded, weights = (Signal(PackedWeights, name=f"{name}{column}", reset_less=True) for name in ("loaded", "weights"))
            with m.If(captures[column % 2]):
                m.d.sync += loaded.eq(self.weights[column // 2])
            with m.If(self.swap_on):
                m.d.sync += weights.eq(loaded)
            activation = delayed(m, self.activations[column], name=f"activation{column}")
            m.submodules[f"column{column}"] = multiplier = PackedMultiplier()
            m.d.comb += [self.activations_on[column].eq(activation), multiplier.activation.eq(activation), multiplier.weights.eq(weights)]
            for q in range(2):
                products[q].append(multiplier.products[q])
        for q in range(2):
            level = products[q]
            while len(level) > 1:
                level = [delayed(m, a + b, name=f"tree{q}_{len(level)}") for a, b in zip(level[::2], level[1::2])]
            m.d.comb += self.sums[q].eq(level[0])
        return m


def _accumulation_layout(config):
    """What goes with sums to the rows, each field in the cycle in which a row needs it."""
    pixel = exact_log2(config.tile_pixels)
    return data.StructLayout({
        "read": data.ArrayLayout(pixel, 2),  # pixel read from each bank
        "clear": 1, "bank": 1,               # one cycle behind the read: replace the sum; the bank accumulated
        "drained_bank": 1,                   # one cycle behind
        "write": pixel, "write_bank": 2,     # four cycles behind: an enable for each bank
    })


class _Accumulator(wiring.Component):
    """Both banks of the sums of one output. `sum` comes three cycles behind the read, `drained` four."""

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__({
            "control": In(_accumulation_layout(config)), "sum": In(signed(16 + _tree_levels(config))), "drained": Out(signed(32)),
        })

    def elaborate(self, _platform):
        m = Module()
        control = self.control
        clear, bank, drained_bank = (delayed(m, control[name], name=name) for name in ("clear", "bank", "drained_bank"))
        old, new = (Signal(signed(32), name=name, reset_less=True) for name in ("old", "new"))
        banks = []
        for k in range(2):
            m.submodules[f"bank{k}"] = ram = BlockRam(32, self._config.tile_pixels)
            m.d.comb += [
                ram.read_address.eq(control.read[k]),
                ram.write_address.eq(control.write), ram.write_data.eq(new), ram.write_enable.eq(control.write_bank[k]),
            ]
            banks.append(ram.read_data)
        m.d.sync += [old.eq(Mux(bank, banks[1], banks[0])), new.eq(old + self.sum)]
        with m.If(clear):
            m.d.sync += old.eq(0)
        m.d.comb += self.drained.eq(delayed(m, Mux(drained_bank, banks[1], banks[0]).as_signed(), name="drained"))
        return m


class Array(wiring.Component):
    """sums[bank][pixel] (+)= weights @ activations, a pixel a cycle, and out with the sums of the other bank.

    `control` comes one cycle before its activations. Nothing is ever refused. Rules for who drives it:

    - A block of weights is `outputs` words: word k = 2·r + h holds, at byte 2·j + q, the weight of output 2·r + q and input 2·j + h. It is used from the
      step whose first pixel's `control` comes two cycles after its last word or later, and its first word may come from one cycle before the first
      `control` of the step that uses the previous block.
    - A pixel of the same bank returns after 16 cycles at the earliest.
    - Sums may be requested from `write_latency` cycles after the `control` of their last pixel on, one pixel every `outputs` / `drain_lanes` cycles;
      nothing is accumulated in that bank in the meantime.

    `sums` follow a request after `drain_latency` cycles, `outputs` / `drain_lanes` cycles in sequence.
    """

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self._config = config
        self._rows = [_RowPair(config, index) for index in range(config.outputs // 2)]
        # The sums of a pixel reach the first row's accumulator at this stage, counted from its `control`.
        self._sum_stage = 1 + self._rows[0].latency
        self._groups = config.outputs // config.drain_lanes
        self._rows_per_group = config.drain_lanes // 2
        super().__init__({
            "activations": In(data.ArrayLayout(signed(8), config.inputs)), "control": In(PixelControl),
            "weights": In(data.ArrayLayout(signed(8), config.inputs)), "load": In(WeightLoad),
            "sums_read": In(SumsRead()), "sums": Out(Sums(config)),
        })

    @property
    def write_latency(self) -> int:
        """Cycles from a pixel's `control` to the first in which its sums are written."""
        return self._sum_stage + 2

    @property
    def drain_latency(self) -> int:
        """Cycles from a request to the first of its sums."""
        return 4 + self._rows_per_group + self._groups

    def elaborate(self, _platform):
        m = Module()
        self._connect_rows(m)
        controls = self._accumulation_controls(m)
        drained = []
        for r, (row, (control, _)) in enumerate(zip(self._rows, controls)):
            for q in range(2):
                m.submodules[f"sums{2 * r + q}"] = accumulator = _Accumulator(self._config)
                m.d.comb += [accumulator.control.eq(control), accumulator.sum.eq(row.sums[q])]
                drained.append(accumulator.drained)
        self._drain(m, drained, [valid for _, valid in controls])
        return m

    def _connect_rows(self, m):
        weights = delayed(m, self.weights, name="weights")
        packed = Cat(PackedWeights.pack(low, high) for low, high in zip(list(weights)[::2], list(weights)[1::2]))
        m.submodules.row0 = first = self._rows[0]
        m.d.comb += [
            first.activations.eq(self.activations), first.swap.eq(self.control.valid & self.control.first),
            first.load.eq(self.load), first.weights.eq(delayed(m, packed, name="packed")),
        ]
        for index, (row, following) in enumerate(zip(self._rows, self._rows[1:]), 1):
            m.submodules[f"row{index}"] = following
            m.d.comb += [getattr(following, name).eq(getattr(row, f"{name}_on")) for name in ("activations", "swap", "load", "weights")]

    def _accumulation_controls(self, m):
        """For each row pair its accumulators' control, and whether its drained sums are there."""
        # Pixels are counted just before their number is needed: only four bits are delayed so far.
        control = delayed(m, self.control, self._sum_stage - 5, name="control")
        pixel = Signal(range(self._config.tile_pixels), reset_less=True)
        m.d.sync += pixel.eq(Mux(control.first, 0, pixel + 1))
        now = delayed(m, control, name="control")
        request_valid = delayed(m, self.sums_read.valid, reset=True)
        request_bank, request_pixel = delayed(m, self.sums_read.bank), delayed(m, self.sums_read.pixel[: len(pixel)])

        layout = _accumulation_layout(self._config)
        accumulated = [now.valid & (now.bank == k) for k in range(2)]
        stages = Signal(layout)
        m.d.comb += [stages.read[k].eq(delayed(m, Mux(accumulated[k], pixel, request_pixel), name=f"read{k}")) for k in range(2)]
        m.d.comb += [
            stages.clear.eq(delayed(m, now.clear, 2)), stages.bank.eq(delayed(m, now.bank, 2)),
            stages.write.eq(delayed(m, pixel, 5)), stages.write_bank.eq(delayed(m, Cat(accumulated), 5)),
            stages.drained_bank.eq(delayed(m, request_bank, 2)),
        ]
        valid = delayed(m, request_valid, 4, reset=True)
        controls = [(stages, valid)]
        while len(controls) < len(self._rows):
            stages, valid = delayed(m, stages, name="hop"), delayed(m, valid, reset=True)
            controls.append((stages, valid))
        return controls

    def _drain(self, m, drained, valids):
        """Groups of `drain_lanes` sums into a chain of registers from the first group to the last, whose end is the output."""
        lanes, rows = self._config.drain_lanes, self._rows_per_group
        chain, chain_valid = None, None
        for group in range(self._groups):
            # Within a group the earlier rows wait for the last. With one row pair in each, groups arrive as fast as the chain moves, and wait to come out one by one.
            wait = group * (2 - rows)
            own = Cat(delayed(m, drained[group * lanes + k], rows - 1 - k // 2 + wait) for k in range(lanes))
            valid = delayed(m, valids[group * rows + rows - 1], wait, reset=True)
            if chain is not None:
                own = Mux(valid, own, chain)
                valid = valid | chain_valid
            chain, chain_valid = delayed(m, own, name=f"chain{group}"), delayed(m, valid, reset=True)
        m.d.comb += [self.sums.data.eq(chain), self.sums.valid.eq(chain_valid)]
