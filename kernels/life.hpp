// Signs of life between processes that a dying process cannot fail to give up, and gives up first.
//
// A killed process closes its sockets only after its memory has been unmapped, which takes a second
// for ten gigabytes. The kernel's robust futex list (set_robust_list(2)) is worked off before that:
// every word on the list that holds the dying thread's id is marked FUTEX_OWNER_DIED and one waiter
// on it is woken. So each process keeps a thread that does nothing but own such words, in memory
// that it shares with its peers, one word per peer; and waits on one word of each of its peers.
#pragma once
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <climits>
#include <cstdint>
#include <functional>
#include <thread>

constexpr uint32_t kLifeWords = 256;

// As far apart as the nodes of the kernel's list, which lie in private memory at the same distances:
// the kernel finds a word by adding one offset to the address of its node.
struct alignas(8) LifeWord {
    std::atomic<uint32_t> value;
};
static_assert(sizeof(LifeWord) == sizeof(robust_list));

inline long futex(std::atomic<uint32_t> *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

// A thread that leaves all signals to the others.
inline std::thread quiet_thread(std::function<void()> run) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread thread(std::move(run));
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return thread;
}

// Owns kLifeWords words until destruction, which gives no sign: farewells are said in other ways.
class LifeSign {
public:
    explicit LifeSign(LifeWord *words) : words_(words) {
        thread_ = quiet_thread([this] { own(); });
        started_.wait(0);
    }
    ~LifeSign() {
        if (getpid() != process_) {  // a forked child has the object, but not the thread
            thread_.detach();
            return;
        }
        stop_.store(1);
        futex(&stop_, FUTEX_WAKE_PRIVATE, INT_MAX);
        thread_.join();
    }
    LifeSign(const LifeSign &) = delete;
    LifeSign &operator=(const LifeSign &) = delete;

private:
    void own() {
        const auto id = static_cast<uint32_t>(syscall(SYS_gettid));
        for (uint32_t i = 0; i < kLifeWords; ++i) {
            nodes_[i].next = i + 1 < kLifeWords ? &nodes_[i + 1] : &head_.list;
            words_[i].value.store(id | FUTEX_WAITERS);
        }
        head_ = {{&nodes_[0]},
                 reinterpret_cast<char *>(words_) - reinterpret_cast<char *>(&nodes_[0]),
                 nullptr};
        syscall(SYS_set_robust_list, &head_, sizeof head_);
        started_.store(1);
        started_.notify_all();
        while (!stop_.load())
            futex(&stop_, FUTEX_WAIT_PRIVATE, 0);
        syscall(SYS_set_robust_list, nullptr, sizeof head_);
    }

    const pid_t process_ = getpid();
    LifeWord *words_;
    std::array<robust_list, kLifeWords> nodes_{};
    robust_list_head head_{};
    std::atomic<uint32_t> started_{0}, stop_{0};
    std::thread thread_;
};

// Calls `on_death` from a thread of its own, once, when the owner of a peer's word has died.
class LifeWatch {
public:
    LifeWatch(LifeWord *word, std::function<void()> on_death)
        : word_(&word->value), on_death_(std::move(on_death)) {
        thread_ = quiet_thread([this] { watch(); });
    }
    ~LifeWatch() { stop(); }

    // No call of `on_death` begins after this. Safe to call twice.
    void stop() {
        if (!thread_.joinable())
            return;
        if (getpid() != process_) {
            thread_.detach();
            return;
        }
        stop_.store(true);
        // Until it is out: a wake that comes before its wait is lost.
        while (!out_.load()) {
            futex(word_, FUTEX_WAKE, INT_MAX);
            std::this_thread::yield();
        }
        thread_.join();
    }
    LifeWatch(const LifeWatch &) = delete;
    LifeWatch &operator=(const LifeWatch &) = delete;

private:
    void watch() {
        while (!stop_.load()) {
            const uint32_t value = word_->load();
            if (value & FUTEX_OWNER_DIED) {
                on_death_();
                break;
            }
            futex(word_, FUTEX_WAIT, value);
        }
        out_.store(true);
    }

    const pid_t process_ = getpid();
    std::atomic<uint32_t> *word_;
    std::function<void()> on_death_;
    std::atomic<bool> stop_{false}, out_{false};
    std::thread thread_;
};
