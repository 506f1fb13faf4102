// The receiving end of a TCP link: everything here runs in the pump's thread.
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "tcp_link.hpp"

namespace {

constexpr uint64_t kHeader = sizeof(TcpHeader);
// A farewell and the last replies travel on different connections: so long one waits for the other.
constexpr int64_t kGrace = 20'000'000;
// So much of a large message is waited for, rather than woken for every segment of it.
constexpr uint64_t kWorthwhile = 128 << 10;
// Signs of life that a peer may have asked for without reading them.
constexpr uint32_t kMostOwed = 1 << 16;

TcpEnd end_of(ssize_t count) {
    return count == 0 ? TcpEnd{TcpEnd::Kind::eof} : TcpEnd{TcpEnd::Kind::error, errno};
}

bool nothing_there(ssize_t count) { return count < 0 && (errno == EAGAIN || errno == EINTR); }

}  // namespace

void TcpLink::on_data(uint32_t events) {
    std::lock_guard lock(receiving_lock_);
    if (over_ || data_end_)
        return;
    if (events & EPOLLOUT && may_go_on())
        send_queued();
    if (events & ~uint32_t{EPOLLOUT})
        receive();
}

void TcpLink::receive() {
    for (uint64_t turn = 0; !over_;) {
        const bool in_header = received_ < kHeader;
        const uint64_t at = in_header ? received_ : received_ - kHeader;
        uint8_t *base = in_header ? reinterpret_cast<uint8_t *>(&header_)
                                  : incoming_.data(header_.slot);
        const uint64_t room = (in_header ? kHeader : header_.nbytes) - at;
        if (room) {
            const uint64_t worth = in_header ? 1 : std::min(room, kWorthwhile);
            if (turn >= kTcpTurn)  // what is left may be less than what was waited for before
                return wake_at(worth);
            const ssize_t count = recv(data_, base + at, room, MSG_DONTWAIT);
            if (nothing_there(count))
                return wake_at(worth);
            if (count <= 0)
                return data_ended(end_of(count));
            received_ += static_cast<uint64_t>(count);
            turn += static_cast<uint64_t>(count);
            heard();
            if (in_header && received_ == kHeader && !header_is_good())
                return;
        }
        if (received_ >= kHeader && received_ == kHeader + header_.nbytes) {
            incoming_.publish(header_.slot, header_.sequence, header_.nbytes);
            received_ = 0;
            bell_->ring();
        }
    }
}

// The thread is not woken for less than `nbytes` (SO_RCVLOWAT, socket(7)), or for the end.
void TcpLink::wake_at(uint64_t nbytes) {
    const int low = static_cast<int>(nbytes);
    if (low != low_water_ && setsockopt(data_, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low) == 0)
        low_water_ = low;
}

bool TcpLink::header_is_good() {
    std::string why = inbox_.refusal(header_);
    if (why.empty() && !has_sent(header_.slot, inbox_.needs(header_)))
        why = inbox_.early(header_);
    if (!why.empty()) {
        lose("peer broke the protocol: " + why);
        return false;
    }
    inbox_.take(header_);
    return true;
}

void TcpLink::on_control(uint32_t events) {
    std::lock_guard lock(receiving_lock_);
    if (over_ || control_end_)
        return;
    if (events & EPOLLOUT)
        say_alive();
    if (events & ~uint32_t{EPOLLOUT})
        read_control();
}

