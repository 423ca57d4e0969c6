"""What the compiled engine promises, one claim at a time."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from aegis_core import (
    DEFAULT_RULE,
    Approval,
    Condition,
    Decision,
    Engine,
    Policy,
    PolicyRule,
    RiskLevel,
    Work,
    compile_policy,
)

# `re` suspects a set within a set where a pattern has `[` in one; what it means is settled.
pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")

ON_STACK = 64
"""Conditional rules that may match before the engine allocates."""

SHAPES = ["*", "read", "re*", "*ad", "r*d", "r?ad", "[r]ead", "*ea*"]
"""Patterns that match `read`, one for each place that the engine files rules in."""

FILED = "a_type_that_no_other_literal_is_better_than"

BOUND_S = 10.0
"""Far above what any of these takes, far below what an exponential one would."""


def compiled(written: Mapping[str, Any]) -> Condition | None:
    """The condition that a rule carries under `held`, as it is."""
    return written.get("held")


def engine_of(*rules: PolicyRule, clock: Callable[[], float] = lambda: 0.0) -> Engine:
    """An engine of these rules, whose conditions are functions."""
    return compile_policy(Policy(rules), condition=compiled, clock=clock)


def says(answer: object, name: str = "conditional") -> PolicyRule:
    """A rule for everything that allows, under a condition that says this."""
    return PolicyRule(
        approval=Approval.AUTO, name=name, conditions={"held": lambda params, now, work: answer}
    )


def raising(error: type[BaseException], text: str = "") -> PolicyRule:
    """A rule for everything that allows, under a condition that raises this."""

    def condition(params: Mapping[str, Any], now: float, work: Work) -> bool:
        raise error(text)

    return PolicyRule(approval=Approval.AUTO, name="broken", conditions={"held": condition})


def keeping(asked: list[tuple[object, object]], value: object, pattern: str = "*") -> PolicyRule:
    """A rule under a condition that fails, and notes this value and its params when asked."""

    def condition(params: Mapping[str, Any], now: float, work: Work) -> bool:
        asked.append((value, params))
        return False

    return PolicyRule(pattern, conditions={"held": condition})


class Clock:
    """Stands still and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return 0.0


def match_of(pattern: str, text: str) -> bool:
    """Whether the engine finds that a pattern matches a text, the same wherever it stands.

    A rule is filed under its best literal and the rest of it is checked in full. So each field
    stands alone, and target and agent also beside a type that is the better one to file under.
    """
    decisions = [
        engine_of(PolicyRule(match_type=pattern, name="hit")).evaluate(text),
        engine_of(PolicyRule(match_target=pattern, name="hit")).evaluate("", text),
        engine_of(PolicyRule(match_agent=pattern, name="hit")).evaluate("", "", text),
        engine_of(PolicyRule(FILED, pattern, name="hit")).evaluate(FILED, text),
        engine_of(PolicyRule(FILED, "*", pattern, name="hit")).evaluate(FILED, "", text),
    ]
    (name,) = {decision.matched_rule for decision in decisions}
    return name == "hit"


# Rules in their order -----------------------------------------------------------------------------


def test_first_matching_rule_decides() -> None:
    rules = [PolicyRule("write", name="other"), PolicyRule("re*", name="a"), PolicyRule(name="b")]
    assert engine_of(*rules).evaluate("read").matched_rule == "a"


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_order_decides_whatever_shapes_the_patterns_have(first: str, second: str) -> None:
    rules = [PolicyRule(first, name="first"), PolicyRule(second, name="second")]
    assert engine_of(*rules).evaluate("read").matched_rule == "first"


def test_decision_carries_what_the_rule_says() -> None:
    rule = PolicyRule("read", "*", "*", RiskLevel.HIGH, Approval.AUTO, "reads")
    decision = engine_of(rule).evaluate("read")
    assert decision == Decision("reads", RiskLevel.HIGH, Approval.AUTO, None)


