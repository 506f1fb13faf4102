// The floor under the datapath: the same bytes through shared memory and back, in C++ and with
// nothing around it. Two processes; each copies in and copies out, and waits by spinning, then
// sleeping, as the doorbell does. For tarragon_hpc/bench/datapath.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <vector>

#include "bell.hpp"
#include "buffer.hpp"

namespace nb = nanobind;

namespace {

constexpr uint64_t kEnds = 4096;  // control page, then the request, then the reply

struct Ends {
    BellWords ping, pong;
    std::atomic<uint64_t> request_bytes, reply_bytes;
    std::atomic<uint32_t> stop;
};
static_assert(sizeof(Ends) <= kEnds);

Ends &ends(const Buffer &memory, uint64_t request_bytes, uint64_t reply_bytes) {
    if (memory.size() < kEnds + request_bytes + reply_bytes)
        throw nb::value_error("memory is too small for a request and a reply");
    return *reinterpret_cast<Ends *>(memory.data());
}

constexpr int64_t kForever = INT64_MAX / 2;

void await(BellWords *bell, uint32_t seen, int64_t spin_ns) {
    while (bell_wait(bell, seen, kForever, spin_ns) != Woken::rung) {
    }
}

// Answers until pingpong_stop: copies the request out, and as many bytes as are wanted back in.
void serve(nb::handle object, uint32_t spin_us) {
    Buffer memory(object, true);
    Ends &e = ends(memory, 0, 0);
    const uint64_t room = memory.size() - kEnds;
    std::vector<uint8_t> own(room);
    nb::gil_scoped_release release;
    for (uint32_t seen = 0;; ++seen) {
        await(&e.ping, seen, int64_t{spin_us} * 1000);
        if (e.stop.load())
            return;
        const uint64_t in = e.request_bytes.load(), out = e.reply_bytes.load();
        if (in > room || out > room - in)
            return;
        memcpy(own.data(), memory.data() + kEnds, in);
        memcpy(memory.data() + kEnds + in, own.data(), out);
        bell_ring(&e.pong);
    }
}

// Nanoseconds of each of `count` round trips.
std::vector<int64_t> ask(nb::handle object, uint64_t request_bytes, uint64_t reply_bytes,
                         uint32_t count, uint32_t spin_us) {
    Buffer memory(object, true);
    Ends &e = ends(memory, request_bytes, reply_bytes);
    e.request_bytes.store(request_bytes);
    e.reply_bytes.store(reply_bytes);
    std::vector<uint8_t> to(request_bytes), from(reply_bytes);
    std::vector<int64_t> times(count);
    nb::gil_scoped_release release;
    for (int64_t &time : times) {
        const uint32_t seen = e.pong.count.load();
        const int64_t start = monotonic_ns();
        memcpy(memory.data() + kEnds, to.data(), request_bytes);
        bell_ring(&e.ping);
        await(&e.pong, seen, int64_t{spin_us} * 1000);
        memcpy(from.data(), memory.data() + kEnds + request_bytes, reply_bytes);
        time = monotonic_ns() - start;
    }
    return times;
}

void stop(nb::handle object) {
    Buffer memory(object, true);
    Ends &e = ends(memory, 0, 0);
    e.stop.store(1);
    bell_ring(&e.ping);
}

}  // namespace

void bind_pingpong(nb::module_ &m) {
    m.def("pingpong_bytes",
          [](uint64_t request, uint64_t reply) { return kEnds + request + reply; },
          nb::arg("request_bytes"), nb::arg("reply_bytes"));
    m.def("pingpong_serve", &serve, nb::arg("memory"), nb::arg("spin_us"));
    m.def("pingpong_ask", &ask, nb::arg("memory"), nb::arg("request_bytes"),
          nb::arg("reply_bytes"), nb::arg("count"), nb::arg("spin_us"));
    m.def("pingpong_stop", &stop, nb::arg("memory"));
}
