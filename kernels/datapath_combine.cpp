// Compiled with -ffp-contract=off: a fused multiply-add would change bits between machines.
#include "combine.hpp"

#include <cstring>

namespace {

constexpr int kLanes = 16;
typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));

#define INLINE [[gnu::always_inline]] static inline

// Element types: 16 lanes from memory to fp32 and back.
struct F32Row {
    using Element = float;
    INLINE F32 load(const uint8_t *p) {
        F32 v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    INLINE void store(uint8_t *p, F32 v) { memcpy(p, &v, sizeof v); }
};

struct Bf16Row {
    using Element = uint16_t;
    INLINE F32 load(const uint8_t *p) {
        U16 v;
        memcpy(&v, p, sizeof v);
        return (F32)(__builtin_convertvector(v, U32) << 16);
    }
    INLINE void store(uint8_t *p, F32 v) {
        U32 bits = (U32)v;
        U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        I32 nan = v != v;
        U32 result = (rounded & ~(U32)nan) | ((U32)nan & 0x7fc0u);
        U16 narrow = __builtin_convertvector(result, U16);
        memcpy(p, &narrow, sizeof narrow);
    }
};

// Integer arithmetic only, so that every compiler and machine gives the same bits.
struct F16Row {
    using Element = uint16_t;
    INLINE F32 load(const uint8_t *p) {
        U16 v;
        memcpy(&v, p, sizeof v);
        U32 h = __builtin_convertvector(v, U32);
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
        U16 narrow = __builtin_convertvector(h, U16);
        memcpy(p, &narrow, sizeof narrow);
    }
};

constexpr uint32_t kUnroll = 4;

template <class Row, uint32_t N>
INLINE void block(const uint8_t *const *source, const float *weights, uint32_t top_k, uint8_t *out) {
    constexpr uint32_t step = kLanes * sizeof(typename Row::Element);
    F32 sum[N];
    for (uint32_t i = 0; i < N; ++i)
        sum[i] = weights[0] * Row::load(source[0] + i * step);
    for (uint32_t j = 1; j < top_k; ++j)
        for (uint32_t i = 0; i < N; ++i)
            sum[i] = sum[i] + weights[j] * Row::load(source[j] + i * step);
    for (uint32_t i = 0; i < N; ++i)
        Row::store(out + i * step, sum[i]);
}

template <class Row>
INLINE void combine_rows(const CombineJob &job) {
    constexpr uint32_t size = sizeof(typename Row::Element);
    constexpr uint32_t lane_bytes = kLanes * size;
    const uint64_t row_bytes = uint64_t{job.hidden} * size;
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
        for (; at + kUnroll * lane_bytes <= row_bytes; at += kUnroll * lane_bytes) {
            block<Row, kUnroll>(source, weights, top_k, out + at);
            for (uint32_t j = 0; j < top_k; ++j)
                source[j] += kUnroll * lane_bytes;
        }
        for (; at + lane_bytes <= row_bytes; at += lane_bytes) {
            block<Row, 1>(source, weights, top_k, out + at);
            for (uint32_t j = 0; j < top_k; ++j)
                source[j] += lane_bytes;
        }
        if (at < row_bytes) {  // the last lanes, through padded copies
            uint8_t tail[kMaxTopK][lane_bytes] = {}, result[lane_bytes];
            for (uint32_t j = 0; j < top_k; ++j) {
                memcpy(tail[j], source[j], row_bytes - at);
                source[j] = tail[j];
            }
            block<Row, 1>(source, weights, top_k, result);
            memcpy(out + at, result, row_bytes - at);
        }
    }
}

INLINE void combine_any(const CombineJob &job) {
    switch (job.dtype) {
    case Dtype::f32: return combine_rows<F32Row>(job);
    case Dtype::bf16: return combine_rows<Bf16Row>(job);
    case Dtype::f16: return combine_rows<F16Row>(job);
    }
}

void combine_baseline(const CombineJob &job) { combine_any(job); }

#if defined(__x86_64__)
[[gnu::target("avx2")]] void combine_avx2(const CombineJob &job) { combine_any(job); }
[[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]] void combine_avx512(const CombineJob &job) {
    combine_any(job);
}
#endif

using Combine = void (*)(const CombineJob &);

Combine choose() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return combine_avx512;
    if (__builtin_cpu_supports("avx2"))
        return combine_avx2;
#endif
    return combine_baseline;
}

}  // namespace

void combine(const CombineJob &job) {
    static const Combine chosen = choose();
    chosen(job);
}
