// The accelerator with external memory behind its AXI4 manager.
#include "Vtop.h"
#include "sdram.hpp"

struct BoardMemory : Memory {
    BoardMemory(uint8_t* bytes, uint64_t size, int kind, unsigned pause, uint64_t seed) : Memory(bytes, size, Memory::Kind(kind), pause, seed) {}

    void drive(Vtop& top) {
        Memory::drive();
        top.m_axi_arready = pins.arready;
        top.m_axi_awready = pins.awready;
        top.m_axi_wready = pins.wready;
        top.m_axi_rvalid = pins.rvalid;
        top.m_axi_rdata = pins.rdata;
        top.m_axi_rlast = pins.rlast;
        top.m_axi_rresp = pins.rresp;
        top.m_axi_bvalid = pins.bvalid;
        top.m_axi_bresp = pins.bresp;
    }

    bool clock(const Vtop& top) {
        pins.araddr = top.m_axi_araddr;
        pins.arlen = top.m_axi_arlen;
        pins.arsize = top.m_axi_arsize;
        pins.arburst = top.m_axi_arburst;
        pins.arvalid = top.m_axi_arvalid;
        pins.awaddr = top.m_axi_awaddr;
        pins.awlen = top.m_axi_awlen;
        pins.awsize = top.m_axi_awsize;
        pins.awburst = top.m_axi_awburst;
        pins.awvalid = top.m_axi_awvalid;
        pins.wdata = top.m_axi_wdata;
        pins.wstrb = top.m_axi_wstrb;
        pins.wlast = top.m_axi_wlast;
        pins.wvalid = top.m_axi_wvalid;
        pins.rready = top.m_axi_rready;
        pins.bready = top.m_axi_bready;
        Memory::clock();
        return pins.wvalid & pins.wready;
    }
};

#include "board.hpp"
