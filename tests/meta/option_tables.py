"""The tables of options in the documents, made from `OPTIONS`.

`python -m tests.meta.option_tables` writes them into the documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.audit.reader import MAX_WAITING
from aegis.config import OPTIONS, Option, Settings
from aegis.execution.executors import MAX_ERROR_CHARS, MAX_REQUEST_RESULT_BYTES
from aegis.option_types import Integer, Number
from aegis.server.api.operators import MAX_CHANGES
from tests.meta.documents import ROOT

NOT_LIMITS = ("port", "workers", "drain_delay")


def tables() -> dict[tuple[str, str], str]:
    """The tables by document and heading."""
    return {
        ("docs/cli.md", "`aegis serve POLICY`"): _table(
            "| option | variable | takes | default | |", map(_of_serve, OPTIONS.values())
        ),
        ("docs/embedding.md", "Arguments of create_app"): _table(
            "| argument | takes | default | |",
            (_of_create_app(option) for option in OPTIONS.values() if option.is_argument),
        ),
        ("docs/operation.md", "Limits"): _table("| limit | default | option |", _limits()),
    }


def written(document: str, heading: str) -> re.Match[str]:
    """The first table after a heading, as it is in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    title = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    assert title is not None, f"{document} has no heading {heading}"
    table = re.compile(r"^\|(?:.*\n)(?:\|.*\n)+", re.MULTILINE).search(text, title.end())
    assert table is not None, f"{document} has no table after {heading}"
    return table


def _table(head: str, rows: Iterator[str]) -> str:
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([head, rule, *rows, ""])


def _of_serve(option: Option) -> str:
    flag = f"`{option.flag}`" if option.has_flag else ""
    if option.name == "policy":
        flag = "`POLICY`"
    return _row(flag, f"`{option.variable}`", _takes(option), _code(option), option.help)


def _of_create_app(option: Option) -> str:
    takes = {"policy": "file, or a `Policy`", "executor": "an `Executor`, or text"}
    shown = takes.get(option.name, _takes(option))
    return _row(f"`{option.name}`", shown, _code(option), option.help)


def _takes(option: Option) -> str:
    if option.type.choices:
        return option.type.limits
    return f"{option.type.name} {option.type.limits}".strip()


def _code(option: Option) -> str:
    return f"`{option.default_text}`" if option.default_text else ""


def _limits() -> Iterator[str]:
    for option in OPTIONS.values():
        if isinstance(option.type, Integer | Number) and option.name not in NOT_LIMITS:
            unit = " s" if isinstance(option.type, Number) else ""
            if option.name.endswith("_bytes"):
                unit = " bytes"
            amount = f"{option.default:,.0f}{unit}"
            yield _row(option.help.removesuffix("."), amount, f"`{option.flag}`")
    settings = Settings()
    for limit, amount in (
        ("Body of a `PUT` of the policy", f"{settings.max_policy_bytes:,} bytes"),
        ("Data and errors of all results of one request", f"{MAX_REQUEST_RESULT_BYTES:,} bytes"),
        ("Error of an executor's result", f"{MAX_ERROR_CHARS:,} characters"),
        ("Seconds for running executions when the server stops", f"{settings.drain_timeout:g} s"),
        ("Records waiting for their commit", f"{settings.max_queued_records:,}"),
        ("Reads of the audit waiting, per worker", str(MAX_WAITING)),
        ("Changes of the policy waiting, per worker", str(MAX_CHANGES)),
    ):
        yield _row(limit, amount, "")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def write() -> None:
    """Write the tables into the documents."""
    for (document, heading), table in tables().items():
        found, path = written(document, heading), ROOT / document
        path.write_text(found.string[: found.start()] + table + found.string[found.end() :])


if __name__ == "__main__":
    write()
