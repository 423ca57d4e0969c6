"""Globs, parsed: what `fnmatch.fnmatchcase` of CPython 3.11 means by them."""

from cpython.unicode cimport PyUnicode_READ_CHAR

__all__ = ["parse"]

cdef enum:
    MAX_INFIXES = 8      # by which a rule may be filed


cdef class Glob:
    """A parsed pattern.

    Attributes:
        shape: Its `Shape`.
        head: The literal that it begins with.
        tail: The literal that it ends with.
        steps: Between them: code points, `ANY_ONE`, `ANY_RUN`, and a tuple for a set: whether it is
            negated, the number of its ranges, and the low and high end of each.
        least_length: No shorter text matches.
        is_infix: Whether it is `*infix*`.
    """

    cdef list keys(self, int field):
        # Every (16 * offset + 4 * field + kind, literal) that a rule with this glob there can be
        # filed under.
        cdef list keys
        if self.keys_of is None:
            self.keys_of = [None, None, None]
        keys = self.keys_of[field]
        if keys is None:
            keys = self.keys_of[field] = []
            if self.shape == EXACT:
                keys.append((4 * field + WHOLE, self.head))
            elif self.shape != ANY:
                if self.head:
                    keys.append((4 * field + HEAD, self.head))
                if self.tail:
                    keys.append((4 * field + TAIL, self.tail[::-1]))
                keys.extend([
                    (16 * offset + 4 * field + HEAD, literal)
                    for offset, literal in _placed(len(self.head), self.steps)
                ])
                if self.shape != FIXED:
                    keys.extend([
                        (16 * offset + 4 * field + TAIL, literal)
                        for offset, literal in _placed(len(self.tail), self.steps[::-1])
                    ])
                keys.extend([(4 * field + INFIX, infix) for infix in _infixes(self.steps)])
        return keys

    def __repr__(self):
        return f"Glob({self.shape}, {self.head!r}, {self.steps}, {self.tail!r})"


cdef Glob parsed(str pattern, dict known):
    # `known` holds what was parsed before.
    cdef object found = known.get(pattern)
    if found is None:
        found = known[pattern] = parse(pattern)
    return <Glob>found


def parse(pattern):
    """Parse a glob.

    Args:
        pattern: The pattern.

    Returns:
        The `Glob`.
    """
    cdef Glob glob = Glob.__new__(Glob)
    cdef Py_ssize_t start, end
    cdef tuple steps
    cdef str text = pattern
    glob.head = glob.tail = ""
    glob.steps = ()
    if "?" not in text and "[" not in text:
        # The common ones, without a look at each character.
        start = text.find("*")
        end = text.rfind("*") + 1
        if start < 0:
            glob.shape = EXACT
            glob.head = text
        else:
            glob.head = text[:start]
            glob.tail = text[end:]
            if end - start > 1:
                glob.steps = _steps(text[start:end])
    else:
        steps = _steps(text)
        start = 0
        end = len(steps)
        while start < end and _is_literal(steps[start]):
            start += 1
        while end > start and _is_literal(steps[end - 1]):
            end -= 1
        glob.head = _joined(steps[:start])
        if start == len(steps):
            glob.shape = EXACT
        else:
            glob.tail = _joined(steps[end:])
            glob.steps = steps[start:end]
    if glob.shape != EXACT:
        if glob.steps == () or glob.steps == (ANY_RUN,):
            if not glob.tail:
                glob.shape = PREFIX if glob.head else ANY
            elif not glob.head:
                glob.shape = SUFFIX
            else:
                glob.shape = GENERAL
            glob.steps = (ANY_RUN,) if glob.shape == GENERAL else ()
        else:
            glob.shape = GENERAL if ANY_RUN in glob.steps else FIXED
    glob.least_length = len(glob.head) + len(glob.tail)
    for step in glob.steps:
        glob.least_length += step != ANY_RUN
    glob.is_infix = (
        len(glob.steps) > 2 and glob.steps[0] == ANY_RUN and glob.steps[-1] == ANY_RUN
        and not glob.head and not glob.tail
        and all([_is_literal(step) for step in glob.steps[1:-1]])
    )
    return glob


cdef list whole_steps(Glob glob):
    # Of a glob of any shape, with its head and tail.
    return [*map(ord, glob.head), *glob.steps, *map(ord, glob.tail)]


cdef bint _is_literal(object step):
    return type(step) is int and step >= 0


cdef str _joined(tuple steps):
    return "".join([chr(step) for step in steps])


cdef list _placed(Py_ssize_t offset, tuple steps):
    # The literal runs before the first `*`, and where each of them begins: there and nowhere else.
    cdef list placed = []
    cdef list run = []
    for step in (*steps, ANY_RUN):
        if _is_literal(step):
            run.append(chr(step))
            offset += 1
            continue
        if run and offset - len(run) <= MAX_OFFSET:
            placed.append((offset - len(run), "".join(run)))
        if step == ANY_RUN or offset > MAX_OFFSET:
            break
        run = []
        offset += 1
    return placed


cdef list _infixes(tuple steps):
    # The literal runs, the longest first; of many the first ones.
    cdef list infixes = []
    cdef list run = []
    for step in (*steps, ANY_RUN):
        if _is_literal(step):
            run.append(chr(step))
        elif run:
            infix = "".join(run)
            if infix not in infixes:
                infixes.append(infix)
            run = []
            if len(infixes) == MAX_INFIXES:
                break
    infixes.sort(key=len, reverse=True)
    return infixes


cdef tuple _steps(str pattern):
    cdef list steps = []
    cdef Py_ssize_t at = 0, end
    cdef Py_UCS4 char
    while at < len(pattern):
        char = PyUnicode_READ_CHAR(pattern, at)
        at += 1
        if char == u"*":
            if not steps or steps[-1] != ANY_RUN:
                steps.append(ANY_RUN)
        elif char == u"?":
            steps.append(ANY_ONE)
        elif char == u"[":
            # A bracket right behind the opening one (or its `!`) belongs to the set.
            end = pattern.find("]", at + 1 + pattern.startswith("!", at))
            if end < 0:
                steps.append(<int>char)
            else:
                steps.append(_set(pattern[at:end]))
                at = end + 1
        else:
            steps.append(<int>char)
    return tuple(steps)


cdef tuple _set(str body):
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
