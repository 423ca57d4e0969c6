"""Finds rules that can never decide, since an earlier one covers them."""

from aegis_core.image cimport ANY_CHARACTER, ANY_TEXT, FIELDS
from aegis_core.layout cimport Layout
from aegis_core.matcher cimport Search, search
from aegis_core.patterns cimport (
    ANY, ANY_ONE, ANY_RUN, Glob, PREFIX, SUFFIX, parsed, whole_steps,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, int64_t, uint32_t

__all__ = ["covered_rules"]

# What the search for rules that can never decide may cost for each rule, in candidates looked at;
# beyond, what is left of them is kept, which changes no decision.
cdef int64_t WORK_A_RULE = 2_000
cdef int64_t COMPARISONS_A_RULE = 100


def covered_rules(rules, needs):
    """Which rules can never decide, since an earlier one covers them.

    Args:
        rules: The rules, in order.
        needs: Of each rule: the conditions that must all hold, as values that are equal where they
            always hold alike.

    Returns:
        By number of each such rule, the number of an earlier one that matches all that it does and
        needs no more. Not every such rule is found.

    Cost: about that of compiling.
    """
    cdef dict covered = {}
    cdef list sets = [frozenset(of_rule) for of_rule in needs]
    laid_out(globs_of(rules), [1 if of_rule else 0 for of_rule in sets], covered, sets)
    return covered


cdef list globs_of(rules):
    cdef dict known = {}
    return [
        [parsed(rule.match_type, known), parsed(rule.match_target, known),
         parsed(rule.match_agent, known)]
        for rule in rules
    ]


cdef Layout laid_out(list globs, list flags, dict covered, list needs):
    # Of all rules whose patterns no earlier one has; `covered` is filled.
    cdef dict first = {}
    cdef list distinct = []
    cdef int32_t cover
    cdef Py_ssize_t rule
    for rule in range(len(globs)):
        triple = tuple(<list>globs[rule])
        found = first.get(triple)
        if found is not None:
            covered[rule] = found
            continue
        distinct.append(rule)
        if not flags[rule]:
            first[triple] = rule
    cdef Layout layout = Layout(globs, flags)
    layout.lay_out(distinct)
    cdef _Coverage coverage = _Coverage(layout)
    for rule in distinct:
        if coverage.state.work > WORK_A_RULE * len(distinct):
            break
        cover = coverage.first(rule, globs[rule], needs)
        if cover >= 0:
            covered[rule] = cover
    return layout


cdef class _Symbols:
    # A symbolic text: one that stands for every text that a glob matches.

    cdef:
        uint32_t *data
        Py_ssize_t length

    def __cinit__(self, Glob glob):
        cdef Py_ssize_t i = 0
        cdef list steps = whole_steps(glob)
        if glob.shape in (ANY, PREFIX):
            steps = [*map(ord, glob.head), ANY_RUN]
        elif glob.shape == SUFFIX:
            steps = [ANY_RUN, *map(ord, glob.tail)]
        self.data = <uint32_t *>PyMem_Malloc(max(1, len(steps)) * sizeof(uint32_t))
        if self.data == NULL:
            raise MemoryError
        self.length = len(steps)
        for step in steps:
            if step == ANY_RUN:
                self.data[i] = ANY_TEXT
            elif type(step) is tuple or step == ANY_ONE:
                self.data[i] = ANY_CHARACTER
            else:
                self.data[i] = step
            i += 1

    def __dealloc__(self):
        PyMem_Free(self.data)


cdef class _Coverage:
    """Which earlier rules surely match all that a rule matches.

    A rule is covered where its symbolic texts are matched: whatever stands in the place of a
    symbol, the same alignment matches it too. Not every covered rule is found.

    Where conditions count, they are all to hold, so what fails for a rule fails for each that needs
    the same and more: a rule with conditions covers those.
    """

    cdef:
        object image            # keeps `search.base` alive
        int32_t root
        int64_t comparisons     # of conditions that may still be made
        object memory
        Search state
        dict symbols

    def __init__(self, Layout layout):
        cdef Py_ssize_t pending = sum(layout.conditional)
        self.image = layout.image
        self.root = layout.root
        self.comparisons = COMPARISONS_A_RULE * <int64_t>len(layout.globs)
        self.symbols = {}
        self.memory = (bytearray(4 * pending + 4), bytearray(4 * layout.stamps + 4))
        self.state.base = layout.image.data
        self.state.pending = <int32_t *><char *>(<bytearray>(<tuple>self.memory)[0])
        self.state.stamps = <uint32_t *><char *>(<bytearray>(<tuple>self.memory)[1])

    cdef int32_t first(self, int32_t rule, list globs, list needs) except -2:
        # The first of the rules before this one that covers it; -1: none.
        cdef int field
        cdef int32_t found, i, before
        cdef _Symbols symbols
        for field in range(FIELDS):
            glob = globs[field]
            of_glob = self.symbols.get(glob)
            if of_glob is None:
                of_glob = self.symbols[glob] = _Symbols.__new__(_Symbols, glob)
            symbols = <_Symbols>of_glob
            self.state.texts[field].data = symbols.data
            self.state.texts[field].length = symbols.length
            self.state.texts[field].kind = 4
        self.state.limit = 2 * rule
        self.state.pendings = 0
        self.state.epoch += 1
        search(&self.state, self.root)
        found = self.state.limit >> 1
        if needs is not None and self.comparisons > 0:
            self.comparisons -= self.state.pendings
            for i in range(self.state.pendings):
                before = self.state.pending[i] >> 1
                if before < found and <frozenset>needs[before] <= <frozenset>needs[rule]:
                    found = before
        return found if found < rule else -1
