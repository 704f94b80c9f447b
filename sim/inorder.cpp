// The in-order engine with its memory of single-port RAMs; nobody else is at it. Only its programs' part of the memory is the board's bytes.
#include "Vtop.h"

#include <cstring>

struct BoardMemory {
    const char* violation = nullptr;
    uint64_t violation_address = 0;

    BoardMemory(uint8_t* bytes, uint64_t, int, unsigned, uint64_t) : bytes_(bytes) {}

    void reset() {}
    void fail(int, uint64_t) {}

    void drive(Vtop& top) {
        top.host_valid = 0;
        top.memory_read_data = read_data_;
    }

    bool clock(const Vtop& top) {
        read_data_ = junk;
        if (!top.memory_valid) return false;
        uint8_t* beat = bytes_ + 8 * top.memory_address;
        if (!top.memory_write) std::memcpy(&read_data_, beat, 8);
        for (unsigned k = 0; k < 8; k++) {
            if (top.memory_write >> k & 1) beat[k] = top.memory_write_data >> 8 * k;
        }
        return top.memory_write;
    }

private:
    static constexpr uint64_t junk = 0x8181818181818181;  // where nothing has been read
    uint8_t* bytes_;
    uint64_t read_data_ = junk;
};

#include "board.hpp"