void TcpLink::read_control() {
    uint8_t bytes[64];
    const ssize_t count = recv(control_, bytes, sizeof bytes, MSG_DONTWAIT);
    if (nothing_there(count))
        return;
    if (count <= 0)
        return control_ended(end_of(count));
    heard();
    bool answered = false, asked = false, pinged = false;
    for (ssize_t i = 0; i < count; ++i) {
        if (bytes[i] == kTcpBye)
            return control_ended({TcpEnd::Kind::bye});
        if (bytes[i] == kTcpProbe && alive_owed_ < kMostOwed) {
            ++alive_owed_;
            asked = true;
        } else if (bytes[i] == kTcpPing) {
            pinged = true;
        } else if (bytes[i] == kTcpPong) {
            continue;
        } else if (bytes[i] == kTcpAlive && answered_.load() < probed_.load()) {
            answered_.fetch_add(1);
            answered = true;
        } else {
            return lose("peer broke the protocol: " +
                        std::string(bytes[i] == kTcpProbe   ? "too many probes"
                                    : bytes[i] == kTcpAlive ? "an answer to no probe"
                                                            : "garbage on the control connection"));
        }
    }
    if (asked)
        say_alive();
    if (pinged)
        send(control_, &kTcpPong, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (answered)
        bell_->ring();
}

void TcpLink::say_alive() {
    std::array<uint8_t, 64> words;
    words.fill(kTcpAlive);
    while (alive_owed_) {
        const ssize_t count = send(control_, words.data(), std::min<size_t>(alive_owed_, 64),
                                   MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count <= 0)
            break;
        alive_owed_ -= static_cast<uint32_t>(count);
    }
    pump_.watch_control(id_, control_, alive_owed_ ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

void TcpLink::data_ended(TcpEnd end) {
    {
        std::lock_guard lock(sending_lock_);
        // The sender may have been told of a reset; what is left then looks like an orderly end.
        if (end.kind == TcpEnd::Kind::eof && send_error_ && send_error_ != EPIPE)
            end = {TcpEnd::Kind::error, send_error_};
    }
    data_end_ = end;
    pump_.unwatch(data_);
    consider_end();
}

void TcpLink::control_ended(TcpEnd end) {
    control_end_ = end;
    pump_.unwatch(control_);
    consider_end();
}

void TcpLink::consider_end() {
    if (data_end_ && control_end_)
        return lose(tcp_reason(data_end_, control_end_));
    end_ns_ = monotonic_ns() + kGrace;
    pump_.wake_at(end_ns_);
}

void TcpLink::heard() {
    heard_ns_.store(monotonic_ns());
    if (asked_ns_.load())
        asked_ns_.store(0);
}

bool TcpLink::silent() const {
    const int64_t asked = asked_ns_.load();
    return asked && monotonic_ns() - asked >= silent_loss_ns_;
}

int64_t TcpLink::on_time(int64_t now_ns) {
    std::lock_guard lock(receiving_lock_);
    const bool late = end_ns_ && now_ns >= end_ns_;
    if (!over_ && (late || silent())) {
        // It may be this process that was held up, with everything there.
        if (!control_end_)
            read_control();
        if (!over_ && !data_end_)
            receive();
    }
    if (!over_ && late)
        lose(tcp_reason(data_end_, control_end_));
    if (!over_ && !end_ns_ && silent()) {
        char text[40];
        snprintf(text, sizeof text, "silent for %.1f s",
                 1e-9 * static_cast<double>(monotonic_ns() - heard_ns_.load()));
        lose(text);
    }
    if (over_)
        return 0;
    if (end_ns_)
        return end_ns_;
    const int64_t next = heard_ns_.load() + silent_loss_ns_ / kPings;
    if (!asked_ns_.load() && now_ns < next)
        return next;
    if (!asked_ns_.load()) {
        asked_ns_.store(now_ns);
        send(control_, &kTcpPing, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    return asked_ns_.load() + silent_loss_ns_;
}

std::string tcp_reason(const TcpEnd &data, const TcpEnd &control) {
    using Kind = TcpEnd::Kind;
    if (control.kind == Kind::bye)
        return "closed by peer";
    if (data.kind == Kind::eof || control.kind == Kind::eof)
        return "process gone (connection closed)";
    const int error = data.error ? data.error : control.error;
    return std::string("connection lost (") + strerror(error) + ")";
}
