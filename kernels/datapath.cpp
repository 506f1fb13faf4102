#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_datapath(nb::module_ &) {}
