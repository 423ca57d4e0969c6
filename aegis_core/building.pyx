"""Makes the image of a policy: what its rules match, what they say, and a header.

Rules that an earlier one without conditions covers can never decide, and are left out.
"""

from aegis_core.image cimport BYTE_ORDER_MARK, Image, FORMAT, Header, Row
from aegis_core.coverage cimport globs_of, laid_out
from aegis_core.layout cimport Layout
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t
from libc.string cimport memcpy

import json

from aegis_core.model import Approval

__all__ = ["build"]

APPROVALS = tuple(Approval)


def build(policy, conditional):
    """Compile a policy's rules.

    Args:
        policy: The rules, all named, and the defaults.
        conditional: Of each rule: whether it has conditions.

    Returns:
        The image, as bytes; and for each rule that can never decide, by its number, the earlier
        one that covers it.

    Raises:
        ValueError: They cannot be laid out (over 2**31 cells).
    """
    cdef list flags = [1 if flag else 0 for flag in conditional]
    cdef list globs = globs_of(policy.rules)
    cdef dict covered = {}
    cdef Layout layout = laid_out(globs, flags, covered, None)
    if covered:
        live = [rule for rule in range(len(globs)) if rule not in covered]
        layout = Layout(globs, flags)
        layout.lay_out(live)
    return finished(layout, policy), covered


cdef bytes finished(Layout layout, policy):
    # The image with what decisions say, and with its header.
    cdef Image image = layout.image
    cdef Py_ssize_t count = len(policy.rules)
    cdef int32_t place = image.reserve((count + 1) * (sizeof(Row) >> 2)), at, size
    cdef Row *row
    cdef bint portable = True
    cdef Header *header
    for number, rule in enumerate(policy.rules):
        name = rule.name.encode(errors="surrogatepass")
        at, size = image.text(name), len(name)
        row = <Row *>(image.data + place) + <Py_ssize_t>number
        row.risk_level, row.approval = rule.risk_level, APPROVALS.index(rule.approval)
        row.name, row.name_bytes = at, size
        if layout.conditional[number] and portable:
            try:
                text = json.dumps(rule.conditions).encode()
            except (TypeError, ValueError):
                portable = False
                continue
            at, size = image.text(text), len(text)
            row = <Row *>(image.data + place) + <Py_ssize_t>number
            row.conditions, row.conditions_bytes = at, size
    row = <Row *>(image.data + place) + count
    row.risk_level = policy.default_risk_level
    row.approval = APPROVALS.index(policy.default_approval)
    header = <Header *>image.data
    memcpy(header.magic, b"AEGISPOL", 8)
    header.format, header.byte_order, header.cells = FORMAT, BYTE_ORDER_MARK, image.size
    header.rules, header.root, header.decisions = count, layout.root, place
    header.conditionals, header.stamps = sum(layout.conditional), layout.stamps
    header.is_portable = portable
    return PyBytes_FromStringAndSize(<const char *>image.data, image.size * 4)
