"""Several verifiers as one: weights, ways to combine them, and those that only report."""

import pytest
import torch

pytest.importorskip("comfy")

from noise_search.host.ensemble import VerifierEnsemble
from noise_search.host.sampling import Sampling
from noise_search.host.search import Graph, search
from noise_search.host.selection import score_images


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
    values = VerifierEnsemble([(RED, 1.0), (BLUE, 2.0)]).score(torch.cat(pictures([0.1, 0.2, 0.3])), "")
    assert torch.allclose(values, torch.tensor([[0.1, 0.3]]))


@pytest.mark.parametrize(("combine", "best"), [("mean rank", 1), ("z-score", 0), ("weighted sum", 0)])
def test_they_choose_together(combine, best):
    images = pictures([0.9, 0.3, 0], [0.3, 0.5, 0], [0.2, 0.4, 0], [0.1, 0.2, 0])
    scores = score_images(images, VerifierEnsemble([(RED, 1.0), (GREEN, 1.0)], combine), [""])
    assert max(range(4), key=scores.flat().__getitem__) == best


def test_a_larger_weight_counts_more():
    images = pictures([1.0, 0.0, 0], [0.0, 1.0, 0])
    for weights, best in (((1.0, 3.0), 1), ((3.0, 1.0), 0)):
        scores = score_images(images, VerifierEnsemble(list(zip((RED, GREEN), weights, strict=True))), [""]).flat()
        assert max(range(2), key=scores.__getitem__) == best


def test_weight_0_reports_and_does_not_choose(demo):
    ensemble = VerifierEnsemble([(RED, 1.0), (BLUE, 0.0)])
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    sampling = Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
    with torch.inference_mode():
        log = search(lambda: sampling, demo.vae, ensemble, 3, 4, "", 1, Graph(), "positive").log
    assert log.members == ("red", "blue")
    assert log.best().values[0][0] == max(candidate.values[0][0] for candidate in log.candidates)
    assert log.aggregator.weights == (1.0, 0.0)


def test_an_ensemble_in_an_ensemble_brings_its_members_with_their_weights_multiplied():
    inner = VerifierEnsemble([(RED, 2.0), (GREEN, 0.0)])
    assert VerifierEnsemble([(inner, 0.5), (BLUE, 3.0)]).aggregator.weights == (1.0, 0.0, 3.0)


def test_members_of_the_same_name_are_numbered():
    assert VerifierEnsemble([(RED, 1.0), (RED, 1.0), (BLUE, 1.0)]).members == ("red (1)", "red (2)", "blue")


def test_nobody_to_choose_is_refused_by_name():
    with pytest.raises(ValueError, match=r"all weights are 0 \(red, blue\)"):
        VerifierEnsemble([(RED, 0.0), (BLUE, 0.0)])


def test_a_negative_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="weight of blue must be 0 or more, not -1"):
        VerifierEnsemble([(RED, 1.0), (BLUE, -1.0)])


def test_an_unknown_way_to_combine_is_refused():
    with pytest.raises(ValueError, match="'median'.*mean rank, z-score, weighted sum"):
        VerifierEnsemble([(RED, 1.0)], "median")


def test_the_prompt_is_needed_if_one_needs_it_and_the_shortest_reader_counts():
    ensemble = VerifierEnsemble([(RED, 1.0), (Channel(1, prompt_tokens=77), 1.0), (Channel(2, prompt_tokens=35), 1.0)])
    assert (ensemble.needs_prompt, ensemble.prompt_tokens) == (False, 35)
    assert VerifierEnsemble([(RED, 1.0), (Channel(1, needs_prompt=True), 0.0)]).needs_prompt


def test_identity_follows_the_members_and_not_the_weights():
    assert VerifierEnsemble([(RED, 1.0)]).identity() == VerifierEnsemble([(RED, 2.0)]).identity()
    assert VerifierEnsemble([(RED, 1.0)]).identity() != VerifierEnsemble([(BLUE, 1.0)]).identity()


def test_each_member_keeps_its_usual_range():
    assert VerifierEnsemble([(RED, 1.0), (Channel(1, usual_range=(0, 9)), 1.0)]).usual_ranges == ((0.0, 1.0), (0, 9))


def test_where_networks_swap_each_verifier_scores_the_whole_chunk_before_the_next(demo, monkeypatch):
    turns = []

    class Turn(Channel):
        def score(self, images, prompts):
            turns.append(self.members[0])
            return super().score(images, prompts)

    monkeypatch.setattr("noise_search.host.engine.must_swap", lambda *networks: True)
    ensemble = VerifierEnsemble([(Turn(0), 1.0), (Turn(2), 1.0)])
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    sampling = Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
    with torch.inference_mode():
        search(lambda: sampling, demo.vae, ensemble, 3, 5, "", 1, Graph(), "positive")
    assert turns[:10] == ["red", "blue", *["red"] * 4, *["blue"] * 4]
