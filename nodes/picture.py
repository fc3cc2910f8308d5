"""Search Picture, and the samplers that stand in for ComfyUI's inside its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import comfy.samplers
from comfy_api.latest import io, ui

from ..host.graph.finish import fingerprint
from ..host.graph.graph import Graph
from ..host.graph.nested import available
from ..host.graph.verifier_prompt import ask_for_prompt
from ..host.memory.store import default as default_store
from ..host.picture import samplers
from ..host.picture.plan import ALSO, needs, workflow_of
from ..host.picture.search import PictureFound, search_picture
from ..host.picture.unrolled import SAID, unroll, unrolled
from ..host.sampling.engine import Options
from . import types

VARY = ("the first stage", "all stages")
MOST_ALSO = 16


def also_inputs() -> list[io.Input]:
    return [
        io.AnyType.Input(
            f"{ALSO}{number}",
            optional=True,
            lazy=True,
            raw_link=True,
            tooltip="What else you want of the winner: its latent, mask, sound, a second picture. Comes out beside it.",
        )
        for number in range(1, MOST_ALSO + 1)
    ]


class SearchPicture(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchPicture",
            display_name="Search Picture",
            category=types.CATEGORY,
            description=(
                "Put it on the wire of any finished picture or video: it runs the part of the workflow that makes it "
                "with other noises, scores every picture with a verifier and hands on the best. With one candidate it "
                "hands on the picture as it is."
            ),
            search_aliases=["best of n", "noise search", "better seed", "pick best image", "search workflow"],
            inputs=[
                io.Image.Input(
                    "image",
                    lazy=True,
                    raw_link=True,
                    tooltip=(
                        "The picture to search, from VAE Decode or whatever comes last. A batch or list of B pictures "
                        "is B searches at once; a video is one."
                    ),
                ),
                types.verifier_input(),
                io.Int.Input(
                    "candidates",
                    default=8,
                    min=1,
                    max=types.MAX_CANDIDATES,
                    tooltip=(
                        "How many pictures to try. The first is your workflow as it stands, the second has the seed of "
                        "its sampler plus 1, and so on. Set that seed's control to fixed: 'increment' would repeat all "
                        "candidates but one."
                    ),
                ),
                types.prompt_input(),
                types.top_k_input(),
                io.Combo.Input(
                    "vary",
                    options=list(VARY),
                    default=VARY[0],
                    tooltip=(
                        "Which noises to vary where the workflow samples in several stages: that of the first alone, "
                        "or also those that later stages add."
                    ),
                ),
                types.search_input(),
                types.budget_input(),
                types.frames_input(),
                types.bad_candidate_input(),
                *also_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True, tooltip="The best picture."),
                io.Int.Output(
                    display_name="seed",
                    tooltip=(
                        "The winning seed: after Random Search the workflow makes the same picture with it. In a "
                        "batch, the first item's."
                    ),
                ),
                io.String.Output(
                    display_name="recipe", tooltip="How to make the winner again: paste it into Replay Recipe."
                ),
                types.SearchLog.Output(
                    display_name="log", tooltip="Every candidate with its scores, for Search Report."
                ),
                io.Image.Output(
                    display_name="top_images", is_output_list=True, tooltip="The best pictures, best first (see top_k)."
                ),
                *(
                    io.AnyType.Output(
                        display_name=f"{ALSO}{number}", is_output_list=True, tooltip="The winner's own, of that input."
                    )
                    for number in range(1, MOST_ALSO + 1)
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            enable_expand=True,
            **types.SHOWN_AGAIN,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> int:
        return fingerprint(cls.hidden)

    @classmethod
    def check_lazy_status(cls, **inputs) -> list[str]:
        wanted = needs(cls.hidden, inputs, first(inputs, "vary") == VARY[1])
        if first(inputs, "candidates") == 1:  # nothing is chosen
            return wanted
        return wanted + ask_for_prompt(cls.hidden, inputs, inputs["prompt"], first(inputs, "verifier"), "image")

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        vary_all = first(inputs, "vary") == VARY[1]
        if available():
            unrolled, links = unroll(cls.hidden, first(inputs, "candidates"), vary_all, len(cls.SCHEMA.outputs))
            return io.NodeOutput(*links, expand=unrolled)
        graph = Graph.of(cls.hidden, inputs)
        workflow = workflow_of(cls.hidden, graph.asked, vary_all)
        try:
            found = searched(workflow, graph, inputs, default_store())
        finally:
            workflow.runs.close()
        return given_out(cls, found, [name for name in inputs if name.startswith(ALSO)])


class PictureChoice(types.Node):
    """What Search Picture expands into where it cannot run its part by itself: chooses among what is there."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchPictureChoice",
            display_name="Choice of Search Picture",
            category=types.CATEGORY,
            description="Used by Search Picture where ComfyUI's executor is not one that it knows.",
            is_dev_only=True,
            is_input_list=True,
            accept_all_inputs=True,
            inputs=[
                types.verifier_input(),
                types.candidates_input(),
                types.prompt_input(),
                types.top_k_input(),
                types.budget_input(),
                types.frames_input(),
                types.bad_candidate_input(),
            ],
            # Lists as single values: an expansion mixes up the outputs of a node that has lists of its own.
            outputs=[io.AnyType.Output(display_name=f"output_{slot}") for slot in range(5 + MOST_ALSO)],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        graph = Graph.of(cls.hidden)
        graph = replace(graph, node_id=graph.user_id)
        workflow = unrolled(cls.hidden, first(inputs, "vary") == VARY[1], inputs)
        found = searched(workflow, graph, inputs, None, [SAID.format(why=available())])
        linked = [name for name in (graph.prompt or {})[str(graph.node_id)]["inputs"] if name.startswith(ALSO)]
        return given_out(cls, found, linked)


