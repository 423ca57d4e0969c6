"""Looks at JSON without parsing it: what opens in it, and whether its integers are ordinary."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

__all__ = ["brackets_in", "brackets_in_object", "may_exceed_64_bits"]

cdef enum:
    FEWEST_DIGITS = 19      # of an integer that 64 bits may not hold
    SURELY_TOO_MANY = 20    # 19 digits fit, unless a minus stands before them


def brackets_in(text):
    """How many objects and lists may open in some JSON, brackets within strings counted too.

    Args:
        text: A buffer with the JSON of a value; a lenient parser has found no fault with it.

    Returns:
        Their number; -1 where a strict parser might find a fault: an escape by a code point, which
        may be half of a pair, or a number that may be too large for a float.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(text, &view, PyBUF_SIMPLE)
    cdef const uint8_t *data = <const uint8_t *>view.buf
    cdef Py_ssize_t brackets = -1 if _is_odd(data, view.len) else _brackets_in(data, view.len)
    PyBuffer_Release(&view)
    return brackets


def brackets_in_object(text):
    """The same of an object, in JSON that `brackets_in` has seen the whole of; 0: it is no object.

    Args:
        text: A buffer with the JSON of a value.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(text, &view, PyBUF_SIMPLE)
    cdef const uint8_t *data = <const uint8_t *>view.buf
    cdef Py_ssize_t brackets = 0
    if view.len and data[0] == 0x7B:
        brackets = _brackets_in(data, view.len)
    PyBuffer_Release(&view)
    return brackets


def may_exceed_64_bits(bytes text not None):
    """Whether some JSON may have an integer of over 64 bits; digits within strings count too.

    Args:
        text: JSON.
    """
    return has_large_integer(text)


cdef bint has_large_integer(bytes text) noexcept:
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(text)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(text), i = 0, start
    cdef uint64_t eight
    while i + 8 <= length:      # a long run of digits fills eight bytes that are looked at
        memcpy(&eight, data + i, 8)
        # A digit is 0x30 to 0x39; what else looks like one is rare.
        if (eight & 0xF0F0F0F0F0F0F0F0U) != 0x3030303030303030U or not _is_digit(data[i]):
            i += 8
            continue
        start = i
        while start > 0 and _is_digit(data[start - 1]):
            start -= 1
        while i < length and _is_digit(data[i]):
            i += 1
        if i - start >= SURELY_TOO_MANY:
            return True
        if i - start == FEWEST_DIGITS and start > 0 and data[start - 1] == 0x2D:
            return True
    return False


cdef Py_ssize_t _brackets_in(const uint8_t *data, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    cdef uint32_t brackets = 0
    for i in range(length):
        brackets += (data[i] | 0x20) == 0x7B
    return brackets


cdef inline bint _is_digit(uint8_t byte) noexcept nogil:
    return <uint8_t>(byte - 48) < 10


cdef bint _is_odd(const uint8_t *data, Py_ssize_t length) noexcept nogil:
    # The largest float has 309 digits: 150 of them with an exponent of below 150 are none too many.
    cdef Py_ssize_t i, start
    cdef uint8_t escapes = 0, exponents = 0
    for i in range(length - 1):
        escapes |= (data[i] == 0x5C) & (data[i + 1] == 0x75)
        exponents |= (<uint8_t>(data[i] - 48) < 10) & ((data[i + 1] | 0x20) == 0x65)
    if escapes:
        return True
    # A run of 150 digits has one at one of these places, and 75 more on one side of it.
    i = 74
    while i < length:
        if _is_digit(data[i]):
            start = i
            while start > 0 and _is_digit(data[start - 1]):
                start -= 1
            while i < length and _is_digit(data[i]):
                i += 1
            if i - start >= 150:
                return True
        i += 75
    if exponents:
        for i in range(length - 1):
            if (
                (data[i + 1] | 0x20) == 0x65 and _is_digit(data[i])
                and _is_large(data + i + 2, length - i - 2)
            ):
                return True
    return False


cdef bint _is_large(const uint8_t *data, Py_ssize_t length) noexcept nogil:
    # Whether an exponent begins here that is 150 or more.
    cdef Py_ssize_t i = 0
    cdef int exponent = 0
    if length and data[0] == 0x2B:
        i = 1
    while i < length and _is_digit(data[i]):
        exponent = exponent * 10 + data[i] - 48
        if exponent >= 150:
            return True
        i += 1
    return False
