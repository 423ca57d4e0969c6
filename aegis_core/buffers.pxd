cimport cython

cdef enum:
    FIXED_BYTES = 1024


@cython.final
cdef class Buffer:
    cdef:
        char fixed[FIXED_BYTES]     # room for most single answers
        char *data
        Py_ssize_t size, capacity

    cdef int reserve(self, Py_ssize_t more) except -1
    cdef int grow(self, Py_ssize_t capacity) except -1
    cdef int raw(self, const char *data, Py_ssize_t size) except -1
    cdef int text(self, object text) except -1
    cdef int decision(self, object action_type, object target, object decision) except -1
    cdef bytes taken(self)
