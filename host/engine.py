"""ComfyEngine: makes candidates with ComfyUI."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch

from ..search.engine import Recipes, Rendered, State
from .sampling import Sampling
from .trajectory import Trajectories
from .verifier import HostedVerifier

THUMBNAIL_SIZE = 192
SCORED_FRAMES = 8


@dataclass(frozen=True)
class Result:
    """One row's full-size result: its part of the LATENT and of the denoised one, and its image [frames, H, W, C]."""

    samples: Any
    denoised: Any
    image: torch.Tensor


@dataclass
class Books:
    """What was spent since the last answer: wall time by phase, and the evaluations counted before."""

    seconds: dict[str, float] = field(default_factory=dict)
    answered: int = 0


class ComfyEngine:
    """Samples, decodes and scores one candidate at a time, on whatever ComfyUI can sample.

    prompt: the text the verifier judges by. on_step: the sampler's callback.
    """

    def __init__(
        self, sampling: Sampling, vae: Any, verifier: HostedVerifier, prompt: str, on_step: Callable | None = None
    ):
        self.sampling = sampling
        self.vae = vae
        self.verifier = verifier
        self.prompt = prompt
        self.on_step = on_step
        self.members = tuple(verifier.members)
        self.rows = sampling.rows
        self.books = Books(answered=sampling.evaluations.rows)

    @property
    def steps(self) -> int:
        return self.sampling.steps

    @property
    def deterministic(self) -> bool:
        return self.sampling.deterministic

    @property
    def trajectories(self) -> Trajectories:
        return Trajectories(self.sampling)

    def pending(self) -> tuple[int, float]:
        return self.sampling.evaluations.rows - self.books.answered, sum(self.books.seconds.values())

    def drafts(self, steps: int) -> ComfyEngine:
        other = copy.copy(self)
        other.sampling = self.sampling.coarser(steps)
        return other

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        for recipes in map(self.sampling.complete, candidates):
            with clock(self.books.seconds, "sample"):
                if any(recipe.jumps for recipe in recipes):
                    point = self.trajectories.follow(recipes, self.on_step).latent
                    latents = self.sampling.finished(point.samples, point.x0)
                else:
                    latents = self.sampling.sample(recipes, self.on_step)
            yield self._answer(recipes, *latents)

    def start(self, recipes: Recipes) -> State:
        return self.trajectories.start(self.sampling.complete(recipes))

    def denoise(self, state: State, level: float) -> State:
        with clock(self.books.seconds, "sample"):
            return self.trajectories.denoise(state, level, self.on_step)

    def renoise(self, state: State, level: float, seed: int) -> State:
        return self.trajectories.renoise(state, level, [seed] * self.rows)

    def score(self, state: State) -> Rendered:
        if state.level == 0:
            latents = self.sampling.finished(state.latent.samples, state.latent.x0)
        else:
            with clock(self.books.seconds, "sample"):
                latents = self.trajectories.predict(state)
        return self._answer(state.recipes, *latents)

    def join(self, states: Sequence[State]) -> State:
        return self.trajectories.join(states)

    def steps_between(self, start: float, end: float) -> int:
        return len(self.trajectories.between(start, end)) - 1

    def _answer(self, recipes: Recipes, latent: dict[str, Any], denoised: dict[str, Any]) -> Rendered:
        """Decodes and scores one finished latent."""
        books = self.books
        with clock(books.seconds, "decode"):
            images = split(decode(self.vae, latent), self.rows)
            check_pixels(images, f"the image of seed {recipes[0].seed}")
        with clock(books.seconds, "score"):
            values = torch.stack([self.judge(image) for image in images])
        nfe, _ = self.pending()
        seconds, books.seconds = books.seconds, {}
        books.answered += nfe
        return Rendered(
            recipes=recipes,
            values=values,
            nfe=nfe,
            nfe_per_row=nfe // self.rows,
            seconds=seconds,
            results=[
                Result(take_row(latent["samples"], row), take_row(denoised["samples"], row), image)
                for row, image in enumerate(images)
            ],
            thumbnails=thumbnails(images),
        )

    def judge(self, frames: torch.Tensor) -> torch.Tensor:
        """Values [members] of one image, or the mean over evenly spaced frames of one video. frames: [F, H, W, C]."""
        picks = torch.linspace(0, len(frames) - 1, min(len(frames), SCORED_FRAMES)).round().long()
        frames = frames[picks.to(frames.device)]
        return self.verifier.score(frames, [self.prompt] * len(frames)).mean(dim=0)


@contextmanager
def clock(seconds: dict[str, float], phase: str):
    """Adds the wall time of its block to `seconds[phase]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def decode(vae: Any, latent: dict[str, Any]) -> torch.Tensor:
    """What the stock VAEDecode does: images [B, H, W, C] in 0..1, a video's frames one after the other."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    samples = latent["samples"]
    images = vae.decode(samples.unbind()[0] if samples.is_nested else samples)
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images


def check_pixels(images: Sequence[torch.Tensor], name: str) -> None:
    """Raises ValueError, naming the image, where pixels are not numbers: no score would mean anything."""
    if not all(torch.isfinite(image).all() for image in images):
        raise ValueError(
            f"{name} has pixels that are not numbers (NaN or infinity), often a model or VAE that overflows in fp16. "
            f"Try ComfyUI's --fp32-vae or another model precision."
        )


def split(images: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """The frames of each row: `rows` tensors [frames, H, W, C], copies, so that keeping one does not keep them all."""
    parts = images.reshape(rows, -1, *images.shape[1:])
    return [part.clone() for part in parts] if rows > 1 else [parts[0]]


def take_row(samples: Any, row: int) -> Any:
    """Item `row` of a latent batch, as a batch of one."""
    if samples.is_nested:
        import comfy.nested_tensor

        return comfy.nested_tensor.NestedTensor([part[row : row + 1].clone() for part in samples.unbind()])
    return samples if samples.shape[0] == 1 else samples[row : row + 1].clone()


def join_rows(rows: Sequence[Any]) -> Any:
    """One latent batch out of single items."""
    if len(rows) == 1:
        return rows[0]
    if rows[0].is_nested:
        import comfy.nested_tensor

        return comfy.nested_tensor.NestedTensor(
            [torch.cat(parts) for parts in zip(*(row.unbind() for row in rows), strict=True)]
        )
    return torch.cat(list(rows))


def thumbnails(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 [rows, h, w, 3]: the first frame of each row, longest side THUMBNAIL_SIZE or less."""
    first = torch.stack([image[0, ..., :3] for image in images]).float().movedim(-1, 1)
    scale = min(1.0, THUMBNAIL_SIZE / max(first.shape[-2:]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in first.shape[-2:]]
        first = torch.nn.functional.interpolate(first, size=size, mode="area")
    return first.movedim(1, -1).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
