"""Random Search."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .engine import Engine, Rendered
from .log import Candidate, Pool
from .recipe import Recipe


def random_search(engine: Engine, seed: int, candidates: int) -> Iterator[Rendered]:
    """Best of N independent noises (Random Search, Ma et al., arXiv 2501.09732, section 3.2).

    Candidate j is the stock run with `seed + j` (modulo 2**64), so candidate 0 is the image without any search.
    """
    for j in range(candidates):
        yield from engine.render([Recipe.from_seed(seed + j)])


def run(
    algorithm: Iterator[Rendered],
    engine: Engine,
    pool: Pool,
    on_candidate: Callable[[Pool, Candidate], None] | None = None,
) -> Pool:
    """Drives an algorithm to its end, writing every candidate into the pool as it comes.

    Candidates that a rank-based order brought back among the best after their results were let go are rendered again.
    """
    for rendered in algorithm:
        candidate = pool.add(rendered)
        if on_candidate is not None:
            on_candidate(pool, candidate)
    for index in pool.missing():
        [rendered] = engine.render([pool.log.candidates[index].recipe])
        pool.restore(index, rendered)
    return pool
