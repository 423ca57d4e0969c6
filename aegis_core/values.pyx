"""The values that are made in great numbers: actions, what is decided about them, rules.

They are extension types because making an action costs more than deciding about it when it is an
object of Python's own. To Python's users they are frozen dataclasses: `dataclasses.replace`,
`fields` and `asdict` work, they can be matched, pickled and subclassed.
"""

cimport cython

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

import json
from dataclasses import FrozenInstanceError, field, make_dataclass
from inspect import signature

from aegis_core.model import Approval, RiskLevel

__all__ = ["Action", "Decision", "PolicyDecision", "PolicyRule", "plain_rules"]

_BLOCK = Approval.BLOCK
_NOT_GIVEN = object()

# What `dataclasses` and `inspect` want to know about a class.
_ACTION = make_dataclass(
    "Action",
    [
        ("type", "str"),
        ("target", "str", ""),
        ("params", "Mapping[str, Any]", field(default_factory=dict)),
        ("description", "str", ""),
        ("agent_id", "str", ""),
        ("session_id", "str", ""),
        ("parent_agent_id", "str", ""),
        ("chain_id", "str", ""),
        ("chain_depth", "int", 0),
    ],
    frozen=True,
)
_POLICY_RULE = make_dataclass(
    "PolicyRule",
    [
        ("match_type", "str", "*"),
        ("match_target", "str", "*"),
        ("match_agent", "str", "*"),
        ("risk_level", "RiskLevel", RiskLevel.MEDIUM),
        ("approval", "Approval", Approval.APPROVE),
        ("name", "str", ""),
        ("conditions", "Mapping[str, Any]", field(default_factory=dict)),
    ],
    frozen=True,
)
_POLICY_DECISION = make_dataclass(
    "PolicyDecision",
    [
        ("action", "Action"),
        ("risk_level", "RiskLevel"),
        ("approval", "Approval"),
        ("matched_rule", "str", ""),
        ("error", "str | None", None),
    ],
    frozen=True,
)


@cython.final
cdef class _Field:
    # A field of a value, which is set only while a subclass's `__init__` sets it.
    cdef:
        Py_ssize_t index
        str name

    def __init__(self, index, name):
        self.index = index
        self.name = name

    def __get__(self, value, owner):
        if value is None:
            return self
        cdef tuple fields = (<Value?>value).fields()
        if fields is None or self.index >= len(fields):     # not set yet, or of another class
            raise AttributeError(self.name)
        return fields[self.index]

    def __set__(self, value, member):
        cdef Value of = <Value?>value
        if of.is_frozen:
            raise FrozenInstanceError(f"cannot assign to field {self.name!r}")
        cdef tuple values = of.values or (None,) * len(of.__dataclass_fields__)
        of.values = (*values[:self.index], member, *values[self.index + 1:])

    def __delete__(self, value):
        raise FrozenInstanceError(f"cannot delete field {self.name!r}")


cdef class Value:
    # What a frozen dataclass does, for the extension types below.
    #
    # Invariant: no field changes once `is_frozen`. The `__init__` of a frozen dataclass that is a
    # subclass does not call the one here, but sets field by field.

    cdef tuple fields(self):
        return self.values

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self.fields() == (<Value>other).fields()

    def __hash__(self):
        return hash(self.fields())

    def __repr__(self):
        members = zip(self.__match_args__, self.fields() or ())
        shown = ", ".join([f"{name}={member!r}" for name, member in members])
        return f"{type(self).__qualname__}({shown})"

    def __getstate__(self):
        return object.__getstate__(self)

    def __setstate__(self, state):
        attributes, fields = state
        for name, member in fields.items():
            object.__setattr__(self, name, member)
        if attributes:
            self.__dict__.update(attributes)
        self.is_frozen = True


