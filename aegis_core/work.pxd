cimport cython


@cython.final
cdef class Work:
    cdef:
        readonly long long budget, left
        readonly bint is_spent
        object now          # None: nobody has asked for the time yet
        bytes text          # JSON whose large integers params do not have exactly; None: they do
        object read         # makes a mapping of an action's params; None: they are mappings
        readonly dict memo

    cdef bint take(self, long long units) noexcept
