"""The compiled engine: finds the rule that decides and writes its answer.

A policy is compiled into one image of plain data, in which `matcher` finds the rules whose patterns
match; conditions are asked here. What an answer says of a rule is made once, when that rule first
decides.
"""

cimport cython
from aegis_core.brackets cimport has_large_integer
from aegis_core.buffers cimport Buffer
from aegis_core.image cimport FIELDS, Header, Row, check_image, digest_of
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
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import json
from time import time

from aegis_core.building import build
from aegis_core.model import DEFAULT_RULE, Approval, RiskLevel
from aegis_core.work import DEFAULT_BUDGET

__all__ = ["Batch", "Engine", "Evaluator", "compile_policy"]

cdef extern from "Python.h":
    void *PyUnicode_DATA(object text)
    int PyUnicode_KIND(object text)

cdef enum:
    ON_STACK = 64       # conditional candidates that need no allocation

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
        policy: The policy that it was compiled from; None: it was made from an image.
        covered: Rules that can never decide, by number, and the earlier rule without conditions
            that matches all that each of them does. Not every such rule is found. Empty where it
            was made from an image.

    Invariant: what it decides does not change after construction. Threads may share it, taking
    turns by the interpreter's lock: its scratch memory is only used while that is held.

    Args:
        image: An image, as `image` gives it: any buffer, for example of a mapped file. It is not
            copied, and must not change.
        condition: Compiles a rule's conditions; answers None where there are none.
        clock: Seconds since the epoch; asked at most once in a call, and only where a rule with
            conditions matched.

    Raises:
        ValueError: The image is damaged, or was made by another release.
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

    def __init__(self, image, *, condition, clock=time):
        check_image(image)
        self.open(image, clock)
        if not self.header.is_portable:
            raise ValueError("the image has no conditions that could be stored")
        for number in range(self.header.rules):
            row = self.rows[<Py_ssize_t>number]
            if row.conditions_bytes:
                self.conditions[number] = condition(
                    json.loads(self._bytes(row.conditions, row.conditions_bytes))
                )

    cdef int open(self, object image, object clock) except -1:
        PyObject_GetBuffer(image, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        # SAFETY: the view keeps the image where it is for as long as this object lives.
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
    def image(self):
        """The compiled policy as bytes from which an equal engine can be made anywhere.

        Raises:
            ValueError: Its conditions are no JSON.
        """
        if not self.header.is_portable:
            raise ValueError("conditions that are no JSON cannot be stored")
        cdef bytes image = PyBytes_FromStringAndSize(<const char *>self.view.buf, self.view.len)
        digest = digest_of(image)
        memcpy((<Header *>PyBytes_AS_STRING(image)).digest, <const char *>(<bytes>digest), 32)
        return image

    @property
    def has_conditions(self):
        """Whether a decision may ask a condition, and so take work."""
        return self.header.conditionals > 0

    @property
    def image_bytes(self):
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
        return self.decide(action_type, target, agent, params, None)

    def evaluate_many(self, actions):
        """Decide about several actions at one moment, within one budget.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.

        Returns:
            Their decisions, in the same order.

        Raises:
            TypeError: A type, target or agent is not text.
        """
        return Batch.begun(self, actions, DECISIONS, None).whole()

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
        decision = self.decide(action_type, target, agent, params, None)
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
        return Batch.begun(self, actions, JSON, Work(read=read)).whole()

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
        if not self.write_object(item, buffer, work) or (work is not None and work.is_spent):
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
        return Batch.begun(self, items, OBJECTS_TO_JSON, None).whole()

    def begin(self, actions, work=None):
        """What decides about several actions piece by piece: `evaluate_many` at leisure.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.
            work: What all their conditions may take together; None: the default budget.
        """
        return Batch.begun(self, actions, DECISIONS, work)

    def begin_json(self, actions, work=None):
        """`begin`, and the result is JSON, as that of `evaluate_many_json`."""
        return Batch.begun(self, actions, JSON, work)

    def begin_objects_json(self, items, work=None):
        """`begin`, of JSON objects to JSON, as `evaluate_objects_json`."""
        return Batch.begun(self, items, OBJECTS_TO_JSON, work)

    cdef bint write_object(self, object item, Buffer buffer, Work work) except -1:
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
        decision = self.decide(action_type, target, agent, params, work)
        if decision is None:
            return False
        buffer.decision(action_type, target, decision)
        return True

    cdef Decision decide(self, object action_type, object target, object agent, object params,
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

    cdef inline object decide_row(self, object row, Work work):
        cdef tuple members = row if type(row) is tuple else tuple(row)
        if PyTuple_GET_SIZE(members) != FIELDS + 1:
            raise ValueError("an action is (type, target, agent, params)")
        return self.decide(
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


# In files of their own, but of this module: only within it are calls into an engine direct, and an
# indirect one costs a twentieth of a decision.
include "batch.pxi"
include "evaluator.pxi"


def compile_policy(policy, *, condition, clock=time):
    """Compile a policy.

    Args:
        policy: The rules, all named, and the defaults.
        condition: Compiles a rule's conditions; answers None where there are none.
        clock: Seconds since the epoch.

    Returns:
        The engine that decides by it.

    Raises:
        ValueError: The policy cannot be laid out (over 2**31 cells of 32 bits).
    """
    cdef Engine engine = Engine.__new__(Engine)
    conditions = [
        condition(rule.conditions) if rule.conditions else None for rule in policy.rules
    ]
    image, covered = build(policy, [held is not None for held in conditions])
    engine.open(image, clock)
    engine.conditions = conditions
    engine.policy = policy
    engine.covered = covered
    return engine
