#include "kv_store_requests.hpp"

#include <sys/mman.h>

#include <new>
#include <tuple>
#include <utility>

#include "kv_wire.hpp"

KvShape::KvShape(std::vector<uint32_t> rows, uint32_t page_tokens) : row_bytes(std::move(rows)) {
    for (uint32_t nbytes : row_bytes) {
        row_at.push_back(record);
        record += nbytes;
    }
    sums_at = uint64_t{4} * page_tokens;
    rows_at = sums_at * (1 + layers());
    page_bytes = kv_aligned(rows_at + record * page_tokens);
}

KvPages::KvPages(uint64_t nbytes) : nbytes_(nbytes) {
    void *memory = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        throw std::bad_alloc();
    madvise(memory, nbytes, MADV_HUGEPAGE);  // a hint: without it there are only more faults
    memory_ = static_cast<uint8_t *>(memory);
}

KvPages::~KvPages() { munmap(memory_, nbytes_); }

uint64_t KvPages::take() {
    ++used_;
    if (back_.empty())
        return fresh_++;
    const uint64_t page = back_.back();
    back_.pop_back();
    return page;
}

void KvRequests::remove(uint64_t key) {
    const auto found = kept_.find(key);
    for (uint64_t page : found->second.pages) pages.give(page);
    kept_.erase(found);
}

void KvRequests::trim(KvKept &kept) {
    const uint64_t least = std::max<uint64_t>(1, pages_for(kept.ledger.extent()));
    while (kept.pages.size() > least) {
        pages.give(kept.pages.back());
        kept.pages.pop_back();
    }
}

bool KvRequests::reserve(uint64_t key, KvKept &kept, uint32_t end) {
    const uint64_t need = pages_for(end);
    while (kept.pages.size() < need && pages.free() < need - kept.pages.size()) {
        const uint64_t victim = least();
        ++evicted;
        remove(victim);
        if (victim == key)
            return false;
    }
    kept.pages.reserve(need);
    while (kept.pages.size() < need) kept.pages.push_back(pages.take());
    return true;
}

// Orphans first, the oldest of them; then what is cheapest to compute anew, of equals the newcomer.
uint64_t KvRequests::least() const {
    using Worth = std::tuple<bool, double, int64_t>;
    uint64_t key = 0;
    Worth worth{true, std::numeric_limits<double>::infinity(), 0};
    for (const auto &[k, kept] : kept_) {
        const auto serial = static_cast<int64_t>(kept.serial);
        const Worth w = kept.orphan ? Worth{false, kept.orphaned, serial}
                                    : Worth{true, kept.ledger.committed(), -serial};
        if (w < worth)
            key = k, worth = w;
    }
    return key;
}

void KvRequests::orphan(uint64_t owner, double now) {
    for (auto &[key, kept] : kept_) {
        if (kept.owner == owner && !kept.orphan) {
            kept.orphan = true, kept.orphaned = now;
            earliest_ = std::min(earliest_, now);
        }
    }
}

void KvRequests::expire(double now) {
    if (!(earliest_ + orphan_s_ < now))
        return;
    earliest_ = std::numeric_limits<double>::infinity();
    std::vector<uint64_t> due;
    for (const auto &[key, kept] : kept_) {
        if (!kept.orphan)
            continue;
        if (kept.orphaned + orphan_s_ < now)
            due.push_back(key);
        else
            earliest_ = std::min(earliest_, kept.orphaned);
    }
    for (uint64_t key : due) remove(key);
}
