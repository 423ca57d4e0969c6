# What policies of the public API inherit, decisions about actions: a part of engine.pyx.

cdef extern from *:
    """
    #define prefetch(object) __builtin_prefetch(object)
    #define prefetch_text(object) \
        do { prefetch(object); prefetch((const char *)(object) + 64); } while (0)
    """
    void prefetch(PyObject *) noexcept
    void prefetch_text(PyObject *) noexcept


cdef inline void fetch_ahead(list actions, Py_ssize_t i, Py_ssize_t count) noexcept:
    # What the next actions consist of is fetched into the cache while this one is decided: each is
    # an object, its tuple, its strings, and a step later the next of these can be followed.
    cdef Action action
    if i + 2 < count:
        prefetch(PyList_GET_ITEM(actions, i + 2))
    if i + 1 < count and type(actions[i + 1]) is Action:
        prefetch(<PyObject *>(<Action>actions[i + 1]).values)
    if i < count and type(actions[i]) is Action:
        action = <Action>actions[i]
        if action.values is not None:
            prefetch_text(PyTuple_GET_ITEM(action.values, 0))
            prefetch_text(PyTuple_GET_ITEM(action.values, 1))


cdef class Evaluator:
    """Decides about actions by an engine: what the policies of the public API are made of.

    Invariant: `engine` stays the same once it was asked.
    """

    cdef Engine compiled     # None: the engine was not asked yet

    @property
    def engine(self):
        """The compiled policy; a subclass has it."""
        raise NotImplementedError

    def __getstate__(self):
        # A compiled policy belongs to its process: it is compiled again where this one goes.
        return {name: member for name, member in vars(self).items() if name != "engine"}

    def evaluate(self, action):
        """Decide about one action.

        Args:
            action: The action.

        Returns:
            The decision, together with the action.

        Raises:
            TypeError: The action's type, target or agent is not text.
        """
        return self._decide(action, None)

    def evaluate_many(self, actions):
        """Decide about several actions at one moment, within one budget.

        Args:
            actions: Any number of actions.

        Returns:
            Their decisions, in the same order.

        Raises:
            TypeError: The type, target or agent of an action is not text.
        """
        cdef Work work = Work()
        cdef list asked = list(actions)     # our own: nobody takes one away meanwhile
        cdef Py_ssize_t i, count = len(asked)
        cdef list decisions = [None] * count
        for i in range(count):
            fetch_ahead(asked, i + 1, count)
            decisions[i] = self._decide(asked[i], work)
        return decisions

    cdef object _decide(self, object action, Work work):
        cdef tuple fields
        if self.compiled is None:
            self.compiled = self.engine
        if type(action) is Action:
            fields = (<Action>action).values
            if fields is None:      # made by `__new__` alone
                raise AttributeError("type")
            return decision_about(action, self.compiled.decide(
                <object>PyTuple_GET_ITEM(fields, 0), <object>PyTuple_GET_ITEM(fields, 1),
                <object>PyTuple_GET_ITEM(fields, 4) or "", <object>PyTuple_GET_ITEM(fields, 2),
                work,
            ))
        return decision_about(action, self.compiled.decide(
            action.type, action.target, action.agent_id or "", action.params, work
        ))
