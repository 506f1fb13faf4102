#include "tcp_link.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstring>

namespace {

constexpr uint64_t kHeader = sizeof(TcpHeader);
constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;

}  // namespace

TcpLink::TcpLink(const Ring &outgoing, Ring &incoming, uint32_t slots,
                 uint64_t incoming_bytes, bool serves, int64_t silent_loss_ns)
    : outgoing_(outgoing), incoming_(incoming), serves_(serves), silent_loss_ns_(silent_loss_ns),
      process_(getpid()), pump_(TcpPump::instance()), id_(pump_.new_id()), queue_(slots),
      sent_(slots), inbox_(serves, slots, incoming_bytes) {}

TcpLink::~TcpLink() { close_sockets(); }

void TcpLink::start(int data, int control, const LostFlag &lost, Doorbell &bell) {
    data_ = data;
    control_ = control;
    lost_ = lost;
    bell_ = &bell;
    {
        std::lock_guard lock(receiving_lock_);
        over_ = false;
    }
    heard_ns_.store(monotonic_ns());
    pump_.join(id_, shared_from_this(), data_, control_);
    pump_.wake_at(heard_ns_.load() + silent_loss_ns_ / kPings);
    std::lock_guard lock(sending_lock_);
    open_ = reason_.empty();  // it may be lost already
}

void TcpLink::stop() {
    if (data_ < 0)
        return;
    if (getpid() != process_)  // a forked child has no part in this
        return close_sockets();
    {
        std::lock_guard lock(receiving_lock_);
        over_ = true;
        pump_.unwatch(data_);
        pump_.unwatch(control_);
    }
    {
        std::unique_lock lock(sending_lock_);
        open_ = false;
        rested_.wait(lock, [this] { return !sending_; });
    }
    pump_.leave(id_);
    send(control_, &kTcpBye, 1, kFlags);
    close_sockets();
}

void TcpLink::close_sockets() {
    for (int *fd : {&control_, &data_}) {
        if (*fd >= 0)
            close(*fd);
        *fd = -1;
    }
}

void TcpLink::post(uint32_t slot, uint64_t sequence, uint64_t nbytes) {
    {
        std::lock_guard lock(sending_lock_);
        if (!open_ || send_error_)
            return;
        queue_[(first_ + queued_++) % queue_.size()] = {
            {serves_ ? kTcpReply : kTcpRequest, slot, sequence, nbytes}, 0};
        if (sending_ || full_)
            return;
        sending_ = true;
    }
    send_queued();
}

// Whether the pump is to send what is queued: the kernel has room again.
bool TcpLink::may_go_on() {
    std::lock_guard lock(sending_lock_);
    if (!std::exchange(full_, false))
        return false;
    pump_.watch_data(id_, data_, EPOLLIN);
    return sending_ = open_ && queued_;
}

void TcpLink::send_queued() {
    for (uint64_t turn = 0;;) {
        Message &m = queue_[first_];
        const ssize_t count = turn < kTcpTurn ? send_some(m) : (errno = EAGAIN, -1);
        const int error = count < 0 ? errno : 0;
        if (error == EINTR)
            continue;
        if (!error) {
            turn += static_cast<uint64_t>(count);
            m.sent += static_cast<uint64_t>(count);
            if (m.sent < kHeader + m.header.nbytes)
                continue;
            sent_[m.header.slot].store(m.header.sequence, std::memory_order_release);
        }
        std::lock_guard lock(sending_lock_);
        if (!error) {
            first_ = (first_ + 1) % queue_.size();
            if (--queued_ && open_)
                continue;
        } else if (error != EAGAIN) {
            send_error_ = error;  // the pump will see it too, and look for a farewell first
        } else if (open_) {
            full_ = true;
            pump_.watch_data(id_, data_, EPOLLIN | EPOLLOUT);
        }
        sending_ = false;
        rested_.notify_all();
        return;
    }
}

ssize_t TcpLink::send_some(const Message &m) const {
    iovec parts[2];
    msghdr message{};
    message.msg_iov = parts;
    if (m.sent < kHeader)
        parts[message.msg_iovlen++] = {
            const_cast<char *>(reinterpret_cast<const char *>(&m.header)) + m.sent,
            kHeader - m.sent};
    const uint64_t begun = m.sent < kHeader ? 0 : m.sent - kHeader;
    if (begun < m.header.nbytes)
        parts[message.msg_iovlen++] = {outgoing_.data(m.header.slot) + begun,
                                       m.header.nbytes - begun};
    return sendmsg(data_, &message, kFlags);
}

// A peer that is quick may answer before the sender has noted that it has sent: that is waited for.
bool TcpLink::has_sent(uint32_t slot, uint64_t sequence) {
    if (sent_[slot].load(std::memory_order_acquire) == sequence)
        return true;
    std::unique_lock lock(sending_lock_);
    rested_.wait(lock, [this] { return !sending_; });
    return sent_[slot].load(std::memory_order_acquire) == sequence;
}

void TcpLink::probe() {
    const int64_t now = monotonic_ns();
    std::lock_guard lock(sending_lock_);
    if (!open_)
        return;
    if (!asked_ns_.load())
        asked_ns_.store(now);
    probed_.fetch_add(1);
    // A full socket belongs to a peer that does not read: it will be found silent.
    if (send(control_, &kTcpProbe, 1, kFlags) != 1)
        probed_.fetch_sub(1);
}

std::string TcpLink::reason() {
    std::lock_guard lock(sending_lock_);
    return reason_;
}

// In the pump's thread, with `receiving_lock_`.
void TcpLink::lose(const std::string &reason) {
    over_ = true;
    pump_.unwatch(data_);
    pump_.unwatch(control_);
    {
        std::lock_guard lock(sending_lock_);
        reason_ = reason;
        open_ = false;
    }
    send(control_, &kTcpBye, 1, kFlags);
    shutdown(control_, SHUT_RDWR);
    shutdown(data_, SHUT_RDWR);
    lost_.set();
    bell_->ring();
}