cdef class Action(Value):
    """What an agent says it is about to do.

    Args:
        type: The kind of operation, as in `delete`; not empty.
        target: What it is done to, as in `prod-db`.
        params: Its parameters: a JSON object.
        description: Free text for the audit.
        agent_id: Who wants it; matched by a rule's `agent` pattern.
        session_id: Groups audit records; "" is the server's own session.
        parent_agent_id: Who asked that agent to.
        chain_id: The delegation that it belongs to.
        chain_depth: How deep in that delegation.
    """

    __dataclass_fields__ = _ACTION.__dataclass_fields__
    __dataclass_params__ = _ACTION.__dataclass_params__
    __match_args__ = _ACTION.__match_args__
    __slots__ = _ACTION.__match_args__
    __signature__ = signature(_ACTION)

    type = _Field(0, "type")
    target = _Field(1, "target")
    params = _Field(2, "params")
    description = _Field(3, "description")
    agent_id = _Field(4, "agent_id")
    session_id = _Field(5, "session_id")
    parent_agent_id = _Field(6, "parent_agent_id")
    chain_id = _Field(7, "chain_id")
    chain_depth = _Field(8, "chain_depth")

    def __init__(self, type, target="", params=_NOT_GIVEN, description="", agent_id="",
                 session_id="", parent_agent_id="", chain_id="", chain_depth=0):
        if params is _NOT_GIVEN:
            params = {}
        self.values = (type, target, params, description, agent_id, session_id, parent_agent_id,
                       chain_id, chain_depth)
        self.is_frozen = True


cdef class PolicyRule(Value):
    """One rule: it matches where all three patterns and all conditions do.

    Args:
        match_type: Glob over the action's type.
        match_target: Glob over its target.
        match_agent: Glob over its agent; an action without one has the empty string.
        risk_level: The decision's risk level.
        approval: The decision's approval.
        name: What `matched_rule` says; "" becomes `rule_<index>` in a policy.
        conditions: As written in the policy, for example `{"param_gt": {"count": 100}}`.
    """

    __dataclass_fields__ = _POLICY_RULE.__dataclass_fields__
    __dataclass_params__ = _POLICY_RULE.__dataclass_params__
    __match_args__ = _POLICY_RULE.__match_args__
    __slots__ = _POLICY_RULE.__match_args__
    __signature__ = signature(_POLICY_RULE)

    match_type = _Field(0, "match_type")
    match_target = _Field(1, "match_target")
    match_agent = _Field(2, "match_agent")
    risk_level = _Field(3, "risk_level")
    approval = _Field(4, "approval")
    name = _Field(5, "name")
    conditions = _Field(6, "conditions")

    def __init__(self, match_type="*", match_target="*", match_agent="*",
                 risk_level=RiskLevel.MEDIUM, approval=Approval.APPROVE, name="",
                 conditions=_NOT_GIVEN):
        if conditions is _NOT_GIVEN:
            conditions = {}
        self.values = (match_type, match_target, match_agent, risk_level, approval, name,
                       conditions)
        self.is_frozen = True


cdef class PolicyDecision(Value):
    """A decision together with the action that it is about.

    Args:
        action: The action.
        risk_level: Its risk.
        approval: What has to happen before it may run.
        matched_rule: Name of the rule that decided, or `<default>`.
        error: Why the deciding rule could not be judged (the action is blocked then); else None.
    """

    __dataclass_fields__ = _POLICY_DECISION.__dataclass_fields__
    __dataclass_params__ = _POLICY_DECISION.__dataclass_params__
    __match_args__ = _POLICY_DECISION.__match_args__
    __slots__ = _POLICY_DECISION.__match_args__
    __signature__ = signature(_POLICY_DECISION)

    action = _Field(0, "action")
    risk_level = _Field(1, "risk_level")
    approval = _Field(2, "approval")
    matched_rule = _Field(3, "matched_rule")
    error = _Field(4, "error")

    def __init__(self, action, risk_level, approval, matched_rule="", error=None):
        self.values = (action, risk_level, approval, matched_rule, error)
        self.is_frozen = True

    @property
    def is_allowed(self):
        """False exactly where the policy blocks the action."""
        if self.decision is not None:
            return self.decision.is_allowed
        return self.approval is not _BLOCK

    cdef tuple fields(self):
        if self.values is None and self.decision is not None:
            self.values = (self.about, self.decision.risk_level, self.decision.approval,
                           self.decision.matched_rule, self.decision.error)
        return self.values


