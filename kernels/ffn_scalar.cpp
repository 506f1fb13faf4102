// The expert FFN in portable C++, for machines without AVX2: std::fma in the order of the lanes.
#include "ffn_scalar.hpp"

#include <cmath>

#include "ffn_kernel.hpp"

namespace ffn {
namespace {

struct Scalar {
    struct F {
        float v[kLanes];
    };
    static constexpr int kRows = 2;
    template <int R>
    static constexpr int cols = 4;
    template <int R>
    static constexpr bool reload = false;

    template <class Fn>
    static F each(Fn &&fn) {
        F y;
        for (size_t i = 0; i < kLanes; ++i) y.v[i] = fn(i);
        return y;
    }
    static F zero() { return set1(0.0f); }
    static F set1(float s) {
        return each([&](size_t) { return s; });
    }
    static F load(const float *p) {
        return each([&](size_t i) { return p[i]; });
    }
    static F loadu(const float *p) { return load(p); }
    static void store(float *p, const F &x) { std::memcpy(p, x.v, sizeof x.v); }
    static F fma(const F &x, const F &y, const F &z) {
        return each([&](size_t i) { return std::fma(x.v[i], y.v[i], z.v[i]); });
    }
    static F add(const F &x, const F &y) {
        return each([&](size_t i) { return x.v[i] + y.v[i]; });
    }
    static F sub(const F &x, const F &y) {
        return each([&](size_t i) { return x.v[i] - y.v[i]; });
    }
    static F mul(const F &x, const F &y) {
        return each([&](size_t i) { return x.v[i] * y.v[i]; });
    }
    static F div(const F &x, const F &y) {
        return each([&](size_t i) { return x.v[i] / y.v[i]; });
    }
    static F min(const F &x, const F &y) {
        return each([&](size_t i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; });
    }
    static F max(const F &x, const F &y) {
        return each([&](size_t i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; });
    }
    static F scale(const F &p, const F &t) {
        return each([&](size_t i) {
            return std::bit_cast<float>(std::bit_cast<uint32_t>(p.v[i]) +
                                        (std::bit_cast<uint32_t>(t.v[i]) << 23));
        });
    }

    // bf16: even elements, odd elements; otherwise the first and the last 16.
    template <Dtype D>
    struct weights {
        static F lo(const std::byte *p) {
            return each([&](size_t i) { return element(p, D == Dtype::bf16 ? 2 * i : i, D); });
        }
        static F hi(const std::byte *p) {
            return each([&](size_t i) {
                return element(p, D == Dtype::bf16 ? 2 * i + 1 : kLanes + i, D);
            });
        }
    };

    template <Dtype D>
    static void narrow(const F &x, std::byte *out) {
        if constexpr (D == Dtype::f32) {
            std::memcpy(out, x.v, sizeof x.v);
        } else {
            uint16_t y[kLanes];
            for (size_t i = 0; i < kLanes; ++i)
                y[i] = D == Dtype::bf16 ? to_bf16(x.v[i]) : to_f16(x.v[i]);
            std::memcpy(out, y, sizeof y);
        }
    }

    template <int C>
    static void reduce(const F (&acc)[C], float *out) {
        for (int c = 0; c < C; ++c) {
            F s = acc[c];
            for (size_t width = kLanes / 2; width; width /= 2)
                for (size_t i = 0; i < width; ++i) s.v[i] += s.v[i + width];
            out[c] = s.v[0];
        }
    }
};

}  // namespace

const Kernels &scalar_kernels(Dtype d) { return kernels_of<Scalar>(d); }

}  // namespace ffn
