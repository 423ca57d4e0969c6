from aegis_core.layout cimport Layout

cdef list globs_of(rules)

cdef Layout laid_out(list globs, list flags, dict covered, list needs)
