"""The evaluation store on the real engine: nothing is computed twice or lost, and a broken file harms nobody."""

import dataclasses
import itertools
import os
import shutil
import sqlite3
import threading
from functools import cache

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
from any_model import AnyVae
from noise_search.host.graph.graph import Graph
from noise_search.host.memory.store import FILE, Settings, Store, StoredMemory, StoreError
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.engine import Rendered
from noise_search.search.ledger import MADE_ANEW, Cost
from noise_search.search.recipe import Recipe, Rotate
from old_stores import VERSIONS, file_of, made_by
from remembered import Red
from tiny_models import sd3

pytestmark = pytest.mark.any_host

STEPS, SEED, CANDIDATES = 6, 20, 6
ALGORITHMS = {
    "random": RandomSearch(),
    "zero-order": ZeroOrderSearch(),
    "paths": SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.5),
    "drafts": DraftAndFinal(draft_steps=2),
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def searches_on(model, positive, negative, vae):
    @torch.inference_mode()
    def find(
        store, algorithm=None, candidates=CANDIDATES, verifier=None, cfg=3.0, batch=1, alone=1, graph=None, **more
    ):
        latent = {"samples": torch.zeros(batch, 16, 8, 8)}
        sampling = Sampling.ksampler(model, STEPS, cfg, "euler", "simple", positive, negative, latent)
        result = search(
            lambda: sampling, vae, verifier or Red(), SEED, candidates, "", 1, graph or Graph(), "positive",
            algorithm, options=Options(batch_size=alone), store=store, **more,
        )  # fmt: skip
        return result, sampling.evaluations.rows

    return find


@pytest.fixture(scope="module")
def find():
    """Searches on a tiny model: many, as there is much that may happen to a store."""
    tiny = sd3()
    return searches_on(tiny.model, tiny.conditioning(1), tiny.conditioning(2), AnyVae())


@pytest.fixture(scope="module")
def find_on_demo(demo):
    """Searches on the model whose candidates are in the files of tests/assets."""
    return searches_on(demo.model, demo.positive, demo.negative, demo.vae)


@pytest.fixture(scope="module")
def whole(find):
    """A search without a store that never stops, and what it evaluated."""
    return cache(lambda algorithm, candidates=CANDIDATES: find(None, algorithm, candidates=candidates))


def found(result):
    """What a search found: all of it must be that of a search that never stopped."""
    log = result.log
    candidates = [(one.recipes, one.values, one.nfe, one.stage) for one in log.candidates]
    thumbnails = {key: picture.tolist() for key, picture in log.thumbnails.items()}
    return candidates, thumbnails, result.recipe, result.image.tolist(), result.latent["samples"].tolist(), log.stopped


@pytest.mark.parametrize("batch", [1, 2])
@every_algorithm
def test_the_same_search_again_renders_its_winner_alone(store, find, algorithm, batch):
    first, _ = find(store, algorithm, batch=batch)
    verifier = Red()
    again, evaluated = find(store, algorithm, batch=batch, verifier=verifier)
    assert found(again) == found(first)
    winners = {again.log.best(row).index for row in range(batch)}
    assert verifier.scored == batch * len(winners)
    assert evaluated == again.log.extra_nfe
    assert again.log.warnings == []


@every_algorithm
def test_without_a_store_it_finds_the_same(store, find, whole, algorithm):
    assert found(find(store, algorithm)[0]) == found(whole(algorithm)[0])


@every_algorithm
@pytest.mark.parametrize("at", [1, 4])
def test_after_cancel_it_goes_on(store, find, whole, algorithm, at):
    expected, evaluated = whole(algorithm)
    with pytest.raises(mm.InterruptProcessingException):
        find(store, algorithm, verifier=Red(cancel_at=at))
    resumed, rest = find(store, algorithm)
    assert found(resumed) == found(expected)
    assert len(resumed.log.recalled) == at
    assert rest < evaluated + STEPS + 1


def test_cancel_is_honoured_while_candidates_are_remembered(store, find, monkeypatch):
    find(store)
    recalled = []

    def candidate(memory, work):
        recalled.append(work)
        mm.interrupt_current_processing(len(recalled) == 2)
        return remembered(memory, work)

    remembered = StoredMemory.candidate
    monkeypatch.setattr(StoredMemory, "candidate", candidate)
    with pytest.raises(mm.InterruptProcessingException):
        find(store)
    assert len(recalled) == 2


