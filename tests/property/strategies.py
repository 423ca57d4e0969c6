"""What the property tests draw from: patterns, texts near them, conditions, policies and batches.

Texts are made by filling in a pattern of the policy, so that actions often match, and some are then
spoilt by one small mutation, so that they nearly do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias

from hypothesis import strategies as st

from aegis_core import Action, Approval, Condition, Policy, PolicyRule, RiskLevel, Work

__all__ = [
    "NOW",
    "Case",
    "Conditions",
    "Row",
    "actions",
    "cases",
    "near_misses",
    "patterns",
    "policies",
    "random_pair",
    "texts",
]

Row: TypeAlias = tuple[str, str, str, Mapping[str, Any] | None]
"""An action as the engine takes it: type, target, agent, params."""

Case: TypeAlias = tuple[Policy, list[Row]]
"""A policy and the actions to be decided by it."""

NOW = 1_000.0
"""The time of every decision, in seconds since the epoch."""

# One to three characters of each width that a text can be stored in, and what usually goes wrong.
CHARS = "abAB/-éÿ漢\uf600\uffff\ud800😀\U0010ffff\0\n"
SPECIAL = "*?[]!^-\\"
IN_SETS = "abc]!^-[\\&~|é漢😀"

chars = st.sampled_from(CHARS)
words = st.text(chars, max_size=4)
_long_words = st.text(chars, min_size=1, max_size=9)


# Patterns ---------------------------------------------------------------------------------------

_ranges = st.tuples(chars, chars).map("-".join)
_tidy_sets = st.builds(
    "[{}{}{}{}]".format,
    st.sampled_from(["", "!", "^"]),
    st.sampled_from(["", "", "]"]),
    _ranges | st.lists(chars | _ranges, min_size=1, max_size=3).map("".join),
    st.sampled_from(["", "", "-"]),
)
_odd_sets = st.text(IN_SETS, min_size=1, max_size=7).map("[{}]".format)
sets = _tidy_sets | _odd_sets
_unclosed_sets = words.map("[{}".format)
_pieces = st.one_of(words, st.just("*"), st.just("?"), sets, _unclosed_sets)
_shapes = [
    st.just("*"),
    words,
    words.map("{}*".format),
    words.map("*{}".format),
    _long_words.map("{}*".format),
    _long_words.map("*{}".format),
    words.map("*{}*".format),
    st.builds("{}*{}".format, words, words),
    st.lists(words, min_size=2, max_size=5).map("*".join),
    st.builds("{}?{}".format, words, words),
    st.builds("{}{}{}".format, words, sets, words),
    sets,
    _unclosed_sets,
    st.lists(_pieces, max_size=6).map("".join),
    st.text(SPECIAL, max_size=4),
    st.just(""),
]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Every shape a pattern can have, each about as often as the next."""
    return draw(st.one_of(_shapes))


# Texts near a pattern ---------------------------------------------------------------------------

_TOKEN = re.compile(r"\[!?[^\]]+\]|\[!?\][^\]]*\]|.", re.DOTALL)


def _narrowed(text: str, bits: int) -> str:
    # What is left of a text where its characters are kept in too few bits.
    return "".join([chr(ord(char) & ((1 << bits) - 1)) for char in text])


_Mutation: TypeAlias = Callable[[str], str]

_text_mutations: st.SearchStrategy[_Mutation] = st.sampled_from(
    [
        str.swapcase,
        lambda text: text[1:],
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: text + "a",
        lambda text: "a" + text,
        lambda text: text[::-1],
        lambda text: text + text,
        lambda text: _narrowed(text, 8),
        lambda text: _narrowed(text, 16),
    ]
)
_pattern_mutations: st.SearchStrategy[_Mutation] = st.sampled_from(
    [
        lambda pattern: pattern.replace("?", ""),
        lambda pattern: pattern.replace("*", "?"),
        lambda pattern: pattern + "?",
        lambda pattern: "?" + pattern,
    ]
)


@st.composite
def texts(draw: st.DrawFn, pattern: str) -> str:
    """Texts of which most match the pattern."""
    return "".join([draw(_filling(token)) for token in _TOKEN.findall(pattern)])


def _filling(token: str) -> st.SearchStrategy[str]:
    if token == "*":
        return words
    if token == "?":
        return chars
    if len(token) > 1:
        return st.sampled_from(token[1:-1]) | chars
    return st.just(token)


@st.composite
def near_misses(draw: st.DrawFn, pattern: str) -> str:
    """Texts of which most miss the pattern narrowly."""
    if draw(st.booleans()):
        return draw(texts(draw(_pattern_mutations)(pattern)))
    return draw(_text_mutations)(draw(texts(pattern)))


# Conditions ---------------------------------------------------------------------------------------

_written: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"says": False}),
    st.just({"says": True}),
    st.just({"says": "the amount is no number"}),
    st.just({"raises": "no such column"}),
    st.just({"needs": "count"}),
    st.just({"from": NOW}),
    st.just({"from": NOW + 0.5}),
)
_maybe_written: st.SearchStrategy[dict[str, Any]] = st.just({}) | _written

_params = st.none() | st.dictionaries(
    st.sampled_from(["count", "other"]), st.sampled_from([0, 1, True, None, "漢"]), max_size=2
)


