"""Verifier loaders and the embedded demo model."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.demo import load_generator
from ..host.judging.folders import checked, clip_choices, clip_model_path
from ..host.judging.hosted import fingerprint, load_clip_score, load_demo_verifier
from . import types


class CLIPScore(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchCLIPScore",
            display_name="CLIP Score",
            category=types.CATEGORY,
            description="Verifier: how well the image fits the prompt, as the cosine of their CLIP embeddings.",
            search_aliases=["verifier", "clip", "siglip", "prompt alignment"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=clip_choices(),
                    tooltip="Put a CLIP or SigLIP with both towers into models/verifiers and press R: a folder of "
                    "transformers or open_clip, or one weight file. Files with both towers in models/clip_vision or "
                    "models/text_encoders are listed too. Nothing is downloaded.",
                ),
                types.towers_precision_input(),
                io.String.Input(
                    "architecture",
                    default="",
                    tooltip="Only for a single weight file: its open_clip model name, such as ViT-B-32-quickgelu. "
                    "Empty: found from the weights.",
                ),
            ],
            outputs=[types.verifier_output()],
        )

    @classmethod
    def validate_inputs(cls, model_name=None) -> bool | str:
        return checked(clip_model_path, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return fingerprint("clip_score", model_name)

    @classmethod
    def execute(cls, model_name, precision, architecture) -> io.NodeOutput:
        return io.NodeOutput(load_clip_score(model_name, precision, architecture))


class DemoCheckpoint(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchDemoCheckpoint",
            display_name="Demo Checkpoint",
            category=types.CATEGORY,
            description=(
                "A tiny text-to-image model and verifier that come with the pack, to see a search work in a minute "
                "on any machine. It draws coloured shapes at 128x128: 'two small red circles above a blue square'."
            ),
            search_aliases=["example", "test model", "tiny"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Use with EmptySD3LatentImage at 128x128."),
                io.Clip.Output(display_name="clip", tooltip="Reads prompts about coloured shapes."),
                io.Vae.Output(display_name="vae", tooltip="Decodes the demo model's latents."),
                types.Verifier.Output(display_name="verifier", tooltip="A tiny CLIP Score trained on the same world."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_generator(), load_demo_verifier())


NODES = [CLIPScore, DemoCheckpoint]
