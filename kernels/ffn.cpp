#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_ffn(nb::module_ &) {}
