"""Search Picture where ComfyUI's executor is not the one that this pack knows: every candidate is a copy of the part,
by documented node expansion. All of them are computed and kept before one is chosen, so it takes more memory, cannot
end early, and is Random Search only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy_execution.graph_utils import GraphBuilder

from ...search.engine import Recipes
from ...search.ledger import NOTHING, Ledger
from ..graph.links import inputs_of, is_link
from ..graph.part import Graph, Part, Source
from ..memory.weights import Unreadable
from ..sampling.stock import Evaluations
from .plan import find
from .rows import Batch, Layout, batch_of, layout_of, picture_of, rows_of
from .workflow import Made

CHOICE, SEED = "NoiseSearchPictureChoice", "NoiseSearchPartSeed"
SAID = (
    "This ComfyUI's executor is not one that Search Picture knows ({why}), so all candidates were computed as one "
    "large workflow, which takes more time and memory. Update Noise Search."
)


def unroll(hidden: Any, candidates: int, vary_all: bool, outputs: int) -> tuple[dict[str, Any], list[Any]]:
    """Copies of the part, one for each candidate, and the node that chooses among them; and what that gives."""
    part, graph = find(hidden, vary_all)
    if part.saves:
        named = ", ".join(f"{graph[one]['class_type']} (node {one})" for one in part.saves)
        raise ValueError(
            f"{named} saves pictures between the noise and Search Picture, and on this ComfyUI it would save every "
            "candidate. Put it behind Search Picture."
        )
    builder = GraphBuilder()
    own = {name: value for name, value in inputs_of(graph, hidden.unique_id).items() if name != "image"}
    for number in range(candidates):
        made = {one: builder.node(graph[one]["class_type"], f"{one} {number}") for one in part.nodes}
        for node_id, node in made.items():
            node.set_override_display_id(node_id)

        def here(value: Any, made: Mapping[str, Any] = made) -> Any:
            return made[value[0]].out(value[1]) if is_link(value) and value[0] in made else value

        for node_id, node in made.items():
            for name, value in graph[node_id]["inputs"].items():
                node.set_input(name, here(copy.deepcopy(value)))
        for source in part.sources:
            made[source.node_id].set_input(source.seed, _moved(builder, source, number))
        for place, target in enumerate(part.targets):
            own[f"value_{place}_{number}"] = here([*target])
        if not number:
            own["sampled"] = here([*part.samplers[part.sources[0].node_id]])
    own["seeds"] = part.sources[0].value
    chosen = builder.node(CHOICE, "choice", **own)
    return builder.finalize(), [chosen.out(slot) for slot in range(outputs)]


def _moved(builder: GraphBuilder, source: Source, number: int) -> Any:
    if not is_link(source.value):
        return (int(source.value) + number) % 2**64
    return builder.node(SEED, f"seed {source.node_id} {number}", seed=[*source.value], add=number).out(0)


class Unrolled:
    """The candidates of an unrolled part, where a search expects a `Workflow`. values: of each candidate, the picture
    and what else is wanted, each a list."""

    steps = 1
    model = None
    on_evaluation: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, part: Part, graph: Graph, seeds: Sequence[int], sampled: Sequence[Any], values: Sequence[Any]):
        self.part, self.graph = part, graph
        self.base = [int(seed) for seed in seeds]
        self.sampled, self.values = sampled, values
        self.evaluations = Evaluations()
        self.layout: Layout | None = None

    @property
    def seed(self) -> int:
        return self.base[0]

    @property
    def ledger(self) -> Ledger:
        return self.evaluations.ledger

    @property
    def rows(self) -> int:
        return self.layout.rows if self.layout else 1

    @property
    def settings(self) -> dict[str, Any]:
        source = self.part.sources[0]
        named = f"{self.graph[source.node_id]['class_type']} (node {source.node_id})"
        return {"seeds of": f"{named} {', '.join(map(str, self.base))}", "nodes run again": len(self.part.nodes)}

    def turns(self) -> str:
        return "candidates are whole workflows on this version of ComfyUI"

    def learn_layout(self, recipes: Recipes | None) -> None:
        """It is seen in what came out."""

    def make(self, recipes: Recipes) -> Made:
        number = (recipes[0].seed - self.seed) % 2**64
        if number >= len(self.values):
            raise ValueError(f"seed {recipes[0].seed} is not among the candidates; use Random Search")
        pictures, *extras = self.values[number]
        images = [picture_of(one) for one in pictures]
        if self.layout is None:
            self.layout = layout_of(images, self.batches(), False)
        rows = [*zip(*map(self.layout.split, extras), strict=True)] or [()] * self.layout.rows
        return Made(self.layout.complete(recipes), rows_of(self.layout, images), [list(row) for row in rows], NOTHING)

    def batches(self) -> list[Batch]:
        same = len(self.base) == len(self.sampled)
        return [
            batch_of(latent, self.base[number] - self.seed if same else 0) for number, latent in enumerate(self.sampled)
        ]

    def models(self) -> list[Any]:
        return []

    def content(self) -> dict[str, Any]:
        raise Unreadable("candidates that were computed as one workflow are not remembered")

    def save(self, extras: Sequence[Sequence[Any]]) -> None:
        """There are no output nodes in the part."""


def unrolled(hidden: Any, vary_all: bool, given: Mapping[str, Sequence[Any]]) -> Unrolled:
    """What came in at the node that chooses."""
    part, graph = find(hidden, vary_all, hidden.dynprompt.get_display_node_id(hidden.unique_id))
    count = 1 + max(int(name.rsplit("_", 1)[1]) for name in given if name.startswith("value_"))
    values = [[[*given[f"value_{place}_{number}"]] for place in range(len(part.targets))] for number in range(count)]
    return Unrolled(part, graph, given["seeds"], given["sampled"], values)
