"""The graph-native route: scores for a list of images, and the best k of anything that came with them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ...search.aggregate import Aggregator, check_values, order
from ...search.comparisons import Ladder, NoAnswer
from ...search.judges import Judges, judges_of
from ...verifiers.console import logger
from ..graph.prompt_words import plain_text
from ..sampling.engine import join_rows, take_row
from ..sampling.noise import RecipeNoise, recipes_of
from .hosted import broken, check_images, is_broken
from .scorer import Scorer, Shown

ACROSS = "These are scores of {count} different prompts, which cannot be compared with each other"
VIDEO_FRAMES = 8  # as many as Search KSampler looks at
log_to_console = logger(__name__)


@dataclass(frozen=True)
class Scores:
    """Raw values [candidates, rows, members] of a list of image batches, higher is better; in the columns of judges
    that compare, the ranks in their order, 0 the lowest. Immutable.

    warnings: what the user should know, such as verifiers that were dropped; their values are NaN where they gave none.
    prompts: what each candidate was judged by, one for all where there was one; none where prompts decide nothing.
    videos: each candidate is one video, whose frames stay together: it has one row.
    """

    members: tuple[str, ...]
    values: torch.Tensor
    aggregator: Aggregator = Aggregator()
    warnings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    videos: bool = False

    def row(self, row: int) -> torch.Tensor:
        """The aggregated score of every candidate for one item of the batch: float64 [candidates]."""
        return self.aggregator(self.values[:, row].to(torch.float64))

    def order(self, row: int) -> list[int]:
        """Candidates from best to worst for one item: those that pass all gates first."""
        return order(self.row(row), self.aggregator.vetoes(self.values[:, row]))

    def flat(self) -> list[float]:
        """Every score, candidate by candidate and within one item by item."""
        return torch.stack([self.row(row) for row in range(self.values.shape[1])], dim=1).flatten().tolist()

    def summary(self) -> str:
        """For the node: the best score of all images and the median, how many fail a gate, and the warnings."""
        values, vetoes = self.flat(), self.aggregator.vetoes(self.values.flatten(0, 1)).tolist()
        best = max(range(len(values)), key=lambda index: (-vetoes[index], values[index]))
        candidate = best // self.values.shape[1]
        line = f"best {values[best]:.4g} (candidate {candidate}) · median {statistics.median(values):.4g}"
        failing = sum(map(bool, vetoes))
        if failing:
            line += f" · {failing} of {len(vetoes)} fail a gate"
        if failing == len(vetoes):
            line += ": the best is the best of those"
        return "\n".join([line, *self.warnings])


def score_images(
    images: Sequence[torch.Tensor],
    verifier: Any,
    prompts: Sequence[str],
    notes: Sequence[str] = (),
    videos: bool = False,
) -> Scores:
    """Scores a list of image batches [B, H, W, C], each with its prompt (or all with the one prompt given).

    Sizes may differ between candidates; the number of images in each may not. notes: what the user should know of the
    prompts. videos: each is one video, scored by the mean over VIDEO_FRAMES of its frames. Raises
    ValueError, naming the candidate.
    """
    if len(prompts) not in (1, len(images)):
        raise ValueError(f"{len(prompts)} prompts for {len(images)} images: connect one prompt, or one for each image")
    judges = judges_of(verifier)
    _check_words(prompts, judges)
    if judges.comparative and len(set(prompts)) > 1:
        names = ", ".join(judges.members[column] for column in judges.comparative)
        raise ValueError(f"{names} compares images of one prompt, and these have {len(set(prompts))}")
    count, scorer = images[0].shape[0], Scorer(judges, VIDEO_FRAMES if videos else 1)
    for index, batch in enumerate(images):
        check_candidate(index, batch, count)
    rows = 1 if videos else count
    bar = comfy.utils.ProgressBar(len(images))
    values, looks = [], []
    for index, batch in enumerate(images):
        comfy.model_management.throw_exception_if_processing_interrupted()
        parts = [batch] if videos else batch.split(1)
        [scored] = scorer.score_all([Shown(parts, prompts[index if len(prompts) > 1 else 0])])
        looks.append(scored.looks)
        values.append(check_values(scored.values, judges.members, rows, index, {*scorer.failed, *judges.comparative}))
        bar.update_absolute(index + 1)
    table = torch.stack(values)
    for column in set(judges.comparative) - set(scorer.failed):
        _rank(table, column, scorer, looks, prompts)
    aggregator = judges.aggregator
    if scorer.failed:
        aggregator = aggregator.without(scorer.failed, len(judges.members))
    warnings = tuple(f"Dropped, for all images: {cause}" for cause in dict.fromkeys(scorer.failed.values()))
    decided = any(judge.needs_prompt for judge in scorer.deciding.values())
    judged_by = tuple(prompts) if decided else ()
    if len(set(judged_by)) > 1:
        warnings += (f"{ACROSS.format(count=len(set(judged_by)))}.",)
    warnings += (*notes, *judges.cuts(prompts if judges.needs_prompt else ()))
    return Scores(judges.members, table, aggregator, warnings, judged_by, videos)


def _rank(
    table: torch.Tensor, column: int, scorer: Scorer, looks: Sequence[Mapping[int, Any]], prompts: Sequence[str]
) -> None:
    """Has a judge that compares put all candidates in order, and writes their ranks into its column. Where it fails and
    may be dropped, there is none."""

    def ask(row: int, first: int, second: int) -> float:
        return scorer.compare(column, looks[first][column][row], looks[second][column][row], prompts[0])

    for row in range(table.shape[1]):
        ladder = Ladder()
        for index in range(len(table)):
            try:
                ladder.put(index, ladder.find(index, partial(ask, row)))
            except NoAnswer:
                return
        for index, rank in ladder.ranks().items():
            table[index, row, column] = rank


def _check_words(prompts: Sequence[str | None], judges: Judges) -> None:
    """Raises ValueError, naming the candidate, where a verifier would judge by nothing."""
    if not judges.needs_prompt:
        return
    for index, prompt in enumerate(prompts):
        if not plain_text(prompt, typed=True):
            which = f"candidate {index} of the list at 'prompt'" if len(prompts) > 1 else "'prompt'"
            shown = f" ({prompt.strip()[:80]!r})" if prompt and prompt.strip() else ""
            raise ValueError(
                f"{which} has no words to judge the image by{shown}: take the line out, with its image, or write what "
                "the image should show"
            )


def check_candidate(index: int, images: torch.Tensor, rows: int) -> None:
    """Raises ValueError, before anything is scored, where a candidate's images cannot be."""
    if images.shape[0] != rows:
        raise ValueError(
            f"candidate {index} has {images.shape[0]} images and candidate 0 has {rows}: "
            f"every candidate needs the same number of images to be compared"
        )
    if is_broken([images]):
        raise ValueError(broken(f"candidate {index}"))
    try:
        check_images(images)
    except ValueError as error:
        raise ValueError(f"candidate {index}: {error}") from None


