"""One scorer for the search node and for Verifier Score."""

import pytest
import torch

pytest.importorskip("comfy")

from any_model import AnyVae, sampling_of, setup_of
from noise_search.host.judging.scorer import Scorer, Shown
from noise_search.host.judging.selection import score_images
from noise_search.host.sampling import oom
from noise_search.host.sampling.engine import ComfyEngine
from noise_search.search.judges import combined, gated, judges_of
from noise_search.search.ledger import Ledger
from noise_search.search.recipe import Recipe
from noise_search.verifiers.base import VerifierError
from tiny_models import sd3


class Statistic:
    """A verifier of numbers that do not come out even, and of which one only reports."""

    members, needs_prompt, member_weights = ("spread", "mean"), False, (1.0, 0.0)

    def score(self, images, prompts):
        return torch.stack([images.std(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3))], dim=1)


class Full(Statistic):
    """Runs out of memory once, or always."""

    def __init__(self, times=1):
        self.left = times

    def score(self, images, prompts):
        self.left -= 1
        if self.left >= 0:
            raise torch.cuda.OutOfMemoryError("no memory left")
        return super().score(images, prompts)


def pictures(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def fused(verifier, images, rows=1):
    """What a search makes of these images: its VAE gives no others."""

    class Vae(AnyVae):
        def decode(self, samples):
            return images

    with torch.inference_mode():
        engine = ComfyEngine(sampling_of(setup_of(sd3(), rows)), Vae(), verifier, "")
        return next(engine.render([(Recipe.from_seed(1),)]))


@pytest.mark.parametrize("rows", [1, 3])
def test_both_routes_score_alike_bit_for_bit(brightness, rows):
    images = pictures(rows, 24, 40, 3)
    for verifier in (Statistic(), combined([(Statistic(), 0.3), (gated(brightness, 0.5), 1.0)])):
        native = score_images([images], verifier, [""])
        rendered = fused(verifier, images, rows)
        assert torch.equal(rendered.values, native.values[0])
        alone = torch.cat([judges_of(verifier).judges[0].verifier.score(one, [""]) for one in images.split(1)])
        assert torch.equal(rendered.values[:, :2], alone)


def test_of_a_video_the_mean_over_some_frames_counts():
    frames = pictures(9, 8, 8, 3)
    [scored] = Scorer(judges_of(Statistic()), frames=3).score_all([Shown([frames], "")])
    expected = Statistic().score(frames[[0, 4, 8]], [""] * 3).mean(dim=0)
    assert torch.equal(scored.values, expected[None])


@pytest.mark.parametrize("route", ["fused", "native"])
def test_running_out_of_memory_is_tried_again_once(monkeypatch, route):
    freed = []
    monkeypatch.setattr(oom.mm, "free_memory", lambda *args, **named: freed.append(1))
    images = pictures(1, 8, 8, 3)

    def score(verifier):
        return fused(verifier, images).values if route == "fused" else score_images([images], verifier, [""]).values[0]

    assert torch.equal(score(Full()), Statistic().score(images, [""]))
    assert freed == [1]
    for verifier in (Full(2), combined([(Full(2), 1.0), (Statistic(), 1.0)], drop_failed=True)):
        with pytest.raises(torch.cuda.OutOfMemoryError):  # which is no failure of the verifier
            score(verifier)


def test_both_routes_say_the_same_of_a_broken_image():
    images = pictures(1, 8, 8, 3)
    images[0, 2, 2, 1] = float("nan")
    said = "has pixels that are not numbers (NaN or infinity), often a model or VAE that overflows in fp16. "
    with pytest.raises(ValueError) as native:
        score_images([pictures(1, 8, 8, 3), images], Statistic(), [""])
    assert str(native.value).startswith(f"candidate 1 {said}")
    assert fused(Statistic(), images).error == str(native.value).replace("candidate 1", "the image of seed 1")


def test_networks_are_asked_one_after_the_other():
    asked = []

    def judge(name):
        class Named(Statistic):
            def score(self, images, prompts):
                asked.append(name)
                return super().score(images, prompts)

        return Named()

    scorer = Scorer(combined([(judge("first"), 1.0), (judge("second"), 1.0)]))
    shown = Shown([pictures(1, 8, 8, 3)], "")
    ledger = Ledger()
    scored = scorer.score_all([shown, Shown(shown.rows, "", broken=True), shown], ledger)
    assert asked == ["first", "first", "second", "second"]
    assert [bool(one.cost.phases) for one in scored] == [True, False, True]
    assert 0 < ledger.pending.seconds == pytest.approx(sum(one.cost.seconds for one in scored))
    assert torch.equal(scored[1].values, torch.zeros(1, 4))


def test_one_that_fails_is_left_out_from_then_on():
    class Broken(Statistic):
        def score(self, images, prompts):
            raise VerifierError("no more")

    scorer = Scorer(combined([(Broken(), 1.0), (Statistic(), 1.0)], drop_failed=True))
    [scored] = scorer.score_all([Shown([pictures(1, 8, 8, 3)], "")])
    assert scored.values[:, :2].isnan().all() and scored.values[:, 2:].isfinite().all()
    assert scorer.failed == {0: "no more.", 1: "no more."} and list(scorer.deciding) == [1]
