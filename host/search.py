"""A whole search, from a node's inputs to its outputs."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import torch

from ..search.algorithms.random_search import RandomSearch
from ..search.algorithms.replay import ReplayRecipe
from ..search.algorithms.zero_order import ZeroOrderSearch
from ..search.budget import Budget
from ..search.judges import Judges, judges_of
from ..search.log import Pool, SearchLog
from ..search.recipe import METADATA, RECIPE, Recipe, portable, to_json
from ..search.remember import RememberingEngine
from ..search.run import Algorithm, BatchesMix, StaleMemory
from ..search.run import search as run_search
from ..verifiers.console import logger
from ..version import __version__
from .graph import travel
from .graph.files import contents
from .graph.finish import ended_early, finishable
from .graph.links import is_link
from .graph.prompt_text import (
    FoundPrompt,
    all_nodes,
    find_prompt,
    host_input_types,
    host_is_own,
    host_output_names,
)
from .graph.prompt_words import has_system_text, is_empty, plain_text
from .graph.travel import Winners
from .memory.content import Content
from .memory.key import files_behind, read_search
from .memory.store import Store, StoredMemory
from .pictures import as_saved, coarse
from .progress import SearchProgress, outcome, send_text
from .sampling.engine import ComfyEngine, Options, Result, join_rows
from .sampling.noise import RecipeNoise
from .sampling.stock import Sampling
from .sampling.trajectory import Trajectories

NOT_MADE_AGAIN = "The winner that this picture's workflow carries cannot be made again"
SEARCH_AGAIN = "To search anew, change any input of this node, such as the seed."
log_to_console = logger(__name__)


@dataclass(frozen=True)
class Graph:
    """Where in the user's graph a node runs: what ComfyUI hands over as hidden inputs."""

    node_id: str | None = None
    prompt: Mapping[str, Any] | None = None
    extra_pnginfo: dict[str, Any] | None = None

    @classmethod
    def of(cls, hidden: Any) -> Graph:
        if hidden is None:  # outside an execution
            return cls()
        return cls(hidden.unique_id, all_nodes(hidden.dynprompt), getattr(hidden, "extra_pnginfo", None))

    @property
    def runs(self) -> list[Any]:
        """What this node wrote into the metadata so far, an entry for each time that it ran in this prompt."""
        runs = self.searches.get(self.node_id)
        return list(runs) if isinstance(runs, list) else []

    @property
    def searches(self) -> dict[str | None, Any]:
        """What all nodes wrote there; a client may have sent anything."""
        searches = (self.extra_pnginfo or {}).get(METADATA)
        return searches if isinstance(searches, dict) else {}

    def uses(self, output: str) -> bool:
        """Whether a node takes this output of the node; also where that cannot be told."""
        prompt = self.prompt or {}
        names = host_output_names(prompt.get(str(self.node_id), {}).get("class_type", ""))
        if output not in names:
            return True
        link = [self.node_id, names.index(output)]
        return any(link == one for node in prompt.values() for one in node.get("inputs", {}).values())

    def typed(self, name: str) -> bool:
        """Whether the value of an input stands in the node itself, so that nothing is linked to it."""
        node = (self.prompt or {}).get(str(self.node_id), {})
        return not is_link(node.get("inputs", {}).get(name))

    @cached_property
    def files(self) -> dict[str, str]:
        """What is in the files that this node and those before it name."""
        return contents(self.prompt, self.node_id)

    @property
    def workflow(self) -> Any:
        """What the browser shows of this graph; a client need not send it."""
        return (self.extra_pnginfo or {}).get("workflow")

    def winners(self, seed: int | None = None) -> Winners | None:
        """What the workflow itself says that this run finds: it comes from a saved picture, and nothing is changed.
        Raises travel.Unusable where it says so in a way that cannot be used. seed: the node's."""
        return travel.find(self.workflow, self.prompt, self.node_id, len(self.runs), seed, lambda: self.files)

    def replaced_files(self) -> list[str]:
        """The names of files that are others than those that the winners in the workflow were made with."""
        return travel.replaced(self.workflow, self.prompt, self.node_id, lambda: self.files)