def test_default_decides_where_no_rule_matches() -> None:
    policy = Policy((PolicyRule("write"),), RiskLevel.LOW, Approval.AUTO)
    decision = compile_policy(policy, condition=compiled).evaluate("read")
    assert decision == Decision(DEFAULT_RULE, RiskLevel.LOW, Approval.AUTO)


def test_policy_without_rules_decides_by_its_default() -> None:
    decision = engine_of().evaluate("read", "prod", "agent", {"count": 1})
    assert decision == Decision(DEFAULT_RULE, RiskLevel.MEDIUM, Approval.BLOCK)


def test_batch_of_none_is_answered_by_none() -> None:
    assert engine_of(PolicyRule()).evaluate_many([]) == []


def test_batch_is_answered_in_order() -> None:
    engine = engine_of(PolicyRule("read", name="reads"), PolicyRule("write", name="writes"))
    rows = [("write", "", "", None), ("stop", "", "", None), ("read", "", "", None)]
    names = [decision.matched_rule for decision in engine.evaluate_many(rows)]
    assert names == ["writes", DEFAULT_RULE, "reads"]


def test_batch_may_come_from_an_iterator() -> None:
    rows = iter([("read", "", "", None)])
    assert len(engine_of(PolicyRule()).evaluate_many(rows)) == 1


@pytest.mark.parametrize("row", [("x", "t", "a"), ("d", "x", "a"), ("d", "t", "x")])
def test_rule_matches_only_where_all_three_patterns_do(row: tuple[str, str, str]) -> None:
    engine = engine_of(PolicyRule("d", "t", "a", name="all three"))
    assert engine.evaluate(*row).matched_rule == DEFAULT_RULE


def test_all_decisions_of_a_rule_are_one_object() -> None:
    engine = engine_of(PolicyRule("re*", name="reads"))
    assert engine.evaluate("read") is engine.evaluate("reap")


def test_all_default_decisions_are_one_object() -> None:
    engine = engine_of()
    assert engine.evaluate("read") is engine.evaluate_many([("write", "", "", None)])[0]


def test_engine_keeps_its_policy() -> None:
    policy = Policy((PolicyRule(),))
    assert compile_policy(policy, condition=compiled).policy is policy


def test_policy_of_an_engine_cannot_be_replaced() -> None:
    with pytest.raises(AttributeError):
        engine_of().policy = Policy()


def test_more_rules_take_more_memory() -> None:
    assert engine_of(PolicyRule("a*"), PolicyRule("b*")).image_bytes > engine_of().image_bytes


# Patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*", ""),
        ("*", "any/thing\nat\0all"),
        ("", ""),
        ("read", "read"),
        ("re*", "re"),
        ("re*", "read"),
        ("*ad", "ad"),
        ("*ad", "read"),
        ("*ea*", "read"),
        ("r*d", "rd"),
        ("r*d", "r/\n/d"),
        ("r*e*d", "read"),
        ("a*b*c*d", "a-b-b-c-c-d"),
        ("***", ""),
        ("r**d", "read"),
        ("r??d", "read"),
        ("?", "\n"),
        ("?", "\0"),
        ("?", "é"),
        ("?", "漢"),
        ("?", "😀"),
        ("??", "e\u0301"),
        ("*😀", "漢é😀"),
        ("é*", "é"),
        ("[ab]", "b"),
        ("[a-c]x*", "bxy"),
        ("[!a]", "b"),
        ("[!a]", "\n"),
        ("[漢-😀]", "\uffff"),
        ("*[0-9]", "a1"),
        ("[ab", "[ab"),
        ("[]", "[]"),
        ("[!]", "[!]"),
        ("a]", "a]"),
        ("{a,b}", "{a,b}"),
        ("a\\*", "a\\b"),
        ("^a$", "^a$"),
    ],
)
def test_pattern_matches(pattern: str, text: str) -> None:
    assert match_of(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "a"),
        ("read", "Read"),
        ("read", "reads"),
        ("read", "rea"),
        ("read", "read\n"),
        ("read", " read"),
        ("re*", "r"),
        ("re*", "are"),
        ("*ad", "d"),
        ("*ad", "add"),
        ("*ea*", "era"),
        ("a\0", "a"),
        ("a\0*", "a"),
        ("*\0a", "a"),
        ("aba*aba", "aba"),
        ("aba*aba", "ababa"),
        ("ab*bc", "abc"),
        ("?", ""),
        ("?", "ab"),
        ("?", "e\u0301"),
        ("é", "e\u0301"),
        ("é", "\u01e9"),
        ("漢", "\U00016f22"),
        ("a", "\u0161"),
        ("[ab]", "ab"),
        ("[ab]", ""),
        ("[!a]", "a"),
        ("[a-c]", "B"),
        ("{a,b}", "a"),
        ("a\\*", "a*"),
        ("^a$", "a"),
    ],
)
def test_pattern_does_not_match(pattern: str, text: str) -> None:
    assert not match_of(pattern, text)


