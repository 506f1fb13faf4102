// Checksums of many KV rows, a few side by side. See wire/kv.py for what a sum is.
#pragma once
#include <cstddef>
#include <cstdint>

#include "crc32c.hpp"

constexpr size_t kSumLanes = 4;

// A row and what its sum binds it to.
struct KvPlace {
    uint64_t key;
    uint32_t layer, position;
    const uint8_t *row;
};

#if defined(__x86_64__)
// The instruction answers after three cycles, but one can start in each: rows hide each other's.
__attribute__((target("sse4.2"))) inline void kv_sums_by_instruction(const KvPlace *places,
                                                                     size_t size, uint32_t *sums) {
    uint64_t state[kSumLanes];
    const uint8_t *row[kSumLanes];
    for (size_t i = 0; i < kSumLanes; ++i) {
        const uint64_t where = places[i].layer | uint64_t{places[i].position} << 32;
        state[i] = __builtin_ia32_crc32di(__builtin_ia32_crc32di(~0u, places[i].key), where);
        row[i] = places[i].row;
    }
    size_t at = 0;
    for (; at + 8 <= size; at += 8)
        for (size_t i = 0; i < kSumLanes; ++i) {
            uint64_t word;
            std::memcpy(&word, row[i] + at, 8);
            state[i] = __builtin_ia32_crc32di(state[i], word);
        }
    for (size_t i = 0; i < kSumLanes; ++i) {
        const uint32_t sum = ~crc32c_detail::by_instruction(static_cast<uint32_t>(state[i]),
                                                            row[i] + at, size - at);
        sums[i] = sum < 2 ? 2 : sum;
    }
}
#endif

// sums[i] = kv_sum(places[i]) for i < count; all rows have `size` bytes.
inline void kv_sums(const KvPlace *places, size_t count, size_t size, uint32_t *sums) {
    size_t i = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        for (; i + kSumLanes <= count; i += kSumLanes)
            kv_sums_by_instruction(places + i, size, sums + i);
#endif
    for (; i < count; ++i)
        sums[i] = kv_sum(places[i].key, places[i].layer, places[i].position, places[i].row, size);
}
