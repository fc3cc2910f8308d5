"""Socket types and the inputs that several nodes share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..host.errors import with_plain_errors
from ..host.judging.hosted import PRECISIONS
from ..search.algorithms import ALGORITHMS

CATEGORY = "Noise Search"
MAX_CANDIDATES = 4096
MAX_SEED = 0xFFFFFFFFFFFFFFFF

Verifier = io.Custom("NOISE_SEARCH_VERIFIER")
VLM = io.Custom("NOISE_SEARCH_VLM")
Scores = io.Custom("NOISE_SEARCH_SCORES")
SearchLog = io.Custom("NOISE_SEARCH_LOG")
Search = io.Custom("NOISE_SEARCH_SEARCH")
Budget = io.Custom("NOISE_SEARCH_BUDGET")


class Node(io.ComfyNode):
    """What all nodes of the pack are."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        execute = cls.__dict__.get("execute")
        if execute is not None and not hasattr(execute.__func__, "__wrapped__"):  # ComfyUI copies classes
            cls.execute = classmethod(with_plain_errors(execute.__func__))


# For nodes that show their result: newer hosts send it again where it comes from their cache.
SHOWN_AGAIN: dict[str, Any] = {
    name: True for name in ("has_intermediate_output",) if name in {field.name for field in fields(io.Schema)}
}

SEED_TOOLTIP = (
    "The seed of the first candidate, which is the plain KSampler's image; Random Search goes on with seed + 1 and "
    "so on. Leave it fixed: the same seed gives the same search, and 'increment' would repeat all candidates but one."
)
PROMPT_TOOLTIP = (
    "The text the verifier judges the images by. Leave it empty to use the text of your positive prompt; the log says "
    "which text was used. If other nodes compute that text, it is read while the workflow runs. Weights, embeddings "
    "and LoRA tags are left out."
)


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=SEED_TOOLTIP,
    )


def verifier_input() -> io.Input:
    return Verifier.Input(
        "verifier",
        tooltip="Scores every candidate; the highest score wins. Connect CLIP Score or another verifier loader.",
    )


def verifier_output() -> io.Output:
    return Verifier.Output(display_name="verifier", tooltip="For the search nodes, Verifier Score.")


def precision_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("precision", options=list(PRECISIONS), default="auto", tooltip=tooltip)


def towers_precision_input(value: str = "similarity") -> io.Combo.Input:
    """The precision of a verifier's towers; `value` is what it makes of their embeddings."""
    return precision_input(
        f"How the towers compute; the {value} itself is always fp32. Auto: what the GPU is good at (fp16, else bf16), "
        "fp32 on the CPU."
    )


def prompt_input() -> io.String.Input:
    return io.String.Input("prompt", default="", multiline=True, tooltip=PROMPT_TOOLTIP)


def candidates_input() -> io.Int.Input:
    return io.Int.Input(
        "candidates",
        default=8,
        min=1,
        max=MAX_CANDIDATES,
        tooltip=(
            "How many images' worth of time to spend. Random Search then tries this many images, other searches spend "
            "the same compute their way. Gains flatten after about 16."
        ),
    )


def top_k_input() -> io.Int.Input:
    return io.Int.Input(
        "top_k",
        default=4,
        min=1,
        max=64,
        tooltip="How many of the best images to give out in 'top_images', best first; at most all candidates.",
    )


def search_input() -> io.Input:
    *others, last = (entry.title for entry in ALGORITHMS if entry.node)
    [usual] = (entry.title for entry in ALGORITHMS if not entry.node)
    tooltip = f"{', '.join(others)} or {last}; {usual} if left open."
    return Search.Input("search", optional=True, tooltip=tooltip)


def budget_input() -> io.Input:
    return Budget.Input("budget", optional=True, tooltip="More limits, such as seconds or a score: Search Budget.")


def batch_size_input() -> io.Input:
    return io.Int.Input(
        "batch_size",
        default=0,
        min=0,
        max=64,
        optional=True,
        advanced=True,
        tooltip=(
            "How many candidates to sample at once. 0: found out by itself in searches of 34 candidates or more, from "
            "the free memory and a trial. 1: one at a time. Samplers with noise of their own always go one at a time, "
            "and the winner is rendered again alone, so it is exact either way."
        ),
    )


def frames_input() -> io.Input:
    return io.Int.Input(
        "frames",
        default=8,
        min=1,
        max=1024,
        optional=True,
        advanced=True,
        tooltip="Of a video: how many frames, evenly spread, the verifier looks at. The score is their mean.",
    )


BAD_CANDIDATES = ("stop with an error", "leave it out")


def bad_candidate_input() -> io.Input:
    return io.Combo.Input(
        "bad_candidate",
        options=list(BAD_CANDIDATES),
        default=BAD_CANDIDATES[0],
        optional=True,
        advanced=True,
        tooltip=(
            "What to do with a candidate whose image is broken (NaN, often an overflow in fp16). Left out, it is "
            "counted in the report and the search goes on; the first one, the plain image, always stops it."
        ),
    )


def search_outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="latent", tooltip="The latent of the best candidate, to upscale or refine."),
        io.Image.Output(display_name="image", tooltip="The best image."),
        io.Noise.Output(
            display_name="noise",
            tooltip=(
                "The winning noise, for SamplerCustomAdvanced. In a batch, every item's own. A winner of Search over "
                "Paths has none: use its recipe with Replay Recipe."
            ),
        ),
        io.Int.Output(
            display_name="seed",
            tooltip=(
                "The winning seed: after Random Search the stock KSampler makes the same image with it; other searches "
                "need the recipe. In a batch, the first item's."
            ),
        ),
        io.String.Output(
            display_name="recipe",
            tooltip="How to make the winner again: paste it into Replay Recipe, or Noise from Recipe for its noise.",
        ),
        SearchLog.Output(display_name="log", tooltip="Every candidate with its scores, for Search Report."),
        io.Image.Output(
            display_name="top_images", is_output_list=True, tooltip="The best images in a list, best first (see top_k)."
        ),
    ]
