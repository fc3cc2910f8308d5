"""What the node shows of a search: the bar, the picture and the text, and to whom."""

import io
import itertools
import logging
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management
import comfy.utils
from noise_search.host import progress
from noise_search.host.graph import finish, travel
from noise_search.host.graph.graph import Graph
from noise_search.host.memory.store import Store
from noise_search.host.sampling import batching, engine
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search import ledger
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget, Spending
from noise_search.search.ledger import Cost
from noise_search.search.log import SearchLog

STEPS, SEED, CANDIDATES = 4, 20, 8
PATHS = SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.5)


class Red:
    """Likes red."""

    members = ("red",)
    needs_prompt = False
    usual_range = (0.0, 1.0)
    look = None  # called before each score

    def identity(self):
        return "red"

    def score(self, images, prompts):
        if self.look is not None:
            self.look()
        return images[..., 0].float().mean(dim=(1, 2)).reshape(-1, 1)


@dataclass
class Shown:
    """What ComfyUI was given to show. client: who queued what runs, None for nobody."""

    client: str | None = "me"
    bars: list = field(default_factory=list)
    previews: list = field(default_factory=list)
    texts: list = field(default_factory=list)

    def hook(self, value, total, preview, node_id=None):
        self.bars.append((value, total))
        if preview is not None:
            self.previews.append(preview)

    @property
    def client_id(self):
        return self.client

    def send_progress_text(self, text, node_id, sid=None):
        self.texts.append((text, node_id, sid))

    @property
    def last(self):
        """The last preview as pixels."""
        kind, picture, most = self.previews[-1]
        assert kind == "PNG" and most is None, "without loss and in its own size"
        return np.asarray(picture)


@pytest.fixture
def shown(monkeypatch):
    """ComfyUI's server and progress hook, as far as the pack uses them."""
    shown = Shown()
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", shown.hook)
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=shown)))
    return shown


@torch.inference_mode()
def find(demo, algorithm=None, verifier=None, batch=1, candidates=CANDIDATES, top_k=1, seed=SEED, **more):
    latent = {"samples": torch.zeros(batch, 16, 4, 4)}
    return search(
        lambda: Sampling.ksampler(demo.model, STEPS, 1.0, "euler", "simple", demo.positive, demo.negative, latent),
        demo.vae,
        verifier or Red(),
        seed,
        candidates,
        "",
        top_k,
        more.pop("graph", Graph("5")),
        "positive",
        algorithm,
        options=Options(batch_size=more.pop("batch_size", 1)),
        **more,
    )


def pixels(result):
    """Those of the first picture that the node gives out, as ComfyUI saves it."""
    return np.clip(255.0 * result.image[0].numpy(), 0, 255).astype(np.uint8)


