"""What a simulation of patterns needs to know of them before it is laid out."""

from aegis_core.image cimport ANY_CHARACTER, ANY_TEXT
from aegis_core.patterns cimport Glob

__all__ = []

cdef enum:
    MAX_STATES = 64        # of a pattern that is simulated
    MAX_RANGES = 16        # in the sets of a pattern that is simulated


cdef Py_ssize_t states_of(Glob glob):
    return glob.least_length + 1


cdef bint is_simulated(Glob glob):
    # Many ranges would make many rows of bits, which are large.
    cdef Py_ssize_t ranges = 0
    if states_of(glob) > MAX_STATES:
        return False
    for step in glob.steps:
        if type(step) is tuple:
            ranges += (<tuple>step)[1]
    return ranges <= MAX_RANGES


cdef tuple rows_of(dict literals, list sets, object any_one):
    # The ranges of code points that are told apart, and the bits that each of them may lead to.
    starts = {0, ANY_TEXT, ANY_CHARACTER}
    for char in literals:
        starts.update((char, char + 1))
    for (_, _, *bounds), _ in sets:
        starts.update(bounds[::2])
        starts.update([high + 1 for high in bounds[1::2]])
    # Where the bits of sets go on and off, so that the ranges are gone through once.
    turns = {}
    for (negated, _, *bounds), bit in sets:
        edges = [0, ANY_TEXT] if negated else []
        for low, high in disjoint(bounds):
            edges += (low, high + 1)
        for edge in edges:
            turns[edge] = turns.get(edge, 0) ^ bit
    ordered = sorted(starts)
    rows = []
    of_sets = 0
    for start in ordered:
        of_sets ^= turns.get(start, 0)
        rows.append(any_one | of_sets | literals.get(start, 0))
    # INVARIANT: only a run takes ANY_TEXT, and no set takes ANY_CHARACTER.
    rows[ordered.index(ANY_TEXT)] = 0
    return ordered, rows


cdef list disjoint(list bounds):
    # Ranges of code points, in order and without what overlaps.
    merged = []
    for low, high in sorted(zip(bounds[::2], bounds[1::2])):
        if low > high:
            continue
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
