"""Files of every version of the store's tables, in tests/assets."""

import shutil
import sqlite3
from pathlib import Path

from noise_search.host.memory.tables import SCHEMA_VERSION
from noise_search.search.comparisons import Comparison

VERSIONS = range(1, SCHEMA_VERSION + 1)
ASSETS = Path(__file__).resolve().parents[1] / "assets"


def file_of(version: int) -> Path:
    return ASSETS / f"store-v{version}.sqlite3"


def made_by(find, paths, store, file: Path) -> None:
    """Makes the file of this version. `find` searches on the demo model, `paths` is a Search over Paths.

    In it is something of every kind: a whole search of 3 candidates, segments, a batch of two, and an answer of a
    judge that compares. What a new table is for belongs here as well.
    """
    find(store, candidates=3)
    find(store, paths, candidates=4)
    find(store, candidates=1, batch=2)
    connection = sqlite3.connect(store.file)
    try:
        [(key,)] = connection.execute("SELECT key FROM searches WHERE id = 1")
        with store.memory(key) as memory:
            memory.keep_comparison(Comparison("first", "second", "Which is better?", 1.0, "a person", 1.0))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        connection.close()
    shutil.copy(store.file, file)
