// Binder of the TCP transport's native half.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <system_error>

#include "tcp_link.hpp"

namespace nb = nanobind;

namespace {

// Longer messages are sent without the GIL.
constexpr uint64_t kLong = 16 << 10;

// A TcpLink with the memory of its rings, as the notifier of one end's slots.
class TcpNotifier : public Notifier {
public:
    TcpNotifier(nb::handle outgoing, nb::handle incoming, uint32_t slots, uint64_t outgoing_bytes,
                uint64_t incoming_bytes, bool serves, double silent_loss_s)
        : outgoing_(outgoing, slots, outgoing_bytes), incoming_(incoming, slots, incoming_bytes) {
        if (!(silent_loss_s > 0 && silent_loss_s < 1e6))
            throw nb::value_error("silent_loss_s must be positive and below 1e6");
        link_ = std::make_shared<TcpLink>(outgoing_, incoming_, slots, incoming_bytes, serves,
                                          static_cast<int64_t>(silent_loss_s * 1e9));
    }
    ~TcpNotifier() override {
        nb::gil_scoped_release release;
        link_->stop();
    }
    TcpLink &link() { return *link_; }
    void posted(uint32_t slot, uint64_t sequence, uint64_t nbytes) override {
        std::optional<nb::gil_scoped_release> release;
        if (nbytes > kLong)
            release.emplace();
        link_->post(slot, sequence, nbytes);
    }

private:
    Ring outgoing_, incoming_;
    std::shared_ptr<TcpLink> link_;
};

void start(TcpNotifier &notifier, int data, int control, Slots &slots, Doorbell &bell) {
    int error = 0;
    {
        nb::gil_scoped_release release;
        try {
            notifier.link().start(data, control, slots.flag(), bell);
        } catch (const std::system_error &failed) {
            error = failed.code().value();
        }
    }
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
    }
}

}  // namespace

void bind_tcp(nb::module_ &m) {
    nb::class_<TcpNotifier, Notifier>(m, "TcpLink")
        .def(nb::init<nb::handle, nb::handle, uint32_t, uint64_t, uint64_t, bool, double>(),
             nb::arg("outgoing"), nb::arg("incoming"), nb::arg("slots"), nb::arg("outgoing_bytes"),
             nb::arg("incoming_bytes"), nb::arg("serves"), nb::arg("silent_loss_s"))
        .def("start", &start, nb::keep_alive<1, 5>(), nb::arg("data"), nb::arg("control"),
             nb::arg("slots"), nb::arg("bell"))
        .def("stop", [](TcpNotifier &n) { n.link().stop(); },
             nb::call_guard<nb::gil_scoped_release>())
        .def("probe", [](TcpNotifier &n) { n.link().probe(); })
        .def_prop_ro("answered", [](TcpNotifier &n) { return n.link().answered(); })
        .def("reason", [](TcpNotifier &n) { return n.link().reason(); });
}
