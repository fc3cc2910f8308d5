"""What a search is: an algorithm over noises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .recipe import Jump

if TYPE_CHECKING:
    from .run import Run


class Algorithm(Protocol):
    """A way to search. Renders stock first, then goes on until its run says that the budget is spent.

    They stand in `algorithms/`, each a small frozen dataclass.
    """

    @property
    def name(self) -> str:
        """For people, such as "random search"."""
        ...

    def __call__(self, run: Run, seed: int) -> None: ...

    def settings(self) -> Mapping[str, Any]:
        """What the log should say of it."""
        ...


@runtime_checkable
class Jumping(Protocol):
    """An algorithm whose trajectories go back up in noise."""

    def path(self) -> Sequence[Jump]:
        """The jumps of a typical candidate, so that Draft and Final can price a final."""
        ...


def typical_jumps(algorithm: Algorithm) -> Sequence[Jump]:
    """Where a typical candidate of this algorithm goes back up in noise; nowhere, for most."""
    return algorithm.path() if isinstance(algorithm, Jumping) else ()
