"""The evaluation store: every scored candidate, on disk as it happens.

One SQLite file in ComfyUI's user directory. A search finds in it what was computed before for the same content
(`host/memory/key.py` makes the key) and computes the rest. Whatever goes wrong with the file, the search goes on
without it and says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
import numpy as np
import torch
from PIL import Image

from ...search.comparisons import Comparison
from ...search.engine import Rendered
from ...search.ledger import Cost
from ...search.recipe import from_json, to_json
from ...verifiers.console import logger
from . import tables

FILE, SETTINGS = "evaluations.sqlite3", "settings.json"
IMPATIENT_MS = 100  # once somebody kept the file locked for longer than that
ROOM_SHARE = 0.9  # of the limit: down to there small pictures go, so that not every candidate has to make room
LOG_PAGES = 256  # that SQLite writes beside the file before it takes them over
REOPENINGS = 3  # in one search: some network drives give a file another number each time
SMALLEST_MB, LARGEST_MB = 16, 1_000_000
MAX_LISTED = 500  # searches listed
MAX_NAMED = 100  # candidates in one question to SQLite, which older ones limit to 999 values in all
TOGETHER_FIELD = 6  # where an unwritten entry says whether it was sampled in a batch

T = TypeVar("T")
log_to_console = logger(__name__)


@dataclass(frozen=True)
class Settings:
    """enabled: whether searches use the store. limit_mb: beyond it the searches not used for longest are deleted."""

    enabled: bool = True
    limit_mb: int = 512


class StoreError(Exception):
    """The store cannot be used. The message says why, and what became of its file."""


class Store:
    """The store in a folder. Nothing is kept open, so any number of servers may share it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / FILE
        self.opened = 0  # the inode of the file that was opened last

    def settings(self) -> Settings:
        """The user's settings; the usual ones where there are none that can be read."""
        try:
            data = json.loads((self.folder / SETTINGS).read_text("utf-8"))
            return _checked(Settings(data.get("enabled", True), data.get("limit_mb", Settings.limit_mb)))
        except FileNotFoundError:
            return Settings()
        except (OSError, ValueError, AttributeError) as error:
            log_to_console.warning("Noise Search: %s cannot be read (%s)", self.folder / SETTINGS, error)
            return Settings()

    def configure(self, enabled: bool | None = None, limit_mb: int | None = None) -> Settings:
        """Changes what is not None. Raises ValueError on what cannot be, and StoreError where it cannot be written."""
        now = self.settings()
        settings = _checked(
            Settings(
                now.enabled if enabled is None else enabled,
                now.limit_mb if limit_mb is None else limit_mb,
            )
        )
        path = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{uuid.uuid4().hex}")
            try:
                draft.write_text(json.dumps(asdict(settings)), "utf-8")
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"the settings cannot be written to {path}: {error}") from error
        if self.file.exists():
            with self._open() as connection:
                tables.prune(connection, settings.limit_mb, keep="")
        return settings

    def overview(self) -> dict[str, Any]:
        """What there is, for people: settings, size, and the searches, the last used first."""
        data: dict[str, Any] = {**asdict(self.settings()), "bytes": self._bytes(), "path": str(self.file)}
        data |= {"problem": "", "searches": []}
        if not self.file.exists():
            return data
        try:
            with self._open() as connection:
                rows = connection.execute(
                    'SELECT id, prompt, algorithm, created, used, COUNT("values"), COALESCE(SUM(entries.bytes), 0) '
                    "+ (SELECT COALESCE(SUM(bytes), 0) FROM comparisons WHERE search = searches.id) "
                    "FROM searches LEFT JOIN entries ON entries.search = searches.id "
                    "GROUP BY id ORDER BY used DESC LIMIT ?",
                    (MAX_LISTED,),
                ).fetchall()
        except StoreError as error:
            return data | {"problem": str(error)}
        names = ("id", "prompt", "algorithm", "created", "used", "candidates", "bytes")
        return data | {"searches": [dict(zip(names, row, strict=True)) for row in rows]}

    def delete(self, ids: list[int] | None = None) -> int:
        """Forgets these searches, or all. Returns how many there were. Raises StoreError."""
        if not self.file.exists():
            return 0
        with self._open() as connection:
            known = [row[0] for row in connection.execute("SELECT id FROM searches")]
            wanted = None if ids is None else set(ids)
            doomed = [search for search in known if wanted is None or search in wanted]
            tables.delete(connection, doomed)
        return len(doomed)

    @contextmanager
    def memory(self, key: str, prompt: str = "", algorithm: str = "") -> Iterator[StoredMemory]:
        """The `Memory` of one search. prompt, algorithm: for the list."""
        memory = StoredMemory(self, key, prompt, algorithm)
        try:
            yield memory
        finally:
            memory.close()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block; what SQLite has to say becomes a StoreError."""
        try:
            with closing(self.connect()) as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise StoreError(self.explain(error)) from error

    def connect(self) -> sqlite3.Connection:
        """Raises sqlite3.Error or OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.file, timeout=tables.BUSY_SECONDS, isolation_level=None)
        self.opened = _inode(self.file)
        try:
            tables.prepare(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * 4096}")
            self.opened = _inode(self.file)
        except BaseException:
            connection.close()
            raise
        return connection

    def explain(self, error: Exception) -> str:
        """What is wrong, in a sentence. A broken file is put aside, so that the next search starts a new one; one that
        is locked belongs to somebody, so it stays."""
        text = str(error)
        if type(error) is sqlite3.DatabaseError or "no such " in text:
            return f"{self.file} is broken ({text}) and {self._put_aside()}"
        if _is_locked(error):
            return f"{self.file} is locked by another program ({text})"
        return f"{self.file} cannot be used ({text})"

    def _put_aside(self) -> str:
        """Renames the file and what SQLite has beside it, unless another server has done so and begun a new one."""
        if _inode(self.file) != self.opened:
            return "another program has renamed it already"
        try:  # a new file must never find an old log beside it
            return f"was renamed to {self._rename('broken', '-wal', '-shm', '')}"
        except OSError as error:
            return f"could not be renamed ({error})"

    def put_log_aside(self) -> None:
        """Renames what SQLite has beside the file, where that belongs to a file that is no longer there."""
        with suppress(OSError):
            self._rename("lost", "-wal", "-shm")

    def _rename(self, why: str, *suffixes: str) -> str:
        name = f"{self.file.stem}.{why}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}{self.file.suffix}"
        for suffix in suffixes:
            with suppress(FileNotFoundError):
                os.replace(f"{self.file}{suffix}", self.folder / f"{name}{suffix}")
        return name

    def _bytes(self) -> int:
        total = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                total += os.stat(f"{self.file}{suffix}").st_size
        return total