SET_LINES = [
    r"[]] []a] [!]] [!]a] []-a] [!]-a] [] [!] [ [! []! [a [!a",
    r"[-] [!-] [a-] [-a] [!-a] [!a-] [--] [---] [a--] [--a] [!--a]",
    r"[z-a] [!z-a] [z-ab] [az-ab] [b-a!] [b-a!-z] [b-a!x] [b-a^] [b-a-z]",
    r"[a-c-e] [a-c-] [a-c-e-g] [a-a] [!a-a] [a-b-a] [c-ab-a] [!b-a-z]",
    r"[^a] [a^] [!^] [!!] [!!a] [a!] [[] [[a] [![] [[]] [a[] [[-]",
    r"[\] [\a] [a-\] [\-a] [\-\] [\]a [&&] [a&&b] [||] [~~] [&-~]",
    r"[?] [*] [!*] [.] [b-a] [!b-a] [b-a[] [!-~-] [+--] [--/]",
]
SETS = " ".join(SET_LINES).split()
PROBES = "abcdegxyz!^-[]\\&|~*?.+,/é漢😀\n"


@pytest.mark.parametrize("pattern", SETS)
def test_set_means_what_fnmatch_says(pattern: str) -> None:
    texts = ["", pattern, *PROBES, *[f"[{char}" for char in PROBES]]
    assert [text for text in texts if match_of(pattern, text)] == [
        text for text in texts if fnmatchcase(text, pattern)
    ]


@pytest.mark.parametrize("shape", ["{}*", "*{}", "{}", "{}?", "x{}*y"])
def test_rules_are_told_apart_by_characters_of_every_width(shape: str) -> None:
    chars = [chr(code) for code in [*range(65, 91), *range(192, 255), *range(0x6F00, 0x6FFF)]]
    chars += [chr(code) for code in range(0x1F600, 0x1F640)]
    engine = engine_of(*[PolicyRule(shape.format(char), name=char) for char in chars])
    texts = [shape.format(char).replace("*", "").replace("?", "z") for char in chars]
    assert [engine.evaluate(text).matched_rule for text in texts] == chars


def test_each_field_is_matched_in_its_own_width() -> None:
    engine = engine_of(PolicyRule("del*", "*漢", "a?😀", name="widths"))
    assert engine.evaluate("delete", "prod-漢", "aé😀").matched_rule == "widths"


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [None, 1, b"read", ["read"], True])
def test_argument_that_is_no_text_is_refused(place: int, value: object) -> None:
    row: list[Any] = ["read", "prod", "agent", None]
    row[place] = value
    with pytest.raises(TypeError):
        engine_of(PolicyRule()).evaluate(*row)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_argument_that_is_no_text_is_refused_in_a_batch(place: int) -> None:
    row: list[Any] = ["read", "prod", "agent", None]
    row[place] = b"bytes"
    with pytest.raises(TypeError):
        engine_of(PolicyRule()).evaluate_many([("read", "", "", None), tuple(row)])


