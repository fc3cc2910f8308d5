"""ComfyEngine: makes candidates with ComfyUI."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import comfy.model_management as mm
import comfy.nested_tensor
import torch

from ...search.comparisons import Sight
from ...search.engine import Drafts, Recipes, Rendered, Segments, State
from ...search.judges import judges_of
from ...search.ledger import DECODE, SAMPLE, SAMPLER_TRIAL, SCORE, Cost, Ledger
from ..judging.hosted import broken, is_broken
from ..judging.scorer import Scored, Scorer, Shown
from ..pictures import in_colour
from .batching import Batches, Sampled
from .oom import retry_on_oom
from .stock import Sampling
from .trajectory import Trajectories

THUMBNAIL_SIZE = 192
SWAP_CHUNK = 8  # candidates to sample before the networks change places
CHUNK_BYTES = 2**30  # of decoded images at once: videos are large

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One row's full-size result: its part of the LATENT and of the denoised one, and its image [frames, H, W, C]."""

    samples: Any
    denoised: Any
    image: torch.Tensor


@dataclass(frozen=True)
class Decoded:
    """images: one [frames, H, W, C] per row. broken: whether they have pixels that are no numbers."""

    images: list[torch.Tensor]
    cost: Cost
    broken: bool


@dataclass(frozen=True)
class Options:
    """batch_size: candidates sampled together, 0 to find out; frames: of a video that the verifier looks at."""

    batch_size: int = 0
    frames: int = 8


