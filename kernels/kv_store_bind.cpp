// Binder of kv_store.hpp.
#include <nanobind/nanobind.h>

#include "buffer.hpp"
#include "kv_store.hpp"

namespace nb = nanobind;

namespace {

constexpr uint32_t kMaxPageTokens = 4096;

void init(KvStore *self, uint64_t memory, uint32_t page_tokens, bool check, double orphan_s) {
    if (memory == 0)
        throw nb::value_error("memory: 0 bytes; expected more");
    if (page_tokens == 0 || page_tokens > kMaxPageTokens)
        throw nb::value_error("page_tokens: expected 1 to 4096");
    new (self) KvStore(memory, page_tokens, check, orphan_s);
}

uint64_t handle(KvStore &store, uint64_t client, nb::handle frame, nb::handle reply, double now) {
    const Buffer in(frame, false), out(reply, true);
    const nb::gil_scoped_release release;
    return store.handle(client, in.data(), in.size(), out.data(), out.size(), now);
}

nb::dict stats(KvStore &store) {
    KvStats s;
    {
        const nb::gil_scoped_release release;  // whoever holds the store may need the GIL next
        s = store.stats();
    }
    nb::dict named;
    const auto add = [&](const char *name, uint64_t value) {
        named[name] = static_cast<double>(value);
    };
    add("kv_requests", s.requests);
    add("kv_used_bytes", s.used_bytes);
    add("kv_capacity_bytes", s.capacity_bytes);
    add("kv_evicted", s.evicted);
    add("kv_bad_rows", s.bad_rows);
    add("kv_dropped_runs", s.dropped_runs);
    add("kv_received_bytes", s.received_bytes);
    return named;
}

nb::dict prefixes(KvStore &store) {
    std::vector<std::pair<uint64_t, uint32_t>> found;
    {
        const nb::gil_scoped_release release;
        found = store.prefixes();
    }
    nb::dict by_key;
    for (const auto &[key, committed] : found) by_key[nb::int_(key)] = committed;
    return by_key;
}

nb::tuple row_bytes(KvStore &store) {
    std::vector<uint32_t> found;
    {
        const nb::gil_scoped_release release;
        found = store.row_bytes();
    }
    nb::list sizes;
    for (const uint32_t size : found) sizes.append(size);
    return nb::tuple(sizes);
}

}  // namespace

void bind_kv_store(nb::module_ &m) {
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<KvStore>(m, "KvStore")
        .def("__init__", &init, nb::arg("memory"), nb::arg("page_tokens") = 16,
             nb::arg("check") = true, nb::arg("orphan_s") = 60.0)
        .def("handle", &handle, nb::arg("client"), nb::arg("frame"), nb::arg("reply"),
             nb::arg("now"))
        .def("client_lost", &KvStore::client_lost, Unlocked(), nb::arg("client"), nb::arg("now"))
        .def("expire", &KvStore::expire, Unlocked(), nb::arg("now"))
        .def("stats", &stats)
        .def("prefixes", &prefixes)
        .def("row_bytes", &row_bytes);
}
