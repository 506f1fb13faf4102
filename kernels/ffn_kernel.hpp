// The expert FFN over a vector type V (ffn_dot.hpp); each instruction set includes this in its file.
#pragma once

#include "ffn_dot.hpp"

namespace ffn {
namespace {

// exp(x), at most 2 units in the last place off; x is clamped to [-87, 88], so the result is a
// normal number. Cody and Waite's reduction by ln 2, then Taylor to degree 7 on |r| <= ln(2) / 2.
template <class V>
typename V::F exp16(typename V::F x) {
    using F = typename V::F;
    x = V::min(V::set1(88.0f), V::max(V::set1(-87.0f), x));
    const F magic = V::set1(12582912.0f);  // 1.5 * 2^23: the low bits of t become round(x / ln 2)
    const F t = V::fma(x, V::set1(1.44269504f), magic);
    const F n = V::sub(t, magic);
    F r = V::fma(n, V::set1(-0.693359375f), x);
    r = V::fma(n, V::set1(2.12194440e-4f), r);
    F p = V::set1(1.0f / 5040.0f);
    p = V::fma(p, r, V::set1(1.0f / 720.0f));
    p = V::fma(p, r, V::set1(1.0f / 120.0f));
    p = V::fma(p, r, V::set1(1.0f / 24.0f));
    p = V::fma(p, r, V::set1(1.0f / 6.0f));
    p = V::fma(p, r, V::set1(0.5f));
    p = V::fma(p, r, V::set1(1.0f));
    p = V::fma(p, r, V::set1(1.0f));
    return V::scale(p, t);
}

template <class V>
typename V::F activate(const Shape &s, typename V::F g, typename V::F u) {
    using F = typename V::F;
    const F one = V::set1(1.0f);
    if (s.activation == Activation::silu)
        return V::mul(V::div(g, V::add(one, exp16<V>(V::sub(V::zero(), g)))), u);
    const F limit = V::set1(s.limit), low = V::set1(-s.limit);
    g = V::min(limit, g);
    u = V::max(low, V::min(limit, u));
    const F e = exp16<V>(V::mul(V::set1(-s.alpha), g));
    return V::mul(V::add(u, one), V::div(g, V::add(one, e)));
}

template <class V, Dtype D>
struct Ffn {
    using F = typename V::F;
    using W = typename V::template weights<D>;
    static constexpr size_t item = itemsize(D);
    static constexpr size_t block_bytes = kBlock * item;
    static constexpr size_t kPassTiles = kPassRows / V::kRows;

    // 32 outputs of one row plus bias (or null): natural order, fp32.
    static void load_sums(const float *sums, const float *bias, F (&v)[2]) {
        for (size_t i = 0; i < 2; ++i) {
            v[i] = V::load(sums + i * kLanes);
            if (bias) v[i] = V::add(v[i], V::loadu(bias + i * kLanes));
        }
    }

    static void round_block(const F (&v)[2], std::byte *bits) {
        V::template narrow<D>(v[0], bits);
        V::template narrow<D>(v[1], bits + kLanes * item);
    }

    static void pack(const Shape &s, const Job &job, size_t begin, size_t end) {
        const Tiling tiling(job.rows, V::kRows);
        const size_t full = s.hidden / kBlock, rest = s.hidden % kBlock * item;
        for (size_t t = begin; t < end; ++t) {
            const size_t first = tiling.first(t), rows = tiling.size(t);
            for (size_t r = 0; r < rows; ++r) {
                const std::byte *from = job.src[first + r];
                float *to = job.x + first * blocks(s.hidden) * kBlock + r * kLanes;
                const size_t hi = rows * kLanes;
                for (size_t b = 0; b < full; ++b, from += block_bytes, to += 2 * hi) {
                    V::store(to, W::lo(from));
                    V::store(to + hi, W::hi(from));
                }
                if (rest) {
                    alignas(64) std::byte tail[block_bytes] = {};
                    std::memcpy(tail, from, rest);
                    V::store(to, W::lo(tail));
                    V::store(to + hi, W::hi(tail));
                }
            }
        }
    }