WAYS = {
    "random search": {},
    "zero-order search": {"algorithm": ZeroOrderSearch(neighbours=2)},
    "search over paths": {"algorithm": PATHS},
    "draft and final": {"algorithm": DraftAndFinal(draft_steps=2), "candidates": 12},
    "one candidate": {"candidates": 1},
    "several results": {"top_k": 3},
    "in batches": {"batch_size": 4},
    "a batch of latents": {"batch": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_picture_on_show_at_the_end_is_the_winner(demo, shown, tmp_path, way):
    """Also where the search goes on from the store, which tells faster than anyone can look, or is known whole."""
    store = Store(tmp_path)
    find(demo, store=store, **{**WAYS[way], "candidates": 1 if way == "one candidate" else 2})
    for _ in range(2):
        result = find(demo, store=store, **WAYS[way])
        assert np.array_equal(shown.last, pixels(result))
    assert len(result.log.recalled) == len(result.log.candidates)
    assert way == "one candidate" or result.log.best().index > 0, "or stock's picture would be right by chance"


def test_it_says_how_many_were_known_from_before(demo, shown, tmp_path):
    store = Store(tmp_path)
    texts = [find(demo, candidates=count, store=store).text for count in (1, 1, 2, 3)]
    assert "known" not in texts[0]
    assert texts[1].endswith("\nIt was known from before.")
    assert "\n1 of 2 candidates was known from before." in texts[2]
    assert "\n2 of 3 candidates were known from before." in texts[3]


@pytest.mark.parametrize("how", ["random search", "search over paths", "draft and final"])
def test_asked_to_finish_it_is_the_best_so_far(demo, shown, monkeypatch, how):
    """What a path or a draft is brought to its end as."""
    original = progress.SearchProgress.candidate

    def see(self, run, candidate):
        original(self, run, candidate)
        if candidate.index == 4:
            finish.finish("5")

    monkeypatch.setattr(progress.SearchProgress, "candidate", see)
    result = find(demo, **{**WAYS[how], "candidates": 64})
    assert result.log.ended_early and np.array_equal(shown.last, pixels(result))


def test_remade_from_a_picture_it_is_that_picture(demo, shown, monkeypatch):
    found = find(demo)
    best = tuple(found.log.best(row).values[row] for row in range(1))
    monkeypatch.setattr(Graph, "winners", lambda self, seed, scored: travel.Winners(found.top_recipes, best))
    shown.previews.clear()
    again = find(demo)
    assert "made again" in again.log.stopped
    assert np.array_equal(shown.last, pixels(again)) and np.array_equal(pixels(again), pixels(found))


def test_while_it_runs_the_picture_is_that_of_the_best_so_far(demo, shown):
    """Also for a search that goes on: candidates that are known come too fast to be shown one by one."""
    log = find(demo).log
    scores = log.scores().tolist()
    better = [index for index, score in enumerate(scores) if score > max(scores[:index], default=-1)]
    best = [preview for preview in shown.previews[:-1] if preview[1].size == (32, 32)]
    assert len(better) > 1 and len(best) == len(better)


def test_a_known_best_is_shown_once_there_is_time(demo, shown, tmp_path, monkeypatch):
    """Not stock's picture beside the best one's score."""
    store = Store(tmp_path)
    known = find(demo, store=store, candidates=CANDIDATES).log
    best = known.best().index
    assert 0 < best < CANDIDATES
    monkeypatch.setattr(progress, "SHOW_EVERY", 1e9)  # the known ones but the first all come at once
    shown.previews.clear()
    seen = []
    original = progress.SearchProgress._show
    monkeypatch.setattr(
        progress.SearchProgress, "_show", lambda self, preview: (seen.append(self.pictured), original(self, preview))
    )
    log = find(demo, store=store, candidates=CANDIDATES + 2).log
    assert len(log.candidates) == CANDIDATES + 2
    assert log.best().index == seen[-1], "the last that was shown before the end"
    assert seen[0] == 0


# Who is told


def test_only_the_client_that_queued_is_told(demo, shown):
    find(demo, candidates=2)
    assert shown.texts and {(node_id, sid) for _, node_id, sid in shown.texts} == {("5", "me")}
    assert shown.previews


def test_what_nobody_queued_is_told_to_nobody(demo, shown):
    """ComfyUI sends what has no client to all of them."""
    shown.client = None
    find(demo, candidates=2)
    assert shown.texts == [] and shown.previews == []
    assert shown.bars[-1] == (2 * STEPS, 2 * STEPS)


# What is told of a search that came to no result


def left(demo, shown, how, count, **settings):
    """The last text of a search that ends like this when its judge is asked for the `count`-th time."""
    verifier, asked = settings.pop("verifier", None) or Red(), itertools.count(1)

    def look():
        if next(asked) == count:
            raise how

    verifier.look = look
    with pytest.raises(type(how)):
        find(demo, verifier=verifier, candidates=8, **settings)
    return shown.texts[-1][0].replace("\n", " ")


CANCEL = comfy.model_management.InterruptProcessingException()


def test_cancelled_it_says_how_many_images_are_kept_and_that_is_true(demo, shown, tmp_path):
    store = Store(tmp_path)
    assert left(demo, shown, CANCEL, 1, store=store) == "Cancelled. No image was scored yet."
    told = left(demo, shown, CANCEL, 4, store=store)
    assert told == "Cancelled. Nothing is lost: 3 images are kept, and Run goes on from there."
    told = left(demo, shown, RuntimeError("no"), 3, store=store)
    assert told == "Ended by an error. Nothing is lost: 5 images are kept, and Run goes on from there."
    assert len(find(demo, store=store).log.recalled) == 5


def test_cancelled_where_nothing_is_kept_it_says_so(demo, shown, tmp_path):
    off = Store(tmp_path)
    off.configure(enabled=False)
    for store in (None, off):
        told = left(demo, shown, CANCEL, 4, store=store)
        assert told == "Cancelled. Nothing is kept: storing searches is off."


def test_cancelled_where_nothing_can_be_kept_it_says_why(demo, shown, tmp_path):
    class Nameless(Red):
        identity = None

    (tmp_path / "file").write_text("")
    told = left(demo, shown, CANCEL, 4, store=Store(tmp_path), verifier=Nameless())
    assert told.startswith("Cancelled. The candidates of this search are not remembered: ")
    told = left(demo, shown, CANCEL, 4, store=Store(tmp_path / "file" / "store"))
    assert told.startswith("Cancelled. Candidates are no longer remembered: ")


# The console


class Broken:
    """A console that is gone: a pipe that nobody reads."""

    encoding = "utf-8"
    works = False

    def write(self, text):
        if not self.works:
            raise BrokenPipeError("nobody reads this")

    def flush(self):
        if not self.works:
            raise OSError(22, "Invalid argument")

    def breaks(self):
        self.works = False


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("console", [lambda: None, closed, Broken], ids=["none", "closed", "broken"])
def test_a_search_does_not_need_a_console(demo, shown, tmp_path, monkeypatch, console):
    stream = console()
    handler = logging.StreamHandler(stream)
    handler.stream = stream
    log = logging.getLogger("noise_search")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    assert comfy.utils.PROGRESS_BAR_ENABLED and logging.raiseExceptions
    result = find(demo, candidates=3, batch_size=2, batch=2)  # which also has a warning for the log
    assert len(result.log.candidates) == 3


def test_a_console_that_goes_away_meanwhile_costs_no_search(demo, shown, monkeypatch):
    stream = Broken()
    stream.works = True
    monkeypatch.setattr(sys, "stderr", stream)
    verifier = Red()
    verifier.look = stream.breaks
    assert len(find(demo, candidates=3, verifier=verifier).log.candidates) == 3


# The bar


@pytest.fixture
def bars(monkeypatch):
    """The progress of each attempt, on clocks by which sampling, decoding and scoring take about as long."""
    made = []
    original = progress.SearchProgress.__init__
    monkeypatch.setattr(
        progress.SearchProgress, "__init__", lambda self, *given: (made.append(self), original(self, *given))[1]
    )
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(ledger, "time", clock)
    monkeypatch.setattr(batching, "time", clock)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_the_bar_rises_and_is_full_only_at_the_end(demo, shown, tmp_path, way):
    """Also where all is known, and only the winner is rendered once more."""
    for _ in range(2):
        shown.bars.clear()
        find(demo, store=Store(tmp_path), **WAYS[way])
        values, [total] = [value for value, _ in shown.bars], {total for _, total in shown.bars}
        assert values == sorted(values)
        assert [value == total for value in values] == [False] * (len(values) - 1) + [True]


def test_what_is_sampled_and_not_judged_counts_for_its_share(demo, shown, bars, monkeypatch):
    """Where the networks change places eight are sampled, then decoded, then judged: the bar rises at each."""
    monkeypatch.setattr(engine, "must_swap", lambda *networks: True)
    verifier, seen = Red(), []
    verifier.look = lambda: seen.append(bars[-1].value / bars[-1].total)
    find(demo, verifier=verifier, candidates=9)
    assert len(seen) == 9
    assert max(seen) < 0.6, "eight are sampled, and one is judged"
    assert bars[-1].value == bars[-1].total - 1 and shown.bars[-1] == (9 * STEPS, 9 * STEPS)


def test_while_only_the_winner_is_left_the_bar_is_not_at_its_end(demo, shown, bars, tmp_path):
    find(demo, store=Store(tmp_path), candidates=3)
    verifier, seen = Red(), []
    verifier.look = lambda: seen.append(bars[-1].value / bars[-1].total)
    find(demo, store=Store(tmp_path), verifier=verifier, candidates=3)
    [before_the_judge] = seen
    assert 0.7 < before_the_judge < 0.9, "three of four, and the fourth is sampled"


def test_evaluations_of_before_are_not_this_search(demo, shown, bars):
    """One that goes over to another attempt, say."""
    latent = {"samples": torch.zeros(1, 16, 4, 4)}
    with torch.inference_mode():
        sampling = Sampling.ksampler(demo.model, STEPS, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
        sampling.evaluations.rows = 100
        made = progress.SearchProgress(sampling, 2)
        sampling.evaluations.rows += 1
        made.step(0, torch.zeros(1, 16, 4, 4), None, STEPS)
    assert made.value < STEPS / 2


@pytest.mark.parametrize(
    "budget, sampling, again, fraction",
    [
        (Budget(4), 1.0, 0, 0.5),
        (Budget(4), 0.5, 0, 0.25),
        (Budget(4), 1.0, 1, 0.4),
        (Budget(4, nfe=25), 1.0, 0, 0.8),
        (Budget(4, seconds=10.0), 1.0, 0, 0.7),
        (Budget(1), 1.0, 0, 1.0),
    ],
    ids=["half", "not judged", "one more render", "evaluations", "seconds", "never above 1"],
)
def test_the_fraction_is_that_of_the_nearest_limit(budget, sampling, again, fraction):
    log = SearchLog(("red",))
    log.ledger.spend(Cost(20, {"sample": 7.0}))
    spending = Spending(budget, log, engine=None)
    spending.learn("final", Cost(10, {"sample": 3.0}))
    assert spending.fraction(sampling, again) == pytest.approx(fraction)
