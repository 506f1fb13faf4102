// tarragon_hpc._native: one binder per source file.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_datapath(nb::module_ &m);
void bind_ffn(nb::module_ &m);
void bind_kv_rows(nb::module_ &m);
void bind_kv_store(nb::module_ &m);
void bind_tcp(nb::module_ &m);
void bind_tcp_pingpong(nb::module_ &m);

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // objects of a module's globals outlive the check at exit
    m.doc() = "Hot paths of tarragon_hpc; every function has a Python twin that specifies it.";
    bind_datapath(m);
    bind_ffn(m);
    bind_kv_rows(m);
    bind_kv_store(m);
    bind_tcp(m);
    bind_tcp_pingpong(m);
}
