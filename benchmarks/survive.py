"""Kills searches with SIGKILL at random moments, runs them again to their end, and counts what was lost.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/survive.py --kills 100

Every trial is a process without a server that searches candidates on the demo model with an evaluation store of its
own, is killed, and is run again. The searches keep an account of their own, a line for every answer of the verifier and
for every candidate that the search saw; what is counted comes from there, not from the store. The moments of the kills
are seeded and spread evenly over the whole run. A real power cut is not tried: what reached the disk's own cache is the
disk's to keep. Linux and macOS (it forks). A quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads would not survive a fork

import _pack  # noqa: F401  makes `noise_search` importable
import torch

if "COMFYUI_PATH" not in os.environ:
    raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the demo model runs inside it.")
sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args as comfy_args  # noqa: E402

comfy_args.cpu = True  # before comfy.model_management is imported

import comfy.utils  # noqa: E402
from noise_search.host.demo import load_generator  # noqa: E402
from noise_search.host.graph.graph import Graph  # noqa: E402
from noise_search.host.memory.store import Store  # noqa: E402
from noise_search.host.pictures import pixels_sha256  # noqa: E402
from noise_search.host.progress import SearchProgress  # noqa: E402
from noise_search.host.sampling.engine import Options  # noqa: E402
from noise_search.host.sampling.stock import Sampling  # noqa: E402
from noise_search.host.search import run_node  # noqa: E402
from noise_search.host.versions import comfyui_version  # noqa: E402
from noise_search.search.algorithms.draft_and_final import DraftAndFinal  # noqa: E402
from noise_search.search.algorithms.paths import SearchOverPaths  # noqa: E402
from noise_search.search.algorithms.random_search import RandomSearch  # noqa: E402
from noise_search.search.algorithms.zero_order import ZeroOrderSearch  # noqa: E402

PROMPT = "a red circle above a blue square"
SIDE, STEPS, SEED = 8, 6, 20
PATHS = SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.5)
SEARCHES: dict[str, tuple[Any, int]] = {  # algorithm, batch_size
    "one at a time": (RandomSearch(), 1),
    "batches of 8": (RandomSearch(), 8),
    "batches, automatic": (RandomSearch(), 0),
    "zero-order": (ZeroOrderSearch(), 1),
    "draft and final": (DraftAndFinal(draft_steps=2), 1),
    "paths": (PATHS, 1),
}


class Account:
    """One line of JSON per event, each written whole, so that it outlives its process."""

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **event: Any) -> None:
        os.write(self.file, json.dumps(event).encode() + b"\n")


class Red:
    """A verifier that scores the red channel and writes down every answer it gives."""

    members = ("red",)
    needs_prompt = False
    usual_range = (0.0, 1.0)

    def __init__(self, account: Account):
        self.account = account

    def identity(self) -> str:
        return "red"

    def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        values = images[..., 0].float().mean(dim=(1, 2)).reshape(-1, 1)
        self.account.write(event="answer", value=float(values[0, 0]))
        return values


@dataclass(frozen=True)
class Models:
    model: Any
    vae: Any
    conditioning: list[Any]


@torch.inference_mode()
def load() -> Models:
    model, clip, vae = load_generator()
    return Models(model, vae, [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")])


@torch.inference_mode()
def search(models: Models, name: str, candidates: int, home: Path) -> None:
    """One whole search, in the process that may be killed."""
    account = Account(home / "account.jsonl")
    algorithm, batch_size = SEARCHES[name]
    latent = {"samples": torch.zeros(1, 16, SIDE, SIDE)}
    sampling = Sampling.ksampler(models.model, STEPS, 3.0, "euler", "simple", *models.conditioning, latent)
    seen = SearchProgress.candidate

    def see(progress: SearchProgress, run: Any, candidate: Any) -> None:
        recipes = [recipe.to_dict() for recipe in candidate.recipes]
        what = [candidate.index, candidate.stage, recipes]
        account.write(event="candidate", what=what, recalled=candidate.recalled)
        seen(progress, run, candidate)

    with mock.patch.object(SearchProgress, "candidate", see):
        result = run_node(
            lambda: sampling, models.vae, Red(account), SEED, candidates, "", 1, Graph(), "positive", algorithm,
            options=Options(batch_size), store=Store(home / "store"),
        )  # fmt: skip
    log = result.log
    account.write(
        event="end",
        recipe=result.recipe,
        sha256=pixels_sha256(result.image[0]),
        values=[one.values for one in log.candidates],
        warnings=log.warnings,
        stopped=log.stopped,
    )


def fork(work: Callable[[], None], log: Path) -> int:
    """The id of a child process that does some work and ends; what it has to say goes into a file."""
    pid = os.fork()
    if pid:
        return pid
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def finish(pid: int, log: Path) -> None:
    """Waits for a child that has to succeed."""
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"A search failed:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def kill_after(pid: int, seconds: float) -> bool:
    """Whether a child was still there to be killed then."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # not waited for yet, so the id is still its own
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def events(home: Path) -> list[dict[str, Any]]:
    path = home / "account.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Trial:
    """What became of one search that was killed and run again.

    reported: candidates that the killed run had computed and its search had seen; lost: those of them that were not
    known later; computed_twice: those that were computed in both; unwritten: answers of the verifier that the killed
    run had and could not write down any more (0 or 1); differing: candidates whose values differ at all from those of
    the search that never stopped; warnings: that the search that never stopped did not have.
    """

    search: str
    moment: float
    reported: int
    lost: int
    computed_twice: int
    unwritten: int
    same_recipe: bool
    same_image: bool
    differing: int
    sound: bool
    warnings: tuple[str, ...]