class StoredMemory:
    """What the store knows of one search, and where its candidates go. problem: why it no longer does either, or not
    always, or "". notes: what else the user should know of that. works: of the candidates that it answered for or
    wrote; left: how many of them there still are, once it is closed."""

    def __init__(self, store: Store, key: str, prompt: str, algorithm: str):
        self.store, self.key, self.algorithm = store, key, algorithm
        self.prompt = _storable(prompt)
        self.session = uuid.uuid4().hex
        self.problem = ""
        self.notes: list[str] = []
        self.full = False  # the search alone is as large as the limit allows
        self.inode = self.log = 0
        self.reopened = 0
        self.written = 0
        self.works: set[str] = set()
        self.left = 0
        self.unwritten: list[tuple] = []
        self.unwritten_comparisons: list[tuple] = []
        self.limit_mb = store.settings().limit_mb
        self.connection: sqlite3.Connection | None = None
        self._try(self._begin, None)

    def close(self) -> None:
        if (self.unwritten or self.unwritten_comparisons) and self.connection is not None:
            self._try(self._be_patient, None)
            self._try(self._write, None)
        if self.written:
            self._try(self._make_room, None)
        if self.connection is not None:
            self.left = self._try(self._count, 0)
        self._drop_connection()

    def candidate(self, work: str) -> Rendered | None:
        found = self._try(lambda: self._candidate(work), None)
        if found is not None:
            self.works.add(_digest(work))
        return found

    def segment(self, work: str) -> Cost | None:
        return self._try(lambda: self._segment(work), None)

    def keep_candidate(self, work: str, rendered: Rendered) -> None:
        recipes, values = to_json(list(rendered.recipes)), json.dumps(rendered.values.tolist())
        pictures = None if rendered.thumbnails is None else _to_png(rendered.thumbnails)
        self._keep(work, recipes, values, rendered.nfe, dict(rendered.seconds), rendered.batched, pictures)

    def keep_segment(self, work: str, cost: Cost) -> None:
        self._keep(work, None, None, round(cost.nfe), dict(cost.phases))

    def comparisons(self, works: Sequence[str], judge: str, question: str) -> list[Comparison]:
        """What this judge answered to this question about any two of these candidates, the oldest first."""
        return self._try(lambda: self._comparisons(works, judge, question), [])

    def keep_comparison(self, comparison: Comparison) -> None:
        if self.full:
            return
        one = comparison
        names = [_storable(one.judge), _storable(one.question), _digest(one.first), _digest(one.second)]
        size = sum(map(len, names)) + 100
        self.unwritten_comparisons.append((*names, float(one.answer), one.made, size))
        self._try(self._write, None)

    def set_aside(self) -> int:
        """Takes what earlier runs computed out of this search, with what was said of it: it can still be listed, and is
        not used again. Returns how many candidates that were."""
        return self._try(lambda: self._set_aside("session != ?", self.session), 0)

    def set_aside_batches(self) -> int:
        """As `set_aside`, for what was sampled in batches by whichever run."""
        gone = {entry[0] for entry in self.unwritten if entry[TOGETHER_FIELD]}
        self.unwritten = [entry for entry in self.unwritten if not entry[TOGETHER_FIELD]]
        kept = [one for one in self.unwritten_comparisons if gone.isdisjoint(one[2:4])]
        self.unwritten_comparisons = kept
        return self._try(lambda: self._set_aside("together = ?", True), 0)

    # What may raise sqlite3.Error

    def _count(self) -> int:
        there = self._connection.execute(
            'SELECT work FROM entries WHERE "values" IS NOT NULL AND search = (SELECT id FROM searches WHERE key = ?)',
            (self.key,),
        )
        return len(self.works.intersection(work for (work,) in there))

    @property
    def _connection(self) -> sqlite3.Connection:
        if self.connection is None:
            raise sqlite3.OperationalError("there is no connection")
        return self.connection

    def _begin(self) -> None:
        self.connection = self.store.connect()
        self.inode = self.store.opened
        with tables.transaction(self._connection):
            self._search()
        self.log = _inode(Path(f"{self.store.file}-wal"))
        self._make_room()

    def _search(self) -> int:
        """The id of this search; somebody may have deleted it meanwhile."""
        now = time.time()
        self._connection.execute(
            "INSERT OR IGNORE INTO searches (key, prompt, algorithm, created, used) VALUES (?, ?, ?, ?, ?)",
            (self.key, self.prompt, self.algorithm, now, now),
        )
        self._connection.execute("UPDATE searches SET used = ? WHERE key = ?", (now, self.key))
        [(search,)] = self._connection.execute("SELECT id FROM searches WHERE key = ?", (self.key,)).fetchall()
        return search

    def _row(self, work: str) -> tuple | None:
        return self._connection.execute(
            'SELECT recipes, "values", nfe, seconds, together, thumbnails FROM entries '
            "WHERE search = (SELECT id FROM searches WHERE key = ?) AND work = ?",
            (self.key, _digest(work)),
        ).fetchone()

    def _candidate(self, work: str) -> Rendered | None:
        row = self._row(work)
        if row is None or row[1] is None:
            return None
        recipes, values, nfe, seconds, together, pictures = row
        try:
            made, spent = tuple(from_json(recipes)), _spent(nfe, seconds)
            nfe = round(spent.nfe)
            table = torch.tensor(json.loads(values), dtype=torch.float32)
            if table.ndim != 2 or len(table) != len(made) or table.isinf().any():
                raise ValueError(f"there are no values for {len(made)} images")
            return Rendered(
                recipes=made,
                values=table,
                nfe=nfe,
                nfe_per_row=nfe // len(made),
                seconds=spent.phases,
                thumbnails=None if pictures is None else _from_png(pictures, len(made)),
                batched=bool(together),
                recalled=True,
            )
        except Exception as error:  # whatever may be in it: it is computed anew, and written over
            log_to_console.info("Noise Search: a stored candidate cannot be read (%s)", error)
            return None

    def _segment(self, work: str) -> Cost | None:
        row = self._row(work)
        if row is None or row[1] is not None:
            return None
        try:
            return _spent(row[2], row[3])
        except Exception as error:
            log_to_console.info("Noise Search: a stored segment cannot be read (%s)", error)
            return None

    def _comparisons(self, works: Sequence[str], judge: str, question: str) -> list[Comparison]:
        named = {_digest(work): work for work in works}
        # By SQLite's index where they are few: thousands of answers are there, and two candidates are asked for.
        few = list(named) if len(named) <= MAX_NAMED else []
        among = f"({', '.join('?' * len(few))})"
        only = f"AND first IN {among} AND second IN {among} " if few else ""
        rows = self._connection.execute(
            "SELECT first, second, answer, made FROM comparisons WHERE judge = ? AND question = ? "
            f"AND search = (SELECT id FROM searches WHERE key = ?) {only}ORDER BY made, rowid",
            (_storable(judge), _storable(question), self.key, *few, *few),
        )
        found = []
        for first, second, answer, made in rows.fetchall():
            if first in named and second in named:
                try:
                    found.append(Comparison(named[first], named[second], question, float(answer), judge, float(made)))
                except (TypeError, ValueError) as error:  # whatever may be in it: it is asked again
                    log_to_console.info("Noise Search: a stored comparison cannot be read (%s)", error)
        return found

    def _keep(
        self,
        work: str,
        recipes: str | None,
        values: str | None,
        nfe: int,
        seconds: dict[str, float],
        together: bool = False,
        pictures: bytes | None = None,
    ) -> None:
        if self.full:
            return
        size = len(recipes or "") + len(values or "") + len(pictures or b"") + 200
        self.unwritten.append(
            (_digest(work), self.session, recipes, values, nfe, json.dumps(seconds), together, size, pictures)
        )
        self._try(self._write, None)

    def _write(self) -> None:
        """Writes what is not yet written: while the file is locked or the disk is full it collects here."""
        self._see_that_the_file_is_there()
        with tables.transaction(self._connection):
            search = self._search()
            self._connection.executemany(
                'INSERT OR REPLACE INTO entries (search, work, session, recipes, "values", nfe, seconds, together, '
                "bytes, thumbnails) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(search, *entry) for entry in self.unwritten],
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO comparisons (search, judge, question, first, second, answer, made, bytes) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(search, *one) for one in self.unwritten_comparisons],
            )
        self.works.update(entry[0] for entry in self.unwritten if entry[3] is not None)
        self.written += len(self.unwritten)
        self.unwritten.clear()
        self.unwritten_comparisons.clear()
        if self.problem:
            self._be_patient()
            self.problem = ""
        self._make_room()

    def _see_that_the_file_is_there(self) -> None:
        """Begins a new file where this one was deleted or replaced: it would take everything and keep nothing."""
        if _inode(self.store.file) == self.inode or self.reopened == REOPENINGS:
            return
        self.reopened += 1
        self._drop_connection()
        if self.log == _inode(Path(f"{self.store.file}-wal")):  # what SQLite would else write into the other file
            self.store.put_log_aside()
        lost = f", so {self.written} candidates and segments of this search are not remembered" * (self.written > 0)
        text = f"{self.store.file} was deleted or replaced during the search{lost}."
        self.notes.append(text)
        log_to_console.warning("Noise Search: %s", text)
        self.written = 0
        self._begin()

    def _make_room(self) -> None:
        """Keeps to the limit: other searches go first, those not used for longest, then the small pictures of this one,
        the oldest first. Its scores stay, or it could not go on from where it ended; what does not fit after them is
        not remembered."""
        tables.prune(self._connection, self.limit_mb, self.key)
        limit = self.limit_mb * 2**20
        if tables.used_bytes(self._connection) <= limit:
            return
        dropped = 0
        while tables.used_bytes(self._connection) > ROOM_SHARE * limit:
            some = tables.drop_pictures(self._connection, self.key)
            dropped += some
            if not some:
                break
        self.full = tables.used_bytes(self._connection) > limit
        if dropped or self.full:
            what = "candidates from here on are not remembered" if self.full else "the oldest have no small picture"
            text = (
                f"This search alone fills the store (limit {self.limit_mb} MB), so {what}. Raise the limit under "
                "Extensions > Noise Search > Stored searches to keep all."
            )
            if text not in self.notes:
                self.notes.append(text)

    def _be_patient(self) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * tables.BUSY_SECONDS)}")

    def _set_aside(self, condition: str, value: Any) -> int:
        with tables.transaction(self._connection):
            search, now = self._search(), time.time()
            aside = self._connection.execute(
                "INSERT INTO searches (key, prompt, algorithm, created, used) VALUES (?, ?, ?, ?, ?)",
                (f"{self.key} set aside {uuid.uuid4().hex}", self.prompt, f"{self.algorithm} (set aside)", now, now),
            ).lastrowid
            [(count,)] = self._connection.execute(
                f'SELECT COUNT("values") FROM entries WHERE search = ? AND {condition}', (search, value)
            ).fetchall()
            self._connection.execute(
                f"UPDATE entries SET search = ? WHERE search = ? AND {condition}", (aside, search, value)
            )
            moved = "(SELECT work FROM entries WHERE search = :aside)"
            self._connection.execute(
                "UPDATE comparisons SET search = :aside "
                f"WHERE search = :search AND (first IN {moved} OR second IN {moved})",
                {"aside": aside, "search": search},
            )
        return count

    def _try(self, work: Callable[[], T], otherwise: T) -> T:
        """Does some work with the file. At the first failure the search goes on without it; but a lock will be over,
        and what is on a full disk can be read."""
        if self.problem and self.connection is None:
            return otherwise
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            before, what = self.problem, "Candidates could not be written yet"
            if self.connection is not None and _may_pass(error):
                self.connection.execute(f"PRAGMA busy_timeout = {IMPATIENT_MS}")  # or each would wait as long
            else:
                self._drop_connection()  # before the file is renamed
                self.unwritten.clear()
                self.unwritten_comparisons.clear()
                what = "Candidates are no longer remembered"
            self.problem = f"{what}: {self.store.explain(error)}."
            if self.problem != before:
                log_to_console.warning("Noise Search: %s", self.problem)
            return otherwise

    def _drop_connection(self) -> None:
        if self.connection is not None:
            with suppress(sqlite3.Error):
                self.connection.close()
            self.connection = None


