"""The tables in the store's file: what is in them, how those of an older version become these, and how rows go."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

APPLICATION_ID = 0x4E6F6953  # "NoiS"
BUSY_SECONDS = 5.0
SLICE_ROWS, SLICE_PAGES, SLICE_PICTURES = 200, 2000, 8  # rows, pages and small pictures that are deleted at once

# A file of version n becomes one of version n + 1 by the statements of STEPS[n]; a new file, version 0, takes them all.
# Steps are never changed, as there are files that took them: a new version appends one.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE searches (
            id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: a list in some window may be old
            key TEXT NOT NULL UNIQUE,
            prompt TEXT NOT NULL,
            algorithm TEXT NOT NULL,
            created REAL NOT NULL,
            used REAL NOT NULL
        )
        """,
        """
        CREATE TABLE entries (
            search INTEGER NOT NULL,
            work TEXT NOT NULL,
            session TEXT NOT NULL,
            recipes TEXT,
            "values" TEXT,
            nfe INTEGER NOT NULL,
            seconds TEXT NOT NULL,
            together INTEGER NOT NULL DEFAULT 0,
            bytes INTEGER NOT NULL,
            thumbnails BLOB,
            PRIMARY KEY (search, work)
        )
        """,
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
    (
        """
        CREATE TABLE comparisons (
            search INTEGER NOT NULL,
            judge TEXT NOT NULL,
            question TEXT NOT NULL,
            first TEXT NOT NULL,  -- a candidate, as entries.work
            second TEXT NOT NULL,
            answer REAL NOT NULL,  -- from 1, the first is better, to 0, the second is
            made REAL NOT NULL,
            bytes INTEGER NOT NULL,
            PRIMARY KEY (search, judge, question, first, second)
        )
        """,
    ),
)
SCHEMA_VERSION = len(STEPS)


def prepare(connection: sqlite3.Connection) -> None:
    """Gives the file the tables of this version, in one transaction: a new one all, an older one those that it lacks.
    Raises sqlite3.OperationalError where it is newer, or cannot be changed."""
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise sqlite3.OperationalError(f"its format is {version}, of a newer Noise Search")
    if version == 0:
        _with_patience(connection, lambda: _choose_journal(connection))
    if version < SCHEMA_VERSION:
        try:
            _with_patience(connection, lambda: _upgrade(connection))
        except sqlite3.OperationalError as error:
            if version == 0:
                raise
            text = f"its format is {version}, of an older Noise Search, and cannot be made {SCHEMA_VERSION}: {error}"
            raise sqlite3.OperationalError(text) from error


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _choose_journal(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()


def _upgrade(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        for step in STEPS[_version(connection) :]:  # none where another server has done so meanwhile
            for statement in step:
                connection.execute(statement)
        if _version(connection) < SCHEMA_VERSION:
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _with_patience(connection: sqlite3.Connection, work: Callable[[], None]) -> None:
    """Does some work, waiting while another server is at it. Raises sqlite3.OperationalError if that takes too long."""
    patience = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > patience:
                raise
            time.sleep(0.05)  # SQLite does not wait by itself while the journal mode changes


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def prune(connection: sqlite3.Connection, limit_mb: int, keep: str) -> None:
    """Deletes the searches not used for longest until the rest fits; never the one with the key `keep`."""
    while used_bytes(connection) > limit_mb * 2**20:
        oldest = connection.execute("SELECT id FROM searches WHERE key != ? ORDER BY used LIMIT 1", (keep,)).fetchall()
        if not oldest:
            return
        delete(connection, [row[0] for row in oldest])


def delete(connection: sqlite3.Connection, searches: list[int]) -> None:
    """Deletes searches and their rows; in slices, so that another server that writes does not wait for long."""
    for search in searches:
        with transaction(connection):
            connection.execute("DELETE FROM searches WHERE id = ?", (search,))
        for table in ("entries", "comparisons"):
            some = f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE search = ? LIMIT ?)"
            while connection.execute(some, (search, SLICE_ROWS)).rowcount > 0:
                pass
    _give_back(connection)


def drop_pictures(connection: sqlite3.Connection, key: str) -> int:
    """Deletes some small pictures of a search, the oldest first. Returns how many."""
    with transaction(connection):
        count = connection.execute(
            "UPDATE entries SET bytes = bytes - LENGTH(thumbnails), thumbnails = NULL WHERE rowid IN "
            "(SELECT rowid FROM entries WHERE search = (SELECT id FROM searches WHERE key = ?) "
            "AND thumbnails IS NOT NULL ORDER BY rowid LIMIT ?)",
            (key, SLICE_PICTURES),
        ).rowcount
    _give_back(connection)
    return count


def _give_back(connection: sqlite3.Connection) -> None:
    """Makes the file shorter by what is free in it."""
    free, before = _free_pages(connection), 0
    while free and free != before:
        connection.execute(f"PRAGMA incremental_vacuum({SLICE_PAGES})").fetchall()
        free, before = _free_pages(connection), free


def _free_pages(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA freelist_count").fetchone()[0]


def used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
