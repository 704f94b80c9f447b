// The verilated accelerator on a board: external memory behind its AXI4 manager, a host on its AXI4-Lite port. Loaded with ctypes by rtl.py.
#include "Vtop.h"
#include "sdram.hpp"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace {

constexpr unsigned answer_cycles = 1000;  // the control port answers within
constexpr unsigned poll_cycles = 64;      // between reads of the status register
constexpr unsigned store_unit = 4;        // isa.Unit.STORE

enum Outcome { running, ended, control_stuck, bus_violation };

struct Board {
    VerilatedContext context;
    Vtop top{&context, "top"};
    Memory memory;
    uint64_t cycle = 0, started = 0;
    uint32_t stores = 0, mark = 0, marks = 0;
    const uint32_t* thresholds = nullptr;
    uint64_t* stamps = nullptr;
    struct {
        bool aw, w, b, ar, r;
    } taken{};
    uint32_t read_value = 0, response = 0;
#if VM_TRACE
    VerilatedVcdC vcd;
    uint64_t trace_first = 0, trace_last = 0;
#endif

    explicit Board(const Memory& memory) : memory(memory) {}

    void step() {
        AxiPins& pins = memory.pins;
        memory.drive();
        top.m_axi_arready = pins.arready;
        top.m_axi_awready = pins.awready;
        top.m_axi_wready = pins.wready;
        top.m_axi_rvalid = pins.rvalid;
        top.m_axi_rdata = pins.rdata;
        top.m_axi_rlast = pins.rlast;
        top.m_axi_rresp = pins.rresp;
        top.m_axi_bvalid = pins.bvalid;
        top.m_axi_bresp = pins.bresp;
        top.clk = 0;
        top.eval();
        dump(2 * cycle);
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
        memory.clock();
        taken = {bool(top.s_axil_awvalid & top.s_axil_awready), bool(top.s_axil_wvalid & top.s_axil_wready), bool(top.s_axil_bvalid & top.s_axil_bready),
                 bool(top.s_axil_arvalid & top.s_axil_arready), bool(top.s_axil_rvalid & top.s_axil_rready)};
        if (taken.r) read_value = top.s_axil_rdata, response = top.s_axil_rresp;
        if (taken.b) response = top.s_axil_bresp;
        if (top.trace_retired >> store_unit & 1) retire_store();
        top.clk = 1;
        top.eval();
        dump(2 * cycle + 1);
        cycle++;
    }

    void retire_store() {
        stores++;
        while (mark < marks && stores >= thresholds[mark]) stamps[mark++] = cycle - started;
    }

    void dump(uint64_t time) {
#if VM_TRACE
        if (cycle >= trace_first && cycle < trace_last) vcd.dump(time);
#else
        (void)time;
#endif
    }

    void reset() {
        top.s_axil_arvalid = top.s_axil_awvalid = top.s_axil_wvalid = 0;
        top.s_axil_rready = top.s_axil_bready = 1;
        top.rst = 1;
        for (int i = 0; i < 8; i++) step();
        memory.reset();  // the engine no longer asks for anything
        top.rst = 0;
        step();
    }

    // An AXI4-Lite access; false if there is no answer.
    bool access(uint32_t address, bool write, uint32_t value) {
        if (write) {
            top.s_axil_awaddr = address;
            top.s_axil_wdata = value;
            top.s_axil_wstrb = 15;
            top.s_axil_awvalid = top.s_axil_wvalid = 1;
        } else {
            top.s_axil_araddr = address;
            top.s_axil_arvalid = 1;
        }
        for (unsigned i = 0; i < answer_cycles; i++) {
            step();
            if (taken.aw) top.s_axil_awvalid = 0;
            if (taken.w) top.s_axil_wvalid = 0;
            if (taken.ar) top.s_axil_arvalid = 0;
            if (write ? taken.b : taken.r) return true;
        }
        return false;
    }
};

}  // namespace

extern "C" {

// `kind`, `pause`, `seed`: as the constructor of Memory takes them. The bytes must outlive the board.
Board* board_open(uint8_t* bytes, uint64_t size, int kind, unsigned pause, uint64_t seed) {
    Board* board = new Board(Memory(bytes, size, Memory::Kind(kind), pause, seed));
    return board;
}

// Resets the engine and whatever the memory had outstanding.
void board_reset(Board* board) { board->reset(); }

void board_close(Board* board) {
#if VM_TRACE
    board->vcd.close();
#endif
    board->top.final();
    delete board;
}

#if VM_TRACE
// Writes the waveform of the cycles first … last − 1, counted from the opening of the board, two time steps each.
void board_trace(Board* board, const char* path, uint64_t first, uint64_t last) {
    board->context.traceEverOn(true);
    board->top.trace(&board->vcd, 99);
    board->vcd.open(path);
    board->trace_first = first;
    board->trace_last = last;
}
#endif

// The AXI4-Lite response, or −1 if there was none.
int board_read(Board* board, uint32_t address, uint32_t* value) {
    if (!board->access(address, false, 0)) return -1;
    *value = board->read_value;
    return board->response;
}

int board_write(Board* board, uint32_t address, uint32_t value) {
    return board->access(address, true, value) ? int(board->response) : -1;
}

// From here on cycles are counted, and the one is noted in which the STORE unit retires its thresholds[i]-th instruction.
// The memory, which must be idle, begins anew, so that equal runs take equally long.
void board_mark(Board* board, const uint32_t* thresholds, uint32_t count, uint64_t* stamps) {
    board->memory.reset();
    board->started = board->cycle;
    board->stores = board->mark = 0;
    board->marks = count;
    board->thresholds = thresholds;
    board->stamps = stamps;
}

// Clocks until bit 0 of the register `status` falls, at most about `cycles`; returns an Outcome.
int board_run(Board* board, uint64_t cycles, uint32_t status) {
    for (const uint64_t end = board->cycle + cycles; board->cycle < end;) {
        for (unsigned i = 0; i < poll_cycles; i++) board->step();
        if (!board->access(status, false, 0)) return control_stuck;
        if (board->memory.violation) return bus_violation;
        if (!(board->read_value & 1)) return ended;
    }
    return running;
}

uint64_t board_cycles(const Board* board) { return board->cycle - board->started; }

const char* board_violation(const Board* board, uint64_t* address) {
    *address = board->memory.violation_address;
    return board->memory.violation;
}
}
