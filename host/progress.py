"""One progress bar, one line of text and one preview for a whole search."""

from __future__ import annotations

import sys
import textwrap
import time
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..search.budget import Spending
from ..search.log import DRAFT, FINAL, PREVIEW, Candidate, Pool, SearchLog
from ..search.run import Run
from .sampling import Sampling

PREVIEW_SIZE = 512
SHOW_EVERY = 0.2  # seconds
TEXT_WIDTH = 52  # characters that fit on a node of usual width


def to_pil(image: torch.Tensor) -> Image.Image:
    """[H, W, 3 or more] float in 0..1 -> a Pillow image."""
    pixels = image[..., :3].detach().float().clamp(0, 1).mul_(255).round_().to("cpu", torch.uint8)
    return Image.fromarray(pixels.numpy())


def send_text(text: str, node_id: str | None) -> None:
    """Shows a text on the node, where there is a server and a node to show it on.

    Broken into lines here: ComfyUI's canvas would break them in the middle of a word.
    """
    module = sys.modules.get("server")  # importing it would start half a server where there is none
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        lines = [textwrap.fill(line, TEXT_WIDTH, break_on_hyphens=False) for line in text.split("\n")]
        server.send_progress_text("\n".join(lines), node_id)


class SearchProgress:
    """Fills once, with the compute spent. Shows the running latent until there is a best image."""

    def __init__(self, sampling: Sampling, candidates: int, node_id: str | None = None):
        self.sampling = sampling
        self.candidates = candidates
        self.node_id = node_id
        self.total = max(candidates * max(sampling.steps, 1), 1)
        self.spending: Spending | None = None
        self.value = 0
        self.evaluated = sampling.evaluations.rows  # before this search
        model = sampling.model
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.has_best = False
        self.shown = 0.0
        self.bar = comfy.utils.ProgressBar(self.total)
        self.console = tqdm(total=self.total, desc="Noise Search", disable=not comfy.utils.PROGRESS_BAR_ENABLED)

    def step(self, step: int, x0: Any, x: Any, total_steps: int) -> None:
        """The sampler's callback."""
        preview = None
        if self.previewer is not None and not self.has_best:
            x0 = x0.tensors[0] if x0.is_nested else x0
            preview = self.previewer.decode_latent_to_preview_image("JPEG", x0)
        self._show(preview)

    def candidate(self, run: Run, candidate: Candidate) -> None:
        """A candidate is scored: a line of text, and its image where it is the best so far."""
        self.spending = run.spending
        comfy.model_management.throw_exception_if_processing_interrupted()  # what is remembered asks nobody else
        if candidate.recalled and time.monotonic() < self.shown + SHOW_EVERY:
            return  # they come faster than anyone can look
        self.shown = time.monotonic()
        text = tell(run, candidate)
        image, preview = best_image(run.pool, candidate), None
        if image is not None:
            self.has_best = True
            # ComfyUI would enlarge a smaller one.
            preview = ("JPEG", to_pil(image), min(PREVIEW_SIZE, max(image.shape[:2])))
        self._show(preview)
        self.console.set_postfix_str(text)
        send_text(text, self.node_id)

    def end(self, pool: Pool) -> None:
        """The search is over: the last line says what it found and why it ended."""
        log = pool.log
        self.bar.update_absolute(self.total)
        extra = f" (+{log.extra_nfe:,} extra)" if log.extra_nfe else ""
        spent = f"{log.nfe - log.extra_nfe:,} NFE{extra}"
        lines = [f"{_best(log)} · {spent}.", f"Ended because {log.stopped}." if log.stopped else ""]
        if log.recalled:
            lines.append(f"{len(log.recalled)} of {len(log.candidates)} candidates were known from before.")
        send_text("\n".join([*filter(None, lines), *log.warnings]), self.node_id)

    def close(self) -> None:
        self.console.close()

    def _show(self, preview: Any) -> None:
        self.value = max(self.value, round(self._fraction() * self.total))
        self.console.update(self.value - self.console.n)
        self.bar.update_absolute(self.value, preview=preview)

    def _fraction(self) -> float:
        """Of the budget spent. What a run costs is known once stock is through."""
        if self.spending is not None:
            return self.spending.fraction
        stock = (self.sampling.evaluations.rows - self.evaluated) / self.sampling.rows / max(self.sampling.steps, 1)
        return min(stock, 1.0) / self.candidates


def tell(run: Run, candidate: Candidate) -> str:
    """One line about the search so far."""
    made = len(run.log.candidates)
    spent = f"{run.spending.nfe:,} of {run.spending.limit:,.0f} NFE"
    what = {DRAFT: " · drafting", PREVIEW: " · under way"}.get(candidate.stage, "")
    return f"{made} candidate{'s' if made > 1 else ''} · {spent}{what} · {_best(run.log)}"


def best_image(pool: Pool, candidate: Candidate) -> torch.Tensor | None:
    """The image [H, W, C] of a candidate that is the best so far, or while drafting the best draft's thumbnail."""
    log, index = pool.log, candidate.index
    if log.best(0, candidate.stage).index != index:
        return None
    if candidate.stage == FINAL and (index, 0) in pool.results:
        return pool.results[index, 0].image[0]
    thumbnail = log.thumbnails.get((index, 0))
    return None if thumbnail is None else thumbnail.float() / 255


def _best(log: SearchLog) -> str:
    best, scores = log.best(), log.scores()
    failing = " (fails a gate)" if log.merits()[best.index][0] else ""
    if len(log.of_stage()) == 1:
        return f"score {scores[best.index]:.4g}{failing}"
    return f"best {scores[best.index]:.4g} (candidate {best.index}){failing} · stock {scores[0]:.4g}"
