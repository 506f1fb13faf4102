#include "tcp_pump.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "bell.hpp"
#include "life.hpp"

namespace {

// Keys of epoll events: 2 * id of the link for its data, one more for its control connection.
constexpr uint64_t kWake = 0, kTimer = 1;

[[noreturn]] void fail(const char *what) {
    throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

TcpPump &TcpPump::instance() {
    // Never destroyed: the thread may outlive the statics. Without a lock: a child may have been
    // forked while another thread held it.
    static std::atomic<TcpPump *> current{nullptr};
    TcpPump *pump = current.load();
    while (!pump || pump->process_ != getpid()) {
        auto *fresh = new TcpPump;
        if (current.compare_exchange_strong(pump, fresh))
            return *fresh;
        delete fresh;
    }
    return *pump;
}

TcpPump::TcpPump() : process_(getpid()) {}

void TcpPump::join(uint64_t id, std::shared_ptr<TcpPumped> link, int data, int control) {
    std::lock_guard lifetime(lifetime_);
    if (!thread_.joinable())
        start();
    {
        std::lock_guard lock(map_);
        links_.emplace(id, std::move(link));
    }
    try {
        change(EPOLL_CTL_ADD, data, 2 * id, EPOLLIN);
        change(EPOLL_CTL_ADD, control, 2 * id + 1, EPOLLIN);
    } catch (...) {
        unwatch(data);
        remove(id);
        throw;
    }
}

void TcpPump::leave(uint64_t id) {
    std::lock_guard lifetime(lifetime_);
    remove(id);
}

void TcpPump::remove(uint64_t id) {
    {
        std::lock_guard lock(map_);
        links_.erase(id);
        if (!links_.empty())
            return;
    }
    end();
}

void TcpPump::watch_data(uint64_t id, int fd, uint32_t events) {
    change(EPOLL_CTL_MOD, fd, 2 * id, events);
}

void TcpPump::watch_control(uint64_t id, int fd, uint32_t events) {
    change(EPOLL_CTL_MOD, fd, 2 * id + 1, events);
}

void TcpPump::unwatch(int fd) { epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr); }

void TcpPump::wake_at(int64_t deadline_ns) {
    std::lock_guard lock(timing_);
    if (timer_ns_ && timer_ns_ <= deadline_ns)
        return;
    timer_ns_ = deadline_ns;
    const itimerspec when{{}, {deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000}};
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
}

void TcpPump::start() {
    timer_ns_ = 0;
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    try {
        if (epoll_ < 0 || wake_ < 0 || timer_ < 0)
            fail("the thread of the TCP transport");
        change(EPOLL_CTL_ADD, wake_, kWake, EPOLLIN);
        change(EPOLL_CTL_ADD, timer_, kTimer, EPOLLIN);
        thread_ = quiet_thread([this] { run(); });
        pthread_setname_np(thread_.native_handle(), "tarragon-tcp");
    } catch (...) {
        end();
        throw;
    }
}

void TcpPump::end() {
    if (thread_.joinable()) {
        eventfd_write(wake_, 1);
        thread_.join();
    }
    for (int *fd : {&epoll_, &wake_, &timer_}) {
        if (*fd >= 0)
            close(*fd);
        *fd = -1;
    }
}

void TcpPump::run() {
    epoll_event events[64];
    for (;;) {
        const int count = epoll_wait(epoll_, events, 64, -1);
        for (int i = 0; i < count; ++i) {
            const uint64_t key = events[i].data.u64;
            if (key == kWake)
                return;
            if (key == kTimer)
                sweep();
            else if (auto link = find(key / 2); link && key % 2)
                link->on_control(events[i].events);
            else if (link)
                link->on_data(events[i].events);
        }
    }
}

void TcpPump::sweep() {
    uint64_t expirations;
    if (read(timer_, &expirations, sizeof expirations) < 0)
        return;
    {
        std::lock_guard lock(timing_);
        timer_ns_ = 0;
    }
    std::vector<std::shared_ptr<TcpPumped>> links;
    {
        std::lock_guard lock(map_);
        for (auto &[id, link] : links_)
            links.push_back(link);
    }
    for (auto &link : links)
        if (const int64_t next = link->on_time(monotonic_ns()))
            wake_at(next);
}

void TcpPump::change(int operation, int fd, uint64_t key, uint32_t events) {
    epoll_event event{events, {.u64 = key}};
    if (epoll_ctl(epoll_, operation, fd, &event) && operation == EPOLL_CTL_ADD)
        fail("epoll_ctl");
}

std::shared_ptr<TcpPumped> TcpPump::find(uint64_t id) {
    std::lock_guard lock(map_);
    auto found = links_.find(id);
    return found == links_.end() ? nullptr : found->second;
}
