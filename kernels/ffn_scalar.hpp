// Scalar conversions between fp32 and the weights' dtypes, the same bits as the vector instructions.
#pragma once

#include <bit>
#include <cstring>

#include "ffn_types.hpp"

namespace ffn {

inline float from_bf16(uint16_t h) { return std::bit_cast<float>(uint32_t(h) << 16); }

inline uint16_t to_bf16(float v) {
    const uint32_t u = std::bit_cast<uint32_t>(v);
    if (v != v) return uint16_t(u >> 16 | 0x40);
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline float from_f16(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
    if (e == 31) return std::bit_cast<float>(sign | 0x7f800000 | m << 13 | (m ? 0x400000 : 0));
    if (e) return std::bit_cast<float>(sign | (e + 112) << 23 | m << 13);
    const float small = float(m) * 0x1p-24f;  // zero or subnormal, exact
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(small));
}

inline uint16_t to_f16(float v) {
    const uint32_t u = std::bit_cast<uint32_t>(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return uint16_t(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
    if (a < 0x38800000) {                                 // below the smallest normal number
        const float f = std::bit_cast<float>(a) + 0.5f;   // the sum's last place is 2^-24
        return uint16_t(sign | (std::bit_cast<uint32_t>(f) - 0x3f000000));
    }
    return uint16_t(sign | ((a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13));
}

// Element i of an array of dtype d at any address.
inline float element(const std::byte *p, size_t i, Dtype d) {
    if (d == Dtype::f32) {
        float v;
        std::memcpy(&v, p + 4 * i, 4);
        return v;
    }
    uint16_t h;
    std::memcpy(&h, p + 2 * i, 2);
    return d == Dtype::bf16 ? from_bf16(h) : from_f16(h);
}

}  // namespace ffn
