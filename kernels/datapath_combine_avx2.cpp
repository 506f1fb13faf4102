#if defined(__AVX2__)  // set by CMakeLists.txt where the compiler targets x86-64
#define COMBINE combine_avx2
#include "combine_body.hpp"
#endif
