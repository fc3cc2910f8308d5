"""A part of the user's graph as something that recipes of noises go into and pictures come out of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch

import nodes as host_nodes

from ...search.engine import Recipes
from ...search.ledger import DECODE, OUT_OF_MEMORY, SAMPLE, Cost, Ledger
from ...search.recipe import one_draw
from ..graph import classes
from ..graph.links import is_link, links_of, walk
from ..graph.nested import VALUES, NestedRuns, Values
from ..graph.part import Link, Part, Source
from ..known import PART_SAMPLERS
from ..sampling.noise import RecipeNoise
from ..sampling.oom import retry_on_oom
from ..sampling.stock import WRAPPER_KEY, Evaluations, takes_frames
from .rows import Batch, Layout, batch_of, layout_behind, layout_of, picture_of, rows_of, shifted


@dataclass(frozen=True)
class Made:
    """What a run of the part gave, row by row. images: [frames, H, W, C] each; extras: of the other targets."""

    recipes: Recipes
    images: list[torch.Tensor]
    extras: list[list[Any]]
    cost: Cost


@dataclass
class Workflow:
    """A part of the user's graph, with what comes into it.

    graph: the user's, in API format. runs: of the part. running: the nodes that a run takes. layout: what its pictures
    consist of, once known. on_evaluation: called before each evaluation of a model.
    """

    part: Part
    graph: Mapping[str, Mapping[str, Any]]
    runs: NestedRuns
    outside: Values
    running: Collection[str]
    layout: Layout | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)
    on_evaluation: Callable[[], None] = lambda: None
    steps: int = 1  # what a candidate takes is measured, not known

    def __post_init__(self) -> None:
        self.runs.outside = {link: [self._counted(one) for one in values] for link, values in self.outside.items()}

    # What a search asks for

    @property
    def ledger(self) -> Ledger:
        return self.evaluations.ledger

    @property
    def rows(self) -> int:
        return self.layout.rows if self.layout else 1

    @property
    def model(self) -> Any:
        """None: the samplers show their own previews, on their own nodes."""
        return None

    @property
    def sources(self) -> list[Source]:
        """The noises that a run draws."""
        return [source for source in self.part.sources if source.node_id in self.running]

    @property
    def seed(self) -> int:
        """The seed of the workflow as it stands: that of the first noise."""
        return self.seeds(self.sources[0])[0]

    @property
    def settings(self) -> dict[str, Any]:
        said = [f"{self.called(source)} {', '.join(map(str, self.seeds(source)))}" for source in self.sources]
        return {"seeds of": "; ".join(said), "nodes run again": len(self.running)}

    def called(self, source: Source) -> str:
        return f"{self.graph[source.node_id]['class_type']} (node {source.node_id})"

    def seeds(self, source: Source) -> list[int]:
        """The seeds that stand at a noise: one, or one for each batch."""
        value = source.value
        return [int(one) for one in (self.outside[value[0], value[1]] if is_link(value) else [value])]

    @property
    def saves(self) -> dict[str, Link]:
        """The output nodes that the workflow runs: not those on a branch that it does not take."""
        return {node_id: link for node_id, link in self.part.saves.items() if node_id in self.running}

    def turns(self) -> str:
        """Why noises that are no seed cannot be put in, or ""."""
        others = [
            source
            for source in self.sources
            if not source.is_noise and self.graph[source.node_id]["class_type"] not in PART_SAMPLERS
        ]
        return "" if not others else f"{self.called(others[0])} takes a seed only"

    def learn_layout(self, recipes: Recipes | None) -> None:
        """Takes the layout from complete recipes, where there are any."""
        if recipes and self.layout is None:
            seeds = self.seeds(self.sources[0])
            self.layout = layout_behind(recipes, [one - seeds[0] for one in seeds])

    def content(self) -> dict[str, Any]:
        """All that determines a candidate but its noises, by places that do not depend on how nodes are numbered."""
        order = {one: number for number, one in enumerate(walk([self.part.targets[0][0]], self._before))}
        found: dict[str, Any] = {}
        varied = {(source.node_id, source.seed) for source in self.sources}
        for node_id, number in order.items():
            kind = self.graph[node_id]["class_type"]
            place = f"{number} {kind}"
            found[place] = host_nodes.NODE_CLASS_MAPPINGS[kind]
            for name, value in self.graph[node_id]["inputs"].items():
                if (node_id, name) in varied:
                    continue
                if is_link(value) and value[0] in order:
                    found[f"{place}.{name}"] = f"{order[value[0]]} {value[1]}"
                elif not is_link(value):
                    found[f"{place}.{name}"] = value
                elif (value[0], value[1]) in self.outside:
                    found[f"{place}.{name}"] = list(self.outside[value[0], value[1]])
        first = self.seeds(self.sources[0])[0]
        found["seeds"] = [[order.get(one.node_id), [seed - first for seed in self.seeds(one)]] for one in self.sources]
        found["picture"] = self.part.targets[0][1]
        return found

    def _before(self, node_id: str) -> list[str]:
        return [link[0] for link in links_of(self.graph, node_id).values() if link[0] in self.running]

    # Runs

    def make(self, recipes: Recipes) -> Made:
        """One candidate: the whole part with these noises. Finds out the layout where it is not known.

        recipes: one for all, or one for each row. Raises ValueError for noises that the part cannot take.
        """
        spent = self.ledger.measure()
        nodes, values = self.nodes(recipes)
        targets = [self.bypassed(target) for target in self.part.targets]
        feeds = [*dict.fromkeys(link for node in self.saves for link in self.into(node))]
        sampled = [self.part.samplers[self.sources[0].node_id]]
        seconds: dict[str, float] = {}

        def failed() -> None:
            self.book(seconds)
            self.ledger.set_apart(OUT_OF_MEMORY, spent.cost)
            seconds.clear()

        wanted = [*targets, *feeds, *sampled]
        found = retry_on_oom(lambda: self.runs.run(nodes, wanted, values, seconds), "making a candidate", failed)
        self.book(seconds)
        pictures = [picture_of(one) for one in found[targets[0]]]
        if self.layout is None:
            self.layout = self.find_layout(pictures, found[sampled[0]])
        extras = zip(*(self.layout.split(found[link]) for link in [*targets[1:], *feeds]), strict=True)
        rows = [*extras] or [()] * self.layout.rows
        return Made(
            self.layout.complete(recipes), rows_of(self.layout, pictures), [list(one) for one in rows], spent.cost
        )

    def save(self, extras: Sequence[Sequence[Any]]) -> None:
        """Runs the output nodes of the part for the winner. extras: of its rows, as `make` gave them. Raises ValueError
        where one does not pass on what it saves: what was judged is then not what the workflow makes."""
        assert self.layout is not None
        feeds = [*dict.fromkeys(link for node in self.saves for link in self.into(node))]
        columns = list(zip(*extras, strict=True))[len(self.part.targets) - 1 :]
        values = [self.layout.join(column) for column in columns]
        nodes = {}
        for node_id in self.saves:
            node = copy.deepcopy(dict(self.graph[node_id]))
            for name, value in node["inputs"].items():
                if is_link(value) and tuple(value) in feeds:
                    node["inputs"][name] = [VALUES, feeds.index(tuple(value))]
            nodes[node_id] = node
        if not nodes:
            return
        found = self.runs.run(nodes, [(node_id, 0) for node_id in nodes], values)
        for node_id, link in self.saves.items():
            if not same(found[node_id, 0], values[feeds.index(self.bypassed(link))]):
                raise ValueError(
                    f"{self.graph[node_id]['class_type']} (node {node_id}) saves its picture and hands on another, so "
                    "it cannot be left out of the candidates. Put it behind Search Picture."
                )

    def nodes(self, recipes: Recipes) -> tuple[dict[str, Any], list[list[Any]]]:
        """The part's nodes with these noises in them, and the values that they refer to."""
        nodes = {one: copy.deepcopy(dict(self.graph[one])) for one in self.running}
        values: list[list[Any]] = []
        first = self.seeds(self.sources[0])
        for source in self.sources:
            own = self.seeds(source)
            if self.layout is None:
                here = [tuple(shifted(one, seed - first[0]) for one in recipes) for seed in own]
            else:
                here = [
                    tuple(shifted(one, at(own, number) - at(first, number)) for one in some)
                    for number, some in enumerate(self.layout.by_batch(recipes))
                ]
            seeds = [seed_of(some, batch) for some, batch in zip(here, self.batches(len(here)), strict=True)]
            if None not in seeds:
                seeds = seeds[:1] if len({*seeds}) == 1 and len(own) == 1 else seeds
                nodes[source.node_id]["inputs"][source.seed] = self.put(seeds, values)
            else:
                self.put_noise(nodes, source, [RecipeNoise(list(some)) for some in here], values)
        for node_id, link in self.saves.items():
            bypass(nodes, node_id, link)
        return nodes, values

    def batches(self, count: int) -> Sequence[Batch | None]:
        return self.layout.batches if self.layout else [None] * count

    def put(self, values: Sequence[Any], into: list[list[Any]]) -> Any:
        """A value as an input: itself where it is one, else a link."""
        if len(values) == 1 and isinstance(values[0], int):
            return values[0]
        into.append(list(values))
        return [VALUES, len(into) - 1]

    def put_noise(
        self, nodes: dict[str, Any], source: Source, noises: list[RecipeNoise], values: list[list[Any]]
    ) -> None:
        """Puts noises that are no seeds in the place of one that is."""
        link = self.put(noises, values)
        node = nodes[source.node_id]
        if source.is_noise:
            slot = [*classes.node_class(node["class_type"]).outputs].index("NOISE")
            redirect(nodes, (source.node_id, slot), link)
            return
        if node["class_type"] not in PART_SAMPLERS:
            raise ValueError(
                f"{self.turns()}, and this search takes noises that are no seed. Use Random Search, or one of "
                f"ComfyUI's samplers ({', '.join(PART_SAMPLERS)}, SamplerCustomAdvanced)."
            )
        node["class_type"] = PART_SAMPLERS[node["class_type"]]
        del node["inputs"][source.seed]
        node["inputs"]["noise"] = link

    def bypassed(self, link: Link) -> Link:
        while link[0] in self.part.saves:
            link = self.part.saves[link[0]]
        return link

    def into(self, node_id: str) -> list[Link]:
        """The links into an output node of the part, past those that are bypassed."""
        values = self.graph[node_id]["inputs"].values()
        return [self.bypassed((value[0], value[1])) for value in values if is_link(value)]

    # What came out

    def find_layout(self, pictures: Sequence[torch.Tensor], latents: Sequence[Any]) -> Layout:
        seeds = self.seeds(self.sources[0])
        same = len(seeds) == len(latents)
        offsets = [seeds[number] - seeds[0] if same else 0 for number in range(len(latents))]
        batches = [batch_of(latent, offset) for latent, offset in zip(latents, offsets, strict=True)]
        return layout_of(pictures, batches, any(takes_frames(model) for model in self.models()))

    def book(self, seconds: Mapping[str, float]) -> None:
        """Books the time of a run: decoding is what makes pictures of latents."""
        phases = {SAMPLE: 0.0, DECODE: 0.0}
        for node_id, taken in seconds.items():
            kind = classes.node_class(self.graph.get(node_id, {}).get("class_type", ""))
            phases[DECODE if kind.takes({"LATENT"}) and kind.gives({"IMAGE"}) else SAMPLE] += taken
        self.ledger.spend(Cost(0, phases))

    # Evaluations

    def models(self) -> list[Any]:
        """The models that come into the part."""
        found = []
        for values in self.outside.values():
            for value in values:
                if isinstance(value, comfy.model_patcher.ModelPatcher) and hasattr(value.model, "latent_format"):
                    found.append(value)
                elif isinstance(value, comfy.samplers.CFGGuider):
                    found.append(value.model_patcher)
        return found

    def _counted(self, value: Any) -> Any:
        """A MODEL or GUIDER whose evaluations are counted; anything else as it is."""
        if isinstance(value, comfy.model_patcher.ModelPatcher) and hasattr(value.model, "latent_format"):
            mine: Any = value.clone()
            model = value
        elif isinstance(value, comfy.samplers.CFGGuider):
            mine = copy.copy(value)
            mine.model_options = comfy.model_patcher.create_model_options_clone(value.model_options)
            model = value.model_patcher
        else:
            return value
        frames = takes_frames(model)

        def count(executor: Callable, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.on_evaluation()
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.evaluations.count(1 if frames else x.shape[0])
            return executor(x, *args, **kwargs)

        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE, WRAPPER_KEY, count, mine.model_options, True
        )
        return mine


