"""Which searches a sampling allows."""

from __future__ import annotations

from ...search.algorithm import Algorithm, typical_jumps
from ...search.algorithms.random_search import RandomSearch
from ...search.algorithms.replay import ReplayRecipe
from ...search.algorithms.zero_order import ZeroOrderSearch
from ...verifiers.console import logger
from .stock import Sampling
from .trajectory import Trajectories

log_to_console = logger(__name__)


def feasible(algorithm: Algorithm, candidates: int, sampling: Sampling) -> tuple[Algorithm, int]:
    """The search that can be made, and its candidates: one where there is nothing to vary. Raises ValueError where the
    algorithm cannot do anything with this sampling, before anything is sampled."""
    replays = isinstance(algorithm, ReplayRecipe)
    if sampling.steps and (candidates > 1 or replays):
        check_search(algorithm, sampling)
    if sampling.steps == 0 and candidates > 1 and not replays:
        log_to_console.warning("Noise Search: nothing to sample (no steps or denoise 0), so there is one candidate")
    if replays:
        return algorithm, 1
    return (algorithm, candidates) if sampling.steps else (RandomSearch(), 1)


def check_search(algorithm: Algorithm, sampling: Sampling) -> None:
    """Raises ValueError where an algorithm cannot do anything with this sampling, before anything is sampled."""
    if jumps := typical_jumps(algorithm):
        Trajectories(sampling).check(jumps[0].start)
    if isinstance(getattr(algorithm, "inner", algorithm), ZeroOrderSearch) and sampling.latent["samples"].is_nested:
        raise ValueError(
            f"{algorithm.name} turns noises, which cannot be done for a latent made of several tensors (audio with "
            "video). Use Random Search."
        )
