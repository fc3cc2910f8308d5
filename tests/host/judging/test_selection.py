"""Scoring a list of images and keeping the best k of anything."""

import pytest
import torch

pytest.importorskip("comfy")

from noise_search.host.judging.hosted import load_demo_verifier
from noise_search.host.judging.selection import Scores, score_images, select
from noise_search.host.sampling.noise import NearNoise, RecipeNoise, candidates
from noise_search.nodes.graph import VerifierScore
from noise_search.search.judges import combined, gated, judges_of
from noise_search.search.recipe import Recipe, Rotate


def picture(red: float, size: int = 4) -> torch.Tensor:
    image = torch.zeros(1, size, size, 3)
    image[..., 0] = red
    return image


def scores(*rows: list[float]) -> Scores:
    """One list per candidate: the value of each of its images."""
    return Scores(("red",), torch.tensor(rows).reshape(len(rows), -1, 1))


def test_images_are_scored_in_order(brightness):
    assert score_images([picture(0.5), picture(1.0), picture(0.25)], brightness, [""]).flat() == [0.5, 1.0, 0.25]


def test_images_of_different_sizes_are_scored_and_selected(brightness):
    images = [picture(0.25, 4), picture(0.75, 8)]
    best = select(score_images(images, brightness, [""]), 2, images)
    assert [tuple(image.shape[1:3]) for image in best.images] == [(8, 8), (4, 4)]


def test_winners_of_different_sizes_cannot_make_one_batch():
    images = [torch.zeros(2, 4, 4, 3), torch.zeros(2, 8, 8, 3)]
    with pytest.raises(ValueError, match="different sizes .4x4 and 8x8"):
        select(scores([1.0, 0.0], [0.0, 1.0]), 1, images)


def test_an_image_with_nan_names_the_candidate(brightness):
    with pytest.raises(ValueError, match="candidate 1 has pixels that are not numbers"):
        score_images([picture(0.5), picture(float("nan"))], brightness, [""])


class Untouched:
    """A verifier that nothing may reach."""

    members, needs_prompt, usual_range = ("none",), False, None

    def score(self, images, prompts):
        raise AssertionError("scored before all images were looked at")


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (torch.zeros(0, 4, 4, 3), "candidate 1 has 0 images"),
        (
            torch.zeros(1, 4, 4, 2),
            r"candidate 1: images .* \[images, height, width, 3\], found \[1, 4, 4, 2\]",
        ),
        (torch.zeros(1, 4, 4), r"found \[1, 4, 4\]"),
        (255 * torch.ones(1, 4, 4, 3), "candidate 1: .* from 0 to 1, found torch.float32 up to 255 .* divided by 255"),
        (torch.ones(1, 4, 4, 3, dtype=torch.uint8), "found torch.uint8 up to 1 "),
        (torch.full((1, 4, 4, 3), float("inf")), "candidate 1 has pixels that are not numbers"),
    ],
)
def test_an_image_that_cannot_be_scored_is_named_before_any_is_scored(image, what):
    with pytest.raises(ValueError, match=what):
        score_images([picture(0.5), image], Untouched(), [""])


def test_no_images_at_all_are_named():
    with pytest.raises(ValueError, match=r"candidate 0: images to score must be .* found \[0, 4, 4, 3\]"):
        score_images([torch.zeros(0, 4, 4, 3)], Untouched(), [""])


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_images_and_those_with_alpha_are_scored_and_shown(channels, brightness):
    images = [torch.full((1, 4, 4, channels), level) for level in (0.25, 0.75)]
    out = VerifierScore.execute(images, [brightness], [""])
    assert out.args[1] == [0.25, 0.75]
    assert len(out.ui["images"]) == 2


def test_candidates_with_different_numbers_of_images_are_refused(brightness):
    with pytest.raises(ValueError, match="candidate 1 has 2 images and candidate 0 has 1"):
        score_images([picture(0.5), picture(0.5).repeat(2, 1, 1, 1)], brightness, [""])


def test_one_prompt_for_all_or_one_for_each(brightness):
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        score_images([picture(0.5)] * 3, brightness, ["a", "b"])


