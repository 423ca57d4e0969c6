"""The engine decides as the specification does on policies that are hard to file, and from images.

They are larger than Hypothesis draws, and of the shapes that have structures of their own: words,
automata, lists that are filed again by another field, rules that earlier ones cover.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import translate
from itertools import combinations
from random import Random
from typing import Any

import pytest

from aegis_core import (
    DEFAULT_RULE,
    Condition,
    Engine,
    Policy,
    PolicyRule,
    compile_policy,
    covered_rules,
)

pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")

Asked = tuple[str, str, str]
NARROW, MIXED = "abc", "ab\u00e9\u6f22\U0001f600"


def _text(pick: Random, letters: str, least: int, most: int) -> str:
    return "".join(pick.choices(letters, k=pick.randint(least, most)))


def _letters(pick: Random, letters: str) -> str:
    return "*" + "".join(f"{letter}*" for letter in pick.choices(letters, k=pick.randint(1, 5)))


def _words(pick: Random, letters: str) -> str:
    return f"*{_text(pick, letters, 2, 9)}*{_text(pick, letters, 0, 3)}*"


def _sets(pick: Random, letters: str) -> str:
    edge = [f"[{letters}]", f"[!{letters[0]}]", "?", "[a-z]", ""]
    return pick.choice(edge) + _text(pick, letters, 1, 6) + pick.choice(edge)


def _nested(pick: Random, letters: str) -> str:
    return letters[0] * pick.randint(0, 30) + pick.choice(["*", "", "?"])


def _long(pick: Random, letters: str) -> str:
    return letters[0] * 70 + _text(pick, letters, 0, 6) + pick.choice(["*", ""])


def _ends(pick: Random, letters: str) -> str:
    return pick.choice(["*{}", "{}*", "{}", "*{}*"]).format(_text(pick, letters, 1, 4))


def _few(pick: Random, letters: str) -> str:
    return pick.choice(["*", "a", "b*", "*b", "*a*", "?", "ab"])


def _placed(pick: Random, letters: str) -> str:
    gap = "".join(pick.choices(["?", f"[{letters}]", letters[0]], k=pick.randint(0, 11)))
    word = _text(pick, letters, 1, 4)
    return pick.choice(["{0}{1}*", "*{1}{0}", "{0}{1}?", "{0}{1}*{1}{0}", "a{0}{1}?*"]).format(
        gap, word
    )


SHAPES: list[Callable[[Random, str], str]] = [
    _letters, _words, _sets, _nested, _long, _ends, _few, _placed,
]  # fmt: skip


def _policy(pick: Random, count: int) -> Policy:
    kinds = pick.choices(SHAPES, k=3)
    letters = pick.choice([NARROW, MIXED])
    anything = [pick.random() for _ in range(3)]
    rules = []
    for index in range(count):
        kind, target, agent = [
            "*" if pick.random() < often / 2 else shape(pick, letters)
            for shape, often in zip(kinds, anything, strict=True)
        ]
        says = pick.choice([None, None, None, False, True])
        conditions = {} if says is None else {"says": says}
        rules.append(PolicyRule(kind, target, agent, name=f"rule_{index}", conditions=conditions))
    return Policy(tuple(rules))


def _near(pick: Random, pattern: str) -> str:
    letters = NARROW + MIXED
    filled = re.sub(r"\*", lambda _: _text(pick, letters, 0, 5), pattern)
    filled = re.sub(r"\[[^\]]*\]|\?", lambda _: pick.choice(letters), filled)
    if pick.random() < 0.3:
        place = pick.randint(0, len(filled))
        filled = filled[:place] + pick.choice(letters) + filled[place:]
    return filled


def _asked(pick: Random, policy: Policy, count: int) -> list[Asked]:
    rules = pick.choices(policy.rules, k=count)
    return [
        (
            _near(pick, rule.match_type),
            _near(pick, rule.match_target),
            _near(pick, rule.match_agent),
        )
        for rule in rules
    ]


def _specified(policy: Policy) -> Callable[[Asked], str]:
    """The name of the first rule that matches, by regular expressions one after the other."""
    compiled = [
        (
            tuple(
                re.compile(translate(pattern)).match
                for pattern in (rule.match_type, rule.match_target, rule.match_agent)
            ),
            rule,
        )
        for rule in policy.rules
    ]

    def decide(asked: Asked) -> str:
        for matches, rule in compiled:
            if rule.conditions.get("says") is not False and all(
                match(text) for match, text in zip(matches, asked, strict=True)
            ):
                return rule.name
        return DEFAULT_RULE

    return decide


def _says(written: Mapping[str, Any]) -> Condition | None:
    return (lambda params, now, work: bool(written["says"])) if written else None


@pytest.mark.parametrize("seed", range(120))
def test_hard_policy_is_decided_as_specified(seed: int) -> None:
    pick = Random(seed)
    policy = _policy(pick, pick.choice([30, 120, 400]))
    asked = _asked(pick, policy, 60)
    specified = _specified(policy)
    wanted = [specified(one) for one in asked]
    engine = compile_policy(policy, condition=_says)
    found = [
        decision.matched_rule for decision in engine.evaluate_many([(*one, None) for one in asked])
    ]
    assert found == wanted
    again = Engine(engine.image, condition=_says)
    assert [again.evaluate(*one).matched_rule for one in asked] == wanted


@pytest.mark.parametrize("seed", range(60))
def test_covered_rule_never_decides(seed: int) -> None:
    pick = Random(1_000 + seed)
    policy = _policy(pick, 80)
    covered = covered_rules(policy.rules, [rule.conditions for rule in policy.rules])
    specified = _specified(policy)
    for rule, by in covered.items():
        assert by < rule
        assert not policy.rules[by].conditions or policy.rules[rule].conditions
    # Asked alone, what a covered rule matches is matched by the rule that covers it.
    for rule, by in covered.items():
        pair = Policy(
            (replace(policy.rules[by], conditions={}), replace(policy.rules[rule], conditions={}))
        )
        alone = _specified(pair)
        texts = _asked(pick, Policy((policy.rules[rule],)), 20)
        assert {alone(text) for text in texts} <= {policy.rules[by].name, DEFAULT_RULE}
        if "says" not in policy.rules[by].conditions:
            assert policy.rules[rule].name not in {specified(text) for text in texts}


LETTERS = "abc"


def _needing(pick: Random) -> tuple[list[PolicyRule], dict[int, int]]:
    """Rules of which each needs some letters to hold, and which of them are covered."""
    plain = _policy(pick, 60).rules
    needs = [frozenset(pick.choices(LETTERS, k=pick.choice([0, 1, 1, 2, 3]))) for _ in plain]
    rules = [
        replace(rule, conditions={"all": needed}) for rule, needed in zip(plain, needs, strict=True)
    ]
    return rules, covered_rules(rules, needs)


@pytest.mark.parametrize("seed", range(60))
def test_rule_that_needs_more_than_one_that_covers_it_never_decides(seed: int) -> None:
    pick = Random(2_000 + seed)
    rules, covered = _needing(pick)
    holding: set[str] = set()

    def condition(written: Mapping[str, Any]) -> Condition:
        return lambda params, now, work: written["all"] <= holding

    engine = compile_policy(Policy(tuple(rules)), condition=condition)
    for rule in covered:
        for text in _asked(pick, Policy((rules[rule],)), 8):
            for count in range(len(LETTERS) + 1):
                for letters in combinations(LETTERS, count):
                    holding.clear()
                    holding.update(letters)
                    assert engine.evaluate(*text).matched_rule != rules[rule].name


def test_rules_that_need_more_than_one_that_covers_them_are_found() -> None:
    found = [_needing(Random(2_000 + seed)) for seed in range(60)]
    assert sum(bool(rules[by].conditions["all"]) for rules, of in found for by in of.values()) > 300


@pytest.mark.parametrize("seed", range(40))
def test_literals_at_a_fixed_place_are_found_there_alone(seed: int) -> None:
    pick = Random(seed)
    letters = pick.choice([NARROW, MIXED])
    rules = [PolicyRule(_placed(pick, letters), name=f"rule_{index}") for index in range(200)]
    policy = Policy(tuple(rules))
    engine = compile_policy(policy, condition=_says)
    specified = _specified(policy)
    for asked in _asked(pick, policy, 200):
        assert engine.evaluate(*asked).matched_rule == specified(asked)


def test_covered_rules_are_found_in_every_shape() -> None:
    pairs = [
        ("a*", "ab*"), ("*b", "*ab"), ("*ab*", "*xabx*"), ("*a*b*", "*a*c*b*"), ("?*", "a*"),
        ("a*b", "a?b"), ("a*", "a[bc]"), ("*", "[!a]"), ("a?", "a[bc]"), ("ab*", "ab"),
    ]  # fmt: skip
    for wider, narrower in pairs:
        for needs in (["", ""], ["", "x"], ["x", "x"], ["x", "xy"]):
            assert covered_rules([PolicyRule(wider), PolicyRule(narrower)], needs) == {1: 0}
            assert covered_rules([PolicyRule(narrower), PolicyRule(wider)], needs) == {}
        for needs in (["x", ""], ["x", "y"], ["xy", "x"]):
            assert covered_rules([PolicyRule(wider), PolicyRule(narrower)], needs) == {}


@pytest.mark.parametrize("count", [3, 4, 40, 4_000])
def test_letters_alone_are_told_apart(count: int) -> None:
    pick = Random(count)
    letters = "abcdefghijklmnopqrstuvwxyz"
    policy = Policy(
        tuple(PolicyRule(_letters(pick, letters), name=f"rule_{i}") for i in range(count))
    )
    specified = _specified(policy)
    engine = compile_policy(policy, condition=_says)
    for _ in range(40):
        text = _text(pick, letters, 0, 20)
        assert engine.evaluate(text).matched_rule == specified((text, "", ""))


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_huge_words_and_sets_take_memory_of_their_own_size() -> None:
    wide = "".join(map(chr, range(0x4E00, 0x9E00, 2)))
    overlapping = "".join(f"{chr(0x4E00 + i)}-{chr(0x9000 + i)}" for i in range(2_000))
    globs = ["*" + "ab" * 500_000 + "*"]
    globs += [f"*[{kind}{chars}]*" for chars in (wide, overlapping) for kind in ("", "!")] * 3
    policy = Policy(tuple(PolicyRule(glob, name=f"rule_{i}") for i, glob in enumerate(globs)))
    engine = compile_policy(policy, condition=_says)
    assert engine.image_bytes < 40 * sum(map(len, globs))
    specified = _specified(policy)
    for text in ("", "\u4e00", "\u4e01", "\u9fff", "a", "ab" * 500_001):
        assert engine.evaluate(text).matched_rule == specified((text, "", ""))


@pytest.mark.parametrize("seed", range(20))
def test_overlapping_sets_are_simulated_as_specified(seed: int) -> None:
    pick = Random(seed)
    ends = ["a", "b", "m", "z", "\x00", "\u00ff", "\u0100", "\u6f22", "\U0010ffff"]
    globs = []
    for _ in range(40):
        ranges = "".join("-".join(pick.choices(ends, k=2)) for _ in range(pick.randint(1, 4)))
        globs.append(pick.choice(["*[{}]*", "*[!{}]*", "*?[{}]", "[!{}]?*"]).format(ranges))
    policy = Policy(tuple(PolicyRule(glob, name=f"rule_{i}") for i, glob in enumerate(globs)))
    engine = compile_policy(policy, condition=_says)
    specified = _specified(policy)
    for _ in range(100):
        text = "".join(pick.choices(ends, k=pick.randint(0, 4)))
        assert engine.evaluate(text).matched_rule == specified((text, "", ""))


# --- images ----------------------------------------------------------------------------------------


def test_damaged_block_is_refused() -> None:
    image = compile_policy(_policy(Random(7), 60), condition=_says).image
    pick = Random(8)
    for _ in range(300):
        damaged = bytearray(image)
        place = pick.randrange(len(image))
        damaged[place] ^= 1 << pick.randrange(8)
        with pytest.raises(ValueError, match=r"image|compiled policy"):
            Engine(damaged, condition=_says)
    for size in (0, 1, 50, 95, 96, len(image) - 1, len(image) - 4):
        with pytest.raises(ValueError, match="image"):
            Engine(image[:size], condition=_says)
    with pytest.raises(ValueError, match="image"):
        Engine(image + b"\0\0\0\0", condition=_says)


def test_block_tells_what_the_decisions_say() -> None:
    policy = Policy((PolicyRule("a*", name="\u6f22\ud800"), PolicyRule("b", name="b")))
    one = compile_policy(policy, condition=_says)
    other = Engine(one.image, condition=_says)
    for text in ("ab", "b", "c"):
        assert other.evaluate(text) == one.evaluate(text)


def test_block_is_the_same_each_time() -> None:
    policy = _policy(Random(9), 200)
    first, second = (compile_policy(policy, condition=_says).image for _ in range(2))
    assert first == second


def test_conditions_that_are_no_json_are_not_stored() -> None:
    policy = Policy((PolicyRule(name="a", conditions={"says": object()}),))
    with pytest.raises(ValueError, match="JSON"):
        _ = compile_policy(policy, condition=_says).image


def test_condition_of_a_block_is_compiled_from_what_was_written() -> None:
    policy = Policy((PolicyRule(name="a", conditions={"says": True}),))
    engine = Engine(compile_policy(policy, condition=_says).image, condition=_says)
    assert engine.evaluate("x").matched_rule == "a"


def test_block_is_used_where_it_lies() -> None:
    image = compile_policy(_policy(Random(10), 100), condition=_says).image
    shared = bytearray(image)
    engine = Engine(memoryview(shared), condition=_says)
    with pytest.raises(BufferError):
        shared.clear()  # the engine holds on to it
    assert engine.image == image
