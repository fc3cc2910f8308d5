"""Making winners again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..engine import Recipes
from ..log import REPLAY
from ..recipe import Jump, to_json
from ..run import Run


@dataclass(frozen=True)
class ReplayRecipe:
    """No search: the candidate of `recipes` (one for the latent batch, or one per item), those of `others`, and nothing
    else."""

    recipes: Recipes
    others: tuple[Recipes, ...] = ()
    name: str = field(default=REPLAY, init=False)

    def __call__(self, run: Run, seed: int) -> None:
        run.first(self.recipes)
        for recipes in self.others:
            run.render([recipes])

    def settings(self) -> dict[str, Any]:
        return {"recipe": to_json(list(self.recipes))}

    def path(self) -> tuple[Jump, ...]:
        return self.recipes[0].jumps
