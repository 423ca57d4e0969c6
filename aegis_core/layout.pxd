from aegis_core.image cimport Image
from aegis_core.patterns cimport Glob
from libc.stdint cimport int32_t


cdef class Layout:
    cdef:
        Image image
        list globs              # of each rule: of its type, target and agent
        list conditional        # of each rule: has it conditions?
        list seen               # of each rule: the fields that need no further check, as bits
        int32_t stamps
        int32_t root

    cdef int lay_out(self, list rules) except -1
    cdef int32_t index(self, list rules, int free) except -1
    cdef int choose(self, list rules, int free, dict filed, list to_simulate, list rest) except -1
    cdef void mark_seen(self, Py_ssize_t rule, int key)
    cdef int32_t index_of(self, list parts) except -1
    cdef int32_t least_in_part(self, int kind, int32_t place)
    cdef int32_t least_in(self, int32_t found)
    cdef int32_t found(self, list rules, int free) except? -1
    cdef int32_t candidates(self, list rules) except -1
    cdef tuple checks(self, Py_ssize_t rule)
    cdef int32_t pattern(self, Glob glob) except -1
    cdef int32_t trie(self, dict lists, bint wide, int free) except -1
    cdef list infixes(self, dict lists, int free)
    cdef int32_t infixes_alike(self, dict lists, int free) except -1
    cdef int32_t nfa(self, list rules, int field) except -1
    cdef int32_t simulated(self, list members) except -1
    cdef int32_t bit_rows(self, list rows) except -1
