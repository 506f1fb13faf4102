// Rows to the experts and back: assign, pack, combine; and the receiver's side, parse and gather.
// The Python twins in tarragon_hpc/datapath/assign.py and rows.py and wire/parse.py specify them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "combine.hpp"
#include "dispatch.hpp"

namespace nb = nanobind;

namespace {

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

    nb::tuple workers() const {
        nb::list list;
        for (const Part &part : parts_)
            list.append(part.worker);
        return nb::tuple(list);
    }

    nb::tuple missing() const {
        nb::list list;
        for (uint32_t expert : missing_)
            list.append(expert);
        return nb::tuple(list);
    }

    // For tests against the twin: (groups, pair rows, tokens of the rows) of a part.
    nb::tuple tables(uint32_t part) const {
        const Part &p = parts_.at(part);
        nb::list groups, pair_rows, tokens;
        for (uint32_t g = 0; g < p.groups; ++g)
            groups.append(nb::make_tuple(groups_[p.first_group + g].expert,
                                         groups_[p.first_group + g].count));
        for (uint32_t i = 0; i < p.pairs; ++i)
            pair_rows.append(pair_rows_[p.first_pair + i]);
        for (uint32_t i = 0; i < p.rows; ++i)
            tokens.append(tokens_[p.first_pair + i]);
        return nb::make_tuple(groups, pair_rows, tokens);
    }

    nb::tuple size(uint32_t part) const {
        const Part &p = parts_.at(part);
        return nb::make_tuple(p.rows, p.pairs);
    }

    uint64_t pack(uint32_t part, nb::handle slot, uintptr_t hidden, uint64_t sequence,
                  uint32_t layer, uint16_t flags) const {
        const Part &p = parts_.at(part);
        Buffer buffer(slot, true);
        const uint64_t row_bytes = shape_.row_bytes();
        const uint64_t first_row = rows_offset(p.groups, p.pairs);
        const uint64_t nbytes = first_row + p.rows * row_bytes;
        if (nbytes > buffer.size())
            throw nb::value_error("dispatch is larger than its slot");
        uint8_t *to = buffer.data();
        RequestHeader header{kRequestMagic, static_cast<uint16_t>(shape_.dtype), flags,
                             shape_.incarnation, shape_.epoch, sequence, layer, p.rows, p.pairs,
                             p.groups, shape_.hidden, {}};
        memcpy(to, &header, sizeof header);
        uint64_t at = sizeof header;
        memcpy(to + at, &groups_[p.first_group], sizeof(Group) * p.groups);
        at += sizeof(Group) * p.groups;
        memcpy(to + at, &pair_rows_[p.first_pair], 4 * p.pairs);
        at += 4 * p.pairs;
        memset(to + at, 0, first_row - at);

        std::optional<nb::gil_scoped_release> release;
        if (p.rows * row_bytes >= kReleaseGil)
            release.emplace();
        const auto *from = reinterpret_cast<const uint8_t *>(hidden);
        const uint32_t *tokens = &tokens_[p.first_pair];
        for (uint32_t row = 0; row < p.rows;) {  // runs of neighbouring tokens in one copy
            uint32_t end = row + 1;
            while (end < p.rows && tokens[end] == tokens[end - 1] + 1)
                ++end;
            memcpy(to + first_row + row * row_bytes, from + tokens[row] * row_bytes,
                   (end - row) * row_bytes);
            row = end;
        }
        return nbytes;
    }

    void combine(nb::sequence replies, uintptr_t weights, uintptr_t out) const {
        if (nb::len(replies) != parts_.size())
            throw nb::value_error("one reply per part is needed");
        const uint64_t row_bytes = shape_.row_bytes();
        std::vector<std::optional<Buffer>> buffers(parts_.size());
        std::vector<const uint8_t *> first_rows(parts_.size());
        for (size_t i = 0; i < parts_.size(); ++i) {
            buffers[i].emplace(replies[i], false);
            if (buffers[i]->size() < sizeof(ReplyHeader) + parts_[i].pairs * row_bytes)
                throw nb::value_error("reply is shorter than its pairs");
            first_rows[i] = buffers[i]->data() + sizeof(ReplyHeader);
        }
        CombineJob job{shape_.dtype, rows_, shape_.top_k, shape_.hidden, first_rows.data(),
                       where_part_.data(), where_pair_.data(),
                       reinterpret_cast<const float *>(weights), reinterpret_cast<uint8_t *>(out)};
        std::optional<nb::gil_scoped_release> release;
        if (rows_ * row_bytes * shape_.top_k >= kReleaseGil)
            release.emplace();
        ::combine(job);
    }

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
    Router(nb::handle owners, uint32_t workers, uint32_t top_k, uint32_t hidden, uint32_t dtype,
           uint32_t incarnation, uint32_t epoch)
        : shape_{top_k, hidden, incarnation, epoch, static_cast<Dtype>(dtype)} {
        Buffer buffer(owners, false);
        owners_.resize(buffer.size() / sizeof(int32_t));
        memcpy(owners_.data(), buffer.data(), owners_.size() * sizeof(int32_t));
        worker_count_ = workers;
        for (int32_t owner : owners_)
            if (owner < -1 || owner >= static_cast<int64_t>(workers))
                throw nb::value_error("an owner is not the index of a worker");
        if (dtype > 2 || top_k == 0 || top_k > kMaxTopK || hidden == 0 || hidden > kMaxHidden)
            throw nb::value_error("dtype, top_k or hidden is out of range");
    }

