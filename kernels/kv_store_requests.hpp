// The requests of a store, the pages they own, and who is forgotten when memory is full; the twin:
// tarragon_hpc/checkpoint/plain_requests.py.
//
// A page holds `page_tokens` positions, token-major, so that a fetch is two copies per page:
//
//     token ids P × u32 ‖ sums P × layers × u32 ‖ P × (rows of all layers) ‖ pad to 64
#pragma once
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <vector>

#include "kv_store_ledger.hpp"

// Bytes of the rows of each layer, and where things lie in a page.
struct KvShape {
    KvShape(std::vector<uint32_t> rows, uint32_t page_tokens);
    size_t layers() const { return row_bytes.size(); }

    std::vector<uint32_t> row_bytes;
    std::vector<uint64_t> row_at;  // of each layer, in the rows of a position
    uint64_t record = 0;           // bytes of the rows of a position
    uint64_t sums_at, rows_at;     // in a page
    uint64_t page_bytes;
};

// Memory set aside at the start. It is address space first: the kernel gives a page of it a frame
// when that is first written, in huge pages where it can, and no sooner is it missed elsewhere.
// Pages that come back are used again before fresh ones.
class KvPages {
public:
    explicit KvPages(uint64_t nbytes);
    ~KvPages();
    KvPages(const KvPages &) = delete;
    KvPages &operator=(const KvPages &) = delete;

    // Only while no page is taken.
    void cut(uint64_t page_bytes) { page_bytes_ = page_bytes, pages_ = nbytes_ / page_bytes; }
    uint64_t nbytes() const { return nbytes_; }
    uint64_t used() const { return used_; }
    uint64_t used_bytes() const { return used_ * page_bytes_; }
    uint64_t free() const { return pages_ - used_; }
    uint8_t *at(uint64_t page) const { return memory_ + page * page_bytes_; }
    uint64_t take();  // only if one is free
    void give(uint64_t page) { back_.push_back(page), --used_; }

private:
    uint8_t *memory_;
    uint64_t nbytes_, page_bytes_ = 1, pages_ = 0, used_ = 0, fresh_ = 0;
    std::vector<uint64_t> back_;
};

struct KvKept {
    Ledger ledger;
    uint64_t owner;   // the client that wrote or looked last
    uint64_t serial;  // counts the requests as they come
    bool orphan = false;
    double orphaned = 0;  // when the owner was lost
    std::vector<uint64_t> pages{};
};

class KvRequests {
public:
    KvRequests(uint64_t nbytes, uint32_t page_tokens, double orphan_s)
        : pages(nbytes), page_tokens_(page_tokens), orphan_s_(orphan_s) {}

    KvKept *find(uint64_t key) {
        const auto found = kept_.find(key);
        return found == kept_.end() ? nullptr : &found->second;
    }
    KvKept &create(uint64_t key, size_t layers, uint32_t attempt, uint64_t owner) {
        return kept_.emplace(key, KvKept{Ledger(layers, attempt), owner, ++serial_}).first->second;
    }
    void remove(uint64_t key);
    // Takes back what is beyond the frontiers, but for the first page.
    void trim(KvKept &kept);
    // Pages for the first `end` positions; evicts others. False if the request itself had to go.
    bool reserve(uint64_t key, KvKept &kept, uint32_t end);
    void orphan(uint64_t owner, double now);
    void expire(double now);
    const std::unordered_map<uint64_t, KvKept> &all() const { return kept_; }

    KvPages pages;
    uint64_t evicted = 0;

private:
    uint64_t pages_for(uint64_t positions) const {
        return (positions + page_tokens_ - 1) / page_tokens_;
    }
    uint64_t least() const;

    const uint32_t page_tokens_;
    const double orphan_s_;
    uint64_t serial_ = 0;
    double earliest_ = std::numeric_limits<double>::infinity();  // no orphan is older
    std::unordered_map<uint64_t, KvKept> kept_;
};
