// The board's memory as an AXI4 subordinate: a 16-bit SDR SDRAM (MT48LC16M16A2, IS42S16160) at 4/3 of the engine clock behind a controller with open rows and look-ahead.
//
// Events, not clocks: when a burst is committed, the times of its commands follow from those before it, and its beats get the engine cycle they arrive in.
// Up to `horizon` clocks before the data bus falls free the arbiter commits the next burst, so its row is opened meanwhile unless its bank is still in use.
// Reads and writes take turns, each for at least its `turn_bytes` as long as it has bursts waiting. A write is committed when all its data are there.
// Not modelled: conflicts on the command bus (a burst of beats takes one slot in four) and the eightfold refresh that may be postponed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <tuple>

// The AXI4 subordinate's pins, as the engine's manager sees them; filled in and read by the harness each cycle.
struct AxiPins {
    // From the engine.
    uint32_t araddr = 0, awaddr = 0;
    uint8_t arlen = 0, arsize = 3, arburst = 1, arvalid = 0, awlen = 0, awsize = 3, awburst = 1, awvalid = 0;
    uint64_t wdata = 0;
    uint8_t wstrb = 0, wlast = 0, wvalid = 0, rready = 0, bready = 0;
    // To the engine.
    uint8_t arready = 0, awready = 0, wready = 0, rvalid = 0, rlast = 0, rresp = 0, bvalid = 0, bresp = 0;
    uint64_t rdata = 0;
};

// A queue of fixed depth, a power of two.
template <class T, unsigned depth>
struct Queue {
    T items[depth];
    uint32_t head = 0, tail = 0;
    bool empty() const { return head == tail; }
    unsigned size() const { return tail - head; }
    bool full() const { return size() == depth; }
    T& front() { return items[head % depth]; }
    T& at(unsigned index) { return items[(head + index) % depth]; }
    void push(const T& item) { items[tail++ % depth] = item; }
    void pop() { head++; }
};

// Row, bank and bus state. Times are memory clocks (133.33 MHz, 7.5 ns); a 64-bit beat takes four on the 16-bit data bus.
class Sdram {
public:
    static constexpr int64_t cas = 3, rcd = 3, rp = 3, ras = 6, rc = 9, rrd = 2, wr = 2, rfc = 9, refresh = 1040, read_to_write = 2;
    static constexpr uint32_t row_bytes = 1024, banks = 4;

    int64_t bus_free() const { return bus_free_; }
    uint64_t activations() const { return activations_; }

    // Row:bank:column, so that consecutive rows' worth of addresses lie in different banks. Returns the clock after the beat's last data
    // for a beat that follows the previous call's; `now` is when the controller knows of it.
    int64_t beat(uint32_t address, bool write, int64_t now) {
        if (now >= next_refresh_) do_refresh(now);
        Bank& bank = bank_[address / row_bytes % banks];
        const int64_t row = address / (row_bytes * banks);
        if (bank.row != row) {
            int64_t precharge = std::max({now, bank.activated + ras, bank.idle});
            int64_t activate = std::max({bank.row < 0 ? std::max(now, bank.idle) : precharge + rp, bank.activated + rc, last_activate_ + rrd});
            bank.row = row;
            bank.activated = last_activate_ = activate;
            activations_++;
        }
        // A write's data start with its command, a read's `cas` clocks later.
        int64_t start = std::max(bus_free_ + (write && !writing_ ? read_to_write : 0), std::max(now, bank.activated + rcd) + (write ? 0 : cas));
        if (!write && writing_) start = std::max(start, bus_free_ + cas);
        writing_ = write;
        bus_free_ = start + 4;
        bank.idle = bus_free_ + (write ? wr : 0);
        return bus_free_;
    }

private:
    struct Bank {
        int64_t row = -1, activated = -100, idle = 0;  // idle: first clock at which the bank may be precharged, or activated if it has no open row
    };

    // All refreshes due until now; those that fell into idle time cost nothing but the open rows.
    void do_refresh(int64_t now) {
        int64_t start = next_refresh_ + (now - next_refresh_) / refresh * refresh;
        for (const Bank& bank : bank_) start = std::max({start, bank.idle, bank.activated + ras});
        const int64_t end = start + rp + rfc;
        for (Bank& bank : bank_) {
            bank.row = -1;
            bank.idle = end;
        }
        next_refresh_ += ((now - next_refresh_) / refresh + 1) * refresh;
    }

    Bank bank_[banks];
    int64_t bus_free_ = 0, last_activate_ = -100, next_refresh_ = refresh;
    uint64_t activations_ = 0;
    bool writing_ = false;
};

