// The floor under the datapath over TCP: the same bytes there and back through one connection, in
// C++, with blocking calls and nothing around it. Two processes, each with a buffer of its own.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <vector>

#include "bell.hpp"

namespace nb = nanobind;

namespace {

constexpr uint64_t kMost = uint64_t{1} << 32;

struct Sizes {
    uint64_t request, reply, count;
};

// Whether all bytes were moved; errno is 0 if the peer has closed.
bool send_all(int fd, const void *data, uint64_t nbytes) {
    for (auto *at = static_cast<const char *>(data); nbytes;) {
        const ssize_t count = send(fd, at, nbytes, MSG_NOSIGNAL);
        if (count < 0 && errno != EINTR)
            return false;
        at += std::max<ssize_t>(count, 0);
        nbytes -= static_cast<uint64_t>(std::max<ssize_t>(count, 0));
    }
    return true;
}

bool receive_all(int fd, void *data, uint64_t nbytes) {
    for (auto *at = static_cast<char *>(data); nbytes;) {
        errno = 0;
        const ssize_t count = recv(fd, at, nbytes, 0);
        if (count == 0 || (count < 0 && errno != EINTR))
            return false;
        at += std::max<ssize_t>(count, 0);
        nbytes -= static_cast<uint64_t>(std::max<ssize_t>(count, 0));
    }
    return true;
}

void no_delay(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

[[noreturn]] void fail() {
    if (!errno)
        errno = EPIPE;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

void serve(int fd) {
    no_delay(fd);
    bool broken = false;
    {
        nb::gil_scoped_release release;
        std::vector<uint8_t> buffer;
        for (Sizes s; !broken && receive_all(fd, &s, sizeof s);) {
            if (std::max(s.request, s.reply) > kMost) {
                errno = EMSGSIZE;
                broken = true;
                break;
            }
            buffer.resize(std::max(s.request, s.reply));
            for (; !broken && s.count; --s.count)
                broken = !receive_all(fd, buffer.data(), s.request) ||
                         !send_all(fd, buffer.data(), s.reply);
        }
        broken |= errno != 0;
    }
    if (broken)
        fail();
}

std::vector<int64_t> ask(int fd, uint64_t request_bytes, uint64_t reply_bytes, uint32_t count) {
    if (std::max(request_bytes, reply_bytes) > kMost)
        throw nb::value_error("messages are longer than 4 GiB");
    no_delay(fd);
    std::vector<uint8_t> to(request_bytes), from(reply_bytes);
    std::vector<int64_t> times(count);
    bool good;
    {
        nb::gil_scoped_release release;
        const Sizes sizes{request_bytes, reply_bytes, count};
        good = send_all(fd, &sizes, sizeof sizes);
        for (int64_t &time : times) {
            const int64_t start = monotonic_ns();
            good = good && send_all(fd, to.data(), request_bytes) &&
                   receive_all(fd, from.data(), reply_bytes);
            time = monotonic_ns() - start;
        }
    }
    if (!good)
        fail();
    return times;
}

}  // namespace

void bind_tcp_pingpong(nb::module_ &m) {
    m.def("tcp_pingpong_serve", &serve, nb::arg("fd"));
    m.def("tcp_pingpong_ask", &ask, nb::arg("fd"), nb::arg("request_bytes"),
          nb::arg("reply_bytes"), nb::arg("count"));
}