class Conditions:
    """Compiles the conditions that these policies write, and keeps what they are asked.

    Attributes:
        asked: Each call of a condition: the rule's index, the params and the time.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, Mapping[str, Any], float]] = []

    def compile(self, written: Mapping[str, Any]) -> Condition | None:
        """The condition that a rule writes down; None where it writes none."""
        if not written:
            return None

        def condition(params: Mapping[str, Any], now: float, work: Work) -> bool | str:
            self.asked.append((written["rule"], params, now))
            return _held(written, params, now)

        return condition


def _held(written: Mapping[str, Any], params: Mapping[str, Any], now: float) -> bool | str:
    if "raises" in written:
        raise LookupError(written["raises"])
    if "needs" in written:
        value = params.get(written["needs"])
        return "`count` is no number" if isinstance(value, str) else value == 1
    if "from" in written:
        return bool(now >= written["from"])
    said: bool | str = written["says"]
    return said


# Policies and batches -----------------------------------------------------------------------------

_risk_levels = st.sampled_from(RiskLevel)
_approvals = st.sampled_from(Approval)
_often_anything = st.just("*") | patterns()
_rules = st.builds(
    PolicyRule,
    match_type=patterns(),
    match_target=_often_anything,
    match_agent=_often_anything,
    risk_level=_risk_levels,
    approval=_approvals,
    conditions=_maybe_written,
)


def _numbered(drawn: list[PolicyRule]) -> tuple[PolicyRule, ...]:
    # Every name is its own, so that two rules never decide alike.
    return tuple(
        replace(
            rule,
            name=f"rule_{index}",
            conditions={**rule.conditions, "rule": index} if rule.conditions else {},
        )
        for index, rule in enumerate(drawn)
    )


def _many_rules(
    pool: list[str], written: list[dict[str, Any]], size: int, random: Random
) -> list[PolicyRule]:
    # Drawn from a pool, since Hypothesis cannot draw thousands of patterns for one example. The
    # letter in front spreads them over more branches than CHARS has.
    return [
        PolicyRule(
            match_type=random.choice(["", chr(random.randrange(48, 123))]) + random.choice(pool),
            match_target=random.choice(["*", "*", *pool]),
            match_agent=random.choice(["*", "*", *pool]),
            risk_level=random.choice(list(RiskLevel)),
            approval=random.choice(list(Approval)),
            conditions=random.choice(written),
        )
        for _ in range(size)
    ]


_few = st.lists(_rules, max_size=8)
_many = st.builds(
    _many_rules,
    pool=st.lists(patterns(), min_size=1, max_size=12),
    written=st.lists(_written, min_size=1, max_size=2) | st.lists(_maybe_written, min_size=1),
    size=st.integers(13, 300),
    random=st.integers(0, 2**32).map(Random),
)
# More than the engine keeps room for without an allocation, and all of them match.
_all_asked = st.builds(
    lambda size, last: [PolicyRule(conditions={"says": False})] * size + last,
    st.integers(60, 70),
    st.lists(_rules, max_size=3),
)
_sizes = st.sampled_from([*[_few] * 9, _many, _many, _all_asked])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies of 0 to 300 rules, each under a name of its own."""
    drawn = draw(draw(_sizes))
    return Policy(_numbered(drawn), draw(_risk_levels), draw(_approvals))


@st.composite
def actions(draw: st.DrawFn, policy: Policy) -> Row:
    """Actions that match a rule of the policy, or miss it narrowly and in one field only."""
    rule = draw(st.sampled_from(policy.rules or (PolicyRule(),)))
    missed = draw(st.sampled_from(["none", "none", "type", "type", "target", "agent"]))
    return (
        draw((near_misses if missed == "type" else texts)(rule.match_type)),
        draw((near_misses if missed == "target" else texts)(rule.match_target)),
        draw((near_misses if missed == "agent" else texts)(rule.match_agent)),
        draw(_params),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A policy with a batch of 0 to 6 actions near it."""
    policy = draw(policies())
    return policy, draw(st.lists(actions(policy), max_size=6))


# Pairs by the thousand, without Hypothesis --------------------------------------------------------


def random_pair(random: Random) -> tuple[Policy, Action]:
    """A policy of up to eight unconditional rules and an action near one of them."""
    drawn = [
        PolicyRule(
            match_type=_random_pattern(random),
            match_target=random.choice(["*", _random_pattern(random)]),
            match_agent=random.choice(["*", "*", _random_pattern(random)]),
        )
        for _ in range(random.randrange(9))
    ]
    policy = Policy(_numbered(drawn))
    rule = random.choice(drawn or [PolicyRule()])
    return policy, Action(
        _random_text(random, rule.match_type),
        _random_text(random, rule.match_target),
        agent_id=_random_text(random, rule.match_agent),
    )


def _random_pattern(random: Random) -> str:
    pieces = ["*", "*", "?", "a", "b", "ab", random.choice(CHARS), _random_set(random)]
    return "".join(random.choices(pieces, k=random.randrange(6)))


def _random_set(random: Random) -> str:
    body = "".join(random.choices(IN_SETS, k=random.randrange(1, 7)))
    return random.choice(["[{}]", "[{}]", "[!{}]", "[{}"]).format(body)


def _random_text(random: Random, pattern: str) -> str:
    tokens = _TOKEN.findall(pattern)
    text = "".join([_random_filling(random, token) for token in tokens])
    spoilt = text[random.randrange(2) :] + random.choice(CHARS)
    return random.choice([text, text, text, text.swapcase(), spoilt])


def _random_filling(random: Random, token: str) -> str:
    if token == "*":
        return "".join(random.choices(CHARS, k=random.randrange(4)))
    if token == "?":
        return random.choice(CHARS)
    if len(token) > 1:
        return random.choice(token[1:-1] + "é")
    return token
