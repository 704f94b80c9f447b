"""The engine in a LiteX SoC: registers on the system bus, memory by LiteDRAM's port or the system bus, an interrupt.

    from celosia_litex import add_celosia
    add_celosia(soc, "celosia.v")      # in the SoC's constructor, after its memory

celosia.v and this file are what `celosia export` writes; it needs LiteX only.
"""

from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.interconnect import axi
from litex.soc.interconnect.csr_eventmanager import EventManager, EventSourceLevel
from migen import ClockSignal, Instance, ResetSignal, Signal


class Celosia(LiteXModule):
    """`control`: AXI4-Lite subordinate, 4 KiB of registers. `memory`: AXI4 manager, 64 bits. `ev.done`: high from a program's end to the next
    start; `error`: likewise, if it has ended with an error."""

    def __init__(self, platform, verilog):
        self.control = control = axi.AXILiteInterface(data_width=32, address_width=32)
        self.memory = memory = axi.AXIInterface(data_width=64, address_width=32, id_width=1)
        self.error = Signal()
        self.ev = EventManager()
        self.ev.done = EventSourceLevel()
        self.ev.finalize()
        self.specials += Instance(
            "celosia",
            i_clk=ClockSignal("sys"), i_rst=ResetSignal("sys"), o_interrupt=self.ev.done.trigger, o_error=self.error,
            i_s_axil_awaddr=control.aw.addr[:12], i_s_axil_awvalid=control.aw.valid, o_s_axil_awready=control.aw.ready,
            i_s_axil_wdata=control.w.data, i_s_axil_wstrb=control.w.strb, i_s_axil_wvalid=control.w.valid, o_s_axil_wready=control.w.ready,
            o_s_axil_bresp=control.b.resp, o_s_axil_bvalid=control.b.valid, i_s_axil_bready=control.b.ready,
            i_s_axil_araddr=control.ar.addr[:12], i_s_axil_arvalid=control.ar.valid, o_s_axil_arready=control.ar.ready,
            o_s_axil_rdata=control.r.data, o_s_axil_rresp=control.r.resp, o_s_axil_rvalid=control.r.valid, i_s_axil_rready=control.r.ready,
            o_m_axi_awid=memory.aw.id, o_m_axi_awaddr=memory.aw.addr, o_m_axi_awlen=memory.aw.len, o_m_axi_awsize=memory.aw.size,
            o_m_axi_awburst=memory.aw.burst, o_m_axi_awvalid=memory.aw.valid, i_m_axi_awready=memory.aw.ready,
            o_m_axi_wdata=memory.w.data, o_m_axi_wstrb=memory.w.strb, o_m_axi_wlast=memory.w.last, o_m_axi_wvalid=memory.w.valid, i_m_axi_wready=memory.w.ready,
            i_m_axi_bid=memory.b.id, i_m_axi_bresp=memory.b.resp, i_m_axi_bvalid=memory.b.valid, o_m_axi_bready=memory.b.ready,
            o_m_axi_arid=memory.ar.id, o_m_axi_araddr=memory.ar.addr, o_m_axi_arlen=memory.ar.len, o_m_axi_arsize=memory.ar.size,
            o_m_axi_arburst=memory.ar.burst, o_m_axi_arvalid=memory.ar.valid, i_m_axi_arready=memory.ar.ready,
            i_m_axi_rid=memory.r.id, i_m_axi_rdata=memory.r.data, i_m_axi_rresp=memory.r.resp, i_m_axi_rlast=memory.r.last, i_m_axi_rvalid=memory.r.valid,
            o_m_axi_rready=memory.r.ready,
        )
        platform.add_source(verilog)


def add_celosia(soc, verilog, origin=None):
    """Adds the engine as `soc.celosia`: registers in the region `celosia`, memory at the addresses of the CPU, an interrupt if the CPU takes any."""
    soc.celosia = core = Celosia(soc.platform, verilog)
    soc.bus.add_slave("celosia", core.control, SoCRegion(origin=origin, size=0x1000, cached=False))
    if hasattr(soc, "sdram"):
        from litedram.frontend.axi import LiteDRAMAXI2Native

        port = soc.sdram.crossbar.get_port(data_width=64)
        soc.celosia_memory = LiteDRAMAXI2Native(core.memory, port, w_buffer_depth=64, r_buffer_depth=64, base_address=soc.bus.regions["main_ram"].origin)
    else:
        soc.bus.add_master("celosia", core.memory)
    if soc.irq.enabled:
        soc.irq.add("celosia", use_loc_if_exists=True)
