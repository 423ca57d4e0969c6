from libc.stdint cimport int32_t

cdef dict grams_of(dict words, int32_t size, Py_ssize_t stride)