@dataclass(frozen=True)
class SearchResult:
    """latent, denoised: LATENT of the winners; image: [B, H, W, C]; noise: NOISE that makes the winners again;
    top_images, top_recipes: of rank 1, 2, ...; an image [B, H, W, C] and a recipe per item each;
    text: what the node says of it."""

    latent: dict[str, Any]
    denoised: dict[str, Any]
    image: torch.Tensor
    noise: RecipeNoise
    seed: int
    recipe: str
    log: SearchLog
    top_images: list[torch.Tensor]
    top_recipes: tuple[tuple[Recipe, ...], ...]
    text: str


def verifier_prompt(text: str | None, judges: Judges, graph: Graph, start: str) -> FoundPrompt:
    """What the verifier is told, and where it came from: the text at the input `prompt`, or what stands behind `start`.
    Raises ValueError where there are no words in it, and PromptNotFound."""
    if text is not None and not is_empty(text):
        typed = graph.typed("prompt")
        words = plain_text(text, typed)
        if not words and judges.needs_prompt:
            raise ValueError(
                f"there are no words in 'prompt' ({text.strip()[:80]!r}), only what means something to the model, so "
                "the verifier would judge by nothing: type what the image should show"
            )
        return FoundPrompt(words, "the prompt widget" if typed else "the text linked to 'prompt'", text)
    if not judges.needs_prompt:
        return FoundPrompt("", "none needed")
    return find_prompt(
        graph.prompt or {}, str(graph.node_id), start, host_output_names, host_input_types, plain_text, host_is_own
    )


def verifier_prompts(texts: Sequence[str | None], judges: Judges, graph: Graph, start: str) -> list[FoundPrompt]:
    """The same for a list of texts at `prompt`, one for each candidate or one for all. One without words has none, and
    whoever scores by it says which it is."""
    if len(texts) == 1 or all(map(is_empty, texts)):
        return [verifier_prompt(texts[0], judges, graph, start)]
    typed = graph.typed("prompt")
    return [FoundPrompt(plain_text(text, typed), "the list at 'prompt'", text or "") for text in texts]


def system_text_notes(told: Sequence[FoundPrompt], judges: Judges) -> list[str]:
    """That the verifier was not told a system text, where that text would have taken the place of the prompt."""
    texts = [one.whole for one in told if has_system_text(one.whole)]
    start = "The verifier was told only what comes after '<Prompt Start>': of the whole text"
    return [f"{start} {sentence}" for sentence in judges.cuts(texts)]