    Assignment assign(uintptr_t topk_ids, uint32_t rows) {
        const auto *ids = reinterpret_cast<const int32_t *>(topk_ids);
        const uint32_t top_k = shape_.top_k;
        const uint64_t pairs = uint64_t{rows} * top_k;
        if (pairs > UINT32_MAX)
            throw nb::value_error("too many rows");
        Assignment a(shape_, rows);

        counts_.assign(owners_.size(), 0);
        for (uint64_t i = 0; i < pairs; ++i) {
            auto expert = static_cast<uint32_t>(ids[i]);
            if (expert >= counts_.size())
                throw nb::value_error(("topk_ids[" + std::to_string(i / top_k) + ", " +
                                       std::to_string(i % top_k) + "] is " +
                                       std::to_string(ids[i]) + "; experts are 0 to " +
                                       std::to_string(counts_.size() - 1))
                                          .c_str());
            ++counts_[expert];
        }
        part_of_.assign(worker_count_, UINT32_MAX);
        for (size_t e = 0; e < counts_.size(); ++e) {
            if (counts_[e] == 0)
                continue;
            if (owners_[e] < 0)
                a.missing_.push_back(static_cast<uint32_t>(e));
            else
                part_of_[owners_[e]] = 0;
        }
        if (!a.missing_.empty())
            return a;
        for (uint32_t w = 0; w < worker_count_; ++w)
            if (part_of_[w] == 0) {
                part_of_[w] = static_cast<uint32_t>(a.parts_.size());
                a.parts_.push_back({w});
            }
        for (size_t e = 0; e < counts_.size(); ++e)
            if (counts_[e]) {
                Part &part = a.parts_[part_of_[owners_[e]]];
                ++part.groups;
                part.pairs += counts_[e];
            }
        uint32_t groups = 0, first_pair = 0;
        for (Part &part : a.parts_) {
            part.first_group = groups;
            part.first_pair = first_pair;
            groups += std::exchange(part.groups, 0);
            first_pair += std::exchange(part.pairs, 0);
        }
        a.groups_.resize(groups);
        for (size_t e = 0; e < counts_.size(); ++e)  // groups by ascending expert
            if (uint32_t count = counts_[e]) {
                Part &part = a.parts_[part_of_[owners_[e]]];
                a.groups_[part.first_group + part.groups++] = {static_cast<uint32_t>(e), count};
                counts_[e] = std::exchange(part.pairs, part.pairs + count);  // next pair's place
            }
        a.pair_rows_.resize(pairs);
        a.tokens_.resize(pairs);
        a.where_part_.resize(pairs);
        a.where_pair_.resize(pairs);
        for (uint64_t i = 0; i < pairs; ++i) {  // pairs of a group in token order
            const uint32_t token = static_cast<uint32_t>(i / top_k);
            const uint32_t index = part_of_[owners_[ids[i]]];
            Part &part = a.parts_[index];
            uint32_t *tokens = &a.tokens_[part.first_pair];
            if (part.rows == 0 || tokens[part.rows - 1] != token)
                tokens[part.rows++] = token;
            const uint32_t pair = counts_[ids[i]]++;
            a.pair_rows_[part.first_pair + pair] = part.rows - 1;
            a.where_part_[i] = index;
            a.where_pair_[i] = pair;
        }
        return a;
    }

private:
    Shape shape_;
    uint32_t worker_count_;
    std::vector<int32_t> owners_;
    std::vector<uint32_t> counts_, part_of_;  // scratch of assign
};

