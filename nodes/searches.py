"""The searches that Search KSampler can do, and their budget."""

from __future__ import annotations

from comfy_api.latest import io

from ..search.algorithms import listed
from ..search.algorithms.draft_and_final import DraftAndFinal
from ..search.algorithms.paths import SearchOverPaths
from ..search.algorithms.random_search import RandomSearch
from ..search.algorithms.replay import ReplayRecipe
from ..search.algorithms.zero_order import STUCK, ZeroOrderSearch
from ..search.budget import Budget
from ..search.recipe import from_text
from . import types


def search_output() -> list[io.Output]:
    return [types.Search.Output(display_name="search", tooltip="Connect to 'search' of a search node.")]


class ZeroOrder(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=listed(ZeroOrderSearch).node,
            display_name=listed(ZeroOrderSearch).title,
            category=types.CATEGORY,
            description=(
                "Climbs: tries noises near the best one so far and moves on to the best of them. Keeps the composition "
                "and refines it, where Random Search starts anew every time."
            ),
            search_aliases=["zero order", "hill climbing", "neighbours", "noise search"],
            inputs=[
                io.Int.Input(
                    "neighbours",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many noises near the best one to try before moving on. The paper's ZO-N; 2 there.",
                ),
                io.Float.Input(
                    "angle",
                    default=18.0,
                    min=0.1,
                    max=180.0,
                    step=0.5,
                    round=0.01,
                    tooltip=(
                        "How far away the neighbours are, in degrees: small changes details, 90 is an unrelated noise. "
                        "18 is the authors' choice (a cosine of 0.95)."
                    ),
                ),
                io.Combo.Input(
                    "no_better_neighbour",
                    options=list(STUCK),
                    default=STUCK[0],
                    tooltip=(
                        "When no neighbour is better: stay and try other neighbours, start again from a new noise, or "
                        "look closer and closer until one is better."
                    ),
                ),
            ],
            outputs=search_output(),
        )

    @classmethod
    def execute(cls, neighbours, angle, no_better_neighbour) -> io.NodeOutput:
        return io.NodeOutput(ZeroOrderSearch(neighbours, angle, no_better_neighbour))


class Paths(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=listed(SearchOverPaths).node,
            display_name=listed(SearchOverPaths).title,
            category=types.CATEGORY,
            description=(
                "Samples a few noises almost to the end, adds fresh noise and samples again, and keeps the best ways "
                "down each time. Every branch costs nearly as much as a new image. The paper's Paths-N."
            ),
            search_aliases=["paths", "search over paths", "noise search"],
            inputs=[
                io.Int.Input(
                    "paths", default=2, min=1, max=64, tooltip="N: how many of the best go on to the next round."
                ),
                io.Int.Input(
                    "branches",
                    default=0,
                    min=0,
                    max=256,
                    tooltip=(
                        "M: how many fresh noises every path tries in each round. 0: as many as the budget has room "
                        "for. With a number, it starts again with new noises until the budget is spent."
                    ),
                ),
                _level(
                    "sigma",
                    0.11,
                    "Noise level (1 noise, 0 finished) at which the paths are first compared. The lower, the more "
                    "finished the images that the verifier sees.",
                ),
                _level(
                    "delta_forward",
                    0.78,
                    "How far each round goes back up in noise. High starts almost anew, low changes details only.",
                ),
                _level(
                    "delta_backward",
                    0.81,
                    "How far each round samples down again; must be more than delta_forward. The difference is what a "
                    "round gains: the larger, the fewer rounds.",
                ),
            ],
            outputs=search_output(),
        )

    @classmethod
    def execute(cls, paths, branches, sigma, delta_forward, delta_backward) -> io.NodeOutput:
        return io.NodeOutput(SearchOverPaths(paths, branches, sigma, delta_forward, delta_backward))


