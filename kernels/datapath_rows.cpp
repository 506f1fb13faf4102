// The Python twins in tarragon_hpc/datapath/assign.py, combine.py and rows.py specify all this.
#include "rows.hpp"

#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "buffer.hpp"

namespace nb = nanobind;

void Assignment::pack(const Part &part, uint8_t *to, const uint8_t *hidden, uint64_t sequence,
                      uint32_t layer, uint16_t flags) const {
    const uint64_t row_bytes = shape_.row_bytes();
    const uint64_t first_row = rows_offset(part.groups, part.pairs);
    RequestHeader header{kRequestMagic, static_cast<uint16_t>(shape_.dtype), flags,
                         shape_.incarnation, shape_.epoch, sequence, layer, part.rows, part.pairs,
                         part.groups, shape_.hidden, {}};
    memcpy(to, &header, sizeof header);
    uint64_t at = sizeof header;
    memcpy(to + at, &groups_[part.first_group], sizeof(Group) * part.groups);
    at += sizeof(Group) * part.groups;
    memcpy(to + at, &pair_rows_[part.first_pair], 4 * part.pairs);
    at += 4 * part.pairs;
    memset(to + at, 0, first_row - at);

    std::optional<nb::gil_scoped_release> release;
    if (part.rows * row_bytes >= kReleaseGil)
        release.emplace();
    const uint32_t *tokens = &tokens_[part.first_pair];
    for (uint32_t row = 0; row < part.rows;) {  // runs of neighbouring tokens in one copy
        uint32_t end = row + 1;
        while (end < part.rows && tokens[end] == tokens[end - 1] + 1)
            ++end;
        memcpy(to + first_row + row * row_bytes, hidden + tokens[row] * row_bytes,
               (end - row) * row_bytes);
        row = end;
    }
}

void Assignment::combine(const uint8_t *const *replies, const float *weights, uint8_t *out) const {
    std::vector<const uint8_t *> first_rows(parts_.size());
    for (size_t i = 0; i < parts_.size(); ++i)
        first_rows[i] = replies[i] + sizeof(ReplyHeader);
    CombineJob job{shape_.dtype, rows_, shape_.top_k, shape_.hidden, first_rows.data(),
                   where_part_.data(), where_pair_.data(), weights, out};
    std::optional<nb::gil_scoped_release> release;
    if (rows_ * shape_.row_bytes() * shape_.top_k >= kReleaseGil)
        release.emplace();
    ::combine(job);
}

nb::tuple Assignment::tables(uint32_t part) const {
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

Router::Router(nb::handle owners, uint32_t workers, uint32_t top_k, uint32_t hidden,
               uint32_t dtype, uint32_t incarnation, uint32_t epoch)
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

Assignment Router::assign(const int32_t *ids, uint32_t rows) {
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

namespace {

template <class T>
nb::tuple tuple_of(const std::vector<T> &items, auto &&convert) {
    nb::list list;
    for (const T &item : items)
        list.append(convert(item));
    return nb::tuple(list);
}

uint64_t pack_slot(const Assignment &a, uint32_t part, nb::handle slot, uintptr_t hidden,
                   uint64_t sequence, uint32_t layer, uint16_t flags) {
    const Part &p = a.parts().at(part);
    Buffer buffer(slot, true);
    const uint64_t nbytes = a.request_bytes(p);
    if (nbytes > buffer.size())
        throw nb::value_error("dispatch is larger than its slot");
    a.pack(p, buffer.data(), reinterpret_cast<const uint8_t *>(hidden), sequence, layer, flags);
    return nbytes;
}

void combine_slots(const Assignment &a, nb::sequence replies, uintptr_t weights, uintptr_t out) {
    const std::vector<Part> &parts = a.parts();
    if (nb::len(replies) != parts.size())
        throw nb::value_error("one reply per part is needed");
    std::vector<std::optional<Buffer>> buffers(parts.size());
    std::vector<const uint8_t *> data(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
        buffers[i].emplace(replies[i], false);
        if (buffers[i]->size() < a.reply_bytes(parts[i]))
            throw nb::value_error("reply is shorter than its pairs");
        data[i] = buffers[i]->data();
    }
    a.combine(data.data(), reinterpret_cast<const float *>(weights),
              reinterpret_cast<uint8_t *>(out));
}

}  // namespace

void bind_rows(nb::module_ &m) {
    nb::class_<Assignment>(m, "Assignment")
        .def_prop_ro("parts", [](const Assignment &a) {
            return tuple_of(a.parts(), [](const Part &p) {
                return nb::make_tuple(p.worker, p.rows, p.pairs);
            });
        })
        .def_prop_ro("missing", [](const Assignment &a) {
            return tuple_of(a.missing(), [](uint32_t expert) { return nb::int_(expert); });
        })
        .def("tables", &Assignment::tables, nb::arg("part"))
        .def("pack", &pack_slot, nb::arg("part"), nb::arg("slot"), nb::arg("hidden"),
             nb::arg("sequence"), nb::arg("layer"), nb::arg("flags"))
        .def("combine", &combine_slots, nb::arg("replies"), nb::arg("weights"), nb::arg("out"));
    nb::class_<Router>(m, "Router")
        .def(nb::init<nb::handle, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>(),
             nb::arg("owners"), nb::arg("workers"), nb::arg("top_k"), nb::arg("hidden"),
             nb::arg("dtype"), nb::arg("incarnation"), nb::arg("epoch"))
        .def("assign", [](Router &r, uintptr_t topk_ids, uint32_t rows) {
            return r.assign(reinterpret_cast<const int32_t *>(topk_ids), rows);
        }, nb::arg("topk_ids"), nb::arg("rows"));
}
