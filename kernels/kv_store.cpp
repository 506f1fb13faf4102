#include "kv_store.hpp"

#include <algorithm>
#include <cstring>


namespace {

std::vector<KvRun> read_runs(const uint8_t *body, uint32_t count) {
    std::vector<KvRun> runs(count);
    if (count)
        std::memcpy(runs.data(), body, sizeof(KvRun) * count);
    return runs;
}

}  // namespace

uint64_t KvStore::handle(uint64_t client, const uint8_t *frame, uint64_t nbytes, uint8_t *reply,
                         uint64_t reply_nbytes, double now) {
    const std::lock_guard lock(mutex_);
    requests_.expire(now);
    if (reply_nbytes < sizeof(KvHeader))
        return 0;
    Frame f{client, {}, frame + sizeof(KvHeader), reply + sizeof(KvHeader),
            reply_nbytes - sizeof(KvHeader)};
    if (nbytes >= sizeof(KvHeader))
        std::memcpy(&f.header, frame, sizeof(KvHeader));
    if (f.header.magic != kKvMagic || f.header.body > nbytes - sizeof(KvHeader))
        f.header = {};
    const Answer answer = this->answer(f);
    const KvHeader header{kKvMagic, f.header.kind, 0, answer.status, f.header.sequence, answer.b,
                          answer.a, 0, answer.layers, 0, answer.body, 0};
    std::memcpy(reply, &header, sizeof(header));
    return sizeof(header) + answer.body;
}

void KvStore::client_lost(uint64_t client, double now) {
    const std::lock_guard lock(mutex_);
    clients_.erase(client);
    refused_.erase(client);
    requests_.orphan(client, now);
}

void KvStore::expire(double now) {
    const std::lock_guard lock(mutex_);
    requests_.expire(now);
}

KvStats KvStore::stats() {
    const std::lock_guard lock(mutex_);
    return {requests_.all().size(), requests_.pages.used_bytes(), requests_.pages.nbytes(),
            requests_.evicted, bad_rows_, dropped_runs_, received_bytes_};
}

std::vector<std::pair<uint64_t, uint32_t>> KvStore::prefixes() {
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<uint64_t, uint32_t>> found;
    for (const auto &[key, kept] : requests_.all()) found.emplace_back(key, kept.ledger.committed());
    return found;
}

std::vector<uint32_t> KvStore::row_bytes() {
    const std::lock_guard lock(mutex_);
    return shape_ ? shape_->row_bytes : std::vector<uint32_t>{};
}

KvStore::Answer KvStore::answer(const Frame &f) {
    const KvHeader &h = f.header;
    if (h.kind == kKvHello)
        return hello(f);
    if (!clients_.contains(f.client))
        return {kKvBad};
    if (h.kind == kKvPut)
        return put(f);
    if (h.kind != kKvFree && h.kind != kKvLook && h.kind != kKvFetch)
        return {kKvBad};
    if (sizeof(KvRun) * h.runs > h.body || (h.kind != kKvFree && h.runs != 1))
        return {kKvBad};
    const std::vector<KvRun> runs = read_runs(f.body, h.runs);
    if (h.kind == kKvFree)
        return free(f, runs);
    return h.kind == kKvLook ? look(f, runs[0]) : fetch(f, runs[0]);
}

// Whether a frame is none that its channel has brought before.
bool KvStore::is_new(const Frame &f) {
    Client &client = clients_.at(f.client);
    if (client.heard && f.header.sequence <= client.sequence)
        return false;
    client = {f.header.sequence, true};
    return true;
}

KvStore::Answer KvStore::hello(const Frame &f) {
    const size_t layers = f.header.layers;
    if (layers == 0 || 4 * layers > f.header.body || refused_.contains(f.client))
        return {kKvBad};
    std::vector<uint32_t> row_bytes(layers);
    std::memcpy(row_bytes.data(), f.body, 4 * layers);
    if (shape_ && row_bytes != shape_->row_bytes) {
        clients_.erase(f.client);
        refused_.insert(f.client);
        return {kKvBad};
    }
    if (!shape_) {
        auto shape = std::make_unique<const KvShape>(row_bytes, page_tokens_);
        const bool empty = std::find(row_bytes.begin(), row_bytes.end(), 0u) != row_bytes.end();
        if (empty || shape->page_bytes > requests_.pages.nbytes())
            return {kKvBad};
        requests_.pages.cut(shape->page_bytes);
        shape_ = std::move(shape);
    }
    clients_.try_emplace(f.client);
    is_new(f);
    return {};
}

KvStore::Answer KvStore::free(const Frame &f, const std::vector<KvRun> &runs) {
    if (is_new(f)) {
        for (const KvRun &run : runs) {
            const KvKept *kept = requests_.find(run.key);
            if (kept && run.attempt >= kept->ledger.attempt)
                requests_.remove(run.key);
        }
    }
    return {};
}

KvStore::Answer KvStore::look(const Frame &f, const KvRun &run) {
    if (!is_new(f))
        return {};
    KvKept *kept = requests_.find(run.key);
    if (!kept)
        return {kKvUnknown};
    if (!kept->ledger.take_over(run.attempt))
        return {kKvStale};
    kept->owner = f.client, kept->orphan = false;
    const auto count =
        static_cast<uint32_t>(std::min<uint64_t>(kept->ledger.committed(), f.room / 4));
    for (uint64_t done = 0; done < count; done += page_tokens_)
        std::memcpy(f.reply + 4 * done, page_of(*kept, done),
                    4 * std::min<uint64_t>(page_tokens_, count - done));
    return {kKvOk, 0, count, 0, 4 * uint64_t{count}};
}

KvStore::Answer KvStore::fetch(const Frame &f, const KvRun &run) {
    const KvShape &shape = *shape_;
    const uint64_t sums = 4 * shape.layers(), end = uint64_t{run.start} + run.length;
    const auto rows_at = [&](uint64_t rows) {  // in the body; the header is aligned with it
        return kv_aligned(sizeof(KvHeader) + sums * rows) - sizeof(KvHeader);
    };
    uint64_t count = std::min<uint64_t>(run.length, f.room / (sums + shape.record));
    while (count && rows_at(count) + shape.record * count > f.room) --count;
    if (count == 0 || end > UINT32_MAX)
        return {kKvBad};
    if (!is_new(f))
        return {};
    const KvKept *kept = requests_.find(run.key);
    if (!kept)
        return {kKvUnknown};
    if (run.attempt != kept->ledger.attempt)
        return {kKvStale};
    if (end > kept->ledger.committed())
        return {kKvShort};
    uint8_t *const rows = f.reply + rows_at(count);
    for (uint64_t done = 0; done < count;) {
        const uint64_t position = run.start + done, in_page = position % page_tokens_;
        const uint64_t n = std::min(count - done, page_tokens_ - in_page);
        const uint8_t *page = page_of(*kept, position);
        std::memcpy(f.reply + sums * done, page + shape.sums_at + sums * in_page, sums * n);
        std::memcpy(rows + shape.record * done, page + shape.rows_at + shape.record * in_page,
                    shape.record * n);
        done += n;
    }
    std::memset(f.reply + sums * count, 0, rows_at(count) - sums * count);
    return {kKvOk, 0, static_cast<uint32_t>(count), static_cast<uint16_t>(shape.layers()),
            rows_at(count) + shape.record * count};
}