class PartSeed(types.Node):
    """A seed moved on, for `PictureChoice`'s candidates."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchPartSeed",
            display_name="Seed of a Candidate",
            category=types.CATEGORY,
            description="Used by Search Picture where ComfyUI's executor is not one that it knows.",
            is_dev_only=True,
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=types.MAX_SEED),
                io.Int.Input("add", default=0, min=0, max=types.MAX_CANDIDATES),
            ],
            outputs=[io.Int.Output(display_name="seed")],
        )

    @classmethod
    def execute(cls, seed, add) -> io.NodeOutput:
        return io.NodeOutput((seed + add) % (types.MAX_SEED + 1))


def searched(workflow: Any, graph: Graph, inputs: dict[str, Any], store: Any, notes: Any = ()) -> PictureFound:
    return search_picture(
        workflow,
        first(inputs, "verifier"),
        first(inputs, "candidates"),
        inputs["prompt"],
        first(inputs, "top_k"),
        graph,
        first(inputs, "search"),
        first(inputs, "budget"),
        Options(batch_size=1, frames=first(inputs, "frames", 8)),
        drop_bad=first(inputs, "bad_candidate", types.BAD_CANDIDATES[0]) != types.BAD_CANDIDATES[0],
        store=store,
        notes=notes,
    )


def given_out(node: Any, found: PictureFound, linked: list[str]) -> io.NodeOutput:
    """linked: the inputs at which more of the winner is wanted."""
    names = sorted(linked, key=lambda name: int(name[len(ALSO) :]))
    extras: dict[str, list[Any]] = dict(zip(names, found.extras, strict=True))
    pictures = [ui.PreviewImage(image, cls=node).as_dict() for image in found.images]
    shown = {"images": [one for picture in pictures for one in picture["images"]], "animated": pictures[0]["animated"]}
    return io.NodeOutput(
        found.images,
        found.seed,
        found.recipe,
        found.log,
        found.top_images,
        *(extras.get(f"{ALSO}{number}", [None]) for number in range(1, MOST_ALSO + 1)),
        ui=shown | {"text": [found.text]},
    )


def first(inputs: dict[str, Any], name: str, default: Any = None) -> Any:
    """What stands at an input of a node that takes lists."""
    values = inputs.get(name)
    return values[0] if values else default


class PartSampler(types.Node):
    """One of ComfyUI's samplers from any noise: stands in for it inside the runs of Search Picture, and in no menu.

    stands_for: its display name. gives: its outputs. own_inputs: beside MODEL and NOISE. sample: does it.
    """

    stands_for: ClassVar[str]
    gives: ClassVar[tuple[str, ...]] = ("latent",)
    own_inputs: ClassVar[Callable[[], list[io.Input]]]
    sample: ClassVar[Callable[..., tuple[Any, ...]]]

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=f"NoiseSearch{cls.__name__}",
            display_name=f"{cls.stands_for} from Noise",
            category=types.CATEGORY,
            description=f"Used by Search Picture in the place of {cls.stands_for}, where a noise is no seed.",
            is_dev_only=True,
            inputs=[io.Model.Input("model"), io.Noise.Input("noise"), *cls.own_inputs()],
            outputs=[io.Latent.Output(display_name=name) for name in cls.gives],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return io.NodeOutput(*cls.sample(**inputs))


class PartKSampler(PartSampler):
    stands_for = "KSampler"
    sample = staticmethod(samplers.ksampler)

    @staticmethod
    def own_inputs():
        return [*schedule_inputs(), io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01)]


class PartKSamplerAdvanced(PartSampler):
    stands_for = "KSampler (Advanced)"
    sample = staticmethod(samplers.ksampler_advanced)

    @staticmethod
    def own_inputs():
        return [
            io.Combo.Input("add_noise", options=["enable", "disable"]),
            *schedule_inputs(),
            io.Int.Input("start_at_step", default=0, min=0, max=10000),
            io.Int.Input("end_at_step", default=10000, min=0, max=10000),
            io.Combo.Input("return_with_leftover_noise", options=["disable", "enable"]),
        ]


class PartSamplerCustom(PartSampler):
    stands_for = "SamplerCustom"
    gives = ("output", "denoised_output")
    sample = staticmethod(samplers.sampler_custom)

    @staticmethod
    def own_inputs():
        return [
            io.Boolean.Input("add_noise", default=True),
            io.Float.Input("cfg", default=8.0, min=0.0, max=100.0),
            io.Conditioning.Input("positive"),
            io.Conditioning.Input("negative"),
            io.Sampler.Input("sampler"),
            io.Sigmas.Input("sigmas"),
            io.Latent.Input("latent_image"),
        ]


def schedule_inputs() -> list[io.Input]:
    return [
        io.Int.Input("steps", default=20, min=1, max=10000),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS),
        io.Conditioning.Input("positive"),
        io.Conditioning.Input("negative"),
        io.Latent.Input("latent_image"),
    ]


NODES = [SearchPicture, PictureChoice, PartSeed, PartKSampler, PartKSamplerAdvanced, PartSamplerCustom]
