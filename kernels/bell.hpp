// The doorbell in shared memory: a counter that any process rings and one process waits on.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>

// Counter and sleeper count on lines of their own, so that ringing does not slow the spinner.
struct BellWords {
    alignas(64) std::atomic<uint32_t> count;
    alignas(64) std::atomic<uint32_t> sleepers;
};
static_assert(sizeof(BellWords) == 128 && std::atomic<uint32_t>::is_always_lock_free);

inline void cpu_relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline int64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// Sleeps while *word == expected, until an absolute monotonic time. Returns 0 or an errno.
// The futex is a shared one: the word lies in memory of two processes.
inline int futex_wait_until(std::atomic<uint32_t> *word, uint32_t expected, int64_t deadline_ns) {
    timespec until{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &until, nullptr,
                      FUTEX_BITSET_MATCH_ANY);
    return rc == 0 ? 0 : errno;
}

inline void bell_ring(BellWords *bell) {
    // seq_cst on both sides: either the ringer sees the sleeper or the sleeper sees the ring.
    bell->count.fetch_add(1, std::memory_order_seq_cst);
    if (bell->sleepers.load(std::memory_order_seq_cst) != 0)
        syscall(SYS_futex, &bell->count, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

enum class Woken { rung, timed_out, interrupted };

// Spins for at most spin_ns, then sleeps. `interrupted`: a signal arrived.
inline Woken bell_wait(BellWords *bell, uint32_t seen, int64_t deadline_ns, int64_t spin_ns) {
    if (spin_ns > 0) {
        int64_t now = monotonic_ns();
        int64_t spin_until = now + spin_ns < deadline_ns ? now + spin_ns : deadline_ns;
        do {
            for (int i = 0; i < 16; ++i) {
                if (bell->count.load(std::memory_order_acquire) != seen)
                    return Woken::rung;
                cpu_relax();
            }
        } while (monotonic_ns() < spin_until);
    }
    bell->sleepers.fetch_add(1, std::memory_order_seq_cst);
    int error = 0;
    while (bell->count.load(std::memory_order_seq_cst) == seen) {
        error = futex_wait_until(&bell->count, seen, deadline_ns);
        if (error == ETIMEDOUT || error == EINTR)
            break;
    }
    bell->sleepers.fetch_sub(1, std::memory_order_seq_cst);
    if (bell->count.load(std::memory_order_acquire) != seen)
        return Woken::rung;
    return error == EINTR ? Woken::interrupted : Woken::timed_out;
}