    // Calls step(t0, t1, next) for the passes over a unit; `next` is the unit that follows.
    template <class Fn>
    static void passes(const Tiling &tiling, size_t unit, Fn &&step) {
        for (size_t t = 0; t < tiling.tiles; t += kPassTiles) {
            const size_t end = least(t + kPassTiles, tiling.tiles);
            step(t, end, end == tiling.tiles ? unit + 1 : unit);
        }
    }

    static void gate_up(const Shape &s, const Job &job, size_t begin, size_t end, Local &local) {
        const Tiling tiling(job.rows, V::kRows);
        const Matrix gate{job.w.gate, s.hidden, s.ffn}, up{job.w.up, s.hidden, s.ffn};
        for (size_t unit = begin; unit < end; ++unit)
            passes(tiling, unit, [&](size_t t0, size_t t1, size_t next) {
                dots<V, D>(gate, unit, next, tiling, t0, t1, job.x, local, local.out[0]);
                dots<V, D>(up, unit, next, tiling, t0, t1, job.x, local, local.out[1]);
                for (size_t t = t0; t < t1; ++t)
                    for (size_t r = 0; r < tiling.size(t); ++r)
                        finish_gate_up(s, job, tiling, unit, t, r,
                                       tiling.first(t) + r - tiling.first(t0), local);
            });
    }

    // Activation and rounding of one row's 32 intermediate values, into their packed place.
    static void finish_gate_up(const Shape &s, const Job &job, const Tiling &tiling, size_t unit,
                               size_t t, size_t r, size_t i, Local &local) {
        const size_t first = unit * kBlock, valid = least(kBlock, s.ffn - first);
        F g[2], u[2];
        load_sums(local.out[0][i], job.w.gate_bias ? job.w.gate_bias + first : nullptr, g);
        load_sums(local.out[1][i], job.w.up_bias ? job.w.up_bias + first : nullptr, u);
        const F y[2] = {activate<V>(s, g[0], u[0]), activate<V>(s, g[1], u[1])};
        alignas(64) std::byte bits[block_bytes];
        round_block(y, bits);
        if (valid < kBlock) std::memset(bits + valid * item, 0, (kBlock - valid) * item);
        const size_t rows = tiling.size(t);
        float *to = job.h + tiling.first(t) * blocks(s.ffn) * kBlock + (unit * 2 * rows + r) * kLanes;
        V::store(to, W::lo(bits));
        V::store(to + rows * kLanes, W::hi(bits));
    }

    static void down(const Shape &s, const Job &job, size_t begin, size_t end, Local &local) {
        const Tiling tiling(job.rows, V::kRows);
        const Matrix down{job.w.down, s.ffn, s.hidden};
        for (size_t unit = begin; unit < end; ++unit)
            passes(tiling, unit, [&](size_t t0, size_t t1, size_t next) {
                dots<V, D>(down, unit, next, tiling, t0, t1, job.h, local, local.out[0]);
                const size_t first = unit * kBlock, valid = least(kBlock, s.hidden - first);
                const size_t row0 = tiling.first(t0), rows = tiling.first(t1) - row0;
                for (size_t i = 0; i < rows; ++i) {
                    F y[2];
                    load_sums(local.out[0][i], job.w.down_bias ? job.w.down_bias + first : nullptr,
                              y);
                    alignas(64) std::byte bits[block_bytes];
                    round_block(y, bits);
                    std::memcpy(job.dst[row0 + i] + first * item, bits, valid * item);
                }
            });
    }
};

template <class V>
const Kernels &kernels_of(Dtype d) {
    static constexpr auto table = []<Dtype D>() {
        using K = Ffn<V, D>;
        return Kernels{
            V::kRows, K::pack,
            [](const Shape &s, const Job &j, size_t b, size_t e, void *local) {
                K::gate_up(s, j, b, e, *static_cast<Local *>(local));
            },
            [](const Shape &s, const Job &j, size_t b, size_t e, void *local) {
                K::down(s, j, b, e, *static_cast<Local *>(local));
            }};
    };
    static constexpr Kernels all[] = {table.template operator()<Dtype::f32>(),
                                      table.template operator()<Dtype::bf16>(),
                                      table.template operator()<Dtype::f16>()};
    return all[static_cast<int>(d)];
}

}  // namespace
}  // namespace ffn
