"""Several verifiers as one: weights, ways to combine them, and those that only report."""

import pytest
import torch

pytest.importorskip("comfy")

from noise_search.host.graph.graph import Graph
from noise_search.host.judging.hosted import HostedVerifier
from noise_search.host.judging.selection import score_images, select
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.report.table import table
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.judges import combined, gated
from noise_search.verifiers.base import VerifierError


class Channel:
    """The mean of one colour channel."""

    needs_prompt = False
    patcher = None

    def __init__(self, channel: int, name: str = "", usual_range=(0.0, 1.0), prompt_tokens=None, needs_prompt=False):
        self.channel = channel
        self.members = (name or ["red", "green", "blue"][channel],)
        self.usual_range = usual_range
        self.prompt_tokens = prompt_tokens
        self.needs_prompt = needs_prompt

    def identity(self):
        return str(self.channel)

    def score(self, images, prompts):
        return images[..., self.channel].float().mean(dim=(1, 2)).reshape(-1, 1)


RED, GREEN, BLUE = map(Channel, range(3))


def pictures(*colours):
    return [torch.tensor(colour).float().expand(1, 4, 4, 3) for colour in colours]


def test_the_values_are_those_of_the_members_side_by_side():
    scores = score_images(pictures([0.1, 0.2, 0.3]), combined([(RED, 1.0), (BLUE, 2.0)]), [""])
    assert torch.allclose(scores.values, torch.tensor([[[0.1, 0.3]]]))


@pytest.mark.parametrize(("combine", "best"), [("mean rank", 1), ("z-score", 0), ("weighted sum", 0)])
def test_they_choose_together(combine, best):
    images = pictures([0.9, 0.3, 0], [0.3, 0.5, 0], [0.2, 0.4, 0], [0.1, 0.2, 0])
    scores = score_images(images, combined([(RED, 1.0), (GREEN, 1.0)], combine), [""])
    assert max(range(4), key=scores.flat().__getitem__) == best


def test_a_larger_weight_counts_more():
    images = pictures([1.0, 0.0, 0], [0.0, 1.0, 0])
    for weights, best in (((1.0, 3.0), 1), ((3.0, 1.0), 0)):
        scores = score_images(images, combined(list(zip((RED, GREEN), weights, strict=True))), [""]).flat()
        assert max(range(2), key=scores.__getitem__) == best


def test_weight_0_reports_and_does_not_choose(demo):
    ensemble = combined([(RED, 1.0), (BLUE, 0.0)])
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    sampling = Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
    with torch.inference_mode():
        log = search(lambda: sampling, demo.vae, ensemble, 3, 4, "", 1, Graph(), "positive").log
    assert log.members == ("red", "blue")
    assert log.best().values[0][0] == max(candidate.values[0][0] for candidate in log.candidates)
    assert log.aggregator.weights == (1.0, 0.0)


def test_an_ensemble_in_an_ensemble_brings_its_members_with_their_weights_multiplied():
    inner = combined([(RED, 2.0), (GREEN, 0.0)])
    assert combined([(inner, 0.5), (BLUE, 3.0)]).aggregator.weights == (1.0, 0.0, 3.0)


def test_members_of_the_same_name_are_numbered():
    assert combined([(RED, 1.0), (RED, 1.0), (BLUE, 1.0)]).members == ("red (1)", "red (2)", "blue")


def test_nobody_to_choose_is_refused_by_name():
    with pytest.raises(ValueError, match=r"all weights are 0 \(red, blue\)"):
        combined([(RED, 0.0), (BLUE, 0.0)])


def test_a_negative_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="weight of blue must be 0 or more, not -1"):
        combined([(RED, 1.0), (BLUE, -1.0)])


def test_an_unknown_way_to_combine_is_refused():
    with pytest.raises(ValueError, match="'median'.*mean rank, z-score, weighted sum"):
        combined([(RED, 1.0)], "median")


def test_the_prompt_is_needed_if_one_needs_it_and_the_shortest_reader_counts():
    ensemble = combined([(RED, 1.0), (Channel(1, prompt_tokens=77), 1.0), (Channel(2, prompt_tokens=35), 1.0)])
    assert (ensemble.needs_prompt, ensemble.prompt_tokens) == (False, 35)
    assert combined([(RED, 1.0), (Channel(1, needs_prompt=True), 0.0)]).needs_prompt


def test_identity_follows_the_members_and_not_the_weights():
    assert combined([(RED, 1.0)]).identity() == combined([(RED, 2.0)]).identity()
    assert combined([(RED, 1.0)]).identity() != combined([(BLUE, 1.0)]).identity()


def test_each_member_keeps_its_usual_range():
    ensemble = combined([(RED, 1.0), (Channel(1, usual_range=(0, 9)), 1.0)])
    assert ensemble.usual_ranges == ((0.0, 1.0), (0, 9))