def verdict(name: str, moment: float, before: list, after: list, whole: list, sound: bool) -> Trial:
    """before, after: the events of the killed run and of the one that followed; whole: of one that never stopped."""
    first = [event for event in before if event["event"] == "candidate"]
    second = {digest(event): event["recalled"] for event in after if event["event"] == "candidate"}
    computed = [digest(event) for event in first if not event["recalled"]]
    recalled = sum(second.values())
    total = sum(event["event"] == "candidate" for event in whole)
    answers = min(sum(event["event"] == "answer" for event in before), total)  # more are the winner's second render
    end, expected = after[-1], whole[-1]
    return Trial(
        search=name,
        moment=moment,
        reported=len(computed),
        lost=sum(not second.get(what, False) for what in computed),
        computed_twice=sum(second.get(what) is False for what in computed),
        unwritten=answers - recalled,
        same_recipe=end["recipe"] == expected["recipe"],
        same_image=end["sha256"] == expected["sha256"],
        differing=sum(one != other for one, other in zip(end["values"], expected["values"], strict=True)),
        sound=sound,
        warnings=tuple(warning for warning in end["warnings"] if warning not in expected["warnings"]),
    )


def digest(event: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(event["what"]).encode()).hexdigest()


def is_sound(home: Path) -> bool:
    connection = sqlite3.connect(home / "store" / "evaluations.sqlite3")
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


class Trials:
    """Searches of one kind: the one that never stops, and those that are killed."""

    def __init__(self, models: Models, name: str, candidates: int, folder: Path):
        self.models, self.name, self.candidates, self.folder = models, name, candidates, folder
        self.count = 0
        home, start = self._home(), time.monotonic()
        self._run(home)
        self.seconds = time.monotonic() - start
        self.whole = events(home)

    def _home(self) -> Path:
        self.count += 1
        home = self.folder / f"{self.name} {self.count}"
        home.mkdir()
        return home

    def _start(self, home: Path) -> int:
        return fork(lambda: search(self.models, self.name, self.candidates, home), home / "log.txt")

    def _run(self, home: Path) -> None:
        finish(self._start(home), home / "log.txt")

    def kill(self, moment: float) -> Trial | None:
        """A trial, killed at a moment from 0 (the start) to 1 (the end); None if the search was faster."""
        home = self._home()
        killed = kill_after(self._start(home), moment * self.seconds)
        before = events(home)
        if not killed or any(event["event"] == "end" for event in before):
            self.seconds *= 0.9  # the machine has become faster
            return None
        self._run(home)
        return verdict(self.name, moment, before, events(home)[len(before) :], self.whole, is_sound(home))


def trials(kills: int, candidates: int, seed: int, folder: Path, tell: Callable[[Trial], None]) -> list[Trial]:
    """This many kills, spread over the kinds of search and the whole of each run."""
    models = load()
    made: list[Trial] = []
    chance = random.Random(seed)
    kinds = {name: Trials(models, name, candidates, folder) for name in list(SEARCHES)[: max(kills, 1)]}
    share = Counter(name for name, _ in zip(list(kinds) * kills, range(kills), strict=False))
    for name, count in share.items():
        for part in range(count):
            trial = None
            while trial is None:  # on a busy machine a run may be faster than the one that was timed
                trial = kinds[name].kill((part + chance.random()) / count)
            made.append(trial)
            tell(trial)
    return made


def total(made: list[Trial]) -> dict[str, int]:
    """The counts over all trials."""
    return {
        "kills": len(made),
        "candidates reported before the kills": sum(trial.reported for trial in made),
        "of them lost": sum(trial.lost for trial in made),
        "of them computed twice": sum(trial.computed_twice for trial in made),
        "answers of the verifier cut off before they were written": sum(trial.unwritten for trial in made),
        "winners with another recipe": sum(not trial.same_recipe for trial in made),
        "winners with another image": sum(not trial.same_image for trial in made),
        "files that are not sound": sum(not trial.sound for trial in made),
        "new warnings": sum(len(trial.warnings) for trial in made),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=32, help="of each search")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    searches = f"{options.candidates} candidates, {options.kills} kills"
    print(f"ComfyUI {comfyui_version()}, torch {torch.__version__}, {searches}")
    print("\n| search | kill at | reported | lost | twice | cut off | same recipe | same image | values that differ |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)

    def tell(trial: Trial) -> None:
        print(
            f"| {trial.search} | {trial.moment:.2f} | {trial.reported} | {trial.lost} | {trial.computed_twice} | "
            f"{trial.unwritten} | {trial.same_recipe} | {trial.same_image} | {trial.differing} |",
            *trial.warnings,
            flush=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        counts = total(trials(options.kills, options.candidates, options.seed, Path(folder), tell))
    print("\n" + "\n".join(f"{count:6} {name}" for name, count in counts.items()))
    if options.json:
        options.json.write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
