// KV rows out of vLLM's paged cache and into it. The twin is attention/kv_device.py.
#include "kv_rows.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "buffer.hpp"
#include "kv_wire.hpp"
#include "rows.hpp"

namespace nb = nanobind;

void bind_kv_seal(nb::module_ &m);

namespace {

using LayerTuple = std::tuple<uintptr_t, bool, uint32_t, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t, uint64_t, uint64_t>;
using GroupTuple = std::tuple<uint64_t, bool>;

[[noreturn]] void refuse(const std::string &why) { throw nb::value_error(why.c_str()); }

struct Group {
    uint64_t block_tokens;
    bool evicts;
    uint64_t slots = std::numeric_limits<uint64_t>::max();  // that all of its layers have
};

class KvLayers;

// Checked slots of some tokens, by group; a slot below the group's block_tokens is the null block.
struct KvSlots {
    const KvLayers *owner;
    uint64_t rows;
    std::vector<std::vector<int64_t>> by_group;
};

class KvLayers {
public:
    KvLayers(const std::vector<LayerTuple> &layers, const std::vector<GroupTuple> &groups) {
        for (const auto &[block_tokens, evicts] : groups)
            groups_.push_back({block_tokens, evicts});
        for (const auto &[base, across, group, blocks, block_tokens, block_stride, heads,
                          head_stride, token_stride, piece_bytes, itemsize] : layers) {
            if (group >= groups_.size() || block_tokens == 0 ||
                !(itemsize == 1 || itemsize == 2 || itemsize == 4) ||
                (across && piece_bytes % (2 * itemsize) != 0))
                refuse("layer " + std::to_string(layers_.size()) + ": a description without sense");
            layers_.push_back({reinterpret_cast<uint8_t *>(base), across, group, blocks,
                               block_tokens, block_stride, heads, head_stride, token_stride,
                               piece_bytes, itemsize});
            groups_[group].slots = std::min(groups_[group].slots, blocks * block_tokens);
        }
    }

    KvSlots locate(nb::sequence slots) const {
        KvSlots located{this, 0, {}};
        for (nb::handle object : slots) {
            Buffer buffer(object, false);
            const uint64_t rows = buffer.size() / sizeof(int64_t);
            if (located.by_group.empty())
                located.rows = rows;
            if (located.rows != rows || buffer.size() % sizeof(int64_t))
                refuse("slots: the groups differ in length");
            auto &group = located.by_group.emplace_back(rows);
            if (rows > 0)
                memcpy(group.data(), buffer.data(), buffer.size());
        }
        if (located.by_group.size() != groups_.size())
            refuse("slots: " + std::to_string(located.by_group.size()) + " groups instead of " +
                   std::to_string(groups_.size()));
        for (size_t g = 0; g < groups_.size(); ++g)
            for (int64_t slot : located.by_group[g]) {
                const auto place = static_cast<uint64_t>(slot);  // a negative one is too large
                if (place >= groups_[g].slots || (absent(g, slot) && !groups_[g].evicts))
                    refuse("slots: group " + std::to_string(g) + " has no slot " +
                           std::to_string(slot));
            }
        return located;
    }

    void gather(const KvSlots &slots, size_t first, size_t count, nb::handle out,
                nb::handle gone) const {
        check_owner(slots);
        if (first > layers_.size() || count > layers_.size() - first)
            refuse("layers: there are only " + std::to_string(layers_.size()));
        Buffer rows(out, true), flags(gone, true);
        uint64_t total = 0;
        for (size_t l = first; l < first + count; ++l)
            total += slots.rows * layers_[l].row_bytes();
        expect_bytes("out", rows, total);
        expect_bytes("absent", flags, slots.rows * count);

        std::optional<nb::gil_scoped_release> release;
        if (total >= kReleaseGil)
            release.emplace();
        uint8_t *to = rows.data(), *flag = flags.data();
        for (size_t l = first; l < first + count; ++l, flag += slots.rows) {
            const KvLayer &layer = layers_[l];
            const uint64_t row_bytes = layer.row_bytes();
            const auto &of_layer = slots.by_group[layer.group];
            for (uint64_t r = 0; r < slots.rows; ++r)
                flag[r] = absent(layer.group, of_layer[r]);
            for (uint64_t r = 0, end; r < slots.rows; to += (end - r) * row_bytes, r = end) {
                end = run_end(layer, of_layer, flag, 1, r);
                if (flag[r])
                    memset(to, 0, row_bytes);
                else
                    copy_run<false>(layer, of_layer[r], end - r, to, row_bytes);
            }
        }
    }