class Memory {
public:
    // `erratic`, for tests: ideal but for each burst's latency, a random one, so that reads and writes overtake each other, which AXI4 allows.
    enum Kind { ideal, sdram, erratic };

    // `pause` of 256: probability that a ready or a beat is held back in a cycle, for tests.
    Memory(uint8_t* bytes, uint64_t size, Kind kind, unsigned pause, uint64_t seed) : bytes_(bytes), size_(size), kind_(kind), pause_(pause), seed_(seed), random_(seed * 2 + 1) {}

    // Begins anew with the bytes as they are: forgets what is outstanding.
    void reset() {
        const std::array<uint64_t, 2> left = left_;
        *this = Memory(bytes_, size_, kind_, pause_, seed_);
        left_ = left;
    }

    // The `count`-th burst from now on in a direction is answered with SLVERR: what it reads is junk, what it writes is lost. 0: none.
    void fail(bool write, uint64_t count) { left_[write] = count; }

    AxiPins pins;
    const char* violation = nullptr;  // what the manager did that AXI4 forbids
    uint64_t violation_address = 0;
    uint64_t activations() const { return sdram_.activations(); }

    // Before the rising edge: outputs for this cycle. They depend on nothing the manager does in it.
    void drive() {
        pins.arready = !reads_.full() && !hold();
        pins.awready = !writes_.full() && !hold();
        pins.wready = !write_data_.full() && !hold();
        if (!pins.rvalid && !read_data_.empty() && read_data_.front().cycle <= cycle_ && !hold()) {
            const ReadBeat& beat = read_data_.front();
            pins.rvalid = 1;
            pins.rdata = beat.data;
            pins.rlast = beat.last;
            pins.rresp = beat.response;
        }
        if (!pins.bvalid && !responses_.empty() && responses_.front().cycle <= cycle_ && !hold()) {
            pins.bvalid = 1;
            pins.bresp = responses_.front().response;
        }
    }

    // The rising edge: what was valid and ready is taken.
    void clock() {
        check_held();
        if (pins.arvalid & pins.arready) reads_.push(burst(false, pins.araddr, pins.arlen, pins.arsize, pins.arburst));
        if (pins.awvalid & pins.awready) writes_.push(burst(true, pins.awaddr, pins.awlen, pins.awsize, pins.awburst));
        if (pins.wvalid & pins.wready) {
            write_data_.push({pins.wdata, pins.wstrb, pins.wlast});
            complete_writes_ += pins.wlast;
        }
        if (pins.rvalid & pins.rready) {
            read_data_.pop();
            pins.rvalid = 0;
        }
        if (pins.bvalid & pins.bready) {
            responses_.pop();
            pins.bvalid = 0;
        }
        if (!reads_.empty() || complete_writes_) commit();
        cycle_++;
    }

private:
    static constexpr int64_t horizon = 16;        // memory clocks of look-ahead
    static constexpr int64_t turn_bytes[2] = {512, 2048};  // least bytes read, and written, while there are bursts
    static constexpr int64_t request_cycles = 5;  // engine cycles from AXI to the controller: register, crossing, arbiter
    static constexpr int64_t data_cycles = 5;     // … and back
    static constexpr unsigned outstanding = 16, read_beats = 256, write_beats = 256;
    static constexpr uint8_t slave_error = 2, decode_error = 3;
    static constexpr unsigned most_latency = 256;  // of erratic memory, in cycles

    struct Burst {
        uint32_t address;
        uint16_t beats;
        uint8_t response;
        int64_t cycle;  // when the controller knows of it
    };
    struct ReadBeat {
        uint64_t data;
        int64_t cycle;
        uint8_t last, response;
    };
    struct WriteBeat {
        uint64_t data;
        uint8_t strobe, last;
    };
    struct Response {
        int64_t cycle;
        uint8_t response;
    };

    Burst burst(bool write, uint32_t address, unsigned len, unsigned size, unsigned kind) {
        const uint32_t end = address + 8 * len;
        if (size != 3 || kind != 1) violate("a burst that is not INCR of 64-bit beats", address);
        if (address % 8) violate("an address that is not aligned to 8 bytes", address);
        if (address / 4096 != end / 4096) violate("a burst across a 4 KiB border", address);
        const bool fails = left_[write] && !--left_[write];
        const uint8_t response = fails ? slave_error : end + 8ull > size_ ? decode_error : 0;
        return {address, uint16_t(len + 1), response, cycle_ + (kind_ == sdram ? request_cycles : kind_ == erratic ? int64_t(random() % most_latency) : 0)};
    }

