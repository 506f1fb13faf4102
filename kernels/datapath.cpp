// Binder of the data plane; one function per source file.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_slots(nb::module_ &m);
void bind_rows(nb::module_ &m);
void bind_parse(nb::module_ &m);
void bind_lane(nb::module_ &m);
void bind_pingpong(nb::module_ &m);

void bind_datapath(nb::module_ &m) {
    bind_slots(m);
    bind_rows(m);
    bind_parse(m);
    bind_lane(m);
    bind_pingpong(m);
}
