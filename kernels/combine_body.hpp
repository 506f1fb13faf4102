// The weighted sum for one instruction set; each datapath_combine*.cpp compiles it once, with its own
// flags and COMBINE naming the function. Everything else here is local to the file.
//
// All files are compiled with -ffp-contract=off: a fused multiply-add would make the bits depend on
// the machine.
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "combine.hpp"

#define INLINE [[gnu::always_inline]] static inline

namespace {

// As wide as the instruction set computes: compilers split wider vectors badly.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));

INLINE U32 widen(U16 v) { return __builtin_convertvector(v, U32); }

// The lower halves of the lanes, which must be below 2^16. (GCC 12 does not find these by itself.)
INLINE U16 narrow(U32 v) {
#if defined(__AVX512F__)
    return (U16)_mm512_cvtepi32_epi16((__m512i)v);
#elif defined(__AVX2__)
    __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
    return (U16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(v, U16);
#endif
}

// Element types: one vector from memory to fp32 and back.
struct F32Row {
    static constexpr uint32_t itemsize = 4;
    INLINE F32 load(const uint8_t *p) {
        F32 v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    INLINE void store(uint8_t *p, F32 v) { memcpy(p, &v, sizeof v); }
};

struct Bf16Row {
    static constexpr uint32_t itemsize = 2;
    INLINE F32 load(const uint8_t *p) {
        U16 v;
        memcpy(&v, p, sizeof v);
        return (F32)(widen(v) << 16);
    }
    INLINE void store(uint8_t *p, F32 v) {
        U32 bits = (U32)v;
        U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        U32 nan = (U32)(I32)(v != v);
        U16 result = narrow((rounded & ~nan) | (nan & 0x7fc0u));
        memcpy(p, &result, sizeof result);
    }
};

// Integer arithmetic only, so that every compiler and machine gives the same bits.
struct F16Row {
    static constexpr uint32_t itemsize = 2;
    INLINE F32 load(const uint8_t *p) {
        U16 v;
        memcpy(&v, p, sizeof v);
        U32 h = widen(v);
        U32 sign = (h & 0x8000u) << 16;
        U32 body = (h & 0x7fffu) << 13;
        // Exponent bias 15 → 127; a subnormal loses its implicit bit by a subtraction.
        U32 tiny = (U32)(I32)(body < (1u << 23));
        F32 subnormal = (F32)(body + (113u << 23)) - 0x1p-14f;
        U32 finite = ((body + (112u << 23)) & ~tiny) | ((U32)subnormal & tiny);
        U32 special = (U32)(I32)(body >= (0x7c00u << 13));
        U32 bits = (finite & ~special) | ((body | 0x7f800000u) & special);
        return (F32)(bits | sign);
    }
    INLINE void store(uint8_t *p, F32 v) {
        U32 bits = (U32)v;
        U32 sign = (bits >> 16) & 0x8000u;
        U32 a = bits & 0x7fffffffu;
        // Normal: rebias, round to nearest even at bit 13 (may carry into infinity, rightly).
        U32 normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
        // Subnormal: adding 0.5 aligns the result's last bit with the sum's, rounded by hardware.
        F32 magnitude = (F32)a;
        U32 tiny = (U32)(magnitude + 0.5f) - 0x3f000000u;
        U32 is_tiny = (U32)(I32)(a < (113u << 23));
        U32 is_huge = (U32)(I32)(a >= (143u << 23));
        U32 is_nan = (U32)(I32)(a > 0x7f800000u);
        U32 h = (tiny & is_tiny) | (normal & ~is_tiny);
        h = (h & ~is_huge) | (0x7c00u & is_huge);
        h = ((h | sign) & ~is_nan) | (0x7e00u & is_nan);
        U16 result = narrow(h);
        memcpy(p, &result, sizeof result);
    }
};

constexpr uint32_t kUnrolled = 4;

template <class Row, uint32_t vectors>
INLINE void block(const uint8_t *const *source, const float *weights, uint32_t top_k, uint64_t at,
                  uint8_t *out) {
    constexpr uint32_t step = kLanes * Row::itemsize;
    F32 sum[vectors];
    for (uint32_t i = 0; i < vectors; ++i)
        sum[i] = weights[0] * Row::load(source[0] + at + i * step);
    for (uint32_t j = 1; j < top_k; ++j)
        for (uint32_t i = 0; i < vectors; ++i)
            sum[i] = sum[i] + weights[j] * Row::load(source[j] + at + i * step);
    for (uint32_t i = 0; i < vectors; ++i)
        Row::store(out + at + i * step, sum[i]);
}

template <class Row>
INLINE void combine_rows(const CombineJob &job) {
    constexpr uint32_t step = kLanes * Row::itemsize;
    const uint64_t row_bytes = uint64_t{job.hidden} * Row::itemsize;
    const uint32_t top_k = job.top_k;
    const uint8_t *source[kMaxTopK];
    for (uint32_t t = 0; t < job.rows; ++t) {
        const float *weights = job.weights + uint64_t{t} * top_k;
        uint8_t *out = job.out + t * row_bytes;
        for (uint32_t j = 0; j < top_k; ++j) {
            uint64_t pair = uint64_t{t} * top_k + j;
            source[j] = job.parts[job.where_part[pair]] + job.where_pair[pair] * row_bytes;
        }
        uint64_t at = 0;
        for (; at + kUnrolled * step <= row_bytes; at += kUnrolled * step)
            block<Row, kUnrolled>(source, weights, top_k, at, out);
        for (; at + step <= row_bytes; at += step)
            block<Row, 1>(source, weights, top_k, at, out);
        if (at < row_bytes) {  // the last lanes, through padded copies
            uint8_t tail[kMaxTopK][step] = {}, result[step];
            for (uint32_t j = 0; j < top_k; ++j) {
                memcpy(tail[j], source[j] + at, row_bytes - at);
                source[j] = tail[j];
            }
            block<Row, 1>(source, weights, top_k, 0, result);
            memcpy(out + at, result, row_bytes - at);
        }
    }
}

}  // namespace

void COMBINE(const CombineJob &job) {
    switch (job.dtype) {
    case Dtype::f32: return combine_rows<F32Row>(job);
    case Dtype::bf16: return combine_rows<Bf16Row>(job);
    case Dtype::f16: return combine_rows<F16Row>(job);
    }
}
