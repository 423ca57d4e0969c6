"""The compiled engine: finds the rule that decides and writes its answer.

A policy is compiled into one block of plain data, in which `matcher` finds the rules whose patterns
match; conditions are asked here. What an answer says of a rule is made once, when that rule first
decides.
"""

cimport cython
from aegis_core.block cimport BYTE_ORDER_MARK, FIELDS, FORMAT, Header, Row
from aegis_core.brackets cimport has_large_integer
from aegis_core.buffers cimport Buffer
from aegis_core.matcher cimport Search, Text, search
from aegis_core.values cimport Action, Decision, decision_about
from aegis_core.work cimport Work
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_Check, PyUnicode_GET_LENGTH
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import json
from hashlib import sha256
from time import time

from aegis_core.building import build
from aegis_core.model import DEFAULT_RULE, Approval, RiskLevel
from aegis_core.work import DEFAULT_BUDGET

__all__ = ["Batch", "Engine", "Evaluator", "compile_policy"]

cdef extern from *:
    """
    #define prefetch(object) __builtin_prefetch(object)
    #define prefetch_text(object) \
        do { prefetch(object); prefetch((const char *)(object) + 64); } while (0)
    """
    void prefetch(PyObject *) noexcept
    void prefetch_text(PyObject *) noexcept

cdef extern from "Python.h":
    void *PyUnicode_DATA(object text)
    int PyUnicode_KIND(object text)

cdef enum:
    ON_STACK = 64       # conditional candidates that need no allocation
    CLOCK_AFTER = 1_600     # units: the clock is read that rarely
    CLOCK_UNITS = 100       # that an action counts for it besides those of its conditions

APPROVALS = tuple(Approval)


cdef int compare(const void *left, const void *right) noexcept nogil:
    return (<const int32_t *>left)[0] - (<const int32_t *>right)[0]


cdef inline Text text_of(object value) noexcept:
    cdef Text text
    text.data = PyUnicode_DATA(value)
    text.length = PyUnicode_GET_LENGTH(value)
    text.kind = PyUnicode_KIND(value)
    return text


