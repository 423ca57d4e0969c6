"""Decides for a caller: agent binding, decision, recording. Every protocol's one door to both.

It knows no protocol: its callers read the request by `wire`, and write the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from aegis.audit import Claim
from aegis.auth.keys import Key
from aegis.config import AuditDecisions
from aegis.errors import Forbidden
from aegis.execution.enforcer import Enforcer
from aegis.execution.executors import Result
from aegis.execution.records import RequestContext
from aegis.messages import quote
from aegis.policy.decision_point import PIECE, Decider, Snapshot, decide_all
from aegis.wire import Actions, Questions
from aegis_core import Action, Batch, Decision

__all__ = ["ActionService"]


class ActionService:
    """Decides about actions for those who ask, and executes them.

    Invariant: an action of a key that names its agents is decided, recorded and executed as an
    action of one of these.

    Args:
        snapshot: Gives the policy in force, at least as new as any that was answered for.
        decider: Decides by it.
        enforcer: Gives what executes and records; raises NotReady if the server is stopping.
        audit_decisions: Which decisions about actions that are not executed are recorded.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        decider: Decider,
        enforcer: Callable[[], Enforcer],
        audit_decisions: AuditDecisions,
    ) -> None:
        self.snapshot = snapshot
        self._decider = decider
        self._at_once = decider.at_once
        self._enforcer = enforcer
        self._records_none = audit_decisions is AuditDecisions.NONE
        self._records_allowed = audit_decisions is AuditDecisions.ALL

    def refuse_when_not_ready(self) -> None:
        """See that actions can be decided about and executed now.

        Raises:
            NotReady: They cannot.
        """
        self._enforcer()
        self.snapshot()

    # --- to JSON, recording nothing: no Python object is made of a decision ------------------------

    def decide_object(
        self, value: Any, body: bytes, caller: Key | None, snapshot: Snapshot
    ) -> bytes | None:
        """The decision about a single plain action, as JSON.

        Args:
            value: The action as `codec.loads` reads it; its integers need not be exact.
            body: What that was read from.
            caller: Whose key asks.
            snapshot: The policy to decide by.

        Returns:
            None: it is not a plain action, takes long, or its key names agents: ask `decide`.
        """
        if caller is not None and caller.agents:
            return None
        return snapshot.engine.evaluate_object_json(value, body, self._at_once)

    def decide(
        self, questions: Questions, caller: Key | None, snapshot: Snapshot
    ) -> bytes | Awaitable[bytes]:
        """The decisions about actions as JSON: a list, or an object if only one was asked about.

        All are by one policy. What takes long goes on in a thread, and only then is awaitable.

        Raises:
            Forbidden: The key may not speak for an agent.
        """
        batch = self._begin(questions, caller, snapshot)
        if not self._decider.is_decided_at_once(batch):
            return self._decider.in_thread(lambda: _answer(decide_all(batch), questions))
        return _answer(batch.result, questions)

    async def decide_in_thread(
        self, read: Callable[[], Questions], caller: Key | None, snapshot: Snapshot
    ) -> bytes:
        """As `decide`, if only to read what is asked would hold the event loop for long.

        Args:
            read: Reads what is asked; called in the thread.
            caller: Whose key asks.
            snapshot: The policy to decide by.
        """

        def decided() -> bytes:
            questions = read()
            return _answer(decide_all(self._begin(questions, caller, snapshot)), questions)

        return await self._decider.in_thread(decided)

    def _begin(self, questions: Questions, caller: Key | None, snapshot: Snapshot) -> Batch[bytes]:
        items = questions.items
        if caller is not None and caller.agents:
            items = [
                (kind, target, _bind_agent(caller, agent_id, index, questions), params)
                for index, (kind, target, agent_id, params) in enumerate(items)
            ]
        return snapshot.engine.begin_json(items, self._decider.work(questions.read_params))

    # --- to decisions and results, recorded --------------------------------------------------------

    async def evaluate(self, actions: Actions, context: RequestContext) -> list[Decision]:
        """Decide about actions that are not executed, and record what `audit_decisions` says.

        Raises:
            Forbidden: The key may not speak for an agent.
            AuditUnavailable: They were not committed in time.
        """
        bound = await _bind(actions, context.caller)
        decisions = await self._decider.decide(context.snapshot.engine, bound)
        if not self._records_none:
            recorded = [
                (action, decision)
                for action, decision in zip(bound, decisions, strict=True)
                if self._records_allowed or not decision.is_allowed
            ]
            if recorded:
                await self._enforcer().record_decisions(recorded, context)
        return decisions

    def execute(
        self, actions: Actions, context: RequestContext, claim: Claim | None = None
    ) -> Awaitable[list[Result]]:
        """Decide about actions, and run them, as `Enforcer.run` does.

        Raises:
            Forbidden: The key may not speak for an agent.
            NotReady: The server is stopping.
            AuditUnavailable: A record was not committed in time; nothing was executed.
            OutcomeUnknown: As before, but something was.
            Conflict: The claim was made for something else, or what it was made for still runs.
        """
        enforcer, engine, key = self._enforcer(), context.snapshot.engine, context.caller
        items = actions.items
        # What nearly every request is: it needs no coroutine to be decided.
        if len(items) == 1 and not engine.has_conditions and (key is None or not key.agents):
            action = items[0]
            decision = engine.evaluate(action.type, action.target, action.agent_id, action.params)
            return enforcer.run(items, [decision], context, claim)
        return self._execute(enforcer, actions, context, claim)

    async def _execute(
        self, enforcer: Enforcer, actions: Actions, context: RequestContext, claim: Claim | None
    ) -> list[Result]:
        bound = await _bind(actions, context.caller)
        decisions = await self._decider.decide(context.snapshot.engine, bound)
        return await enforcer.run(bound, decisions, context, claim)

    async def read_in_thread(self, read: Callable[[bytes], Actions], body: bytes) -> Actions:
        """The actions of a large body, read in the thread of decisions that take long."""
        return await self._decider.in_thread(read, body)


def _answer(decisions: bytes, questions: Questions) -> bytes:
    return decisions if questions.is_batch else decisions[1:-1]


async def _bind(actions: Actions, key: Key | None) -> Sequence[Action]:
    """Actions, each of the agent that the key speaks for.

    Raises:
        Forbidden: It may not speak for one.
    """
    if key is None or not key.agents:
        return actions.items
    bound: list[Action] = []
    for action in actions.items:
        agent_id = _bind_agent(key, action.agent_id, len(bound), actions)
        bound.append(replace(action, agent_id=agent_id))
        if not len(bound) % PIECE:
            await asyncio.sleep(0)
    return bound


def _bind_agent(key: Key, agent_id: str, index: int, request: Actions | Questions) -> str:
    """The agent of an action that a key asks about: `agent_id`, if it may speak for that one."""
    agent = key.agent_for(agent_id)
    if agent is None:
        member = f"actions[{index}].agent_id" if request.is_batch else "agent_id"
        known = ", ".join(map(quote, key.agents))
        raise Forbidden(
            f"`{member}` {quote(agent_id)}: this key speaks for {known} only", "forbidden_agent"
        )
    return agent
