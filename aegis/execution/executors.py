"""Executors, which do the actions, and the guard around one: whatever it does, an action gets a result."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from aegis.audit import ResultStatus
from aegis.codec import dumps, dumps_foreign, encodable, loads_own, written
from aegis.messages import json_type, quote
from aegis.redaction import Redaction
from aegis_core import Action

__all__ = [
    "MAX_ERROR_CHARS",
    "MAX_REQUEST_RESULT_BYTES",
    "NO_OP_DATA",
    "NO_OP_DATA_JSON",
    "Executor",
    "GuardedExecutor",
    "NoOpExecutor",
    "Result",
    "ResultBudget",
    "result_json",
]

_log = logging.getLogger("aegis.executor")

MAX_ERROR_CHARS = 16 * 1024
"""Of a result's error; longer ones are cut."""
_MIN_ERROR_CHARS = 256
"""What an error keeps even if the results of its request are over their limit."""
MAX_REQUEST_RESULT_BYTES = 64 * 1024 * 1024
"""Of the data and errors of all results of one request: they wait in memory for the answer."""


@dataclass(slots=True)
class Result:
    """What became of an action.

    Args:
        action: The action.
        status: How it ended.
        data: What it gave, as JSON has it.
        error: What went wrong; None if nothing did.
    """

    action: Action
    status: ResultStatus
    data: Any = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the action was done."""
        return self.status == ResultStatus.SUCCESS


class Executor(ABC):
    """Does what was decided. `execute` is required; an exception becomes a `failed` result."""

    @abstractmethod
    async def execute(self, action: Action) -> Result:
        """Do one action."""

    async def setup(self) -> None:  # noqa: B027 - optional: doing nothing is right for most
        """Get ready; called once, before the server takes requests."""

    async def teardown(self) -> None:  # noqa: B027 - as `setup`
        """Let go of everything; called once, after the last action."""

    async def verify(self, action: Action, result: Result) -> bool:
        """Whether an action that succeeded has had its effect; False makes it `failed`."""
        return result.ok


NO_OP_DATA = {"executed": True}
"""The data of every result of the no-op executor; the same object, so that it is known by `is`."""
NO_OP_DATA_JSON = '{"executed":true}'
_NO_OP_MEMBERS = b'"status":"success","data":{"executed":true},"error":null}'


class NoOpExecutor(Executor):
    """Does nothing and says so: the default, for those who only want decisions and the audit."""

    async def execute(self, action: Action) -> Result:
        """Answer `{"executed": true}`."""
        return Result(action, ResultStatus.SUCCESS, NO_OP_DATA)


def result_json(result: Result) -> bytes:
    """A result as the API answers it."""
    if result.data is NO_OP_DATA:
        return b'{"action_type":%b,"target":%b,%b' % (
            dumps(result.action.type),
            dumps(result.action.target),
            _NO_OP_MEMBERS,
        )
    return b'{"action_type":%b,"target":%b,"status":%b,"data":%b,"error":%b}' % (
        dumps(result.action.type),
        dumps(result.action.target),
        dumps(result.status.value),
        dumps(result.data),
        dumps(result.error),
    )


@dataclass(slots=True)
class ResultBudget:
    """How much the results of one request may still hold."""

    left_bytes: int = MAX_REQUEST_RESULT_BYTES


class GuardedExecutor:
    """Calls an executor, which is foreign code: it may raise, hang, or return anything.

    Invariant: `execute` returns a checked result of the very action that it was given, within the
    timeout, and raises nothing of the executor's.

    Args:
        executor: Does the actions.
        timeout_s: How long one action may take.
        max_data_bytes: How much data a result may have, as JSON.
        redaction: Which values neither errors nor the log may show.

    Attributes:
        has_effects: Whether anything happens outside; not by the no-op executor.
        is_stopping: Whether `stop` was called.
    """

    def __init__(
        self, executor: Executor, *, timeout_s: float, max_data_bytes: int, redaction: Redaction
    ) -> None:
        self._executor = executor
        self._timeout_s = timeout_s
        self._max_data_bytes = max_data_bytes
        self._redaction = redaction
        self.has_effects = type(executor) is not NoOpExecutor
        self.is_stopping = False
        # The loop holds tasks weakly: without this set one could be collected while it runs.
        self._running: set[asyncio.Task[Result]] = set()
        self._stop: asyncio.Future[None] | None = None

    async def setup(self) -> None:
        """Get the executor ready; called once, on the loop that serves."""
        self._stop = asyncio.get_running_loop().create_future()
        await _call(self._executor, "setup")

    def stop(self) -> None:
        """Interrupt what runs."""
        self.is_stopping = True
        if self._stop is not None:
            self._stop.set_result(None)

    async def teardown(self) -> None:
        """Let the executor go."""
        await _call(self._executor, "teardown")

    async def execute(self, action: Action, budget: ResultBudget) -> Result:
        """Do an action; what does not end in time is `interrupted`.

        Args:
            action: The action.
            budget: Of its request; what the result holds is taken from it.
        """
        task = asyncio.create_task(self._execute(action, budget))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        ends: list[asyncio.Future[Any]] = [task] if self._stop is None else [task, self._stop]
        await asyncio.wait(ends, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            return task.result()
        message = "was interrupted"
        if not (self.is_stopping or task.cancelled()):
            message = f"did not end within {self._timeout_s:g} s"
            _log.warning("%s %s; it is told to end", quote(action.type), message)
        # It is told to end, but not waited for: it may not listen.
        task.cancel()
        message = f"{message}; whether it took effect is unknown"
        return Result(action, ResultStatus.INTERRUPTED, error=message)

    async def _execute(self, action: Action, budget: ResultBudget) -> Result:
        # A copy: an executor may change what it is given, but not what the answer is about.
        given = replace(action, params=dict(action.params))
        try:
            result = self._check(action, await _await(self._executor.execute(given)), budget)
            verify = getattr(self._executor, "verify", None)
            if result.ok and verify is not None:
                seen = replace(result, action=given, data=loads_own(dumps(result.data)))
                if not await _await(verify(given, seen)):
                    message = "the executor could not verify its effect"
                    _log.warning("%s: %s", quote(action.type), message)
                    return Result(action, ResultStatus.FAILED, result.data, message)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code
            # Whatever it raises must end in a record, and must not end the server.
            self._log_failure(action, error)
            text = self._error_text(action, _describe(error), budget)
            return Result(action, ResultStatus.FAILED, error=text)
        return result

    def _check(self, action: Action, returned: object, budget: ResultBudget) -> Result:
        """What an executor returned, as a result of the very action that it was given.

        Its data are those of this moment, as JSON has them: what is answered is what is recorded,
        whatever becomes of the objects that they were made of.
        """
        if not isinstance(returned, Result):
            message = (
                f"the executor returned {json_type(returned)}, not a Result; what it did is unknown"
            )
            _log.error("%s: %s", quote(action.type), message)
            return Result(action, ResultStatus.FAILED, error=message)
        try:
            status = ResultStatus(returned.status)
        except ValueError:
            message = f"the executor returned the unknown status {quote(returned.status)}"
            _log.error("%s: %s", quote(action.type), message)
            return Result(action, ResultStatus.FAILED, error=message)
        data = self._data(returned.data, budget)
        if returned.error is None:
            return Result(action, status, data)
        return Result(action, status, data, self._error_text(action, str(returned.error), budget))

    def _data(self, value: object, budget: ResultBudget) -> object:
        """A result's data as they are answered, if they are not too large."""
        data = dumps_foreign(value)
        if data == b"null":
            return None
        max_bytes = min(self._max_data_bytes, budget.left_bytes)
        if len(data) > max_bytes:
            data = dumps({"omitted": "too large", "bytes": len(data), "max_bytes": max_bytes})
        budget.left_bytes = max(0, budget.left_bytes - len(data))
        return written(data)

    def _error_text(self, action: Action, text: str, budget: ResultBudget) -> str:
        """An executor's error that can be stored: bounded, and without the action's secrets."""
        text = self._redaction.hide(encodable(text), action.params)
        max_chars = max(_MIN_ERROR_CHARS, min(MAX_ERROR_CHARS, budget.left_bytes))
        if len(text) > max_chars:
            text = f"{text[:max_chars]}… ({len(text) - max_chars} characters were left out)"
        budget.left_bytes = max(0, budget.left_bytes - len(text))
        return text

    def _log_failure(self, action: Action, error: BaseException) -> None:
        """Write to the log what an executor raised, and at which line."""
        try:
            text = "".join(traceback.format_exception(error))
        except BaseException:  # noqa: BLE001 - foreign code
            text = _describe(error)
        text = self._redaction.hide(encodable(text).rstrip(), action.params)
        _log.error("the executor failed on %s:\n%s", quote(action.type), text[-MAX_ERROR_CHARS:])


def _describe(error: BaseException) -> str:
    kind = _KIND.__get__(type(error))
    try:
        text = encodable(str(error))
    except BaseException:  # noqa: BLE001 - foreign code
        text = ""
    return f"{kind}: {text}" if text else encodable(kind)


_KIND = vars(type)["__name__"]  # a class of classes may have a name of its own


async def _await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _call(executor: Executor, name: str) -> None:
    method = getattr(executor, name, None)  # agent-aegis' executors need not have it
    if method is not None:
        await _await(method())
