"""JSON, written as bytes that grow."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

__all__ = []

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


@cython.freelist(4)
cdef class Buffer:
    # Bytes that grow while JSON is written into them.

    def __cinit__(self):
        self.capacity = FIXED_BYTES
        self.data = self.fixed

    def __dealloc__(self):
        if self.data != self.fixed:
            PyMem_Free(self.data)

    cdef int reserve(self, Py_ssize_t more) except -1:
        if self.size + more <= self.capacity:
            return 0
        return self.grow(2 * (self.size + more))

    cdef int grow(self, Py_ssize_t capacity) except -1:
        cdef char *old = NULL if self.data == self.fixed else self.data
        cdef char *data = <char *>PyMem_Realloc(old, capacity)
        if data == NULL:
            raise MemoryError
        if old == NULL:
            memcpy(data, self.fixed, self.size)
        self.data = data
        self.capacity = capacity
        return 0

    cdef int raw(self, const char *data, Py_ssize_t size) except -1:
        self.reserve(size)
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef int text(self, object text) except -1:
        # SOURCE: RFC 8259 section 7: only these must be escaped; the rest is UTF-8 as it stands.
        cdef Py_ssize_t size, i
        cdef const uint8_t *data = <const uint8_t *>PyUnicode_AsUTF8AndSize(text, &size)
        cdef uint8_t *out
        cdef uint8_t special = 0
        self.reserve(6 * size + 2)
        # SAFETY: no byte becomes more than six.
        out = <uint8_t *>self.data + self.size
        out[0] = c'"'
        out += 1
        for i in range(size):   # the compiler makes this look at many bytes at once
            special |= (data[i] < 0x20) | (data[i] == 0x22) | (data[i] == 0x5C)
        if not special:
            memcpy(out, data, size)
            out[size] = c'"'
            self.size += size + 2
            return 0
        for i in range(size):
            if data[i] >= 0x20 and data[i] != c'"' and data[i] != c'\\':
                out[0] = data[i]
                out += 1
            elif data[i] < 0x20:
                memcpy(out, b"\\u00", 4)
                out[4] = c'1' if data[i] & 0x10 else c'0'
                out[5] = (<const uint8_t *>b"0123456789abcdef")[data[i] & 0x0F]
                out += 6
            else:
                out[0] = c'\\'
                out[1] = data[i]
                out += 2
        out[0] = c'"'
        self.size = out + 1 - <uint8_t *>self.data
        return 0

    cdef int decision(self, object action_type, object target, object decision) except -1:
        fragment = decision.fragment
        self.raw(b'{"action_type":', 15)
        self.text(action_type)
        self.raw(b',"target":', 10)
        self.text(target)
        self.raw(PyBytes_AS_STRING(fragment), PyBytes_GET_SIZE(fragment))
        return 0

    cdef bytes taken(self):
        return PyBytes_FromStringAndSize(self.data, self.size)
