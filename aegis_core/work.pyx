"""The work that the conditions of one request may take: counted, never timed.

The same request spends the same on every machine, so a decision does not depend on how busy one is.
"""

cimport cython

__all__ = ["DEFAULT_BUDGET", "Work"]

DEFAULT_BUDGET = 6_000_000
"""Units that a request may spend; docs/policy.md has what costs how many."""


@cython.final
@cython.freelist(8)
cdef class Work:
    """What is left of a request's budget, and what its conditions remember meanwhile.

    Attributes:
        budget: The units that the request may spend.
        left: Those that it has not spent yet.
        is_spent: Whether something was asked for that the rest did not suffice for.
        memo: What conditions found out about this action's params; emptied before the next action.

    Args:
        budget: The units that the request may spend.
        read: Makes a mapping of an action's params, called where a condition asks for them; None:
            they are mappings already.
    """

    def __init__(self, budget=DEFAULT_BUDGET, read=None):
        self.budget = self.left = budget
        self.read = read
        self.memo = {}

    cdef bint take(self, long long units) noexcept:
        if units > self.left:
            self.is_spent = True
            return False
        self.left -= units
        return True

    def spend(self, units):
        """Spend some units; False, and none are spent, where so many are not left.

        Args:
            units: How many; called before the work is done.
        """
        return self.take(units)

    @property
    def reason(self):
        """Why what is not afforded cannot be judged."""
        return f"the request's budget of {self.budget} units for conditions is spent"
