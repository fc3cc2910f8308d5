"""Winners that travel: a saved picture remembers, in its own workflow, what its searches found.

ComfyUI writes the workflow into every picture. The winners' recipes go into the workflow's `extra`, which the front end
keeps, so that a picture dragged in and queued is made again from its recipe, at the cost of one render, by any ComfyUI.
As soon as anything before the node is changed, its files included, it searches.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...search.recipe import LARGEST_EXACT, Recipe, from_json, is_rounded, portable
from .links import upstream

KEY = "noise_search"
MOST_RUNS = 256  # of one node in one prompt that are written down
MOST_RANKS = 64  # that are read: a workflow may come from anybody

# How far a picture made again may be from the saved one without a word; how far its scores may be is said in
# `search/winners.py`. Of 72 pictures of the demo model, float16 moved the score by 0.04 % of the verifier's range and
# the coarse colours by 0.01 at most; bfloat16 in 9 of 10 by 0.13 % and 0.3, and of the rest some are other pictures.
# Two seeds of one prompt are 2.8 apart at least, and 19 in the median.
MAX_PICTURE_DIFFERENCE = 2.0  # of 255, the mean over a coarse picture

Ranks = tuple[tuple[Recipe, ...], ...]  # the best k, each a recipe per item
Values = tuple[tuple[float, ...], ...]  # of the first: per item, of each member
Files = Mapping[str, str]  # name in the graph -> a hash of the content


class Unusable(ValueError):
    """A workflow that carries a winner of this very search which cannot be read. The message says why."""


@dataclass(frozen=True)
class Winners:
    """What one run of a search node found: the recipes of the best k, each for the whole latent batch, and the score
    of the first, one per item.

    pictures: the first's images as `coarse` makes them; none in what was saved before they were kept.
    """

    recipes: Ranks
    scores: Values
    pictures: tuple[bytes, ...] = ()


def find(
    workflow: Any,
    prompt: Mapping[str, Any] | None,
    node_id: str | None,
    run: int,
    seed: int | None = None,
    files: Callable[[], Files] = dict,
    scored: bool = True,
) -> Winners | None:
    """What the picture's workflow says of this node's run number `run`, if nothing before the node has changed.

    seed: the node's. files: what the nodes up to this one name; a picture of before they were written down is taken at
    its word. scored: whether its verifier gives scores; one that only compares gives none, and then the picture says
    whether it is the same. Raises Unusable where this run is there, but not as it was written.
    """
    entry = _entry(workflow, node_id)
    if not _is_same_graph(entry, prompt or {}, str(node_id), files):
        return None
    if "files" in entry and entry["files"] != files():
        return None
    runs = entry.get("runs")
    found = runs[run] if isinstance(runs, list) and run < len(runs) else None
    if not found:  # it ran less often then
        return None
    try:
        return _read(found, seed, scored)
    except Unusable:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Unusable(f"it cannot be read ({type(error).__name__}: {error!s:.200})") from None


def replaced(
    workflow: Any, prompt: Mapping[str, Any] | None, node_id: str | None, files: Callable[[], Files]
) -> list[str]:
    """The names of files that are not those the picture's workflow was saved with, where nothing else has changed."""
    entry = _entry(workflow, node_id)
    then = entry.get("files")
    if not isinstance(then, dict) or not _is_same_graph(entry, prompt or {}, str(node_id), files):
        return []
    return sorted(name for name in {**then, **files()} if then.get(name) != files().get(name))


def leave(
    workflow: Any,
    prompt: Mapping[str, Any] | None,
    node_id: str | None,
    run: int,
    winners: Winners,
    files: Callable[[], Files] = dict,
) -> None:
    """Writes what was found into the workflow that ComfyUI is about to save."""
    if not isinstance(workflow, dict) or node_id is None or run >= MOST_RUNS:
        return
    extra = workflow.setdefault("extra", {})
    if not isinstance(extra, dict):
        return
    nodes = extra.get(KEY)
    nodes = dict(nodes) if isinstance(nodes, dict) else {}
    same = {"graph": graph_hash(prompt or {}, node_id, files()), "files": dict(files())}
    rounded = graph_hash(prompt or {}, node_id, files(), float)
    if rounded != same["graph"]:
        same["rounded"] = rounded
    entry = nodes.get(node_id)
    known = entry.get("runs") if isinstance(entry, dict) and all(entry.get(key) == same[key] for key in same) else None
    runs = known[:MOST_RUNS] if isinstance(known, list) else []
    runs += [{}] * (run - len(runs))
    recipes = [[portable(recipe.to_dict()) for recipe in rank] for rank in winners.recipes]
    # NaN, of a verifier that was dropped, is no JSON: a front end may then refuse the whole picture.
    values = [[None if math.isnan(value) else value for value in row] for row in winners.scores]
    pictures = [base64.b64encode(picture).decode() for picture in winners.pictures]
    written = {"recipes": recipes, "values": values, "pictures": pictures}
    # The runs after this one stay: they are still to be found by those that follow.
    nodes[node_id] = {**same, "runs": [*runs[:run], written, *runs[run + 1 :]]}
    extra[KEY] = nodes