class Reader:
    """A verifier that reads a prompt: its length."""

    members, needs_prompt, prompt_tokens, usual_range = ("length",), True, None, (0.0, 9.0)

    def score(self, images, prompts):
        return torch.tensor([[float(len(prompt))] for prompt in prompts])


@pytest.mark.parametrize("nothing", ["", "  \n", None, "embedding:x", ","])
def test_a_blank_line_in_a_list_of_prompts_names_its_candidate(nothing, brightness):
    prompts = ["a cat", nothing, "a dog"]
    ensemble = combined([(brightness, 1.0), (Reader(), 0.0)])
    for verifier in (Reader(), ensemble, gated(Reader(), 0.5)):
        with pytest.raises(ValueError, match="candidate 1 of the list at 'prompt' has no words to judge the image by"):
            score_images([picture(0.5)] * 3, verifier, prompts)
        with pytest.raises(ValueError, match="^'prompt' has no words"):
            score_images([picture(0.5)] * 3, verifier, [nothing])
    assert score_images([picture(0.5)] * 3, brightness, prompts).flat() == [0.5] * 3


def test_there_is_no_best_among_images_of_different_prompts(brightness):
    images = [picture(value) for value in (0.25, 0.5, 0.75)]
    prompts = ["a cat", "a dog", "a cat"]
    decides = combined([(Reader(), 1.0), (brightness, 1.0)])
    for verifier in (Reader(), decides):
        scored = score_images(images, verifier, prompts)
        assert "2 different prompts, which cannot be compared" in scored.summary()
        with pytest.raises(ValueError, match="2 different prompts.*'a cat' and 'a dog'.*each prompt a Verifier Score"):
            select(scored, 1, images)
    reports = combined([(Reader(), 0.0), (brightness, 1.0)])
    for verifier in (brightness, reports):
        scored = score_images(images, verifier, prompts)
        assert select(scored, 1, images).indices == [2] and "prompts" not in scored.summary()
    assert select(score_images(images, Reader(), ["a cat"] * 3), 3, images).indices == [0, 1, 2]


def test_a_prompt_that_is_cut_is_told_once_through_ensembles_and_gates():
    long, demo = "a red circle above a blue square " * 5, load_demo_verifier()
    both = combined([(gated(demo, 0.0), 1.0), (demo, 0.0), (Reader(), 1.0)])
    said = "reads the first 16 of 37 tokens of the prompt, up to '...above a blue square'; the rest is cut off"
    for verifier in (demo, gated(demo, 0.0), both):
        scored = score_images([torch.rand(1, 8, 8, 3)] * 3, verifier, [long])
        assert scored.warnings == (f"{demo.members[0]} {said}",) and said in scored.summary()
    assert not score_images([torch.rand(1, 8, 8, 3)], demo, ["a red circle"]).warnings
    assert judges_of(demo).cuts(["red " * count for count in range(40)])[-1] == "and 17 more like this"


def test_k_beyond_n_says_how_many_there_are():
    with pytest.raises(ValueError, match="k is 3, but there are 2 candidates"):
        select(scores([1.0], [2.0]), 3)


def test_a_list_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 images for 2 scores"):
        select(scores([1.0], [2.0]), 1, [picture(1.0)])


def test_the_best_k_come_best_first_and_the_rest_are_rejects():
    images = [picture(value) for value in (0.1, 0.9, 0.5)]
    best = select(scores([0.1], [0.9], [0.5]), 2, images)
    assert best.indices == [1, 2]
    assert best.scores == pytest.approx([0.9, 0.5])
    assert torch.equal(best.rejects[0], images[0])


def test_ties_keep_the_earlier_candidate():
    assert select(scores([0.5], [0.5], [0.5]), 1).indices == [0]


def test_every_row_of_a_batch_keeps_its_own_best():
    images = [torch.full((2, 2, 2, 3), float(index)) for index in range(3)]
    latents = [{"samples": torch.full((2, 4, 1, 1), float(index))} for index in range(3)]
    best = select(scores([0.0, 5.0], [9.0, 1.0], [3.0, 2.0]), 1, images, latents)
    assert best.indices == [1, 0]
    assert best.images[0][:, 0, 0, 0].tolist() == [1.0, 0.0]
    assert best.latents[0]["samples"][:, 0, 0, 0].tolist() == [1.0, 0.0]


