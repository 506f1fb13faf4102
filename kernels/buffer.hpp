// A Python object's memory, held for as long as native code may touch it. Needs the GIL.
#pragma once
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <string>

class Buffer {
public:
    Buffer(nanobind::handle object, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE))
            throw nanobind::python_error();
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    uint8_t *data() const { return static_cast<uint8_t *>(view_.buf); }
    size_t size() const { return static_cast<size_t>(view_.len); }

private:
    Py_buffer view_{};
};

// Raises ValueError if a buffer has not exactly `size` bytes.
inline void expect_bytes(const char *what, const Buffer &buffer, uint64_t size) {
    if (buffer.size() != size)
        throw nanobind::value_error((std::string(what) + ": " + std::to_string(buffer.size()) +
                                     " bytes instead of " + std::to_string(size))
                                        .c_str());
}
