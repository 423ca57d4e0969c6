"""Which short runs of characters infixes are known by."""

from aegis_core.matcher cimport gram_of
from cpython.unicode cimport PyUnicode_READ_CHAR
from libc.stdint cimport int32_t, uint32_t

__all__ = []

cdef enum:
    MAX_GRAMS = 256        # of a infix that may become those that it is known by


cdef dict grams_of(dict infixes, int32_t size, Py_ssize_t stride):
    # The infixes of each gram, and where in them it lies: of each infix as many grams in a row as
    # there are characters between two looks, where they are the rarest.
    cdef dict counts = {}
    cdef dict of_infix = {}
    cdef list grams
    cdef uint32_t characters[4]
    cdef Py_ssize_t at, i, best, most, least
    cdef str infix
    for infix in infixes:
        grams = []
        for at in range(min(len(infix) - size + 1, MAX_GRAMS)):
            for i in range(size):
                characters[i] = PyUnicode_READ_CHAR(infix, at + i)
            grams.append(gram_of(characters, size))
        of_infix[infix] = grams
        for gram in grams:
            counts[gram] = counts.get(gram, 0) + 1
    found = {}
    for infix, grams in of_infix.items():
        best = least = -1
        for at in range(len(grams) - stride + 1):
            most = max([<Py_ssize_t>counts[gram] for gram in grams[at:at + stride]])
            if best < 0 or most < least:
                best, least = at, most
        for i in range(stride):
            found.setdefault(grams[best + i], []).append((infix, best + i))
    return found
