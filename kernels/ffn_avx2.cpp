// The expert FFN with AVX2, FMA and F16C: one 16-lane accumulator is two registers.
#if defined(__x86_64__)
#include <immintrin.h>

#include "ffn_kernel.hpp"

namespace ffn {
namespace {

struct Avx2 {
    struct F {
        __m256 a, b;  // lanes 0..7, 8..15
    };
    static constexpr int kRows = 3;
    template <int R>
    static constexpr int cols = R == 1 ? 4 : 2;
    template <int R>
    static constexpr bool reload = true;

    static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static F set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
    static F load(const float *p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
    static F loadu(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static void store(float *p, F v) {
        _mm256_store_ps(p, v.a);
        _mm256_store_ps(p + 8, v.b);
    }
    static F fma(F x, F y, F z) {
        return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
    }
    static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
    static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    static __m256 scale8(__m256 p, __m256 t) {
        const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
    }
    static F scale(F p, F t) { return {scale8(p.a, t.a), scale8(p.b, t.b)}; }

    static __m256i bits(const std::byte *p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    }

    template <Dtype D>
    struct weights {
        static F lo(const std::byte *p) {
            if constexpr (D == Dtype::f32) return {as_floats(p), as_floats(p + 32)};
            if constexpr (D == Dtype::bf16)
                return {_mm256_castsi256_ps(_mm256_slli_epi32(bits(p), 16)),
                        _mm256_castsi256_ps(_mm256_slli_epi32(bits(p + 32), 16))};
            if constexpr (D == Dtype::f16) return {halves(p), halves(p + 16)};
        }
        static F hi(const std::byte *p) {
            if constexpr (D == Dtype::bf16) {
                const __m256i top = _mm256_set1_epi32(static_cast<int>(0xffff0000));
                return {_mm256_castsi256_ps(_mm256_and_si256(bits(p), top)),
                        _mm256_castsi256_ps(_mm256_and_si256(bits(p + 32), top))};
            } else {
                return lo(p + kLanes * itemsize(D));
            }
        }
        static __m256 as_floats(const std::byte *p) { return _mm256_castsi256_ps(bits(p)); }
        static __m256 halves(const std::byte *p) {
            return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
        }
    };

    static __m256i to_bf16(__m256 v) {
        const __m256i u = _mm256_castps_si256(v), top = _mm256_srli_epi32(u, 16);
        const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
        __m256i y = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
        const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
        return _mm256_castps_si256(_mm256_blendv_ps(
            _mm256_castsi256_ps(_mm256_srli_epi32(y, 16)),
            _mm256_castsi256_ps(_mm256_or_si256(top, _mm256_set1_epi32(0x40))), nan));
    }

    template <Dtype D>
    static void narrow(F v, std::byte *out) {
        if constexpr (D == Dtype::f32) {
            _mm256_storeu_ps(reinterpret_cast<float *>(out), v.a);
            _mm256_storeu_ps(reinterpret_cast<float *>(out) + 8, v.b);
        }
        if constexpr (D == Dtype::f16) {
            constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            auto *to = reinterpret_cast<__m128i *>(out);
            _mm_storeu_si128(to, _mm256_cvtps_ph(v.a, nearest));
            _mm_storeu_si128(to + 1, _mm256_cvtps_ph(v.b, nearest));
        }
        if constexpr (D == Dtype::bf16) {
            const __m256i y = _mm256_packus_epi32(to_bf16(v.a), to_bf16(v.b));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm256_permute4x64_epi64(y, 0xd8));
        }
    }

    template <int C>
    static void reduce(const F (&acc)[C], float *out) {
        for (int c = 0; c < C; ++c) {
            const __m256 s = _mm256_add_ps(acc[c].a, acc[c].b);
            __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
            q = _mm_add_ps(q, _mm_movehl_ps(q, q));
            out[c] = _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
        }
    }
};

}  // namespace

const Kernels &avx2_kernels(Dtype d) { return kernels_of<Avx2>(d); }

}  // namespace ffn

#endif  // __x86_64__
