"""Lays rules out in an image of plain data: which one is filed where, tries, infixes, automata.

Each rule is filed once, under the literal of its patterns that the fewest other rules share. Where
many share even that one, those that do are filed again by their other fields.
"""

from aegis_core.automata cimport is_simulated, rows_of, states_of
from aegis_core.image cimport (
    BACKWARD, Image, FIELDS, FORWARD, Group, Header, NFA, NFA_NARROW, NFA_CELLS, Node, Part, SCAN,
    INFIXES, Infixes, is_wide, write_literal,
)
from aegis_core.grams cimport grams_of
from aegis_core.patterns cimport (
    ANY, ANY_ONE, ANY_RUN, FIRST_SET, Glob, HEAD, MAX_OFFSET, TAIL, WHOLE, INFIX, whole_steps,
)
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.unicode cimport PyUnicode_READ_CHAR
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

__all__ = []

cdef extern from *:
    """
    #define GOLDEN 0x9E3779B1u
    """
    const uint32_t GOLDEN

cdef enum:
    MANY = 16               # rules under one key from which on another way is looked for
    MAX_LIST = 8        # from which on a list is filed again by the other fields
    FEWEST_SIMULATED = 4    # below which patterns are rather checked one after the other
    MAX_STRIDE = 8
    FILTER_BITS = 16        # for each gram
    TRIE_COST = 4           # what walking one more trie costs, in candidates
    INFIX_COST = 16         # what looking for infixes costs more than walking a trie, in candidates


