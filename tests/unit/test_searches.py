"""Expressions that are searched for together find what each of them finds alone."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from aegis import Action, Approval, Policy, PolicyRule
from aegis.policy.conditions import compile_conditions, compiler
from aegis.policy.regexes import MAX_SET, SHORT_TEXT, Searches
from aegis_core import Work

PIECES = [
    "a", "b", "ab", ".", "^", "$", r"\b", r"\B", "a*", "(?:ab|b)+", "[^a]", "(?i:A)", "(?s:.)", "é",
    r"\A", r"\z", "(?m:^b)", "(?m:a$)", "b{2,3}", "", "a|b", "[[:digit:]]", r"\pL", "\U0001f600",
]  # fmt: skip
# Five of the large class would be over the limit of an expression.
patterns = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
texts = st.text("abAB1é漢\U0001f600\n ", max_size=8) | st.text(
    "ab\n", min_size=SHORT_TEXT - 2, max_size=SHORT_TEXT + 2
)
values: st.SearchStrategy[object] = texts | st.sampled_from(
    [True, 1, 1.5, None, [], {}, "\ud800", 2.0**60]
)


def outcome(condition: Any, value: object) -> object:
    """What a condition answers or raises."""
    try:
        return condition({"p": value}, 0.0, Work())
    except UnicodeEncodeError:
        return UnicodeEncodeError


@given(st.lists(patterns, min_size=1, max_size=6), st.lists(values, max_size=4))
def test_expressions_find_together_what_they_find_alone(
    written: list[str], asked: list[object]
) -> None:
    together = compiler()
    rules = [{"param_matches": {"p": pattern}} for pattern in written]
    pairs = [(together(rule), compile_conditions(rule)) for rule in rules]
    for value in asked:
        for both, alone in pairs:
            assert outcome(both, value) == outcome(alone, value)


def many(count: int) -> list[Any]:
    """Expressions added to one policy's searches, each of which finds the text of its number."""
    searches = Searches()
    return [searches.add("p", f"^{number}$") for number in range(count)]


def test_more_expressions_than_one_program_holds_are_all_found() -> None:
    found = many(MAX_SET)
    for number in (0, 1, 199, 200, MAX_SET - 1):
        text = str(number)
        assert [search.found_in(text) for search in found] == [
            other == number for other in range(MAX_SET)
        ]


def test_expression_too_large_for_a_set_is_searched_for_alone() -> None:
    searches = Searches()
    found = [searches.add("p", pattern) for pattern in ("a", f"a{{{MAX_SET}}}", "b")]
    assert [search.found_in("ab") for search in found] == [True, False, True]
    assert [search.found_in("a" * MAX_SET) for search in found] == [True, True, False]


def test_expression_that_comes_after_a_search_is_searched_for_too() -> None:
    searches = Searches()
    first, second = (searches.add("p", pattern) for pattern in "ab")
    assert (first.found_in("abc"), second.found_in("abc")) == (True, True)
    third = searches.add("p", "c")
    assert (first.found_in("abc"), second.found_in("abc"), third.found_in("abc")) == (
        True,
        True,
        True,
    )


def test_parameters_do_not_answer_for_each_other() -> None:
    compiled = compiler()
    conditions = [
        compiled({"param_matches": {name: pattern}})
        for name in ("p", "q")
        for pattern in ("a", "b")
    ]
    asked = {"p": "a", "q": "b"}
    assert [held and held(asked, 0.0, Work()) for held in conditions] == [True, False, False, True]


class OutOfMemory:
    """What RE2's set does where its memory does not suffice: it says nothing, and finds nothing."""

    @classmethod
    def SearchSet(cls, _: object) -> OutOfMemory:  # noqa: N802 - the name is RE2's
        return cls()

    def Add(self, _: str) -> None: ...  # noqa: N802

    def Compile(self) -> None: ...  # noqa: N802

    def Match(self, _: bytes) -> None: ...  # noqa: N802


class Refuses(OutOfMemory):
    """A set that RE2 will not compile."""

    def Compile(self) -> None:  # noqa: N802
        raise re2.error("failed to compile Set")


@pytest.mark.parametrize("kind", [OutOfMemory, Refuses])
def test_search_that_fails_is_not_taken_for_finding_nothing(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(re2, "Set", kind)
    found = many(5)
    assert [search.found_in("3") for search in found] == [False, False, False, True, False]


def test_equal_text_of_another_type_is_searched_anew() -> None:
    class Sly(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    found = many(3)
    assert found[1].found_in("1")
    assert not found[1].found_in(Sly("2"))


def test_threads_share_searches() -> None:
    rules = tuple(
        PolicyRule(
            name=str(number),
            approval=Approval.AUTO,
            conditions={"param_matches": {"p": f"^{number}x*$"}},
        )
        for number in range(8)
    )
    policy = Policy(rules)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for times in range(300):
            decision = policy.evaluate(Action("a", params={"p": f"{number}{'x' * (times % 9)}"}))
            if decision.matched_rule != str(number):
                wrong.append(decision.matched_rule)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
