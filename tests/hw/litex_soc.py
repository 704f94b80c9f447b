"""A LiteX SoC with the exported core and, for a CPU, an AXI4-Lite port; `test_core.py` simulates it.

    PYTHON litex_soc.py FOLDER bus|dram     in FOLDER, where an export is; writes FOLDER/build/gateware/top.v

PYTHON has LiteX: pip install litex==2024.12 litedram==2024.12 migen==0.10.0
"""

import os
import sys

from litex.build.generic_platform import Pins
from litex.build.sim import SimPlatform
from litex.gen import LiteXModule
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import axi
from migen import ClockDomain

CELOSIA = 0x30000000


class Reset(LiteXModule):
    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [self.cd_sys.clk.eq(platform.request("clk")), self.cd_sys.rst.eq(platform.request("rst"))]


class Soc(SoCCore):
    def __init__(self, memory):
        from celosia_litex import add_celosia

        host = axi.AXILiteInterface(data_width=32, address_width=32)
        pins = [("clk", 0, Pins(1)), ("rst", 0, Pins(1)), ("irq", 0, Pins(1)), *host.get_ios("host")]
        platform = SimPlatform("SIM", pins)
        ram = {"integrated_main_ram_size": 0x40000} if memory == "bus" else {}
        super().__init__(platform, 100e6, cpu_type=None, with_uart=False, with_timer=False, **ram)
        self.crg = Reset(platform)
        if memory == "dram":
            from litedram.modules import MT48LC16M16
            from litedram.phy.model import SDRAMPHYModel

            module = MT48LC16M16(100e6, "1:1")
            self.sdrphy = SDRAMPHYModel(module, data_width=32, clk_freq=100e6)
            self.add_sdram("sdram", phy=self.sdrphy, module=module, l2_cache_size=0)
        self.comb += host.connect_to_pads(platform.request("host"), mode="slave")
        self.bus.add_master("host", host)
        add_celosia(self, "celosia.v", origin=CELOSIA)
        self.comb += platform.request("irq").eq(self.celosia.ev.done.trigger)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.path.insert(0, os.getcwd())
    soc = Soc(sys.argv[2])
    soc.platform.output_dir = "build/gateware"
    os.makedirs(soc.platform.output_dir, exist_ok=True)
    soc.finalize()
    soc.platform.get_verilog(soc, name="top").write("build/gateware/top.v")