def difference(
    then: Winners, scores: Sequence[Sequence[float]], pictures: Sequence[bytes], limits: Sequence[float]
) -> str:
    """What tells a winner that was made again from the one that was saved, in words; "" for nothing.

    scores, pictures: as made again. limits: how far the scores may be apart, for each member.
    """
    found = []
    alike = [len(row) for row in then.scores] == [len(row) for row in scores]
    pairs = [zip(*rows, limits, strict=True) for rows in zip(then.scores, scores, strict=True)] if alike else []
    if not alike or any(abs(old - new) > limit for row in pairs for old, new, limit in row):
        found.append(f"it scores {_short(scores)} here and {_short(then.scores)} when it was saved")
    apart = _pictures_apart(then.pictures, pictures)
    if apart > MAX_PICTURE_DIFFERENCE:
        found.append(f"its colours are off by {apart:.0f} of 255")
    return " and ".join(found)


def _short(scores: Sequence[Sequence[float]]) -> str:
    return f"{', '.join(f'{value:.4g}' for row in scores for value in row):.200}"


def _pictures_apart(then: Sequence[bytes], now: Sequence[bytes]) -> float:
    """How far coarse pictures are apart, of 255: the mean over the one that differs most. 0 where there is nothing to
    compare."""
    if not then:
        return 0.0
    if [len(picture) for picture in then] != [len(picture) for picture in now]:
        return 255.0
    colours = [[np.frombuffer(picture, np.uint8).astype(float) for picture in pictures] for pictures in (then, now)]
    return max(float(np.abs(old - new).mean()) for old, new in zip(*colours, strict=True))


def _entry(workflow: Any, node_id: str | None) -> Mapping[str, Any]:
    """What the workflow says of a node; a workflow may hold anything."""
    try:
        entry = workflow["extra"][KEY][str(node_id)]
    except (LookupError, TypeError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _is_same_graph(
    entry: Mapping[str, Any], prompt: Mapping[str, Any], node_id: str, files: Callable[[], Files]
) -> bool:
    graph = entry.get("graph")
    if not isinstance(graph, str):
        return False
    if "files" not in entry:
        return graph == old_graph_hash(prompt, node_id)
    if graph == graph_hash(prompt, node_id, files()):
        return True
    # A seed beyond 2**53 in a widget comes out of a browser rounded. It is the same search; its recipes are exact.
    return "rounded" in entry and entry["rounded"] == graph_hash(prompt, node_id, files(), _float_if_rounded)


def _read(found: Mapping[str, Any], seed: int | None, scored: bool) -> Winners:
    ranks = found["recipes"][:MOST_RANKS]
    recipes = tuple(tuple(from_json(json.dumps(rank))) for rank in ranks)
    if any(is_rounded(number) and number != seed for rank in ranks for number in _seeds(rank)):
        raise Unusable(
            "its seeds lost their last digits in a browser, as those of pictures saved by older versions of Noise "
            "Search do. Replay Recipe makes it again: the recipe is in the picture's text chunk 'noise_search'"
        )
    scores = tuple(tuple(math.nan if value is None else float(value) for value in row) for row in found["values"])
    pictures = tuple(base64.b64decode(text) for text in found.get("pictures", ()))
    told = all(any(map(math.isfinite, row)) for row in scores) if scored else bool(pictures)
    if not recipes or len({len(row) for row in scores}) != 1 or not told:
        raise Unusable("it has no recipe or no score")
    return Winners(recipes, scores, pictures)


def _seeds(rank: Any) -> Iterator[Any]:
    """All seeds of a rank's recipes, as they are written; the rank has been read already."""
    for recipe in rank if isinstance(rank, list) else [rank]:
        for one in (recipe, *recipe.get("moves", ()), *recipe.get("jumps", ())):
            yield one["seed"]


def graph_hash(
    prompt: Mapping[str, Any], node_id: str, files: Files, large: Callable[[int], Any] = lambda number: number
) -> str:
    """A hash of a node and all before it, of an API-format workflow: their classes, widgets and links.

    It is the same for a program that writes 1.0 and a browser, which writes 1, and for both kinds of slashes in the
    names of files. large: what to take whole numbers for that a browser rounds.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, str):
            slashes = value.replace("\\", "/")
            return slashes if slashes in files else value
        if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_EXACT:
            return int(value)
        if isinstance(value, int) and LARGEST_EXACT < abs(value) < 2**1000:
            return large(value)
        return value

    return _hashed(plain(_before(prompt, node_id)))


def old_graph_hash(prompt: Mapping[str, Any], node_id: str) -> str:
    """The hash in pictures that do not say anything of files."""
    return _hashed(_before(prompt, node_id))


def _float_if_rounded(number: int) -> float | int:
    return float(number) if is_rounded(number) else number


def _hashed(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _before(prompt: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """(class, inputs) of a node and of all before it, by id."""
    nodes = upstream(prompt, node_id).items()
    return {name: [node.get("class_type"), node.get("inputs", {})] for name, node in nodes}
