"""Loaders of the verifiers that read files: a node each, from its descriptor."""

from __future__ import annotations

from typing import ClassVar

from comfy_api.latest import io

from ..host.judging.hosted import check_choice, choices, entry_of, fingerprint, load, load_aesthetic
from ..verifiers import registry
from . import types


def schema(name: str, *inputs: io.Input) -> io.Schema:
    """The schema of a verifier's node, as its descriptor in the registry has it."""
    verifier = registry.describe(name)
    return io.Schema(
        node_id=verifier.node,
        display_name=verifier.title,
        category=types.CATEGORY,
        description=verifier.description,
        search_aliases=list(verifier.aliases),
        inputs=list(inputs),
        outputs=[types.verifier_output()],
    )


class Loader(types.Node):
    """What the loaders have in common. name: of the verifier in the registry."""

    name: ClassVar[str]

    @classmethod
    def entry_input(cls) -> io.Input:
        entry, _ = entry_of(cls.name)
        return io.Combo.Input(entry.widget, options=choices(cls.name), tooltip=entry.help)

    @classmethod
    def precision_input(cls) -> io.Input:
        return types.towers_precision_input(registry.describe(cls.name).computes)


class TowersLoader(Loader):
    """The node of a verifier with no more to say than its file and its precision."""

    @classmethod
    def define_schema(cls):
        return schema(cls.name, cls.entry_input(), cls.precision_input())

    @classmethod
    def validate_inputs(cls, model_name=None) -> bool | str:
        return check_choice(cls.name, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return fingerprint(cls.name, model_name)

    @classmethod
    def execute(cls, model_name, precision, architecture="") -> io.NodeOutput:
        return io.NodeOutput(load(cls.name, model_name, precision, architecture))


class CLIPScore(TowersLoader):
    name = "clip_score"

    @classmethod
    def define_schema(cls):
        architecture = io.String.Input(
            "architecture",
            default="",
            tooltip="Only for a single weight file: its open_clip model name, such as ViT-B-32-quickgelu. "
            "Empty: found from the weights.",
        )
        return schema(cls.name, cls.entry_input(), cls.precision_input(), architecture)


class Aesthetic(Loader):
    name = "aesthetic"

    @classmethod
    def define_schema(cls):
        tower = io.ClipVision.Input(
            "clip_vision",
            tooltip="The image tower that the head was trained on, from Load CLIP Vision: OpenAI's CLIP "
            "ViT-L/14 for LAION's heads, SigLIP so400m at 384 pixels for V2.5. It is shared, not copied.",
        )
        return schema(cls.name, tower, cls.entry_input())

    @classmethod
    def validate_inputs(cls, head_name=None) -> bool | str:
        return check_choice(cls.name, head_name)

    @classmethod
    def fingerprint_inputs(cls, head_name, **inputs) -> str:
        return fingerprint(cls.name, head_name)

    @classmethod
    def execute(cls, clip_vision, head_name) -> io.NodeOutput:
        return io.NodeOutput(load_aesthetic(clip_vision, head_name))


OWN = {kind.name: kind for kind in (CLIPScore, Aesthetic)}


def node_of(name: str) -> type[Loader]:
    """The node of a verifier that reads files: its own, or the usual one."""
    if name in OWN:
        return OWN[name]
    if (widget := entry_of(name)[0].widget) != "model_name":
        raise TypeError(f"{registry.describe(name).title} names its file in {widget!r}: it needs a node of its own")
    return type(registry.get(name).__name__, (TowersLoader,), {"name": name, "__module__": __name__})


LOADERS = {name: node_of(name) for name, verifier in registry.DESCRIPTORS.items() if verifier.entry is not None}
NODES = list(LOADERS.values())
