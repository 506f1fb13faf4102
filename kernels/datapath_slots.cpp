// Binder of slots.hpp, and the mapping of shared memory.
#include "slots.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <sys/mman.h>

namespace nb = nanobind;

namespace {

// A LifeSign or LifeWatch that holds the memory it lives in.
struct OwnLife {
    explicit OwnLife(nb::handle bell_memory) : memory(bell_memory, true), sign(life_words(memory)) {}
    Buffer memory;
    LifeSign sign;
};

struct PeerLife {
    PeerLife(nb::handle bell_memory, uint32_t word, Slots &slots, Doorbell &bell)
        : memory(bell_memory, true), watch(&checked(memory, word), [&slots, &bell] {
              slots.set_lost();
              bell.ring();
          }) {}
    static LifeWord &checked(const Buffer &memory, uint32_t word) {
        if (word >= kLifeWords)
            throw nb::value_error("no such sign of life");
        return life_words(memory)[word];
    }
    Buffer memory;
    LifeWatch watch;
};

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
    m.attr("BELL_BYTES") = kBellBytes;
    m.attr("LIFE_WORDS") = kLifeWords;

    nb::class_<Notifier>(m, "Notifier");
    nb::class_<CallNotifier, Notifier>(m, "CallNotifier")
        .def(nb::init<nb::object>(), nb::arg("posted"));
    nb::class_<Doorbell, Notifier>(m, "Doorbell")
        .def(nb::init<nb::handle, uint32_t>(), nb::arg("memory"), nb::arg("spin_us"))
        .def("watch", &Doorbell::watch, nb::arg("ring"), nb::arg("slots"), nb::arg("nbytes"))
        .def("unwatch", &Doorbell::unwatch, nb::arg("number"))
        .def("value", &Doorbell::value)
        .def("ring", &Doorbell::ring)
        .def("wait", &Doorbell::wait, nb::arg("seen"), nb::arg("timeout_s"));

    nb::class_<OwnLife>(m, "LifeSign").def(nb::init<nb::handle>(), nb::arg("bell_memory"));
    nb::class_<PeerLife>(m, "LifeWatch")
        .def(nb::init<nb::handle, uint32_t, Slots &, Doorbell &>(), nb::keep_alive<1, 4>(),
             nb::keep_alive<1, 5>(), nb::arg("peer_bell_memory"), nb::arg("word"),
             nb::arg("slots"), nb::arg("bell"))
        .def("stop", [](PeerLife &life) { life.watch.stop(); });

    nb::class_<Slots>(m, "Slots")
        .def("set_lost", &Slots::set_lost)
        .def_prop_ro("lost", &Slots::lost);

    nb::class_<ClientSlots, Slots>(m, "ClientSlots")
        .def(nb::init<nb::handle, nb::handle, uint32_t, uint64_t, uint64_t, Notifier &>(),
             nb::keep_alive<1, 7>(), nb::arg("request"), nb::arg("reply"), nb::arg("slots"),
             nb::arg("request_bytes"), nb::arg("reply_bytes"), nb::arg("peer"))
        .def("acquire", &ClientSlots::acquire)
        .def("post", &ClientSlots::post, nb::arg("slot"), nb::arg("nbytes"))
        .def("reply", &ClientSlots::reply, nb::arg("slot"))
        .def("release", &ClientSlots::release, nb::arg("slot"))
        .def("abandon", &ClientSlots::abandon, nb::arg("slot"))
        .def("owed", &ClientSlots::owed);

    nb::class_<ServerSlots, Slots>(m, "ServerSlots")
        .def(nb::init<nb::handle, nb::handle, uint32_t, uint64_t, uint64_t, Notifier &>(),
             nb::keep_alive<1, 7>(), nb::arg("request"), nb::arg("reply"), nb::arg("slots"),
             nb::arg("request_bytes"), nb::arg("reply_bytes"), nb::arg("peer"))
        .def("poll", &ServerSlots::poll)
        .def("send", &ServerSlots::send, nb::arg("slot"), nb::arg("nbytes"));
}
