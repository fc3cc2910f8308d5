"""One progress bar, one line of text and one preview for a whole search."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from tqdm.auto import tqdm

from ..search.ledger import Ledger
from ..search.log import DRAFT, PREVIEW, Candidate, Pool, SearchLog
from ..search.run import Run
from .pictures import to_pil
from .server import running_server

PREVIEW_SIZE = 512
SHOW_EVERY = 0.2  # seconds
TEXT_WIDTH = 52  # characters that fit on a node of usual width


def nobody_looks() -> bool:
    """Whether what runs was queued without a client. ComfyUI would then show it to every browser."""
    host = running_server()
    return host is not None and host.client_id is None


def send_text(text: str, node_id: str | None) -> None:
    """Shows a text on the node to the client that queued it, where there is one and a node to show it on.

    Broken into lines here: ComfyUI's canvas would break them in the middle of a word.
    """
    host = running_server()
    if host is not None and host.client_id is not None and node_id is not None:
        host.send_progress_text(in_lines(text), node_id, host.client_id)


def in_lines(text: str) -> str:
    """A text in lines that fit on a node."""
    return "\n".join(textwrap.fill(line, TEXT_WIDTH, break_on_hyphens=False) for line in text.split("\n"))


class Sampled(Protocol):
    """What the candidates of a search come from: its `Sampling`, or a part of the user's graph. model: whose latents
    can be shown while they are sampled, or None. settings: what the log should say of it."""

    evaluations: Any
    steps: int

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def rows(self) -> int: ...

    @property
    def model(self) -> Any: ...


class SearchProgress:
    """Fills once, with the work done. Shows the running latent until there is a best image, then the best so far, and
    at the end the winner."""

    def __init__(self, sampling: Sampled, candidates: int, node_id: str | None = None):
        self.sampling = sampling
        self.candidates = candidates
        self.node_id = node_id
        self.total = max(candidates * max(sampling.steps, 1), 1)
        self.run: Run | None = None
        self.value = 0
        self.evaluated = sampling.evaluations.rows  # before this search
        self.previewer = previewer_of(sampling.model)
        self.pictured: int | None = None  # the candidate on show
        self.shown = -math.inf
        self.clock = _Clock(sampling.steps)
        self.bar = comfy.utils.ProgressBar(self.total, node_id=node_id)
        self.console = _ConsoleBar(self.total)

    def step(self, step: int, x0: Any, x: Any, total_steps: int) -> None:
        """The sampler's callback."""
        preview = None
        if self.previewer is not None and self.pictured is None and not nobody_looks():
            x0 = x0.tensors[0] if x0.is_nested else x0
            preview = self.previewer.decode_latent_to_preview_image("JPEG", x0)
        self._show(preview)

    def evaluation(self) -> None:
        """A model is about to be called, by a sampler that calls nobody back."""
        if self.run is not None:
            self._show(None)

    def candidate(self, run: Run, candidate: Candidate) -> None:
        """A candidate is scored: a line of text, and the picture of the best so far where that is another one now."""
        self.run = run
        self.clock.add(candidate)
        comfy.model_management.throw_exception_if_processing_interrupted()  # what is remembered asks nobody else
        if candidate.recalled and time.monotonic() < self.shown + SHOW_EVERY:
            return  # they come faster than anyone can look
        self.shown = time.monotonic()
        text = tell(run, candidate)
        self._show(self._picture(run.pool, candidate.stage))
        self.console.say(text)
        send_text(text, self.node_id)

    def finished(self) -> None:
        """The search itself is over: the console's bar, which ends here, is full."""
        self.console.show(self.total)

    def end(self, image: torch.Tensor, text: str) -> None:
        """There is a winner: its image [H, W, C] and what to say of it. The image goes out as it is, without loss:
        front ends show the last preview in place of the node's output."""
        preview = None if nobody_looks() else ("PNG", to_pil(image), None)
        self.bar.update_absolute(self.total, preview=preview)
        send_text(text, self.node_id)

    def close(self) -> None:
        self.console.close()
        self.run = None  # it leads back here, and to the models: they would wait for the garbage collector

    def _show(self, preview: Any) -> None:
        # Full only at the end: winners may have to be rendered once more.
        self.value = max(self.value, min(int(self._fraction() * self.total), self.total - 1))
        self.console.show(self.value)
        self.bar.update_absolute(self.value, preview=preview)

    def _fraction(self) -> float:
        """How far the search is. What a run costs is known once stock is through."""
        share = self.clock.sampling_share
        if self.run is None:
            rows = (self.sampling.evaluations.rows - self.evaluated) / self.sampling.rows
            return share * min(rows / max(self.sampling.steps, 1), 1.0) / self.candidates
        return self.run.spending.fraction(share, len(self.run.pool.again()))

    def _picture(self, pool: Pool, stage: str) -> Any:
        """A preview of the best candidate of a stage, if it is not the one on show."""
        best = pool.log.best(0, stage)
        image = None if best.index == self.pictured or nobody_looks() else image_of(pool, best)
        if image is None:
            return None
        self.pictured = best.index
        return "JPEG", to_pil(image), min(PREVIEW_SIZE, max(image.shape[:2]))  # ComfyUI would enlarge a smaller one


