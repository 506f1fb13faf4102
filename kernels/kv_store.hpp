// The checkpoint store: frames in, answers out (tarragon_hpc/wire/kv.py). The specification is
// tarragon_hpc/checkpoint/plain_store.py, and every answer is the same, byte for byte.
//
// Frames lie in memory that the peer can still write to. So every number is read once, into memory
// of our own, and checked there before it is used; rows are copied first and their sums checked
// after that.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kv_store_requests.hpp"
#include "kv_wire.hpp"

struct KvStats {
    uint64_t requests, used_bytes, capacity_bytes, evicted, bad_rows, dropped_runs, received_bytes;
};

class KvStore {
public:
    KvStore(uint64_t nbytes, uint32_t page_tokens, bool check, double orphan_s)
        : check_(check), page_tokens_(page_tokens), requests_(nbytes, page_tokens, orphan_s) {}

    // From any thread.
    uint64_t handle(uint64_t client, const uint8_t *frame, uint64_t nbytes, uint8_t *reply,
                    uint64_t reply_nbytes, double now);
    void client_lost(uint64_t client, double now);
    void expire(double now);
    KvStats stats();
    std::vector<std::pair<uint64_t, uint32_t>> prefixes();
    std::vector<uint32_t> row_bytes();

private:
    struct Answer {
        KvStatus status = kKvOk;
        uint32_t b = 0, a = 0;
        uint16_t layers = 0;
        uint64_t body = 0;
    };
    // A frame, and the room for the body of its answer.
    struct Frame {
        uint64_t client;
        KvHeader header;
        const uint8_t *body;
        uint8_t *reply;
        uint64_t room;
    };
    struct Client {
        uint64_t sequence = 0;
        bool heard = false;  // any sequence is new before
    };
    struct Put;

    Answer answer(const Frame &f);
    bool is_new(const Frame &f);
    Answer hello(const Frame &f);
    bool parse(const Frame &f, Put &put) const;
    Answer put(const Frame &f);
    bool write(const Frame &f, const Put &put, const KvRun &run, uint64_t row);
    bool write_layer(KvKept &kept, const Frame &f, const Put &put, const KvRun &run, uint64_t row,
                     uint32_t index);
    bool write_tokens(KvKept &kept, const Put &put, const KvRun &run, uint64_t row);
    Answer free(const Frame &f, const std::vector<KvRun> &runs);
    Answer look(const Frame &f, const KvRun &run);
    Answer fetch(const Frame &f, const KvRun &run);

    uint8_t *page_of(const KvKept &kept, uint64_t position) const {
        return requests_.pages.at(kept.pages[position / page_tokens_]);
    }

    const bool check_;
    const uint32_t page_tokens_;
    std::mutex mutex_;
    KvRequests requests_;
    std::unique_ptr<const KvShape> shape_;
    std::unordered_map<uint64_t, Client> clients_;  // that have said a good Hello
    std::unordered_set<uint64_t> refused_;
    uint64_t bad_rows_ = 0, dropped_runs_ = 0, received_bytes_ = 0;
};
