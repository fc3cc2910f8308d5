"""Search KSampler and Search Sampler (Advanced)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import comfy.samplers
from comfy_api.latest import io, ui

from ..host.graph.finish import fingerprint
from ..host.graph.graph import Graph
from ..host.graph.verifier_prompt import ask_for_prompt
from ..host.memory.store import default as default_store
from ..host.sampling.engine import Options
from ..host.sampling.stock import Sampling
from ..host.search import run_node
from . import types

HIDDEN = [io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo]


class SearchNode(types.Node):
    """What both search nodes do. sampling: makes a `Sampling` from the inputs of the stock node. prompt_behind: the
    input behind which the prompt is looked for. more_outputs: what of the result comes after the usual outputs."""

    sampling: ClassVar[Callable[..., Sampling]]
    prompt_behind: ClassVar[str]
    more_outputs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> int:
        return fingerprint(cls.hidden)

    @classmethod
    def check_lazy_status(cls, prompt=None, verifier=None, candidates=1, **given) -> list[str]:
        if candidates == 1:  # nothing is chosen
            return []
        return ask_for_prompt(cls.hidden, given, [prompt], verifier, cls.prompt_behind)

    @classmethod
    def execute(
        cls,
        *,
        vae,
        verifier,
        seed,
        candidates,
        prompt,
        top_k,
        search=None,
        budget=None,
        batch_size=0,
        frames=8,
        bad_candidate=types.BAD_CANDIDATES[0],
        **of_the_sampler,
    ) -> io.NodeOutput:
        graph = Graph.of(cls.hidden, of_the_sampler)
        result = run_node(
            lambda: cls.sampling(**of_the_sampler),
            vae,
            verifier,
            seed,
            candidates,
            prompt,
            top_k,
            graph,
            cls.prompt_behind,
            search,
            budget,
            Options(batch_size, frames),
            drop_bad=bad_candidate != types.BAD_CANDIDATES[0],
            store=default_store(),
        )
        return io.NodeOutput(
            result.latent,
            result.image,
            result.noise,
            result.seed,
            result.recipe,
            result.log,
            result.top_images,
            *(getattr(result, name) for name in cls.more_outputs),
            ui=ui.PreviewImage(result.image, cls=cls).as_dict() | {"text": [result.text]},
        )


class SearchKSampler(SearchNode):
    sampling = Sampling.ksampler
    prompt_behind = "positive"

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchKSampler",
            display_name="Search KSampler",
            category=types.CATEGORY,
            description=(
                "A KSampler that tries many initial noises, scores every image with a verifier and keeps the best. "
                "With one candidate it is the plain KSampler."
            ),
            search_aliases=["best of n", "noise search", "inference-time scaling", "seed search"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model."),
                types.seed_input(),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of every candidate."),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance: higher follows the prompt more, too high burns the image.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampler, as in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The schedule, as in KSampler."
                ),
                io.Conditioning.Input("positive", tooltip="What you want to see. The verifier reads its text."),
                io.Conditioning.Input("negative", tooltip="What you do not want to see."),
                io.Latent.Input(
                    "latent_image", tooltip="The latent to denoise. A batch of B is B searches at once; a video is one."
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 some of the latent's structure is kept (image to image).",
                ),
                io.Vae.Input("vae", tooltip="Decodes every candidate, so that the verifier can look at it."),
                types.verifier_input(),
                types.candidates_input(),
                types.prompt_input(),
                types.top_k_input(),
                types.search_input(),
                types.budget_input(),
                types.batch_size_input(),
                types.frames_input(),
                types.bad_candidate_input(),
            ],
            outputs=types.search_outputs(),
            hidden=HIDDEN,
            **types.SHOWN_AGAIN,
        )


class SearchSamplerAdvanced(SearchNode):
    sampling = Sampling.advanced
    prompt_behind = "guider"
    more_outputs = ("denoised",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchSamplerAdvanced",
            display_name="Search Sampler (Advanced)",
            category=types.CATEGORY,
            description=(
                "SamplerCustomAdvanced that tries many initial noises, scores every image with a verifier and keeps "
                "the best. With one candidate it is SamplerCustomAdvanced with RandomNoise."
            ),
            search_aliases=["best of n", "noise search", "inference-time scaling"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model, conditioning and guidance (BasicGuider, CFGGuider, ...)."),
                io.Sampler.Input("sampler", tooltip="The sampler, e.g. from KSamplerSelect."),
                io.Sigmas.Input("sigmas", tooltip="The noise schedule, e.g. from BasicScheduler."),
                io.Latent.Input(
                    "latent_image", tooltip="The latent to denoise. A batch of B is B searches at once; a video is one."
                ),
                types.seed_input(),
                io.Vae.Input("vae", tooltip="Decodes every candidate, so that the verifier can look at it."),
                types.verifier_input(),
                types.candidates_input(),
                types.prompt_input(),
                types.top_k_input(),
                types.search_input(),
                types.budget_input(),
                types.batch_size_input(),
                types.frames_input(),
                types.bad_candidate_input(),
            ],
            outputs=[
                *types.search_outputs(),
                io.Latent.Output(
                    display_name="denoised_latent", tooltip="The model's last prediction of the finished latent."
                ),
            ],
            hidden=HIDDEN,
            **types.SHOWN_AGAIN,
        )


NODES = [SearchKSampler, SearchSamplerAdvanced]