def test_subclass_of_text_is_text() -> None:
    class Kind(StrEnum):
        READ = "read"

    assert engine_of(PolicyRule("read", name="reads")).evaluate(Kind.READ).matched_rule == "reads"


def test_arguments_have_names() -> None:
    engine = engine_of(PolicyRule("d", "t", "a", name="named"))
    decision = engine.evaluate(params={}, agent="a", target="t", action_type="d")
    assert decision.matched_rule == "named"


def test_missing_target_and_agent_are_empty() -> None:
    assert engine_of(PolicyRule("d", "", "", name="bare")).evaluate("d").matched_rule == "bare"


def test_missing_agent_does_not_match_a_pattern_that_needs_one() -> None:
    assert engine_of(PolicyRule(match_agent="?*")).evaluate("read").matched_rule == DEFAULT_RULE


# Conditions ---------------------------------------------------------------------------------------


def test_rule_whose_condition_holds_decides() -> None:
    assert engine_of(says(True), PolicyRule()).evaluate("read").matched_rule == "conditional"


def test_rule_whose_condition_fails_is_passed_over() -> None:
    engine = engine_of(says(False), PolicyRule(name="next"))
    assert engine.evaluate("read").matched_rule == "next"


def test_default_decides_where_every_condition_fails() -> None:
    assert engine_of(says(False)).evaluate("read").matched_rule == DEFAULT_RULE


def test_indeterminate_condition_blocks_under_the_name_of_its_rule() -> None:
    decision = engine_of(says("`count` is no number"), PolicyRule()).evaluate("read")
    assert decision == Decision(
        "conditional", RiskLevel.CRITICAL, Approval.BLOCK, "`count` is no number"
    )


def test_indeterminate_decision_is_not_allowed() -> None:
    assert not engine_of(says("unclear")).evaluate("read").is_allowed


def test_raising_condition_blocks_and_says_why() -> None:
    decision = engine_of(raising(LookupError, "no such column"), PolicyRule()).evaluate("read")
    assert decision == Decision.indeterminate("broken", "the conditions failed: no such column")


@pytest.mark.parametrize("answer", [None, 0, 1, "", [], 1.0])
def test_condition_that_answers_nonsense_blocks(answer: object) -> None:
    rules = [says(answer), PolicyRule(approval=Approval.AUTO)]
    assert not engine_of(*rules).evaluate("read").is_allowed


def test_failing_clock_blocks() -> None:
    def clock() -> float:
        raise OSError("no time")

    decision = engine_of(says(True), clock=clock).evaluate("read")
    assert decision == Decision.indeterminate("conditional", "the conditions failed: no time")


