"""The part of a graph that a search of its picture runs again: what lies between the noises and the picture.

It sees the workflow as the API sends it and asks one function about node classes, so it needs no ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .links import inputs_of, is_link, links_of, upstream, walk

Link = tuple[str, int]
Graph = Mapping[str, Mapping[str, Any]]

SEEDS = ("noise_seed", "seed")  # the inputs that a noise is drawn from
SWITCH = "add_noise"  # at a sampler: "disable" or False for a stage that adds none
SAMPLED = frozenset({"LATENT", "IMAGE"})
MODELS = frozenset({"MODEL", "GUIDER"})
SEARCHES = "NOISE_SEARCH_VERIFIER"  # a node with such an input searches by itself


class NothingToVary(ValueError):
    """There is no noise behind the picture that a search could vary. The message names what was found."""


@dataclass(frozen=True)
class NodeClass:
    """What is asked of a class of nodes. inputs, outputs: their types, "INT,FLOAT" being two; lazy: the inputs that it
    asks for only where it needs them."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    lazy: frozenset[str] = frozenset()
    is_output: bool = False
    is_paid: bool = False

    def takes(self, kinds: Collection[str]) -> bool:
        return any(not {*declared.split(",")}.isdisjoint(kinds) for declared in self.inputs.values())

    def gives(self, kinds: Collection[str]) -> bool:
        return not {*self.outputs}.isdisjoint(kinds)


@dataclass(frozen=True)
class Source:
    """A node that draws a noise. seed: the input with its seed; value: what stands there, a number or a link; is_noise:
    it gives a NOISE and leaves sampling to others."""

    node_id: str
    seed: str
    value: Any
    is_noise: bool


@dataclass(frozen=True)
class Part:
    """targets: the links whose values are wanted, the picture first. sources: the noises that vary. samplers: for each
    of them by id, the output that gives what is first sampled from it. nodes: what is run for each candidate. saves:
    output nodes among them that pass on what they save, with the link that it comes from."""

    targets: tuple[Link, ...]
    sources: tuple[Source, ...]
    samplers: Mapping[str, Link]
    nodes: frozenset[str]
    saves: Mapping[str, Link] = field(default_factory=dict)


def find_part(
    graph: Graph, targets: Sequence[Link], class_of: Callable[[str], NodeClass], vary_all: bool = False
) -> Part:
    """What has to run again for another picture.

    targets: the picture, and what else is wanted of a candidate. vary_all: vary every noise behind the picture, not
    only those of the first stage. Raises NothingToVary; ValueError where a paid node would run for every candidate.
    """
    return _Search(graph, class_of).part(tuple(targets), vary_all)


def links_into(
    part: Part,
    graph: Graph,
    class_of: Callable[[str], NodeClass],
    asks: Callable[[str], Collection[str]] = lambda node_id: (),
) -> tuple[tuple[Link, ...], frozenset[str]]:
    """The links by which values come into the part, those of linked seeds among them, and the nodes that run.

    asks: the lazy inputs that a node of the part asks for, as far as that is known. What only others ask for is left
    out: the workflow itself does not run it either.
    """
    taken: dict[str, list[tuple[str, Sequence[Any]]]] = {}

    def before(node_id: str) -> list[str]:
        lazy = class_of(str(graph[node_id].get("class_type", ""))).lazy
        wanted = asks(node_id) if lazy else ()
        links = links_of(graph, node_id).items()
        taken[node_id] = [(name, link) for name, link in links if name not in lazy or name in wanted]
        return [link[0] for _, link in taken[node_id] if link[0] in part.nodes]

    for _ in walk([node_id for node_id, _ in part.targets if node_id in part.nodes], before):
        pass
    found = [link for node_id in graph if node_id in taken for _, link in taken[node_id]]
    found += [*part.targets, *(source.value for source in part.sources if is_link(source.value))]
    links = dict.fromkeys((link[0], link[1]) for link in found if link[0] not in part.nodes)
    return tuple(links), frozenset(taken)


