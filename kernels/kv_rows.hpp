// Where vLLM keeps the KV rows of one layer, and how one is copied (attention/kv_layout.py).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

// Strides in bytes. A piece is what one head has of one token: K then V.
struct KvLayer {
    uint8_t *base;
    bool keys_across;  // K of a (block, head) lies as [dim, tokens], then V as [tokens, dim]
    uint32_t group;
    uint64_t blocks, block_tokens, block_stride, heads, head_stride, token_stride, piece_bytes,
        itemsize;
    uint64_t row_bytes() const { return heads * piece_bytes; }
};

// Tokens copied together: eight 16-bit elements of K are a fourth of a cache line.
constexpr uint32_t kRunTokens = 8;

// Element d of the K of token t is keys[d * across + t] in the cache, rows[t * along + d] in rows.
// Each d is a cache line of its own, and mostly not cached: those of the next head, `ahead` bytes
// away, are fetched meanwhile.
template <typename T, bool kStore>
inline void copy_keys(uint8_t *keys, uint64_t across, uint64_t ahead, uint8_t *rows, uint64_t along,
                      uint64_t dim, uint32_t tokens) {
    constexpr uint64_t size = sizeof(T);
    for (uint64_t d = 0; d < dim; ++d) {
        __builtin_prefetch(keys + d * across * size + ahead, kStore);
        for (uint32_t t = 0; t < tokens; ++t) {
            uint8_t *key = keys + (d * across + t) * size, *element = rows + t * along + d * size;
            if constexpr (kStore)
                std::memcpy(key, element, size);
            else
                std::memcpy(element, key, size);
        }
    }
}

template <bool kStore> inline void copy_bytes(uint8_t *cache, uint8_t *row, uint64_t size) {
    if constexpr (kStore)
        std::memcpy(cache, row, size);
    else
        std::memcpy(row, cache, size);
}

// Rows of the tokens slot … slot+tokens-1, all in one block and at most kRunTokens; row t at
// rows + t * along. kStore: into the cache, else out of it (`rows` is written).
template <bool kStore>
inline void copy_run(const KvLayer &layer, uint64_t slot, uint32_t tokens, uint8_t *rows,
                     uint64_t along) {
    const uint64_t offset = slot % layer.block_tokens;
    uint8_t *block = layer.base + slot / layer.block_tokens * layer.block_stride;
    if (!layer.keys_across) {
        const bool whole = layer.head_stride == layer.piece_bytes;
        const uint64_t pieces = whole ? 1 : layer.heads;
        const uint64_t size = whole ? layer.row_bytes() : layer.piece_bytes;
        for (uint32_t t = 0; t < tokens; ++t)
            for (uint64_t h = 0; h < pieces; ++h)
                copy_bytes<kStore>(
                    block + h * layer.head_stride + (offset + t) * layer.token_stride,
                    rows + t * along + h * size, size);
        return;
    }
    const uint64_t half = layer.piece_bytes / 2, dim = half / layer.itemsize;
    const auto copy = layer.itemsize == 4   ? copy_keys<uint32_t, kStore>
                      : layer.itemsize == 2 ? copy_keys<uint16_t, kStore>
                                            : copy_keys<uint8_t, kStore>;
    for (uint64_t h = 0; h < layer.heads; ++h, rows += layer.piece_bytes) {
        uint8_t *keys = block + h * layer.head_stride;
        uint8_t *values = keys + (layer.block_tokens + offset) * half;
        const uint64_t ahead = h + 1 < layer.heads ? layer.head_stride : 0;
        copy(keys + offset * layer.itemsize, layer.block_tokens, ahead, rows, along, dim, tokens);
        for (uint32_t t = 0; t < tokens; ++t)
            copy_bytes<kStore>(values + t * half, rows + t * along + half, half);
    }
}
