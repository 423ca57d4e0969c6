"""The documents name all there is: options, routes, errors, parameters, members, limits, names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import aegis
from aegis.audit import ResultStatus
from aegis.audit.filters import AUDIT_PARAMETERS
from aegis.auth.roles import PERMISSIONS, Permission, Role
from aegis.bench import plots, report
from aegis.cli import main
from aegis.config import Settings
from aegis.policy.conditions import CONDITIONS
from aegis.server.openapi.errors import ERRORS
from aegis.server.openapi.spec import document
from tests.contract.client import app_of, routes_of
from tests.meta import option_tables
from tests.meta.documents import DOCUMENTS, ROOT, rows, words


def commands(command: click.Command = main, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, and the heading that it has."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *names, name)
    else:
        arguments = [
            argument.human_readable_name
            if argument.required
            else f"[{argument.human_readable_name}]"
            for argument in command.params
            if isinstance(argument, click.Argument)
        ]
        yield f"`{' '.join(('aegis', *names, *arguments))}`", command


COMMANDS = dict(commands())


def default_of(option: click.Option, command: click.Command) -> str:
    """An option's default as the documents write it."""
    value = option.to_info_dict().get("default")
    shown = value if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    return f"`{shown}`" if shown != "" else ""


@pytest.mark.parametrize("heading", [name for name in COMMANDS if " serve " not in name])
def test_options_stand_in_a_table_with_variable_default_and_meaning(heading: str) -> None:
    command = COMMANDS[heading]
    options = [option for option in command.params if isinstance(option, click.Option)]
    expected = [
        [
            f"`{option.opts[0]}`",
            f"`{option.envvar}`" if option.envvar else "",
            default_of(option, command),
            option.help,
        ]
        for option in options
    ]
    assert rows("docs/cli.md", heading) == expected


def test_commands_have_headings_and_headings_have_commands() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(COMMANDS)


def test_routes_stand_in_a_table_with_their_permissions() -> None:
    routes = {
        (method, path, route.permission.value if route.permission else "none")
        for (method, path), route in routes_of(app_of()).items()
        if method != "HEAD"
    }
    table = rows("docs/http-api.md", "Routes")
    assert {(row[0], row[1].strip("`"), row[2].strip("`")) for row in table} == routes


def test_errors_stand_in_a_table_with_their_statuses() -> None:
    errors = [(str(status), code) for status, (_, codes) in ERRORS.items() for code in codes]
    table = [(row[0], row[1].strip("`")) for row in rows("docs/http-api.md", "Errors")]
    assert sorted(table) == sorted(errors)


def test_parameters_of_the_audit_stand_in_a_table() -> None:
    table = rows("docs/http-api.md", "The audit")
    assert [row[0].strip("`") for row in table] == list(AUDIT_PARAMETERS)


def test_members_of_records_and_actions_stand_in_tables() -> None:
    schemas = document(Settings())["components"]["schemas"]
    told = {word for row in rows("docs/http-api.md", "Records") for word in words(row[0])}
    assert told == set(schemas["AuditRecord"]["properties"])
    members = {word for row in rows("docs/http-api.md", "Actions") for word in words(row[0])}
    assert members == set(schemas["Action"]["properties"]) - {"actions"}


def test_statuses_of_results_stand_in_a_table() -> None:
    table = rows("docs/http-api.md", "Decisions and results")
    assert [row[0].strip("`") for row in table] == [status.value for status in ResultStatus]


def test_conditions_stand_in_a_table() -> None:
    named = [words(row[0])[0].partition(":")[0] for row in rows("docs/policy.md", "Conditions")]
    assert sorted(named) == sorted(CONDITIONS)


def test_permissions_of_roles_stand_in_a_table() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows("docs/security.md", "Keys and roles")}
    assert table == {
        role.value: ["yes" if permission in PERMISSIONS[role] else "" for permission in Permission]
        for role in Role
    }


@pytest.mark.parametrize(("document", "heading"), option_tables.tables())
def test_tables_of_options_are_those_that_are_made_from_them(document: str, heading: str) -> None:
    table = option_tables.tables()[document, heading]
    assert option_tables.written(document, heading)[0] == table, (
        "run `python -m tests.meta.option_tables`"
    )


def test_quoted_figures_are_those_of_the_stored_run() -> None:
    stored = json.loads((ROOT / "benchmarks/results/results.json").read_text(encoding="utf-8"))
    ratios = report.ratios_of(stored)
    quoted = rows("docs/benchmarks.md", "Figures")
    assert len(quoted) > 10
    assert quoted == [[row[0], f"{ratios[row[0]]:.2f}"] for row in quoted]


def test_stored_report_is_that_of_the_stored_run() -> None:
    folder = ROOT / "benchmarks/results"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    drawn = plots.plots(stored)
    assert (folder / "report.md").read_text(encoding="utf-8") == report.markdown(
        stored, list(drawn)
    )
    assert {path.name for path in folder.glob("*.svg")} == set(drawn)


def test_public_names_are_told() -> None:
    text = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
    assert [name for name in aegis.__all__ if f"`{name}`" not in text] == []


def test_rooms_of_the_architecture_are_those_of_the_tree() -> None:
    room, written = "", []
    for cells in rows("docs/architecture.md", "Rooms"):
        room = cells[0].strip("`") or room
        written += [f"{room}{name}" for name in re.findall(r"`(\w+)`", cells[1])]
    found = [
        path.relative_to(ROOT).with_suffix("").as_posix()
        for root in ("aegis", "aegis_core")
        for path in (ROOT / root).rglob("*.py*")
        if path.suffix in (".py", ".pyx")
    ]
    packages = {"aegis/server/__init__"}  # the composition root; the others say what they hold
    assert sorted(written) == sorted(
        name for name in found if not name.endswith("__init__") or name in packages
    )


@pytest.mark.parametrize(
    "row", rows("docs/architecture.md", "Where do I find …"), ids=lambda row: row[0]
)
def test_what_the_architecture_points_to_is_there(row: list[str]) -> None:
    _, file, sought = (cell.strip("`") for cell in row)
    assert sought in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in pages if f"docs/{name}" not in readme] == []


def test_decisions_are_numbered_and_indexed() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("0*.md"))
    titles = [page.read_text(encoding="utf-8").splitlines()[0] for page in pages]
    assert [title.split(".")[0] for title in titles] == [f"# {n}" for n in range(1, len(pages) + 1)]
    index = [row[:2] for row in rows("docs/decisions/README.md", "Decisions")]
    assert index == [
        [f"[{number}]({page.name})", title.partition(". ")[2]]
        for number, (page, title) in enumerate(zip(pages, titles, strict=True), 1)
    ]