class DraftFinal(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=listed(DraftAndFinal).node,
            display_name=listed(DraftAndFinal).title,
            category=types.CATEGORY,
            description=(
                "Searches among quick drafts with few steps, renders the best ones with all steps, and picks the "
                "winner among those. For samplers that add no noise (euler, heun, dpmpp_2m, uni_pc ...)."
            ),
            search_aliases=["draft", "refine", "fewer steps", "noise search"],
            inputs=[
                io.Int.Input(
                    "draft_steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip=(
                        "Steps of a draft, taken from the sampler's own schedule. 0: a quarter of the steps, at least "
                        "6 (3 of fewer than 12). If the report says that drafts and finals disagree, take more."
                    ),
                ),
                io.Int.Input(
                    "finals",
                    default=0,
                    min=0,
                    max=types.MAX_CANDIDATES,
                    tooltip="How many of the best drafts to render in full, at least. 0: the root of their number.",
                ),
                types.Search.Input(
                    "search", optional=True, tooltip="How to search among the drafts; Random Search if left open."
                ),
            ],
            outputs=search_output(),
        )

    @classmethod
    def execute(cls, draft_steps, finals, search=None) -> io.NodeOutput:
        return io.NodeOutput(DraftAndFinal(search or RandomSearch(), draft_steps, finals))


class Replay(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=listed(ReplayRecipe).node,
            display_name=listed(ReplayRecipe).title,
            category=types.CATEGORY,
            description=(
                "Makes one candidate again from its recipe instead of searching, at what that one cost. Works for "
                "every recipe, also those of Search over Paths, with the same model, prompts and settings."
            ),
            search_aliases=["recipe", "reproduce", "winner"],
            inputs=[
                io.String.Input(
                    "recipe",
                    multiline=True,
                    default="",
                    tooltip=(
                        "A recipe as a search node gives it out, or the entry noise_search of a saved picture's "
                        "metadata, whole or in part."
                    ),
                )
            ],
            outputs=search_output(),
        )

    @classmethod
    def execute(cls, recipe) -> io.NodeOutput:
        return io.NodeOutput(ReplayRecipe(tuple(from_text(recipe))))


class SearchBudget(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchBudget",
            display_name="Search Budget",
            category=types.CATEGORY,
            description=(
                "More limits for a search, beside its number of candidates. Whichever is reached first ends it; the "
                "report says which."
            ),
            search_aliases=["budget", "limit", "patience", "early stop"],
            inputs=[
                io.Int.Input(
                    "max_nfe",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip=(
                        "Evaluations of the diffusion model for the whole search, each image of a batch counted: 20 "
                        "euler steps are 20, 20 heun steps 39. 0: no limit."
                    ),
                ),
                io.Float.Input(
                    "max_seconds",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=1.0,
                    round=0.1,
                    tooltip=(
                        "Time for sampling, decoding and scoring; rendering the winner again comes on top. 0: no limit."
                    ),
                ),
                io.Boolean.Input(
                    "stop_at_target", default=False, tooltip="End the search once the best score is target_score."
                ),
                io.Float.Input(
                    "target_score",
                    default=0.0,
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    round=0.0001,
                    tooltip=(
                        "Good enough: the search ends when the best image (in a batch, of every item) has this score. "
                        "Only with stop_at_target, and not where several verifiers are combined by rank or z-score."
                    ),
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=types.MAX_CANDIDATES,
                    tooltip="End after this many candidates in a row without a better one. 0: never.",
                ),
            ],
            outputs=[types.Budget.Output(display_name="budget", tooltip="Connect to 'budget' of a search node.")],
        )

    @classmethod
    def execute(cls, max_nfe, max_seconds, stop_at_target, target_score, patience) -> io.NodeOutput:
        return io.NodeOutput(
            Budget(
                nfe=max_nfe or None,
                seconds=max_seconds or None,
                target=target_score if stop_at_target else None,
                patience=patience or None,
            )
        )


def _level(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip)


NODES = [ZeroOrder, Paths, DraftFinal, SearchBudget, Replay]
