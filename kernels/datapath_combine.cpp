// The baseline of the weighted sum, and the choice of the best one for this machine.
#define COMBINE combine_baseline
#include "combine_body.hpp"

void combine(const CombineJob &job) {
    static const auto best = [] {
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f"))
            return combine_avx512;
        if (__builtin_cpu_supports("avx2"))
            return combine_avx2;
#endif
        return combine_baseline;
    }();
    best(job);
}
