// Splitting rows over workers, packing them, summing what comes back (datapath_rows.cpp).
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "combine.hpp"
#include "dispatch.hpp"

// From here on copying takes long enough (µs) to let other Python threads run.
constexpr uint64_t kReleaseGil = 64 * 1024;

struct Shape {
    uint32_t top_k, hidden, incarnation, epoch;
    Dtype dtype;
    uint64_t row_bytes() const { return hidden * itemsize(dtype); }
};

// What one worker gets. Offsets into the tables of the assignment; rows start where pairs do.
struct Part {
    uint32_t worker;
    uint32_t groups = 0, pairs = 0, rows = 0;
    uint32_t first_group = 0, first_pair = 0;
};

class Assignment {
public:
    Assignment(const Shape &shape, uint32_t rows) : shape_(shape), rows_(rows) {}

    const Shape &shape() const { return shape_; }
    const std::vector<Part> &parts() const { return parts_; }
    const std::vector<uint32_t> &missing() const { return missing_; }

    // Bytes of a part's dispatch, and of its reply.
    uint64_t request_bytes(const Part &part) const {
        return rows_offset(part.groups, part.pairs) + part.rows * shape_.row_bytes();
    }
    uint64_t reply_bytes(const Part &part) const {
        return sizeof(ReplyHeader) + part.pairs * shape_.row_bytes();
    }

    // Writes request_bytes(part) bytes; `hidden` is the chunk's first row. Needs the GIL.
    void pack(const Part &part, uint8_t *to, const uint8_t *hidden, uint64_t sequence,
              uint32_t layer, uint16_t flags) const;

    // replies: by part, header included, of at least reply_bytes(part). Needs the GIL.
    void combine(const uint8_t *const *replies, const float *weights, uint8_t *out) const;

    // For tests against the twin: (groups, pair rows, tokens of the rows) of a part.
    nanobind::tuple tables(uint32_t part) const;

private:
    friend class Router;
    Shape shape_;
    uint32_t rows_;
    std::vector<Part> parts_;
    std::vector<uint32_t> missing_;
    std::vector<Group> groups_;
    std::vector<uint32_t> pair_rows_, tokens_;
    std::vector<uint32_t> where_part_, where_pair_;
};

// Who serves which expert, under one epoch of the routing table.
class Router {
public:
    Router(nanobind::handle owners, uint32_t workers, uint32_t top_k, uint32_t hidden,
           uint32_t dtype, uint32_t incarnation, uint32_t epoch);

    // Raises ValueError for an id that is no expert.
    Assignment assign(const int32_t *ids, uint32_t rows);

    uint32_t workers() const { return worker_count_; }

private:
    Shape shape_;
    uint32_t worker_count_;
    std::vector<int32_t> owners_;
    std::vector<uint32_t> counts_, part_of_;  // scratch of assign
};
