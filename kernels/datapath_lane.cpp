// The fast lane of the REFE: a dispatch that fits one slot per worker, in two native calls.
//
// It does what tarragon_hpc/datapath/exchange.py does when nothing is in the way, and hands over to
// it (all parts posted and unanswered, no state of theirs changed) when anything is.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <vector>

#include "rows.hpp"
#include "slots.hpp"

namespace nb = nanobind;

namespace {

// One dispatch on its way, one message per part of its assignment.
struct Call {
    Assignment assignment;
    const void *lane;  // that sent it
    uint32_t layer;
    std::vector<uint32_t> slots{};
    uint64_t first_sequence = 0;  // of the first part; the others follow
    int64_t sent_ns = 0, waited_ns = 0;
    std::vector<int64_t> answered_ns{};  // when each reply was first seen; 0: not yet
    uint64_t nbytes = 0;
};

enum class Outcome { done = 0, timed_out = 1, look = 2 };

class Lane {
public:
    // workers: by index of the router, the slots to each and its incarnation; None: not connected.
    Lane(Router &router, nb::list workers, Doorbell &bell) : router_(router), bell_(bell) {
        for (nb::handle entry : workers) {
            if (entry.is_none()) {
                workers_.push_back({nullptr, 0});
                continue;
            }
            auto pair = nb::cast<nb::tuple>(entry);
            workers_.push_back({nb::cast<ClientSlots *>(pair[0]), nb::cast<uint32_t>(pair[1])});
        }
        if (workers_.size() != router.workers())
            throw nb::value_error("the router has another number of workers");
        held_ = workers;
    }

    // Posts all parts, or nothing: None if an expert is missing or a slot is not to be had.
    std::optional<Call> send(uintptr_t topk_ids, uint32_t rows, uintptr_t hidden,
                             uint64_t first_sequence, uint32_t layer) {
        Call call{router_.assign(reinterpret_cast<const int32_t *>(topk_ids), rows),
                  this, layer};
        const std::vector<Part> &parts = call.assignment.parts();
        if (!call.assignment.missing().empty())
            return std::nullopt;
        for (const Part &part : parts) {
            ClientSlots *slots = workers_[part.worker].slots;
            if (!slots || call.assignment.request_bytes(part) > slots->request_bytes() ||
                !slots->can_acquire())
                return std::nullopt;
        }
        call.first_sequence = first_sequence;
        call.slots.reserve(parts.size());
        call.answered_ns.resize(parts.size());
        for (const Part &part : parts) {
            ClientSlots *slots = workers_[part.worker].slots;
            const uint32_t slot = slots->take();
            call.assignment.pack(part, slots->request_data(slot),
                                 reinterpret_cast<const uint8_t *>(hidden), first_sequence++,
                                 layer, 0);
            const uint64_t nbytes = call.assignment.request_bytes(part);
            slots->post(slot, nbytes);
            call.slots.push_back(slot);
            call.nbytes += nbytes;
        }
        call.sent_ns = monotonic_ns();
        return call;
    }

    // Waits for all replies, at most until timeout_s after they were sent, and combines them.
    // `look`: a worker is lost or a reply is not as it should be; nothing has been changed then.
    Outcome finish(Call &call, uintptr_t weights, uintptr_t out, double timeout_s) {
        if (call.lane != this)
            throw nb::value_error("another lane sent this call");
        const std::vector<Part> &parts = call.assignment.parts();
        const int64_t deadline = call.sent_ns + static_cast<int64_t>(timeout_s * 1e9);
        for (;;) {
            const uint32_t seen = bell_.value();
            bool complete = true, lost = false;
            for (size_t i = 0; i < parts.size(); ++i) {
                if (call.answered_ns[i])
                    continue;
                const ClientSlots &slots = *workers_[parts[i].worker].slots;
                // The loss first: a reply may have come just before it.
                const bool gone = slots.lost();
                if (slots.has_reply(call.slots[i])) {
                    call.answered_ns[i] = monotonic_ns();
                } else {
                    complete = false;
                    lost |= gone;
                }
            }
            if (complete)
                break;
            const int64_t now = monotonic_ns();
            if (lost)
                return Outcome::look;
            if (now >= deadline)
                return Outcome::timed_out;
            bell_.wait(seen, 1e-9 * static_cast<double>(deadline - now));
            call.waited_ns += monotonic_ns() - now;
        }
        std::vector<const uint8_t *> replies(parts.size());
        for (size_t i = 0; i < parts.size(); ++i) {
            if (!good(call, i))
                return Outcome::look;
            replies[i] = workers_[parts[i].worker].slots->reply_data(call.slots[i]);
        }
        call.assignment.combine(replies.data(), reinterpret_cast<const float *>(weights),
                                reinterpret_cast<uint8_t *>(out));
        for (size_t i = 0; i < parts.size(); ++i) {
            ClientSlots &slots = *workers_[parts[i].worker].slots;
            slots.reply(call.slots[i]);
            slots.release(call.slots[i]);
        }
        return Outcome::done;
    }

private:
    struct Worker {
        ClientSlots *slots;
        uint32_t incarnation;
    };

