cdef class Value:
    cdef:
        tuple values        # of the fields, in their order
        bint is_frozen

    cdef tuple fields(self)


cdef class Action(Value):
    pass


cdef class PolicyRule(Value):
    pass


cdef class PolicyDecision(Value):
    # Most are only asked whether they allow: `values` is None until another field is asked for.
    cdef:
        object about
        Decision decision


cdef class Decision:
    cdef readonly:
        object matched_rule, risk_level, approval, error
        bint is_allowed
        bytes fragment


cdef PolicyDecision decision_about(object action, Decision decision)
