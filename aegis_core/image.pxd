# The layout of an image: a compiled policy as plain data, in cells of 32 bits. Places are offsets
# from its start, so that it can lie anywhere, in a file or in memory that several processes share.
#
# "Wide" texts and literals hold code points of 32 bits, the others of 8: code points up to 255.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FIELDS = 3              # action type, target, agent
    FORMAT = 2              # counts up with each change of this file's meaning
    BYTE_ORDER_MARK = 0x01020304

# Code points of symbolic texts, which stand for every text that a pattern matches.
cdef enum Symbol:
    LAST_CHARACTER = 0x10FFFF
    ANY_TEXT = 0x110000         # stands for `*`: only a `*` takes it
    ANY_CHARACTER = 0x110001    # stands for `?` or a set: only `*` and `?` take it

cdef enum PartKind:
    FORWARD, BACKWARD, INFIXES, NFA, SCAN

cdef enum:
    NFA_CELLS = 16          # of 64 bits, in a group
    NFA_NARROW = 256        # code points that the class table of a group holds


cdef struct Header:
    char magic[8]
    int32_t format
    int32_t byte_order
    int32_t cells           # of the whole image
    int32_t rules
    int32_t root            # an Index
    int32_t decisions       # Row of each rule and of the default
    int32_t conditionals    # rules with conditions
    int32_t stamps          # infixes that are to be met once a decision
    int32_t is_portable     # whether the conditions are there as JSON
    int32_t unused[3]
    uint8_t digest[32]      # SHA-256 of all the rest

cdef struct Row:
    int32_t risk_level
    int32_t approval
    int32_t name            # UTF-8, its bytes
    int32_t name_bytes
    int32_t conditions      # JSON
    int32_t conditions_bytes

# An Index decides among some rules: its parts follow it, by their least key.
cdef struct Index:
    int32_t parts

cdef struct Part:
    int32_t least           # least key of a candidate in it
    int32_t kind
    int32_t field
    int32_t wide
    int32_t offset          # characters that a trie passes over at its end of the text
    int32_t place

# A Found is where candidates are: 0 none, positive a List, negative an Index.

cdef struct Candidate:
    int32_t key             # twice the rule's number, and one more where it has conditions
    int32_t check[FIELDS]   # a Pattern that is left to be checked, or 0

# A List: the candidates follow it, by their key.
cdef struct List:
    int32_t count

# The node of a trie: its label, the first characters of its children (padded to 8 bytes where they
# are narrow) and the children's places follow it.
cdef struct Node:
    int32_t least           # least key here and below
    int32_t label           # length, without the character that led here
    int32_t children
    int32_t through         # Found for every text that comes through here
    int32_t ending          # Found for a text that ends here

# Head, tail, steps and sets follow it.
cdef struct Pattern:
    int32_t shape
    int32_t wide
    int32_t least_length
    int32_t head
    int32_t tail
    int32_t steps

# Infixes are found by grams: short runs of their characters. A text is looked at every `stride`
# characters, and each infix is known by the grams that one of these looks must meet.
cdef struct Infixes:
    int32_t least
    int32_t gram            # length, at most 4
    int32_t stride
    int32_t filter          # bits: is there such a gram?
    int32_t filter_shift
    int32_t table           # Slots, open addressing
    int32_t table_shift

cdef struct Slot:
    uint32_t gram
    int32_t bucket          # a Bucket, or 0

# The entries follow it.
cdef struct Bucket:
    int32_t entries

cdef struct Entry:
    int32_t least
    int32_t stamp
    int32_t back            # where in the infix the gram lies
    int32_t length
    int32_t wide
    int32_t text
    int32_t found

# The groups' places follow it.
cdef struct Nfa:
    int32_t groups

# Simulates some patterns at once: bit i of a pattern is set when its first i steps have taken what
# was read.
cdef struct Group:
    int32_t least
    int32_t classes         # class of each narrow code point, 16 bits each
    int32_t bounds          # how many ranges of wide ones
    int32_t starts          # first code point of each
    int32_t range_classes   # class of each
    int32_t rows            # of each class: the bits that it may lead to
    int32_t loops           # bits that stay
    int32_t initial
    int32_t accepting
    int32_t first           # number of the first pattern in each cell of 64 bits
    int32_t candidates      # a Candidate each pattern


cdef class Image:
    cdef:
        int32_t *data
        Py_ssize_t size, capacity

    cdef int32_t reserve(self, Py_ssize_t cells, bint aligned=*) except -1
    cdef int32_t literal(self, str text, bint wide) except -1
    cdef int32_t text(self, bytes text) except -1


cdef void write_literal(int32_t *place, str text, bint wide)

cdef bint is_wide(str text)
cdef bytes digest_of(object image)
cdef int check_image(object image) except -1