@pytest.mark.parametrize("rules", [1, ON_STACK + 1])
def test_interrupt_in_a_condition_is_passed_on(rules: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        engine_of(*[raising(KeyboardInterrupt)] * rules).evaluate("read")


def test_condition_gets_the_params_as_they_are() -> None:
    asked: list[tuple[object, object]] = []
    params = {"count": 1}
    engine_of(keeping(asked, 0)).evaluate("read", params=params)
    assert asked[0][1] is params


def test_missing_params_are_empty_for_a_condition() -> None:
    rule = PolicyRule(name="empty", conditions={"held": lambda params, now, work: params == {}})
    assert engine_of(rule).evaluate("read", params=None).matched_rule == "empty"


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("behind", SHAPES)
def test_condition_is_not_asked_behind_the_deciding_rule(first: str, behind: str) -> None:
    asked: list[tuple[object, object]] = []
    engine_of(PolicyRule(first), keeping(asked, 0, behind)).evaluate("read")
    assert asked == []


def test_condition_is_not_asked_where_the_patterns_do_not_match() -> None:
    asked = raising(AssertionError)
    rule = PolicyRule("write", name="unasked", conditions=asked.conditions)
    assert engine_of(rule).evaluate("read").matched_rule == DEFAULT_RULE


def test_conditions_are_asked_in_the_order_of_the_rules() -> None:
    asked: list[tuple[object, object]] = []
    engine_of(*[keeping(asked, pattern, pattern) for pattern in SHAPES]).evaluate("read")
    assert [pattern for pattern, _ in asked] == SHAPES


@pytest.mark.parametrize("rules", [ON_STACK - 1, ON_STACK, ON_STACK + 1, 1_000])
def test_last_of_many_conditional_rules_decides(rules: int) -> None:
    engine = engine_of(*[says(False)] * (rules - 1), says(True, "last"))
    assert engine.evaluate("read").matched_rule == "last"


def test_each_of_many_conditions_is_asked_once() -> None:
    asked: list[tuple[object, object]] = []
    engine_of(*[keeping(asked, index) for index in range(200)]).evaluate("read")
    assert [index for index, _ in asked] == list(range(200))


def test_clock_is_not_asked_where_no_conditional_rule_matches() -> None:
    clock = Clock()
    engine_of(PolicyRule("re*"), says(True), clock=clock).evaluate("read")
    assert clock.asked == 0


def test_clock_is_asked_once_for_a_whole_batch() -> None:
    clock = Clock()
    engine = engine_of(says(False), says(False), clock=clock)
    engine.evaluate_many([("read", "", "", None)] * 5)
    assert clock.asked == 1


# The fragment -------------------------------------------------------------------------------------


def whole(decision: Decision) -> object:
    """A decision's fragment, read behind another member."""
    return json.loads(b'{"x":1' + decision.fragment)


@pytest.mark.parametrize(
    "name", ["no_deletes", 'a "b" \\ c', "漢😀é", "line\nbreak\0", DEFAULT_RULE]
)
def test_fragment_ends_an_object_begun_before_it(name: str) -> None:
    rule = PolicyRule(risk_level=RiskLevel.HIGH, approval=Approval.AUTO, name=name)
    assert whole(engine_of(rule).evaluate("read")) == {
        "x": 1,
        "risk_level": "HIGH",
        "approval": "auto",
        "is_allowed": True,
        "matched_rule": name,
    }


def test_fragment_of_an_indeterminate_decision_says_why() -> None:
    assert whole(engine_of(says('`"count"` is no number')).evaluate("read")) == {
        "x": 1,
        "risk_level": "CRITICAL",
        "approval": "block",
        "is_allowed": False,
        "matched_rule": "conditional",
        "error": '`"count"` is no number',
    }


@pytest.mark.parametrize("approval", Approval)
def test_only_a_block_is_not_allowed(approval: Approval) -> None:
    decision = engine_of(PolicyRule(approval=approval)).evaluate("read")
    assert decision.is_allowed is (approval is not Approval.BLOCK)


# The written answer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", '"', "\\", "".join(map(chr, range(129))), "é漢😀\uffff\u2028", "\0" * 10_000]
)
def test_written_answer_holds_any_text(text: str) -> None:
    written = json.loads(engine_of(PolicyRule()).evaluate_json(text, text))
    assert (written["action_type"], written["target"]) == (text, text)


def test_written_answer_has_its_members_in_order() -> None:
    assert engine_of(PolicyRule(name="all")).evaluate_json("read", "prod") == (
        b'{"action_type":"read","target":"prod","risk_level":"MEDIUM","approval":"approve",'
        b'"is_allowed":true,"matched_rule":"all"}'
    )


def test_written_batch_is_a_list_of_the_answers() -> None:
    engine = engine_of(PolicyRule("read"), says("unclear"))
    rows = [("read", "", "", None), ("write", "x", "", None)]
    one, other = [engine.evaluate_json(*row) for row in rows]
    assert engine.evaluate_many_json(rows) == b"[" + one + b"," + other + b"]"


