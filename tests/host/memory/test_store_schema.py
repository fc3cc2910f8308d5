"""The store's file over its versions: an older one is brought up whole or left as it was, a newer one is refused."""

import json
import os
import sqlite3
import subprocess
import sys
import threading

import pytest
import torch

pytest.importorskip("comfy")

from noise_search.host.memory import store as store_module
from noise_search.host.memory import tables
from noise_search.host.memory.store import FILE, Store, StoreError
from noise_search.search.comparisons import Comparison
from noise_search.search.engine import Rendered
from noise_search.search.recipe import Recipe, from_json, to_json
from old_stores import VERSIONS, file_of

COLUMNS = 'search, work, session, recipes, "values", nfe, seconds, together, bytes, thumbnails'


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def old(store):
    """A store whose file is of the first version."""
    return holding(store, 1)


def holding(store, version):
    """A store with the file that this version left."""
    store.folder.mkdir()
    store.file.write_bytes(file_of(version).read_bytes())
    return store


def rows(file, what=f"{COLUMNS} FROM entries ORDER BY search, work"):
    connection = sqlite3.connect(file)
    try:
        return connection.execute(f"SELECT {what}").fetchall()
    finally:
        connection.close()


def version(file):
    return rows(file, "user_version FROM pragma_user_version")[0][0]