@cython.final
cdef class Decision:
    """What a policy says of an action. One object a rule, shared by all its decisions.

    Attributes:
        matched_rule: Name of the rule that decided, or `<default>`.
        risk_level: Risk of the action.
        approval: What has to happen before it may run.
        error: Why the deciding rule could not be judged (the action is blocked then); else None.
        is_allowed: False exactly where `approval` is `block`.
        fragment: The decision's members as JSON from `,"risk_level":` up to the closing brace, to
            be written after the action's own two.
    """

    def __init__(self, matched_rule, risk_level, approval, error=None):
        self.matched_rule = matched_rule
        self.risk_level = risk_level
        self.approval = approval
        self.error = error
        self.is_allowed = approval is not _BLOCK
        members = {
            "risk_level": risk_level.name,
            "approval": approval.value,
            "is_allowed": self.is_allowed,
            "matched_rule": matched_rule,
        }
        if error is not None:
            members["error"] = error
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
        # Half of a surrogate pair is not a character, but must not make a decision fail.
        self.fragment = b"," + text[1:].encode(errors="backslashreplace")

    @staticmethod
    def indeterminate(rule, reason):
        """The decision of a rule whose conditions cannot be judged: never an allow.

        Args:
            rule: The rule's name.
            reason: Why they cannot be judged.
        """
        return Decision(rule, RiskLevel.CRITICAL, _BLOCK, reason)

    @staticmethod
    def failed(rule, error):
        """The decision of a rule whose conditions raised an error."""
        try:
            message = str(error)
        except Exception:
            message = type(error).__name__  # its text cannot even be made
        return Decision.indeterminate(rule, f"the conditions failed: {message}")

    def __eq__(self, other):
        if type(other) is not Decision:
            return NotImplemented
        return self._compared() == (<Decision>other)._compared()

    def __hash__(self):
        return hash(self._compared())

    def __repr__(self):
        return (
            f"Decision(matched_rule={self.matched_rule!r}, risk_level={self.risk_level!r},"
            f" approval={self.approval!r}, error={self.error!r})"
        )

    def _compared(self):
        return self.matched_rule, self.risk_level, self.approval, self.error


cdef PolicyDecision decision_about(object action, Decision decision):
    cdef PolicyDecision made = PolicyDecision.__new__(PolicyDecision)
    made.about = action
    made.decision = decision
    made.is_frozen = True
    return made


# --- rules of a document --------------------------------------------------------------------------

cdef object _MEDIUM = RiskLevel.MEDIUM
cdef dict _EMPTY = {}
cdef dict _LEVELS = {
    text: level for level in RiskLevel for text in (level.name, level.name.lower())
}
cdef dict _APPROVALS = {approval.value: approval for approval in Approval}
cdef frozenset _RULE_KEYS = frozenset(
    ("name", "description", "match", "risk_level", "approval", "conditions")
)
cdef frozenset _MATCH_KEYS = frozenset(("type", "target", "agent"))


def plain_rules(written):
    """The rules of a document, as far as there is nothing to say about them.

    Args:
        written: A list of them.

    Returns:
        For each its `PolicyRule`; None where it has to be read with more care: it may be wrong,
        leaves out its approval, or has conditions.
    """
    cdef Py_ssize_t index = 0
    cdef list made = []
    for rule in written:
        made.append(_plain_rule(rule, index))
        index += 1
    return made


cdef object _plain_rule(object written, Py_ssize_t index):
    cdef dict rule, match
    cdef PolicyRule made
    cdef object conditions, risk_level = _MEDIUM, name
    if type(written) is not dict:
        return None
    rule = written
    for key in rule:
        if key not in _RULE_KEYS:
            return None
    match = _EMPTY
    if "match" in rule:
        if type(rule["match"]) is not dict:
            return None
        match = rule["match"]
        for key, pattern in match.items():
            if key not in _MATCH_KEYS or not _is_text(pattern):
                return None
    name = rule.get("name", "")
    if not (_is_text(name) and _is_text(rule.get("description", ""))):
        return None
    conditions = rule.get("conditions", _EMPTY)
    if type(conditions) is not dict or conditions:
        return None
    if "risk_level" in rule:
        level = rule["risk_level"]
        risk_level = _LEVELS.get(level) if type(level) is str else None
    written_approval = rule.get("approval")
    approval = _APPROVALS.get(written_approval) if type(written_approval) is str else None
    if risk_level is None or approval is None:
        return None
    made = PolicyRule.__new__(PolicyRule)
    made.values = (match.get("type", "*"), match.get("target", "*"), match.get("agent", "*"),
                   risk_level, approval, name or f"rule_{index}", {})
    made.is_frozen = True
    return made


cdef inline bint _is_text(object value) except -1:
    # Half of a surrogate pair is not a character: UTF-8 cannot write it.
    cdef Py_ssize_t size
    if type(value) is not str:
        return False
    try:
        PyUnicode_AsUTF8AndSize(value, &size)
    except UnicodeEncodeError:
        return False
    return True