@dataclass(frozen=True)
class Selection:
    """The best k and the rest. images, latents, noises: one batch per rank, every row by its own order; scores and
    indices: rank by rank, and within one row by row; rejects: the images of the other ranks."""

    images: list[torch.Tensor]
    latents: list[dict[str, Any]]
    noises: list[Any]
    scores: list[float]
    indices: list[int]
    rejects: list[torch.Tensor]


def select(
    scores: Scores,
    k: int,
    images: Sequence[torch.Tensor] | None = None,
    latents: Sequence[dict[str, Any]] | None = None,
    noises: Sequence[Any] | None = None,
) -> Selection:
    """Best-of-N: the k highest scores, best first; ties keep the earlier candidate. Raises ValueError if k > N."""
    count, rows = scores.values.shape[:2]
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}, but there are {count} candidates to choose from: set k to {count} or less")
    if different := list(dict.fromkeys(scores.prompts))[1:]:
        shown = " and ".join(repr(prompt[:60]) for prompt in (scores.prompts[0], different[0]))
        raise ValueError(
            f"{ACROSS.format(count=1 + len(different))} ({shown}{', ...' if different[1:] else ''}), so there is no "
            "best among them: give each prompt a Verifier Score and a Best-of-N Select of its own"
        )
    for name, items in (("image", images), ("latent", latents), ("noise", noises)):
        if items is not None and len(items) != count:
            raise ValueError(
                f"{len(items)} {name}s for {count} scores: connect the same list that was scored to '{name}'"
            )
    if count == 1 and rows > 1:
        log_to_console.warning(
            "Noise Search: Best-of-N got one candidate of %d images, so there is nothing to choose. Each item of a "
            "batch keeps its own best among several candidates: make these with Noise Candidates.",
            rows,
        )
    for latent in latents or ():
        items = latent["samples"].unbind()[0] if latent["samples"].is_nested else latent["samples"]
        if items.shape[0] != rows and not scores.videos:
            raise ValueError(
                f"a candidate has {rows} images and a latent of {items.shape[0]} items. These are the frames of a "
                f"video, or another latent: search videos with Search KSampler, which keeps their frames together."
            )
    ranks = list(zip(*(scores.order(row) for row in range(rows)), strict=True))  # [rank][row] -> candidate
    table = [scores.row(row) for row in range(rows)]
    best = ranks[:k]
    return Selection(
        images=[gather_images(images, rank) for rank in best] if images is not None else [],
        latents=[gather_latents(latents, rank) for rank in best] if latents is not None else [],
        noises=[gather_noises(noises, rank, latents) for rank in best] if noises is not None else [],
        scores=[float(table[row][index]) for rank in best for row, index in enumerate(rank)],
        indices=[index for rank in best for index in rank],
        rejects=[gather_images(images, rank) for rank in ranks[k:]] if images is not None else [],
    )


