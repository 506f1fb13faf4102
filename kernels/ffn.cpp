// tarragon_hpc._native.FfnBank: the experts of one EW and their FFN on the CPU.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ffn_pool.hpp"
#include "ffn_scalar.hpp"
#include "ffn_types.hpp"

namespace nb = nanobind;

namespace {

using namespace ffn;

bool supported(const std::string &isa) {
    if (isa == "scalar") return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (isa == "avx2") return avx2;
    if (isa == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
    return false;
}

const Kernels &kernels_for(const std::string &isa, Dtype d) {
#if defined(__x86_64__)
    if (isa == "avx512") return avx512_kernels(d);
    if (isa == "avx2") return avx2_kernels(d);
#endif
    return scalar_kernels(d);
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const char *isa : {"avx512", "avx2", "scalar"})
        if (supported(isa)) names.emplace_back(isa);
    return names;
}

struct FreeAligned {
    void operator()(void *p) const { std::free(p); }
};

// Memory that grows, never shrinks, loses its contents when it grows; 64-byte aligned.
class Scratch {
public:
    void *reserve(size_t bytes) {
        if (bytes > size_) {
            data_.reset();
            size_ = 0;
            data_.reset(std::aligned_alloc(64, (bytes + 63) & ~size_t(63)));
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return data_.get();
    }

private:
    std::unique_ptr<void, FreeAligned> data_;
    size_t size_ = 0;
};

struct Expert {
    Weights w;
    std::vector<float> gate_bias, up_bias, down_bias;
};

struct Segment {
    const Expert *expert;
    const std::byte *x;
    const uint32_t *index;
    size_t count;
    std::byte *y;
};

class Bank {
public:
    Bank(size_t hidden, size_t ffn, const std::string &activation, float alpha, float limit,
         const std::string &dtype, unsigned threads, const std::string &isa)
        : shape_{hidden, ffn, activation_of(activation), alpha, limit},
          dtype_(dtype_of(dtype)),
          isa_(isa == "auto" ? instruction_sets().front() : isa),
          pool_(std::max(threads, 1u)),
          phase_(std::max(threads, 1u)),
          local_(std::max(threads, 1u)) {
        if (!hidden || !ffn) throw std::invalid_argument("hidden and ffn must be positive");
        if (!supported(isa_))
            throw std::invalid_argument("isa: this machine has no '" + isa_ + "'");
        kernels_ = &kernels_for(isa_, dtype_);
        for (Scratch &l : local_) l.reserve(kLocalBytes);
        // Packed rows of one wave: at most 512, and at most 32 MiB once that leaves enough rows.
        const size_t row = (blocks(hidden) + blocks(ffn)) * kBlock * sizeof(float);
        wave_rows_ = std::clamp<size_t>((size_t(32) << 20) / row, 48, 512);
    }

    // Addresses of the weights, which must stay mapped as long as the bank; biases (0: none) are
    // copied.
    void add(int layer, int expert, uintptr_t gate, uintptr_t up, uintptr_t down,
             uintptr_t gate_bias, uintptr_t up_bias, uintptr_t down_bias) {
        auto e = std::make_unique<Expert>();
        e->gate_bias = widen(gate_bias, shape_.ffn);
        e->up_bias = widen(up_bias, shape_.ffn);
        e->down_bias = widen(down_bias, shape_.hidden);
        auto at = [](uintptr_t p) { return reinterpret_cast<const std::byte *>(p); };
        auto data = [](const std::vector<float> &v) { return v.empty() ? nullptr : v.data(); };
        e->w = {at(gate),           at(up),           at(down),
                data(e->gate_bias), data(e->up_bias), data(e->down_bias)};
        experts_[{layer, expert}] = std::move(e);
    }

    void run(int layer, nb::sequence segments) {
        std::vector<Segment> batch = read(layer, segments);
        nb::gil_scoped_release unlocked;
        std::lock_guard<std::mutex> one(running_);
        std::stable_sort(batch.begin(), batch.end(),
                         [](const Segment &a, const Segment &b) { return a.expert < b.expert; });
        gather(batch);
        for (size_t at = 0; at < rows_.size();) at = wave(at);
    }

    const std::string &isa() const { return isa_; }
    std::string repr() const {
        return "FfnBank(" + isa_ + ", " + std::to_string(pool_.size()) + " threads)";
    }

private:

    static Activation activation_of(const std::string &name) {
        if (name == "silu") return Activation::silu;
        if (name == "swigluoai") return Activation::swigluoai;
        throw std::invalid_argument("activation '" + name + "': expected silu or swigluoai");
    }

    static Dtype dtype_of(const std::string &name) {
        if (name == "float32") return Dtype::f32;
        if (name == "bfloat16") return Dtype::bf16;
        if (name == "float16") return Dtype::f16;
        throw std::invalid_argument("dtype '" + name + "': expected float32, bfloat16 or float16");
    }

    std::vector<float> widen(uintptr_t p, size_t n) const {
        if (!p) return {};
        std::vector<float> out(blocks(n) * kBlock, 0.0f);
        for (size_t i = 0; i < n; ++i)
            out[i] = element(reinterpret_cast<const std::byte *>(p), i, dtype_);
        return out;
    }