def test_where_networks_swap_each_verifier_scores_the_whole_chunk_before_the_next(demo, monkeypatch):
    turns = []

    class Turn(Channel):
        def score(self, images, prompts):
            turns.append(self.members[0])
            return super().score(images, prompts)

    monkeypatch.setattr("noise_search.host.sampling.engine.must_swap", lambda *networks: True)
    ensemble = combined([(Turn(0), 1.0), (Turn(2), 1.0)])
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    sampling = Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
    with torch.inference_mode():
        search(lambda: sampling, demo.vae, ensemble, 3, 5, "", 1, Graph(), "positive")
    assert turns[:10] == ["red", "blue", *["red"] * 4, *["blue"] * 4]


# Gates


def test_a_gate_keeps_the_verifier_as_it_is():
    gate = gated(RED, 0.25)
    assert (gate.members, gate.aggregator.gates, gate.usual_ranges) == (("red",), (0.25,), ((0.0, 1.0),))
    images = pictures([0.1, 0.2, 0.3])
    assert torch.equal(score_images(images, gate, [""]).values, score_images(images, RED, [""]).values)


def test_an_ensemble_takes_over_the_gates_of_its_verifiers_whatever_their_weight():
    ensemble = combined([(GREEN, 1.0), (gated(RED, 0.5), 0.0)])
    assert (ensemble.aggregator.weights, ensemble.aggregator.gates) == ((1.0, 0.0), (None, 0.5))


def test_of_two_gates_the_higher_counts():
    assert gated(gated(RED, 0.5), 0.2).aggregator.gates == (0.5,)


def test_a_gate_for_several_verifiers_is_refused_with_where_to_put_it():
    with pytest.raises(ValueError, match="an ensemble of red, blue: put the gate between a verifier and the ensemble"):
        gated(combined([(RED, 1.0), (BLUE, 1.0)]), 0.5)


def test_a_gate_is_for_those_members_of_a_verifier_that_decide():
    class Grader(Channel):
        member_weights = (1.0, 0.0)

    grader = Grader(0)
    grader.members = ("overall", "detail")
    ensemble = combined([(gated(grader, 0.5), 2.0), (BLUE, 1.0)])
    assert (ensemble.aggregator.weights, ensemble.aggregator.gates) == ((2.0, 0.0, 1.0), (0.5, None, None))


def test_best_of_n_prefers_what_passes():
    images = pictures([0.9, 0.3, 0], [0.3, 0.6, 0], [0.2, 0.7, 0])
    scores = score_images(images, combined([(RED, 1.0), (gated(GREEN, 0.5), 0.0)]), [""])
    best = select(scores, 2, images)
    assert best.indices == [1, 2] and torch.equal(best.rejects[0], images[0])
    assert "best 0.3 (candidate 1)" in scores.summary() and "1 of 3 fail a gate" in scores.summary()


def test_where_nothing_passes_verifier_score_says_so():
    images = pictures([0.9, 0.3, 0], [0.3, 0.4, 0])
    summary = score_images(images, combined([(RED, 1.0), (gated(GREEN, 0.5), 0.0)]), [""]).summary()
    assert "2 of 2 fail a gate: the best is the best of those" in summary


# Verifiers that fail


class Failing(Channel):
    """Fails from its n-th image on, with a given error."""

    module, members = None, ("blue",)

    def __init__(self, after=2, error=None, channel=2):
        super().__init__(channel)
        self.after, self.error = after, error or RuntimeError("no more")

    def score(self, images, prompts):
        self.after -= len(images)
        if self.after < 0:
            raise self.error
        return super().score(images, prompts)


def failing(after=2, error=None):
    return HostedVerifier(Failing(after, error))


