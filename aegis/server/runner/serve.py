"""Runs the server: checks everything in the parent, then hands over to granian.

All that can be known beforehand is checked before workers are forked; one that still cannot start
leaves its reason in memory that it shares with the parent, which says it and tries again.
"""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections.abc import Callable, Sequence

from aegis._version import __version__
from aegis.audit.journal import Journal
from aegis.auth.keys_file import read_keys
from aegis.auth.ring import MAX_SHARED_BYTES, KeyRing
from aegis.config import Settings
from aegis.errors import ConfigError, Problem
from aegis.host.memory import SharedBytes
from aegis.hosts import is_loopback
from aegis.messages import quote
from aegis.policy.compiled_cache import PolicyText
from aegis.policy.decision_point import Snapshot
from aegis.policy.rollout import PolicyVersions
from aegis.server.runner.granian_server import Server
from aegis.server.runner.listening import Address, free_address, own_database
from aegis.server.runner.signals import Wakeup, hold_hangups
from aegis.server.runner.state import ServerState
from aegis.server.runner.worker import Inherited, loader
from aegis.store.database import Store

__all__ = ["serve"]

MIN_GRACE_S = 20.0
"""A worker that does not stop is killed after this long, or later where bodies may take longer."""
MAX_WARNINGS = 10
"""Of the policy, that are said at the start; `aegis validate` says all of them."""


def serve(
    settings: Settings, file: PolicyText, *, announce: Callable[[str], object] = print
) -> None:
    """Serve until a signal ends it.

    Args:
        settings: All options.
        file: The policy file, as it was read.
        announce: Says what runs, and when and why it stops.

    Raises:
        AegisError: It cannot start, and why.
    """
    if (
        settings.is_keyless
        and not is_loopback(settings.host)
        and not settings.allow_unauthenticated
    ):
        raise ConfigError(
            f"{quote(settings.host)} can be reached by other machines and no key is set; set AEGIS_API_KEY,"
            " give --keys, or give --allow-unauthenticated"
        )
    keys = [] if settings.keys is None else read_keys(settings.keys)
    in_memory = settings.audit_db == ":memory:"
    if in_memory and settings.workers > 1:
        raise ConfigError("several workers cannot share `:memory:`; give --audit-db a file")
    address = free_address(settings.host, settings.port)
    with own_database(settings.audit_db):
        snapshot = _prepare(settings, file)
        text = _announcement(address, snapshot, settings, len(keys))
        _run(settings, file if in_memory else None, address, text, announce)


def _run(
    settings: Settings,
    file: PolicyText | None,
    address: Address,
    announcement: str,
    say: Callable[[str], object],
) -> None:
    """Start the workers and look after them until a signal ends all."""
    # Workers inherit the loader, which is a closure, and memory: both need a fork.
    multiprocessing.set_start_method("fork", force=True)
    state, wakeup = ServerState(settings.workers), Wakeup()
    stopping, stop = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    inherited = Inherited(
        settings,
        file,
        uuid.uuid4().hex,
        state,
        wakeup,
        _known_keys(settings.keys),
        os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),
        os.getpid(),
        stopping,
        stop,
        address.port,
    )
    server = Server(
        state,
        wakeup,
        announcement=announcement,
        say=say,
        # Not closed: a worker that is forked only now closes the same number.
        start_drain=lambda: os.dup2(nothing, stop),
        request_reload=lambda: os.eventfd_write(inherited.reloads, 1),
        drain_delay_s=settings.drain_delay,
        grace_s=grace_s(settings),
        keep_alive_s=settings.keep_alive,
        address=address,
    )
    hold_hangups()
    wakeup.listen()
    server.serve(target_loader=loader(inherited), wrap_loader=False)
    if server.failure is not None:
        raise ConfigError(server.failure)


def _known_keys(path: str | None) -> SharedBytes | None:
    """What is known of the keys file, for workers to share."""
    if path is None:
        return None
    shared = SharedBytes(MAX_SHARED_BYTES)
    KeyRing([], path, shared=shared)
    return shared


def grace_s(settings: Settings) -> float:
    """How long workers have to stop: all that may still run comes to its end within it.

    A body may take its time and an eighth more, and what it asks for is not executed any more; what is
    executed is interrupted after its own time. Both leave records, which are stored last.
    """
    running_s = max(settings.body_timeout * 9 / 8, settings.drain_timeout)
    return max(MIN_GRACE_S, running_s + settings.audit_timeout + 3.0)


def _prepare(settings: Settings, file: PolicyText) -> Snapshot:
    """Choose the policy in force and see that the database can be written; leaves nothing open."""
    store = Store(settings.audit_db)
    try:
        versions = PolicyVersions(store, Journal(store))
        try:
            return versions.start(file, reset=settings.reset_policy)
        finally:
            versions.close()
    finally:
        store.close()


def _announcement(address: Address, snapshot: Snapshot, settings: Settings, keys: int) -> str:
    origin = settings.policy if snapshot.stored.origin == "file" else "put over HTTP"
    if settings.is_keyless:
        callers = "keyless: " + (
            "EVERYONE who reaches this address"
            if settings.allow_unauthenticated
            else "this machine only"
        )
    else:
        callers = "keyed" + ("" if settings.admin_key is None else ", with an admin key")
        if settings.keys is not None:
            callers += f", {keys} keys in {settings.keys}"
    lines = [
        f"Aegis {__version__} at {address}",
        f"  policy     version {snapshot.version}, {snapshot.rule_count} rules, from {origin}",
        f"  database   {settings.audit_db}",
        f"  callers    {callers}",
        "  approval   auto-approval on: actions to `approve` run without asking anyone",
        f"  executor   {settings.executor or 'none: actions are decided and recorded, not done'}",
    ]
    if settings.workers > 1:
        lines.append(f"  workers    {settings.workers}")
    is_file = snapshot.stored.origin == "file"
    source = str(settings.policy) if is_file else f"version {snapshot.version}"
    lines += _warnings(source, snapshot.compiled.warnings)
    return "\n".join(lines)


def _warnings(source: str, warnings: Sequence[Problem]) -> list[str]:
    """The first warnings of the policy in force, a line for each."""
    lines = [
        f"  warning    {source}{'' if odd.line is None else f':{odd.line}'}: {odd}"
        for odd in warnings[:MAX_WARNINGS]
    ]
    if len(warnings) > len(lines):
        lines.append(f"  warning    and {len(warnings) - len(lines)} more")
    return lines