cdef class Layout:
    # Files rules in an image.

    def __init__(self, list globs, list conditional):
        self.image = Image()
        self.image.reserve(sizeof(Header) >> 2)
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
            forward, backward, infixes = {}, {}, {}
            for kind, of_kind in enumerate((forward, forward, backward, infixes)):
                for literal, of_literal in filed.get(4 * field + kind, {}).items():
                    lists = of_kind.setdefault(literal, ([], []))
                    (<list>lists[kind == WHOLE]).extend(of_literal)
            left = free & ~(1 << field)
            for kind, lists in ((FORWARD, forward), (BACKWARD, backward)):
                if lists:
                    wide = any([is_wide(literal) for literal in lists])
                    parts.append((kind, field, wide, 0, self.trie(lists, wide, left)))
            for offset in range(1, MAX_OFFSET + 1):
                for of_key, kind in ((HEAD, FORWARD), (TAIL, BACKWARD)):
                    placed = filed.get(16 * offset + 4 * field + of_key)
                    if placed:
                        lists = {literal: (rules_of, []) for literal, rules_of in placed.items()}
                        wide = any([is_wide(literal) for literal in lists])
                        parts.append((kind, field, wide, offset, self.trie(lists, wide, left)))
            if infixes:
                for place in self.infixes(infixes, left):
                    parts.append((INFIXES, field, 0, 0, place))
            if to_simulate[field]:
                parts.append((NFA, field, 0, 0, self.nfa(to_simulate[field], field)))
        if rest:
            parts.append((SCAN, 0, 0, 0, self.candidates(rest)))
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
                    # Up to three are as good as one; infixes cost more to be found, and so does a
                    # further trie.
                    cost = 4 * (3 if count < 3 else count) + (<int>(<tuple>key)[0] & 3)
                    if <int>(<tuple>key)[0] & 3 == INFIX:
                        cost += 4 * INFIX_COST
                    elif <int>(<tuple>key)[0] >> 4:
                        cost += 4 * TRIE_COST
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
        cdef Glob glob = <Glob>(<list>self.globs[rule])[key >> 2 & 3]
        if not glob.steps or (key & 3 == INFIX and glob.is_infix):
            self.seen[rule] |= 1 << (key >> 2 & 3)

    # --- what holds candidates

    cdef int32_t index_of(self, list parts) except -1:
        cdef int32_t place = self.image.reserve(1 + len(parts) * (sizeof(Part) >> 2))
        cdef Part *part = <Part *>(self.image.data + place + 1)
        self.image.data[place] = len(parts)
        for least, kind, field, wide, offset, of_part in sorted(
            [(self.least_in_part(kind, of_part), kind, field, wide, offset, of_part)
             for kind, field, wide, offset, of_part in parts]
        ):
            part.least, part.kind, part.field, part.wide, part.offset, part.place = (
                least, kind, field, wide, offset, of_part
            )
            part += 1
        return place

    cdef int32_t least_in_part(self, int kind, int32_t place):
        cdef const int32_t *data = self.image.data + place
        if kind == SCAN:
            return data[1]
        if kind == NFA:     # its groups are in order
            return self.image.data[data[1]]
        return data[0]

    cdef int32_t least_in(self, int32_t found):
        if found > 0:
            return self.image.data[found + 1]
        return (<Part *>(self.image.data - found + 1)).least

    cdef int32_t found(self, list rules, int free) except? -1:
        # A list, or an index by the other fields where it would be long.
        if not rules:
            return 0
        if len(rules) > MAX_LIST:
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
        cdef int32_t *cells
        place = self.image.reserve(1 + len(rules) * (1 + FIELDS))
        cells = self.image.data + place
        cells[0] = len(rules)
        cells += 1
        for rule, checks in zip(rules, all_checks):
            cells[0] = 2 * rule + self.conditional[rule]
            cells[1], cells[2], cells[3] = checks
            cells += 1 + FIELDS
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
        cdef int32_t place = self.image.reserve(6 + (literals if wide else (literals + 3) >> 2))
        cdef int32_t *cells = self.image.data + place
        cdef list sets = []
        cells[0], cells[1], cells[2] = glob.shape, wide, glob.least_length
        cells[3], cells[4], cells[5] = len(glob.head), len(glob.tail), len(glob.steps)
        write_literal(cells + 6, glob.head + glob.tail, wide)
        if glob.steps:
            at = self.image.reserve(len(glob.steps))
            for step in glob.steps:
                if type(step) is tuple:
                    self.image.data[at] = FIRST_SET - len(sets)
                    sets.extend(step)
                else:
                    self.image.data[at] = step
                at += 1
            at = self.image.reserve(len(sets))
            for cell in sets:
                self.image.data[at] = cell
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
            place = self.image.reserve(
                (sizeof(Node) >> 2)
                + ((depth - start) + count if wide
                   else ((depth - start + 3) >> 2) + 2 * ((count + 7) >> 3))
                + count
            )
            if slot:
                self.image.data[slot] = place
            node = <Node *>(self.image.data + place)
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
                    self.image.data[firsts + i] = char
                else:
                    (<uint8_t *>(self.image.data + firsts))[i] = <uint8_t>char
                stack.append((low, ends[i], depth + 1, slot + i))
                low = ends[i]
            if not wide and count:
                # INVARIANT: the rest of the last eight are like the first, and come behind it.
                memset(<uint8_t *>(self.image.data + firsts) + count,
                       (<uint8_t *>(self.image.data + firsts))[0], -count & 7)
            nodes.append((place, slot))
        for place, slot in reversed(nodes):
            node = <Node *>(self.image.data + place)
            node.least = 2**31 - 1
            for i in range(node.children):
                node.least = min(node.least, self.image.data[self.image.data[slot + i]])
            if node.through:
                node.least = min(node.least, self.least_in(node.through))
            if node.ending:
                node.least = min(node.least, self.least_in(node.ending))
        return nodes[0][0]

    # --- infixes

    cdef list infixes(self, dict lists, int free):
        # Long infixes apart from short ones, for these must be looked for at every place.
        by_length = [{}, {}, {}, {}, {}]
        for infix, (rules, _) in lists.items():
            length = len(infix)
            (<dict>by_length[length - 1 if length < 4 else 3 if length < 8 else 4])[infix] = rules
        return [self.infixes_alike(of_length, free) for of_length in by_length if of_length]

    cdef int32_t infixes_alike(self, dict lists, int free) except -1:
        cdef Py_ssize_t shortest = min([len(infix) for infix in lists])
        cdef int32_t size = min(shortest, 4), place, bucket
        cdef dict grams
        cdef Infixes *infixes
        cdef uint32_t bit, gram
        stride = min(shortest - size + 1, MAX_STRIDE)
        while True:
            grams = grams_of(lists, size, stride)
            if stride == 1 or max([len(of_gram) for of_gram in grams.values()]) <= MANY:
                break
            stride //= 2
        entries = {}
        for infix, rules in lists.items():
            of_infix = self.found(rules, free)
            wide = is_wide(infix)
            entries[infix] = (
                self.least_in(of_infix), self.stamps, len(infix), wide,
                self.image.literal(infix, wide), of_infix,
            )
            self.stamps += 1
        table_bits = max(4, (2 * len(grams)).bit_length())
        filter_bits = max(5, (FILTER_BITS * len(grams)).bit_length())
        place = self.image.reserve(sizeof(Infixes) >> 2)
        infix_table = self.image.reserve(2 << table_bits)
        infix_filter = self.image.reserve(1 << (filter_bits - 5))
        infixes = <Infixes *>(self.image.data + place)
        infixes.gram, infixes.stride = size, stride
        infixes.table, infixes.table_shift = infix_table, 32 - table_bits
        infixes.filter, infixes.filter_shift = infix_filter, 32 - filter_bits
        infixes.least = min([entry[0] for entry in entries.values()])
        for gram, of_gram in grams.items():
            bit = (gram * GOLDEN) >> (32 - filter_bits)
            self.image.data[infix_filter + (bit >> 5)] |= <int32_t>(<uint32_t>1 << (bit & 31))
            bucket = self.image.reserve(1 + 7 * len(of_gram))
            self.image.data[bucket] = len(of_gram)
            bit = (gram * GOLDEN) >> (32 - table_bits)
            while self.image.data[infix_table + 2 * bit + 1]:
                bit = (bit + 1) & ((1 << table_bits) - 1)
            self.image.data[infix_table + 2 * bit] = <int32_t>gram
            self.image.data[infix_table + 2 * bit + 1] = bucket
            bucket += 1
            for infix, back in of_gram:
                least, stamp, length, wide, text, of_infix = entries[infix]
                for value in (least, stamp, back, length, wide, text, of_infix):
                    self.image.data[bucket] = value
                    bucket += 1
        return place

    # --- automata

    cdef int32_t nfa(self, list rules, int field) except -1:
        groups = []
        group = []
        cdef Py_ssize_t cell = 0, bit = 0, states
        for rule in rules:
            glob = <Glob>(<list>self.globs[rule])[field]
            states = states_of(glob)
            if bit + states > 64:
                cell, bit = cell + 1, 0
            if cell == NFA_CELLS:
                groups.append(group)
                group, cell, bit = [], 0, 0
            group.append((rule, glob, 64 * cell + bit))
            bit += states
        groups.append(group)
        for rule in rules:
            self.seen[rule] |= 1 << field
        places = [self.simulated(members) for members in groups]
        cdef int32_t place = self.image.reserve(1 + len(places)), i
        self.image.data[place] = len(places)
        for i in range(len(places)):
            self.image.data[place + 1 + i] = places[i]
        return place

    cdef int32_t simulated(self, list members) except -1:
        initial = loops = accepting = any_one = 0
        literals, sets = {}, []
        firsts = [0] * NFA_CELLS
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
        cdef int32_t classes = self.image.reserve(NFA_NARROW >> 1)
        cdef int32_t wide_starts = self.image.reserve(len(of_wide))
        cdef int32_t wide_classes = self.image.reserve(len(of_wide))
        cdef int32_t first = self.image.reserve(NFA_CELLS)
        cdef int32_t place = self.image.reserve(sizeof(Group) >> 2), i
        cdef Group *made = <Group *>(self.image.data + place)
        for i in range(NFA_NARROW):
            (<uint16_t *>(self.image.data + classes))[i] = narrow[i]
        for i in range(len(of_wide)):
            self.image.data[wide_starts + i], self.image.data[wide_classes + i] = of_wide[i]
        for i in range(NFA_CELLS):
            self.image.data[first + i] = firsts[i]
        made.least, made.candidates = self.image.data[candidates], candidates
        made.classes, made.bounds = classes, len(of_wide)
        made.starts, made.range_classes = wide_starts, wide_classes
        made.rows, made.loops, made.initial, made.accepting = (
            of_rows, of_loops, of_initial, of_accepting
        )
        made.first = first
        return place

    cdef int32_t bit_rows(self, list rows) except -1:
        cdef int32_t place = self.image.reserve(len(rows) * NFA_CELLS * 2, True)
        cdef int32_t at = place
        for row in rows:
            data = row.to_bytes(NFA_CELLS * 8, "little")
            memcpy(self.image.data + at, PyBytes_AS_STRING(data), NFA_CELLS * 8)
            at += NFA_CELLS * 2
        return place
