// The one thread of a process that moves the bytes of all its TCP links. It never takes the GIL.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

// What the pump calls, in its thread, while the link is joined; calls may be under way or still to
// come when `leave` returns, so that a link guards itself.
class TcpPumped {
public:
    virtual ~TcpPumped() = default;
    virtual void on_data(uint32_t events) = 0;
    virtual void on_control(uint32_t events) = 0;
    // Some deadline is over, perhaps one of this link; returns its next one, or 0.
    virtual int64_t on_time(int64_t now_ns) = 0;
};

class TcpPump {
public:
    // This process's own, also after a fork. It lasts as long as the process.
    static TcpPump &instance();

    uint64_t new_id() { return last_id_.fetch_add(1) + 1; }
    // Both descriptors are watched for input, level-triggered. The thread starts with the first
    // link. Throws std::system_error.
    void join(uint64_t id, std::shared_ptr<TcpPumped> link, int data, int control);
    // The descriptors are not watched any more. The thread ends with the last link; its caller
    // waits for that, so no link may leave in the thread.
    void leave(uint64_t id);

    // Of a joined link, from any thread.
    void watch_data(uint64_t id, int fd, uint32_t events);
    void watch_control(uint64_t id, int fd, uint32_t events);
    void unwatch(int fd);
    void wake_at(int64_t deadline_ns);

private:
    TcpPump();
    void start();
    void remove(uint64_t id);
    void end();
    void run();
    void sweep();
    void change(int operation, int fd, uint64_t key, uint32_t events);
    std::shared_ptr<TcpPumped> find(uint64_t id);

    const pid_t process_;
    std::mutex lifetime_;  // of the thread and the descriptors
    int epoll_ = -1, wake_ = -1, timer_ = -1;
    std::thread thread_;

    std::mutex map_;
    std::unordered_map<uint64_t, std::shared_ptr<TcpPumped>> links_;
    std::atomic<uint64_t> last_id_{0};

    std::mutex timing_;
    int64_t timer_ns_ = 0;  // when the timer will fire, or 0
};
