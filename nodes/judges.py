"""Loaders of the judges that were trained on people's taste."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.judging.folders import (
    checked,
    clip_choices,
    clip_model_path,
    head_choices,
    head_path,
    reward_choices,
    reward_path,
)
from ..host.judging.hosted import fingerprint, load_aesthetic, load_hps, load_imagereward, load_pickscore
from ..verifiers.hps import FILES as HPS_FILES
from ..verifiers.imagereward import FILES as REWARD_FILES
from ..verifiers.pickscore import FILES as PICKSCORE_FILES
from . import types


def _model_input(first: str, files: str) -> io.Combo.Input:
    return io.Combo.Input(
        "model_name", options=clip_choices(first), tooltip=f"{files}, then press R. Nothing is downloaded."
    )


class PickScore(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchPickScore",
            display_name="PickScore",
            category=types.CATEGORY,
            description="Verifier: which image of the prompt people would pick, as PickScore v1 learned it.",
            search_aliases=["verifier", "pick a pic", "human preference", "reward"],
            inputs=[
                _model_input(
                    "pick",
                    PICKSCORE_FILES,
                ),
                types.towers_precision_input(),
            ],
            outputs=[types.verifier_output()],
        )

    @classmethod
    def validate_inputs(cls, model_name=None) -> bool | str:
        return checked(clip_model_path, model_name, files=PICKSCORE_FILES)

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return fingerprint("pickscore", model_name)

    @classmethod
    def execute(cls, model_name, precision) -> io.NodeOutput:
        return io.NodeOutput(load_pickscore(model_name, precision))


class HPS(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchHPS",
            display_name="HPS v2",
            category=types.CATEGORY,
            description="Verifier: which image of the prompt people would prefer, as HPS v2 or v2.1 learned it.",
            search_aliases=["verifier", "hps", "hpsv2", "human preference score", "reward"],
            inputs=[
                _model_input(
                    "hps",
                    HPS_FILES,
                ),
                types.towers_precision_input(),
            ],
            outputs=[types.verifier_output()],
        )

    @classmethod
    def validate_inputs(cls, model_name=None) -> bool | str:
        return checked(clip_model_path, model_name, files=HPS_FILES)

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return fingerprint("hps", model_name)

    @classmethod
    def execute(cls, model_name, precision) -> io.NodeOutput:
        return io.NodeOutput(load_hps(model_name, precision))


class ImageReward(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchImageReward",
            display_name="ImageReward",
            category=types.CATEGORY,
            description="Verifier: how well people would rate the image as an answer to its prompt, as ImageReward "
            "learned it.",
            search_aliases=["verifier", "image reward", "blip", "human preference", "reward"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=reward_choices(),
                    tooltip=f"{REWARD_FILES}, then press R. models/image_reward and models/ImageReward will do too. "
                    "Nothing is downloaded.",
                ),
                types.towers_precision_input("reward"),
            ],
            outputs=[types.verifier_output()],
        )

    @classmethod
    def validate_inputs(cls, model_name=None) -> bool | str:
        return checked(reward_path, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return fingerprint("imagereward", model_name)

    @classmethod
    def execute(cls, model_name, precision) -> io.NodeOutput:
        return io.NodeOutput(load_imagereward(model_name, precision))


class Aesthetic(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchAesthetic",
            display_name="Aesthetic Score",
            category=types.CATEGORY,
            description="Verifier: how much people like the look of an image, whatever the prompt: LAION v1, v2, V2.5.",
            search_aliases=["verifier", "aesthetic", "laion", "siglip", "beauty"],
            inputs=[
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The image tower that the head was trained on, from Load CLIP Vision: OpenAI's CLIP "
                    "ViT-L/14 for LAION's heads, SigLIP so400m at 384 pixels for V2.5. It is shared, not copied.",
                ),
                io.Combo.Input(
                    "head_name",
                    options=head_choices(),
                    tooltip="Put a head, such as sac+logos+ava1-l14-linearMSE.pth (LAION v2, Apache-2.0 licence), into "
                    "models/aesthetic or models/verifiers, then press R. Nothing is downloaded.",
                ),
            ],
            outputs=[types.verifier_output()],
        )

    @classmethod
    def validate_inputs(cls, head_name=None) -> bool | str:
        return checked(head_path, head_name)

    @classmethod
    def fingerprint_inputs(cls, head_name, **inputs) -> str:
        return fingerprint("aesthetic", head_name)

    @classmethod
    def execute(cls, clip_vision, head_name) -> io.NodeOutput:
        return io.NodeOutput(load_aesthetic(clip_vision, head_name))


NODES = [PickScore, HPS, Aesthetic, ImageReward]
