"""The API's description against the server: operations, errors, parameters, members, answers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import aegis
import aegis.errors
from aegis.audit.filters import AUDIT_PARAMETERS
from aegis.config import Settings
from aegis.errors import AegisError
from aegis.server.openapi.errors import ERRORS
from aegis.server.openapi.paths import OPERATIONS
from aegis.server.openapi.spec import document
from tests.contract.client import (
    AUDIT,
    EVALUATE,
    EXECUTE,
    POLICY_PATH,
    RELOAD,
    ROLLBACK,
    VERSIONS,
    Client,
    app_of,
    app_of_file,
    routes_of,
    served,
)

DOCUMENT = document(Settings())
SOURCES = sorted(Path(aegis.__file__).parent.rglob("*.py"))


def errors_below(kind: type[AegisError]) -> set[type[AegisError]]:
    """A class of errors and all that stand below it."""
    return {kind}.union(*(errors_below(below) for below in kind.__subclasses__()))


def raised_codes() -> set[tuple[str, str]]:
    """Names of error classes, and the codes that they are raised with instead of their own."""
    names = set(aegis.errors.__all__)
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in names
            ):
                texts = node.args[1:2] + [
                    word.value for word in node.keywords if word.arg == "code"
                ]
                found |= {
                    (node.func.id, text.value)
                    for text in texts
                    if isinstance(text, ast.Constant) and isinstance(text.value, str)
                }
    return found


@pytest.mark.one_interface
def test_document_is_openapi() -> None:
    validate(DOCUMENT)


@pytest.mark.one_interface
def test_operations_are_those_of_the_route_table() -> None:
    routes = {route for route in routes_of(app_of()) if route[0] != "HEAD"}
    assert set(OPERATIONS) == routes


@pytest.mark.one_interface
def test_errors_are_those_of_the_tree() -> None:
    ours = [kind for kind in errors_below(AegisError) if kind.__module__.startswith("aegis")]
    answered = {
        (kind.status, kind.code)
        for kind in ours
        if kind.code not in ("invalid_configuration", "invalid_trail", "invalid_head")
    } | {(getattr(aegis.errors, name).status, code) for name, code in raised_codes()}
    abstract = {(400, "internal_error")}
    assert answered - abstract == {
        (status, code) for status, (_, codes) in ERRORS.items() for code in codes
    }


@pytest.mark.one_interface
def test_parameters_are_those_of_the_audit() -> None:
    described = {parameter["name"] for parameter in OPERATIONS["GET", AUDIT]["parameters"]}
    assert described == set(AUDIT_PARAMETERS)


def test_document_is_served_and_knows_whether_keys_are_asked_for() -> None:
    with served() as client:
        assert client.get("/openapi.json").json == DOCUMENT
    with served(app_of(api_key="k"), headers={"x-api-key": "k"}) as client:
        secured = client.get("/openapi.json").json["paths"][EVALUATE]["post"]["security"]
        assert secured == [{"ApiKey": []}, {"Bearer": []}]


@pytest.mark.one_interface
def test_limit_of_a_batch_is_the_servers() -> None:
    schemas = document(Settings(max_batch=7))["components"]["schemas"]
    assert schemas["Actions"]["anyOf"][-1]["maxItems"] == 7
    assert schemas["Batch"]["properties"]["actions"]["maxItems"] == 7


def schemas_in(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What stands where a schema may, besides the limit of members, and where that is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if place.endswith(("/properties", "/patternProperties")) or name in (
                *("items", "not", "schema"),
            ):
                yield f"{place}/{name}", inner
            yield from schemas_in(inner, f"{place}/{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if place.endswith(("/anyOf", "/oneOf", "/allOf")):
                yield f"{place}/{index}", inner
            yield from schemas_in(inner, f"{place}/{index}")


def test_generators_of_clients_can_read_every_schema() -> None:
    found = dict(schemas_in(DOCUMENT, ""))
    assert len(found) > 100
    # openapi-python-client reads no schema that is `true` or `false`, ...
    assert [place for place, schema in found.items() if not isinstance(schema, dict)] == []
    # ... openapi-typescript takes an open mapping for an empty one unless it says what it has ...
    mappings = {
        place: schema
        for place, schema in found.items()
        if "object" in schema.get("type", ()) and "properties" not in schema
    }
    assert [place for place, of in mappings.items() if "additionalProperties" not in of] == []
    # ... and a member with a default for one that has to be sent.
    actions = document(Settings())["components"]["schemas"]
    for name in ("Action", "ActionByType"):
        members = actions[name]["properties"].values()
        assert not any("default" in member for member in members)


ASKED: list[tuple[str, str, Any]] = [
    ("GET", "/health", None),
    ("GET", "/health/live", None),
    ("GET", "/health/ready", None),
    ("POST", EVALUATE, {"action_type": "read"}),
    ("POST", EVALUATE, [{"type": "write"}, {"action_type": None, "type": "x"}]),
    ("POST", EVALUATE, {"actions": []}),
    ("POST", EVALUATE, {"action_type": ""}),
    ("POST", EXECUTE, {"action_type": "read", "params": {"a": 1}, "chain_depth": 3}),
    ("POST", EXECUTE, [{"action_type": "delete"}]),
    ("POST", EXECUTE, "text"),
    ("GET", f"{AUDIT}?limit=1", None),
    ("GET", f"{AUDIT}?risk_level=none", None),
    ("GET", POLICY_PATH, None),
    ("PUT", POLICY_PATH, {"rules": [{"name": "a"}, {"name": "a"}]}),
    ("PUT", POLICY_PATH, {"rules": [{"nam": "a"}]}),
    ("DELETE", POLICY_PATH, None),
    ("GET", f"{VERSIONS}?limit=1", None),
    ("GET", f"{VERSIONS}/{{version}}", None),
    ("GET", f"{VERSIONS}/99", None),
    ("POST", ROLLBACK, {"version": 1}),
    ("POST", ROLLBACK, {"version": 99}),
    ("POST", ROLLBACK, {"version": "1"}),
    ("POST", RELOAD, None),
    ("GET", "/nope", None),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with served(app_of_file(tmp_path_factory.mktemp("policy"))) as made:
        made.post(EXECUTE, {"action_type": "read"})
        yield made


@pytest.mark.parametrize(("method", "path", "value"), ASKED)
def test_answer_is_as_described(client: Client, method: str, path: str, value: Any) -> None:
    reply = client.ask(method, path, value)
    operation = OPERATIONS.get((method, path.partition("?")[0]))
    if operation is None:
        schema = {"$ref": f"#/components/schemas/Error{reply.status}"}
    else:
        described = operation["responses"][str(reply.status)]
        schema = described["content"]["application/json"]["schema"]
        assert {name.lower() for name in described["headers"]} <= dict(reply.headers).keys()
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    assert [error.message for error in validator.iter_errors(reply.json)] == []


@pytest.mark.parametrize(
    "route", [of for of, operation in OPERATIONS.items() if "requestBody" in operation]
)
def test_examples_are_taken(client: Client, route: tuple[str, str]) -> None:
    body = OPERATIONS[route]["requestBody"]["content"]["application/json"]
    assert client.ask(*route, body["example"]).status == 200
    validator = Draft202012Validator({**body["schema"], "components": DOCUMENT["components"]})
    assert validator.is_valid(body["example"])
