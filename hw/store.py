"""STORE: output staging → max pooling → memory."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import PLANE, AcceleratorConfig
from .fifo import Queue
from .interfaces import BEAT_BITS, Instructions, Run, StagedWrite, UnitControl
from .isa import Base, Header, Opcode, Store, StoreWindow, Unit
from .primitives import WideRam, delayed

__all__ = ["QUEUED_BEATS", "SerialProduct", "StoreUnit"]

#: Beats that have been read or are being read and that the memory has not taken yet, at most.
QUEUED_BEATS = 16


class SerialProduct(wiring.Component):
    """product = a · b modulo 2^width. `start` takes a and b; `done` as many cycles later as b has digits, at most `width`, and one more."""

    def __init__(self, width: int):
        super().__init__({"start": In(1), "a": In(width), "b": In(width), "product": Out(width), "done": Out(1)})

    def elaborate(self, _platform):
        m = Module()
        a, b = Signal.like(self.a), Signal.like(self.b)
        with m.If(self.start):
            m.d.sync += [a.eq(self.a), b.eq(self.b), self.product.eq(0)]
        with m.Else():
            m.d.sync += [a.eq(a << 1), b.eq(b >> 1)]
            with m.If(b[0]):
                m.d.sync += self.product.eq(self.product + a)
        m.d.comb += self.done.eq(~b.any())
        return m


class StoreUnit(wiring.Component):
    """Stores staged pixels, or maxima over windows of them, plane after plane and row after row.

    Reads a pixel of a window a cycle, those outside the bounds too, so with a 1×1 window `beats` carries one beat a cycle, the first `latency` cycles after its
    instruction was taken; 2 cycles lie between two STORE instructions. STORE_WINDOW takes up to 12 cycles. One instruction is taken ahead.
    `runs` has one run a plane where rows follow each other in memory (`row_stride` = `columns`), else one a row. Run k + 1 follows 2 cycles after run k was taken;
    neither stream waits for the other. `Store.offset` is that of the first stored plane, whichever that is.

    The token for DRAIN is posted two cycles after the last staged word was read. A STORE that posts to MAP or WEIGHT holds up the next until its beats are in memory,
    one that does not retires as soon as its runs are taken. `busy` until all is in memory.
    Tokens of a STORE_WINDOW are posted when it retires.
    A STORE before the first STORE_WINDOW, and a window without a pixel inside the bounds, store undefined values.
    """

    #: Cycles from a STORE to its first beat, for a 1×1 window.
    latency = WideRam.latency + 5

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self._config = config
        super().__init__({
            "instruction": In(Instructions), "control": Out(UnitControl()), "staged": In(StagedWrite(config)), "bases": In(data.ArrayLayout(32, len(Base))),
            "runs": Out(stream.Signature(Run)), "beats": Out(stream.Signature(BEAT_BITS)), "writes_done": In(1),
        })

    def elaborate(self, _platform):
        m = Module()
        # An instruction rests in `word`, near what it sets.
        taken, is_store = Signal(), Signal(reset_less=True)
        word = Signal(len(self.instruction.payload), reset_less=True)
        header, store, new_window = (struct(word[: struct.as_shape().size]) for struct in (Header, Store, StoreWindow))
        take_window, take_store = Signal(), Signal()
        window = Signal(StoreWindow, reset_less=True)
        post = Signal.like(header.post)
        m.d.comb += self.instruction.ready.eq(~taken)
        with m.If(~taken):
            m.d.sync += [word.eq(self.instruction.payload), is_store.eq(Header(self.instruction.payload[: len(header.as_value())]).opcode == Opcode.STORE)]
            m.d.sync += taken.eq(self.instruction.valid)

        # A window's first pixel and the distance of rows of windows, in staged pixels.
        m.submodules.origin = origin = SerialProduct(10)
        m.submodules.row_step = row_step = SerialProduct(10)
        m.d.comb += [
            origin.start.eq(take_window), origin.a.eq(new_window.pitch), origin.b.eq(new_window.y),
            row_step.start.eq(take_window), row_step.a.eq(new_window.pitch), row_step.b.eq(new_window.stride_y),
        ]
        with m.If(take_window):
            m.d.sync += window.eq(new_window)
        first_pixel = Signal(10)
        m.d.sync += first_pixel.eq(origin.product + window.x)

        reader_done, credits_full = self._read(m, window, first_pixel, row_step.product, store, take_store)
        runs_done = self._run(m, store, take_store)

        posts, retired = Signal.like(post), Signal()
        in_memory = post[Unit.MAP] | post[Unit.WEIGHT]  # the units that read it
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += [take_window.eq(taken & ~is_store), take_store.eq(taken & is_store)]
                m.d.sync += post.eq(header.post)
                with m.If(taken):
                    m.d.sync += taken.eq(0)
                    m.next = "MULTIPLY"
                with m.If(take_store):
                    m.next = "FINISH"
            with m.State("MULTIPLY"), m.If(origin.done & row_step.done):
                m.next = "FINISH"  # first_pixel follows
            with m.State("FINISH"), m.If(reader_done):
                m.d.comb += posts[Unit.DRAIN].eq(post[Unit.DRAIN])
                m.d.sync += post[Unit.DRAIN].eq(0)
                with m.If(runs_done & ~in_memory):
                    m.d.comb += retired.eq(1)
                    m.next = "IDLE"
                with m.If(runs_done & in_memory):
                    m.next = "FLUSH"
            with m.State("FLUSH"), m.If(credits_full & self.writes_done):
                m.d.comb += [posts[Unit.MAP].eq(post[Unit.MAP]), posts[Unit.WEIGHT].eq(post[Unit.WEIGHT]), retired.eq(1)]
                m.next = "IDLE"
        m.d.sync += [self.control.post.eq(posts), self.control.retired.eq(retired)]
        m.d.comb += self.control.busy.eq(taken | ~fsm.ongoing("IDLE") | ~credits_full | ~self.writes_done | self.control.retired)
        return m

    def _read(self, m, window, first_pixel, row_step, store, start):
        """The staging buffer, read along the loops, and the maxima into `beats`. Returns (all has been read, no beat is under way)."""
        config = self._config
        part_bits = exact_log2(PLANE // config.drain_lanes)  # of a staged group's number; the bit above is the plane
        pixel_bits = exact_log2(config.stage_pixels)

        # Loops: planes, rows, columns, kernel rows, kernel columns. Each has where its present turn began: staged pixel and coordinate.
        # Counters hold what is left minus one, so that their sign marks the last turn.
        reading, plane, planes_left = Signal(), Signal(), Signal()
        reload_rows, reload_columns, rows_left, columns_left = Signal(11), Signal(12), Signal(11), Signal(12)
        kernel_rows_left, kernel_columns_left = Signal(5), Signal(5)
        origin, row, corner, line, pixel = (Signal(10, name=name) for name in ("origin", "row", "corner", "line", "pixel"))
        corner_x, corner_y, x, y = (Signal(signed(13), name=name) for name in ("corner_x", "corner_y", "x", "y"))
        credit = Signal(range(QUEUED_BEATS + 1), init=QUEUED_BEATS)
        has_credit, credits_full = Signal(), Signal(init=1)  # a cycle behind, in which one at most was used
        m.d.sync += [has_credit.eq(credit > 1), credits_full.eq(credit == QUEUED_BEATS)]
        advance = reading & has_credit
        line_done = kernel_columns_left[-1]
        window_done = line_done & kernel_rows_left[-1]
        row_done = window_done & columns_left[-1]
        plane_done = row_done & rows_left[-1]

        next_line, next_corner, next_row = (Signal(10, name=name) for name in ("next_line", "next_corner", "next_row"))
        m.d.comb += [
            next_line.eq(line + window.pitch),
            next_corner.eq(corner + window.stride_x),
            next_row.eq(row + row_step),
        ]

        def begin(pixel_at, corner_x_at, corner_y_at):
            """Go to a window's first pixel."""
            return [
                corner.eq(pixel_at), line.eq(pixel_at), pixel.eq(pixel_at), corner_x.eq(corner_x_at), x.eq(corner_x_at), corner_y.eq(corner_y_at), y.eq(corner_y_at),
                kernel_rows_left.eq(window.kernel_y - 2), kernel_columns_left.eq(window.kernel_x - 2),
            ]

        with m.If(advance):
            m.d.sync += [pixel.eq(pixel + 1), x.eq(x + 1), kernel_columns_left.eq(kernel_columns_left - 1)]
            with m.If(line_done):
                m.d.sync += [line.eq(next_line), pixel.eq(next_line), x.eq(corner_x), y.eq(y + 1)]
                m.d.sync += [kernel_columns_left.eq(window.kernel_x - 2), kernel_rows_left.eq(kernel_rows_left - 1)]
            with m.If(window_done):
                m.d.sync += [*begin(next_corner, corner_x + window.stride_x, corner_y), columns_left.eq(columns_left - 1)]
            with m.If(row_done):
                m.d.sync += [*begin(next_row, window.x, corner_y + window.stride_y), row.eq(next_row), columns_left.eq(reload_columns), rows_left.eq(rows_left - 1)]
            with m.If(plane_done):
                m.d.sync += [*begin(origin, window.x, window.y), row.eq(origin), rows_left.eq(reload_rows), plane.eq(~plane), planes_left.eq(0)]
                m.d.sync += reading.eq(planes_left)
        with m.If(start):
            start_pixel = (store.address + first_pixel)[:10]
            m.d.sync += [
                *begin(start_pixel, window.x, window.y), origin.eq(start_pixel), row.eq(start_pixel),
                reading.eq(1), plane.eq(store.plane), planes_left.eq(store.last_plane),
                reload_rows.eq(store.rows - 2), reload_columns.eq(store.columns - 2), rows_left.eq(store.rows - 2), columns_left.eq(store.columns - 2),
            ]

        rams = [WideRam(width=8 * config.drain_lanes, depth=2 * config.stage_pixels) for _ in range(PLANE // config.drain_lanes)]
        for part, ram in enumerate(rams):
            m.submodules[f"staging{part}"] = ram
            m.d.comb += [
                ram.write_enable.eq(self.staged.valid & (self.staged.group[:part_bits] == part)),
                ram.write_address.eq(Cat(self.staged.pixel[:pixel_bits], self.staged.group[part_bits])),
                ram.write_data.eq(self.staged.data),
                ram.read_address.eq(Cat(pixel[:pixel_bits], plane)),
            ]
        wait = rams[0].latency
        begins_window = Signal(init=1)  # what is read next is the first of a window
        with m.If(advance):
            m.d.sync += begins_window.eq(window_done)
        inside = (x >= 0) & (x < window.width) & (y >= 0) & (y < window.height)
        inside, replace, moving = delayed(m, inside, wait), delayed(m, begins_window, wait + 1), delayed(m, advance, wait + 1)
        complete = delayed(m, advance & window_done, wait + 2, reset=True)

        # Codes plus 128, which are compared without a sign: 0 is below all others.
        maxima = [Signal(8, name=f"maximum{k}", reset_less=True) for k in range(PLANE)]
        staged = Cat(ram.read_data for ram in rams)
        for k, maximum in enumerate(maxima):
            code = delayed(m, (staged.word_select(k, 8) ^ 0x80) & inside.replicate(8), name=f"code{k}")
            with m.If(moving & (replace | (code > maximum))):
                m.d.sync += maximum.eq(code)

        m.submodules.queue = queue = Queue(BEAT_BITS, QUEUED_BEATS)
        wiring.connect(m, queue.o, wiring.flipped(self.beats))
        m.d.comb += [queue.i.valid.eq(complete), queue.i.payload.eq(Cat(maximum ^ 0x80 for maximum in maxima))]
        m.d.sync += credit.eq(credit + (self.beats.valid & self.beats.ready) - (advance & window_done))
        return ~reading, credits_full

    def _run(self, m, store, start):
        """Runs of a STORE into `runs`. Returns whether all have been taken."""
        m.submodules.area = area = SerialProduct(14)
        m.d.comb += [area.start.eq(start), area.a.eq(store.columns), area.b.eq(store.rows)]
        base = Signal(32)
        columns, plane_stride, row_stride = Signal.like(store.columns), Signal.like(store.plane_stride), Signal.like(store.row_stride)
        last_row, rows_left, planes_left, contiguous = Signal(10), Signal(10), Signal(), Signal()
        first_offset, offset = Signal(29), Signal(29)  # beats
        done = Signal()
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += done.eq(1)
                m.d.sync += [
                    base.eq(Array(self.bases)[store.base]), first_offset.eq(store.offset), offset.eq(store.offset), columns.eq(store.columns),
                    plane_stride.eq(store.plane_stride), row_stride.eq(store.row_stride), last_row.eq(store.rows - 1), rows_left.eq(store.rows - 1),
                    planes_left.eq(store.last_plane), contiguous.eq(store.row_stride == store.columns),
                ]
                with m.If(start):
                    m.next = "PREPARE"
            with m.State("PREPARE"):
                m.d.sync += [self.runs.payload.address.eq(base + (offset << 3)), self.runs.payload.beats.eq(Mux(contiguous, area.product, columns))]
                with m.If(~contiguous | area.done):
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.runs.valid.eq(1)
                with m.If(self.runs.ready):
                    m.next = "PREPARE"
                    m.d.sync += [rows_left.eq(rows_left - 1), offset.eq(offset + row_stride)]
                    with m.If(contiguous | (rows_left == 0)):
                        m.d.sync += [rows_left.eq(last_row), planes_left.eq(0), offset.eq(first_offset + plane_stride)]
                        with m.If(~planes_left):
                            m.next = "IDLE"
        return done
