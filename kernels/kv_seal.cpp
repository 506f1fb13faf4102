// Making and checking the sums of KV rows. The twin is wire/kv_sums.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "crc32c.hpp"
#include "kv_wire.hpp"
#include "rows.hpp"

namespace nb = nanobind;

namespace {

template <typename T> T at(const Buffer &buffer, size_t i) {
    T value;
    memcpy(&value, buffer.data() + i * sizeof(T), sizeof(T));
    return value;
}

uint64_t total(const std::vector<uint64_t> &row_bytes) {
    uint64_t sum = 0;
    for (uint64_t bytes : row_bytes)
        sum += bytes;
    return sum;
}

void seal(nb::handle payload, uint32_t layers, uint32_t rows, uint32_t first_layer,
          const std::vector<uint64_t> &row_bytes, nb::handle keys, nb::handle positions,
          nb::handle absent, nb::handle sums, bool check) {
    if (row_bytes.size() != layers)
        throw nb::value_error("row_bytes: not one number per layer");
    Buffer data(payload, false), k(keys, false), p(positions, false), out(sums, true);
    std::optional<Buffer> gone;
    if (!absent.is_none())
        expect_bytes("absent", gone.emplace(absent, false), uint64_t{rows} * layers);
    expect_bytes("payload", data, rows * total(row_bytes));
    expect_bytes("keys", k, rows * sizeof(uint64_t));
    expect_bytes("positions", p, rows * sizeof(uint32_t));
    expect_bytes("sums", out, uint64_t{rows} * layers * sizeof(uint32_t));

    std::optional<nb::gil_scoped_release> release;
    if (data.size() >= kReleaseGil)
        release.emplace();
    const uint8_t *row = data.data();
    for (size_t l = 0; l < layers; ++l)
        for (uint32_t r = 0; r < rows; ++r, row += row_bytes[l]) {
            const size_t place = l * rows + r;
            uint32_t sum = kSumNone;
            if (gone && gone->data()[place])
                sum = kSumAbsent;
            else if (check)
                sum = kv_sum(at<uint64_t>(k, r), static_cast<uint32_t>(first_layer + l),
                             at<uint32_t>(p, r), row, row_bytes[l]);
            memcpy(out.data() + place * sizeof(sum), &sum, sizeof(sum));
        }
}

uint64_t check(nb::handle payload, const std::vector<uint64_t> &row_bytes, nb::handle keys,
               nb::handle positions, nb::handle sums, nb::handle bad, bool check) {
    const size_t layers = row_bytes.size();
    Buffer data(payload, false), k(keys, false), p(positions, false), s(sums, false),
        out(bad, true);
    const size_t rows = k.size() / sizeof(uint64_t);
    const uint64_t token_bytes = total(row_bytes);
    expect_bytes("keys", k, rows * sizeof(uint64_t));
    expect_bytes("payload", data, rows * token_bytes);
    expect_bytes("positions", p, rows * sizeof(uint32_t));
    expect_bytes("sums", s, rows * layers * sizeof(uint32_t));
    expect_bytes("bad", out, rows * layers);

    std::optional<nb::gil_scoped_release> release;
    if (data.size() >= kReleaseGil)
        release.emplace();
    uint64_t count = 0;
    const uint8_t *row = data.data();
    for (size_t r = 0; r < rows; ++r)
        for (size_t l = 0; l < layers; row += row_bytes[l++]) {
            const uint32_t sum = at<uint32_t>(s, r * layers + l);
            const bool wrong =
                sum == kSumNone ? check
                                : sum != kSumAbsent &&
                                      sum != kv_sum(at<uint64_t>(k, r), static_cast<uint32_t>(l),
                                                    at<uint32_t>(p, r), row, row_bytes[l]);
            out.data()[r * layers + l] = wrong;
            count += wrong;
        }
    return count;
}

}  // namespace

void bind_kv_seal(nb::module_ &m) {
    m.def("kv_seal", &seal, nb::arg("payload"), nb::arg("layers"), nb::arg("rows"),
          nb::arg("first_layer"), nb::arg("row_bytes"), nb::arg("keys"), nb::arg("positions"),
          nb::arg("absent").none(), nb::arg("sums"), nb::arg("check"));
    m.def("kv_check", &check, nb::arg("payload"), nb::arg("row_bytes"), nb::arg("keys"),
          nb::arg("positions"), nb::arg("sums"), nb::arg("bad"), nb::arg("check"));
}
