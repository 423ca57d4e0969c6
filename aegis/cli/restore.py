"""`aegis restore`."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import click

from aegis.audit.verify import verify
from aegis.cli.parameters import FILE, database_option
from aegis.errors import ConfigError, StoreError
from aegis.host.files import give, sync_folder
from aegis.messages import quote
from aegis.server.runner.listening import own_database
from aegis.store.copying import keeping_writers_out
from aegis.store.database import Store

__all__ = ["restore"]


@click.command()
@click.argument("backup", type=FILE)
@database_option("The database to replace, or to make.")
def restore(backup: str, database: str) -> None:
    """Put BACKUP in the place of the database, while no server runs.

    BACKUP is verified first and stays as it is. The database that is there, and its write-ahead log,
    are kept under another name.
    """
    if not os.path.isfile(backup):
        raise ConfigError(f"there is no backup {quote(backup)}")
    place = os.path.realpath(database)
    if os.path.exists(place) and os.path.samefile(backup, place):
        raise ConfigError(f"{quote(backup)} is the database itself; name a backup of it")
    with closing(Store(backup, read_only=True)) as store:
        verified = verify(store)
        with own_database(database), keeping_writers_out(database):
            kept = _keep(place)
            try:
                store.copy_over(place, lambda _done, _of: None, like=kept or backup)
            except BaseException:
                for name in (f"{kept}", f"{kept}-wal"):
                    Path(name).unlink(missing_ok=True)
                raise
            # Until it is gone, nothing starts on the new file: the log is not its own.
            for ending in ("-wal", "-shm"):
                Path(f"{place}{ending}").unlink(missing_ok=True)
            sync_folder(place)
            for ending in (".lock", ".server"):
                give(f"{place}{ending}", like=place)
    said = f"entries {verified.first} to {verified.last}" if verified.count else "no entries"
    click.echo(f"restored {database} from {backup}, with {said}")
    if kept is not None:
        click.echo(f"what was there is kept as {kept}")


def _keep(place: str) -> str | None:
    """Give a database and its log second names, which cost no room.

    Returns:
        The database's second name; None: there is nothing in its place.

    Raises:
        StoreError: It cannot have one.
    """
    name = f"{place}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    kept = None
    for ending in ("-wal", ""):
        try:
            os.link(f"{place}{ending}", f"{name}{ending}")
            kept = name
        except FileNotFoundError:
            continue
        except OSError as error:
            Path(f"{name}-wal").unlink(missing_ok=True)
            raise StoreError(
                f"cannot keep {quote(place)} as {quote(name)}: {error.strerror}"
            ) from None
    return kept
