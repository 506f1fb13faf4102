// What a store knows of one request; the twin and its reasons: tarragon_hpc/checkpoint/ledger.py.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

struct Ledger {
    Ledger(size_t layers, uint32_t attempt) : attempt(attempt), writer(attempt), frontiers(layers) {}

    uint32_t committed() const {
        return std::min(tokens, *std::min_element(frontiers.begin(), frontiers.end()));
    }
    uint32_t extent() const {
        return std::max(tokens, *std::max_element(frontiers.begin(), frontiers.end()));
    }
    bool take_over(uint32_t by) {
        if (by < attempt)
            return false;
        attempt = by;
        return true;
    }
    bool write(uint32_t by, uint32_t base) {
        if (!take_over(by))
            return false;
        if (by > writer) {
            writer = by;
            for (uint32_t &frontier : frontiers) frontier = std::min(frontier, base);
            tokens = std::min(tokens, base);
        }
        return true;
    }

    uint32_t attempt;  // the newest one that the store has heard of
    uint32_t writer;   // the newest one that has written
    uint32_t tokens = 0;  // the commit frontier; the ids themselves lie in the pages
    std::vector<uint32_t> frontiers;
};
