"""Cells that grow into an image, the texts in it, and whether one is whole."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_READ_CHAR
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from hashlib import sha256

__all__ = []

cdef extern from "Python.h":
    int PyUnicode_KIND(object text)


cdef class Image:
    # Cells that grow.

    def __cinit__(self):
        self.capacity = 4096
        self.data = <int32_t *>PyMem_Malloc(self.capacity * sizeof(int32_t))
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int32_t reserve(self, Py_ssize_t cells, bint aligned=False) except -1:
        # Where so many zeros begin; aligned: at a multiple of 64 bits.
        cdef Py_ssize_t place = self.size + (aligned and self.size & 1)
        cdef int32_t *data
        if place + cells > self.capacity:
            if place + cells > 2**31 - 1:
                raise ValueError("the policy is too large to be compiled")
            self.capacity = 2 * (place + cells)
            data = <int32_t *>PyMem_Realloc(self.data, self.capacity * sizeof(int32_t))
            if data == NULL:
                raise MemoryError
            self.data = data
        memset(self.data + self.size, 0, (place + cells - self.size) * sizeof(int32_t))
        self.size = place + cells
        return <int32_t>place

    cdef int32_t literal(self, str text, bint wide) except -1:
        cdef Py_ssize_t length = len(text)
        cdef int32_t place = self.reserve(length if wide else (length + 3) >> 2)
        write_literal(self.data + place, text, wide)
        return place

    cdef int32_t text(self, bytes text) except -1:
        cdef int32_t place = self.reserve((len(text) + 3) >> 2)
        memcpy(self.data + place, <const char *>text, len(text))
        return place


cdef void write_literal(int32_t *place, str text, bint wide):
    cdef Py_ssize_t i
    if wide:
        for i in range(len(text)):
            (<uint32_t *>place)[i] = PyUnicode_READ_CHAR(text, i)
    else:
        for i in range(len(text)):
            (<uint8_t *>place)[i] = <uint8_t>PyUnicode_READ_CHAR(text, i)


cdef bint is_wide(str text):
    return PyUnicode_KIND(text) != 1


cdef bytes digest_of(object image):
    # Of all but the digest itself.
    view = memoryview(image)
    hashed = sha256(view[:sizeof(Header) - 32])
    hashed.update(view[sizeof(Header):])
    return hashed.digest()


cdef int check_image(object image) except -1:
    cdef Py_buffer view
    cdef Header header
    if memoryview(image).nbytes < <Py_ssize_t>sizeof(Header):
        raise ValueError("the image is cut off")
    PyObject_GetBuffer(image, &view, PyBUF_SIMPLE)
    memcpy(&header, view.buf, sizeof(Header))
    aligned = <size_t>view.buf % 8 == 0
    size = view.len
    PyBuffer_Release(&view)
    if memcmp(header.magic, b"AEGISPOL", 8) or header.byte_order != BYTE_ORDER_MARK:
        raise ValueError("this is no compiled policy of this machine")
    if header.format != FORMAT:
        raise ValueError("the image was made by another release")
    if size != 4 * <Py_ssize_t>header.cells or digest_of(image) != header.digest[:32]:
        raise ValueError("the image is damaged")
    if not aligned:
        raise ValueError("the image must lie at a multiple of 8 bytes")
    return 0
