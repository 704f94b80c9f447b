"""Hardware with a planted fault, for what finds faults."""

from amaranth.hdl import Signal

from celosia.hw.accelerator import Accelerator

__all__ = ["BEAT", "IMAGE", "Faulty", "X", "Y"]

#: Where the fault shows if the first layer puts out at most 8 channels of 12 × 12, one plane an image, in a batch of two.
IMAGE, Y, X = 1, 7, 5
BEAT = (IMAGE * 12 + Y) * 12 + X


class Faulty(Accelerator):
    """Writes nonsense as beat BEAT of a program, counted from 0; `planted` is high in that cycle."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        beats, planted = Signal(32), Signal()
        m.d.comb += planted.eq(self.m_axi.wvalid & self.m_axi.wready & (beats == BEAT))
        m.d.sync += beats.eq(beats + (self.m_axi.wvalid & self.m_axi.wready))
        with m.If(self.interrupt):
            m.d.sync += beats.eq(0)
        with m.If(planted):
            m.d.comb += self.m_axi.wdata.eq(0x5AA55AA55AA55AA5)
        return m