def searched(demo, verifier, algorithm=None, candidates=5, batch=1, **options):
    latent = {"samples": torch.zeros(batch, 16, 8, 8)}
    sampling = Sampling.ksampler(demo.model, 8, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
    make = lambda: sampling  # noqa: E731
    with torch.inference_mode():
        return search(make, demo.vae, verifier, 3, candidates, "", 1, Graph(), "positive", algorithm, **options).log


def test_a_verifier_that_fails_stops_the_search_with_its_name_and_cause(demo):
    with pytest.raises(VerifierError, match="verifier blue failed: RuntimeError: no more"):
        searched(demo, combined([(RED, 1.0), (failing(), 1.0)]))


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_verifier_that_fails_is_dropped_where_the_user_says_so(demo, monkeypatch, phases, batch):
    monkeypatch.setattr("noise_search.host.sampling.engine.must_swap", lambda *networks: phases)
    verifier = failing(3 * batch)
    log = searched(demo, combined([(RED, 1.0), (verifier, 5.0)], drop_failed=True), batch=batch)
    assert len(log.candidates) == 5 and log.failed == {1: "verifier blue failed: RuntimeError: no more."}
    assert verifier.verifier.after == -1  # asked once more after its last answer, and never again
    for row in range(batch):
        assert log.scores(row).tolist() == log.values(row)[:, 0].tolist()
        assert log.order(row) == sorted(range(5), key=lambda i: (-log.values(row)[i, 0], i))


def test_what_it_said_before_is_kept_and_the_rest_is_missing(demo):
    log = searched(demo, combined([(RED, 1.0), (failing(3), 1.0)], drop_failed=True))
    assert torch.isfinite(log.values()[:, 1]).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("algorithm", [DraftAndFinal(), SearchOverPaths(paths=1, branches=2)], ids=["drafts", "paths"])
def test_other_searches_go_on_too(demo, algorithm):
    ensemble = combined([(RED, 1.0), (failing(3), 1.0)], drop_failed=True)
    log = searched(demo, ensemble, algorithm, candidates=10)
    assert len(log.candidates) > 5 and list(log.failed) == [1] and log.warnings[0].startswith("blue was dropped")


def test_one_that_fails_only_when_the_winner_is_rendered_once_more_is_a_warning(demo):
    ensemble = combined([(RED, 1.0), (failing(5), 1.0)], drop_failed=True)
    log = searched(demo, ensemble, options=Options(batch_size=4))
    assert log.best().batched and torch.isfinite(log.values()).all()
    [warning] = [text for text in log.warnings if "blue" in text]
    assert warning.startswith("blue failed when the best was rendered once more: verifier blue failed: RuntimeError")
    assert not log.failed and warning in table(log)


def test_the_next_search_asks_it_again(demo):
    verifier = failing(3)
    ensemble = combined([(RED, 1.0), (verifier, 1.0)], drop_failed=True)
    assert searched(demo, ensemble).failed
    verifier.verifier.after = 100
    assert not searched(demo, ensemble).failed


def test_a_score_that_is_not_a_number_is_a_failure_too(demo):
    class Blank(Channel):
        def score(self, images, prompts):
            return super().score(images, prompts) * float("nan")

    log = searched(demo, combined([(RED, 1.0), (Blank(2), 1.0)], drop_failed=True))
    assert log.failed == {1: "verifier blue gave a score that is not a number."}


def test_the_last_that_decides_stops_the_search(demo):
    with pytest.raises(VerifierError, match="no more. No other verifier that decides is left"):
        searched(demo, combined([(RED, 0.0), (failing(), 1.0)], drop_failed=True))


def test_an_ensemble_inside_that_does_not_drop_is_dropped_from_by_the_outer_one():
    inner = combined([(RED, 1.0), (BLUE, 1.0)])
    assert [judge.drop for judge in combined([(inner, 1.0), (GREEN, 1.0)], drop_failed=True).judges] == [
        1,
        1,
        1,
    ]
    dropping = combined([(RED, 1.0), (BLUE, 1.0)], drop_failed=True)
    assert [judge.drop for judge in combined([(dropping, 1.0), (GREEN, 1.0)]).judges] == [1, 1, 0]


def test_cancel_and_running_out_of_memory_are_not_its_failure(demo):
    import comfy.model_management as mm

    for error in (mm.InterruptProcessingException(), MemoryError("out of memory")):
        with pytest.raises(type(error)):
            searched(demo, combined([(RED, 1.0), (failing(2, error), 1.0)], drop_failed=True))


def test_a_network_that_cannot_be_loaded_is_its_failure():
    verifier = failing(100)

    def load(images):
        raise RuntimeError("no kernel image")

    verifier._load = load
    with pytest.raises(VerifierError, match="verifier blue failed: RuntimeError: no kernel image"):
        verifier.score(torch.zeros(1, 4, 4, 3), "")


def test_graph_native_scoring_drops_for_all_images():
    images = pictures([0.9, 0, 0.1], [0.3, 0, 0.9], [0.5, 0, 0.5])
    scores = score_images(images, combined([(RED, 1.0), (failing(2), 9.0)], drop_failed=True), [""])
    assert select(scores, 3, images).indices == [0, 2, 1]
    assert scores.flat() == [pytest.approx(0.9), pytest.approx(0.3), 0.5]
    assert "Dropped, for all images: verifier blue failed: RuntimeError: no more." in scores.summary()


def test_graph_native_scoring_stops_where_nothing_is_said():
    with pytest.raises(VerifierError, match="verifier blue failed"):
        score_images(pictures([0.9, 0, 0.1]), combined([(RED, 1.0), (failing(0), 1.0)]), [""])