    // bad: [rows, layers], set by kv_check; set here for what is missing. Rows that are bad or
    // whose target is the null block are left out. Returns how many of those wanted are bad.
    uint64_t scatter(const KvSlots &slots, nb::handle payload, nb::handle sums,
                     nb::handle bad) const {
        check_owner(slots);
        Buffer rows(payload, false), s(sums, false), flags(bad, true);
        const uint64_t layers = layers_.size();
        uint64_t token_bytes = 0, offset = 0, count = 0;
        for (const KvLayer &layer : layers_)
            token_bytes += layer.row_bytes();
        expect_bytes("rows", rows, slots.rows * token_bytes);
        expect_bytes("sums", s, slots.rows * layers * sizeof(uint32_t));
        expect_bytes("bad", flags, slots.rows * layers);

        std::optional<nb::gil_scoped_release> release;
        if (rows.size() >= kReleaseGil)
            release.emplace();
        for (size_t l = 0; l < layers; offset += layers_[l++].row_bytes()) {
            const KvLayer &layer = layers_[l];
            const auto &of_layer = slots.by_group[layer.group];
            uint8_t *skip = flags.data() + l;  // of row r: skip[r * layers]
            for (uint64_t r = 0; r < slots.rows; ++r) {
                uint32_t sum;
                memcpy(&sum, s.data() + (r * layers + l) * sizeof sum, sizeof sum);
                const bool unwanted = absent(layer.group, of_layer[r]);
                skip[r * layers] |= sum == kSumAbsent;
                count += !unwanted && skip[r * layers];
                skip[r * layers] |= unwanted;
            }
            for (uint64_t r = 0, end; r < slots.rows; r = end) {
                end = run_end(layer, of_layer, skip, layers, r);
                if (!skip[r * layers])
                    copy_run<true>(layer, of_layer[r], end - r,
                                   rows.data() + r * token_bytes + offset, token_bytes);
            }
        }
        return count;
    }

private:
    std::vector<KvLayer> layers_;
    std::vector<Group> groups_;

    bool absent(size_t group, int64_t slot) const {
        return static_cast<uint64_t>(slot) < groups_[group].block_tokens;
    }

    void check_owner(const KvSlots &slots) const {
        if (slots.owner != this)
            refuse("slots: located by other layers");
    }

    // End of the run that starts at `first`: neighbours in one block, none of them left out.
    static uint64_t run_end(const KvLayer &layer, const std::vector<int64_t> &slots,
                            const uint8_t *skip, uint64_t stride, uint64_t first) {
        uint64_t end = first + 1;
        while (!skip[first * stride] && end < slots.size() && end - first < kRunTokens &&
               slots[end] == slots[end - 1] + 1 && slots[end] % layer.block_tokens != 0 &&
               !skip[end * stride])
            ++end;
        return end;
    }
};

}  // namespace

void bind_kv_rows(nb::module_ &m) {
    bind_kv_seal(m);
    nb::class_<KvSlots>(m, "KvSlots").def_ro("rows", &KvSlots::rows);
    nb::class_<KvLayers>(m, "KvLayers")
        .def(nb::init<const std::vector<LayerTuple> &, const std::vector<GroupTuple> &>(),
             nb::arg("layers"), nb::arg("groups"))
        .def("locate", &KvLayers::locate, nb::arg("slots"), nb::keep_alive<0, 1>())
        .def("gather", &KvLayers::gather, nb::arg("slots"), nb::arg("first_layer"),
             nb::arg("layers"), nb::arg("out"), nb::arg("absent"))
        .def("scatter", &KvLayers::scatter, nb::arg("slots"), nb::arg("rows"), nb::arg("sums"),
             nb::arg("bad"));
}