    std::vector<Segment> read(int layer, nb::sequence &segments) const {
        std::vector<Segment> batch;
        for (nb::handle s : segments) {
            const int id = nb::cast<int>(s.attr("expert"));
            const auto found = experts_.find({layer, id});
            if (found == experts_.end()) {
                const std::string what =
                    "layer " + std::to_string(layer) + " expert " + std::to_string(id);
                throw nb::key_error((what + " is not loaded").c_str());
            }
            batch.push_back({found->second.get(),
                             reinterpret_cast<const std::byte *>(nb::cast<uintptr_t>(s.attr("x"))),
                             reinterpret_cast<const uint32_t *>(nb::cast<uintptr_t>(s.attr("index"))),
                             nb::cast<size_t>(s.attr("count")),
                             reinterpret_cast<std::byte *>(nb::cast<uintptr_t>(s.attr("y")))});
        }
        return batch;
    }

    // Input and output address of every row, rows of one expert together.
    void gather(const std::vector<Segment> &batch) {
        const size_t bytes = shape_.hidden * itemsize(dtype_);
        rows_.clear();
        src_.clear();
        dst_.clear();
        for (const Segment &s : batch)
            for (size_t i = 0; i < s.count; ++i) {
                uint32_t row;
                std::memcpy(&row, s.index + i, sizeof row);
                rows_.push_back(s.expert);
                src_.push_back(s.x + row * bytes);
                dst_.push_back(s.y + i * bytes);
            }
    }

    // Runs the rows from `first`, as many as the scratch memory takes; returns the next row.
    size_t wave(size_t first) {
        const size_t end = std::min(first + wave_rows_, rows_.size());
        const size_t kx = blocks(shape_.hidden) * kBlock, kh = blocks(shape_.ffn) * kBlock;
        auto *x = static_cast<float *>(x_.reserve((end - first) * kx * sizeof(float)));
        auto *h = static_cast<float *>(h_.reserve((end - first) * kh * sizeof(float)));
        jobs_.clear();
        for (size_t at = first; at < end;) {
            size_t to = at + 1;
            while (to < end && rows_[to] == rows_[at]) ++to;
            jobs_.push_back({rows_[at]->w, to - at, &src_[at], &dst_[at], x + (at - first) * kx,
                             h + (at - first) * kh});
            at = to;
        }
        pool_.run([this](unsigned me) {
            void *local = local_[me].reserve(kLocalBytes);
            share(
                me, [&](const Job &j) { return tiles(j); },
                [&](const Job &j, size_t b, size_t e) { kernels_->pack(shape_, j, b, e); });
            phase_.wait();
            share(
                me, [&](const Job &) { return blocks(shape_.ffn); },
                [&](const Job &j, size_t b, size_t e) {
                    kernels_->gate_up(shape_, j, b, e, local);
                });
            phase_.wait();
            share(
                me, [&](const Job &) { return blocks(shape_.hidden); },
                [&](const Job &j, size_t b, size_t e) { kernels_->down(shape_, j, b, e, local); });
        });
        return end;
    }

    size_t tiles(const Job &j) const {
        return (j.rows + kernels_->tile_rows - 1) / kernels_->tile_rows;
    }

    // Calls step for this thread's part of all jobs' units. A unit costs its rows and the streaming
    // of its weights, about as much as kStream rows; parts have equal costs.
    template <class Units, class Step>
    void share(unsigned me, Units &&units, Step &&step) const {
        constexpr size_t kStream = 6;
        size_t total = 0;
        for (const Job &j : jobs_) total += units(j) * (j.rows + kStream);
        const size_t lo = total * me / pool_.size(), hi = total * (me + 1) / pool_.size();
        size_t base = 0;
        for (const Job &j : jobs_) {
            const size_t cost = j.rows + kStream, n = units(j);
            auto unit_at = [&](size_t c) {
                return c <= base ? 0 : std::min(n, (c - base + cost - 1) / cost);
            };
            const size_t begin = unit_at(lo), end = unit_at(hi);
            if (begin < end) step(j, begin, end);
            base += n * cost;
        }
    }

    const Shape shape_;
    const Dtype dtype_;
    const std::string isa_;
    const Kernels *kernels_;
    size_t wave_rows_;
    std::map<std::pair<int, int>, std::unique_ptr<Expert>> experts_;

    std::mutex running_;
    Pool pool_;
    Meeting phase_;
    std::vector<Scratch> local_;
    Scratch x_, h_;
    std::vector<const Expert *> rows_;
    std::vector<const std::byte *> src_;
    std::vector<std::byte *> dst_;
    std::vector<Job> jobs_;
};

}  // namespace

void bind_ffn(nb::module_ &m) {
    nb::class_<Bank>(m, "FfnBank")
        .def(nb::init<size_t, size_t, const std::string &, float, float, const std::string &,
                      unsigned, const std::string &>(),
             nb::kw_only(), nb::arg("hidden"), nb::arg("ffn"), nb::arg("activation"),
             nb::arg("alpha"), nb::arg("limit"), nb::arg("dtype"), nb::arg("threads"),
             nb::arg("isa") = "auto")
        .def("add", &Bank::add, nb::arg("layer"), nb::arg("expert"), nb::arg("gate"),
             nb::arg("up"), nb::arg("down"), nb::arg("gate_bias"), nb::arg("up_bias"),
             nb::arg("down_bias"))
        .def("run", &Bank::run, nb::arg("layer"), nb::arg("segments"))
        .def_prop_ro("isa", &Bank::isa)
        .def("__repr__", &Bank::repr);
    m.def("ffn_instruction_sets", [] {
        nb::list names;
        for (const std::string &isa : instruction_sets()) names.append(isa.c_str());
        return names;
    });
}
