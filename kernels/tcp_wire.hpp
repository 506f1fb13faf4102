// What the two ends of a TCP link may say to each other, and when.
//
// Data connection: a header, then the first `nbytes` of a slot; one message after the other.
// Control connection: single bytes.
#pragma once
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

struct TcpHeader {
    uint32_t kind, slot;
    uint64_t sequence, nbytes;
};
static_assert(sizeof(TcpHeader) == 24 && std::endian::native == std::endian::little);

constexpr uint32_t kTcpRequest = 0x51525454, kTcpReply = 0x50525454;  // "TTRQ", "TTRP"
// Probes are counted, and asked for; pings are the link's own, to hear something now and then.
constexpr uint8_t kTcpBye = 0, kTcpProbe = 1, kTcpAlive = 2, kTcpPing = 3, kTcpPong = 4;

// Which messages an end takes, so that no peer writes into a buffer that it does not own.
class TcpInbox {
public:
    TcpInbox(bool serves, uint32_t slots, uint64_t slot_bytes)
        : serves_(serves), slot_bytes_(slot_bytes), taken_(slots, 0) {}

    // Why this message breaks the protocol; empty: it does not, if `needs` has been sent.
    std::string refusal(const TcpHeader &h) const {
        const std::string what = serves_ ? "request" : "reply";
        if (h.kind != (serves_ ? kTcpRequest : kTcpReply))
            return "not a " + what;
        if (h.slot >= taken_.size())
            return what + " in slot " + std::to_string(h.slot) + " of " +
                   std::to_string(taken_.size());
        if (h.nbytes > slot_bytes_)
            return what + " of " + std::to_string(h.nbytes) + " bytes in a slot of " +
                   std::to_string(slot_bytes_);
        if (serves_ && h.sequence != last_ + 1)
            return "request " + std::to_string(h.sequence) + " after " + std::to_string(last_);
        if (serves_ && h.slot != last_ % taken_.size())
            return "request " + std::to_string(h.sequence) + " in slot " + std::to_string(h.slot);
        if (!serves_ && h.sequence <= taken_[h.slot])
            return "second reply to request " + std::to_string(taken_[h.slot]);
        return {};
    }
    // The sequence of the last message in this slot that must have been sent from here before.
    uint64_t needs(const TcpHeader &h) const { return serves_ ? taken_[h.slot] : h.sequence; }
    std::string early(const TcpHeader &h) const {
        return serves_ ? "request " + std::to_string(h.sequence) + " in slot " +
                             std::to_string(h.slot) + ", which still owes a reply"
                       : "reply to request " + std::to_string(h.sequence) + " in slot " +
                             std::to_string(h.slot) + ", which has not been posted there";
    }
    void take(const TcpHeader &h) { last_ = taken_[h.slot] = h.sequence; }

private:
    bool serves_;
    uint64_t slot_bytes_;
    uint64_t last_ = 0;
    std::vector<uint64_t> taken_;  // by slot
};

// How a connection came to its end: nothing yet, or the first thing that was seen.
struct TcpEnd {
    enum class Kind : uint8_t { none, bye, eof, error } kind = Kind::none;
    int error = 0;
    explicit operator bool() const { return kind != Kind::none; }
};

// Why a peer is gone. A farewell tells most; only a closed socket sends an orderly end; a reset may
// come from a peer that died with something unread, or from anybody on the way.
std::string tcp_reason(const TcpEnd &data, const TcpEnd &control);
