"""A verifier that compares, the whole way from the VERIFIER socket to a picture that travels."""

import json
import sqlite3

import pytest
import torch

pytest.importorskip("comfy")

from any_model import Contrast
from comparing import NearPictures
from noise_search.host.graph.graph import Graph
from noise_search.host.judging.selection import score_images, select
from noise_search.host.memory.store import FILE, Store
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.report.table import table
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.budget import Budget
from noise_search.search.judges import combined, gated, judges_of
from noise_search.search.log import FINAL, REPLAY
from noise_search.verifiers.base import VerifierError

SEED, STEPS, CANDIDATES = 11, 3, 6


class Silent(NearPictures):
    """Fails from its third answer on."""

    members = ("silent",)

    def compare(self, first, second, prompt):
        if self.asked == 2:
            raise VerifierError("the person has left")
        return super().compare(first, second, prompt)


@pytest.fixture
def find(demo):
    @torch.inference_mode()
    def find(verifier, candidates=CANDIDATES, batch=1, text="a red circle", **more):
        def sampling():
            latent = {"samples": torch.zeros(batch, 16, 8, 8)}
            positive = demo.encode(text)
            return Sampling.ksampler(demo.model, STEPS, 3.0, "euler", "simple", positive, demo.negative, latent)

        more = {"graph": Graph(), "top_k": 1, **more}
        return search(
            sampling, demo.vae, verifier, SEED, candidates, "", more.pop("top_k"), more.pop("graph"), "positive",
            options=Options(1), **more,
        )  # fmt: skip

    return find


@pytest.mark.parametrize("batch", [1, 2])
def test_the_winner_is_the_one_that_no_other_beats(find, batch):
    judge = NearPictures()
    result = find(judge, batch=batch, top_k=CANDIDATES)
    log = result.log
    for row in range(batch):
        distances = [judge.distance(judge.look(images[row : row + 1], "")) for images in result.top_images]
        assert distances == sorted(distances)
        assert [float(log.scores(row)[index]) for index in log.order(row)] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert 0 < judge.asked <= batch * 14  # ranks of six candidates: 1 + 2 + 2 + 3 + 3 and stock, which is first
    assert log.to_dict()["aggregator"]["comparative"] == ["near the set"]
    assert "near the set" in table(log)


def test_both_routes_order_alike(find):
    judge = NearPictures()
    result = find(judge, top_k=CANDIDATES)
    order, images = result.log.order(), [None] * CANDIDATES
    for rank, index in enumerate(order):
        images[index] = result.top_images[rank]
    scores = score_images(images, judge, [""])
    assert scores.order(0) == order and scores.flat() == result.log.scores().tolist()
    best = select(scores, 1, images)
    assert best.indices == [order[0]] and torch.equal(best.images[0], result.image)
    assert "best 1 (candidate" in scores.summary()


def test_verifier_score_compares_images_of_one_prompt(find):
    class Reader(NearPictures):
        needs_prompt = True

    with pytest.raises(ValueError, match="near the set compares images of one prompt, and these have 2"):
        score_images([torch.rand(1, 8, 8, 3)] * 2, Reader(), ["a cat", "a dog"])


def test_what_it_said_is_stored_and_not_asked_again(find, tmp_path):
    judge, store = NearPictures(), Store(tmp_path)
    first, asked = find(judge, store=store), judge.asked
    connection = sqlite3.connect(tmp_path / FILE)
    rows = connection.execute("SELECT judge, question, answer FROM comparisons").fetchall()
    values = [json.loads(text) for (text,) in connection.execute('SELECT "values" FROM entries')]
    connection.close()
    assert len(rows) == asked > 0
    assert {row[:2] for row in rows} == {(judge.identity(), judge.question)} and {row[2] for row in rows} <= {
        0.0,
        0.5,
        1.0,
    }
    assert all(value != value for table in values for row in table for value in row)  # NaN: no score
    again = find(judge, store=store)
    assert judge.asked == asked and again.log.order() == first.log.order()
    assert torch.equal(again.image, first.image) and again.log.warnings == []
    more, whole = find(judge, CANDIDATES + 2, store=store), NearPictures()
    alone = find(whole, CANDIDATES + 2)
    assert judge.asked == whole.asked and more.log.order() == alone.log.order()
    assert torch.equal(more.image, alone.image)


