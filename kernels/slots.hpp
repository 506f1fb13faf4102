// Slots and doorbells in shared memory (the contract: tarragon_hpc/transport/base.py).
//
// A ring is `slots` times a control line (64 bytes: sequence u64, length u64) and a buffer. The
// writer fills buffer and length, then stores the sequence with release order; the reader loads it
// with acquire order. The n-th request (n = 1, 2, …) goes to slot (n-1) mod slots with sequence n,
// and so does its reply. Lengths are the peer's word: callers check them before use.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bell.hpp"
#include "buffer.hpp"
#include "life.hpp"

struct Control {
    alignas(64) std::atomic<uint64_t> sequence;
    std::atomic<uint64_t> nbytes;
};
static_assert(sizeof(Control) == 64 && std::atomic<uint64_t>::is_always_lock_free);

constexpr uint64_t kLine = 64;

inline uint64_t slot_stride(uint64_t nbytes) {
    return sizeof(Control) + (nbytes + kLine - 1) / kLine * kLine;
}

class Ring {
public:
    Ring(nanobind::handle memory, uint32_t slots, uint64_t nbytes)
        : memory_(memory, true), stride_(slot_stride(nbytes)) {
        if (slots == 0 || nbytes > (uint64_t{1} << 40) || memory_.size() / slots < stride_)
            throw nanobind::value_error("ring memory is smaller than its slots");
        if (reinterpret_cast<uintptr_t>(memory_.data()) % kLine)
            throw nanobind::value_error("ring memory is not aligned to 64 bytes");
    }
    Control &control(uint32_t slot) const {
        return *reinterpret_cast<Control *>(memory_.data() + slot * stride_);
    }
    uint8_t *data(uint32_t slot) const {
        return memory_.data() + slot * stride_ + sizeof(Control);
    }
    bool holds(uint32_t slot, uint64_t sequence) const {
        return control(slot).sequence.load(std::memory_order_acquire) == sequence;
    }
    uint64_t nbytes(uint32_t slot) const {
        return control(slot).nbytes.load(std::memory_order_relaxed);
    }
    void publish(uint32_t slot, uint64_t sequence, uint64_t nbytes) {
        control(slot).nbytes.store(nbytes, std::memory_order_relaxed);
        control(slot).sequence.store(sequence, std::memory_order_release);
    }

private:
    Buffer memory_;
    uint64_t stride_;
};

// The memory of a doorbell: the counter, then the signs of life of its owner.
constexpr size_t kBellBytes = 4096;
constexpr size_t kLifeOffset = 1024;
static_assert(sizeof(BellWords) <= kLifeOffset &&
              kLifeOffset + kLifeWords * sizeof(LifeWord) <= kBellBytes);

inline LifeWord *life_words(const Buffer &bell) {
    if (bell.size() < kBellBytes)
        throw nanobind::value_error("doorbell memory is too small");
    return reinterpret_cast<LifeWord *>(bell.data() + kLifeOffset);
}

class Doorbell {
public:
    Doorbell(nanobind::handle memory, uint32_t spin_us)
        : memory_(memory, true), spin_ns_(int64_t{spin_us} * 1000) {
        if (memory_.size() < kBellBytes)
            throw nanobind::value_error("doorbell memory is too small");
        words_ = reinterpret_cast<BellWords *>(memory_.data());
    }
    uint32_t value() const { return words_->count.load(std::memory_order_acquire); }
    void ring() { bell_ring(words_); }
    uint32_t wait(uint32_t seen, double timeout_s) {
        if (value() == seen && timeout_s > 0) {
            int64_t deadline = monotonic_ns() + static_cast<int64_t>(std::min(timeout_s, 1e9) * 1e9);
            for (;;) {
                Woken woken;
                {
                    nanobind::gil_scoped_release release;
                    woken = bell_wait(words_, seen, deadline, spin_ns_);
                }
                if (woken != Woken::interrupted)
                    break;
                if (PyErr_CheckSignals())
                    throw nanobind::python_error();
            }
        }
        return value();
    }

private:
    Buffer memory_;
    BellWords *words_;
    int64_t spin_ns_;
};

enum class State : uint8_t { free, filling, posted, answered, abandoned };
constexpr const char *kNames[] = {"free", "filling", "posted", "answered", "abandoned"};

// What both ends of a channel have in common: the peer may be gone.
class Slots {
public:
    // From any thread.
    void set_lost() { lost_.store(true, std::memory_order_release); }
    bool lost() const { return lost_.load(std::memory_order_acquire); }

private:
    std::atomic<bool> lost_{false};
};

class ClientSlots : public Slots {
public:
    ClientSlots(nanobind::handle request, nanobind::handle reply, uint32_t slots, uint64_t request_bytes,
                uint64_t reply_bytes, Doorbell &bell)
        : request_(request, slots, request_bytes), reply_(reply, slots, reply_bytes), bell_(bell),
          request_bytes_(request_bytes), reply_bytes_(reply_bytes), slots_(slots) {}

