"""The embedded demo model."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.demo import load_generator
from ..host.judging.hosted import load_demo_verifier
from . import types


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


NODES = [DemoCheckpoint]
