// Slots and doorbells (the contract: tarragon_hpc/transport/base.py).
//
// A ring is `slots` times a control line (64 bytes: sequence u64, length u64) and a buffer. The
// writer fills buffer and length, then stores the sequence with release order; the reader loads it
// with acquire order. Over shared memory both ends map the same ring; over a network each has one of
// its own, and the Notifier sees to it that what was published here appears there. The n-th request (n = 1, 2, …) goes to slot (n-1) mod slots with sequence n,
// and so does its reply. Lengths are the peer's word: callers check them before use.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <mutex>
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
    uint64_t sequence(uint32_t slot) const {
        return control(slot).sequence.load(std::memory_order_acquire);
    }
    bool holds(uint32_t slot, uint64_t number) const { return sequence(slot) == number; }
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

// What a writer does once it has filled a slot of its ring and published it there. Needs the GIL.
class Notifier {
public:
    virtual ~Notifier() = default;
    virtual void posted(uint32_t slot, uint64_t sequence, uint64_t nbytes) = 0;
};

class Doorbell : public Notifier {
public:
    Doorbell(nanobind::handle memory, uint32_t spin_us)
        : memory_(memory, true), spin_ns_(int64_t{spin_us} * 1000) {
        if (memory_.size() < kBellBytes)
            throw nanobind::value_error("doorbell memory is too small");
        words_ = reinterpret_cast<BellWords *>(memory_.data());
    }
    uint32_t value() const { return words_->count.load(std::memory_order_acquire); }
    void ring() { bell_ring(words_); }
    // The peer reads the ring itself: it only has to be woken.
    void posted(uint32_t, uint64_t, uint64_t) override { ring(); }

    // A ring in our memory that is written without ringing (by a network card): `wait` looks at its
    // sequences now and then. Returns a number for `unwatch`.
    uint64_t watch(nanobind::handle memory, uint32_t slots, uint64_t nbytes) {
        auto watched = std::make_unique<Watched>(memory, slots, nbytes, ++last_watched_);
        std::lock_guard lock(watching_);
        watched_.push_back(std::move(watched));
        watching_any_.store(true);
        return last_watched_;
    }
    void unwatch(uint64_t number) {
        std::lock_guard lock(watching_);
        std::erase_if(watched_, [number](auto &w) { return w->number == number; });
        watching_any_.store(!watched_.empty());
    }
    uint32_t wait(uint32_t seen, double timeout_s) {
        if (value() == seen && timeout_s > 0) {
            int64_t deadline = monotonic_ns() + static_cast<int64_t>(std::min(timeout_s, 1e9) * 1e9);
            for (;;) {
                Woken woken;
                {
                    nanobind::gil_scoped_release release;
                    woken = watching_any_.load() ? wait_watching(seen, deadline)
                                                 : bell_wait(words_, seen, deadline, spin_ns_);
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
    struct Watched {
        Watched(nanobind::handle memory, uint32_t slots, uint64_t nbytes, uint64_t number)
            : ring(memory, slots, nbytes), seen(slots, 0), number(number) {}
        Ring ring;
        std::vector<uint64_t> seen;
        uint64_t number;
    };

    // Whether something has been written since the last call.
    bool arrived() {
        std::lock_guard lock(watching_);
        bool found = false;
        for (auto &w : watched_)
            for (uint32_t slot = 0; slot < w->seen.size(); ++slot) {
                const uint64_t sequence = w->ring.sequence(slot);
                found |= sequence != std::exchange(w->seen[slot], sequence);
            }
        return found;
    }
    // As bell_wait; an arrival rings the bell. The longer nothing comes, the longer the sleeps
    // between two looks: what is lost to them stays a small part of the wait.
    Woken wait_watching(uint32_t seen, int64_t deadline_ns) {
        constexpr int64_t kShortest = 20'000, kLongest = 2'000'000;
        for (const int64_t start = monotonic_ns();;) {
            if (arrived())
                ring();
            if (value() != seen)
                return Woken::rung;
            const int64_t now = monotonic_ns(), waited = now - start;
            if (now >= deadline_ns)
                return Woken::timed_out;
            if (waited < spin_ns_) {
                cpu_relax();
                continue;
            }
            const int64_t nap = std::clamp(waited / 8, kShortest, kLongest);
            const Woken woken = bell_wait(words_, seen, std::min(deadline_ns, now + nap), 0);
            if (woken != Woken::timed_out)
                return woken;
        }
    }

    Buffer memory_;
    BellWords *words_;
    int64_t spin_ns_;
    std::mutex watching_;
    std::atomic<bool> watching_any_{false};
    std::vector<std::unique_ptr<Watched>> watched_;
    uint64_t last_watched_ = 0;
};

// Has a Python callable do it: posted(slot, sequence, nbytes).
class CallNotifier : public Notifier {
public:
    explicit CallNotifier(nanobind::object posted) : posted_(std::move(posted)) {}
    void posted(uint32_t slot, uint64_t sequence, uint64_t nbytes) override {
        posted_(slot, sequence, nbytes);
    }

private:
    nanobind::object posted_;
};

enum class State : uint8_t { free, filling, posted, answered, abandoned };
constexpr const char *kNames[] = {"free", "filling", "posted", "answered", "abandoned"};

// Set once, by whoever notices first that a peer is gone; may outlive the slots.
class LostFlag {
public:
    void set() { lost_->store(true, std::memory_order_release); }
    bool get() const { return lost_->load(std::memory_order_acquire); }

private:
    std::shared_ptr<std::atomic<bool>> lost_ = std::make_shared<std::atomic<bool>>(false);
};

// What both ends of a channel have in common: the peer may be gone.
class Slots {
public:
    // From any thread.
    void set_lost() { lost_.set(); }
    bool lost() const { return lost_.get(); }
    const LostFlag &flag() const { return lost_; }

private:
    LostFlag lost_;
};

class ClientSlots : public Slots {
public:
    ClientSlots(nanobind::handle request, nanobind::handle reply, uint32_t slots, uint64_t request_bytes,
                uint64_t reply_bytes, Notifier &peer)
        : request_(request, slots, request_bytes), reply_(reply, slots, reply_bytes), peer_(peer),
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
        peer_.posted(slot, s.sequence, nbytes);
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
    Notifier &peer_;
    uint64_t request_bytes_, reply_bytes_;
    uint64_t next_ = 0;
    std::vector<Slot> slots_;
};

class ServerSlots : public Slots {
public:
    ServerSlots(nanobind::handle request, nanobind::handle reply, uint32_t slots, uint64_t request_bytes,
                uint64_t reply_bytes, Notifier &peer)
        : request_(request, slots, request_bytes), reply_(reply, slots, reply_bytes), peer_(peer),
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
        const uint64_t sequence = std::exchange(owed_[slot], 0);
        reply_.publish(slot, sequence, nbytes);
        peer_.posted(slot, sequence, nbytes);
    }

private:
    Ring request_, reply_;
    Notifier &peer_;
    uint64_t reply_bytes_;
    uint64_t next_ = 0;
    std::vector<uint64_t> owed_;  // sequence of the request whose reply is owed, or 0
};
