// Dot products of packed rows with weight rows: the inner loops of the expert FFN.
//
// V, the 16-lane vector type of an instruction set, supplies: F (16 fp32 lanes), zero, set1, load and
// store (aligned), loadu, fma, add, sub, mul, div, min and max (b when a or b is NaN, as x86 does),
// scale (p * 2^n), weights<D>::lo and ::hi (32 elements at any address as two vectors, in the
// dtype's lane order), narrow<D> (16 lanes rounded to the dtype), reduce<C> (sums of lanes), and the
// tiles that fit its registers: kRows, cols<R>, reload<R>.
#pragma once

#include <cstring>

#include "ffn_types.hpp"

namespace ffn {
namespace {

constexpr size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Rows are divided evenly over the fewest tiles: sizes differ by one at most.
struct Tiling {
    size_t tiles, base, extra;
    Tiling(size_t rows, size_t most) {
        tiles = (rows + most - 1) / most;
        base = rows / tiles;
        extra = rows % tiles;
    }
    size_t first(size_t t) const { return t * base + least(t, extra); }
    size_t size(size_t t) const { return base + (t < extra ? 1 : 0); }
};

// C weight rows: block b of row c (32 elements, any alignment) lies at row[c] + b * step.
template <int C>
struct Panel {
    const std::byte *row[C];
    size_t step;
};

// The columns of one call. Unfinished accumulators ([R][C][16] floats) wait in `acc` between calls,
// which changes no bit of the result.
struct Part {
    size_t cols;
    bool first, last;
    float *acc;
};

// `rows` weight rows, `stride` bytes apart, to bring to the caches block by block.
struct Prefetch {
    const std::byte *at;
    size_t stride, rows;
};

// out[r][c] = dot(x row r, weight row c) for R rows and C weight rows, `out` rows kBlock apart.
template <class V, Dtype D, int R, int C>
void dot_tile(const float *x, const Panel<C> &w, const Part &part, Prefetch ahead, float *out) {
    using F = typename V::F;
    using W = typename V::template weights<D>;
    constexpr size_t block_bytes = kBlock * itemsize(D);
    F acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            acc[r][c] = part.first ? V::zero() : V::load(part.acc + (r * C + c) * kLanes);

    const size_t full = part.cols / kBlock;
    size_t at = 0;
    for (size_t b = 0; b < full; ++b, at += w.step, x += 2 * R * kLanes) {
        for (size_t i = 0; i < ahead.rows; ++i)
            for (size_t o = 0; o < block_bytes; o += 64)
                __builtin_prefetch(ahead.at + i * ahead.stride + o, 0, 3);
        ahead.at += block_bytes;
        F wv[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) wv[c] = W::lo(w.row[c] + at);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const F xv = V::load(x + r * kLanes);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r][c] = V::fma(xv, wv[c], acc[r][c]);
        }
        // Where registers are short, load again rather than let the compiler keep the first loads.
        if constexpr (V::template reload<R>) asm volatile("" : "+r"(at));
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) wv[c] = W::hi(w.row[c] + at);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const F xv = V::load(x + (R + r) * kLanes);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r][c] = V::fma(xv, wv[c], acc[r][c]);
        }
    }
    if (const size_t rest = part.cols % kBlock) {
        // Never read past the mapping: the last columns go through a zero-padded copy.
        alignas(64) std::byte tail[C][block_bytes] = {};
        for (int c = 0; c < C; ++c) std::memcpy(tail[c], w.row[c] + at, rest * itemsize(D));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const F lo = V::load(x + r * kLanes), hi = V::load(x + (R + r) * kLanes);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                acc[r][c] = V::fma(lo, W::lo(tail[c]), acc[r][c]);
                acc[r][c] = V::fma(hi, W::hi(tail[c]), acc[r][c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        if (part.last) {
            V::template reduce<C>(acc[r], out + r * kBlock);
        } else {
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) V::store(part.acc + (r * C + c) * kLanes, acc[r][c]);
        }
    }
}

// Calls f<R>() for the number of rows of a tile.
template <int R, class Fn>
void with_rows(size_t rows, Fn &&f) {
    if (rows == R) return f.template operator()<R>();
    if constexpr (R > 1) with_rows<R - 1>(rows, f);
}

// Up to 32 weight rows and a range of columns, in place or copied. The copy costs one pass and pays
// off over several tiles: aligned, no two rows in one cache set, zero-padded to whole blocks.
template <Dtype D>
struct Rows {
    static constexpr size_t block_bytes = kBlock * itemsize(D);
    static constexpr size_t kGroup = 4;  // copied rows lie in groups [blocks(cols)][kGroup][32]