def test_written_batch_of_none_is_an_empty_list() -> None:
    assert engine_of().evaluate_many_json([]) == b"[]"


@pytest.mark.parametrize("row", [("\ud800", ""), ("read", "a\udfff")])
def test_half_a_surrogate_pair_cannot_be_written(row: tuple[str, str]) -> None:
    with pytest.raises(UnicodeEncodeError):
        engine_of(PolicyRule()).evaluate_json(*row)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_argument_that_is_no_text_is_not_written(place: int) -> None:
    row: list[Any] = ["read", "prod", "agent", None]
    row[place] = b"bytes"
    with pytest.raises(TypeError):
        engine_of(PolicyRule()).evaluate_many_json([tuple(row)])


def test_clock_is_asked_once_for_a_whole_written_batch() -> None:
    clock = Clock()
    engine_of(says(False), clock=clock).evaluate_many_json([("read", "", "", None)] * 5)
    assert clock.asked == 1


# Size and time ------------------------------------------------------------------------------------


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Claims that what stands inside takes no more processor time than this."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a*a*a*a*b", "a" * 100_000),
        ("a*a*a*a*[b]", "a" * 100_000),
        ("a*a*a*a*?b?", "a" * 100_000),
        ("*a*a*a*a*c*b", "a" * 100_000 + "b"),
        ("*a" * 50 + "*b*", "a" * 100_000),
        ("*" + "a" * 500 + "b*", "a" * 100_000),
        ("*" + "?" * 500 + "b*", "漢" * 100_000),
        ("*" + "[!b]" * 100 + "b*", "😀" * 100_000),
    ],
)
def test_long_text_is_refused_in_bounded_time(pattern: str, text: str) -> None:
    engine = engine_of(PolicyRule(pattern))
    with within(BOUND_S):
        assert engine.evaluate(text).matched_rule == DEFAULT_RULE


def test_long_text_is_matched_in_all_three_fields() -> None:
    text = "a" * 100_000 + "b"
    engine = engine_of(PolicyRule("a*a*b", "*" + text[1:], text, name="long"))
    with within(BOUND_S):
        assert engine.evaluate(text, text, text).matched_rule == "long"


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["{}*", "*{}"])
def test_ten_thousand_nested_literals_compile_in_bounded_time(shape: str) -> None:
    lengths = range(2_000, 0, -1)
    literals = [char * length for char in "abcde" for length in lengths]
    with within(BOUND_S):
        engine = engine_of(*[PolicyRule(shape.format(text), name=text) for text in literals])
        names = [engine.evaluate(text).matched_rule for text in literals]
    assert names == literals


def test_thousands_of_rules_without_a_literal_are_decided_in_bounded_time() -> None:
    lengths = range(2_000)
    engine = engine_of(*[PolicyRule("?" * length, name=str(length)) for length in lengths])
    with within(BOUND_S):
        names = [engine.evaluate("x" * length).matched_rule for length in lengths]
    assert names == [str(length) for length in lengths]


# Threads and memory -------------------------------------------------------------------------------


@contextmanager
def hasty_threads() -> Iterator[None]:
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_share_one_engine() -> None:
    several = [says(False)] * (ON_STACK + 1)
    targeted = [
        PolicyRule(f"t{i}*", conditions=says(i % 2 == 0).conditions, name=f"c{i}")
        for i in range(50)
    ]
    plain = [PolicyRule(f"t{i}*", name=f"p{i}") for i in range(50)]
    engine = engine_of(*several, *targeted, *plain)
    rows = [(f"t{i}x", "", "", None) for i in range(50)]
    alone = engine.evaluate_many(rows)
    with hasty_threads(), ThreadPoolExecutor(8) as threads:
        together = [
            future.result()
            for future in [threads.submit(engine.evaluate_many, rows) for _ in range(80)]
        ]
    assert together == [alone] * 80


