// How a store takes rows in.
#include <algorithm>
#include <cstring>

#include "crc32c.hpp"
#include "kv_store.hpp"

// A Put whose offsets have been checked; the pointers lead into the frame.
struct KvStore::Put {
    std::vector<KvRun> runs{};
    bool commit = false;
    const uint8_t *tokens = nullptr, *sums = nullptr;
    std::vector<const uint8_t *> rows{};  // by layer of the frame
};

namespace {

uint32_t read_u32(const uint8_t *from) {
    uint32_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

void write_u32(uint8_t *to, uint32_t value) { std::memcpy(to, &value, sizeof(value)); }

}  // namespace

bool KvStore::parse(const Frame &f, Put &put) const {
    const KvHeader &h = f.header;
    put.commit = h.flags == kKvCommit;
    if ((h.flags & ~kKvCommit) || !h.runs || !h.rows || !(h.layers || put.commit))
        return false;
    if (size_t{h.first_layer} + h.layers > shape_->layers())
        return false;
    // At most 2^37 + 2^50: far from an overflow.
    const uint64_t tokens = sizeof(KvRun) * h.runs;
    const uint64_t sums = tokens + (put.commit ? 4 * uint64_t{h.rows} : 0);
    const uint64_t end = sums + 4 * uint64_t{h.rows} * h.layers;
    uint64_t start = kv_aligned(sizeof(KvHeader) + end) - sizeof(KvHeader);
    if (start > h.body)
        return false;
    for (uint32_t i = 0; i < h.layers; ++i) {
        const uint64_t size = shape_->row_bytes[h.first_layer + i];
        if (h.rows > (h.body - start) / size)
            return false;
        put.rows.push_back(f.body + start);
        start += h.rows * size;
    }
    put.runs.resize(h.runs);
    std::memcpy(put.runs.data(), f.body, tokens);
    put.tokens = f.body + tokens, put.sums = f.body + sums;
    uint64_t rows = 0;
    for (const KvRun &run : put.runs) {
        if (run.length == 0 || uint64_t{run.start} + run.length > UINT32_MAX)
            return false;
        rows += run.length;
    }
    return rows == h.rows;
}

KvStore::Answer KvStore::put(const Frame &f) {
    Put put;
    if (!parse(f, put))
        return {kKvBad};
    if (!is_new(f))
        return {};
    received_bytes_ += sizeof(KvHeader) + f.header.body;
    std::vector<uint64_t> dropped;  // in order, each once
    uint64_t row = 0;
    for (const KvRun &run : put.runs) {
        if (!write(f, put, run, row)) {
            ++dropped_runs_;
            if (std::find(dropped.begin(), dropped.end(), run.key) == dropped.end())
                dropped.push_back(run.key);
        }
        row += run.length;
    }
    const auto count = static_cast<uint32_t>(std::min<uint64_t>(dropped.size(), f.room / 8));
    if (count)
        std::memcpy(f.reply, dropped.data(), 8 * uint64_t{count});
    return {kKvOk, count, 0, 0, 8 * uint64_t{count}};
}

// Stores a run, whose rows start at `row` of the frame; false if any of it was dropped.
bool KvStore::write(const Frame &f, const Put &put, const KvRun &run, uint64_t row) {
    KvKept *kept = requests_.find(run.key);
    if (!kept) {
        if (run.start > 0)
            return false;
        kept = &requests_.create(run.key, shape_->layers(), run.attempt, f.client);
    } else if (!kept->ledger.write(run.attempt, run.base)) {
        return false;
    }
    kept->owner = f.client, kept->orphan = false;
    requests_.trim(*kept);
    const uint32_t end = run.start + run.length;
    const auto extends = [&](uint32_t frontier) { return run.start <= frontier && frontier < end; };
    const auto first = kept->ledger.frontiers.begin() + f.header.first_layer;
    if ((std::any_of(first, first + f.header.layers, extends) ||
         (put.commit && extends(kept->ledger.tokens))) &&
        !requests_.reserve(run.key, *kept, end))
        return false;
    bool whole = true;
    for (uint32_t index = 0; index < f.header.layers; ++index)
        whole &= write_layer(*kept, f, put, run, row, index);
    if (put.commit)
        whole &= write_tokens(*kept, put, run, row);
    return whole;
}

bool KvStore::write_layer(KvKept &kept, const Frame &f, const Put &put, const KvRun &run,
                          uint64_t row, uint32_t index) {
    const KvShape &shape = *shape_;
    const uint32_t layer = f.header.first_layer + index;
    const uint64_t size = shape.row_bytes[layer];
    uint32_t &frontier = kept.ledger.frontiers[layer];
    if (run.start > frontier)
        return false;
    const uint8_t *sums = put.sums + 4 * uint64_t{f.header.rows} * index;
    for (; frontier < run.start + run.length; ++frontier) {
        const uint64_t r = row + (frontier - run.start), in_page = frontier % page_tokens_;
        uint8_t *const page = page_of(kept, frontier);
        uint8_t *const to = page + shape.rows_at + shape.record * in_page + shape.row_at[layer];
        const uint32_t sum = read_u32(sums + 4 * r);
        if (sum == kSumAbsent) {
            std::memset(to, 0, size);
        } else {
            std::memcpy(to, put.rows[index] + size * r, size);
            if (check_ && sum != kv_sum(run.key, layer, frontier, to, size)) {
                ++bad_rows_;
                return false;
            }
        }
        write_u32(page + shape.sums_at + 4 * (shape.layers() * in_page + layer), sum);
    }
    return true;
}

bool KvStore::write_tokens(KvKept &kept, const Put &put, const KvRun &run, uint64_t row) {
    uint32_t &frontier = kept.ledger.tokens;
    if (run.start > frontier)
        return false;
    for (; frontier < run.start + run.length; ++frontier)
        write_u32(page_of(kept, frontier) + 4 * (frontier % page_tokens_),
                  read_u32(put.tokens + 4 * (row + (frontier - run.start))));
    return true;
}
