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

cdef enum KeyKind:
    WHOLE, HEAD, TAIL, WORD


cdef class Glob:
    cdef:
        readonly int shape
        readonly str head
        readonly str tail
        readonly tuple steps        # what lies between head and tail; of GENERAL only
        readonly Py_ssize_t least_length
        readonly bint is_word       # it is `*word*`: who has found the word need not look again
        int record                       # where it lies in a block; 0: nowhere yet
        list keys_of

    cdef list keys(self, int field)


cdef Glob parsed(str pattern, dict known)

cdef list whole_steps(Glob glob)