    // An OK reply to this very message, with all its rows.
    bool good(const Call &call, size_t i) const {
        const Part &part = call.assignment.parts()[i];
        const Worker &worker = workers_[part.worker];
        const uint64_t nbytes = worker.slots->reply_length(call.slots[i]);
        if (nbytes > worker.slots->reply_bytes() || nbytes < call.assignment.reply_bytes(part))
            return false;
        ReplyHeader h;
        memcpy(&h, worker.slots->reply_data(call.slots[i]), sizeof h);
        const Shape &shape = call.assignment.shape();
        return h.magic == kReplyMagic && h.status == 0 &&
               h.dtype == static_cast<uint16_t>(shape.dtype) &&
               h.incarnation == worker.incarnation && h.epoch == shape.epoch &&
               h.sequence == call.first_sequence + i && h.layer == call.layer &&
               h.pairs == part.pairs && h.hidden == shape.hidden;
    }

    Router &router_;
    Doorbell &bell_;
    nb::object held_;  // keeps the slots alive
    std::vector<Worker> workers_;
};

}  // namespace

void bind_lane(nb::module_ &m) {
    m.attr("DONE") = static_cast<int>(Outcome::done);
    m.attr("TIMED_OUT") = static_cast<int>(Outcome::timed_out);
    m.attr("LOOK") = static_cast<int>(Outcome::look);
    nb::class_<Call>(m, "Call")
        .def_ro("assignment", &Call::assignment)
        .def_ro("slots", &Call::slots)
        .def_ro("first_sequence", &Call::first_sequence)
        .def_ro("request_bytes", &Call::nbytes)
        .def_prop_ro("sent_s", [](const Call &c) { return 1e-9 * static_cast<double>(c.sent_ns); })
        .def_prop_ro("waited_s",
                     [](const Call &c) { return 1e-9 * static_cast<double>(c.waited_ns); })
        .def_prop_ro("answers", [](const Call &c) {
            nb::list list;
            for (size_t i = 0; i < c.slots.size(); ++i) {
                const Part &part = c.assignment.parts()[i];
                list.append(nb::make_tuple(part.worker, c.assignment.reply_bytes(part),
                                           1e-9 * static_cast<double>(c.answered_ns[i] - c.sent_ns)));
            }
            return list;
        });
    nb::class_<Lane>(m, "Lane")
        .def(nb::init<Router &, nb::list, Doorbell &>(), nb::keep_alive<1, 2>(),
             nb::keep_alive<1, 4>(), nb::arg("router"), nb::arg("workers"), nb::arg("bell"))
        .def("send", &Lane::send, nb::arg("topk_ids"), nb::arg("rows"), nb::arg("hidden"),
             nb::arg("first_sequence"), nb::arg("layer"))
        .def("finish", [](Lane &lane, Call &call, uintptr_t weights, uintptr_t out,
                          double timeout_s) {
            return static_cast<int>(lane.finish(call, weights, out, timeout_s));
        }, nb::arg("call"), nb::arg("weights"), nb::arg("out"), nb::arg("timeout_s"));
}