def default() -> Store:
    """The store of this ComfyUI."""
    return Store(Path(folder_paths.get_system_user_directory("noise_search")))


def overview() -> dict[str, Any]:
    """`Store.overview` of this ComfyUI's store."""
    return default().overview()


def configure(enabled: bool | None = None, limit_mb: int | None = None) -> Settings:
    """`Store.configure` of this ComfyUI's store."""
    return default().configure(enabled, limit_mb)


def delete(ids: list[int] | None = None) -> int:
    """`Store.delete` of this ComfyUI's store."""
    return default().delete(ids)


def _checked(settings: Settings) -> Settings:
    """Raises ValueError on settings that cannot be."""
    if type(settings.enabled) is not bool:
        raise ValueError(f"enabled must be true or false, not {settings.enabled!r:.80}")
    if type(settings.limit_mb) is not int or not SMALLEST_MB <= settings.limit_mb <= LARGEST_MB:
        raise ValueError(
            f"limit_mb must be a whole number from {SMALLEST_MB} to {LARGEST_MB}, not {settings.limit_mb!r:.80}"
        )
    return settings


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _is_locked(error: Exception) -> bool:
    return any(word in str(error) for word in ("locked", "busy"))


def _may_pass(error: Exception) -> bool:
    """Whether the file can be read all the same, and perhaps written later."""
    return _is_locked(error) or any(word in str(error) for word in ("disk is full", "readonly"))


def _spent(nfe: Any, seconds: Any) -> Cost:
    """What an entry says that it took. Raises any error where that cannot be."""
    spent = Cost(int(nfe), {str(phase): float(value) for phase, value in json.loads(seconds).items()})
    if spent.nfe < 0 or not all(0 <= value < math.inf for value in spent.phases.values()):
        raise ValueError(f"it cannot have taken {nfe} evaluations and {seconds!r:.80} seconds")
    return spent


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # SQLite takes no lone surrogates


def _digest(work: str) -> str:
    return hashlib.blake2b(work.encode(), digest_size=20).hexdigest()


def _to_png(thumbnails: torch.Tensor) -> bytes:
    """uint8 [rows, h, w, 3], one below the other."""
    data = io.BytesIO()
    Image.fromarray(thumbnails.reshape(-1, *thumbnails.shape[2:]).numpy()).save(data, "PNG", compress_level=1)
    return data.getvalue()


def _from_png(data: bytes, rows: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")))
    return pixels.reshape(rows, -1, *pixels.shape[1:])