@cython.final
cdef class Engine:
    """A compiled policy.

    Attributes:
        policy: The policy that it was compiled from; None: it was made from a block.
        covered: Rules that can never decide, by number, and the earlier rule without conditions
            that matches all that each of them does. Not every such rule is found. Empty where it
            was made from a block.

    Invariant: what it decides does not change after construction. Threads may share it, taking
    turns by the interpreter's lock: its scratch memory is only used while that is held.

    Args:
        block: A block, as `block` gives it: any buffer, for example of a mapped file. It is not
            copied, and must not change.
        condition: Compiles a rule's conditions; answers None where there are none.
        clock: Seconds since the epoch; asked at most once in a call, and only where a rule with
            conditions matched.

    Raises:
        ValueError: The block is damaged, or was made by another release.
    """

    cdef:
        const Header *header
        const Row *rows
        Search search_state     # what every search begins with
        list decisions          # of each rule, then of the default; None: not made yet
        list conditions
        object clock
        Py_buffer view
        bint has_view
        readonly object policy
        readonly object covered

    def __cinit__(self):
        self.has_view = False

    def __dealloc__(self):
        PyMem_Free(self.search_state.pending)
        PyMem_Free(self.search_state.stamps)
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __init__(self, block, *, condition, clock=time):
        _check(block)
        self._open(block, clock)
        if not self.header.is_portable:
            raise ValueError("the block has no conditions that could be stored")
        for number in range(self.header.rules):
            row = self.rows[<Py_ssize_t>number]
            if row.conditions_bytes:
                self.conditions[number] = condition(
                    json.loads(self._bytes(row.conditions, row.conditions_bytes))
                )

    cdef int _open(self, object block, object clock) except -1:
        PyObject_GetBuffer(block, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        # SAFETY: the view keeps the block where it is for as long as this object lives.
        self.header = <const Header *>self.view.buf
        self.rows = <const Row *>(<const int32_t *>self.view.buf + self.header.decisions)
        self.search_state.base = <const int32_t *>self.view.buf
        self.search_state.limit = 2 * self.header.rules
        self.search_state.pending = <int32_t *>PyMem_Calloc(
            self.header.conditionals + 1, sizeof(int32_t)
        )
        self.search_state.stamps = <uint32_t *>PyMem_Calloc(
            self.header.stamps + 1, sizeof(uint32_t)
        )
        if self.search_state.pending == NULL or self.search_state.stamps == NULL:
            raise MemoryError
        self.decisions = [None] * (self.header.rules + 1)
        self.conditions = [None] * self.header.rules
        self.clock = clock
        self.covered = {}
        return 0

    cdef bytes _bytes(self, int32_t place, int32_t size):
        return PyBytes_FromStringAndSize(
            <const char *>(self.search_state.base + place), size
        )

    @property
    def block(self):
        """The compiled policy as bytes from which an equal engine can be made anywhere.

        Raises:
            ValueError: Its conditions are no JSON.
        """
        if not self.header.is_portable:
            raise ValueError("conditions that are no JSON cannot be stored")
        cdef bytes block = PyBytes_FromStringAndSize(<const char *>self.view.buf, self.view.len)
        digest = _digest(block)
        memcpy((<Header *>PyBytes_AS_STRING(block)).digest, <const char *>(<bytes>digest), 32)
        return block

    @property
    def block_bytes(self):
        """Size of the compiled data, in bytes."""
        return self.view.len

    def evaluate(self, action_type, target="", agent="", params=None):
        """Decide about one action.

        Args:
            action_type: The action's type.
            target: Its target.
            agent: Its agent; "" where it has none.
            params: Its parameters; None stands for none.

        Returns:
            The decision: one shared object a rule, unless conditions could not be judged.

        Raises:
            TypeError: One of the three is not text.

        Cost: for a given policy, linear in the length of the strings. It hardly grows with the
            number of rules as far as each has a literal that few others share; patterns without
            one are simulated together, some 170 of them for about 7 ns a character.
        """
        return self._decide(action_type, target, agent, params, None)

    def evaluate_many(self, actions):
        """Decide about several actions at one moment, within one budget.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.

        Returns:
            Their decisions, in the same order.

        Raises:
            TypeError: A type, target or agent is not text.
        """
        return Batch._begun(self, actions, DECISIONS, None)._whole()

    def evaluate_json(self, action_type, target="", agent="", params=None):
        """Decide about one action and write the answer.

        Args:
            action_type: The action's type.
            target: Its target.
            agent: Its agent; "" where it has none.
            params: Its parameters; None stands for none.

        Returns:
            The decision as a JSON object in UTF-8.

        Raises:
            TypeError: One of the three is not text.
            UnicodeEncodeError: The type or target holds half of a surrogate pair.
        """
        cdef Buffer buffer = Buffer()
        decision = self._decide(action_type, target, agent, params, None)
        buffer.decision(action_type, target, decision)
        return buffer.taken()

    def evaluate_many_json(self, actions, *, read=None):
        """Decide about several actions at one moment, within one budget, and write the answer.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.
            read: Makes a mapping of an action's params, called where a condition asks for them;
                None: they are mappings already.

        Returns:
            Their decisions, in the same order, as a JSON list in UTF-8.

        Raises:
            TypeError: A type, target or agent is not text.
            UnicodeEncodeError: A type or target holds half of a surrogate pair.
        """
        return Batch._begun(self, actions, JSON, Work(read=read))._whole()

    def evaluate_object_json(self, item, text=None, budget=DEFAULT_BUDGET):
        """Decide about one action given as a parsed JSON object, and write the answer.

        Args:
            item: The object.
            text: The JSON that it was parsed from, as bytes, if that made floats of integers of
                over 64 bits; None: its integers are exact.
            budget: Units of work that its conditions may take.

        Returns:
            The decision as a JSON object in UTF-8. None where such a one has to be looked at with
            more care: its conditions take more than the budget or ask for integers that may not be
            exact, or the object is not a plain action, of `action_type`, `target`, `params` and
            `agent_id` of the right types and nothing else.
        """
        cdef Buffer buffer = Buffer()
        cdef Work work = None
        if self.header.conditionals:
            work = Work.__new__(Work)
            work.left = budget
            work.text = text
        if not self._write_object(item, buffer, work) or (work is not None and work.is_spent):
            return None
        return buffer.taken()

    def evaluate_objects_json(self, items):
        """Decide about several actions given as parsed JSON objects at one moment.

        Args:
            items: A list of them.

        Returns:
            Their decisions, in the same order, as a JSON list in UTF-8. None where one of them is
            not a plain action.
        """
        return Batch._begun(self, items, OBJECTS_TO_JSON, None)._whole()

    def begin(self, actions, work=None):
        """What decides about several actions piece by piece: `evaluate_many` at leisure.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.
            work: What all their conditions may take together; None: the default budget.
        """
        return Batch._begun(self, actions, DECISIONS, work)

    def begin_json(self, actions, work=None):
        """`begin`, and the result is JSON, as that of `evaluate_many_json`."""
        return Batch._begun(self, actions, JSON, work)

    def begin_objects_json(self, items, work=None):
        """`begin`, of JSON objects to JSON, as `evaluate_objects_json`."""
        return Batch._begun(self, items, OBJECTS_TO_JSON, work)

    cdef bint _write_object(self, object item, Buffer buffer, Work work) except -1:
        cdef dict members
        cdef PyObject *found
        cdef Py_ssize_t known = 1
        cdef object action_type, target = "", agent = "", params = None
        if type(item) is not dict:
            return False
        members = item
        found = PyDict_GetItemWithError(members, "action_type")
        if found == NULL:
            return False
        action_type = <object>found
        if type(action_type) is not str or PyUnicode_GET_LENGTH(action_type) == 0:
            return False
        found = PyDict_GetItemWithError(members, "target")
        if found != NULL:
            target = <object>found
            if type(target) is not str:
                return False
            known += 1
        found = PyDict_GetItemWithError(members, "params")
        if found != NULL:
            params = <object>found
            if type(params) is not dict:
                return False
            known += 1
        found = PyDict_GetItemWithError(members, "agent_id")
        if found != NULL:
            agent = <object>found
            if type(agent) is not str:
                return False
            known += 1
        if known != len(members):
            return False
        decision = self._decide(action_type, target, agent, params, work)
        if decision is None:
            return False
        buffer.decision(action_type, target, decision)
        return True

    cdef Decision _decide(self, object action_type, object target, object agent, object params,
                          Work work):
        # None: a condition asks for params whose integers may not be exact.
        if not (PyUnicode_Check(action_type) and PyUnicode_Check(target)
                and PyUnicode_Check(agent)):
            raise TypeError("action type, target and agent must be text")
        cdef Search *s = &self.search_state
        s.texts[0] = text_of(action_type)
        s.texts[1] = text_of(target)
        s.texts[2] = text_of(agent)
        s.limit = 2 * self.header.rules
        s.pendings = 0
        s.epoch += 1
        if s.epoch == 0:
            self._forget()
        # INVARIANT: a rule is filed once, so `pending` never holds more than `conditionals`.
        search(s, self.header.root)
        if s.pendings:
            if work is not None and work.text is not None and has_large_integer(work.text):
                return None
            return self._settle(s.limit >> 1, params, work)
        return self._decision(s.limit >> 1)

    cdef inline object _decide_row(self, object row, Work work):
        cdef tuple members = row if type(row) is tuple else tuple(row)
        if PyTuple_GET_SIZE(members) != FIELDS + 1:
            raise ValueError("an action is (type, target, agent, params)")
        return self._decide(
            <object>PyTuple_GET_ITEM(members, 0), <object>PyTuple_GET_ITEM(members, 1),
            <object>PyTuple_GET_ITEM(members, 2), <object>PyTuple_GET_ITEM(members, 3), work,
        )

    cdef void _forget(self) noexcept:
        # The epochs begin anew, and no stamp may look as if it were of one that comes.
        cdef int32_t i
        for i in range(self.header.stamps):
            self.search_state.stamps[i] = 0
        self.search_state.epoch = 1

    cdef inline Decision _decision(self, int32_t rule):
        found = <object>PyList_GET_ITEM(self.decisions, rule)
        return self._made(rule) if found is None else <Decision>found

    cdef Decision _made(self, int32_t rule):
        cdef const Row *row = self.rows + rule
        decision = Decision(
            self._name(rule), RiskLevel(row.risk_level), APPROVALS[row.approval]
        )
        self.decisions[rule] = decision
        return decision

    cdef str _name(self, int32_t rule):
        if rule == self.header.rules:
            return DEFAULT_RULE
        return self._bytes(self.rows[rule].name, self.rows[rule].name_bytes).decode(
            errors="surrogatepass"
        )

    cdef Decision _settle(self, int32_t best, object params, Work work):
        # Conditions are asked in rule order, and only those of rules before the best one. They may
        # ask this engine again, so what was found is copied first.
        cdef int32_t stack[ON_STACK]
        cdef int32_t *pending = stack
        cdef int32_t pendings = self.search_state.pendings
        if pendings > ON_STACK:
            pending = <int32_t *>PyMem_Malloc(pendings * sizeof(int32_t))
            if pending == NULL:
                raise MemoryError
        try:
            memcpy(pending, self.search_state.pending, pendings * sizeof(int32_t))
            qsort(pending, pendings, sizeof(int32_t), compare)
            return self._first_that_holds(best, pending, pendings, params, work)
        finally:
            if pending != stack:
                PyMem_Free(pending)

    cdef Decision _first_that_holds(self, int32_t best, const int32_t *pending, int32_t pendings,
                                    object params, Work work):
        cdef int32_t i, rule
        if work is None:
            work = Work()
        elif work.memo is None or work.memo:
            work.memo = {}      # what there is was of the action before
        if params is None:
            params = {}
        elif work.read is not None:
            params = work.read(params)
        for i in range(pendings):
            rule = pending[i] >> 1
            if rule > best:
                break
            if not work.take(1):
                return Decision.indeterminate(self._name(rule), work.reason)
            try:
                if work.now is None:
                    work.now = self.clock()
                held = self.conditions[rule](params, work.now, work)
            except Exception as error:
                return Decision.failed(self._name(rule), error)
            if held is True:
                return self._decision(rule)
            if held is not False:
                return Decision.indeterminate(self._name(rule), str(held))
        return self._decision(best)


cdef enum:
    DECISIONS
    JSON
    OBJECTS_TO_JSON


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
    cdef Batch _begun(Engine engine, object rows, int kind, Work work):
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

    cdef object _whole(self):
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
                    decisions[i] = engine._decide_row(rows[i], work)
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
            decision = self.engine._decide_row(row, self.work)
            if may_pause and self.work.is_spent:
                return False
            self.decisions[self.position] = decision
            return True
        size = self.buffer.size
        self.buffer.raw(b",", 1)
        if self.kind == OBJECTS_TO_JSON:
            if not self.engine._write_object(row, self.buffer, self.work):
                self.is_odd = True
                return False
        else:
            action_type, target, agent, params = row
            decision = self.engine._decide(action_type, target, agent, params, self.work)
            self.buffer.decision(action_type, target, decision)
        if may_pause and self.work.is_spent:
            self.buffer.size = size
            return False
        return True


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
            return decision_about(action, self.compiled._decide(
                <object>PyTuple_GET_ITEM(fields, 0), <object>PyTuple_GET_ITEM(fields, 1),
                <object>PyTuple_GET_ITEM(fields, 4) or "", <object>PyTuple_GET_ITEM(fields, 2),
                work,
            ))
        return decision_about(action, self.compiled._decide(
            action.type, action.target, action.agent_id or "", action.params, work
        ))


cdef bytes _digest(object block):
    # Of all but the digest itself.
    view = memoryview(block)
    hashed = sha256(view[:sizeof(Header) - 32])
    hashed.update(view[sizeof(Header):])
    return hashed.digest()


cdef int _check(object block) except -1:
    cdef Py_buffer view
    cdef Header header
    if memoryview(block).nbytes < <Py_ssize_t>sizeof(Header):
        raise ValueError("the block is cut off")
    PyObject_GetBuffer(block, &view, PyBUF_SIMPLE)
    memcpy(&header, view.buf, sizeof(Header))
    aligned = <size_t>view.buf % 8 == 0
    size = view.len
    PyBuffer_Release(&view)
    if memcmp(header.magic, b"AEGISPOL", 8) or header.byte_order != BYTE_ORDER_MARK:
        raise ValueError("this is no compiled policy of this machine")
    if header.format != FORMAT:
        raise ValueError("the block was made by another release")
    if size != 4 * <Py_ssize_t>header.words or _digest(block) != header.digest[:32]:
        raise ValueError("the block is damaged")
    if not aligned:
        raise ValueError("the block must lie at a multiple of 8 bytes")
    return 0


def compile_policy(policy, *, condition, clock=time):
    """Compile a policy.

    Args:
        policy: The rules, all named, and the defaults.
        condition: Compiles a rule's conditions; answers None where there are none.
        clock: Seconds since the epoch.

    Returns:
        The engine that decides by it.

    Raises:
        ValueError: The policy cannot be laid out (over 2**31 words of 32 bits).
    """
    cdef Engine engine = Engine.__new__(Engine)
    conditions = [
        condition(rule.conditions) if rule.conditions else None for rule in policy.rules
    ]
    block, covered = build(policy, [held is not None for held in conditions])
    engine._open(block, clock)
    engine.conditions = conditions
    engine.policy = policy
    engine.covered = covered
    return engine