def test_the_noise_of_a_selected_batch_is_each_rows_own():
    noises, _ = candidates(7, 2)
    latent = {"samples": torch.zeros(2, 4, 3, 3)}
    noise = select(scores([0.0, 5.0], [9.0, 1.0]), 1, noises=noises).noises[0].generate_noise(latent)
    assert torch.equal(noise[0], noises[1].generate_noise(latent)[0])
    assert torch.equal(noise[1], noises[0].generate_noise(latent)[1])


def test_candidates_are_the_stock_noises_of_successive_seeds():
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    noises, seeds = candidates(2**64 - 1, 3)
    latent = {"samples": torch.zeros(1, 4, 5, 3)}
    assert seeds == [2**64 - 1, 0, 1]
    for noise, seed in zip(noises, seeds, strict=True):
        assert torch.equal(noise.generate_noise(latent), Noise_RandomNoise(seed).generate_noise(latent))


def test_neighbours_keep_the_angle_and_come_with_a_recipe():
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    noises, seeds = candidates(5, 3, near=Noise_RandomNoise(42), angle=30.0)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    first, second, _ = (noise.generate_noise(latent).flatten() for noise in noises)
    angle = torch.rad2deg(torch.arccos(torch.nn.functional.cosine_similarity(first, second, dim=0)))
    assert angle.item() == pytest.approx(30.0, abs=0.01)
    assert seeds == [42, 42, 42]
    assert noises[1].recipes == (Recipe.from_seed(42).then(Rotate(6, 30.0)),)


def test_neighbours_of_a_noise_without_a_recipe_turn_what_it_makes():
    class Constant:
        seed = 3

        def generate_noise(self, latent):
            return torch.ones_like(latent["samples"])

    noises, _ = candidates(0, 2, near=Constant(), angle=90.0)
    assert isinstance(noises[1], NearNoise)
    noise = noises[1].generate_noise({"samples": torch.zeros(1, 4, 8, 8)})
    assert noise.mean().abs() < 1e-5  # orthogonal to a constant


def test_a_recipe_for_a_batch_refuses_another_batch_size():
    noise = RecipeNoise([Recipe.from_seed(1), Recipe.from_seed(2)])
    with pytest.raises(ValueError, match="a batch of 2 noises, but the latent has 3 items"):
        noise.generate_noise({"samples": torch.zeros(3, 4, 2, 2)})


@pytest.mark.parametrize("recipe", [Recipe(5, batch=3), Recipe(5, row=2, batch=4)])
def test_one_recipe_refuses_a_latent_of_another_size(recipe):
    with pytest.raises(ValueError, match="Connect a latent with a batch size of"):
        RecipeNoise([recipe]).generate_noise({"samples": torch.zeros(2, 4, 2, 2)})


def test_the_noise_of_a_selected_batch_follows_the_latents_batch_index():
    noises, _ = candidates(7, 2)
    latent = {"samples": torch.zeros(2, 4, 3, 3), "batch_index": [1, 3]}
    noise = select(scores([0.0, 5.0], [9.0, 1.0]), 1, None, [latent] * 2, noises).noises[0].generate_noise(latent)
    assert torch.equal(noise[0], noises[1].generate_noise(latent)[0])
    assert torch.equal(noise[1], noises[0].generate_noise(latent)[1])


def test_the_frames_of_a_video_are_not_mixed():
    video = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    with pytest.raises(ValueError, match="has 3 images and a latent of 1 items.*search videos with Search KSampler"):
        select(scores([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), 1, latents=[video, video])


def test_a_list_of_seeds_makes_one_noise_each():
    noise = RecipeNoise([Recipe.from_seed(1), Recipe.from_seed(2)]).generate_noise({"samples": torch.zeros(2, 4, 2, 2)})
    assert torch.equal(noise, torch.cat([Recipe.from_seed(seed).noise((1, 4, 2, 2)) for seed in (1, 2)]))


def test_the_summary_names_the_best_candidate_and_the_median():
    assert scores([0.25], [0.75], [0.5]).summary() == "best 0.75 (candidate 1) · median 0.5"
