"""The algorithms: each a small frozen dataclass in its own file, called with a run and a seed."""

from __future__ import annotations

from dataclasses import dataclass

from .draft_and_final import DraftAndFinal
from .paths import SearchOverPaths
from .random_search import RandomSearch
from .replay import ReplayRecipe
from .zero_order import ZeroOrderSearch


@dataclass(frozen=True)
class Listed:
    """An algorithm that users can choose. node: the id of its node, for ever; "" for the one that needs no node. title:
    the node's name. searches: whether it looks for anything, unlike one that makes a winner again."""

    kind: type
    title: str
    node: str
    searches: bool = True


# Adding a search is one file and one line here; tests name what else it lacks.
ALGORITHMS = (
    Listed(RandomSearch, "Random Search", ""),
    Listed(ZeroOrderSearch, "Zero-Order Search", "NoiseSearchZeroOrder"),
    Listed(SearchOverPaths, "Search over Paths", "NoiseSearchPaths"),
    Listed(DraftAndFinal, "Draft and Final", "NoiseSearchDraftAndFinal"),
    Listed(ReplayRecipe, "Replay Recipe", "NoiseSearchReplayRecipe", searches=False),
)


def listed(kind: type) -> Listed:
    """The entry of an algorithm. Raises LookupError where it is not in the list."""
    for entry in ALGORITHMS:
        if entry.kind is kind:
            return entry
    raise LookupError(f"{kind.__name__} is not in the list of searches: add it to search/algorithms/__init__.py")