def seed_of(recipes: Recipes, batch: Batch | None) -> int | None:
    """The seed by which ComfyUI itself draws the noise of these recipes, or None where none does."""
    whole = one_draw(recipes)
    if whole is None or whole.moves or whole.jumps or whole.row is not None:
        return None
    if batch is not None and (whole.batch, whole.batch_index) not in ((None, None), (batch.items, batch.index)):
        return None
    if batch is None and (whole.batch is not None or whole.batch_index is not None):
        return None
    return whole.seed


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, as far as they are tensors or lists or dicts of such."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and torch.equal(left.cpu(), right.cpu())
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return all(same(left[key], right[key]) for key in left.keys() & right.keys())
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return True


def at(values: Sequence[int], number: int) -> int:
    """What ComfyUI takes from a list for one turn of many: the last for all that come after it."""
    return values[min(number, len(values) - 1)]


def redirect(nodes: dict[str, Any], link: Link, to: Any) -> None:
    """Whatever takes a value from this link takes it from another."""
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if is_link(value) and (value[0], value[1]) == link:
                node["inputs"][name] = to


def bypass(nodes: dict[str, Any], node_id: str, link: Link) -> None:
    """Leaves out a node that passes on what comes in by `link`."""
    redirect(nodes, (node_id, 0), [*link])
