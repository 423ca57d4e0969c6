cdef bint has_large_integer(bytes text) noexcept