    bool can_acquire() {
        auto slot = static_cast<uint32_t>(next_ % slots_.size());
        Slot &s = slots_[slot];
        if (s.state == State::abandoned && reply_.holds(slot, s.sequence))
            s.state = State::free;
        return s.state == State::free && !lost();
    }
    std::optional<uint32_t> acquire() {
        if (!can_acquire())
            return std::nullopt;
        return take();
    }
    // The next slot, after `can_acquire` has said yes. The peer may have been lost since, which
    // another thread notes at any time: what is posted then is never answered.
    uint32_t take() {
        auto slot = static_cast<uint32_t>(next_ % slots_.size());
        slots_[slot] = {State::filling, ++next_};
        return slot;
    }
    void post(uint32_t slot, uint64_t nbytes) {
        Slot &s = at(slot, {State::filling}, "post");
        if (nbytes > request_bytes_)
            throw nanobind::value_error("request is longer than its slot");
        s.state = State::posted;
        request_.publish(slot, s.sequence, nbytes);
        bell_.ring();
    }
    // Length of the reply as the peer states it, once it is there.
    std::optional<uint64_t> reply(uint32_t slot) {
        Slot &s = at(slot, {State::posted, State::answered}, "reply");
        if (s.state == State::posted) {
            if (!reply_.holds(slot, s.sequence))
                return std::nullopt;
            s.state = State::answered;
        }
        return reply_.nbytes(slot);
    }
    // Whether the reply to a posted slot is there; its state stays as it is.
    bool has_reply(uint32_t slot) const { return reply_.holds(slot, slots_[slot].sequence); }
    uint64_t reply_length(uint32_t slot) const { return reply_.nbytes(slot); }
    uint8_t *request_data(uint32_t slot) const { return request_.data(slot); }
    const uint8_t *reply_data(uint32_t slot) const { return reply_.data(slot); }
    uint64_t request_bytes() const { return request_bytes_; }
    uint64_t reply_bytes() const { return reply_bytes_; }

    void release(uint32_t slot) {
        at(slot, {State::answered}, "release").state = State::free;
    }
    // Posted or abandoned slots that have no reply yet.
    uint32_t owed() const {
        uint32_t count = 0;
        for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
            const State state = slots_[slot].state;
            count += (state == State::posted || state == State::abandoned) && !has_reply(slot);
        }
        return count;
    }
    void abandon(uint32_t slot) {
        Slot &s = at(slot, {State::posted, State::answered}, "abandon");
        s.state = s.state == State::answered ? State::free : State::abandoned;
    }

private:
    struct Slot {
        State state = State::free;
        uint64_t sequence = 0;
    };
    Slot &at(uint32_t slot, std::initializer_list<State> allowed, const char *what) {
        if (slot >= slots_.size())
            throw nanobind::index_error("no such slot");
        Slot &s = slots_[slot];
        if (std::find(allowed.begin(), allowed.end(), s.state) == allowed.end())
            throw std::runtime_error(std::string(what) + " of slot " + std::to_string(slot) +
                                     ", which is " + kNames[static_cast<int>(s.state)]);
        return s;
    }

    Ring request_, reply_;
    Doorbell &bell_;
    uint64_t request_bytes_, reply_bytes_;
    uint64_t next_ = 0;
    std::vector<Slot> slots_;
};

class ServerSlots : public Slots {
public:
    ServerSlots(nanobind::handle request, nanobind::handle reply, uint32_t slots, uint64_t request_bytes,
                uint64_t reply_bytes, Doorbell &bell)
        : request_(request, slots, request_bytes), reply_(reply, slots, reply_bytes), bell_(bell),
          reply_bytes_(reply_bytes), owed_(slots, 0) {}

    // (slot, length as the peer states it) of the next request. A peer that posts to a slot whose
    // reply it is still owed gets the length 2^64 - 1, which no slot has.
    std::optional<std::pair<uint32_t, uint64_t>> poll() {
        auto slot = static_cast<uint32_t>(next_ % owed_.size());
        if (lost() || !request_.holds(slot, next_ + 1))
            return std::nullopt;
        if (owed_[slot])
            return std::pair(slot, UINT64_MAX);
        owed_[slot] = ++next_;
        return std::pair(slot, request_.nbytes(slot));
    }
    void send(uint32_t slot, uint64_t nbytes) {
        if (slot >= owed_.size())
            throw nanobind::index_error("no such slot");
        if (nbytes > reply_bytes_)
            throw nanobind::value_error("reply is longer than its slot");
        if (!owed_[slot])
            throw std::runtime_error("send of slot " + std::to_string(slot) +
                                     ", which owes no reply");
        reply_.publish(slot, std::exchange(owed_[slot], 0), nbytes);
        bell_.ring();
    }

private:
    Ring request_, reply_;
    Doorbell &bell_;
    uint64_t reply_bytes_;
    uint64_t next_ = 0;
    std::vector<uint64_t> owed_;  // sequence of the request whose reply is owed, or 0
};