    const std::byte *w;
    size_t row_bytes, cols, rows;
    bool copied = false;

    const std::byte *row(size_t n) const {
        return copied ? w + ((n - n % kGroup) * blocks(cols) + n % kGroup) * block_bytes
                      : w + n * row_bytes;
    }

    // Rows past the last repeat it; what they give is not used.
    template <int C>
    Panel<C> panel(size_t from) const {
        Panel<C> p;
        p.step = block_bytes * (copied ? kGroup : 1);
        for (size_t c = 0; c < C; ++c) p.row[c] = row(least(from + c, rows - 1));
        return p;
    }

    Rows copy(std::byte *to) const {
        Rows out{to, row_bytes, blocks(cols) * kBlock, rows, true};
        const size_t full = cols / kBlock, rest = cols % kBlock * itemsize(D);
        for (size_t n = 0; n < rows; ++n) {
            const std::byte *from = row(n);
            auto *p = const_cast<std::byte *>(out.row(n));
            for (size_t b = 0; b < full; ++b, from += block_bytes, p += kGroup * block_bytes)
                std::memcpy(p, from, block_bytes);
            if (rest) {
                std::memset(p, 0, block_bytes);
                std::memcpy(p, from, rest);
            }
        }
        return out;
    }
};

// Bytes of a weight row in one part when there are several tiles: the weights of a unit and the rows
// of a tile then stay in the second-level cache whatever K is.
constexpr size_t kPart = 2048;
// Rows of one pass over a unit.
constexpr size_t kPassRows = 48;
// Tiles that make copying the weights worth its while (measured: 4 and more).
constexpr size_t kCopyTiles = 4;

// Memory of one thread.
struct Local {
    alignas(64) float acc[kPassRows * kBlock * kLanes];
    alignas(64) std::byte weights[kBlock * kPart];
    alignas(64) float out[2][kPassRows][kBlock];
};
static_assert(sizeof(Local) <= kLocalBytes);

// A weight matrix [outputs, k].
struct Matrix {
    const std::byte *w;
    size_t k, outputs;
};

// out[i] = dots of row i of tiles [t0, t1) with the 32 outputs of `unit`, not reduced further.
// x: the packed rows of all tiles. `next`: the unit this thread computes after this one.
template <class V, Dtype D>
void dots(const Matrix &m, size_t unit, size_t next, const Tiling &tiling, size_t t0, size_t t1,
          const float *x, Local &local, float (*out)[kBlock]) {
    const size_t item = itemsize(D), row_bytes = m.k * item, xk = blocks(m.k) * kBlock;
    const size_t rows = least(kBlock, m.outputs - unit * kBlock), tiles = t1 - t0;
    const bool single = tiling.tiles == 1;
    const size_t step = single ? m.k : least(m.k, kPart / item);
    for (size_t k0 = 0; k0 < m.k; k0 += step) {
        const bool last = k0 + step >= m.k;
        Rows<D> w{m.w + unit * kBlock * row_bytes + k0 * item, row_bytes, least(step, m.k - k0), rows};
        // While tiles run on these weights, each brings a share of the next ones to the cache, so
        // memory and arithmetic overlap whatever the number of rows. A single tile has the rows
        // right behind its own brought.
        const size_t from = single ? unit * kBlock : (last ? next : unit) * kBlock;
        const size_t left = from < m.outputs ? m.outputs - from : 0;
        const std::byte *ahead = m.w + from * row_bytes + (last ? 0 : k0 + step) * item;
        if (tiles >= kCopyTiles) w = w.copy(local.weights);
        for (size_t t = t0; t < t1; ++t) {
            const size_t at = tiling.first(t), i = at - tiling.first(t0);
            with_rows<V::kRows>(tiling.size(t), [&]<int R>() {
                constexpr int C = V::template cols<R>;
                const size_t s0 = single ? C : C * (t - t0) / tiles;
                const size_t s1 = single ? 2 * C : C * (t - t0 + 1) / tiles;
                for (size_t c = 0; c < kBlock; c += C) {
                    const size_t p0 = least(c + s0, left), p1 = least(c + s1, left);
                    dot_tile<V, D, R, C>(
                        x + at * xk + k0 * R, w.template panel<C>(c),
                        {w.cols, k0 == 0, last, local.acc + (i * kBlock + c * R) * kLanes},
                        {ahead + p0 * row_bytes, row_bytes, p1 - p0}, &out[i][c]);
                }
            });
        }
    }
}

}  // namespace
}  // namespace ffn