def layout(file):
    """The columns of all tables."""
    names = [name for (name,) in rows(file, "name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    columns = "name, type, [notnull], dflt_value, pk FROM pragma_table_info('{}')"
    return {name: rows(file, columns.format(name)) for name in names}


@pytest.mark.parametrize("number", VERSIONS)
def test_a_file_of_any_version_is_brought_up_and_everything_in_it_is_found(number, store, tmp_path, monkeypatch):
    old = holding(store, number)
    was = layout(old.file)
    compared = "search, judge, question, first, second, answer, made, bytes FROM comparisons"
    answers = rows(old.file, compared) if "comparisons" in was else []
    before, searches = rows(old.file), rows(old.file, "id, key, prompt, algorithm, created FROM searches ORDER BY id")
    assert version(old.file) == number
    assert [one["candidates"] for one in sorted(old.overview()["searches"], key=lambda one: one["id"])] == [6, 1]
    assert version(old.file) == tables.SCHEMA_VERSION
    assert rows(old.file) == before
    assert rows(old.file, "id, key, prompt, algorithm, created FROM searches ORDER BY id") == searches
    stock = store_module._digest(f"6 steps, whole: {to_json([Recipe(20)])}")
    assert [row[1] for row in before].count(stock) == 2  # works are still called as they were
    monkeypatch.setattr(store_module, "_digest", lambda work: work)
    for search, key, *_ in searches:
        with old.memory(key) as memory:
            assert memory.problem == ""
            for of, work, _, recipes, values, nfe, *_, pictures in before:
                if of != search:
                    continue
                if values is None:
                    assert memory.segment(work).nfe == nfe
                else:
                    found = memory.candidate(work)
                    assert (list(found.recipes), found.nfe) == (from_json(recipes), nfe)
                    assert found.values.tolist() == torch.tensor(json.loads(values)).tolist()
                    assert len(found.thumbnails) == len(found.recipes) and pictures is not None
    fresh = Store(tmp_path / "fresh")
    with fresh.memory("key"):
        pass
    assert layout(fresh.file) == layout(old.file)
    assert (layout(old.file) == was) == (number == tables.SCHEMA_VERSION)
    assert rows(old.file, compared) == answers


def test_a_file_of_a_newer_version_is_refused_and_stays_as_it_is(store):
    with store.memory("key"):
        pass
    with sqlite3.connect(store.file) as connection:
        connection.execute(f"PRAGMA user_version = {tables.SCHEMA_VERSION + 1}")
    connection.close()
    assert "of a newer Noise Search" in store.overview()["problem"]
    with store.memory("key") as memory:
        assert f"its format is {tables.SCHEMA_VERSION + 1}, of a newer Noise Search" in memory.problem
    with pytest.raises(StoreError, match="of a newer Noise Search"):
        store.delete()
    assert version(store.file) == tables.SCHEMA_VERSION + 1
    assert [file.name for file in store.folder.iterdir()] == [FILE]


def stop_halfway(monkeypatch, statement):
    """The last step has a statement that fails after the others."""
    monkeypatch.setattr(tables, "STEPS", (*tables.STEPS[:-1], (*tables.STEPS[-1], statement)))


def test_a_step_that_fails_changes_nothing(old, monkeypatch):
    before, tables_before = rows(old.file), layout(old.file)
    with monkeypatch.context() as patched:
        stop_halfway(patched, "INSERT INTO comparisons (search) VALUES (NULL)")
        with old.memory("key") as memory:
            assert memory.problem
    assert (version(old.file), layout(old.file), rows(old.file)) == (1, tables_before, before)
    with old.memory("key") as memory:
        assert memory.problem == ""
    assert version(old.file) == tables.SCHEMA_VERSION


def keep_read_only(connection):
    connection.execute("PRAGMA query_only = 1")


def fill_the_disk(connection):
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")


@pytest.mark.parametrize(("happens", "word"), [(keep_read_only, "readonly"), (fill_the_disk, "full")])
def test_an_older_file_that_cannot_be_written_is_said_and_stays(old, monkeypatch, happens, word):
    upgrade = tables._upgrade

    def failing(connection):
        happens(connection)
        upgrade(connection)

    monkeypatch.setattr(tables, "_upgrade", failing)
    before = rows(old.file)
    with old.memory("key") as memory:
        assert "its format is 1, of an older Noise Search, and cannot be made" in memory.problem
        assert word in memory.problem and str(old.file) in memory.problem
    assert word in old.overview()["problem"]
    assert (version(old.file), rows(old.file)) == (1, before)


def test_an_older_file_that_somebody_has_locked_is_said_and_brought_up_later(old, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(old.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with old.memory("key") as memory:
        assert "is locked by another program" in memory.problem
    other.close()
    with old.memory("key") as memory:
        assert memory.problem == ""


def test_several_servers_bring_a_file_up_at_once(old):
    before, problems, ready = rows(old.file), [], threading.Barrier(6)

    def start(name):
        ready.wait()
        with Store(old.folder).memory(f"key {name}") as memory:
            memory.keep_candidate("work", rendered(name))
            problems.append(memory.problem)

    servers = [threading.Thread(target=start, args=(name,)) for name in range(6)]
    for one in servers:
        one.start()
    for one in servers:
        one.join()
    assert problems == [""] * 6
    assert set(before) <= set(rows(old.file)) and len(rows(old.file)) == len(before) + 6
    assert version(old.file) == tables.SCHEMA_VERSION


PROCESS = """
import importlib.util, sqlite3, sys
spec = importlib.util.spec_from_file_location("tables", sys.argv[1])
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)
sys.stdin.readline()
connection = sqlite3.connect(sys.argv[2], timeout=tables.BUSY_SECONDS, isolation_level=None)
tables.prepare(connection)
print(connection.execute("PRAGMA user_version").fetchone()[0])
"""


def test_two_processes_bring_a_file_up_at_once(old):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, tables.__file__, os.fspath(old.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0].strip() for process in processes] == [str(tables.SCHEMA_VERSION)] * 2


# Comparisons


def rendered(seed, batched=False):
    return Rendered((Recipe(seed),), torch.tensor([[0.5]]), 8, 8, {"sample": 1.5}, ("result",), None, batched=batched)


def compared(first, second, answer=1.0, judge="a person", question="Which is better?", made=1.0):
    return Comparison(first, second, question, answer, judge, made)


def test_a_comparison_comes_back_as_it_was_and_only_to_its_judge_question_and_search(store):
    kept = [compared("a", "b", 1.0, made=2.0), compared("b", "a", 0.25, made=1.0), compared("b", "c", made=3.0)]
    others = [compared("a", "b", 0.0, judge="another"), compared("a", "b", 0.0, question="Which is red?")]
    with store.memory("key") as memory:
        for one in (*kept, *others):
            memory.keep_comparison(one)
        assert memory.comparisons(["a", "b"], "a person", "Which is better?") == [kept[1], kept[0]]
    with store.memory("key") as memory:
        found = memory.comparisons(["a", "b", "c", "d"], "a person", "Which is better?")
        assert found == [kept[1], kept[0], kept[2]] and [one.made for one in found] == [1.0, 2.0, 3.0]
        assert memory.comparisons(["a", "b"], "another", "Which is better?") == others[:1]
        assert memory.comparisons(["a", "c"], "a person", "Which is better?") == []
        memory.keep_comparison(compared("a", "b", 0.5, made=9.0))  # they changed their mind
        assert memory.comparisons(["a", "b"], "a person", "Which is better?")[-1].answer == 0.5
    with store.memory("another key") as memory:
        assert memory.comparisons(["a", "b"], "a person", "Which is better?") == []


def test_an_answer_is_found_among_thousands_as_among_a_few(store, monkeypatch):
    with store.memory("key") as memory:
        monkeypatch.setattr(memory, "_write", lambda: None)  # all at once, further down

        def looked_at():
            """How many steps SQLite takes to find one answer."""
            steps = []
            memory.connection.set_progress_handler(lambda: steps.append(1) and None, 1)
            assert [one.answer for one in memory.comparisons(["a 0", "b 0"], "a person", "Which is better?")] == [0.25]
            memory.connection.set_progress_handler(None, 0)
            return len(steps)

        counts = []
        for indices in (range(3), range(3, 3000)):
            for index in indices:
                memory.keep_comparison(compared(f"a {index}", f"b {index}", 0.25))
            type(memory)._write(memory)
            counts.append(looked_at())
        assert 0 < counts[1] < 2 * counts[0]
        works = [f"{side} {index}" for side in "ab" for index in range(3000)]
        assert len(memory.comparisons(works, "a person", "Which is better?")) == 3000


def test_a_comparison_takes_any_text_and_no_nonsense(store):
    with store.memory("key") as memory:
        memory.keep_comparison(one := compared("a", "b", judge="half \ud83d", question="of \ud83d it"))
        assert memory.comparisons(["a", "b"], one.judge, one.question) == [one]
        memory.connection.execute("UPDATE comparisons SET answer = 'none'")
        assert memory.comparisons(["a", "b"], one.judge, one.question) == []
        assert memory.problem == ""
    with pytest.raises(ValueError, match="from 0 to 1, not 1.5"):
        compared("a", "b", 1.5)
    with pytest.raises(ValueError, match="with itself"):
        compared("a", "a")


def comparisons(store):
    return rows(store.file, "COUNT(*) FROM comparisons")[0][0] if store.file.exists() else 0


def test_comparisons_go_with_their_search(store):
    for key in ("one", "two"):
        with store.memory(key, key) as memory:
            for index in range(3):
                memory.keep_comparison(compared("a", f"b {index}"))
    [two, one] = store.overview()["searches"]
    assert one["bytes"] > 300 and comparisons(store) == 6
    store.delete([one["id"]])
    assert comparisons(store) == 3
    with store.memory("two") as memory:
        assert len(memory.comparisons(["a", "b 0", "b 1", "b 2"], "a person", "Which is better?")) == 3
    store.delete()
    assert comparisons(store) == 0


def test_comparisons_count_towards_the_limit(store, monkeypatch):
    monkeypatch.setattr(store_module, "SMALLEST_MB", 1)
    store.configure(limit_mb=1)
    question = "x" * 20_000
    with store.memory("old") as memory:
        for index in range(30):
            memory.keep_comparison(compared("a", f"b {index}", question=question))
    with store.memory("new") as memory:
        for index in range(70):
            memory.keep_comparison(compared("a", f"b {index}", question=question))
        assert memory.full and "from here on are not remembered" in memory.notes[-1]
        there = memory.comparisons(["a", *(f"b {index}" for index in range(70))], "a person", question)
    assert [one["prompt"] for one in store.overview()["searches"]] == [""] and 0 < len(there) == comparisons(store) < 70


def test_comparisons_of_what_is_set_aside_go_along(store):
    with store.memory("key") as memory:
        for work in "ab":
            memory.keep_candidate(work, rendered(1))
        memory.keep_comparison(compared("a", "b"))
    with store.memory("key") as memory:
        memory.keep_candidate("c", rendered(3))
        memory.keep_candidate("d", rendered(4))
        memory.keep_candidate("e", rendered(5, batched=True))
        for pair in ("ac", "cd", "de"):
            memory.keep_comparison(compared(*pair))
        assert memory.set_aside() == 2
        found = memory.comparisons("abcde", "a person", "Which is better?")
        assert [(one.first, one.second) for one in found] == [("c", "d"), ("d", "e")]
        assert memory.set_aside_batches() == 1
        assert len(memory.comparisons("abcde", "a person", "Which is better?")) == 1
    assert comparisons(store) == 4  # none is lost


def test_a_comparison_during_a_lock_is_written_after_it(store, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.05)
    with store.memory("key") as memory:
        other = sqlite3.connect(store.file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        memory.keep_comparison(compared("a", "b"))
        assert "locked" in memory.problem
        other.close()
    assert comparisons(store) == 1