@every_algorithm
def test_a_larger_search_goes_on_from_a_smaller(store, find, whole, algorithm):
    find(store, algorithm)
    larger, _ = find(store, algorithm, candidates=9)
    assert found(larger) == found(whole(algorithm, 9)[0])
    assert larger.log.recalled


@pytest.mark.complete
def test_there_is_a_file_of_every_version(find_on_demo, tmp_path):
    missing = [version for version in VERSIONS if not file_of(version).is_file()]
    if os.environ.get("NOISE_SEARCH_UPDATE_STORE") and missing == [VERSIONS[-1]]:
        made_by(find_on_demo, ALGORITHMS["paths"], Store(tmp_path / "made"), file_of(VERSIONS[-1]))
        missing = []
    assert missing == [], (
        f"tests/assets has no file of version {missing} of the store's tables. That of the newest version is made by "
        "NOISE_SEARCH_UPDATE_STORE=1 python dev.py test tests/host/memory/test_store.py -k every_version; an older one "
        "is, with the code of that time"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_search_in_a_file_of_any_version_goes_on(store, find_on_demo, tmp_path, version):
    """What an older pack remembered, with the same content; the key of that machine is put in its place."""
    other = Store(tmp_path / "other")
    find_on_demo(other, candidates=1)
    with sqlite3.connect(other.file) as connection:
        [(key,)] = connection.execute("SELECT key FROM searches")
    store.folder.mkdir()
    shutil.copy(file_of(version), store.file)
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE searches SET key = ? WHERE id = 1", (key,))
    connection.close()
    whole, _ = find_on_demo(None)
    larger, evaluated = find_on_demo(store)
    assert (larger.recipe, larger.log.warnings) == (whole.recipe, [])
    assert [one.index for one in larger.log.recalled] == [0, 1, 2]
    assert evaluated == (CANDIDATES - 3 + larger.log.best().recalled) * STEPS


def test_batches_are_remembered_too(store, find):
    first, _ = find(store, candidates=8, alone=4)
    again, evaluated = find(store, candidates=8, alone=4)
    assert [one.values for one in again.log.candidates] == [one.values for one in first.log.candidates]
    assert torch.equal(again.image, first.image)
    assert evaluated == STEPS


def test_another_algorithm_knows_the_same_noises(store, find):
    find(store, RandomSearch())
    assert len(find(store, DraftAndFinal(draft_steps=2))[0].log.recalled) >= 1


def test_another_cfg_knows_nothing(store, find):
    find(store)
    assert find(store, cfg=3.5)[0].log.recalled == []


def test_the_seconds_of_then_count_towards_the_budget(store, find):
    first, _ = find(store)
    again, _ = find(store)
    assert [one.seconds for one in again.log.candidates] == [one.seconds for one in first.log.candidates]


def test_what_changed_behind_the_key_is_noticed_and_set_aside(store, find):
    find(store)
    fresh, _ = find(None, verifier=Red(add=0.5))
    again, evaluated = find(store, verifier=Red(add=0.5))
    assert found(again) == found(fresh)
    assert again.log.nfe == evaluated == (CANDIDATES + 1 + again.log.best().recalled) * STEPS
    assert [note for note in again.log.warnings if "no longer fits" in note and f"{CANDIDATES} candidates" in note]
    kept = store.overview()["searches"]
    assert sorted(one["candidates"] for one in kept) == [CANDIDATES, CANDIDATES]
    assert find(store, verifier=Red(add=0.5))[0].log.warnings == []


def test_only_what_is_old_is_set_aside(store, find):
    find(store, candidates=4)
    verifier = Red(add=-0.5)
    result, evaluated = find(store, candidates=CANDIDATES, verifier=verifier)
    remade = result.log.best().recalled
    assert verifier.scored == 2 + 1 + 4 + remade  # two new ones, the winner that does not fit, the four old ones anew
    assert result.log.nfe == evaluated, "what both attempts know is charged once"


@pytest.mark.parametrize(("mood", "more", "rendered"), [(1, 0, 1 + 6), (-1, 1, 2 + 7 + 7)], ids=["once", "twice"])
def test_scores_that_cannot_be_repeated_do_not_loop(store, find, mood, more, rendered):
    class Moody(Red):
        moods = 0

        def score(self, images, prompts):
            Moody.moods += mood
            return super().score(images, prompts) + Moody.moods

    find(store, verifier=Moody())
    result, evaluated = find(store, candidates=CANDIDATES + more, verifier=Moody())
    assert result.log.nfe == evaluated == rendered * STEPS
    assert len(result.log.candidates) == CANDIDATES + more
    assert result.log.recalled == []


def test_asked_to_finish_it_does_not_search_anew(store, find):
    from noise_search.host.graph import finish

    class Finishing(Red):
        def score(self, images, prompts):
            finish.finish()
            return super().score(images, prompts) - 0.5

    whole, _ = find(store)
    result, _ = find(store, candidates=CANDIDATES + 4, verifier=Finishing(), graph=Graph("7"))
    assert len(result.log.candidates) == CANDIDATES + 1
    assert result.recipe == whole.recipe
    assert [note for note in result.log.warnings if "no longer fits" in note]


def test_scores_that_are_another_each_time_do_not_throw_pictures_away(store, find):
    class Moody(Red):
        repeatable, mood = False, 0.0

        def score(self, images, prompts):
            Moody.mood += 0.3
            return super().score(images, prompts) + Moody.mood

    first, _ = find(store, verifier=Moody())
    again, evaluated = find(store, verifier=Moody())
    assert [one.values for one in again.log.candidates] == [one.values for one in first.log.candidates]
    assert evaluated == STEPS
    assert again.log.warnings == []


def test_what_was_sampled_in_batches_that_mix_is_never_recalled(store, find, monkeypatch):
    from noise_search.host.sampling import batching

    together = batching.sample_together

    def mixing(*args):
        made = together(*args)
        for one in made:
            one.latent["samples"] += 0.2
        return made

    fresh, _ = find(None, candidates=8)
    monkeypatch.setattr(batching, "sample_together", mixing)
    first, made = find(store, candidates=8, alone=4)
    assert [note for note in first.log.warnings if "mixes the candidates" in note]
    assert found(first) == found(fresh)
    assert made == first.log.nfe and first.log.ledger.extra[MADE_ANEW].nfe > 0
    for _ in range(2):
        again, evaluated = find(store, candidates=8, alone=4)
        assert evaluated == STEPS
        assert len(again.log.recalled) == 8 and not again.log.warnings
        assert found(again) == found(fresh)


def test_switched_off_nothing_is_written_or_known(store, find):
    store.configure(enabled=False)
    find(store)
    assert find(store)[0].log.recalled == []
    assert not store.file.exists()


def test_what_cannot_be_told_apart_is_not_remembered(store, find, brightness):
    result, _ = find(store, verifier=brightness)
    assert [note for note in result.log.warnings if "not remembered" in note and "red" in note]
    assert not store.file.exists()


# The file


def break_with_garbage(store):
    store.file.write_bytes(b"this is no database" * 1000)


def break_in_the_middle(store):
    data = bytearray(store.file.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    store.file.write_bytes(data)


def break_an_entry(store):
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE entries SET \"values\" = '[[1, 2'")


def break_the_tables(store):
    with sqlite3.connect(store.file) as connection:
        connection.execute("DROP TABLE entries")


def make_it_newer(store):
    with sqlite3.connect(store.file) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("damage", [break_with_garbage, break_in_the_middle, break_the_tables])
def test_a_broken_file_is_reported_and_put_aside(store, find, damage):
    first, _ = find(store)
    damage(store)
    result, _ = find(store)
    assert found(result) == found(first)
    assert [note for note in result.log.warnings if "is broken" in note and "renamed" in note]
    assert list(store.folder.glob("evaluations.broken-*"))
    find(store)
    assert len(find(store)[0].log.recalled) == CANDIDATES  # in a new file


def test_an_entry_that_cannot_be_read_is_computed_again_and_the_others_stay(store, find):
    first, _ = find(store)
    break_an_entry(store)
    again, _ = find(store)
    assert found(again) == found(first)
    assert again.log.warnings == []
    assert len(find(store)[0].log.recalled) == CANDIDATES


def test_the_file_of_a_newer_version_is_left_alone(store, find):
    first, _ = find(store)
    make_it_newer(store)
    result, _ = find(store)
    assert found(result) == found(first)
    assert [note for note in result.log.warnings if "newer Noise Search" in note]
    assert not list(store.folder.glob("*broken*"))
    with sqlite3.connect(store.file) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("SELECT COUNT(*) FROM entries").fetchone() == (CANDIDATES,)


def test_a_score_that_is_no_number_harms_no_other_search(store, find):
    class Broken(Red):
        def score(self, images, prompts):
            return super().score(images, prompts) * torch.nan

    find(store)
    for _ in range(2):
        with pytest.raises(ValueError, match="red"):
            find(store, verifier=Broken(), cfg=4.0)
    assert len(find(store)[0].log.recalled) == CANDIDATES


def test_another_servers_new_file_is_not_put_aside(store):
    with store.memory("old") as memory:
        other = Store(store.folder)
        other.opened = memory.store.opened
        other.explain(sqlite3.DatabaseError("malformed"))  # the other server renames the file, and begins a new one
        fill(Store(store.folder), "new")
        text = memory.store.explain(sqlite3.DatabaseError("malformed"))
    assert "already" in text
    assert [one["prompt"] for one in Store(store.folder).overview()["searches"]] == ["prompt of new"]


def test_an_id_is_never_given_twice(store):
    fill(store, "a")
    [old] = store.overview()["searches"]
    store.delete()
    fill(store, "b")
    assert store.delete([old["id"]]) == 0


def test_a_prompt_with_half_a_character_can_be_stored(store):
    with store.memory("key", "half \ud83d of it") as memory:
        memory.keep_candidate("one", rendered((Recipe(1),)))
        assert memory.problem == ""
    assert store.overview()["searches"][0]["prompt"] == "half ? of it"


def test_what_was_scored_during_a_lock_is_written_after_it(store, monkeypatch):
    monkeypatch.setattr("noise_search.host.memory.tables.BUSY_SECONDS", 0.05)
    with store.memory("key") as memory:
        other = sqlite3.connect(store.file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        memory.keep_candidate("one", rendered((Recipe(1),)))
        assert "locked" in memory.problem
        other.close()
        memory.keep_candidate("two", rendered((Recipe(2),)))
        assert memory.problem == ""
        assert memory.candidate("one") is not None


def test_what_was_scored_during_a_lock_is_written_at_the_end(store, monkeypatch):
    monkeypatch.setattr("noise_search.host.memory.tables.BUSY_SECONDS", 0.05)
    with store.memory("key") as memory:
        other = sqlite3.connect(store.file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        memory.keep_candidate("one", rendered((Recipe(1),)))
        other.close()
    with store.memory("key") as memory:
        assert memory.candidate("one") is not None


def test_a_locked_file_is_reported_and_stays(store, find, monkeypatch):
    monkeypatch.setattr("noise_search.host.memory.tables.BUSY_SECONDS", 0.05)
    first, _ = find(store)
    other = sqlite3.connect(store.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    result, _ = find(store)
    other.close()
    assert found(result) == found(first)
    assert [note for note in result.log.warnings if "locked" in note]
    assert store.file.exists()
    assert len(find(store)[0].log.recalled) == CANDIDATES


def full_at(monkeypatch, pages):
    """A disk that is full once the store has so many pages. Returns what makes room on it."""
    connect, opened = Store.connect, []

    def limited(self):
        connection = connect(self)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        opened.append(connection)
        return connection

    monkeypatch.setattr(Store, "connect", limited)
    return lambda: opened[-1].execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_is_reported_and_the_search_ends_with_its_image(store, find_on_demo, monkeypatch):
    full_at(monkeypatch, 12)
    result, _ = find_on_demo(store)
    assert [note for note in result.log.warnings if "full" in note]
    assert found(result) == found(find_on_demo(None)[0])


def test_on_a_full_disk_what_is_there_is_found_and_the_rest_written_once_there_is_room(store, monkeypatch):
    fill(store, "key", candidates=2)
    with sqlite3.connect(store.file) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    make_room = full_at(monkeypatch, pages)
    with store.memory("key") as memory:
        pictures = torch.randint(0, 256, (1, 200, 200, 3), dtype=torch.uint8)
        memory.keep_candidate("large", rendered((Recipe(1),), pictures))
        assert "could not be written yet" in memory.problem and "full" in memory.problem
        assert memory.candidate("work 1") is not None
        make_room()
        memory.keep_candidate("small", rendered((Recipe(2),)))
        assert memory.problem == ""
    with store.memory("key") as memory:
        assert memory.candidate("large") is not None and memory.candidate("small") is not None


def test_a_file_that_can_no_longer_be_written_is_reported_and_still_read(store, find):
    fill(store, "key", candidates=2)
    with store.memory("key") as memory:
        memory.connection.execute("PRAGMA query_only = 1")
        memory.keep_candidate("new", rendered((Recipe(1),)))
        assert "could not be written yet" in memory.problem and "readonly" in memory.problem
        assert memory.candidate("work 1") is not None


def vanish(folder):
    shutil.rmtree(folder)


def be_moved(folder):
    folder.rename(folder.with_name("elsewhere"))


def be_replaced(folder):
    other = Store(folder.with_name("other"))
    fill(other, "other")
    os.replace(other.file, folder / FILE)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a file that is open")
@pytest.mark.parametrize("happens", [vanish, be_moved, be_replaced])
def test_a_store_that_vanishes_during_a_search_is_reported_and_begun_anew(store, find, caplog, happens):
    class Losing(Red):
        def score(self, images, prompts):
            if self.scored == 3:
                happens(store.folder)
            return super().score(images, prompts)

    whole, _ = find(None)
    result, _ = find(store, verifier=Losing())
    assert found(result) == found(whole)
    [note] = result.log.warnings
    assert "was deleted or replaced during the search, so 3 candidates" in note and str(store.file) in note
    assert note in caplog.text
    again, _ = find(store)
    assert found(again) == found(whole)
    assert len(again.log.recalled) == CANDIDATES - 3
    assert again.log.warnings == []
    others = {one["prompt"] for one in store.overview()["searches"]} - {""}
    assert others == ({"prompt of other"} if happens is be_replaced else set())


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a file that is open")
def test_a_store_that_vanishes_for_good_is_reported(store, find):
    class Losing(Red):
        def score(self, images, prompts):
            if self.scored == 3:
                shutil.rmtree(store.folder)
                store.folder.write_text("a file where the folder was")
            return super().score(images, prompts)

    result, _ = find(store, verifier=Losing())
    assert found(result) == found(find(None)[0])
    assert [note for note in result.log.warnings if "was deleted" in note]
    assert [note for note in result.log.warnings if "no longer remembered" in note]


def test_a_file_whose_number_is_another_each_time_is_written_all_the_same(store, monkeypatch):
    numbers = itertools.count()
    monkeypatch.setattr("noise_search.host.memory.store._inode", lambda path: next(numbers))
    with store.memory("key") as memory:
        for index in range(10):
            memory.keep_candidate(f"work {index}", rendered((Recipe(index),)))
        assert memory.problem == ""
    with store.memory("key") as memory:
        assert all(memory.candidate(f"work {index}") is not None for index in range(10))


def test_every_candidate_is_on_the_disk_before_the_next(store):
    with store.memory("key") as memory:
        assert memory.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: synced at every commit
        assert memory.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        memory.keep_candidate("one", rendered((Recipe(1),)))
        with sqlite3.connect(store.file) as other:
            assert other.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path, find):
    (tmp_path / "file").write_text("")
    result, _ = find(Store(tmp_path / "file" / "store"))
    assert [note for note in result.log.warnings if "no longer remembered" in note]
    assert len(result.log.candidates) == CANDIDATES


# Lists, limits and settings


def fill(store, key, candidates=3, side=64):
    with store.memory(key, f"prompt of {key}", "random search") as memory:
        for index in range(candidates):
            pictures = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
            recipes = (Recipe(index).then(Rotate(3, 12.5)),)
            memory.keep_candidate(f"work {index}", rendered(recipes, pictures))
        memory.keep_segment("segment", Cost(3, {"sample": 0.5}))


def rendered(recipes, pictures=None):
    values = torch.tensor([[0.1, -2.5]])
    return Rendered(recipes, values, 8, 8, {"sample": 1.5, "score": 0.25}, ("result",), pictures, batched=True)


def test_a_candidate_comes_back_as_it_was(store):
    pictures = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8)
    made = dataclasses.replace(
        rendered((Recipe(3, row=0, batch=2), Recipe(4, row=1, batch=2)), pictures),
        values=torch.tensor([[0.1], [1 / 3]]),
        nfe_per_row=4,
    )
    with store.memory("key") as memory:
        memory.keep_candidate("work", made)
    with store.memory("key") as memory:
        back = memory.candidate("work")
        assert memory.candidate("other work") is None
    with store.memory("other key") as memory:
        assert memory.candidate("work") is None
    assert torch.equal(back.values, made.values)
    assert torch.equal(back.thumbnails, made.thumbnails)
    assert back.recalled
    plain = dataclasses.replace(back, values=0, thumbnails=0, recalled=False)
    assert plain == dataclasses.replace(made, values=0, thumbnails=0, results=())


def test_a_segment_comes_back_as_it_was_and_is_no_candidate(store):
    fill(store, "key")
    with store.memory("key") as memory:
        assert memory.segment("segment") == Cost(3, {"sample": 0.5})
        assert memory.candidate("segment") is None
        assert memory.segment("work 0") is None


def test_the_overview_lists_searches_the_last_used_first(store):
    fill(store, "a")
    fill(store, "b", candidates=5)
    overview = store.overview()
    assert [(one["prompt"], one["candidates"]) for one in overview["searches"]] == [
        ("prompt of b", 5),
        ("prompt of a", 3),
    ]
    assert overview["bytes"] > sum(one["bytes"] for one in overview["searches"]) > 0
    assert overview["path"] == str(store.folder / FILE)
    assert overview["problem"] == ""


def test_an_empty_store_has_an_overview_and_no_file(store):
    assert store.overview()["searches"] == []
    assert not store.folder.exists()


def test_one_search_or_all_can_be_deleted(store):
    for key in "abc":
        fill(store, key)
    first = store.overview()["searches"][0]["id"]
    assert store.delete([first, 12345]) == 1
    assert len(store.overview()["searches"]) == 2
    assert store.delete() == 2
    assert store.overview()["searches"] == []


def test_a_search_that_is_deleted_meanwhile_goes_on_being_remembered(store):
    with store.memory("key") as memory:
        memory.keep_candidate("one", rendered((Recipe(1),)))
        store.delete()
        memory.keep_candidate("two", rendered((Recipe(2),)))
        assert memory.problem == ""
        assert memory.candidate("one") is None
        assert memory.candidate("two") is not None


def test_beyond_the_limit_the_searches_not_used_for_longest_go(store):
    store.configure(limit_mb=16)
    for key in "abcd":
        fill(store, key, candidates=12, side=400)  # 6 MB each: random pixels do not compress
    assert [one["prompt"] for one in store.overview()["searches"]] == ["prompt of d", "prompt of c"]
    assert store.overview()["bytes"] < 24 * 2**20


def on_disk(store):
    return sum(file.stat().st_size for file in store.folder.glob(f"{FILE}*"))


def test_a_search_that_alone_is_too_large_loses_its_oldest_pictures_and_nothing_else(store):
    store.configure(limit_mb=16)
    pictures = torch.randint(0, 256, (1, 400, 400, 3), dtype=torch.uint8)  # 0.5 MB: random pixels do not compress
    with store.memory("large") as memory:
        for index in range(60):
            memory.keep_candidate(f"work {index}", rendered((Recipe(index),), pictures))
            assert on_disk(store) < 18 * 2**20  # the limit, and what SQLite has beside the file
        assert memory.problem == ""
        [note] = memory.notes
        assert "limit 16 MB" in note and "oldest have no small picture" in note
    with store.memory("large") as memory:
        known = [memory.candidate(f"work {index}") for index in range(60)]
    with_pictures = [one.thumbnails is not None for one in known]  # all are there
    assert with_pictures == sorted(with_pictures) and 15 < sum(with_pictures) < 35
    [listed] = store.overview()["searches"]
    assert listed["candidates"] == 60
    assert listed["bytes"] < 16 * 2**20


def test_a_search_whose_scores_alone_are_too_many_keeps_the_first(store, monkeypatch):
    monkeypatch.setattr("noise_search.host.memory.store.SMALLEST_MB", 1)
    store.configure(limit_mb=1)
    recipe = Recipe(1)
    for index in range(200):
        recipe = recipe.then(Rotate(index, 12.5))
    with store.memory("long") as memory:
        for index in range(150):
            memory.keep_candidate(f"work {index}", rendered((recipe,)))
        assert "from here on are not remembered" in memory.notes[-1]
    with store.memory("long") as memory:
        known = [memory.candidate(f"work {index}") is not None for index in range(150)]
    assert known == sorted(known, reverse=True) and 50 < sum(known) < 150
    assert on_disk(store) < 2 * 2**20


def test_a_search_makes_room_among_the_others_while_it_runs(store):
    store.configure(limit_mb=16)
    fill(store, "old", candidates=24, side=400)
    pictures = torch.randint(0, 256, (1, 400, 400, 3), dtype=torch.uint8)
    with store.memory("new") as memory:
        for index in range(12):
            memory.keep_candidate(f"work {index}", rendered((Recipe(index),), pictures))
            assert on_disk(store) < 18 * 2**20
        assert memory.notes == []
        assert [one["prompt"] for one in store.overview()["searches"]] == [""]
        assert all(memory.candidate(f"work {index}").thumbnails is not None for index in range(12))


def test_a_search_too_large_for_the_store_goes_on_as_before(store, find, monkeypatch):
    """Its pictures are gone; what it finds is not another."""
    whole, _ = find(store)
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE entries SET thumbnails = NULL")
    again, evaluated = find(store)
    assert again.recipe == whole.recipe and torch.equal(again.image, whole.image)
    assert (evaluated, again.log.warnings) == (STEPS, [])


def test_a_smaller_limit_works_at_once(store):
    for key in "abcd":
        fill(store, key, candidates=12, side=400)
    store.configure(limit_mb=16)
    assert len(store.overview()["searches"]) == 2


@pytest.mark.parametrize("wrong", [{"limit_mb": 15}, {"limit_mb": True}, {"limit_mb": "20"}, {"enabled": 1}])
def test_settings_that_cannot_be_are_refused(store, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        store.configure(**wrong)
    assert store.settings() == Settings()


def test_settings_last(store):
    store.configure(enabled=False, limit_mb=100)
    store.configure(limit_mb=200)
    assert Store(store.folder).settings() == Settings(False, 200)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"limit_mb": -3}', '{"enabled": null}'])
def test_settings_that_cannot_be_read_are_the_usual_ones(store, text):
    store.folder.mkdir()
    (store.folder / "settings.json").write_text(text)
    assert store.settings() == Settings()


def test_settings_that_cannot_be_written_are_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file").configure(enabled=False)


def test_several_servers_write_at_once(store):
    problems = []

    def write(name):
        with store.memory(name % 2 and "shared" or f"own {name}") as memory:
            for index in range(25):
                memory.keep_candidate(f"{name} {index}", rendered((Recipe(index),)))
            problems.append(memory.problem)

    writers = [threading.Thread(target=write, args=(name,)) for name in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert problems == [""] * 6
    assert sum(one["candidates"] for one in store.overview()["searches"]) == 150


def test_a_search_that_ended_early_goes_on(store, find):
    whole, _ = find(None)
    with pytest.raises(mm.InterruptProcessingException):
        find(store, verifier=Red(cancel_at=3))
    early, _ = find(store, candidates=2, budget=Budget())
    assert len(early.log.recalled) == 2
    assert found(find(store)[0]) == found(whole)


def test_what_is_written_is_on_the_disk_before_the_search_goes_on(store, monkeypatch):
    """Not only in the system's memory, which a power cut takes: asked of the very connection that writes."""
    opened, connect = [], sqlite3.connect

    def watched(*args, **named):
        opened.append(connect(*args, **named))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", watched)
    with store.memory("key") as memory:
        memory.keep_segment("work", Cost(4, {"sample": 1.0}))
        assert memory.segment("work") is not None
        synced = {one.execute("PRAGMA synchronous").fetchone()[0] for one in opened if is_open(one)}
    assert synced == {2}  # FULL: of SQLite's log, every transaction


def is_open(connection):
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False
    return True
