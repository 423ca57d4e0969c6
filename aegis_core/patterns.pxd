cdef enum Shape:
    ANY         # `*`
    EXACT       # `head`
    PREFIX      # `head*`
    SUFFIX      # `*tail`
    GENERAL     # head, steps, tail
    FIXED       # the same without `*`: all its texts have one length

# The steps of a glob that are no literal code point.
cdef enum Step:
    ANY_ONE = -1
    ANY_RUN = -2
    FIRST_SET = -3

# A rule is filed under a literal and `16 * offset + 4 * field + kind`. The offset of a head or tail
# tells how many characters lie between it and its end of the text.
cdef enum KeyKind:
    WHOLE, HEAD, TAIL, INFIX

cdef enum:
    MAX_OFFSET = 8


cdef class Glob:
    cdef:
        readonly int shape
        readonly str head
        readonly str tail
        readonly tuple steps        # what lies between head and tail; of GENERAL only
        readonly Py_ssize_t least_length
        readonly bint is_infix       # it is `*infix*`: who has found the infix need not look again
        int record                       # where it lies in an image; 0: nowhere yet
        list keys_of

    cdef list keys(self, int field)


cdef Glob parsed(str pattern, dict known)

cdef list whole_steps(Glob glob)
