// Weighted sum of the experts' output rows: combine_body.hpp.
#pragma once
#include <cstdint>

#include "dispatch.hpp"

constexpr uint32_t kMaxTopK = 64;

// out[t] = sum over j = 0 … top_k-1, in this order, of weights[t][j] * source(t, j), in fp32 without
// fused multiply-add, rounded once to the dtype (nearest even, NaN canonical for the 16-bit types).
// Source (t, j) is row where_pair[t*top_k+j] of the replies of part where_part[t*top_k+j].
struct CombineJob {
    Dtype dtype;
    uint32_t rows, top_k, hidden;
    const uint8_t *const *parts;  // first output row of each part
    const uint32_t *where_part, *where_pair;
    const float *weights;
    uint8_t *out;
};

void combine(const CombineJob &job);

// The same for one instruction set each.
void combine_baseline(const CombineJob &job);
void combine_avx2(const CombineJob &job);
void combine_avx512(const CombineJob &job);
