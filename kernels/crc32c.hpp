// CRC-32C (Castagnoli; RFC 3720 B.4), by the CPU's own instruction where it has one.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace crc32c_detail {

constexpr std::array<uint32_t, 256> make_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0x82F63B78u : 0);
        table[i] = value;
    }
    return table;
}

inline constexpr std::array<uint32_t, 256> kTable = make_table();

inline uint32_t by_table(uint32_t state, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; ++i) state = (state >> 8) ^ kTable[(state ^ data[i]) & 0xFF];
    return state;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) inline uint32_t by_instruction(uint32_t state,
                                                                 const uint8_t *data,
                                                                 size_t size) {
    uint64_t wide = state;
    while (size >= 8) {
        uint64_t word;
        std::memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
        data += 8, size -= 8;
    }
    state = static_cast<uint32_t>(wide);
    while (size--) state = __builtin_ia32_crc32qi(state, *data++);
    return state;
}
#endif

}  // namespace crc32c_detail

// The sum of `data` after what has the sum `before` (0: nothing).
inline uint32_t crc32c(uint32_t before, const void *data, size_t size) {
    const auto *bytes = static_cast<const uint8_t *>(data);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc32c_detail::by_instruction(~before, bytes, size);
#endif
    return ~crc32c_detail::by_table(~before, bytes, size);
}

// The checksum of a KV row: see wire/kv.py.
inline uint32_t kv_sum(uint64_t key, uint32_t layer, uint32_t position, const void *row,
                       size_t size) {
    struct {
        uint64_t key;
        uint32_t layer, position;
    } place{key, layer, position};
    const uint32_t sum = crc32c(crc32c(0, &place, sizeof(place)), row, size);
    return sum < 2 ? 2 : sum;
}
