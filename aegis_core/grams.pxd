from libc.stdint cimport int32_t

cdef dict grams_of(dict infixes, int32_t size, Py_ssize_t stride)
