# Decisions about several actions at one moment, made piece by piece: a part of engine.pyx.

cdef enum:
    DECISIONS
    JSON
    OBJECTS_TO_JSON

cdef enum:
    CLOCK_AFTER = 1_600     # units: the clock is read that rarely
    CLOCK_UNITS = 100       # that an action counts for it besides those of its conditions


cdef double monotonic() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec / 1e9


@cython.final
cdef class Batch:
    """Decisions about several actions by one policy at one moment, made piece by piece.

    Invariant: the decisions do not depend on where it was interrupted.

    Attributes:
        result: The decisions, as a list or as JSON; None where one of the objects that they were
            to be made of is not a plain action. Only to be taken when `proceed` says so.
    """

    cdef:
        Engine engine
        list rows, decisions
        Buffer buffer
        Work work
        Py_ssize_t position
        int kind
        bint is_odd

    @staticmethod
    cdef Batch begun(Engine engine, object rows, int kind, Work work):
        cdef Batch self = Batch.__new__(Batch)
        self.engine = engine
        self.rows = rows if type(rows) is list else list(rows)
        self.work = Work() if work is None else work
        self.kind = kind
        if kind == DECISIONS:
            self.decisions = [None] * len(self.rows)
        else:
            self.buffer = Buffer()
        return self

    def proceed(self, double seconds, long long units=-1):
        """Go on for a while.

        Args:
            seconds: Until it pauses, between two actions.
            units: It pauses before an action whose conditions take more work than that; -1:
                whatever they take.

        Returns:
            Whether all is decided.
        """
        return self._proceed(monotonic() + seconds, units)

    @property
    def result(self):
        if self.is_odd:
            return None
        if self.kind == DECISIONS:
            return self.decisions
        if self.position == 0:
            return b"[]"
        return self.buffer.taken()

    cdef object whole(self):
        self._proceed(0, -1)
        return self.result

    cdef bint _proceed(self, double until, long long units) except -1:
        # Until 0 is for ever.
        cdef Work work = self.work
        cdef long long before
        cdef Py_ssize_t seen = 0, first
        # Where no rule has conditions no action takes work, and none can take too much.
        cdef bint may_pause = units >= 0 and self.engine.header.conditionals
        while self.position < len(self.rows):   # a condition may have taken some away
            before = work.left
            first = self.position
            if may_pause:
                if not self._decide_within(units):
                    return self.is_odd
            elif not self._decide_some():
                return True
            seen += CLOCK_UNITS * (self.position - first) + before - work.left
            if seen >= CLOCK_AFTER and until:
                seen = 0
                if monotonic() > until and self.position < len(self.rows):
                    return False
        if self.buffer is not None and self.position:
            self.buffer.data[0] = c"["
            self.buffer.raw(b"]", 1)
        return True

    cdef bint _decide_within(self, long long units) except -1:
        # The next action, if it takes so much work at the most; False: it does not, or is odd.
        cdef Work work = self.work
        cdef long long left = work.left, granted = left
        if units < left:
            work.left = granted = units
        work.is_spent = False
        if not self._decide_next(self.rows[self.position], granted < left):
            work.left = left
            return False
        self.position += 1
        work.left += left - granted
        return True

    cdef bint _decide_some(self) except -1:
        # The next few actions, whatever work they take; False: one of them is odd.
        cdef list rows = self.rows, decisions = self.decisions
        cdef Py_ssize_t i, stop = self.position + CLOCK_AFTER / CLOCK_UNITS
        cdef Engine engine = self.engine
        cdef Work work = self.work
        if stop > len(rows):
            stop = len(rows)
        work.is_spent = False
        if self.kind == DECISIONS:
            for i in range(self.position, stop):
                if i < len(rows):
                    decisions[i] = engine.decide_row(rows[i], work)
        else:
            for i in range(self.position, stop):
                if i < len(rows) and not self._decide_next(rows[i], False):
                    return False
        self.position = stop
        return True

    cdef inline bint _decide_next(self, object row, bint may_pause) except -1:
        # False: it is not decided, since it takes too much work, or is no plain action.
        cdef Py_ssize_t size
        if self.kind == DECISIONS:
            decision = self.engine.decide_row(row, self.work)
            if may_pause and self.work.is_spent:
                return False
            self.decisions[self.position] = decision
            return True
        size = self.buffer.size
        self.buffer.raw(b",", 1)
        if self.kind == OBJECTS_TO_JSON:
            if not self.engine.write_object(row, self.buffer, self.work):
                self.is_odd = True
                return False
        else:
            action_type, target, agent, params = row
            decision = self.engine.decide(action_type, target, agent, params, self.work)
            self.buffer.decision(action_type, target, decision)
        if may_pause and self.work.is_spent:
            self.buffer.size = size
            return False
        return True
