"""Finds the rules whose patterns match, by an image of plain data.

Nothing here touches a Python object, allocates or recurses deeper than there are fields.
"""

from aegis_core.image cimport (
    ANY_TEXT, BACKWARD, Candidate, Entry, FIELDS, FORWARD, Group, Index, LAST_CHARACTER, NFA_NARROW,
    NFA_CELLS, Node, Part, Pattern, SCAN, Slot, INFIXES, Infixes,
)
from aegis_core.patterns cimport ANY_ONE, ANY_RUN, EXACT, FIRST_SET, FIXED
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define GOLDEN 0x9E3779B1u
    #define lowest_bit(bits) __builtin_ctzll(bits)
    #define bits_in(bits) __builtin_popcountll(bits)
    """
    const uint32_t GOLDEN
    int lowest_bit(uint64_t bits) noexcept nogil
    int bits_in(uint64_t bits) noexcept nogil

ctypedef fused char_t:
    uint8_t
    uint16_t
    uint32_t

ctypedef fused literal_t:
    uint8_t
    uint32_t


cdef void search(Search *s, int32_t root) noexcept nogil:
    # SAFETY: the image was built by `layout`, or its digest was checked; offsets lie inside it.
    cdef const Index *index = <const Index *>(s.base + root)
    cdef const Part *part = <const Part *>(index + 1)
    cdef const Part *end = part + index.parts
    while part < end and part.least < s.limit:
        if part.kind == SCAN:
            scan(s, part.place)
        elif s.texts[part.field].kind == 1:
            search_part[uint8_t](s, part, <const uint8_t *>s.texts[part.field].data,
                                 s.texts[part.field].length)
        elif s.texts[part.field].kind == 2:
            search_part[uint16_t](s, part, <const uint16_t *>s.texts[part.field].data,
                                  s.texts[part.field].length)
        else:
            search_part[uint32_t](s, part, <const uint32_t *>s.texts[part.field].data,
                                  s.texts[part.field].length)
        part += 1


cdef void search_part(
    Search *s, const Part *part, const char_t *data, Py_ssize_t length
) noexcept nogil:
    cdef const uint8_t *narrow = NULL
    cdef const uint32_t *wide = NULL
    cdef Py_ssize_t left = length - part.offset
    if part.kind == FORWARD:
        if left < 0:
            return
        if part.wide:
            walk(s, part.place, data + part.offset, left, 1, wide)
        else:
            walk(s, part.place, data + part.offset, left, 1, narrow)
    elif part.kind == BACKWARD:
        if left < 0:
            return
        if part.wide:
            walk(s, part.place, data + left - 1, left, -1, wide)
        else:
            walk(s, part.place, data + left - 1, left, -1, narrow)
    elif part.kind == INFIXES:
        find_infixes(s, <const Infixes *>(s.base + part.place), data, length)
    else:
        simulate(s, part.place, data, length)


cdef inline void found(Search *s, int32_t place) noexcept nogil:
    if place > 0:
        scan(s, place)
    elif place < 0:
        search(s, -place)


cdef void scan(Search *s, int32_t place) noexcept nogil:
    cdef int32_t count = s.base[place]
    cdef const Candidate *candidate = <const Candidate *>(s.base + place + 1)
    cdef const Candidate *end = candidate + count
    s.work += count
    while candidate < end and candidate.key < s.limit:
        consider(s, candidate)
        candidate += 1


cdef inline void consider(Search *s, const Candidate *candidate) noexcept nogil:
    cdef int field
    cdef const Pattern *pattern
    for field in range(FIELDS):
        if candidate.check[field]:
            pattern = <const Pattern *>(s.base + candidate.check[field])
            if differs_at_once(pattern, &s.texts[field]) or not holds(pattern, &s.texts[field]):
                return
    if candidate.key & 1:
        s.pending[s.pendings] = candidate.key
        s.pendings += 1
    else:
        s.limit = candidate.key


# --- tries ---------------------------------------------------------------------------------------


cdef void walk(
    Search *s, int32_t place, const char_t *data, Py_ssize_t left, Py_ssize_t step,
    const literal_t *_
) noexcept nogil:
    # `data` is the next character, `left` how many there are, `step` leads from one to the next.
    cdef const Node *node = <const Node *>(s.base + place)
    cdef const literal_t *label
    cdef const literal_t *firsts
    cdef const int32_t *places
    cdef int32_t i
    while node.least < s.limit:
        label = <const literal_t *>(node + 1)
        if node.label:
            if left < node.label:
                return
            if not begins(data, label, node.label, left, step):
                return
            data += node.label * step
            left -= node.label
        if node.through:
            found(s, node.through)
        if left == 0:
            if node.ending:
                found(s, node.ending)
            return
        if literal_t is uint8_t:
            if char_t is not uint8_t:
                if data[0] > 255:
                    return
            firsts = label + ((node.label + 3) & ~3)
            places = <const int32_t *>(firsts + ((node.children + 7) & ~7))
            i = place_of_byte(<const uint8_t *>firsts, node.children, <uint8_t>data[0])
        else:
            firsts = label + node.label
            places = <const int32_t *>(firsts + node.children)
            i = place_of(<const uint32_t *>firsts, node.children, data[0])
        if i < 0:
            return
        node = <const Node *>(s.base + places[i])
        data += step
        left -= 1


cdef inline bint begins(
    const char_t *data, const literal_t *label, int32_t length, Py_ssize_t left, Py_ssize_t step
) noexcept nogil:
    cdef int32_t i
    cdef uint64_t one, other
    if char_t is uint8_t and literal_t is uint8_t:
        # SAFETY: eight bytes of the text are there, and eight of the image, whose rows come last.
        if step == 1 and 0 < length <= 8 <= left:
            memcpy(&one, data, 8)
            memcpy(&other, label, 8)
            return (one ^ other) << (64 - 8 * length) == 0
    for i in range(length):
        if data[i * step] != label[i]:
            return False
    return True


cdef inline int32_t place_of_byte(
    const uint8_t *bytes, int32_t count, uint8_t byte
) noexcept nogil:
    # Eight at a time: the lowest byte of `differ` that is zero is the first that is equal.
    cdef uint64_t differ, zero
    cdef int32_t i = 0
    while i < count:
        memcpy(&differ, bytes + i, 8)
        differ ^= byte * <uint64_t>0x0101010101010101
        zero = (differ - <uint64_t>0x0101010101010101) & ~differ & <uint64_t>0x8080808080808080
        if zero:
            # INVARIANT: what fills the last eight up is equal to a character before it.
            return i + (lowest_bit(zero) >> 3)
        i += 8
    return -1


cdef inline int32_t place_of(
    const uint32_t *characters, int32_t count, uint32_t character
) noexcept nogil:
    cdef int32_t high = count
    cdef int32_t low = narrowed(characters, &high, character, 8)
    while low < high:
        if characters[low] == character:
            return low
        low += 1
    return -1


cdef inline int32_t narrowed(
    const uint32_t *starts, int32_t *high, uint32_t character, int32_t few
) noexcept nogil:
    # Where those few of the first `high` begin, the last of which that is not behind it is the one.
    cdef int32_t low = 0, middle
    while high[0] - low > few:
        middle = (low + high[0]) >> 1
        if starts[middle] <= character:
            low = middle
        else:
            high[0] = middle
    return low


# --- one pattern ---------------------------------------------------------------------------------


cdef inline bint differs_at_once(const Pattern *pattern, const Text *text) noexcept nogil:
    # Most candidates that fail do so in their length or their first character.
    return text.length < pattern.least_length or (
        pattern.head and text.kind == 1 and not pattern.wide
        and (<const uint8_t *>text.data)[0] != (<const uint8_t *>(pattern + 1))[0]
    )


cdef bint holds(const Pattern *pattern, const Text *text) noexcept nogil:
    # SAFETY: the caller has seen that the text is at least `least_length` long.
    if (
        (pattern.shape == EXACT or pattern.shape == FIXED)
        and text.length != pattern.least_length
    ):
        return False
    if text.kind == 1:
        return pattern_matches[uint8_t](pattern, <const uint8_t *>text.data, text.length)
    if text.kind == 2:
        return pattern_matches[uint16_t](pattern, <const uint16_t *>text.data, text.length)
    return pattern_matches[uint32_t](pattern, <const uint32_t *>text.data, text.length)


cdef bint pattern_matches(
    const Pattern *pattern, const char_t *data, Py_ssize_t length
) noexcept nogil:
    # SAFETY: `length` is at least `least_length`, which covers the head and the tail together.
    cdef const uint32_t *wide = <const uint32_t *>(pattern + 1)
    cdef const uint8_t *narrow = <const uint8_t *>(pattern + 1)
    cdef const int32_t *steps
    if pattern.wide:
        if not same(data, wide, pattern.head):
            return False
        if not same(data + length - pattern.tail, wide + pattern.head, pattern.tail):
            return False
        steps = <const int32_t *>(wide + pattern.head + pattern.tail)
    else:
        if not begins(data, narrow, pattern.head, length, 1):
            return False
        if not same(data + length - pattern.tail, narrow + pattern.head, pattern.tail):
            return False
        steps = <const int32_t *>(narrow + ((pattern.head + pattern.tail + 3) & ~3))
    if pattern.steps == 0:
        return True
    return steps_match(steps, pattern.steps, data + pattern.head,
                       length - pattern.head - pattern.tail)


cdef inline bint same(
    const char_t *data, const literal_t *literal, Py_ssize_t length
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if data[i] != literal[i]:
            return False
    return True


cdef bint steps_match(
    const int32_t *steps, int32_t count, const char_t *data, Py_ssize_t length
) noexcept nogil:
    # Every run takes as little as it can and is only ever widened at the last one met, so the
    # time is at most `count * length`.
    cdef Py_ssize_t i = 0, resume = 0
    cdef int32_t at = 0, run = -1, step
    while i < length:
        if at < count:
            step = steps[at]
            if step == ANY_RUN:
                if at + 1 == count:
                    return True
                run = at
                resume = i
                at += 1
                continue
            if step >= 0:
                if <uint32_t>step == data[i]:
                    at += 1
                    i += 1
                    continue
            elif takes(steps + count, step, data[i]):
                at += 1
                i += 1
                continue
        if run < 0:
            return False
        resume += 1
        at = run + 1
        step = steps[at]
        if step >= 0:   # no other place can begin what follows the run
            while resume < length and <uint32_t>step != data[resume]:
                resume += 1
        i = resume
    while at < count and steps[at] == ANY_RUN:
        at += 1
    return at == count


cdef inline bint takes(const int32_t *sets, int32_t step, uint32_t character) noexcept nogil:
    # A set is: negated?, number of ranges, then low and high of each.
    cdef const int32_t *ranges
    cdef int32_t i
    if step == ANY_ONE:
        return character != ANY_TEXT
    if character > LAST_CHARACTER:
        return False
    ranges = sets + (FIRST_SET - step)
    for i in range(ranges[1]):
        if <uint32_t>ranges[2 + 2 * i] <= character <= <uint32_t>ranges[3 + 2 * i]:
            return not ranges[0]
    return ranges[0]


# --- infixes -------------------------------------------------------------------------------------


cdef uint32_t gram_of(const uint32_t *data, int32_t length) noexcept nogil:
    return gram_at(data, length)


cdef inline uint32_t gram_at(const char_t *data, int32_t length) noexcept nogil:
    # The bytes of narrow characters as they lie in memory; what wide ones have besides is mixed in.
    cdef uint32_t gram = 0
    cdef int32_t i
    for i in range(length):
        gram ^= (<uint32_t>data[i] & 0xFF) << (8 * i)
        if char_t is not uint8_t:
            gram ^= ((<uint32_t>data[i] >> 8) * GOLDEN) << (i & 3)
    return gram


cdef void find_infixes(
    Search *s, const Infixes *infixes, const char_t *data, Py_ssize_t length
) noexcept nogil:
    cdef const uint32_t *filter = <const uint32_t *>(s.base + infixes.filter)
    cdef Py_ssize_t at = 0
    cdef uint32_t gram, bit
    cdef int32_t size = infixes.gram, shift = infixes.filter_shift
    while at + size <= length:
        if char_t is uint8_t:
            if size == 4:
                memcpy(&gram, data + at, 4)
            else:
                gram = gram_at(data + at, size)
        else:
            gram = gram_at(data + at, size)
        bit = (gram * GOLDEN) >> shift
        if filter[bit >> 5] >> (bit & 31) & 1:
            meet(s, infixes, gram, data, length, at)
        at += infixes.stride


cdef void meet(
    Search *s, const Infixes *infixes, uint32_t gram, const char_t *data, Py_ssize_t length,
    Py_ssize_t at
) noexcept nogil:
    # INVARIANT: the table is never full, so an empty slot ends every search.
    cdef const Slot *slots = <const Slot *>(s.base + infixes.table)
    cdef uint32_t mask = (<uint32_t>1 << (32 - infixes.table_shift)) - 1
    cdef uint32_t i = (gram * GOLDEN) >> infixes.table_shift
    cdef const Entry *entry
    cdef const Entry *end
    while slots[i].bucket and slots[i].gram != gram:
        i = (i + 1) & mask
    if not slots[i].bucket:
        return
    entry = <const Entry *>(s.base + slots[i].bucket + 1)
    end = entry + s.base[slots[i].bucket]
    s.work += end - entry
    while entry < end:
        # A infix's rules do not depend on where it stands, so they are looked at once.
        if (
            entry.least < s.limit and s.stamps[entry.stamp] != s.epoch
            and entry.back <= at and at - entry.back + entry.length <= length
        ):
            if entry.wide:
                if same(data + at - entry.back, <const uint32_t *>(s.base + entry.text),
                        entry.length):
                    s.stamps[entry.stamp] = s.epoch
                    found(s, entry.found)
            elif same(data + at - entry.back, <const uint8_t *>(s.base + entry.text),
                      entry.length):
                s.stamps[entry.stamp] = s.epoch
                found(s, entry.found)
        entry += 1


# --- patterns without a telling literal -----------------------------------------------------------


cdef void simulate(
    Search *s, int32_t place, const char_t *data, Py_ssize_t length
) noexcept nogil:
    cdef const int32_t *groups = s.base + place + 1
    cdef int32_t i
    for i in range(s.base[place]):
        if s.base[groups[i]] >= s.limit:
            return
        simulate_group(s, <const Group *>(s.base + groups[i]), data, length)


cdef void simulate_group(
    Search *s, const Group *group, const char_t *data, Py_ssize_t length
) noexcept nogil:
    cdef const uint16_t *classes = <const uint16_t *>(s.base + group.classes)
    cdef const uint64_t *rows = <const uint64_t *>(s.base + group.rows)
    cdef const uint64_t *loops = <const uint64_t *>(s.base + group.loops)
    cdef const uint64_t *accepting = <const uint64_t *>(s.base + group.accepting)
    cdef const Candidate *candidates = <const Candidate *>(s.base + group.candidates)
    cdef const int32_t *first = s.base + group.first
    cdef const uint64_t *row
    cdef const Candidate *candidate
    cdef uint64_t states[NFA_CELLS]
    cdef uint64_t accepted
    cdef Py_ssize_t i
    cdef int32_t kind, cell
    memcpy(states, s.base + group.initial, sizeof(states))
    for i in range(length):
        if char_t is uint8_t:
            kind = classes[data[i]]
        elif data[i] < NFA_NARROW:
            kind = classes[data[i]]
        else:
            kind = wide_class(s, group, data[i])
        row = rows + kind * NFA_CELLS
        for cell in range(NFA_CELLS):
            states[cell] = ((states[cell] << 1) & row[cell]) | (states[cell] & loops[cell])
    s.work += length
    for cell in range(NFA_CELLS):
        accepted = states[cell] & accepting[cell]
        while accepted:
            candidate = candidates + first[cell] + bits_in(
                accepting[cell] & ((accepted & -accepted) - 1)
            )
            if candidate.key >= s.limit:
                return
            consider(s, candidate)
            accepted &= accepted - 1


cdef int32_t wide_class(
    Search *s, const Group *group, uint32_t character
) noexcept nogil:
    # The range that a code point lies in: the last one that does not start behind it.
    cdef int32_t high = group.bounds
    cdef int32_t low = narrowed(
        <const uint32_t *>(s.base + group.starts), &high, character, 1
    )
    return (s.base + group.range_classes)[low]
