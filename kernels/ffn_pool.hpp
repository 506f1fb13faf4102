// A team of threads that run one function together; idle threads sleep on a futex.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace ffn {

// All members of a team meet here. Members wait a few microseconds awake, then sleep.
class Meeting {
public:
    explicit Meeting(unsigned n) : n_(n) {}

    // Counts one member as here; true if it was the last, which lets all go.
    bool arrive() {
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < n_) return false;
        arrived_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        return true;
    }

    void wait() {
        if (n_ == 1) return;
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrive()) return;
        for (int i = 0; i < 400; ++i) {
            if (phase_.load(std::memory_order_acquire) != phase) return;
            relax();
        }
        while (phase_.load(std::memory_order_acquire) == phase) phase_.wait(phase);
    }

private:
    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    const unsigned n_;
    std::atomic<unsigned> arrived_{0}, phase_{0};
};

// n - 1 threads and the caller. Not for use from two threads at once.
class Pool {
public:
    explicit Pool(unsigned n) : n_(n), start_(n), finish_(n) {
        // Signals belong to the interpreter's threads: none of them wakes up a worker.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (unsigned i = 1; i < n; ++i) threads_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            // The threads that did start wait for the others: stand in for them, then stop.
            for (size_t i = threads_.size(); i < n; ++i) start_.arrive();
            for (auto &t : threads_) t.join();
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
            throw;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    ~Pool() {
        task_ = nullptr;
        start_.wait();
        for (auto &t : threads_) t.join();
    }

    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    unsigned size() const { return n_; }

    // Runs task(i) for every i < size(), i = 0 on the calling thread; returns when all are done.
    // The task must not throw.
    void run(const std::function<void(unsigned)> &task) {
        task_ = &task;
        start_.wait();
        task(0);
        finish_.wait();
    }

private:
    void serve(unsigned i) {
#if defined(__linux__)
        pthread_setname_np(pthread_self(), ("ffn-" + std::to_string(i)).c_str());
#endif
        for (;;) {
            start_.wait();
            if (!task_) return;
            (*task_)(i);
            finish_.wait();
        }
    }

    const unsigned n_;
    Meeting start_, finish_;
    const std::function<void(unsigned)> *task_ = nullptr;
    std::vector<std::thread> threads_;
};

}  // namespace ffn