// Groups as (expert, first pair, count), and a private copy of the pair-rows table with its address.
// The tables are copied before they are checked: the sender could still change the slot.
nb::tuple parse_tables(nb::handle slot, uint32_t rows, uint32_t pairs, uint32_t groups) {
    Buffer buffer(slot, false);
    if (rows_offset(groups, pairs) > buffer.size())
        throw nb::value_error("tables exceed the slot");
    const uint8_t *from = buffer.data() + sizeof(RequestHeader);
    std::vector<Group> table(groups);
    memcpy(table.data(), from, sizeof(Group) * groups);
    nb::object copy = nb::steal(PyBytes_FromStringAndSize(nullptr, Py_ssize_t{4} * pairs));
    if (!copy.is_valid())
        throw nb::python_error();
    auto *index = reinterpret_cast<uint32_t *>(PyBytes_AS_STRING(copy.ptr()));
    memcpy(index, from + sizeof(Group) * groups, 4ull * pairs);

    for (uint32_t g = 1; g < groups; ++g)
        if (table[g].expert <= table[g - 1].expert)
            throw nb::value_error("groups are not in ascending order of experts");
    nb::list list;
    uint64_t pair = 0;
    for (uint32_t g = 0; g < groups; ++g) {
        const auto [expert, count] = table[g];
        if (count == 0 || count > pairs - pair)
            throw nb::value_error("the groups' counts do not add up to the pairs");
        list.append(nb::make_tuple(expert, pair, count));
        pair += count;
    }
    if (pair != pairs)
        throw nb::value_error("the groups' counts do not add up to the pairs");
    uint32_t highest = 0;
    for (uint32_t i = 0; i < pairs; ++i)
        highest = index[i] > highest ? index[i] : highest;
    if (pairs > 0 && highest >= rows)
        throw nb::value_error("a pair reads a row that was not sent");
    return nb::make_tuple(list, copy, reinterpret_cast<uintptr_t>(index));
}

void gather_rows(uintptr_t x, uintptr_t index, uint32_t count, uintptr_t y, uint64_t row_bytes) {
    std::optional<nb::gil_scoped_release> release;
    if (count * row_bytes >= kReleaseGil)
        release.emplace();
    const auto *from = reinterpret_cast<const uint8_t *>(x);
    const auto *rows = reinterpret_cast<const uint32_t *>(index);
    auto *to = reinterpret_cast<uint8_t *>(y);
    for (uint32_t i = 0; i < count; ++i)
        memcpy(to + i * row_bytes, from + rows[i] * row_bytes, row_bytes);
}

nb::dict dispatch_layout() {
    nb::dict d;
    d["request"] = nb::make_tuple(
        sizeof(RequestHeader), offsetof(RequestHeader, magic), offsetof(RequestHeader, dtype),
        offsetof(RequestHeader, flags), offsetof(RequestHeader, incarnation),
        offsetof(RequestHeader, epoch), offsetof(RequestHeader, sequence),
        offsetof(RequestHeader, layer), offsetof(RequestHeader, rows),
        offsetof(RequestHeader, pairs), offsetof(RequestHeader, groups),
        offsetof(RequestHeader, hidden));
    d["reply"] = nb::make_tuple(
        sizeof(ReplyHeader), offsetof(ReplyHeader, magic), offsetof(ReplyHeader, dtype),
        offsetof(ReplyHeader, status), offsetof(ReplyHeader, incarnation),
        offsetof(ReplyHeader, epoch), offsetof(ReplyHeader, sequence),
        offsetof(ReplyHeader, layer), offsetof(ReplyHeader, rows), offsetof(ReplyHeader, pairs),
        offsetof(ReplyHeader, hidden), offsetof(ReplyHeader, compute_ns));
    return d;
}

}  // namespace

void bind_rows(nb::module_ &m) {
    nb::class_<Assignment>(m, "Assignment")
        .def_prop_ro("workers", &Assignment::workers)
        .def_prop_ro("missing", &Assignment::missing)
        .def("tables", &Assignment::tables, nb::arg("part"))
        .def("size", &Assignment::size, nb::arg("part"))
        .def("pack", &Assignment::pack, nb::arg("part"), nb::arg("slot"), nb::arg("hidden"),
             nb::arg("sequence"), nb::arg("layer"), nb::arg("flags"))
        .def("combine", &Assignment::combine, nb::arg("replies"), nb::arg("weights"),
             nb::arg("out"));
    nb::class_<Router>(m, "Router")
        .def(nb::init<nb::handle, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>(),
             nb::arg("owners"), nb::arg("workers"), nb::arg("top_k"), nb::arg("hidden"),
             nb::arg("dtype"), nb::arg("incarnation"), nb::arg("epoch"))
        .def("assign", &Router::assign, nb::arg("topk_ids"), nb::arg("rows"));
    m.def("parse_tables", &parse_tables, nb::arg("slot"), nb::arg("rows"), nb::arg("pairs"),
          nb::arg("groups"));
    m.def("gather_rows", &gather_rows, nb::arg("x"), nb::arg("index"), nb::arg("count"),
          nb::arg("y"), nb::arg("row_bytes"));
    m.def("address_of", [](nb::handle object) {
        return reinterpret_cast<uintptr_t>(Buffer(object, false).data());
    }, nb::arg("buffer"));
    m.def("dispatch_layout", &dispatch_layout);
}