    // What the manager offers has to stay as it is until it is taken (AXI4, A3.2.1).
    void check_held() {
        const auto read = [](const AxiPins& p) { return std::tie(p.arvalid, p.araddr, p.arlen, p.arsize, p.arburst); };
        const auto write = [](const AxiPins& p) { return std::tie(p.awvalid, p.awaddr, p.awlen, p.awsize, p.awburst); };
        const auto data = [](const AxiPins& p) { return std::tie(p.wvalid, p.wdata, p.wstrb, p.wlast); };
        if (before_.arvalid && !before_.arready && read(pins) != read(before_)) violate("a read address that does not stay until it is taken", before_.araddr);
        if (before_.awvalid && !before_.awready && write(pins) != write(before_)) violate("a write address that does not stay until it is taken", before_.awaddr);
        if (before_.wvalid && !before_.wready && data(pins) != data(before_))
            violate("write data that do not stay until they are taken", writes_.empty() ? pins.awaddr : writes_.front().address);
        before_ = pins;
    }

    void violate(const char* what, uint32_t address) {
        if (!violation) violation = what, violation_address = address;
    }

    bool hold() {
        return pause_ && (random() & 255) < pause_;
    }

    uint32_t random() {
        random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
        return random_ >> 32;
    }

    // Chooses the next burst if the data bus is about to fall free.
    void commit() {
        const int64_t now = cycle_ * 4 / 3;
        if (kind_ == sdram && sdram_.bus_free() > now + horizon) return;
        const bool read = !reads_.empty() && reads_.front().cycle <= cycle_ && read_data_.size() + reads_.front().beats <= read_beats;
        const bool write = complete_writes_ && !writes_.empty() && (kind_ != erratic || writes_.front().cycle <= cycle_) && !responses_.full();
        if (!read && !write) return;
        if (writing_ ? !write : !read) turn(!writing_);
        else if (read && write && turn_ >= turn_bytes[writing_]) turn(!writing_);
        if (writing_) commit_write(now);
        else commit_read(now);
    }

    void turn(bool writing) { writing_ = writing, turn_ = 0; }

    // Engine cycle in which a beat, whose data end at a memory clock, has come through; in ideal memory one beat a cycle.
    int64_t arrival(uint32_t address, bool write, int64_t now) {
        if (kind_ != sdram) return last_[write] = std::max(last_[write], cycle_) + 1;
        return (sdram_.beat(address, write, now) * 3 + 3) / 4 + data_cycles;
    }

    void commit_read(int64_t now) {
        const Burst b = reads_.front();
        reads_.pop();
        for (unsigned i = 0; i < b.beats; i++) {
            const uint32_t address = b.address + 8 * i;
            ReadBeat beat{0, arrival(address, false, now), i + 1u == b.beats, b.response};
            if (!b.response) std::memcpy(&beat.data, bytes_ + address, 8);
            read_data_.push(beat);
        }
        turn_ += 8 * b.beats;
    }

    void commit_write(int64_t now) {
        const Burst b = writes_.front();
        writes_.pop();
        complete_writes_--;
        int64_t end = 0;
        for (unsigned i = 0; i < b.beats; i++) {
            const uint32_t address = b.address + 8 * i;
            const WriteBeat beat = write_data_.front();
            write_data_.pop();
            if (beat.last != (i + 1u == b.beats)) violate("WLAST that does not match AWLEN", b.address);
            end = arrival(address, true, now);
            if (b.response) continue;
            if (beat.strobe == 255) std::memcpy(bytes_ + address, &beat.data, 8);
            else for (int k = 0; k < 8; k++) if (beat.strobe >> k & 1) bytes_[address + k] = beat.data >> 8 * k;
        }
        responses_.push({end, b.response});
        turn_ += 8 * b.beats;
    }

    AxiPins before_;  // the pins in the cycle before
    uint8_t* bytes_;
    uint64_t size_;
    Kind kind_;
    unsigned pause_;
    uint64_t seed_, random_;
    int64_t cycle_ = 0, turn_ = 0, last_[2] = {0, 0};
    unsigned complete_writes_ = 0;
    bool writing_ = false;
    std::array<uint64_t, 2> left_ = {};  // bursts until one fails, reads and writes
    Sdram sdram_;
    Queue<Burst, outstanding> reads_, writes_;
    Queue<ReadBeat, read_beats> read_data_;
    Queue<WriteBeat, write_beats> write_data_;
    Queue<Response, outstanding> responses_;
};