class ComfyEngine:
    """Samples, decodes and scores candidates on whatever ComfyUI can sample.

    It works in phases: a chunk of candidates is sampled, then decoded, then scored, so that a card which holds only one
    of the networks at a time swaps them once per chunk. prompt: the text the verifier judges by. candidates: how many
    there will be, more or less. on_step: the sampler's callback. finish: whether somebody asked the search to end.
    """

    def __init__(
        self,
        sampling: Sampling,
        vae: Any,
        verifier: Any,
        prompt: str,
        on_step: Callable | None = None,
        candidates: int = 1,
        options: Options | None = None,
        finish: Callable[[], bool] = lambda: False,
    ):
        self.sampling = sampling
        self.vae = vae
        self.judges = judges_of(verifier)
        self.prompt = prompt
        self.on_step = on_step
        self.options = options or Options()
        self.scorer = Scorer(self.judges, self.options.frames)
        self.members, self.comparative = self.judges.members, self.judges.comparative
        self.finals_only = self.judges.finals_only
        self.finished = True  # what it renders: drafts are not
        self.rows = sampling.rows
        self.finish = finish
        self.batches = Batches(sampling, self.options.batch_size, candidates, finish)
        self.swaps = must_swap(sampling.model, vae, self.judges)
        self.image_bytes = 0  # of one decoded candidate

    @property
    def steps(self) -> int:
        return self.sampling.steps

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        return self.batches.notes

    @property
    def parts(self) -> tuple[type, ...]:
        return Segments, Drafts

    @property
    def deterministic(self) -> bool:
        with self.ledger.as_extra(SAMPLER_TRIAL), self.ledger.clock(SAMPLE):  # the sampler may have to be tried for it
            return self.sampling.deterministic

    @property
    def ledger(self) -> Ledger:
        return self.sampling.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self.sampling.evaluations.ledger = ledger

    @property
    def chunk(self) -> int:
        wanted = max(self.batches.size, SWAP_CHUNK if self.swaps else 1)
        return max(min(wanted, CHUNK_BYTES // max(self.image_bytes, 1)), 1)

    @property
    def trajectories(self) -> Trajectories:
        return Trajectories(self.sampling)

    def drafts(self, steps: int) -> ComfyEngine:
        other = copy.copy(self)
        other.sampling, other.finished = self.sampling.coarser(steps), False
        return other

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        wanted = list(map(self.sampling.complete, candidates))
        while wanted:
            chunk, wanted = wanted[: self.chunk], wanted[self.chunk :]
            yield from self._chunk(chunk)
            if self.finish():
                return

    def remake(self, recipes: Recipes) -> Rendered:
        made = next(self.render([recipes]))
        latent = {"samples": made.results[0].samples} if made.results else None
        return (
            made if latent is None else replace(made, mixed=self.batches.differs(self.sampling, made.recipes, latent))
        )

    def _chunk(self, chunk: Sequence[Recipes]) -> Iterator[Rendered]:
        """Samples all of these, then decodes and scores them in turn; where networks swap, all are decoded first."""
        if self.steps and any(recipe.jumps for recipes in chunk for recipe in recipes):
            sampled = self._follow_all(chunk)
        else:
            sampled = self.batches.sample(self.sampling, chunk, self.on_step)
        chunk = chunk[: len(sampled)]
        if not self.swaps:
            for recipes, one in zip(chunk, sampled, strict=True):
                yield self._answer(recipes, one, self._decode(one))
            return
        decoded = [self._decode(one) for one in sampled]
        scored = self._score_all(decoded)
        for recipes, one, shown, scores in zip(chunk, sampled, decoded, scored, strict=True):
            yield self._answer(recipes, one, shown, scores)

    def _follow_all(self, chunk: Sequence[Recipes]) -> list[Sampled]:
        sampled: list[Sampled] = []
        for recipes in chunk:
            if not (sampled and self.finish()):
                sampled.append(self._patiently(partial(self._follow, recipes)))
        return sampled

    def _follow(self, recipes: Recipes) -> Sampled:
        """A trajectory with jumps."""
        spent = self.ledger.measure()
        with self.ledger.clock(SAMPLE):
            point = self.trajectories.follow(recipes, self.on_step).latent
        return Sampled(*self.sampling.finished(point.samples, point.x0), spent.cost)

    def start(self, recipes: Recipes) -> State:
        return self.trajectories.start(self.sampling.complete(recipes))

    def denoise(self, state: State, level: float) -> State:
        def work() -> State:
            with self.ledger.clock(SAMPLE):
                return self.trajectories.denoise(state, level, self.on_step)

        return self._patiently(work)

    def renoise(self, state: State, level: float, seed: int) -> State:
        return self.trajectories.renoise(state, level, [seed] * self.rows)

    def score(self, state: State) -> Rendered:
        if state.level == 0:
            latents = self.sampling.finished(state.latent.samples, state.latent.x0)
        else:
            latents = self._patiently(partial(self._predict, state))
        sampled = Sampled(*latents, self.ledger.pending)
        decoded = self._decode(sampled)
        [scored] = self._score_all([decoded], self.finished and state.level == 0)
        return self._answer(state.recipes, sampled, decoded, scored)

    def _predict(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        with self.ledger.clock(SAMPLE):
            return self.trajectories.predict(state)

    def _patiently(self, work: Callable[[], T]) -> T:
        return self.batches.patiently(self.sampling, work)

    def join(self, states: Sequence[State]) -> State:
        return self.trajectories.join(states)

    def steps_between(self, start: float, end: float) -> int:
        return len(self.trajectories.between(start, end)) - 1

    def _decode(self, sampled: Sampled) -> Decoded:
        """The images of a candidate, one [frames, H, W, C] per row: of what the model expects in the end, where the
        schedule ends before that."""
        latent = sampled.denoised if self.sampling.leaves_noise else sampled.latent
        spent = self.ledger.measure()
        with self.ledger.clock(DECODE):
            images = retry_on_oom(lambda: decode(self.vae, latent), "decoding")
            parts = split(images, self.rows)
        decoded = Decoded(parts, spent.cost, is_broken([images]))
        self.image_bytes = sum(image.numel() * image.element_size() for image in decoded.images)
        return decoded

    def _score_all(self, decoded: Sequence[Decoded], finished: bool | None = None) -> list[Scored]:
        finished = self.finished if finished is None else finished
        shown = [Shown(one.images, self.prompt, one.broken, finished) for one in decoded]
        return self.scorer.score_all(shown, self.ledger)

    def _answer(self, recipes: Recipes, sampled: Sampled, decoded: Decoded, scored: Scored | None = None) -> Rendered:
        """Scores one decoded candidate. One whose pixels are no numbers is answered with what is wrong with it."""
        error = broken(f"the image of seed {recipes[0].seed}") if decoded.broken else None
        if scored is None:
            [scored] = self._score_all([decoded])
        cost = self.ledger.answer(sampled.cost + decoded.cost + scored.cost)
        nfe = round(cost.nfe)
        images = decoded.images
        take = take_row if self.rows > 1 else lambda samples, row: samples  # of a video all items
        return Rendered(
            recipes=recipes,
            values=scored.values,
            nfe=nfe,
            nfe_per_row=nfe // self.rows,
            seconds=cost.phases,
            results=[
                Result(take(sampled.latent["samples"], row), take(sampled.denoised["samples"], row), image)
                for row, image in enumerate(images)
            ],
            thumbnails=thumbnails(images) if error is None else None,
            batched=sampled.batched,
            error=error,
            failed=self.scorer.failed,
            looks=lambda: scored.looks,
        )

    def asks(self, column: int) -> tuple[str, str]:
        return self.scorer.asks(column)

    def compare(self, column: int, row: int, first: Sight, second: Sight) -> float:
        looks = first.look(column, row), second.look(column, row)
        with self.ledger.clock(SCORE):
            return self.scorer.compare(column, *looks, self.prompt)


def must_swap(*networks: Any) -> bool:
    """Whether these networks, behind their patchers, do not fit on their device together."""
    patchers = {id(patcher): patcher for network in networks for patcher in _patchers(network)}
    devices = {patcher.load_device for patcher in patchers.values()}
    if len(devices) != 1 or mm.is_device_cpu(next(iter(devices))):
        return False
    room = mm.get_total_memory(next(iter(devices))) - mm.minimum_inference_memory()
    return sum(patcher.model_size() for patcher in patchers.values()) > room


def _patchers(network: Any) -> list[Any]:
    """ComfyUI's handles on the weights of a MODEL, a VAE or a VERIFIER; none where it has none."""
    if hasattr(network, "patchers"):
        return network.patchers
    patcher = getattr(network, "patcher", None) or (network if hasattr(network, "load_device") else None)
    return [] if patcher is None else [patcher]


def decode(vae: Any, latent: dict[str, Any]) -> torch.Tensor:
    """What the stock VAEDecode does: images [B, H, W, C] in 0..1, a video's frames one after the other."""
    mm.throw_exception_if_processing_interrupted()
    samples = latent["samples"]
    images = vae.decode(samples.unbind()[0] if samples.is_nested else samples)
    if images.ndim not in (4, 5) or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise ValueError(
            f"the VAE decoded the latent to {list(images.shape)}, and a search scores images [images, height, width, "
            "3]. Connect the VAE of the image or video model."
        )
    return in_colour(images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images)


def split(images: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """The frames of each row: `rows` tensors [frames, H, W, C], copies, so that keeping one does not keep them all."""
    parts = images.reshape(rows, -1, *images.shape[1:])
    return [part.clone() for part in parts] if rows > 1 else [parts[0]]


def take_row(samples: Any, row: int) -> Any:
    """Item `row` of a latent batch, as a batch of one."""
    if samples.is_nested:
        return comfy.nested_tensor.NestedTensor([part[row : row + 1].clone() for part in samples.unbind()])
    return samples if samples.shape[0] == 1 else samples[row : row + 1].clone()


def join_rows(rows: Sequence[Any]) -> Any:
    """One latent batch out of single items."""
    if len(rows) == 1:
        return rows[0]
    if rows[0].is_nested:
        return comfy.nested_tensor.NestedTensor(
            [torch.cat(parts) for parts in zip(*(row.unbind() for row in rows), strict=True)]
        )
    return torch.cat(list(rows))


def thumbnails(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 [rows, h, w, 3]: the first frame of each row, longest side THUMBNAIL_SIZE or less; of the first row's shape
    where rows differ."""
    frames = [image[:1, ..., :3].float().movedim(-1, 1) for image in images]
    sides = frames[0].shape[-2:]
    scale = min(1.0, THUMBNAIL_SIZE / max(sides))
    size = [max(1, round(side * scale)) for side in sides] if scale < 1 else list(sides)
    shrunk = [
        frame if list(frame.shape[-2:]) == size else torch.nn.functional.interpolate(frame, size=size, mode="area")
        for frame in frames
    ]
    first = torch.cat(shrunk) if len(shrunk) > 1 else shrunk[0]
    return first.movedim(1, -1).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
