// Traffic for the memory model: reads and writes, each list as fast as the memory takes it, or one after the other.
#include "sdram.hpp"

#include <cstddef>

struct Burst {
    uint32_t address, beats;
};

struct Result {
    int64_t cycles, activations;
    uint64_t violation_address;
    uint8_t response;
    char violation[80];
};

#define PIN(name) {#name, offsetof(AxiPins, name)}
constexpr struct {
    const char* name;
    size_t offset;
} pins[] = {PIN(arvalid), PIN(araddr), PIN(arlen), PIN(arsize), PIN(arburst), PIN(awvalid), PIN(awaddr), PIN(awlen), PIN(awsize), PIN(awburst),
            PIN(wvalid), PIN(wdata), PIN(wstrb), PIN(wlast)};

// `serial`: a burst is issued when the one before has been answered, a read after all writes. `restless` names a pin that flips its bit 0 while its channel waits,
// until that is a violation. Returns false if not done within `limit` cycles.
extern "C" bool traffic(uint8_t* bytes, uint64_t size, int kind, unsigned pause, bool serial, const char* restless, const Burst* reads, uint32_t read_count, uint64_t* read_data,
                        const Burst* writes, uint32_t write_count, const uint64_t* write_data, int64_t limit, Result* result) {
    Memory memory(bytes, size, Memory::Kind(kind), pause, 1);
    AxiPins& p = memory.pins;
    uint32_t read_address = 0, reads_done = 0, write_address = 0, write_burst = 0, write_beat = 0, writes_done = 0;
    uint8_t* pin = nullptr;
    for (const auto& [name, offset] : pins) if (!std::strcmp(name, restless)) pin = reinterpret_cast<uint8_t*>(&p) + offset;
    bool waiting = false;
    *result = {};
    p.rready = p.bready = 1;
    for (result->cycles = 0; result->cycles < limit && (reads_done < read_count || writes_done < write_count); result->cycles++) {
        memory.drive();
        p.arvalid = read_address < read_count && (!serial || (read_address == reads_done && writes_done == write_count));
        if (p.arvalid) p.araddr = reads[read_address].address, p.arlen = reads[read_address].beats - 1;
        p.awvalid = write_address < write_count && (!serial || write_address == writes_done);
        if (p.awvalid) p.awaddr = writes[write_address].address, p.awlen = writes[write_address].beats - 1;
        p.wvalid = write_burst < write_count;
        if (p.wvalid) p.wdata = *write_data, p.wstrb = 255, p.wlast = write_beat + 1 == writes[write_burst].beats;
        if (pin) {
            if (waiting) *pin ^= 1;
            waiting = *restless == 'w' ? p.wvalid && !p.wready : restless[1] == 'r' ? p.arvalid && !p.arready : p.awvalid && !p.awready;
        }
        read_address += p.arvalid & p.arready;
        write_address += p.awvalid & p.awready;
        if (p.wvalid & p.wready) {
            write_data++;
            write_beat++;
            if (p.wlast) write_burst++, write_beat = 0;
        }
        if (p.rvalid) {
            *read_data++ = p.rdata;
            reads_done += p.rlast;
            result->response |= p.rresp;
        }
        if (p.bvalid) writes_done++, result->response |= p.bresp;
        memory.clock();
        if (pin && memory.violation) break;
    }
    result->activations = memory.activations();
    result->violation_address = memory.violation_address;
    if (memory.violation) std::strncpy(result->violation, memory.violation, sizeof result->violation - 1);
    return reads_done == read_count && writes_done == write_count;
}
