"""Policies as they are written for agent-aegis load unchanged and decide the same.

The decisions below are those of agent-aegis 1.0.0 (PyPI) for these policies and actions, asked in
process by its `Policy.from_yaml` and `Policy.evaluate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis import Action, Policy

OPERATIONS = """\
version: "1"

defaults:
  risk_level: medium
  approval: approve

rules:
  - name: read_auto
    match: { type: "read*" }
    risk_level: low
    approval: auto
  - name: bulk_ops
    match: { type: "update*" }
    conditions:
      param_gt: { count: 100 }
    risk_level: high
    approval: approve
  - name: small_updates
    match:
      type: "update*"
      target: "crm*"
    risk_level: LOW
    approval: auto
  - match: { type: "deploy", target: "prod-?" }
    risk_level: critical
    approval: block
  - name: shell_block
    match: { type: "exec*" }
    risk_level: Critical
    approval: block
"""

CONDITIONS = """\
version: 1
scope: team
scope_id: payments
description: Payments of one team
rules:
  - name: wire_review
    match: { type: "wire_*", agent: "fin-*" }
    conditions:
      param_gte: { amount: 10000 }
      param_lte: { amount: 50000 }
    risk_level: high
  - name: no_large_wires
    match: { type: "wire_*" }
    conditions: { param_gt: { amount: 50000 } }
    risk_level: critical
    approval: block
  - name: euro
    match: { type: "pay" }
    conditions:
      param_eq: { currency: EUR }
      param_contains: { tags: urgent }
      param_matches: { iban: "^DE[0-9]{2}" }
    approval: auto
  - name: cents
    match: { type: "pay" }
    conditions:
      param_lt: { amount: 1 }
    risk_level: low
    approval: auto
"""

FIRST_WINS = """\
rules:
  - {name: one, match: {type: "[rw]*", target: "a[!b]c"}, approval: auto}
  - {name: two, match: {type: "*", target: "*.secret.*"}, approval: block, risk_level: critical}
  - {name: three, match: {type: "*_file", target: "/tmp/*"}, approval: auto, risk_level: low}
  - {name: four, match: {target: "*"}, approval: approve}
"""

POLICIES = {"operations": OPERATIONS, "conditions": CONDITIONS, "first wins": FIRST_WINS}

CASES: list[tuple[str, str, str, str, dict[str, Any], str]] = [
    # policy, action type, target, agent, params, decision
    ("operations", "read", "crm", "", {}, "auto LOW read_auto"),
    ("operations", "readall", "", "", {}, "auto LOW read_auto"),
    ("operations", "Read", "crm", "", {}, "approve MEDIUM <default>"),
    ("operations", "update", "crm-eu", "", {"count": 5}, "auto LOW small_updates"),
    ("operations", "update", "crm", "", {"count": 100}, "auto LOW small_updates"),
    ("operations", "update", "crm", "", {"count": 101}, "approve HIGH bulk_ops"),
    ("operations", "update_rows", "erp", "", {"count": 100.5}, "approve HIGH bulk_ops"),
    ("operations", "update", "erp", "", {"count": 7}, "approve MEDIUM <default>"),
    ("operations", "update", "crm", "", {}, "auto LOW small_updates"),
    ("operations", "deploy", "prod-1", "", {}, "block CRITICAL rule_3"),
    ("operations", "deploy", "prod-12", "", {}, "approve MEDIUM <default>"),
    ("operations", "exec_shell", "x", "", {}, "block CRITICAL shell_block"),
    ("operations", "list", "x", "", {}, "approve MEDIUM <default>"),
    ("conditions", "wire_out", "x", "fin-1", {"amount": 10000}, "approve HIGH wire_review"),
    ("conditions", "wire_out", "x", "fin-1", {"amount": 50000}, "approve HIGH wire_review"),
    ("conditions", "wire_out", "x", "fin-1", {"amount": 50001}, "block CRITICAL no_large_wires"),
    ("conditions", "wire_out", "x", "hr-1", {"amount": 20000}, "block MEDIUM <default>"),
    ("conditions", "wire_out", "x", "hr-1", {"amount": 60000}, "block CRITICAL no_large_wires"),
    (
        "conditions",
        "pay",
        "x",
        "",
        {"currency": "EUR", "tags": ["urgent", "a"], "iban": "DE44500"},
        "auto MEDIUM euro",
    ),
    (
        "conditions",
        "pay",
        "x",
        "",
        {"currency": "EUR", "tags": "urgent!", "iban": "DE44"},
        "auto MEDIUM euro",
    ),
    (
        "conditions",
        "pay",
        "x",
        "",
        {"currency": "EUR", "tags": [], "iban": "DE44"},
        "block MEDIUM <default>",
    ),
    (
        "conditions",
        "pay",
        "x",
        "",
        {"currency": "USD", "tags": ["urgent"], "iban": "DE44", "amount": 0.5},
        "auto LOW cents",
    ),
    ("conditions", "pay", "x", "", {"amount": 1}, "block MEDIUM <default>"),
    ("conditions", "pay", "x", "", {}, "block MEDIUM <default>"),
    ("first wins", "read", "axc", "", {}, "auto MEDIUM one"),
    ("first wins", "write", "abc", "", {}, "approve MEDIUM four"),
    ("first wins", "read", "a.secret.c", "", {}, "block CRITICAL two"),
    ("first wins", "read", "a/c", "", {}, "auto MEDIUM one"),
    ("first wins", "make_file", "/tmp/x/y", "", {}, "auto LOW three"),
    ("first wins", "make_file", "/tmp", "", {}, "approve MEDIUM four"),
    ("first wins", "x", "", "", {}, "approve MEDIUM four"),
]


@pytest.mark.one_interface
@pytest.mark.parametrize(("name", "kind", "target", "agent", "params", "decision"), CASES)
def test_decision_is_that_of_agent_aegis(
    tmp_path: Path,
    name: str,
    kind: str,
    target: str,
    agent: str,
    params: dict[str, Any],
    decision: str,
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICIES[name], encoding="utf-8")
    policy = Policy.from_yaml(tmp_path / "policy.yaml")
    made = policy.evaluate(Action(kind, target, params=params, agent_id=agent))
    assert f"{made.approval.value} {made.risk_level.name} {made.matched_rule}" == decision
