from aegis_core.image cimport FIELDS
from libc.stdint cimport int32_t, int64_t, uint32_t

cdef struct Text:
    const void *data
    Py_ssize_t length
    int kind                # bytes a character, as in a str

# What a search reads and writes. `limit` begins as twice the number of rules and ends as twice that
# of the first rule without conditions that matches; `pending` gets the keys of all rules with
# conditions that match and might come before it.
cdef struct Search:
    const int32_t *base
    Text texts[FIELDS]
    int32_t limit
    int32_t *pending
    int32_t pendings
    uint32_t *stamps        # the epoch in which each infix was met
    uint32_t epoch
    int64_t work            # candidates and states looked at, roughly

cdef void search(Search *s, int32_t root) noexcept nogil

cdef uint32_t gram_of(const uint32_t *data, int32_t length) noexcept nogil
