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

// A CRC's state after `zeros` more bytes of 0 is linear in the state, so a table for each of its
// bytes tells it.
struct Shift {
    constexpr explicit Shift(size_t zeros) {
        uint32_t of_bit[32]{};
        for (int bit = 0; bit < 32; ++bit) {
            uint32_t state = uint32_t{1} << bit;
            for (size_t i = 0; i < zeros; ++i) state = (state >> 8) ^ kTable[state & 0xFF];
            of_bit[bit] = state;
        }
        for (int byte = 0; byte < 4; ++byte)
            for (int value = 0; value < 256; ++value)
                for (int bit = 0; bit < 8; ++bit)
                    if (value >> bit & 1) table[byte][value] ^= of_bit[8 * byte + bit];
    }
    constexpr uint32_t operator()(uint32_t state) const {
        return table[0][state & 0xFF] ^ table[1][state >> 8 & 0xFF] ^
               table[2][state >> 16 & 0xFF] ^ table[3][state >> 24];
    }
    uint32_t table[4][256]{};
};

#if defined(__x86_64__)
// The instruction takes three cycles, but starts one every cycle: three parts are summed side by
// side, and joined.
template <size_t kPart>
__attribute__((target("sse4.2"))) inline void by_thirds(uint32_t &state, const uint8_t *&data,
                                                        size_t &size) {
    static constexpr Shift kShift{kPart};
    for (; size >= 3 * kPart; data += 3 * kPart, size -= 3 * kPart) {
        uint64_t sums[3] = {state, 0, 0};
        for (size_t i = 0; i < kPart; i += 8) {
            for (size_t part = 0; part < 3; ++part) {
                uint64_t word;
                std::memcpy(&word, data + part * kPart + i, 8);
                sums[part] = __builtin_ia32_crc32di(sums[part], word);
            }
        }
        state = kShift(static_cast<uint32_t>(sums[0])) ^ static_cast<uint32_t>(sums[1]);
        state = kShift(state) ^ static_cast<uint32_t>(sums[2]);
    }
}

__attribute__((target("sse4.2"))) inline uint32_t by_instruction(uint32_t state,
                                                                 const uint8_t *data,
                                                                 size_t size) {
    by_thirds<680>(state, data, size);  // 4096 bytes are two of them, and little more
    by_thirds<80>(state, data, size);
    uint64_t wide = state;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        std::memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
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