def gather_images(images: Sequence[torch.Tensor], rank: Sequence[int]) -> torch.Tensor:
    """Row r of the images of candidate rank[r], for every row."""
    if len(rank) == 1:
        return images[rank[0]]
    rows = [images[index][row : row + 1] for row, index in enumerate(rank)]
    sizes = {tuple(row.shape[1:3]) for row in rows}
    if len(sizes) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"the best images of this batch have different sizes ({shown}) and cannot make one batch")
    return torch.cat(rows)


def gather_latents(latents: Sequence[dict[str, Any]], rank: Sequence[int]) -> dict[str, Any]:
    if len(rank) == 1:
        return latents[rank[0]]
    return {
        **latents[rank[0]],
        "samples": join_rows([take_row(latents[index]["samples"], row) for row, index in enumerate(rank)]),
    }


def gather_noises(noises: Sequence[Any], rank: Sequence[int], latents: Sequence[dict[str, Any]] | None = None) -> Any:
    """One NOISE: the candidate's own, or for a batch the noise of every row's own winner.

    The noise of a row depends on the `batch_index` of the latent it was sampled with, so that is read from `latents`.
    """
    if len(rank) == 1:
        return noises[rank[0]]
    batch_index = latents[0].get("batch_index") if latents else None
    drawn = None if batch_index is None else tuple(int(i) for i in batch_index)
    recipes = []
    for row, index in enumerate(rank):
        known = recipes_of(noises[index])
        if known is None or len(known) != 1:
            raise ValueError(
                "the winners of a batch come from different noises, and these do not say how they were made: "
                "use Noise Candidates or RandomNoise, or select from single images"
            )
        recipes.append(known[0].for_batch(len(rank), drawn).for_row(row))
    return RecipeNoise(recipes)
