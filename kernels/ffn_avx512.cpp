// The expert FFN with AVX-512 (F, BW, VL, DQ): one accumulator is one register.
#if defined(__x86_64__)
#include <immintrin.h>

#include "ffn_kernel.hpp"

namespace ffn {
namespace {

struct Avx512 {
    using F = __m512;
    static constexpr int kRows = 6;
    // 6 x 4 accumulators, 4 weights, 1 row: 29 of 32 registers.
    template <int R>
    static constexpr int cols = 4;
    template <int R>
    static constexpr bool reload = R == kRows;

    static F zero() { return _mm512_setzero_ps(); }
    static F set1(float v) { return _mm512_set1_ps(v); }
    static F load(const float *p) { return _mm512_load_ps(p); }
    static F loadu(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, F v) { _mm512_store_ps(p, v); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F scale(F p, F t) {
        const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n));
    }

    template <Dtype D>
    struct weights {
        static F lo(const std::byte *p) {
            if constexpr (D == Dtype::f32) return _mm512_loadu_ps(p);
            if constexpr (D == Dtype::bf16)
                return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
            if constexpr (D == Dtype::f16)
                return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
        }
        static F hi(const std::byte *p) {
            if constexpr (D == Dtype::bf16)
                return _mm512_castsi512_ps(_mm512_and_si512(
                    _mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000))));
            else
                return lo(p + kLanes * itemsize(D));
        }
    };

    template <Dtype D>
    static void narrow(F v, std::byte *out) {
        if constexpr (D == Dtype::f32) _mm512_storeu_ps(out, v);
        if constexpr (D == Dtype::f16)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out),
                                _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        if constexpr (D == Dtype::bf16) {
            const __m512i u = _mm512_castps_si512(v), top = _mm512_srli_epi32(u, 16);
            const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
            __m512i y = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
            y = _mm512_srli_epi32(y, 16);
            y = _mm512_mask_or_epi32(y, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), top,
                                     _mm512_set1_epi32(0x40));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm512_cvtepi32_epi16(y));
        }
    }

    // Two accumulators with i and i + 8 added; then four with i and i + 4, one in each 128-bit part.
    static F pair(F a, F b) {
        return add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    static F quad(F ab, F cd) {
        return add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }

    template <int C>
    static void reduce(const F (&a)[C], float *out) {
        static_assert(C % 4 == 0);
        const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 8
        for (int c = 0; c < C; c += 4) {
            F s = quad(pair(a[c], a[c + 1]), pair(a[c + 2], a[c + 3]));
            s = add(s, _mm512_permute_ps(s, 0x4e));
            s = add(s, _mm512_permute_ps(s, 0xb1));
            _mm_storeu_ps(out + c, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, s)));
        }
    }
};

}  // namespace

const Kernels &avx512_kernels(Dtype d) { return kernels_of<Avx512>(d); }

}  // namespace ffn

#endif  // __x86_64__
