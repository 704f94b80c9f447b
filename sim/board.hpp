// A verilated engine on a board: its memory, and a host on its AXI4-Lite port. Loaded with ctypes by rtl.py.
//
// Whoever includes it defines `BoardMemory`, constructed as `board_open` does, with `drive(top)`, before the rising edge: outputs for this cycle; `clock(top)`, of
// the engine's outputs in this cycle: whether a beat is written; `reset()`, `fail(write, count)`, `violation` and `violation_address`.
#pragma once

#include "verilated.h"
#if VM_TRACE
#include <cerrno>
#include "verilated_vcd_c.h"
#endif

namespace {

constexpr unsigned answer_cycles = 1000;  // the control port answers within
constexpr unsigned poll_cycles = 64;      // between reads of the status register
constexpr unsigned units = 5;             // isa.Unit
constexpr unsigned beat_written = units;  // an event beside their retirements: the memory takes a beat

enum Outcome { running, ended, control_stuck, bus_violation };

#if VM_TRACE
// Verilator ends the process when a waveform cannot be written; this keeps the reason and lets the run go on.
struct VcdFile : VerilatedVcdFile {
    int error = 0;

    ssize_t write(const char* bytes, ssize_t length) override {
        if (error) return length;
        const ssize_t written = VerilatedVcdFile::write(bytes, length);
        if (written >= 0 || errno == EAGAIN || errno == EINTR) return written;
        error = errno;
        return length;
    }
};
#endif

// The `count`-th occurrence of an event: `beat_written`, or unit `event` retires an instruction.
struct Mark {
    uint32_t event, count;
};

// What has no value to begin with gets a random one as the model is constructed.
struct Context : VerilatedContext {
    explicit Context(uint64_t seed) {
        randReset(2);
        randSeed(int(seed % INT32_MAX) + 1);
    }
};

struct Board {
    Context context;
    Vtop top{&context, "top"};
    BoardMemory memory;
    uint64_t cycle = 0, started = 0;
    uint32_t counts[units + 1] = {}, marks = 0;
    const Mark* mark = nullptr;
    uint64_t* stamps = nullptr;
    struct {
        bool aw, w, b, ar, r;
    } taken{};
    uint32_t read_value = 0, response = 0;
#if VM_TRACE
    VcdFile file;
    VerilatedVcdC vcd{&file};
    uint64_t trace_first = 0, trace_last = 0, traced = 0;
    enum { not_yet, tracing, over } trace = not_yet;  // the first run
#endif

    Board(const BoardMemory& memory, uint64_t seed) : context(seed), memory(memory) {}

    void step() {
        memory.drive(top);
        top.clk = 0;
        top.eval();
        dump(0);
        const bool written = memory.clock(top);
        taken = {bool(top.s_axil_awvalid & top.s_axil_awready), bool(top.s_axil_wvalid & top.s_axil_wready), bool(top.s_axil_bvalid & top.s_axil_bready),
                 bool(top.s_axil_arvalid & top.s_axil_arready), bool(top.s_axil_rvalid & top.s_axil_rready)};
        if (taken.r) read_value = top.s_axil_rdata, response = top.s_axil_rresp;
        if (taken.b) response = top.s_axil_bresp;
        if (const uint32_t events = top.trace_retired | uint32_t(written) << beat_written) count(events);
        top.clk = 1;
        top.eval();
        dump(1);
        cycle++;
    }

    void count(uint32_t events) {
        for (unsigned event = 0; event <= units; event++) counts[event] += events >> event & 1;
        for (uint32_t i = 0; i < marks; i++) {
            if (events >> mark[i].event & 1 && counts[mark[i].event] == mark[i].count) stamps[i] = cycle - started;
        }
    }

    // The run is over: its marks belong to the caller again.
    void stop() {
        marks = 0;
#if VM_TRACE
        if (trace == tracing) trace = over;
#endif
    }

    // The present cycle's first or second half.
    void dump(unsigned half) {
#if VM_TRACE
        const uint64_t now = cycle - started;
        if (trace != tracing || now < trace_first || now >= trace_last) return;
        vcd.dump(2 * now + half);
        traced += half;
#else
        (void)half;
#endif
    }

    void reset() {
        top.s_axil_arvalid = top.s_axil_awvalid = top.s_axil_wvalid = 0;
        top.s_axil_rready = top.s_axil_bready = 1;
        top.rst = 1;
        for (int i = 0; i < 8; i++) step();
        memory.reset();  // now: in the first cycles of its reset the engine still offered bursts, which it did not hold
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

// `kind`, `pause`, `seed`: as the constructor of the memory takes them. The bytes must outlive the board.
Board* board_open(uint8_t* bytes, uint64_t size, int kind, unsigned pause, uint64_t seed) {
    return new Board(BoardMemory(bytes, size, kind, pause, seed), seed);
}

// Resets the engine and whatever the memory had outstanding.
void board_reset(Board* board) {
    board->stop();
    board->reset();
}

// The `count`-th read or write burst from now on is answered with SLVERR.
void board_fail(Board* board, int write, uint64_t count) { board->memory.fail(write, count); }

void board_close(Board* board) {
    board->top.final();
    delete board;
}

#if VM_TRACE
// Writes the waveform of the cycles first … last − 1 of the first run, counted from its `board_mark`, two time steps each.
void board_trace(Board* board, const char* path, uint64_t first, uint64_t last) {
    board->context.traceEverOn(true);
    board->top.trace(&board->vcd, 99);
    board->vcd.open(path);
    board->trace_first = first;
    board->trace_last = last;
}

// Completes the waveform. Returns 0 or the errno of what could not be written.
int board_trace_end(Board* board, uint64_t* cycles) {
    board->vcd.close();
    *cycles = board->traced;
    return board->file.error;
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

// From here on cycles are counted, and the one is noted in which mark[i] comes true; what stamps[i] held stays if it never does.
// The memory, which must be idle, begins anew, so that equal runs take equally long.
void board_mark(Board* board, const Mark* mark, uint32_t count, uint64_t* stamps) {
    board->memory.reset();
    board->started = board->cycle;
    for (uint32_t& count : board->counts) count = 0;
    board->marks = count;
    board->mark = mark;
    board->stamps = stamps;
#if VM_TRACE
    board->trace = board->trace == Board::not_yet ? Board::tracing : Board::over;
#endif
}

// Clocks until bit 0 of the register `status` falls, at most about `cycles`; returns an Outcome.
int board_run(Board* board, uint64_t cycles, uint32_t status) {
    int outcome = running;
    for (const uint64_t end = board->cycle + cycles; outcome == running && board->cycle < end;) {
        for (unsigned i = 0; i < poll_cycles; i++) board->step();
        if (!board->access(status, false, 0)) outcome = control_stuck;
        else if (board->memory.violation) outcome = bus_violation;
        else if (!(board->read_value & 1)) outcome = ended;
    }
    if (outcome != running) board->stop();
    return outcome;
}

uint64_t board_cycles(const Board* board) { return board->cycle - board->started; }

const char* board_violation(const Board* board, uint64_t* address) {
    *address = board->memory.violation_address;
    return board->memory.violation;
}
}
