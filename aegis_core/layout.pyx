"""Lays a policy out as a block of plain data: which rule is filed where, tries, words, automata.

Each rule is filed once, under the literal of its patterns that the fewest other rules share. Where
many share even that one, those that do are filed again by their other fields. Rules that an earlier
one without conditions covers can never decide, and are left out.
"""

from aegis_core.block cimport (
    ANY_CHARACTER, ANY_TEXT, BACKWARD, BYTE_ORDER_MARK, FIELDS, FORMAT, FORWARD, Group, Header,
    NFA, NFA_NARROW, NFA_WORDS, Node, Part, Row, SCAN, WORDS, Words,
)
from aegis_core.matcher cimport Search, gram_of, search
from aegis_core.patterns cimport (
    ANY, ANY_ONE, ANY_RUN, FIRST_SET, Glob, PREFIX, SUFFIX, WHOLE,
    WORD, parsed,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_READ_CHAR
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

import json

from aegis_core.model import Approval

__all__ = ["build", "covered_rules"]

cdef extern from "Python.h":
    int PyUnicode_KIND(object text)

cdef extern from *:
    """
    #define GOLDEN 0x9E3779B1u
    """
    const uint32_t GOLDEN

APPROVALS = tuple(Approval)

cdef enum:
    MANY = 16               # rules under one key from which on another way is looked for
    LONGEST_LIST = 8        # from which on a list is filed again by the other fields
    FEWEST_SIMULATED = 4    # below which patterns are rather checked one after the other
    MOST_STATES = 64        # of a pattern that is simulated
    MOST_RANGES = 16        # in the sets of a pattern that is simulated
    LONGEST_STRIDE = 8
    MOST_GRAMS = 256        # of a word that may become those that it is known by
    FILTER_BITS = 16        # for each gram
    WORDS_COST = 16         # what looking for words costs more than walking a trie, in candidates

# What the search for rules that can never decide may cost for each rule, in candidates looked at;
# beyond, what is left of them is kept, which changes no decision.
cdef int64_t WORK_A_RULE = 2_000
cdef int64_t COMPARISONS_A_RULE = 100


cdef class _Block:
    # Words that grow.

    cdef:
        int32_t *data
        Py_ssize_t size, capacity

    def __cinit__(self):
        self.capacity = 4096
        self.data = <int32_t *>PyMem_Malloc(self.capacity * sizeof(int32_t))
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int32_t reserve(self, Py_ssize_t words, bint aligned=False) except -1:
        # Where so many zeros begin; aligned: at a multiple of 64 bits.
        cdef Py_ssize_t place = self.size + (aligned and self.size & 1)
        cdef int32_t *data
        if place + words > self.capacity:
            if place + words > 2**31 - 1:
                raise ValueError("the policy is too large to be compiled")
            self.capacity = 2 * (place + words)
            data = <int32_t *>PyMem_Realloc(self.data, self.capacity * sizeof(int32_t))
            if data == NULL:
                raise MemoryError
            self.data = data
        memset(self.data + self.size, 0, (place + words - self.size) * sizeof(int32_t))
        self.size = place + words
        return <int32_t>place

    cdef int32_t literal(self, str text, bint wide) except -1:
        cdef Py_ssize_t length = len(text)
        cdef int32_t place = self.reserve(length if wide else (length + 3) >> 2)
        write_literal(self.data + place, text, wide)
        return place

    cdef int32_t text(self, bytes text) except -1:
        cdef int32_t place = self.reserve((len(text) + 3) >> 2)
        memcpy(self.data + place, <const char *>text, len(text))
        return place


cdef void write_literal(int32_t *place, str text, bint wide):
    cdef Py_ssize_t i
    if wide:
        for i in range(len(text)):
            (<uint32_t *>place)[i] = PyUnicode_READ_CHAR(text, i)
    else:
        for i in range(len(text)):
            (<uint8_t *>place)[i] = <uint8_t>PyUnicode_READ_CHAR(text, i)


cdef inline bint is_wide(str text):
    return PyUnicode_KIND(text) != 1


cdef class _Layout:
    # Files rules in a block.

    cdef:
        _Block block
        list globs              # of each rule: of its type, target and agent
        list conditional        # of each rule: has it conditions?
        list seen               # of each rule: the fields that need no further check, as bits
        int32_t stamps
        int32_t root

    def __init__(self, list globs, list conditional):
        self.block = _Block()
        self.block.reserve(sizeof(Header) >> 2)
        self.globs = globs
        self.conditional = conditional

    cdef int lay_out(self, list rules) except -1:
        self.seen = [0] * len(self.globs)
        for globs in self.globs:
            for glob in <list>globs:
                (<Glob>glob).record = 0
        self.root = self.index(rules, (1 << FIELDS) - 1)
        return 0

    # --- which rule goes where

    cdef int32_t index(self, list rules, int free) except -1:
        cdef dict filed = {}
        cdef list to_simulate = [[], [], []]
        cdef list rest = []
        cdef int field
        self.choose(rules, free, filed, to_simulate, rest)
        parts = []
        for field in range(FIELDS):
            if not free >> field & 1:
                continue
            forward, backward, words = {}, {}, {}
            for kind, of_kind in enumerate((forward, forward, backward, words)):
                for literal, of_literal in filed.get(4 * field + kind, {}).items():
                    lists = of_kind.setdefault(literal, ([], []))
                    (<list>lists[kind == WHOLE]).extend(of_literal)
            left = free & ~(1 << field)
            for kind, lists in ((FORWARD, forward), (BACKWARD, backward)):
                if lists:
                    wide = any([is_wide(literal) for literal in lists])
                    parts.append((kind, field, wide, self.trie(lists, wide, left)))
            if words:
                for place in self.words(words, left):
                    parts.append((WORDS, field, 0, place))
            if to_simulate[field]:
                parts.append((NFA, field, 0, self.nfa(to_simulate[field], field)))
        if rest:
            parts.append((SCAN, 0, 0, self.candidates(rest)))
        return self.index_of(parts)

    cdef int choose(self, list rules, int free, dict filed, list to_simulate, list rest) except -1:
        cdef dict uses = {}
        cdef Py_ssize_t cost, least, count
        cdef int field, constrained, general
        cdef object key, best
        cdef Glob glob
        for rule in rules:
            for field in range(FIELDS):
                if free >> field & 1:
                    for key in (<Glob>(<list>(<list>self.globs)[rule])[field]).keys(field):
                        uses[key] = uses.get(key, 0) + 1
        for rule in rules:
            best = None
            least = 0
            constrained = 0
            general = -1
            for field in range(FIELDS):
                if not free >> field & 1:
                    continue
                glob = <Glob>(<list>(<list>self.globs)[rule])[field]
                if glob.shape == ANY:
                    continue
                constrained += 1
                if glob.steps and is_simulated(glob):
                    general = field
                for key in glob.keys(field):
                    count = uses[key]
                    # Up to three are as good as one; words cost more to be found.
                    cost = 4 * (3 if count < 3 else count) + (<int>(<tuple>key)[0] & 3)
                    if <int>(<tuple>key)[0] & 3 == WORD:
                        cost += 4 * WORDS_COST
                    if best is None or cost < least or (
                        cost == least and len((<tuple>key)[1]) > len((<tuple>best)[1])
                    ):
                        best, least = key, cost
            if general >= 0 and (
                best is None or (constrained == 1 and uses[best] > MANY)
            ):
                (<list>to_simulate[general]).append(rule)
            elif best is None:
                rest.append(rule)
            else:
                filed.setdefault(best[0], {}).setdefault(best[1], []).append(rule)
                self.mark_seen(rule, best[0])
        for field in range(FIELDS):
            if len(<list>to_simulate[field]) < FEWEST_SIMULATED:
                rest.extend(to_simulate[field])
                to_simulate[field] = []
        rest.sort()
        return 0

    cdef void mark_seen(self, Py_ssize_t rule, int key):
        cdef Glob glob = <Glob>(<list>self.globs[rule])[key >> 2]
        if not glob.steps or (key & 3 == WORD and glob.is_word):
            self.seen[rule] |= 1 << (key >> 2)

    # --- what holds candidates

    cdef int32_t index_of(self, list parts) except -1:
        cdef int32_t place = self.block.reserve(1 + len(parts) * (sizeof(Part) >> 2))
        cdef Part *part = <Part *>(self.block.data + place + 1)
        self.block.data[place] = len(parts)
        for least, kind, field, wide, of_part in sorted(
            [(self.least_in_part(kind, of_part), kind, field, wide, of_part)
             for kind, field, wide, of_part in parts]
        ):
            part.least, part.kind, part.field, part.wide, part.place = (
                least, kind, field, wide, of_part
            )
            part += 1
        return place

    cdef int32_t least_in_part(self, int kind, int32_t place):
        cdef const int32_t *data = self.block.data + place
        if kind == SCAN:
            return data[1]
        if kind == NFA:     # its groups are in order
            return self.block.data[data[1]]
        return data[0]

    cdef int32_t least_in(self, int32_t found):
        if found > 0:
            return self.block.data[found + 1]
        return (<Part *>(self.block.data - found + 1)).least

    cdef int32_t found(self, list rules, int free) except? -1:
        # A list, or an index by the other fields where it would be long.
        if not rules:
            return 0
        if len(rules) > LONGEST_LIST:
            for rule in rules:
                for field in range(FIELDS):
                    if (
                        free >> field & 1
                        and (<Glob>(<list>self.globs[rule])[field]).shape != ANY
                    ):
                        return -self.index(rules, free)
        return self.candidates(rules)

    cdef int32_t candidates(self, list rules) except -1:
        cdef int32_t place
        cdef list all_checks = [self.checks(rule) for rule in rules]
        cdef int32_t *words
        place = self.block.reserve(1 + len(rules) * (1 + FIELDS))
        words = self.block.data + place
        words[0] = len(rules)
        words += 1
        for rule, checks in zip(rules, all_checks):
            words[0] = 2 * rule + self.conditional[rule]
            words[1], words[2], words[3] = checks
            words += 1 + FIELDS
        return place

    cdef tuple checks(self, Py_ssize_t rule):
        cdef list globs = self.globs[rule]
        cdef int seen = self.seen[rule]
        cdef int field
        cdef Glob glob
        cdef list places = [0, 0, 0]
        for field in range(FIELDS):
            glob = <Glob>globs[field]
            if glob.shape != ANY and not seen >> field & 1:
                if glob.record == 0:
                    glob.record = self.pattern(glob)
                places[field] = glob.record
        return tuple(places)

    cdef int32_t pattern(self, Glob glob) except -1:
        cdef bint wide = is_wide(glob.head) or is_wide(glob.tail)
        cdef Py_ssize_t literals = len(glob.head) + len(glob.tail), at
        cdef int32_t place = self.block.reserve(6 + (literals if wide else (literals + 3) >> 2))
        cdef int32_t *words = self.block.data + place
        cdef list sets = []
        words[0], words[1], words[2] = glob.shape, wide, glob.least_length
        words[3], words[4], words[5] = len(glob.head), len(glob.tail), len(glob.steps)
        write_literal(words + 6, glob.head + glob.tail, wide)
        if glob.steps:
            at = self.block.reserve(len(glob.steps))
            for step in glob.steps:
                if type(step) is tuple:
                    self.block.data[at] = FIRST_SET - len(sets)
                    sets.extend(step)
                else:
                    self.block.data[at] = step
                at += 1
            at = self.block.reserve(len(sets))
            for word in sets:
                self.block.data[at] = word
                at += 1
        return place

    # --- tries

    cdef int32_t trie(self, dict lists, bint wide, int free) except -1:
        # The keys below a node are a slice of the sorted keys; a node stands where keys part or one
        # ends. Parents are made before their children, which tell them their places.
        cdef list keys = sorted(lists)
        cdef list stack = [(0, len(keys), 0, 0)]
        cdef list nodes = []
        cdef list ends
        cdef Py_ssize_t low, high, start, depth, end
        cdef int32_t slot, through, ending, place, firsts, count, i
        cdef Py_UCS4 char
        cdef str first, last
        cdef Node *node
        while stack:
            low, high, start, slot = stack.pop()
            first, last = keys[low], keys[high - 1]
            depth = start
            if slot:
                while (
                    depth < len(first)
                    and PyUnicode_READ_CHAR(first, depth) == PyUnicode_READ_CHAR(last, depth)
                ):
                    depth += 1
            through = ending = 0
            if len(first) == depth:
                of_through, of_ending = lists[first]
                through = self.found(of_through, free)
                ending = self.found(of_ending, free)
                low += 1
            ends = []
            end = low
            while end < high:
                char = PyUnicode_READ_CHAR(<str>keys[end], depth)
                end += 1
                while end < high and PyUnicode_READ_CHAR(<str>keys[end], depth) == char:
                    end += 1
                ends.append(end)
            count = len(ends)
            place = self.block.reserve(
                (sizeof(Node) >> 2)
                + ((depth - start) + count if wide
                   else ((depth - start + 3) >> 2) + 2 * ((count + 7) >> 3))
                + count
            )
            if slot:
                self.block.data[slot] = place
            node = <Node *>(self.block.data + place)
            node.label, node.children, node.through, node.ending = (
                depth - start, count, through, ending
            )
            write_literal(<int32_t *>(node + 1), first[start:depth], wide)
            firsts = place + (sizeof(Node) >> 2) + (
                depth - start if wide else (depth - start + 3) >> 2
            )
            slot = firsts + (count if wide else 2 * ((count + 7) >> 3))
            for i in range(count):
                char = PyUnicode_READ_CHAR(<str>keys[low], depth)
                if wide:
                    self.block.data[firsts + i] = char
                else:
                    (<uint8_t *>(self.block.data + firsts))[i] = <uint8_t>char
                stack.append((low, ends[i], depth + 1, slot + i))
                low = ends[i]
            if not wide and count:
                # INVARIANT: the rest of the last eight are like the first, and come behind it.
                memset(<uint8_t *>(self.block.data + firsts) + count,
                       (<uint8_t *>(self.block.data + firsts))[0], -count & 7)
            nodes.append((place, slot))
        for place, slot in reversed(nodes):
            node = <Node *>(self.block.data + place)
            node.least = 2**31 - 1
            for i in range(node.children):
                node.least = min(node.least, self.block.data[self.block.data[slot + i]])
            if node.through:
                node.least = min(node.least, self.least_in(node.through))
            if node.ending:
                node.least = min(node.least, self.least_in(node.ending))
        return nodes[0][0]

    # --- words

    cdef list words(self, dict lists, int free):
        # Long words apart from short ones, for these must be looked for at every place.
        by_length = [{}, {}, {}, {}, {}]
        for word, (rules, _) in lists.items():
            length = len(word)
            (<dict>by_length[length - 1 if length < 4 else 3 if length < 8 else 4])[word] = rules
        return [self.words_alike(of_length, free) for of_length in by_length if of_length]

    cdef int32_t words_alike(self, dict lists, int free) except -1:
        cdef Py_ssize_t shortest = min([len(word) for word in lists])
        cdef int32_t size = min(shortest, 4), place, bucket
        cdef dict grams
        cdef Words *words
        cdef uint32_t bit, gram
        stride = min(shortest - size + 1, LONGEST_STRIDE)
        while True:
            grams = grams_of(lists, size, stride)
            if stride == 1 or max([len(of_gram) for of_gram in grams.values()]) <= MANY:
                break
            stride //= 2
        entries = {}
        for word, rules in lists.items():
            of_word = self.found(rules, free)
            wide = is_wide(word)
            entries[word] = (
                self.least_in(of_word), self.stamps, len(word), wide,
                self.block.literal(word, wide), of_word,
            )
            self.stamps += 1
        table_bits = max(4, (2 * len(grams)).bit_length())
        filter_bits = max(5, (FILTER_BITS * len(grams)).bit_length())
        place = self.block.reserve(sizeof(Words) >> 2)
        words_table = self.block.reserve(2 << table_bits)
        words_filter = self.block.reserve(1 << (filter_bits - 5))
        words = <Words *>(self.block.data + place)
        words.gram, words.stride = size, stride
        words.table, words.table_shift = words_table, 32 - table_bits
        words.filter, words.filter_shift = words_filter, 32 - filter_bits
        words.least = min([entry[0] for entry in entries.values()])
        for gram, of_gram in grams.items():
            bit = (gram * GOLDEN) >> (32 - filter_bits)
            self.block.data[words_filter + (bit >> 5)] |= <int32_t>(<uint32_t>1 << (bit & 31))
            bucket = self.block.reserve(1 + 7 * len(of_gram))
            self.block.data[bucket] = len(of_gram)
            bit = (gram * GOLDEN) >> (32 - table_bits)
            while self.block.data[words_table + 2 * bit + 1]:
                bit = (bit + 1) & ((1 << table_bits) - 1)
            self.block.data[words_table + 2 * bit] = <int32_t>gram
            self.block.data[words_table + 2 * bit + 1] = bucket
            bucket += 1
            for word, back in of_gram:
                least, stamp, length, wide, text, of_word = entries[word]
                for value in (least, stamp, back, length, wide, text, of_word):
                    self.block.data[bucket] = value
                    bucket += 1
        return place

    # --- automata

    cdef int32_t nfa(self, list rules, int field) except -1:
        groups = []
        group = []
        cdef Py_ssize_t word = 0, bit = 0, states
        for rule in rules:
            glob = <Glob>(<list>self.globs[rule])[field]
            states = states_of(glob)
            if bit + states > 64:
                word, bit = word + 1, 0
            if word == NFA_WORDS:
                groups.append(group)
                group, word, bit = [], 0, 0
            group.append((rule, glob, 64 * word + bit))
            bit += states
        groups.append(group)
        for rule in rules:
            self.seen[rule] |= 1 << field
        places = [self.simulated(members) for members in groups]
        cdef int32_t place = self.block.reserve(1 + len(places)), i
        self.block.data[place] = len(places)
        for i in range(len(places)):
            self.block.data[place + 1 + i] = places[i]
        return place

    cdef int32_t simulated(self, list members) except -1:
        initial = loops = accepting = any_one = 0
        literals, sets = {}, []
        firsts = [0] * NFA_WORDS
        cdef Py_ssize_t bit
        cdef object one = 1     # bits are numbers of any size
        for number, (rule, glob, start) in reversed(list(enumerate(members))):
            firsts[start >> 6] = number
            initial |= one << start
            bit = start
            for step in whole_steps(glob):
                if step == ANY_RUN:
                    loops |= one << bit
                    continue
                bit += 1
                if step == ANY_ONE:
                    any_one |= one << bit
                elif type(step) is tuple:
                    sets.append((step, one << bit))
                else:
                    literals[step] = literals.get(step, 0) | one << bit
            accepting |= one << bit
        starts, of_range = rows_of(literals, sets, any_one)
        rows = {}
        kinds = [rows.setdefault(row, len(rows)) for row in of_range]
        narrow = []
        at = 0
        for char in range(NFA_NARROW):
            while at + 1 < len(starts) and starts[at + 1] <= char:
                at += 1
            narrow.append(kinds[at])
        while at + 1 < len(starts) and starts[at + 1] <= NFA_NARROW:
            at += 1
        of_wide = [(NFA_NARROW, kinds[at]), *zip(starts[at + 1:], kinds[at + 1:])]
        cdef int32_t candidates = self.candidates([rule for rule, _, _ in members]) + 1
        cdef int32_t of_rows = self.bit_rows(list(rows))
        cdef int32_t of_loops = self.bit_rows([loops])
        cdef int32_t of_initial = self.bit_rows([initial])
        cdef int32_t of_accepting = self.bit_rows([accepting])
        cdef int32_t classes = self.block.reserve(NFA_NARROW >> 1)
        cdef int32_t wide_starts = self.block.reserve(len(of_wide))
        cdef int32_t wide_classes = self.block.reserve(len(of_wide))
        cdef int32_t first = self.block.reserve(NFA_WORDS)
        cdef int32_t place = self.block.reserve(sizeof(Group) >> 2), i
        cdef Group *made = <Group *>(self.block.data + place)
        for i in range(NFA_NARROW):
            (<uint16_t *>(self.block.data + classes))[i] = narrow[i]
        for i in range(len(of_wide)):
            self.block.data[wide_starts + i], self.block.data[wide_classes + i] = of_wide[i]
        for i in range(NFA_WORDS):
            self.block.data[first + i] = firsts[i]
        made.least, made.candidates = self.block.data[candidates], candidates
        made.classes, made.bounds = classes, len(of_wide)
        made.starts, made.range_classes = wide_starts, wide_classes
        made.rows, made.loops, made.initial, made.accepting = (
            of_rows, of_loops, of_initial, of_accepting
        )
        made.first = first
        return place

    cdef int32_t bit_rows(self, list rows) except -1:
        cdef int32_t place = self.block.reserve(len(rows) * NFA_WORDS * 2, True)
        cdef int32_t at = place
        for row in rows:
            data = row.to_bytes(NFA_WORDS * 8, "little")
            memcpy(self.block.data + at, PyBytes_AS_STRING(data), NFA_WORDS * 8)
            at += NFA_WORDS * 2
        return place


cdef Py_ssize_t states_of(Glob glob):
    return glob.least_length + 1


cdef bint is_simulated(Glob glob):
    # Many ranges would make many rows of bits, which are large.
    cdef Py_ssize_t ranges = 0
    if states_of(glob) > MOST_STATES:
        return False
    for step in glob.steps:
        if type(step) is tuple:
            ranges += (<tuple>step)[1]
    return ranges <= MOST_RANGES


cdef list whole_steps(Glob glob):
    # Of a glob of any shape, with its head and tail.
    return [*map(ord, glob.head), *glob.steps, *map(ord, glob.tail)]


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


cdef dict grams_of(dict words, int32_t size, Py_ssize_t stride):
    # The words of each gram, and where in them it lies: of each word as many grams in a row as
    # there are characters between two looks, where they are the rarest.
    cdef dict counts = {}
    cdef dict of_word = {}
    cdef list grams
    cdef uint32_t characters[4]
    cdef Py_ssize_t at, i, best, most, least
    cdef str word
    for word in words:
        grams = []
        for at in range(min(len(word) - size + 1, MOST_GRAMS)):
            for i in range(size):
                characters[i] = PyUnicode_READ_CHAR(word, at + i)
            grams.append(gram_of(characters, size))
        of_word[word] = grams
        for gram in grams:
            counts[gram] = counts.get(gram, 0) + 1
    found = {}
    for word, grams in of_word.items():
        best = least = -1
        for at in range(len(grams) - stride + 1):
            most = max([<Py_ssize_t>counts[gram] for gram in grams[at:at + stride]])
            if best < 0 or most < least:
                best, least = at, most
        for i in range(stride):
            found.setdefault(grams[best + i], []).append((word, best + i))
    return found


# --- rules that can never decide ------------------------------------------------------------------


cdef class _Symbols:
    # A symbolic text: one that stands for every text that a glob matches.

    cdef:
        uint32_t *data
        Py_ssize_t length

    def __cinit__(self, Glob glob):
        cdef Py_ssize_t i = 0
        cdef list steps = whole_steps(glob)
        if glob.shape in (ANY, PREFIX):
            steps = [*map(ord, glob.head), ANY_RUN]
        elif glob.shape == SUFFIX:
            steps = [ANY_RUN, *map(ord, glob.tail)]
        self.data = <uint32_t *>PyMem_Malloc(max(1, len(steps)) * sizeof(uint32_t))
        if self.data == NULL:
            raise MemoryError
        self.length = len(steps)
        for step in steps:
            if step == ANY_RUN:
                self.data[i] = ANY_TEXT
            elif type(step) is tuple or step == ANY_ONE:
                self.data[i] = ANY_CHARACTER
            else:
                self.data[i] = step
            i += 1

    def __dealloc__(self):
        PyMem_Free(self.data)


cdef class Coverage:
    """Which earlier rules surely match all that a rule matches.

    A rule is covered where its symbolic texts are matched: whatever stands in the place of a
    symbol, the same alignment matches it too. Not every covered rule is found.

    Where conditions count, they are all to hold, so what fails for a rule fails for each that needs
    the same and more: a rule with conditions covers those.
    """

    cdef:
        object block            # keeps `search.base` alive
        int32_t root
        int64_t comparisons     # of conditions that may still be made
        object memory
        Search state
        dict symbols

    def __init__(self, _Layout layout):
        cdef Py_ssize_t pending = sum(layout.conditional)
        self.block = layout.block
        self.root = layout.root
        self.comparisons = COMPARISONS_A_RULE * <int64_t>len(layout.globs)
        self.symbols = {}
        self.memory = (bytearray(4 * pending + 4), bytearray(4 * layout.stamps + 4))
        self.state.base = layout.block.data
        self.state.pending = <int32_t *><char *>(<bytearray>(<tuple>self.memory)[0])
        self.state.stamps = <uint32_t *><char *>(<bytearray>(<tuple>self.memory)[1])

    cdef int32_t first(self, int32_t rule, list globs, list needs) except -2:
        # The first of the rules before this one that covers it; -1: none.
        cdef int field
        cdef int32_t found, i, before
        cdef _Symbols symbols
        for field in range(FIELDS):
            glob = globs[field]
            of_glob = self.symbols.get(glob)
            if of_glob is None:
                of_glob = self.symbols[glob] = _Symbols.__new__(_Symbols, glob)
            symbols = <_Symbols>of_glob
            self.state.texts[field].data = symbols.data
            self.state.texts[field].length = symbols.length
            self.state.texts[field].kind = 4
        self.state.limit = 2 * rule
        self.state.pendings = 0
        self.state.epoch += 1
        search(&self.state, self.root)
        found = self.state.limit >> 1
        if needs is not None and self.comparisons > 0:
            self.comparisons -= self.state.pendings
            for i in range(self.state.pendings):
                before = self.state.pending[i] >> 1
                if before < found and <frozenset>needs[before] <= <frozenset>needs[rule]:
                    found = before
        return found if found < rule else -1


def build(policy, conditional):
    """Compile a policy's rules.

    Args:
        policy: The rules, all named, and the defaults.
        conditional: Of each rule: whether it has conditions.

    Returns:
        The block, as bytes; and for each rule that can never decide, by its number, the earlier
        one that covers it.

    Raises:
        ValueError: They cannot be laid out (over 2**31 words).
    """
    cdef list flags = [1 if flag else 0 for flag in conditional]
    cdef list globs = _globs(policy.rules)
    cdef dict covered = {}
    cdef _Layout layout = _laid_out(globs, flags, covered, None)
    if covered:
        live = [rule for rule in range(len(globs)) if rule not in covered]
        layout = _Layout(globs, flags)
        layout.lay_out(live)
    return finished(layout, policy), covered


def covered_rules(rules, needs):
    """Which rules can never decide, since an earlier one covers them.

    Args:
        rules: The rules, in order.
        needs: Of each rule: the conditions that must all hold, as values that are equal where they
            always hold alike.

    Returns:
        By number of each such rule, the number of an earlier one that matches all that it does and
        needs no more. Not every such rule is found.

    Cost: about that of compiling.
    """
    cdef dict covered = {}
    cdef list sets = [frozenset(of_rule) for of_rule in needs]
    _laid_out(_globs(rules), [1 if of_rule else 0 for of_rule in sets], covered, sets)
    return covered


cdef list _globs(rules):
    cdef dict known = {}
    return [
        [parsed(rule.match_type, known), parsed(rule.match_target, known),
         parsed(rule.match_agent, known)]
        for rule in rules
    ]


cdef _Layout _laid_out(list globs, list flags, dict covered, list needs):
    # Of all rules whose patterns no earlier one has; `covered` is filled.
    cdef dict first = {}
    cdef list distinct = []
    cdef int32_t cover
    cdef Py_ssize_t rule
    for rule in range(len(globs)):
        triple = tuple(<list>globs[rule])
        found = first.get(triple)
        if found is not None:
            covered[rule] = found
            continue
        distinct.append(rule)
        if not flags[rule]:
            first[triple] = rule
    cdef _Layout layout = _Layout(globs, flags)
    layout.lay_out(distinct)
    cdef Coverage coverage = Coverage(layout)
    for rule in distinct:
        if coverage.state.work > WORK_A_RULE * len(distinct):
            break
        cover = coverage.first(rule, globs[rule], needs)
        if cover >= 0:
            covered[rule] = cover
    return layout


cdef bytes finished(_Layout layout, policy):
    # The block with what decisions say, and with its header.
    cdef _Block block = layout.block
    cdef Py_ssize_t count = len(policy.rules)
    cdef int32_t place = block.reserve((count + 1) * (sizeof(Row) >> 2)), at, size
    cdef Row *row
    cdef bint portable = True
    cdef Header *header
    for number, rule in enumerate(policy.rules):
        name = rule.name.encode(errors="surrogatepass")
        at, size = block.text(name), len(name)
        row = <Row *>(block.data + place) + <Py_ssize_t>number
        row.risk_level, row.approval = rule.risk_level, APPROVALS.index(rule.approval)
        row.name, row.name_bytes = at, size
        if layout.conditional[number] and portable:
            try:
                text = json.dumps(rule.conditions).encode()
            except (TypeError, ValueError):
                portable = False
                continue
            at, size = block.text(text), len(text)
            row = <Row *>(block.data + place) + <Py_ssize_t>number
            row.conditions, row.conditions_bytes = at, size
    row = <Row *>(block.data + place) + count
    row.risk_level = policy.default_risk_level
    row.approval = APPROVALS.index(policy.default_approval)
    header = <Header *>block.data
    memcpy(header.magic, b"AEGISPOL", 8)
    header.format, header.byte_order, header.words = FORMAT, BYTE_ORDER_MARK, block.size
    header.rules, header.root, header.decisions = count, layout.root, place
    header.conditionals, header.stamps = sum(layout.conditional), layout.stamps
    header.is_portable = portable
    return PyBytes_FromStringAndSize(<const char *>block.data, block.size * 4)
