// Layout of a dispatch and its reply: the native copy of tarragon_hpc/wire/dispatch.py.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr uint64_t kAlign = 64;
constexpr uint32_t kRequestMagic = 0x51475254;  // "TRGQ"
constexpr uint32_t kReplyMagic = 0x41475254;    // "TRGA"
constexpr uint32_t kMaxHidden = 1u << 24;       // keeps every size below 2^64

struct RequestHeader {
    uint32_t magic;
    uint16_t dtype;
    uint16_t flags;
    uint32_t incarnation;
    uint32_t epoch;
    uint64_t sequence;
    uint32_t layer;
    uint32_t rows;
    uint32_t pairs;
    uint32_t groups;
    uint32_t hidden;
    uint32_t pad[5];
};
static_assert(sizeof(RequestHeader) == 64 && offsetof(RequestHeader, sequence) == 16 &&
              offsetof(RequestHeader, hidden) == 40);

struct ReplyHeader {
    uint32_t magic;
    uint16_t dtype;
    uint16_t status;
    uint32_t incarnation;
    uint32_t epoch;
    uint64_t sequence;
    uint32_t layer;
    uint32_t rows;
    uint32_t pairs;
    uint32_t hidden;
    uint64_t compute_ns;
    uint64_t pad[2];
};
static_assert(sizeof(ReplyHeader) == 64 && offsetof(ReplyHeader, compute_ns) == 40);

struct Group {
    uint32_t expert;
    uint32_t count;
};

enum class Dtype : uint16_t { f32 = 0, bf16 = 1, f16 = 2 };

inline uint64_t itemsize(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

inline uint64_t rows_offset(uint64_t groups, uint64_t pairs) {
    uint64_t end = sizeof(RequestHeader) + sizeof(Group) * groups + 4 * pairs;
    return (end + kAlign - 1) / kAlign * kAlign;
}
