"""What the pack knows of a verifier beside its maths: one descriptor each, beside the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """The widget that names the file or folder of a verifier.

    shelf: what it lists, a name in `SHELVES` of host/judging/folders.py. files: which to get, as the beginning of a
    sentence: names, licences, sizes, source and folder. widget: its id, for ever. tooltip: where it is not `files`.
    also: a sentence for the tooltip. first: those with this in their name are listed first. with_suffix: whether the
    verifier is called by the whole name of a weight file.
    """

    shelf: str
    files: str
    widget: str = "model_name"
    tooltip: str = ""
    also: str = ""
    first: str = ""
    with_suffix: bool = False

    def __post_init__(self) -> None:
        for part, what in (("licence", "their licence"), ("models/", "their folder below models/")):
            if part not in self.files:
                raise ValueError(f"the files of a verifier must be told with {what}: {self.files!r}")

    @property
    def help(self) -> str:
        """The widget's tooltip."""
        also = f"{self.also} " if self.also else ""
        return self.tooltip or f"{self.files}, then press R. {also}Nothing is downloaded."


@dataclass(frozen=True)
class Descriptor:
    """A verifier, for registry, loader, node, ComfyUI's cache and the documentation.

    id: in the registry and in identities, for ever. kind: the class; one that reads files has classmethods `resolve`
    and `files`, by which ComfyUI's cache learns of a replaced file. node: the node's id, for ever. title, description,
    aliases: the node's. entry: its files, None where it has none, as those that ask a VLM; reads: what it judges by
    then, a sentence for the documentation. computes: what it makes of its towers' embeddings, for the tooltip of their
    precision.
    """

    id: str
    kind: Any
    node: str
    title: str
    description: str
    aliases: tuple[str, ...]
    entry: Entry | None = None
    computes: str = "similarity"
    reads: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "node", "title", "description", "aliases", "computes"):
            if not getattr(self, name):
                raise ValueError(f"the descriptor of verifier {self.id or self.node!r} has no {name}")
        if not self.node.startswith("NoiseSearch"):
            raise ValueError(f"the node of verifier {self.id!r} must be called NoiseSearch..., not {self.node!r}")
        if not self.description.startswith("Verifier: "):
            raise ValueError(f"the description of verifier {self.id!r} must begin with 'Verifier: '")
        if bool(self.entry) == bool(self.reads):
            raise ValueError(
                f"the descriptor of verifier {self.id!r} needs either `entry`, its files, or `reads`, a sentence on "
                "what it judges by instead"
            )
        for name in ("resolve", "files") if self.entry else ():
            if not callable(getattr(self.kind, name, None)):
                raise ValueError(f"{self.kind.__name__} must say by `{name}` which files it reads: see Descriptor")