class _Search:
    def __init__(self, graph: Graph, class_of: Callable[[str], NodeClass]):
        self.graph = graph
        self.class_of = class_of

    def part(self, targets: tuple[Link, ...], vary_all: bool) -> Part:
        behind = upstream(self.graph, targets[0][0])
        sources = self.sources(behind)
        samplers = {source.node_id: self.samplers(source, behind) for source in sources}
        noisy = {one for found in samplers.values() for one in found}
        if not noisy:
            raise NothingToVary(self.nothing(behind, targets[0]))
        first = {one for one in noisy if not (self.before(one) & noisy)}
        varied = [source for source in sources if vary_all or samplers[source.node_id] & first]
        shared = {tuple(source.value) for source in varied if is_link(source.value)}
        varied += [one for one in sources if one not in varied and is_link(one.value) and tuple(one.value) in shared]
        used = [source for source in varied if samplers[source.node_id]]
        nodes = self.downstream({source.node_id for source in used}, targets)
        if any(self.kind(one).takes({SEARCHES}) for one in nodes):
            raise NothingToVary(self.nothing(nodes, targets[0]))
        self.refuse_paid(nodes)
        sampled = {one.node_id: self.latent_of(min(samplers[one.node_id], key=[*self.graph].index)) for one in used}
        return Part(targets, tuple(used), sampled, frozenset(nodes), self.saves(nodes, used))

    def kind(self, node_id: str) -> NodeClass:
        return self.class_of(str(self.graph.get(node_id, {}).get("class_type", "")))

    def before(self, node_id: str) -> set[str]:
        return {*upstream(self.graph, node_id)} - {node_id}

    def sources(self, behind: Iterable[str]) -> list[Source]:
        """The noises among these nodes, in the order of the graph."""
        found = []
        for node_id in self.graph:
            kind = self.kind(node_id) if node_id in behind else NodeClass()
            inputs = inputs_of(self.graph, node_id)
            seed = next((name for name in SEEDS if name in inputs and "INT" in kind.inputs.get(name, "")), None)
            if seed is None or kind.takes({SEARCHES}):
                continue
            is_noise = kind.gives({"NOISE"})
            if is_noise or self.samples(kind) and inputs.get(SWITCH) not in ("disable", False):
                found.append(Source(node_id, seed, inputs[seed], is_noise))
        return found

    @staticmethod
    def samples(kind: NodeClass) -> bool:
        piped = any("PIPE" in declared or "CONTEXT" in declared for declared in kind.inputs.values())
        return (kind.takes(MODELS) or piped) and kind.gives(SAMPLED)

    def samplers(self, source: Source, behind: Iterable[str]) -> set[str]:
        """The nodes that sample from a noise."""
        if not source.is_noise:
            return {source.node_id}
        found, after = set(), self.users(behind)
        for one in walk([source.node_id], lambda node_id: after.get(node_id, ())):
            kind = self.kind(one)
            if one != source.node_id and kind.takes({"NOISE"}) and kind.gives(SAMPLED):
                found.add(one)
        return {one for one in found if not (self.before(one) & found)}

    def users(self, among: Iterable[str]) -> dict[str, list[str]]:
        """Which of these nodes take something from a node."""
        after: dict[str, list[str]] = {}
        for node_id in among:
            for link in links_of(self.graph, node_id).values():
                after.setdefault(link[0], []).append(node_id)
        return after

    def downstream(self, starts: set[str], targets: Iterable[Link]) -> set[str]:
        """These nodes and all between them and the targets."""
        behind = {one for target in targets for one in upstream(self.graph, target[0])}
        after = self.users(behind)
        return {*walk([one for one in starts if one in behind], lambda node_id: after.get(node_id, ()))}

    def latent_of(self, node_id: str) -> Link:
        """The output by which a sampler gives what it samples."""
        outputs = [*self.kind(node_id).outputs]
        return node_id, outputs.index("LATENT" if "LATENT" in outputs else "IMAGE")

    def saves(self, nodes: set[str], sources: Iterable[Source]) -> dict[str, Link]:
        """Output nodes in the part, with the link whose value they pass on: as ComfyUI bypasses a node, the first input
        of the type of its output. Those that make what they give cannot be left out and are not among them."""
        drawing = {source.node_id for source in sources}
        found = {}
        for node_id in nodes - drawing:
            kind = self.kind(node_id)
            if not kind.is_output or not kind.outputs:
                continue
            links = links_of(self.graph, node_id)
            same = [link for name, link in links.items() if kind.outputs[0] in kind.inputs.get(name, "").split(",")]
            if len(kind.outputs) == 1 and same:
                found[node_id] = (same[0][0], same[0][1])
        return found

    def refuse_paid(self, nodes: Iterable[str]) -> None:
        paid = [self.describe(node_id) for node_id in self.graph if node_id in nodes and self.kind(node_id).is_paid]
        if paid:
            raise ValueError(
                f"{', '.join(paid)} would be paid for once per candidate, as it comes after the noise. Put the node "
                "that searches in front of it."
            )

    def describe(self, node_id: str) -> str:
        return f"{self.graph.get(node_id, {}).get('class_type', 'a node')} (node {node_id})"

    def nothing(self, behind: Collection[str], picture: Link) -> str:
        """Why there is nothing to vary, by what stands behind the picture."""
        named = [node_id for node_id in self.graph if node_id in behind]
        kinds = {node_id: self.kind(node_id) for node_id in named}
        searched = [one for one in named if kinds[one].takes({SEARCHES})]
        if searched:
            return (
                f"the picture comes from {self.describe(searched[0])}, which searches by itself. Use one of the two: "
                "that node on its own, or ComfyUI's sampler in its place and this node behind it."
            )
        unlike = [one for one in named if kinds[one].gives({"NOISE"})]
        still = [one for one in named if self.samples(kinds[one]) and one not in unlike]
        samplers = [one for one in named if kinds[one].takes({"NOISE"}) and kinds[one].gives(SAMPLED)]
        paid = [one for one in named if kinds[one].is_paid]
        if unlike or samplers:
            found = ", ".join(map(self.describe, unlike or samplers))
            return f"its noise comes from {found}, which has no seed to vary. Use RandomNoise to search."
        if still:
            found = ", ".join(map(self.describe, still))
            return f"{found} adds no noise (or has no seed), so every candidate would be the same picture."
        if paid:
            return f"it is made by {self.describe(paid[0])}, outside of this ComfyUI: each picture would be paid for."
        return (
            f"no sampler is behind {self.describe(picture[0])}. Connect a picture that this workflow samples, such as "
            "the output of VAE Decode."
        )