def test_condition_may_ask_the_engine_again() -> None:
    def asks_again(params: Mapping[str, Any], now: float, work: Work) -> bool:
        return params == {} or engine.evaluate("read").matched_rule == "again"

    rules = [says(False)] * (ON_STACK + 1)
    engine = engine_of(*rules, PolicyRule(name="again", conditions={"held": asks_again}))
    assert engine.evaluate("read", params={"count": 1}).matched_rule == "again"


@pytest.mark.parametrize(
    "rules",
    [
        [PolicyRule("re*")],
        [],
        [says(False)],
        [says(True)],
        [says("unclear")],
        [raising(LookupError)],
        [says(False)] * (ON_STACK + 1),
    ],
)
def test_deciding_keeps_no_reference_to_what_it_was_given(rules: list[PolicyRule]) -> None:
    engine = engine_of(*rules)
    row = (f"read-{len(rules)}", f"prod-{len(rules)}", f"agent-{len(rules)}", {"count": 1})
    held = [engine, engine.evaluate("none"), *row]
    before = [sys.getrefcount(thing) for thing in held]
    for _ in range(100):
        engine.evaluate(*row)
        engine.evaluate_many([row, row])
        engine.evaluate_many_json([row, row])
    assert [sys.getrefcount(thing) for thing in held] == before


def test_engine_goes_when_nothing_refers_to_it() -> None:
    # Its policy tells: the engine alone holds it.
    policy = Policy((PolicyRule("re*"), says(True)))
    before = sys.getrefcount(policy)
    compile_policy(policy, condition=compiled).evaluate("read")
    gc.collect()
    assert sys.getrefcount(policy) == before


LEAK = """
import gc, resource, tracemalloc
from aegis_core import Policy, PolicyRule, compile_policy

def fails(params, now, work): raise LookupError("none")
def answers(answer): return lambda params, now, work: answer
def ruled(*conditions): return compile_policy(
    Policy((PolicyRule("x*"), *[PolicyRule("r*", conditions={"c": c}) for c in conditions])),
    condition=lambda written: written.get("c"),
)

engines = [ruled(), ruled(answers(True)), ruled(answers("unclear")), ruled(fails),
           ruled(*[answers(False)] * 65), ruled(*[answers(False)] * 65, fails)]

def round_of_calls():
    for engine in engines:
        for action in ("read", "r\\u6f22" * 50, "x\\U0001f600", ""):
            engine.evaluate(action, "t" * 300, "a", {"n": 1})
            engine.evaluate_json(action, "\\0" * 300, "a", {"n": 1})
        engine.evaluate_many([("read", "t", "a", None)] * 3)
        engine.evaluate_many_json([("read", "t", "a", None)] * 3)
        for wrong in (lambda: engine.evaluate(None), lambda: engine.evaluate_many([(1, 2, 3, 4)]),
                      lambda: engine.evaluate_json("\\ud800"), lambda: engine.evaluate_json(None)):
            try: wrong()
            except (TypeError, UnicodeEncodeError): pass
    ruled(*[answers(False)] * 5, fails).evaluate("read")

def resident(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for _ in range(100): round_of_calls()
gc.collect(); resident_before = resident()
for _ in range(2000): round_of_calls()
grown = resident() - resident_before
tracemalloc.start()
for _ in range(20): round_of_calls()
gc.collect(); traced_before = tracemalloc.get_traced_memory()[0]
for _ in range(200): round_of_calls()
gc.collect(); traced = tracemalloc.get_traced_memory()[0] - traced_before
print(grown, traced)
"""


@pytest.mark.slow
def test_deciding_leaks_no_memory() -> None:
    # In a process of its own, since whatever ran before would move the figures.
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LEAK], capture_output=True, text=True, check=True, cwd=root
    )
    grown_kib, traced_bytes = map(int, done.stdout.split())
    assert grown_kib < 2_048
    assert traced_bytes < 10_000