def comfyui_version() -> str:
    """The host's version, or "unknown" where it does not say."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return "unknown"
    return version


def host_info() -> dict[str, str]:
    return {"comfyui": comfyui_version(), "noise_search": __version__, "torch": torch.__version__}


def search(
    make_sampling: Callable[[], Sampling],
    vae: Any,
    verifier: Any,
    seed: int,
    candidates: int,
    typed_prompt: str | None,
    top_k: int,
    graph: Graph,
    prompt_behind: str,
    algorithm: Algorithm | None = None,
    budget: Budget | None = None,
    options: Options | None = None,
    drop_bad: bool = False,
    store: Store | None = None,
) -> SearchResult:
    """A search worth `candidates` stock images, or less where `budget` says so.

    algorithm: Random Search if left out. drop_bad: leave out candidates without a score (NaN images). store: where what
    is computed is kept, and looked up before it is computed. Raises ValueError on inputs that cannot be searched.
    """
    judges = judges_of(verifier)
    told = verifier_prompt(typed_prompt, judges, graph, prompt_behind)
    prompt, source = told.text, told.source
    log_to_console.info("Noise Search: the verifier reads %r (from %s)", prompt, source)
    sampling = make_sampling()
    sampling.check()
    algorithm = algorithm or RandomSearch()
    if sampling.steps and (candidates > 1 or isinstance(algorithm, ReplayRecipe)):
        check_search(algorithm, sampling)
    if isinstance(algorithm, ReplayRecipe):
        candidates = 1
    if sampling.steps == 0:
        if candidates > 1:
            log_to_console.warning("Noise Search: nothing to sample (no steps or denoise 0), so there is one candidate")
        candidates, algorithm = 1, algorithm if isinstance(algorithm, ReplayRecipe) else RandomSearch()
    budget = replace(budget or Budget(), candidates=candidates)
    with finishable(graph.node_id) as finish:
        job = _Job(sampling, vae, judges, prompt, source, seed, top_k, graph, options or Options(), drop_bad, finish)
        job.notes += system_text_notes([told], judges) + judges.cuts([prompt])
        try:
            with ExitStack() as stack:
                if store is not None:
                    job.memory = stack.enter_context(job.remembered_in(store, algorithm))
                winners = None if isinstance(algorithm, ReplayRecipe) else job.winners()
                pool = job.remake(winners, candidates) if winners else job.run(algorithm, budget)
        except BaseException as error:  # ComfyUI will say that the job failed
            send_text(job.what_is_left(error), graph.node_id)
            raise
    log = pool.log
    if log.early:
        ended_early(graph.node_id)
    log.warnings += job.notes
    if job.memory is not None:
        log.warnings += [*job.memory.notes, *filter(None, [job.memory.problem])]
    for warning in log.warnings:
        log_to_console.warning("Noise Search: %s", warning)
    result = collect(pool, sampling)
    job.progress.end(result.image[0], result.text)
    if winners:  # not all of them need be made again
        result = replace(result, top_recipes=winners.recipes)
    write_metadata(result, prompt, graph)
    return result


def check_search(algorithm: Algorithm, sampling: Sampling) -> None:
    """Raises ValueError where an algorithm cannot do anything with this sampling, before anything is sampled."""
    if algorithm.path():
        Trajectories(sampling).check(algorithm.path()[0].start)
    if isinstance(getattr(algorithm, "inner", algorithm), ZeroOrderSearch) and sampling.latent["samples"].is_nested:
        raise ValueError(
            f"{algorithm.name} turns noises, which cannot be done for a latent made of several tensors (audio with "
            "video). Use Random Search."
        )


@dataclass
class _Job:
    """A search and what it needs. memory: of what was computed before; notes: what the user should know; not_kept: why
    what it computes is no use to the next search. untrusted: the evaluations and seconds of a search in batches that
    was made again one at a time."""

    sampling: Sampling
    vae: Any
    judges: Judges
    prompt: str
    source: str
    seed: int
    top_k: int
    graph: Graph
    options: Options
    drop_bad: bool
    finish: Callable[[], bool]
    memory: StoredMemory | None = None
    notes: list[str] = field(default_factory=list)
    files: Sequence[tuple[str, int, int]] = ()
    not_kept: str = ""
    progress: SearchProgress = field(init=False)
    untrusted: tuple[int, float] = (0, 0.0)

    @contextmanager
    def remembered_in(self, store: Store, algorithm: Algorithm) -> Iterator[StoredMemory | None]:
        """The memory of all searches of this content, or None where there is none to be had."""
        content = self._content() if store.settings().enabled else None
        if content is None:
            yield None
            return
        if content.changed:
            self.notes.append(
                f"{content.changed[0]} is not what the last search left there. If nothing that you set has changed, "
                "something else ran with it, and this search may not find what was computed before."
            )
        try:
            with store.memory(content.digest(), self.prompt, algorithm.name) as memory:
                yield memory
        finally:
            self._see_what_is_left(content)

    def _content(self, before: Content | None = None) -> Content | None:
        """What all searches of this content have in common, or None where it cannot be told."""
        try:
            files = self.files if before else files_behind(self.graph.prompt, self.graph.node_id)
            self.files, frames = files, self.options.frames
            return read_search(self.sampling, self.vae, self.judges, self.prompt, frames, host_info(), files, before)
        except Exception as error:  # nodes of any pack may be behind it; a search must not fail for its memory
            after = " the next time" * (before is not None)
            self.not_kept = f"The candidates of this search are not remembered{after}: {error}"
            self.notes.append(self.not_kept)
            return None

    def _see_what_is_left(self, before: Content) -> None:
        """Learns what the search left in the objects that it used. Says where something else has changed: the next
        search would find nothing, and nobody would know why."""
        after = self._content(before)
        if after is not None and after.digest() != before.digest():
            self.not_kept = (
                f"Sampling changed {after.differs_at(before)}, which is part of what the candidates are remembered by: "
                "the next run of this search may not find them."
            )
            self.notes.append(self.not_kept)

    def run(self, algorithm: Algorithm, budget: Budget) -> Pool:
        """Searches. What is remembered and turns out to be wrong is set aside and computed anew, and so is what was
        sampled in batches that mix their candidates: one at a time."""
        memory = self.memory
        while True:
            try:
                return self._attempt(algorithm, budget, memory)
            except StaleMemory as stale:
                assert memory is not None
                count = memory.set_aside()
                text = f"What was remembered of this search no longer fits ({stale}): "
                if count:
                    text += "something changed that does not show in the inputs. "
                    text += f"{count} candidates were set aside and the search made anew."
                else:
                    memory = None
                    text += "the scores are other ones each time, so nothing was taken from memory."
                    self.not_kept = text
                self.notes.append(text)
            except BatchesMix as mixed:
                self.options = replace(self.options, batch_size=1)
                if self.memory is not None:
                    self.memory.set_aside_batches()
                self.notes.append(
                    f"{mixed}. So nothing that was sampled in batches was trusted, and the search made anew, one "
                    "candidate at a time. Set batch_size to 1."
                )

    def what_is_left(self, error: BaseException) -> str:
        """What to tell the user of a search that came to no result."""
        cancelled = isinstance(error, comfy.model_management.InterruptProcessingException)
        how = "Cancelled." if cancelled else "Ended by an error."
        memory = self.memory
        if memory is None or self.not_kept:
            return f"{how} {self.not_kept or 'Nothing is kept: storing searches is off.'}"
        if memory.problem:
            return f"{how} {memory.problem}"
        if not memory.works:
            return f"{how} No image was scored yet."
        count = memory.left
        images = "1 image is" if count == 1 else f"{count:,} images are"
        # The limit of the store may have left some out.
        all_of_it = "Nothing is lost: " if count == len(memory.works) else ""
        return f"{how} {all_of_it}{images} kept, and Run goes on from there."

    def winners(self) -> Winners | None:
        """What a saved picture found, where this is its search. Raises ValueError where it cannot be used."""
        try:
            winners = self.graph.winners(self.seed)
        except travel.Unusable as error:
            raise ValueError(f"{NOT_MADE_AGAIN}: {error}. {SEARCH_AGAIN}") from None
        if winners is None and (names := self.graph.replaced_files()):
            self.notes.append(
                f"{', '.join(names):.300} here is not what this workflow's picture was made with, so it searched."
            )
        return winners

    def remake(self, winners: Winners, candidates: int) -> Pool:
        """What a saved picture found, at the cost of its winners. Raises ValueError where they cannot be made here.
        candidates: of the search that found them, which bounds what its recipes can be."""
        wanted = self.top_k if self.graph.uses("top_images") else 1
        recipes, *others = ranks = winners.recipes[:wanted]
        try:
            if not all(self._can_come_from(candidates, recipe) for rank in ranks for recipe in rank):
                raise ValueError("no search of this workflow finds such a recipe")
            most = sum(1 + len(recipe.jumps) for rank in ranks for recipe in rank)  # stock runs; a jump adds up to one
            pool = self.run(ReplayRecipe(recipes, tuple(others)), Budget(2 * most))
        except ValueError as error:
            raise ValueError(f"{NOT_MADE_AGAIN}: {error}. {SEARCH_AGAIN}") from error
        pool.log.stopped = "the picture's own recipe was made again; change any input to search"
        if difference := self._difference(winners, pool):
            self.notes.append(
                f"This is the winner in this workflow, but not the saved picture: {difference}. The model, another "
                f"file or its precision is not what it was. {SEARCH_AGAIN}"
            )
        return pool

    def _difference(self, winners: Winners, pool: Pool) -> str:
        """What tells the winner in the pool from the saved one, in words; "" for nothing."""
        pictures = coarse(result.image for result in pool.top(0))
        scores = pool.log.candidates[0].values
        return travel.difference(winners, scores, pictures, score_limits(pool.log))

    def _can_come_from(self, candidates: int, recipe: Recipe) -> bool:
        """Whether a search of so many candidates may find this: a picture may come from anybody, and a recipe may ask
        for thousands of draws."""
        evaluations = candidates * max(self.sampling.steps, 1)  # a move and a jump took one or more each
        return (
            max(len(recipe.moves), len(recipe.jumps)) <= evaluations
            and recipe.batch in (None, self.sampling.items)
            and len(recipe.batch_index or ()) <= self.sampling.items
        )

    def _attempt(self, algorithm: Algorithm, budget: Budget, memory: StoredMemory | None) -> Pool:
        sampling = self.sampling
        candidates = budget.candidates
        self.progress = SearchProgress(sampling, candidates, self.graph.node_id)
        engine = ComfyEngine(
            sampling, self.vae, self.judges, self.prompt, self.progress.step, candidates, self.options, self.finish
        )
        remembering = None if memory is None else RememberingEngine(engine, memory)
        limits = {key: value for key, value in asdict(budget).items() if value is not None}
        settings = {**sampling.settings, "seed": self.seed, **limits, "prompt": self.prompt, "prompt_from": self.source}
        log = SearchLog(
            engine.members,
            engine.rows,
            self.judges.aggregator,
            algorithm=algorithm.name,
            settings={**settings, **algorithm.settings()},
            host=host_info(),
            usual_ranges=self.judges.usual_ranges,
            noisy=self.judges.noisy,
        )
        pool = Pool(log, keep=self.top_k)
        before, started = sampling.evaluations.rows, time.perf_counter()
        on_candidate = self.progress.candidate
        try:
            run_search(
                algorithm, remembering or engine, pool, self.seed, budget, on_candidate, self.drop_bad, self.finish
            )
            self.progress.finished()
        except BatchesMix:
            again = [one for one in log.candidates if memory is not None and not one.together and not one.recalled]
            self.untrusted = (
                sampling.evaluations.rows - before - sum(one.nfe for one in again),
                max(time.perf_counter() - started - sum(sum(one.seconds.values()) for one in again), 0.0),
            )
            raise
        finally:
            self.progress.close()
            engine.on_step = None  # it leads back to the engine: the models would wait for the garbage collector
        log.extra_nfe += engine.batches.extra_nfe + (remembering.extra_nfe if remembering else 0)
        log.extra_nfe += self.untrusted[0]
        log.extra_seconds += engine.batches.extra_seconds + self.untrusted[1]
        self.notes += engine.batches.notes
        return pool


def score_limits(log: SearchLog) -> list[float]:
    """How far the scores of the same picture may be apart on two machines, for each member."""
    limits = []
    for member in range(len(log.members)):
        usual = (log.usual_ranges or {member: None})[member]
        size = max(abs(row[member]) for row in log.candidates[0].values)
        limit = travel.RANGE_APART * (usual[1] - usual[0]) if usual is not None else travel.VALUE_APART * size
        limits.append(math.inf if member in log.noisy else limit)
    return limits


def collect(pool: Pool, sampling: Sampling) -> SearchResult:
    """The winners of every row, put together as one batch."""
    log = pool.log
    ranks: list[list[Result]] = [list(pool.top(rank)) for rank in range(min(pool.keep, len(log.of_stage())))]
    best = ranks[0]
    recipes = log.winners()
    return SearchResult(
        latent={**sampling.latent, "samples": join_rows([result.samples for result in best])},
        denoised={**sampling.latent, **sampling.ratios, "samples": join_rows([result.denoised for result in best])},
        image=join_images([result.image for result in best]),
        noise=RecipeNoise(recipes),
        seed=recipes[0].seed,
        recipe=to_json(recipes),
        log=log,
        top_images=[join_images([result.image for result in rank]) for rank in ranks],
        top_recipes=tuple(
            tuple(log.candidates[log.order(row)[rank]].recipes[row] for row in range(log.rows))
            for rank in range(len(ranks))
        ),
        text=outcome(log),
    )


def join_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """One batch; a single image is not copied."""
    return images[0] if len(images) == 1 else torch.cat(list(images))


def write_metadata(result: SearchResult, prompt: str, graph: Graph) -> None:
    """Puts the winner's recipe where ComfyUI's image savers find it: in the PNG's text, beside the workflow.

    ComfyUI writes it into every picture that is saved after the search, so `sha256` says which one is meant: that of
    the winner's 8-bit RGB pixels, one per image. A node that runs several times in one prompt adds an entry each time.
    """
    if graph.extra_pnginfo is None or graph.node_id is None:
        return
    entry = {
        RECIPE: result.recipe,
        "seed": result.seed,
        "score": [winner["score"] for winner in result.log.to_dict()["winners"]],
        "prompt": prompt,
        "sha256": [pixels_sha256(image) for image in result.image],
    }
    runs, log = graph.runs, result.log
    best = tuple(log.best(row).values[row] for row in range(log.rows))
    winners = Winners(result.top_recipes, best, coarse([result.image]))
    travel.leave(graph.workflow, graph.prompt, graph.node_id, len(runs), winners, lambda: graph.files)
    graph.extra_pnginfo[METADATA] = {**graph.searches, graph.node_id: [*runs, portable(entry)]}


def pixels_sha256(image: torch.Tensor) -> str:
    """SHA-256 of an image [H, W, C] as ComfyUI's savers write it."""
    return hashlib.sha256(as_saved(image).tobytes()).hexdigest()
