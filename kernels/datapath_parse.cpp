// The receiver's side of a dispatch: bounds checks, and rows for an echo. Twin: wire/parse.py.
#include <nanobind/nanobind.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "rows.hpp"

namespace nb = nanobind;

namespace {

[[noreturn]] void refuse(const std::string &why) { throw nb::value_error(why.c_str()); }

// Everything before the rows, copied first and checked then: the sender could still write to it.
struct Tables {
    std::vector<Group> groups;
    nb::object pair_rows;  // bytes
    const uint32_t *rows;  // what lies in them
};

Tables copy_tables(const uint8_t *from, uint32_t pairs, uint32_t groups) {
    Tables t;
    t.groups.resize(groups);
    memcpy(t.groups.data(), from, sizeof(Group) * groups);
    t.pair_rows = nb::steal(PyBytes_FromStringAndSize(
        reinterpret_cast<const char *>(from + sizeof(Group) * groups), Py_ssize_t{4} * pairs));
    if (!t.pair_rows.is_valid())
        throw nb::python_error();
    t.rows = reinterpret_cast<const uint32_t *>(PyBytes_AS_STRING(t.pair_rows.ptr()));
    return t;
}

// (expert, first pair, count) of every group.
nb::list check_tables(const Tables &t, uint32_t rows, uint32_t pairs) {
    for (size_t g = 1; g < t.groups.size(); ++g)
        if (t.groups[g].expert <= t.groups[g - 1].expert)
            refuse("groups are not in ascending order of experts");
    nb::list list;
    uint64_t pair = 0;
    for (const auto [expert, count] : t.groups) {
        if (count == 0 || count > pairs - pair)
            refuse("the groups' counts do not add up to the pairs");
        list.append(nb::make_tuple(expert, pair, count));
        pair += count;
    }
    if (pair != pairs)
        refuse("the groups' counts do not add up to the pairs");
    uint32_t highest = 0;
    for (uint32_t i = 0; i < pairs; ++i)
        highest = t.rows[i] > highest ? t.rows[i] : highest;
    if (pairs > 0 && highest >= rows)
        refuse("a pair reads a row that was not sent");
    return list;
}

nb::tuple parse_dispatch(nb::handle slot, uint64_t reply_capacity) {
    Buffer buffer(slot, false);
    if (buffer.size() < sizeof(RequestHeader))
        refuse("dispatch shorter than its header");
    RequestHeader h;
    memcpy(&h, buffer.data(), sizeof h);
    if (h.magic != kRequestMagic || h.dtype > static_cast<uint16_t>(Dtype::f16))
        refuse("not a dispatch");
    const unsigned __int128 row_bytes = (unsigned __int128){h.hidden} *
                                        itemsize(static_cast<Dtype>(h.dtype));
    const uint64_t first_row = rows_offset(h.groups, h.pairs);
    if (first_row + h.rows * row_bytes > buffer.size())
        refuse("dispatch exceeds its slot of " + std::to_string(buffer.size()) + " bytes");
    const unsigned __int128 reply = sizeof(ReplyHeader) + h.pairs * row_bytes;
    if (reply > reply_capacity)
        refuse("its reply would exceed a slot of " + std::to_string(reply_capacity) + " bytes");
    Tables tables = copy_tables(buffer.data() + sizeof h, h.pairs, h.groups);
    nb::list groups = check_tables(tables, h.rows, h.pairs);
    return nb::make_tuple(
        nb::make_tuple(h.dtype, h.flags, h.incarnation, h.epoch, h.sequence, h.layer, h.rows,
                       h.pairs, h.groups, h.hidden),
        groups, reinterpret_cast<uintptr_t>(buffer.data()) + first_row, tables.pair_rows,
        reinterpret_cast<uintptr_t>(tables.rows), static_cast<uint64_t>(row_bytes),
        static_cast<uint64_t>(reply));
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

void bind_parse(nb::module_ &m) {
    m.def("parse_dispatch", &parse_dispatch, nb::arg("slot"), nb::arg("reply_capacity"));
    m.def("gather_rows", &gather_rows, nb::arg("x"), nb::arg("index"), nb::arg("count"),
          nb::arg("y"), nb::arg("row_bytes"));
    m.def("address_of", [](nb::handle object, bool writable) {
        return reinterpret_cast<uintptr_t>(Buffer(object, writable).data());
    }, nb::arg("buffer"), nb::arg("writable") = false);
    m.def("dispatch_layout", &dispatch_layout);
}
