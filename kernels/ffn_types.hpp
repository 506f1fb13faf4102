// Expert FFN on the CPU: what the bank (ffn.cpp) and the kernels of one instruction set agree on.
//
// Row independence. Every output element is one dot product over K, accumulated in fp32 in 16 lanes:
// lane j of the accumulator receives, in increasing k, the products whose position in the weights'
// lane order (Order below) is j modulo 16, each by one fused multiply-add; the 16 lanes are then
// added as a fixed tree (i and i+8, i and i+4, i and i+2, 0 and 1). K alone fixes the order, so
// neither the other rows of a batch, nor tiles, threads or the instruction set change a bit.
//
// Rounding points: gate and up sums (+ bias) and the activation stay in fp32; the intermediate is
// rounded to the weights' dtype (nearest even); the down sum (+ bias) is rounded once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ffn {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };
enum class Activation : int { silu = 0, swigluoai = 1 };

// Columns (K) and outputs are handled in blocks of 32.
constexpr size_t kBlock = 32;
constexpr size_t kLanes = 16;

static constexpr size_t blocks(size_t n) { return (n + kBlock - 1) / kBlock; }
static constexpr size_t itemsize(Dtype d) { return d == Dtype::f32 ? 4 : 2; }

// Bytes of the memory that a kernel needs for itself while it runs (at least; aligned to 64).
constexpr size_t kLocalBytes = size_t(256) << 10;

struct Shape {
    size_t hidden;
    size_t ffn;
    Activation activation;
    float alpha;
    float limit;
};

// Weights as mapped, at any address; biases widened to fp32 and zero-padded to whole blocks, or null.
struct Weights {
    const std::byte *gate;  // [ffn, hidden]
    const std::byte *up;    // [ffn, hidden]
    const std::byte *down;  // [hidden, ffn]
    const float *gate_bias;
    const float *up_bias;
    const float *down_bias;
};

// Rows of one expert in packed fp32: tile after tile of up to `Kernels::tile_rows` rows, each tile
// [2 * blocks(K)][rows of the tile][16], the columns of a block of 32 in the dtype's lane order.
struct Job {
    Weights w;
    size_t rows;
    const std::byte *const *src;  // [rows] input rows, hidden elements each
    std::byte *const *dst;        // [rows] output rows
    float *x;                     // packed, K = hidden
    float *h;                     // packed, K = ffn
};

// One instruction set and dtype. Ranges are half-open; tiles index a job's tiling, units are blocks
// of 32 outputs. Calls on disjoint ranges may run in parallel; `pack` before `gate_up` before `down`.
// `local`: kLocalBytes of memory of the calling thread, aligned to 64.
struct Kernels {
    size_t tile_rows;
    void (*pack)(const Shape &, const Job &, size_t tile_begin, size_t tile_end);
    void (*gate_up)(const Shape &, const Job &, size_t unit_begin, size_t unit_end, void *local);
    void (*down)(const Shape &, const Job &, size_t unit_begin, size_t unit_end, void *local);
};

const Kernels &scalar_kernels(Dtype);
#if defined(__x86_64__)
const Kernels &avx2_kernels(Dtype);
const Kernels &avx512_kernels(Dtype);
#endif

}  // namespace ffn
