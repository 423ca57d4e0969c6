"""The compiled engine: rules filed in radix tries, decisions made once a rule.

Each rule is filed once, under the most selective literal that its patterns have: the literal head
(in a forward trie) or tail (in a reversed one) of its type, target or agent pattern. To decide, the
action's strings are walked down the tries; a node's candidates are checked in full and in rule
order, and a branch that holds no earlier rule than the best one so far is left. Rules without any
literal are checked one after the other.

Everything that the walk reads is plain data in flat arrays addressed by index.
"""

cimport cython
from cpython.array cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_Check, PyUnicode_GET_LENGTH
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from array import array as new_array
from bisect import bisect_right
from collections import Counter
from time import time

from aegis_core.model import DEFAULT_RULE, Decision

__all__ = ["Engine", "compile_policy"]

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    void *PyUnicode_DATA(object text)
    int PyUnicode_KIND(object text)

ctypedef fused char_t:
    uint8_t
    uint16_t
    uint32_t

# The shapes of a pattern. GENERAL: anything that the others do not cover.
cdef enum Shape:
    ANY, EXACT, PREFIX, SUFFIX, GENERAL

# The steps of a GENERAL pattern that are no literal code point; below ANY_RUN: a set.
cdef enum Step:
    ANY_ONE = -1
    ANY_RUN = -2
    FIRST_SET = -3

cdef enum:
    FIELDS = 3          # action type, target, agent
    TRIES = 6           # a forward and a reversed one for each field
    FIXED_BYTES = 1024
    ON_STACK = 64       # conditional candidates that need no allocation


cdef struct Pattern:
    int32_t shape
    int32_t least_length    # no shorter text can match
    int32_t head            # where the literal head starts in `_text`
    int32_t head_length
    int32_t tail            # the literal tail, likewise; unused by EXACT and PREFIX
    int32_t tail_length
    int32_t steps           # where the steps start in `_steps`; GENERAL only
    int32_t steps_length


cdef struct Node:
    int32_t label           # where the label of the edge to this node starts in `_text`
    int32_t label_length
    int32_t child           # the first of its children, which lie side by side
    int32_t children
    int32_t through         # candidates of every text that comes through here
    int32_t throughs
    int32_t ending          # candidates of a text that ends here
    int32_t endings
    int32_t least_rule      # no candidate here or below has a lower index


cdef struct Candidate:
    int32_t rule
    int32_t pattern[FIELDS]     # what is left to be checked; -1: nothing


cdef struct Text:
    const void *data
    Py_ssize_t length
    int kind


cdef inline Text text_of(object value) noexcept:
    cdef Text text
    text.data = PyUnicode_DATA(value)
    text.length = PyUnicode_GET_LENGTH(value)
    text.kind = PyUnicode_KIND(value)
    return text


