from aegis_core.patterns cimport Glob

cdef Py_ssize_t states_of(Glob glob)

cdef bint is_simulated(Glob glob)

cdef tuple rows_of(dict literals, list sets, object any_one)
