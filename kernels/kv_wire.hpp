// tarragon_hpc/wire/kv.py for native code: what AW and checkpoint store write into slots.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr uint32_t kKvMagic = 0x564B5254;  // "TRKV"

enum KvKind : uint8_t { kKvPut = 1, kKvFree = 2, kKvLook = 3, kKvFetch = 4, kKvHello = 5 };
enum KvStatus : uint16_t { kKvOk, kKvUnknown, kKvStale, kKvShort, kKvBad };

constexpr uint8_t kKvCommit = 1;  // flag of the last Put of an engine step
constexpr uint32_t kSumAbsent = 0, kSumNone = 1;

struct KvHeader {
    uint32_t magic;
    uint8_t kind, flags;
    uint16_t status;
    uint64_t sequence;
    uint32_t runs, rows;
    uint16_t first_layer, layers;
    uint32_t reserved;
    uint64_t body;
    uint64_t unused;
};
static_assert(sizeof(KvHeader) == 48 && offsetof(KvHeader, body) == 32);

struct KvRun {
    uint64_t key;
    uint32_t attempt, base, start, length;
};
static_assert(sizeof(KvRun) == 24);

constexpr uint64_t kv_aligned(uint64_t offset) { return (offset + 63) / 64 * 64; }
