"""Search in the graph: candidates for the stock samplers, scores, selection, and noise from a recipe."""

from __future__ import annotations

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.graph.graph import Graph
from ..host.graph.verifier_prompt import ask_for_prompt, prompt_notes, verifier_prompts
from ..host.graph.videos import makes_videos
from ..host.judging.selection import score_images, select
from ..host.pictures import in_colour
from ..host.progress import send_text
from ..host.sampling.noise import RecipeNoise, candidates
from ..search.judges import judges_of
from ..search.recipe import from_text
from . import types

SHOWN_IMAGES = 64


class NoiseCandidates(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchCandidates",
            display_name="Noise Candidates",
            category=types.CATEGORY,
            description=(
                "A list of initial noises. Connect 'noise' to SamplerCustomAdvanced, or 'seed' to a KSampler: it runs "
                "once for each. Score the images with Verifier Score and keep the best with Best-of-N Select."
            ),
            search_aliases=["seeds", "seed list", "best of n"],
            inputs=[
                types.seed_input(),
                io.Int.Input(
                    "count",
                    default=8,
                    min=1,
                    max=types.MAX_CANDIDATES,
                    tooltip="How many noises. Everything downstream runs this many times.",
                ),
                io.Noise.Input(
                    "near",
                    optional=True,
                    tooltip="A noise to stay near: it comes first, the others are turned away from it by 'angle'.",
                ),
                io.Float.Input(
                    "angle",
                    default=18.0,
                    min=0.0,
                    max=180.0,
                    step=0.5,
                    tooltip="Only with 'near': how far to turn, in degrees. 5 keeps the composition, 18 changes detail "
                    "and some layout, 90 is a new noise.",
                ),
            ],
            outputs=[
                io.Noise.Output(display_name="noise", is_output_list=True, tooltip="For SamplerCustomAdvanced."),
                io.Int.Output(
                    display_name="seed",
                    is_output_list=True,
                    tooltip="For KSampler (not with 'near': no seed makes a turned noise).",
                ),
            ],
        )

    @classmethod
    def execute(cls, seed, count, angle, near=None) -> io.NodeOutput:
        return io.NodeOutput(*candidates(seed, count, near, angle))


class VerifierScore(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchVerifierScore",
            display_name="Verifier Score",
            category=types.CATEGORY,
            description="Scores images with a verifier, higher is better, and shows them.",
            search_aliases=["clip score", "rate images", "reward"],
            inputs=[
                io.Image.Input("image", tooltip="The candidates: a list of images (a batch counts as one candidate)."),
                types.verifier_input(),
                types.prompt_input(),
            ],
            outputs=[
                types.Scores.Output(display_name="scores", tooltip="For Best-of-N Select."),
                io.Float.Output(display_name="score", is_output_list=True, tooltip="The score of every image."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_input_list=True,
            **types.SHOWN_AGAIN,
        )

    @classmethod
    def check_lazy_status(cls, image, verifier, prompt, **given) -> list[str]:
        return ask_for_prompt(cls.hidden, given, prompt, verifier[0], "image")

    @classmethod
    def execute(cls, image, verifier, prompt, **given) -> io.NodeOutput:
        graph = Graph.of(cls.hidden, given)
        judges = judges_of(verifier[0])
        told = verifier_prompts(prompt, judges, graph, "image")
        notes = prompt_notes(told, judges, graph, "image")
        scores = score_images(image, judges, [one.text for one in told], notes, makes_videos(graph))
        text = scores.summary()
        send_text(text, graph.user_id)
        batches = [ui.PreviewImage(in_colour(batch), cls=cls).as_dict()["images"] for batch in image[:SHOWN_IMAGES]]
        shown = {"images": [entry for batch in batches for entry in batch], "text": [text]}
        return io.NodeOutput(scores, scores.flat(), ui=shown)


class BestOfNSelect(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchBestOfN",
            display_name="Best-of-N Select",
            category=types.CATEGORY,
            description="Keeps the k best of a list by their scores, best first; in a batch every item keeps its own.",
            search_aliases=["pick best", "top k", "select image"],
            inputs=[
                types.Scores.Input("scores", tooltip="From Verifier Score."),
                io.Int.Input(
                    "k",
                    default=1,
                    min=1,
                    max=types.MAX_CANDIDATES,
                    tooltip="How many to keep, at most all that came.",
                ),
                io.Image.Input("image", optional=True, tooltip="The images that were scored."),
                io.Latent.Input("latent", optional=True, tooltip="Their latents, to go on working on the best."),
                io.Noise.Input("noise", optional=True, tooltip="Their noises, from Noise Candidates."),
            ],
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True, tooltip="The best images, best first."),
                io.Latent.Output(display_name="latent", is_output_list=True, tooltip="Their latents."),
                io.Noise.Output(display_name="noise", is_output_list=True, tooltip="Their noises."),
                io.Float.Output(display_name="score", is_output_list=True, tooltip="Their scores."),
                io.Int.Output(
                    display_name="index",
                    is_output_list=True,
                    tooltip="Which candidate each was, counted from 0; the seed is the first seed plus this.",
                ),
                io.Image.Output(display_name="rejects", is_output_list=True, tooltip="The other images, best first."),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, scores, k, image=None, latent=None, noise=None) -> io.NodeOutput:
        best = select(scores[0], k[0], image, latent, noise)
        return io.NodeOutput(
            best.images or blocked("image"),
            best.latents or blocked("latent"),
            best.noises or blocked("noise"),
            best.scores,
            best.indices,
            best.rejects or [ExecutionBlocker(None if image else "connect 'image' to get its rejects")],
        )


def blocked(name: str) -> list[ExecutionBlocker]:
    """What an output gives whose input is not connected: whoever uses it is told why there is nothing."""
    return [ExecutionBlocker(f"Best-of-N Select has nothing for '{name}': connect its '{name}' input")]


class NoiseFromRecipe(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchNoiseFromRecipe",
            display_name="Noise from Recipe",
            category=types.CATEGORY,
            description="Makes a winning noise again from its recipe, for SamplerCustomAdvanced.",
            search_aliases=["recipe", "reproduce", "winner"],
            inputs=[
                io.String.Input(
                    "recipe",
                    default="",
                    multiline=True,
                    placeholder='{"seed": 42}',
                    tooltip=(
                        "A recipe as a search node gives it out, or the entry noise_search of a saved picture's "
                        "metadata, whole or in part."
                    ),
                ),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="The noise, for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, recipe) -> io.NodeOutput:
        return io.NodeOutput(RecipeNoise(from_text(recipe)))


NODES = [NoiseCandidates, VerifierScore, BestOfNSelect, NoiseFromRecipe]
