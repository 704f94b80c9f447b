"""STORE of the in-order engine: output staging → max pooling → memory."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import PLANE, AcceleratorConfig
from .inorder_unit import ADDRESS_BITS, InOrderUnit
from .interfaces import BEAT_BITS
from .isa import Opcode, Store, StoreWindow

__all__ = ["InOrderStore", "Maximum"]


class Maximum(wiring.Component):
    """The highest code of each byte of the beats that `count`, that of this cycle among them. They begin anew after `clear`."""

    beat: In(BEAT_BITS)
    count: In(1)
    clear: In(1)
    maximum: Out(BEAT_BITS)

    def elaborate(self, _platform):
        m = Module()
        for k in range(PLANE):
            best, code = Signal(signed(8), init=-128, name=f"best{k}"), self.beat.word_select(k, 8).as_signed()
            now = Mux(self.count & (code > best), code, best)
            m.d.sync += best.eq(now)
            with m.If(self.clear):
                m.d.sync += best.eq(-128)
            m.d.comb += self.maximum.word_select(k, 8).eq(now)
        return m


class InOrderStore(InOrderUnit):
    """A stored pixel takes a cycle for each of its window's pixels and one more; a row and a plane take one for each staged row from a first window to the next.

    What is written is the maximum of what has been read in cycles before one with `counts` since the last write. STORE_WINDOW is `done` as it starts.
    """

    def __init__(self, config: AcceleratorConfig):
        super().__init__(config, counts=Out(1))

    def elaborate(self, _platform):
        m = Module()
        config, buffers, memory = self._config, self._buffers, self.memory
        store, new_window = (struct(self.instruction[: struct.as_shape().size]) for struct in (Store, StoreWindow))
        window = Signal(StoreWindow, reset_less=True)
        pixel_bits = exact_log2(config.stage_pixels)

        # Staged pixels where a row, a window, a window's row begin, and the present one; where it is in the map.
        row, corner, line, pixel = (Signal(pixel_bits, name=name) for name in ("row", "corner", "line", "pixel"))
        corner_x, corner_y, x, y = (Signal(signed(13), name=name) for name in ("corner_x", "corner_y", "x", "y"))
        plane, second = Signal(), Signal()
        rows_left, columns_left = Signal.like(store.rows), Signal.like(store.columns)
        kernel_x, kernel_y = Signal.like(window.kernel_x), Signal.like(window.kernel_y)
        down = Signal(signed(6))  # staged rows to the row's first window
        target, target_row, target_plane = (Signal(ADDRESS_BITS, name=name) for name in ("target", "target_row", "target_plane"))
        read, inside = Signal(), Signal()  # in the cycle before: a pixel was, within the bounds
        m.d.sync += [read.eq(0), inside.eq((x >= 0) & (x < window.width) & (y >= 0) & (y < window.height))]
        m.d.comb += self.counts.eq(read & inside)

        def begin_plane():
            return [row.eq(store.address + window.x), down.eq(window.y), corner_y.eq(window.y), rows_left.eq(store.rows - 1)]

        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [*begin_plane(), plane.eq(store.plane), second.eq(0), target_row.eq(self.place), target_plane.eq(self.place)]
                with m.If(self.start):
                    with m.If(store.header.opcode == Opcode.STORE_WINDOW):
                        m.d.sync += window.eq(new_window)
                        m.d.comb += self.done.eq(1)
                    with m.Else():
                        m.next = "Down"
            with m.State("Down"):
                m.d.sync += [
                    corner.eq(row), line.eq(row), pixel.eq(row), corner_x.eq(window.x), x.eq(window.x), y.eq(corner_y),
                    kernel_x.eq(window.kernel_x - 1), kernel_y.eq(window.kernel_y - 1), columns_left.eq(store.columns - 1), target.eq(target_row),
                ]
                with m.If(down == 0):
                    m.next = "Read"
                with m.Else():
                    m.d.sync += [row.eq(Mux(down < 0, row - window.pitch, row + window.pitch)), down.eq(Mux(down < 0, down + 1, down - 1))]
            with m.State("Read"):
                m.d.comb += [memory.valid.eq(1), memory.address.eq(buffers.staging | Cat(pixel, plane))]
                m.d.sync += [read.eq(1), pixel.eq(pixel + 1), x.eq(x + 1), kernel_x.eq(kernel_x - 1)]
                with m.If(kernel_x == 0):
                    m.d.sync += [
                        line.eq(line + window.pitch), pixel.eq(line + window.pitch), x.eq(corner_x), y.eq(y + 1),
                        kernel_x.eq(window.kernel_x - 1), kernel_y.eq(kernel_y - 1),
                    ]
                    with m.If(kernel_y == 0):
                        m.next = "Write"
            with m.State("Write"):
                m.d.comb += [memory.valid.eq(1), memory.address.eq(target), memory.write.eq(~0)]
                following = corner + window.stride_x
                m.d.sync += [
                    target.eq(target + 1), columns_left.eq(columns_left - 1),
                    corner.eq(following), line.eq(following), pixel.eq(following), corner_x.eq(corner_x + window.stride_x), x.eq(corner_x + window.stride_x),
                    y.eq(corner_y), kernel_y.eq(window.kernel_y - 1),
                ]
                m.next = "Read"
                with m.If(columns_left == 0):
                    m.d.sync += [down.eq(window.stride_y), corner_y.eq(corner_y + window.stride_y), rows_left.eq(rows_left - 1),
                                 target_row.eq(target_row + store.row_stride)]
                    m.next = "Down"
                    with m.If(rows_left == 0):
                        following = target_plane + store.plane_stride
                        m.d.sync += [*begin_plane(), plane.eq(~plane), second.eq(1), target_row.eq(following), target_plane.eq(following)]
                        with m.If(second == store.last_plane):
                            m.d.comb += self.done.eq(1)
                            m.next = "Idle"
        return m
