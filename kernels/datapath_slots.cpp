// Binder of slots.hpp, and the mapping of shared memory.
#include "slots.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <sys/mman.h>

namespace nb = nanobind;

namespace {

struct Mapping {
    void *address;
    size_t nbytes;
};

// Maps a file of shared memory; unmapped when the last view of it is gone.
nb::object map_shared(int fd, size_t nbytes) {
    void *address = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
    }
    nb::capsule owner(new Mapping{address, nbytes}, [](void *p) noexcept {
        auto *mapping = static_cast<Mapping *>(p);
        munmap(mapping->address, mapping->nbytes);
        delete mapping;
    });
    return nb::cast(nb::ndarray<nb::memview, uint8_t, nb::ndim<1>>(address, {nbytes}, owner));
}

}  // namespace

void bind_slots(nb::module_ &m) {
    m.def("map_shared", &map_shared, nb::arg("fd"), nb::arg("nbytes"));
    m.def("ring_bytes", [](uint32_t slots, uint64_t nbytes) { return slots * slot_stride(nbytes); },
          nb::arg("slots"), nb::arg("nbytes"));
    m.def("slot_offset",
          [](uint32_t slot, uint64_t nbytes) { return slot * slot_stride(nbytes) + sizeof(Control); },
          nb::arg("slot"), nb::arg("nbytes"));
    m.attr("BELL_BYTES") = sizeof(BellWords);

    nb::class_<Doorbell>(m, "Doorbell")
        .def(nb::init<nb::handle, uint32_t>(), nb::arg("memory"), nb::arg("spin_us"))
        .def("value", &Doorbell::value)
        .def("ring", &Doorbell::ring)
        .def("wait", &Doorbell::wait, nb::arg("seen"), nb::arg("timeout_s"));

    nb::class_<ClientSlots>(m, "ClientSlots")
        .def(nb::init<nb::handle, nb::handle, uint32_t, uint64_t, uint64_t, Doorbell &>(),
             nb::keep_alive<1, 7>(), nb::arg("request"), nb::arg("reply"), nb::arg("slots"),
             nb::arg("request_bytes"), nb::arg("reply_bytes"), nb::arg("peer_bell"))
        .def("set_lost", &ClientSlots::set_lost)
        .def("acquire", &ClientSlots::acquire)
        .def("post", &ClientSlots::post, nb::arg("slot"), nb::arg("nbytes"))
        .def("reply", &ClientSlots::reply, nb::arg("slot"))
        .def("release", &ClientSlots::release, nb::arg("slot"))
        .def("abandon", &ClientSlots::abandon, nb::arg("slot"));

    nb::class_<ServerSlots>(m, "ServerSlots")
        .def(nb::init<nb::handle, nb::handle, uint32_t, uint64_t, uint64_t, Doorbell &>(),
             nb::keep_alive<1, 7>(), nb::arg("request"), nb::arg("reply"), nb::arg("slots"),
             nb::arg("request_bytes"), nb::arg("reply_bytes"), nb::arg("peer_bell"))
        .def("poll", &ServerSlots::poll)
        .def("send", &ServerSlots::send, nb::arg("slot"), nb::arg("nbytes"));
}
