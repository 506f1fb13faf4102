#if defined(__AVX512F__)  // set by CMakeLists.txt where the compiler targets x86-64
#define COMBINE combine_avx512
#include "combine_body.hpp"
#endif