def test_its_picture_travels_and_is_compared_by_its_colours_alone(find):
    workflow = {"nodes": []}
    prompt = {"7": {"class_type": "NoiseSearchKSampler", "inputs": {}}}

    def run(text="a red circle"):
        nonlocal workflow
        workflow = json.loads(json.dumps(workflow, allow_nan=False))
        judge = NearPictures()
        return find(judge, text=text, graph=Graph("7", prompt, {"workflow": workflow})), judge

    first, _ = run()
    again, judge = run()
    assert again.log.algorithm == REPLAY and judge.asked == 0
    assert torch.equal(again.image, first.image) and again.log.warnings == []
    [told] = workflow["extra"]["noise_search"]["7"]["runs"]
    told["pictures"], pictures = [], told["pictures"]
    with pytest.raises(ValueError, match="cannot be made again: it has no recipe or no score"):
        run()  # nothing would say whether it is the same
    workflow["extra"]["noise_search"]["7"]["runs"][0]["pictures"] = pictures
    other, _ = run("two green triangles above a blue square")
    [warning] = other.log.warnings
    assert "its colours are off" in warning and "scores" not in warning


def test_beside_a_verifier_that_scores_it_counts_by_rank(find, brightness):
    for combine in ("mean rank", "z-score", "weighted sum"):
        result = find(combined([(NearPictures(), 1.0), (brightness, 0.0)], combine), top_k=CANDIDATES)
        assert result.log.order() == find(NearPictures()).log.order()
        assert all(one.values[0][1] == one.values[0][1] for one in result.log.candidates)  # the other's value is there
    reported = find(combined([(NearPictures(), 0.0), (brightness, 1.0)]))
    assert reported.log.order() == find(brightness).log.order()


def test_one_that_fails_is_dropped_with_its_answers(find, brightness):
    with pytest.raises(VerifierError, match="the person has left"):
        find(Silent())
    result = find(combined([(Silent(), 5.0), (brightness, 1.0)], drop_failed=True))
    assert result.log.order() == find(brightness).log.order()
    assert any("silent was dropped for the whole search: the person has left" in one for one in result.log.warnings)
    images = [torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    native = score_images(images, combined([(Silent(), 5.0), (brightness, 1.0)], drop_failed=True), [""])
    assert native.order(0) == score_images(images, brightness, [""]).order(0) and "Dropped" in native.summary()


def test_an_answer_that_is_none_says_so(find):
    for answer in (None, 2.0, float("nan"), "first"):
        judge = NearPictures()
        judge.compare = lambda first, second, prompt, answer=answer: answer
        with pytest.raises(VerifierError, match="near the set answered .* to 'Which of the two is nearer to the set.'"):
            find(judge, 2)


def test_running_out_of_memory_is_tried_again(find):
    class Full(NearPictures):
        def look(self, images, prompt):
            if not hasattr(self, "looked"):
                self.looked = True
                raise torch.cuda.OutOfMemoryError("no memory left")
            return super().look(images, prompt)

    assert find(Full()).log.order() == find(NearPictures()).log.order()


def test_what_means_nothing_without_scores_is_refused(find, brightness):
    with pytest.raises(ValueError, match="target score of 5 means nothing with near the set, which compares images"):
        find(NearPictures(), budget=Budget(target=5.0))
    find(combined([(NearPictures(), 0.0), (brightness, 1.0)]), 2, budget=Budget(target=5.0))
    with pytest.raises(ValueError, match="a gate is a least score, and near the set gives none"):
        gated(NearPictures(), 0.5)


def test_one_that_lacks_something_is_no_verifier():
    class Half(NearPictures):
        question = property()

    with pytest.raises(ValueError, match="'verifier' is Half, which has no question: connect a"):
        judges_of(Half())
    Half.question, Half.members = "Which?", ("one", "two")
    with pytest.raises(ValueError, match="one, two compares, so it must have one member"):
        judges_of(Half())


class Shy(Contrast):
    """Is shown finished images only."""

    members, previews = ("shy",), False

    def __init__(self):
        self.seen = 0

    def identity(self):
        return "shy"

    def score(self, images, prompts):
        self.seen += len(images)
        return 1 - super().score(images, prompts)


def test_one_that_sees_finished_images_only_is_shown_neither_drafts_nor_previews(find, tmp_path):
    drafts = DraftAndFinal(draft_steps=2, finals=2)
    paths = SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.6)
    for algorithm in (drafts, paths):
        judge, store = Shy(), Store(tmp_path / algorithm.name)
        both = combined([(judge, 1.0), (NearPictures(), 1.0)])
        log = find(both, 9, algorithm=algorithm, store=store).log
        seen = len(log.of_stage(FINAL)) + bool(log.extra_nfe)  # a winner whose image was let go is made again
        assert 0 < judge.seen == seen < len(log.candidates)
        again = find(both, 9, algorithm=algorithm, store=store).log
        assert judge.seen == seen + 1  # the winner
        assert all(one.recalled for one in again.candidates) and again.order() == log.order()
        with pytest.raises(ValueError, match="shy is shown finished images only, .* use Random Search"):
            find(judge, 9, algorithm=algorithm)