cdef inline bint same(
    const char_t *data, const uint32_t *literal, Py_ssize_t length
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if data[i] != literal[i]:
            return False
    return True


cdef inline bint in_set(uint32_t char, const int32_t *ranges) noexcept nogil:
    # A set is: negated?, number of ranges, then low and high of each.
    cdef int32_t i
    for i in range(ranges[1]):
        if <uint32_t>ranges[2 + 2 * i] <= char <= <uint32_t>ranges[3 + 2 * i]:
            return not ranges[0]
    return ranges[0]


cdef bint steps_match(
    const int32_t *steps, int32_t count, const int32_t *sets, const char_t *data, Py_ssize_t length
) noexcept nogil:
    # Every run takes as little as it can and is only ever widened at the last one met, so the
    # time is at most `count * length`.
    cdef Py_ssize_t i = 0, resume = 0
    cdef int32_t at = 0, run = -1, step
    while i < length:
        if at < count:
            step = steps[at]
            if step == ANY_RUN:
                run = at
                resume = i
                at += 1
                continue
            if (
                step == ANY_ONE
                or (step >= 0 and <uint32_t>step == data[i])
                or (step <= FIRST_SET and in_set(data[i], sets + (FIRST_SET - step)))
            ):
                at += 1
                i += 1
                continue
        if run < 0:
            return False
        resume += 1
        i = resume
        at = run + 1
    while at < count and steps[at] == ANY_RUN:
        at += 1
    return at == count


cdef int compare(const void *left, const void *right) noexcept nogil:
    return (<const int32_t *>left)[0] - (<const int32_t *>right)[0]


@cython.final
@cython.freelist(4)
cdef class _Buffer:
    # Bytes that grow while JSON is written into them.

    cdef:
        char fixed[FIXED_BYTES]     # room for most single answers
        char *data
        Py_ssize_t size, capacity

    def __cinit__(self):
        self.capacity = FIXED_BYTES
        self.data = self.fixed

    def __dealloc__(self):
        if self.data != self.fixed:
            PyMem_Free(self.data)

    cdef int reserve(self, Py_ssize_t more) except -1:
        if self.size + more <= self.capacity:
            return 0
        return self.grow(2 * (self.size + more))

    cdef int grow(self, Py_ssize_t capacity) except -1:
        cdef char *old = NULL if self.data == self.fixed else self.data
        cdef char *data = <char *>PyMem_Realloc(old, capacity)
        if data == NULL:
            raise MemoryError
        if old == NULL:
            memcpy(data, self.fixed, self.size)
        self.data = data
        self.capacity = capacity
        return 0

    cdef int raw(self, const char *data, Py_ssize_t size) except -1:
        self.reserve(size)
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef int text(self, object text) except -1:
        # SOURCE: RFC 8259 section 7: only these must be escaped; the rest is UTF-8 as it stands.
        cdef Py_ssize_t size, i
        cdef const uint8_t *data = <const uint8_t *>PyUnicode_AsUTF8AndSize(text, &size)
        cdef uint8_t *out
        self.reserve(6 * size + 2)
        # SAFETY: no byte becomes more than six.
        out = <uint8_t *>self.data + self.size
        out[0] = c'"'
        out += 1
        for i in range(size):
            if data[i] >= 0x20 and data[i] != c'"' and data[i] != c'\\':
                out[0] = data[i]
                out += 1
            elif data[i] < 0x20:
                memcpy(out, b"\\u00", 4)
                out[4] = c'1' if data[i] & 0x10 else c'0'
                out[5] = (<const uint8_t *>b"0123456789abcdef")[data[i] & 0x0F]
                out += 6
            else:
                out[0] = c'\\'
                out[1] = data[i]
                out += 2
        out[0] = c'"'
        self.size = out + 1 - <uint8_t *>self.data
        return 0

    cdef int decision(self, object action_type, object target, object decision) except -1:
        fragment = decision.fragment
        self.raw(b'{"action_type":', 15)
        self.text(action_type)
        self.raw(b',"target":', 10)
        self.text(target)
        self.raw(PyBytes_AS_STRING(fragment), PyBytes_GET_SIZE(fragment))
        return 0

    cdef bytes taken(self):
        return PyBytes_FromStringAndSize(self.data, self.size)


@cython.final
cdef class Engine:
    """A compiled policy.

    Invariant: nothing changes after construction, so threads may share it.

    Args:
        policy: The rules, all named, and the defaults.
        condition: Compiles a rule's conditions; answers None where there are none.
        clock: Seconds since the epoch; asked at most once in a call, and only where a rule with
            conditions matched.

    Raises:
        ValueError: A pattern and its kind cannot be laid out (over 2**31 characters in all).
    """

    cdef:
        Pattern *patterns
        Node *nodes
        uint32_t *firsts            # first code point of each node's label
        Candidate *candidates
        uint32_t *text
        int32_t *steps
        int32_t *sets
        uint8_t *conditional        # of each rule: has it conditions?
        int32_t roots[TRIES]
        int32_t fallback            # the candidates that no trie holds
        int32_t fallbacks
        int32_t count
        int32_t conditionals
        list decisions              # of each rule, then of the default
        list conditions
        object clock
        tuple arrays                # what owns the memory behind the pointers
        readonly object policy

    def __init__(self, policy, *, condition, clock=time):
        self.policy = policy
        self.clock = clock
        self.count = len(policy.rules)
        self.conditions = [
            condition(rule.conditions) if rule.conditions else None for rule in policy.rules
        ]
        self.decisions = [
            Decision(rule.name, rule.risk_level, rule.approval) for rule in policy.rules
        ]
        self.decisions.append(
            Decision(DEFAULT_RULE, policy.default_risk_level, policy.default_approval)
        )
        layout = _Layout(policy.rules)
        flags = new_array("B", [held is not None for held in self.conditions])
        self.conditionals = sum(flags)
        self.fallback, self.fallbacks = layout.fallback
        for i in range(TRIES):
            self.roots[i] = layout.roots[i]
        self.arrays = (
            layout.patterns, layout.nodes, layout.firsts, layout.candidates,
            layout.text, layout.steps, layout.sets, flags,
        )
        # SAFETY: the arrays stay as they are and live as long as this object does.
        self.patterns = <Pattern *>(<array>layout.patterns).data.as_voidptr
        self.nodes = <Node *>(<array>layout.nodes).data.as_voidptr
        self.firsts = <uint32_t *>(<array>layout.firsts).data.as_voidptr
        self.candidates = <Candidate *>(<array>layout.candidates).data.as_voidptr
        self.text = <uint32_t *>(<array>layout.text).data.as_voidptr
        self.steps = <int32_t *>(<array>layout.steps).data.as_voidptr
        self.sets = <int32_t *>(<array>layout.sets).data.as_voidptr
        self.conditional = <uint8_t *>(<array>flags).data.as_voidptr

    @property
    def block_bytes(self):
        """Size of the compiled data, in bytes."""
        return sum([len(part) * part.itemsize for part in self.arrays])

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

        Cost: linear in the length of the strings; independent of the number of rules as far as
            their patterns have a literal head or tail that tells them apart.
        """
        return self._decide(action_type, target, agent, params, None)

    def evaluate_many(self, actions):
        """Decide about several actions at one moment.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.

        Returns:
            Their decisions, in the same order.

        Raises:
            TypeError: A type, target or agent is not text.
        """
        cdef list moment = [None]
        cdef list decisions = []
        for action_type, target, agent, params in actions:
            decisions.append(self._decide(action_type, target, agent, params, moment))
        return decisions

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
        cdef _Buffer buffer = _Buffer()
        decision = self._decide(action_type, target, agent, params, None)
        buffer.decision(action_type, target, decision)
        return buffer.taken()

    def evaluate_many_json(self, actions):
        """Decide about several actions at one moment and write the answer.

        Args:
            actions: A sequence of `(action_type, target, agent, params)`.

        Returns:
            Their decisions, in the same order, as a JSON list in UTF-8.

        Raises:
            TypeError: A type, target or agent is not text.
            UnicodeEncodeError: A type or target holds half of a surrogate pair.
        """
        cdef list moment = [None]
        cdef _Buffer buffer = _Buffer()
        cdef bint is_first = True
        buffer.raw(b"[", 1)
        for action_type, target, agent, params in actions:
            if not is_first:
                buffer.raw(b",", 1)
            is_first = False
            decision = self._decide(action_type, target, agent, params, moment)
            buffer.decision(action_type, target, decision)
        buffer.raw(b"]", 1)
        return buffer.taken()

    def evaluate_object_json(self, item):
        """Decide about one action given as a parsed JSON object, and write the answer.

        Args:
            item: The object.

        Returns:
            The decision as a JSON object in UTF-8. None where the object is not a plain action, of
            `action_type`, `target`, `params` and `agent_id` of the right types and nothing else:
            such a one has to be read with more care.
        """
        cdef _Buffer buffer = _Buffer()
        return buffer.taken() if self._write_object(item, buffer, None) else None

    def evaluate_objects_json(self, items):
        """Decide about several actions given as parsed JSON objects at one moment.

        Args:
            items: A list of them.

        Returns:
            Their decisions, in the same order, as a JSON list in UTF-8. None where one of them is
            not a plain action.
        """
        cdef list moment = [None]
        cdef _Buffer buffer = _Buffer()
        for item in items:
            buffer.raw(b",", 1)
            if not self._write_object(item, buffer, moment):
                return None
        if buffer.size == 0:
            return b"[]"
        buffer.data[0] = c"["
        buffer.raw(b"]", 1)
        return buffer.taken()

    cdef bint _write_object(self, object item, _Buffer buffer, list moment) except -1:
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
        decision = self._decide(action_type, target, agent, params, moment)
        buffer.decision(action_type, target, decision)
        return True

    cdef object _decide(self, object action_type, object target, object agent, object params,
                        list moment):
        cdef Text texts[FIELDS]
        cdef int32_t stack[ON_STACK]
        cdef int32_t *pending = stack
        cdef int32_t pendings = 0, best
        if not (PyUnicode_Check(action_type) and PyUnicode_Check(target)
                and PyUnicode_Check(agent)):
            raise TypeError("action type, target and agent must be text")
        texts[0] = text_of(action_type)
        texts[1] = text_of(target)
        texts[2] = text_of(agent)
        if self.conditionals > ON_STACK:
            pending = <int32_t *>PyMem_Malloc(self.conditionals * sizeof(int32_t))
            if pending == NULL:
                raise MemoryError
        try:
            # INVARIANT: a rule is filed once, so `pending` never holds more than `conditionals`.
            best = self.match(texts, pending, &pendings)
            if pendings:
                return self._settle(best, pending, pendings, params, moment)
            return self.decisions[best]
        finally:
            if pending != stack:
                PyMem_Free(pending)

    cdef object _settle(self, int32_t best, int32_t *pending, int32_t pendings, object params,
                        list moment):
        # Conditions are asked in rule order, and only those of rules before the best one.
        cdef int32_t i, rule
        qsort(pending, pendings, sizeof(int32_t), compare)
        if params is None:
            params = {}
        now = None
        if moment is not None:
            now = moment[0]
        for i in range(pendings):
            rule = pending[i]
            if rule > best:
                break
            try:
                if now is None:
                    now = self.clock()
                    if moment is not None:
                        moment[0] = now
                held = self.conditions[rule](params, now)
            except Exception as error:
                return Decision.failed(self.policy.rules[rule].name, error)
            if held is True:
                return self.decisions[rule]
            if held is not False:
                return Decision.indeterminate(self.policy.rules[rule].name, str(held))
        return self.decisions[best]

    cdef int32_t match(self, Text *texts, int32_t *pending, int32_t *pendings) noexcept nogil:
        # The first rule without conditions whose patterns match (`count`: none), and all rules
        # with conditions before it whose patterns match.
        cdef int32_t best = self.count
        cdef int i
        for i in range(TRIES):
            if self.roots[i] < 0 or self.nodes[self.roots[i]].least_rule >= best:
                continue
            if texts[i >> 1].kind == 1:
                best = walk[uint8_t](self, texts, i, <const uint8_t *>texts[i >> 1].data,
                                     best, pending, pendings)
            elif texts[i >> 1].kind == 2:
                best = walk[uint16_t](self, texts, i, <const uint16_t *>texts[i >> 1].data,
                                      best, pending, pendings)
            else:
                best = walk[uint32_t](self, texts, i, <const uint32_t *>texts[i >> 1].data,
                                      best, pending, pendings)
        return self.scan(self.fallback, self.fallbacks, texts, best, pending, pendings)

    cdef int32_t scan(self, int32_t start, int32_t length, Text *texts, int32_t best,
                      int32_t *pending, int32_t *pendings) noexcept nogil:
        cdef const Candidate *candidate = self.candidates + start
        cdef const Candidate *end = candidate + length
        while candidate < end:
            if candidate.rule >= best:
                break
            if self.holds(candidate, texts):
                if not self.conditional[candidate.rule]:
                    return candidate.rule
                pending[pendings[0]] = candidate.rule
                pendings[0] += 1
            candidate += 1
        return best

    cdef bint holds(self, const Candidate *candidate, Text *texts) noexcept nogil:
        cdef int field
        cdef const Pattern *pattern
        for field in range(FIELDS):
            if candidate.pattern[field] < 0:
                continue
            pattern = self.patterns + candidate.pattern[field]
            if texts[field].length < pattern.least_length:
                return False
            if texts[field].kind == 1:
                if not matches[uint8_t](self, pattern, <const uint8_t *>texts[field].data,
                                        texts[field].length):
                    return False
            elif texts[field].kind == 2:
                if not matches[uint16_t](self, pattern, <const uint16_t *>texts[field].data,
                                         texts[field].length):
                    return False
            elif not matches[uint32_t](self, pattern, <const uint32_t *>texts[field].data,
                                       texts[field].length):
                return False
        return True


cdef bint matches(
    Engine engine, const Pattern *pattern, const char_t *data, Py_ssize_t length
) noexcept nogil:
    # SAFETY: the caller has seen that `length` is at least `least_length`, which covers the head
    # and the tail together.
    if pattern.shape == ANY:
        return True
    if pattern.shape == EXACT and length != pattern.head_length:
        return False
    if not same(data, engine.text + pattern.head, pattern.head_length):
        return False
    if not same(data + length - pattern.tail_length, engine.text + pattern.tail,
                pattern.tail_length):
        return False
    if pattern.shape != GENERAL:
        return True
    return steps_match(engine.steps + pattern.steps, pattern.steps_length, engine.sets,
                       data, length)


cdef int32_t walk(
    Engine engine, Text *texts, int trie, const char_t *data, int32_t best,
    int32_t *pending, int32_t *pendings
) noexcept nogil:
    cdef Py_ssize_t length = texts[trie >> 1].length, at = 0, i
    cdef bint backwards = trie & 1
    cdef const Node *node = engine.nodes + engine.roots[trie]
    cdef const uint32_t *label
    cdef uint32_t char
    cdef int32_t low, high, middle
    while True:
        if node.least_rule >= best:
            return best
        if node.throughs:
            best = engine.scan(node.through, node.throughs, texts, best, pending, pendings)
        if at == length:
            if node.endings:
                best = engine.scan(node.ending, node.endings, texts, best, pending, pendings)
            return best
        char = data[length - 1 - at] if backwards else data[at]
        low = node.child
        high = low + node.children
        while high - low > 8:
            middle = (low + high) >> 1
            if engine.firsts[middle] <= char:
                low = middle
            else:
                high = middle
        while low < high and engine.firsts[low] != char:
            low += 1
        if low == high:
            return best
        node = engine.nodes + low
        if length - at < node.label_length:
            return best
        label = engine.text + node.label
        if backwards:
            for i in range(1, node.label_length):
                if data[length - 1 - at - i] != label[i]:
                    return best
        elif not same(data + at + 1, label + 1, node.label_length - 1):
            return best
        at += node.label_length


cdef class _Layout:
    # Builds the flat arrays of an engine; thrown away afterwards.

    cdef public:
        object patterns, nodes, firsts, candidates, text, steps, sets
        list roots
        tuple fallback
        dict places             # where a literal lies in `text`

    def __init__(self, rules):
        self.patterns = new_array("i")
        self.nodes = new_array("i")
        self.firsts = new_array("I")
        self.candidates = new_array("i")
        self.text = new_array("I")
        self.steps = new_array("i")
        self.sets = new_array("i")
        self.places = {}
        self._file([
            [_parse(pattern) for pattern in (rule.match_type, rule.match_target, rule.match_agent)]
            for rule in rules
        ])

    def _file(self, rules):
        keys = [_keys(fields) for fields in rules]
        uses = Counter([key for options in keys for key in options])
        filed = [{} for _ in range(TRIES)]
        unfiled = []
        numbers = {}
        for index, (fields, options) in enumerate(zip(rules, keys)):
            if not options:
                unfiled.append((index, *[self._pattern(parsed, numbers) for parsed in fields]))
                continue
            # The fewest rules under one key; then the key that says most.
            key = min(options, key=lambda key: (uses[key], not key[2], -len(key[1]), key[0]))
            trie, literal, exact = key
            # What the trie has seen already need not be checked again.
            seen = trie >> 1 if fields[trie >> 1][0] in (EXACT, PREFIX, SUFFIX) else -1
            left = [
                -1 if field == seen else self._pattern(parsed, numbers)
                for field, parsed in enumerate(fields)
            ]
            through, ending = filed[trie].setdefault(literal, ([], []))
            (ending if exact else through).append((index, *left))
        self.fallback = self._candidates(unfiled)
        self.roots = [self._trie(lists) if lists else -1 for lists in filed]

    def _candidates(self, candidates):
        start = len(self.candidates) // (1 + FIELDS)
        for candidate in candidates:
            self.candidates.extend(candidate)
        return start, len(candidates)

    def _literal(self, text):
        place = self.places.get(text)
        if place is None:
            place = self.places[text] = len(self.text)
            self.text.extend([ord(char) for char in text])
        return place

    def _pattern(self, parsed, numbers):
        shape, head, tail, steps = parsed
        if shape == ANY:
            return -1
        key = (shape, head, tail, steps)
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = len(self.patterns) * 4 // sizeof(Pattern)
            least = max(len(head) + len(tail), sum([step != ANY_RUN for step in steps]))
            start = len(self.steps)
            for step in steps:
                if type(step) is tuple:
                    self.steps.append(FIRST_SET - len(self.sets))
                    self.sets.extend(step)
                else:
                    self.steps.append(step)
            self.patterns.extend((
                shape, least, self._literal(head), len(head), self._literal(tail), len(tail),
                start, len(steps),
            ))
        return number

    def _trie(self, lists):
        # Breadth first, so that the children of a node lie side by side. The keys below a node are
        # a slice of the sorted keys; a node stands where keys part or one ends.
        keys = sorted(lists)
        root = len(self.firsts)
        rows = [[0, 0, 0, 0, 0, 0, 0, 0, 0]]
        self.firsts.append(0)
        slices = [(0, len(keys), 0)]
        for row, (low, high, depth) in zip(rows, slices):
            if low < high and len(keys[low]) == depth:
                through, ending = lists[keys[low]]
                row[4], row[5] = self._candidates(through)
                row[6], row[7] = self._candidates(ending)
                low += 1
            row[2] = root + len(rows)
            while low < high:
                char = keys[low][depth]
                end = bisect_right(keys, char, low, high, key=lambda key: key[depth])
                first, last = keys[low], keys[end - 1]
                split = depth + 1
                while split < len(first) and first[split] == last[split]:
                    split += 1
                rows.append([self._literal(first[depth:split]), split - depth, 0, 0, 0, 0, 0, 0, 0])
                slices.append((low, end, split))
                self.firsts.append(ord(char))
                row[3] += 1
                low = end
        for row in reversed(rows):
            least = [self.candidates[row[4] * 4]] if row[5] else []
            if row[7]:
                least.append(self.candidates[row[6] * 4])
            start = row[2] - root
            least += [child[8] for child in rows[start:start + row[3]]]
            row[8] = min(least)
        for row in rows:
            self.nodes.extend(row)
        return root


def _keys(fields):
    # Every (trie, literal, exact) under which a rule can be filed.
    keys = []
    for field, (shape, head, tail, _) in enumerate(fields):
        if shape == EXACT:
            keys.append((2 * field, head, True))
            continue
        if head:
            keys.append((2 * field, head, False))
        if tail:
            keys.append((2 * field + 1, tail[::-1], False))
    return keys


def _parse(pattern):
    # (shape, literal head, literal tail, steps); steps only of a GENERAL pattern.
    steps = _steps(pattern)
    literals = [type(step) is int and step >= 0 for step in steps]
    if all(literals):
        return EXACT, _joined(steps), "", ()
    start = literals.index(False)
    end = len(steps) - literals[::-1].index(False)
    head, tail = _joined(steps[:start]), _joined(steps[end:])
    if end - start == 1 and steps[start] == ANY_RUN:
        if not tail:
            return (PREFIX if head else ANY), head, "", ()
        if not head:
            return SUFFIX, "", tail, ()
    return GENERAL, head, tail, steps


def _joined(steps):
    return "".join([chr(step) for step in steps])


def _steps(pattern):
    # Code points, ANY_ONE, ANY_RUN, and a tuple for a set.
    steps = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if not steps or steps[-1] != ANY_RUN:
                steps.append(ANY_RUN)
        elif char == "?":
            steps.append(ANY_ONE)
        elif char == "[":
            # A bracket right behind the opening one (or its `!`) belongs to the set.
            end = pattern.find("]", at + 1 + pattern.startswith("!", at))
            if end < 0:
                steps.append(ord(char))
            else:
                steps.append(_set(pattern[at:end]))
                at = end + 1
        else:
            steps.append(ord(char))
    return tuple(steps)


def _set(body):
    # SOURCE: the meaning is that of CPython 3.11's `fnmatch.translate`, quirks included: a hyphen
    # makes a range unless it stands first or last or right behind the end of a range, a range
    # that runs backwards takes its two ends with it, and only then a leading `!` negates.
    pieces = []
    start, search = 0, 1 + body.startswith("!")
    while (hyphen := body.find("-", search)) >= 0:
        pieces.append(body[start:hyphen])
        start, search = hyphen + 1, hyphen + 3
    if start < len(body) or not pieces:
        pieces.append(body[start:])
    else:
        pieces[-1] += "-"
    for right in range(len(pieces) - 1, 0, -1):
        if pieces[right - 1][-1] > pieces[right][0]:
            pieces[right - 1:right + 1] = [pieces[right - 1][:-1] + pieces[right][1:]]
    if pieces[0] == "!" and len(pieces) > 1:
        pieces[:2] = ["!-" + pieces[1]]     # a hyphen behind the negation stands for itself
    negated = pieces[0].startswith("!")
    ranges = []
    previous = 0
    for number, piece in enumerate(pieces):
        if number:
            ranges.append((previous, ord(piece[0])))
        singles = piece[(number > 0) or negated:len(piece) - (number < len(pieces) - 1)]
        ranges.extend([(ord(char), ord(char)) for char in singles])
        if piece:
            previous = ord(piece[-1])
    return (int(negated), len(ranges), *[bound for pair in ranges for bound in pair])


def compile_policy(policy, *, condition, clock=time):
    """Compile a policy.

    Args:
        policy: The rules, all named, and the defaults.
        condition: Compiles a rule's conditions; answers None where there are none.
        clock: Seconds since the epoch.

    Returns:
        The engine that decides by it.
    """
    return Engine(policy, condition=condition, clock=clock)