def previewer_of(model: Any) -> Any:
    """What makes previews of a model's latents, or None."""
    return None if model is None else latent_preview.get_previewer(model.load_device, model.model.latent_format)


class _NoLock:
    """tqdm's own lock stays taken where it cannot print (`refresh` does not give it back), and then whoever prints from
    another thread waits for ever. A search is in one thread at a time, so it needs none."""

    def acquire(self, *how: Any, **more: Any) -> bool:
        return True

    def release(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


class _Bar(tqdm):
    _lock = _NoLock()
    monitor_interval = 0  # its thread would wait for the lock


class _ConsoleBar:
    """tqdm's bar, as long as it can be printed: a closed console, or none as in a service, costs no search."""

    def __init__(self, total: int):
        self.bar: Any = None
        if comfy.utils.PROGRESS_BAR_ENABLED:
            with suppress(Exception):
                self.bar = _Bar(total=total, desc="Noise Search")

    def show(self, value: int) -> None:
        self._try(lambda bar: bar.update(value - bar.n))

    def say(self, text: str) -> None:
        self._try(lambda bar: bar.set_postfix_str(text))

    def close(self) -> None:
        self._try(lambda bar: bar.close())

    def _try(self, work: Callable[[Any], object]) -> None:
        if self.bar is None:
            return
        try:
            work(self.bar)
        except Exception:  # whatever stands for the console may raise anything
            self.bar.disable = True  # or it would print once more when it is let go
            self.bar = None


class _Clock:
    """How much of a candidate's time its sampling takes, by those made so far."""

    def __init__(self, steps: int):
        self.sampling, self.all = float(steps), steps + 2.0  # before any is: decoding and scoring as a step each

    def add(self, candidate: Candidate) -> None:
        if candidate.index <= 1:  # candidate 0 had to load the models
            self.sampling = self.all = 0.0
        self.sampling += candidate.seconds.get("sample", 0.0)
        self.all += sum(candidate.seconds.values())

    @property
    def sampling_share(self) -> float:
        return self.sampling / self.all if self.all > 0 else 1.0


def tell(run: Run, candidate: Candidate) -> str:
    """One line about the search so far."""
    made = len(run.log.candidates)
    spent = f"{run.spending.nfe:,} of {run.spending.limit:,.0f} NFE"
    what = {DRAFT: " · drafting", PREVIEW: " · under way"}.get(candidate.stage, "")
    return f"{made} candidate{'s' if made > 1 else ''} · {spent}{what} · {_best(run.log)}"


def outcome(log: SearchLog) -> str:
    """What a search found, why it ended and what the user should know of it: a line each."""
    extra = f" (+{log.extra_nfe:,} extra)" if log.extra_nfe else ""
    spent = f"{log.nfe - log.extra_nfe:,} NFE{extra}"
    lines = [f"{_best(log)} · {spent}.", f"Ended because {log.stopped}." if log.stopped else ""]
    if log.recalled:
        known, made = len(log.recalled), len(log.candidates)
        of_all = f"{known} of {made} candidates " + ("was" if known == 1 else "were")
        lines.append(f"{of_all if made > 1 else 'It was'} known from before.")
    return "\n".join([*filter(None, lines), *log.warnings])


def image_of(pool: Pool, candidate: Candidate) -> torch.Tensor | None:
    """The image [H, W, C] of a candidate, or what is left of it: its thumbnail."""
    if (candidate.index, 0) in pool.results:
        return pool.results[candidate.index, 0].image[0]
    thumbnail = pool.log.thumbnails.get((candidate.index, 0))
    return None if thumbnail is None else (thumbnail.float() + 0.5) / 255  # so that rounding down gives it back


def _best(log: SearchLog) -> str:
    best = log.best()
    vetoes, score = log.merit(best.index)
    failing = " (fails a gate)" if vetoes else ""
    if log.count() == 1:
        return f"score {score:.4g}{failing}"
    return f"best {score:.4g} (candidate {best.index}){failing} · stock {log.merit(0)[1]:.4g}"
