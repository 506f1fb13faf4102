// Binder of the data plane: slots (datapath_slots.cpp), rows (datapath_rows.cpp).
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_slots(nb::module_ &m);
void bind_rows(nb::module_ &m);

void bind_datapath(nb::module_ &m) {
    bind_slots(m);
    bind_rows(m);
}
