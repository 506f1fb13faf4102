// One end of a channel over TCP: two connections, and the rings whose slots they carry.
//
// Whoever fills a slot sends it, straight from the ring, as far as the kernel takes it at once; the
// pump's thread sends the rest, and receives, straight into the ring.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "slots.hpp"
#include "tcp_pump.hpp"
#include "tcp_wire.hpp"

// A peer is asked for a sign of life whenever it has said nothing for this part of `silent_loss`.
constexpr int64_t kPings = 4;
// So many bytes are moved each way, then other links get their turn.
constexpr uint64_t kTcpTurn = 4 << 20;

class TcpLink : public TcpPumped, public std::enable_shared_from_this<TcpLink> {
public:
    // outgoing: what is sent from; incoming: where the peer's slots are written to; both must
    // outlive `stop`. serves: requests come in and replies go out, or the other way round.
    TcpLink(const Ring &outgoing, Ring &incoming, uint32_t slots, uint64_t incoming_bytes,
            bool serves, int64_t silent_loss_ns);
    ~TcpLink();

    // Bytes move from now on. The connected sockets are owned, even if this throws
    // (std::system_error); `bell` must outlive `stop`. Once.
    void start(int data, int control, const LostFlag &lost, Doorbell &bell);
    // Says farewell and closes the connections. When it returns, neither rings nor bell are touched
    // any more. Safe to call twice, and from any thread but the pump's.
    void stop();

    // Never waits for the peer or for room in the kernel.
    void post(uint32_t slot, uint64_t sequence, uint64_t nbytes);
    void probe();
    uint64_t answered() const { return answered_.load(); }
    // Why it was lost, if it was.
    std::string reason();

    void on_data(uint32_t events) override;
    void on_control(uint32_t events) override;
    int64_t on_time(int64_t now_ns) override;

private:
    struct Message {
        TcpHeader header;
        uint64_t sent;  // of header and slot together
    };

    void close_sockets();
    bool may_go_on();
    void send_queued();
    ssize_t send_some(const Message &m) const;
    bool has_sent(uint32_t slot, uint64_t sequence);

    void receive();
    void wake_at(uint64_t nbytes);
    bool header_is_good();
    void read_control();
    void read_control(const uint8_t *bytes, ssize_t count);
    void say_alive();
    void data_ended(TcpEnd end);
    void control_ended(TcpEnd end);
    void consider_end();
    void lose(const std::string &reason);
    void heard();
    bool silent() const;

    const Ring &outgoing_;
    Ring &incoming_;
    const bool serves_;
    const int64_t silent_loss_ns_;
    const pid_t process_;
    TcpPump &pump_;
    const uint64_t id_;
    int data_ = -1, control_ = -1;
    LostFlag lost_;
    Doorbell *bell_ = nullptr;

    // Sending. One thread does it at a time, without the lock: who has set `sending_`.
    std::mutex sending_lock_;
    std::condition_variable rested_;
    bool open_ = false;
    bool sending_ = false;
    bool full_ = false;           // the kernel is; the pump will go on
    std::vector<Message> queue_;  // a ring: one message per slot at most
    size_t first_ = 0, queued_ = 0;
    int send_error_ = 0;
    std::string reason_;
    std::vector<std::atomic<uint64_t>> sent_;  // by slot: the last sequence that the kernel has

    // Receiving, in the pump's thread, which holds the lock while it is here.
    std::mutex receiving_lock_;
    bool over_ = true;  // nothing is taken any more
    TcpInbox inbox_;
    TcpHeader header_{};
    uint64_t received_ = 0;  // of header and slot together
    int low_water_ = 1;
    TcpEnd data_end_, control_end_;
    int64_t end_ns_ = 0;  // one connection has ended: how long the other may take
    uint32_t alive_owed_ = 0;

    std::atomic<uint64_t> probed_{0}, answered_{0};
    std::atomic<int64_t> heard_ns_{0};  // when anything came last
    std::atomic<int64_t> asked_ns_{0};  // since when an answer is owed, or 0
};
