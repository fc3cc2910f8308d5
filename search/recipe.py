"""Recipes: small JSON descriptions from which a noise is rebuilt bit for bit."""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import math
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

import torch

SEED_RANGE = 2**64
LARGEST_EXACT = 2**53 - 1  # of the whole numbers that every reader of JSON keeps: a browser's numbers are doubles
MAX_MOVES = 4096
MAX_BATCH = 4096
MOST_MOVES = 2**18  # moves and jumps of all recipes of one text
MOST_ROWS = 2**21  # single noises that the recipes of one text may have drawn or turned: see `cost`
CHUNK = 2**20  # numbers drawn at a time where not all are kept; a multiple of BLOCK
BLOCK = 16  # torch draws normal numbers in blocks of this many, from as many random words
METADATA = "noise_search"  # the entry of a picture's metadata that holds winners
RECIPE = "recipe"  # in it, what a winner is made again from
MOST_SHOWN = 4  # of several winners in an error
MAX_DEPTH = 8  # of texts within texts
WRAPPERS = " \t\r\n\ufeff\u200b\xa0'\"`\u201c\u201d\u2018\u2019"  # what may be around a text that was copied
FORMAT_VERSION = 1
Draw = Callable[[tuple[int, ...], int, tuple[int, ...] | None, Sequence[int]], torch.Tensor]
Check = Callable[[], None]


class RecipeError(ValueError):
    """A recipe that cannot be read. The message repeats the offending part."""


@dataclass(frozen=True)
class Rotate:
    """Turn the noise by `angle` degrees (0 to 180) towards a random direction drawn from `seed`.

    The step of Zero-Order Search (Ma et al., arXiv 2501.09732, section 3.2): with u the unit noise and w a random
    unit vector orthogonal to it, y = |x| (cos(angle) u + sin(angle) w). Keeps the norm of each item of the batch.
    The direction has nothing to do with the noise that the same seed draws. Moves in a row need different seeds.
    Raises ValueError for a noise that has no direction: of zeros (no noise at all), or of one element per item.
    """

    seed: int
    angle: float

    def __call__(self, noise: torch.Tensor) -> torch.Tensor:
        """The turned noise. noise: [B, ...], the whole batch."""
        return self.turn(noise, directions(tuple(noise.shape), self.seed, range(noise.shape[0])))

    def turn(self, noise: torch.Tensor, toward: torch.Tensor) -> torch.Tensor:
        """The items of `noise`, each turned towards its own of the `directions` of this seed."""
        turned = [self._turn(*pair) for pair in zip(noise.split(1), toward.split(1), strict=True)]
        return torch.cat(turned) if len(turned) > 1 else turned[0]

    def _turn(self, noise: torch.Tensor, toward: torch.Tensor) -> torch.Tensor:
        x = noise.to(torch.float64).flatten(1)
        norm = _steady(x.norm(dim=1, keepdim=True))
        if x.shape[1] < 2 or not ((norm > 0) & norm.isfinite()).all():
            raise ValueError(
                f"a noise of shape {tuple(noise.shape[1:])} cannot be turned: it needs at least two finite numbers "
                "that are not all 0"
            )
        u = x / norm
        v = toward.to(torch.float64).flatten(1)
        v = v - _steady((v * u).sum(dim=1, keepdim=True)) * u
        w = v / _steady(v.norm(dim=1, keepdim=True))
        angle = math.radians(self.angle)
        return (norm * (math.cos(angle) * u + math.sin(angle) * w)).reshape(noise.shape).to(noise.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {"move": "rotate", "seed": self.seed, "angle": self.angle}


@dataclass(frozen=True)
class Jump:
    """A step of Search over Paths: once sampled down to noise level `start`, go back up to level `to` with fresh noise.

    Levels are 1 (noise) to 0 (clean), as the paper's t. `seed` draws the fresh noise, for the recipe's own batch. With
    `to` equal to `start` there is none: sampling only paused there, which makes for other steps.
    """

    seed: int
    start: float
    to: float

    def to_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "from": self.start, "to": self.to}


@dataclass(frozen=True)
class Recipe:
    """How to make one noise, and the path from there where it is not the straight one.

    `seed` (0 to 2**64 - 1) draws a noise of `batch` items as ComfyUI's KSampler does for that seed; `moves` are applied
    in turn; `row` then picks one item, or None keeps them all. `batch` None means: as many as the latent has.
    `batch_index` is the LATENT's list of that name (one draw per index, as "Latent From Batch" leaves behind).
    `jumps` are what happens while sampling; without any, the noise is all that makes the image.
    """

    seed: int
    moves: tuple[Rotate, ...] = ()
    row: int | None = None
    batch: int | None = None
    batch_index: tuple[int, ...] | None = None
    jumps: tuple[Jump, ...] = ()

    @classmethod
    def from_seed(cls, seed: int) -> Recipe:
        """The noise of the stock KSampler with this seed; seeds wrap modulo 2**64."""
        return cls(seed=seed % SEED_RANGE)

    def with_seed(self, seed: int) -> Recipe:
        """The plain noise of another seed, for the same item of the same batch."""
        return replace(self, seed=seed % SEED_RANGE, moves=(), jumps=())

    def then(self, move: Rotate) -> Recipe:
        return replace(self, moves=(*self.moves, move))

    def jump(self, jump: Jump) -> Recipe:
        return replace(self, jumps=(*self.jumps, jump))

    def for_batch(self, batch: int, batch_index: tuple[int, ...] | None = None) -> Recipe:
        """The same recipe with the batch it was drawn in written down, so that a row can be picked later."""
        return replace(self, batch=batch, batch_index=batch_index)

    def for_row(self, row: int) -> Recipe:
        """Item `row` of this recipe's batch alone."""
        if self.batch is None or not 0 <= row < self.batch:
            raise ValueError(f"row {row} is not in a batch of {self.batch}")
        return replace(self, row=row)

    def for_items(self, batch: int, batch_index: tuple[int, ...] | None = None) -> tuple[Recipe, ...]:
        """One recipe for each item of the batch that this one makes; a batch of one needs nothing written down."""
        if batch == 1:
            return (self if batch_index is None else self.for_batch(1, batch_index),)
        whole = self.for_batch(batch, batch_index)
        return tuple(whole.for_row(row) for row in range(batch))

    def noise(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        source: Draw | None = None,
        check: Check = lambda: None,
    ) -> torch.Tensor:
        """The noise on the CPU, as `noises` of this recipe alone makes it.

        shape: the latent's shape [B, C, ...]; B is replaced by the recipe's own batch where it has one. Returns
        [batch, C, ...], or [1, C, ...] if the recipe picks a row.
        """
        return noises([self], shape, dtype, source, check)

    def drawn_in(self, batch: int) -> int:
        """The size of the batch that the noise is drawn in, for a latent of `batch` items."""
        if self.batch is not None:
            return self.batch
        return batch if self.batch_index is None else len(self.batch_index)

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"version": FORMAT_VERSION, "seed": self.seed}
        if self.moves:
            data["moves"] = [move.to_dict() for move in self.moves]
        if self.row is not None:
            data["row"] = self.row
        if self.batch is not None:
            data["batch"] = self.batch
        if self.batch_index is not None:
            data["batch_index"] = list(self.batch_index)
        if self.jumps:
            data["jumps"] = [jump.to_dict() for jump in self.jumps]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """Reads what `to_dict` wrote; anything else raises RecipeError."""
        if not isinstance(data, dict):
            raise RecipeError(f'a recipe is a JSON object such as {{"seed": 42}}, not {_short(data)}')
        unknown = sorted(set(map(str, data)) - {"version", "seed", "moves", "row", "batch", "batch_index", "jumps"})
        if unknown:
            raise RecipeError(f"unknown recipe entries {_short(unknown)}; was it made by a newer Noise Search?")
        version = _integer("version", data.get("version", FORMAT_VERSION), 1, 2**31)
        if version != FORMAT_VERSION:
            raise RecipeError(f"recipe version {version} is newer than this Noise Search reads ({FORMAT_VERSION})")
        seed = _seed("seed", data.get("seed"))
        batch, row = data.get("batch"), data.get("row")
        if batch is not None:
            _integer("batch", batch, 1, MAX_BATCH)
        if row is not None and (batch is None or _integer("row", row, 0, MAX_BATCH) >= batch):
            raise RecipeError(f"recipe row {_short(row)} is not in its batch of {_short(batch)}")
        moves = data.get("moves", [])
        if not isinstance(moves, list) or len(moves) > MAX_MOVES:
            raise RecipeError(f"recipe moves must be a list of at most {MAX_MOVES}, not {_short(moves)}")
        index = data.get("batch_index")
        if index is not None:
            good = isinstance(index, list) and 0 < len(index) <= MAX_BATCH
            if not good or not all(type(i) is int and 0 <= i < MAX_BATCH for i in index):
                raise RecipeError(f"recipe batch_index must be a list of whole numbers, not {_short(index)}")
            if batch is not None and len(index) != batch:
                raise RecipeError(f"recipe batch_index {_short(index)} does not name {batch} items")
        jumps = data.get("jumps", [])
        if not isinstance(jumps, list) or len(jumps) > MAX_MOVES:
            raise RecipeError(f"recipe jumps must be a list of at most {MAX_MOVES}, not {_short(jumps)}")
        return cls(
            seed,
            tuple(map(_move, moves)),
            row,
            batch,
            tuple(index) if index is not None else None,
            tuple(map(_jump, jumps)),
        )


def one_draw(recipes: Sequence[Recipe]) -> Recipe | None:
    """The recipe of the whole batch whose items in order these are, or None where they do not come from one draw."""
    first = recipes[0]
    if len(recipes) == 1:
        return first
    whole = replace(first, row=None)
    rows = [replace(whole, row=row) for row in range(len(recipes))]
    return whole if first.batch == len(recipes) and list(recipes) == rows else None


def derive(seed: int, *names: int | str) -> int:
    """Another seed (0 to 2**64 - 1), the same for the same arguments and unrelated to the noise of `seed`."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def noises(
    recipes: Sequence[Recipe],
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    source: Draw | None = None,
    check: Check = lambda: None,
    kept: Kept | None = None,
) -> torch.Tensor:
    """The noises of several recipes on the CPU, one after the other in one tensor.

    Only the rows that the recipes pick are kept and turned, and what several of them share is drawn once: a batch
    takes as long as its items, and memory for them alone. shape: as in `Recipe.noise`. source: draws the rows of a
    seed's noise (default `draw`). check: called again and again; what it raises (Cancel) ends the work. kept: noises of
    earlier calls with this source, so that one that goes on from them by a move costs that move alone.
    """
    batches = [recipe.drawn_in(shape[0]) for recipe in recipes]
    rows = [list(range(b)) if r.row is None else [r.row] for r, b in zip(recipes, batches, strict=True)]
    parts: list[Any] = [None] * len(recipes)
    for (seed, batch, index), members in _draws(recipes, batches).items():
        check()
        wanted = [row for member in members for row in rows[member]]
        found = (source or partial(draw, check=check))((batch, *shape[1:]), seed, index, wanted)
        for member, part in zip(members, found.split([len(rows[member]) for member in members]), strict=True):
            parts[member] = part
    kept, begun = kept or Kept(0), [0] * len(recipes)
    keys = [Kept.key(r, b, shape, part.dtype) for r, b, part in zip(recipes, batches, parts, strict=True)]
    for member, recipe in enumerate(recipes):
        for done in range(len(recipe.moves), max(len(recipe.moves) - 2, 0), -1):
            known = kept.find(keys[member](done))
            if known is not None:
                parts[member], begun[member] = known, done
                break
    for (seed, batch), turns in _turns(recipes, batches, begun):
        check()
        wanted = [row for member, _ in turns for row in rows[member]]
        found = directions((batch, *shape[1:]), seed, wanted, check)
        shares = found.split([len(rows[member]) for member, _ in turns])
        for (member, move), share in zip(turns, shares, strict=True):
            check()
            parts[member] = move.turn(parts[member], share)
    for member, recipe in enumerate(recipes):
        if recipe.moves:
            kept.keep(keys[member](len(recipe.moves)), parts[member])
    # a copy where it may be kept: whoever samples from it may write into it
    return (torch.cat(parts) if len(parts) > 1 or recipes[0].moves else parts[0]).to(dtype)


class Kept:
    """The turned noises that were made last, up to a number of bytes. A search by moves makes each from another."""

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self.noises: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    @staticmethod
    def key(recipe: Recipe, batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[int], tuple]:
        """Gives, for a number of moves done, the key under which that noise is kept."""
        made = recipe.seed, recipe.row, batch, recipe.batch_index, shape[1:], dtype
        return lambda done: (*made, recipe.moves[:done])

    def find(self, key: tuple) -> torch.Tensor | None:
        if key in self.noises:
            self.noises.move_to_end(key)
        return self.noises.get(key)

    def keep(self, key: tuple, noise: torch.Tensor) -> None:
        if self.find(key) is not None or noise.nbytes > self.most:
            return
        self.noises[key] = noise.clone()  # not a view of the batch that it came from
        self.bytes += noise.nbytes
        while self.bytes > self.most:
            self.bytes -= self.noises.popitem(last=False)[1].nbytes


def _draws(recipes: Sequence[Recipe], batches: Sequence[int]) -> dict[tuple, list[int]]:
    """Which recipes (by number) begin with the same draw: of (seed, batch, batch_index). That of the last recipe comes
    last, as if they were drawn one by one: a host's own draw leaves its generator behind."""
    drawn: dict[tuple, list[int]] = {}
    for member in reversed(range(len(recipes))):
        recipe = recipes[member]
        drawn.setdefault((recipe.seed, batches[member], recipe.batch_index), []).insert(0, member)
    return dict(reversed(drawn.items()))


def _turns(
    recipes: Sequence[Recipe], batches: Sequence[int], begun: Sequence[int] | None = None
) -> Iterator[tuple[tuple[int, int], list[tuple[int, Rotate]]]]:
    """The moves of all recipes, each recipe's in its own order, as steps of one (seed, batch): [(recipe, move)].

    The smallest seed of those that are next comes first, so that items of one search, whose seeds count up, share a
    step wherever they share a seed. begun: how many moves of each are done already.
    """
    next_of: dict[tuple[int, int], list[tuple[int, int]]] = {}
    waiting: list[tuple[int, int]] = []

    def queue(member: int, position: int) -> None:
        if position < len(recipes[member].moves):
            key = recipes[member].moves[position].seed, batches[member]
            if key not in next_of:
                next_of[key] = []
                heapq.heappush(waiting, key)
            next_of[key].append((member, position))

    for member in range(len(recipes)):
        queue(member, begun[member] if begun else 0)
    while waiting:
        key = heapq.heappop(waiting)
        ready = next_of.pop(key)
        yield key, [(member, recipes[member].moves[position]) for member, position in ready]
        for member, position in ready:
            queue(member, position + 1)


def cost(recipes: Sequence[Recipe]) -> int:
    """How many noises of one item `noises` draws or turns, at most, for a latent of one item."""
    batches = [recipe.drawn_in(1) for recipe in recipes]
    items = [batch if recipe.row is None else 1 for recipe, batch in zip(recipes, batches, strict=True)]
    total = sum(max(index) + 1 if index else batch for _, batch, index in _draws(recipes, batches))
    for (_, batch), turns in _turns(recipes, batches):
        total += 2 * batch + sum(items[member] for member, _ in turns)
    return total


def draw(
    shape: tuple[int, ...],
    seed: int,
    batch_index: tuple[int, ...] | None = None,
    rows: Sequence[int] | None = None,
    check: Check = lambda: None,
) -> torch.Tensor:
    """Standard normal float32 noise on the CPU from a private generator; global random state is left alone.

    Equal to `comfy.sample.prepare_noise(latent, seed, batch_index)` for a float32 latent of this shape: the whole batch
    in one draw, or with `batch_index` one draw per item, in order, of which the named ones are kept. (Latents of other
    types differ between versions of ComfyUI: 0.16 draws in the latent's type, later ones in float32.) rows: those of
    the result that are wanted, and only they take memory.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    if batch_index is None:
        return _rows(generator, shape, range(shape[0]) if rows is None else rows, check)
    wanted = [batch_index[row] for row in (range(len(batch_index)) if rows is None else rows)]
    kept = {}
    for i in range(max(wanted) + 1):
        check()
        noise = torch.randn((1, *shape[1:]), generator=generator, dtype=torch.float32)
        if i in wanted:
            kept[i] = noise
    return torch.cat([kept[i] for i in wanted])


def directions(shape: tuple[int, ...], seed: int, rows: Sequence[int], check: Check = lambda: None) -> torch.Tensor:
    """The rows of what a move of this seed draws for a batch of this shape: its second noise, as the first is what
    `draw` makes of the seed, which is often the noise being turned."""
    generator = torch.Generator("cpu").manual_seed(seed)
    _skip(generator, math.prod(shape), check)
    return _rows(generator, shape, rows, check)


def _rows(generator: torch.Generator, shape: tuple[int, ...], rows: Sequence[int], check: Check) -> torch.Tensor:
    """These rows of `torch.randn(shape)`, bit for bit. What comes before them is passed over, not kept."""
    total, item = math.prod(shape), math.prod(shape[1:])
    if list(rows) == list(range(shape[0])) or total <= CHUNK or not in_blocks():
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        return noise if list(rows) == list(range(shape[0])) else noise[list(rows)]
    kept = torch.empty(len(rows), item)
    first, end = min(rows) * item // BLOCK * BLOCK, (max(rows) + 1) * item
    first = min(first, (total // BLOCK - 1) * BLOCK)  # the last block is drawn with what is left over
    _pass(generator, first, check)
    for start, size in _pieces(total - first):
        start += first
        if start >= end:
            break
        check()
        piece = torch.randn(size, generator=generator, dtype=torch.float32)
        for place, row in enumerate(rows):
            low, high = max(start, row * item), min(start + size, (row + 1) * item)
            if low < high:
                kept[place, low - row * item : high - row * item] = piece[low - start : high - start]
    return kept.reshape(len(rows), *shape[1:])


def _pieces(total: int) -> Iterator[tuple[int, int]]:
    """(start, size) of draws that together are one draw of `total` numbers: whole blocks, and at least one at the end
    with what is left over, as torch draws the last block again where a size is no multiple."""
    start = 0
    while total - start >= CHUNK + BLOCK:
        yield start, CHUNK
        start += CHUNK
    yield start, total - start


def _skip(generator: torch.Generator, total: int, check: Check) -> None:
    """Leaves the generator as `torch.randn(total)` does."""
    if total < BLOCK or not in_blocks():
        torch.randn(total, generator=generator, dtype=torch.float32)
    else:
        _pass(generator, total + (BLOCK if total % BLOCK else 0), check)


def _pass(generator: torch.Generator, words: int, check: Check) -> None:
    """Draws `words` random words, one per normal number, without making numbers of them, which is faster."""
    unused = torch.empty(min(words, CHUNK), dtype=torch.int32)
    for start in range(0, words, CHUNK):
        check()
        unused[: min(CHUNK, words - start)].random_(generator=generator)


@functools.cache
def in_blocks() -> bool:
    """Whether this torch draws as `_pieces` and `_pass` assume. It always has; if it did not, noises would silently be
    others, so this is checked once, and where it fails noises are drawn whole."""
    total = 3 * BLOCK + 5
    whole, parts, passed = (torch.Generator("cpu").manual_seed(1) for _ in range(3))
    noise, after = (torch.randn(size, generator=whole) for size in (total, total))
    pieces = [torch.randn(size, generator=parts) for size in (BLOCK, 2 * BLOCK + 5, total)]
    torch.empty(total + BLOCK, dtype=torch.int32).random_(generator=passed)
    alike = torch.equal(torch.cat(pieces), torch.cat([noise, after]))
    return alike and torch.equal(torch.randn(total, generator=passed), after)


def to_json(recipes: list[Recipe]) -> str:
    """One line of JSON: an object for one recipe, a list for one recipe per item of a latent batch."""
    data = [recipe.to_dict() for recipe in recipes]
    return json.dumps(data[0] if len(data) == 1 else data)


def from_json(text: str) -> list[Recipe]:
    """The recipes that `to_json` wrote. Raises RecipeError, which repeats the input, on anything else."""
    return _read(_load(text))


def from_text(text: str) -> list[Recipe]:
    """The recipes in what a person pastes: those of `from_json`, or the metadata of a picture, the entry noise_search
    or a part of it, with what programs put around it (spaces, quotes, the entry's name). Raises RecipeError, which
    repeats the input; where there are several winners in it, which they are.
    """
    found: dict[tuple[Recipe, ...], str] = {}
    for place, data in _winners(_pasted(text)):
        found.setdefault(tuple(_read(data)), place)
    if len(found) > 1:
        choices = [f"{place}: {_short(to_json(list(recipes)))}" for recipes, place in found.items()]
        more = f"; and {len(choices) - MOST_SHOWN} more" if len(choices) > MOST_SHOWN else ""
        raise RecipeError(
            f"there are {len(choices)} winners in this text; paste the recipe of one of them. "
            + "; ".join(choices[:MOST_SHOWN])
            + more
        )
    return list(next(iter(found)))


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise RecipeError(f'a recipe is JSON such as {{"seed": 42}}; could not read {_short(text)}: {error}') from None


def _pasted(text: str) -> Any:
    """The JSON in a text, as it is or without what is around it."""
    try:
        return _load(text)
    except RecipeError:
        if not isinstance(text, str):
            raise
        bare = text.strip(WRAPPERS)
        bare = bare.removeprefix(METADATA).lstrip(WRAPPERS + ":=") if bare.startswith(METADATA) else bare
        line = [f"{{{text.strip().rstrip(',')}}}"] if ":" in text else []  # of a larger text
        for attempt in (bare, bare.replace('\\"', '"'), *line):
            with suppress(RecipeError):
                return _load(attempt)
        raise


def _winners(data: Any, place: str = "the text", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Where recipes stand in metadata, and as what: {"<node id>": [{"recipe": ..., ...}]}, or a part of it."""
    if isinstance(data, str) and depth < MAX_DEPTH:
        yield from _winners(_pasted(data), place, depth + 1)
    elif isinstance(data, dict) and depth < MAX_DEPTH and (inside := METADATA if METADATA in data else RECIPE) in data:
        yield from _winners(data[inside], place, depth + 1)
    elif isinstance(data, dict) and data and all(map(_are_entries, data.values())):
        for node, entries in data.items():
            yield from _winners(entries, f"node {node[:20]}", depth)
    elif _are_entries(data):
        for number, entry in enumerate(data, 1):
            yield from _winners(entry, f"{place}, run {number}" if len(data) > 1 else place, depth)
    else:
        yield place, data


def _are_entries(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(entry, dict) and RECIPE in entry for entry in data)


def _read(data: Any) -> list[Recipe]:
    if isinstance(data, list) and not 0 < len(data) <= MAX_BATCH:
        raise RecipeError(f"a list of recipes has 1 to {MAX_BATCH} entries, not {len(data)}")
    items = data if isinstance(data, list) else [data]
    moves = sum(_length(item, "moves") + _length(item, "jumps") for item in items)
    if moves > MOST_MOVES:
        raise RecipeError(
            f"the recipes {_short(data)} have {moves:,} moves and jumps, and at most {MOST_MOVES:,} are read"
        )
    recipes = [Recipe.from_dict(item) for item in items]
    if (rows := cost(recipes)) > MOST_ROWS:
        raise RecipeError(
            f"the recipe {_short(data)} asks for {rows:,} noises to be drawn or turned (its batch times its moves); at "
            f"most {MOST_ROWS:,} are made"
        )
    return recipes


def _length(data: Any, name: str) -> int:
    entries = data.get(name) if isinstance(data, dict) else None
    return len(entries) if isinstance(entries, list) else 0


def portable(data: Any) -> Any:
    """The data for JSON that a browser may read: whole numbers beyond 2**53, which it would round, as text.

    Recipes are read in either form.
    """
    if isinstance(data, Mapping):
        return {key: portable(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [portable(value) for value in data]
    return str(data) if isinstance(data, int) and abs(data) > LARGEST_EXACT else data


def is_rounded(number: Any) -> bool:
    """Whether a whole number looks as if a browser had read and written it, so that its last digits may be lost."""
    if type(number) is not int or not LARGEST_EXACT < number < 2 * SEED_RANGE:
        return False
    return number in (int(float(number)), int(Decimal(repr(float(number)))))  # browsers write the shortest digits


def _move(data: Any) -> Rotate:
    if not isinstance(data, dict) or data.get("move") != "rotate" or set(data) != {"move", "seed", "angle"}:
        raise RecipeError(f"unknown recipe move {_short(data)}; known: rotate (seed, angle)")
    angle = data["angle"]
    if isinstance(angle, bool) or not isinstance(angle, (int, float)) or not 0 <= angle <= 180:
        raise RecipeError(f"recipe angle must be 0 to 180 degrees, not {_short(angle)}")
    return Rotate(_seed("move seed", data["seed"]), float(angle))


def _jump(data: Any) -> Jump:
    if not isinstance(data, dict) or set(data) != {"seed", "from", "to"}:
        raise RecipeError(f"unknown recipe jump {_short(data)}; a jump has seed, from and to")
    start, to = data["from"], data["to"]
    good = all(isinstance(level, (int, float)) and not isinstance(level, bool) for level in (start, to))
    if not good or not 0 <= start <= to <= 1:
        raise RecipeError(f"a recipe jump goes from a noise level up to another, 0 to 1, not {_short(data)}")
    return Jump(_seed("jump seed", data["seed"]), float(start), float(to))


def _steady(total: torch.Tensor) -> torch.Tensor:
    """Rounds a float64 sum to float32, which hides that its last bits depend on the number of threads."""
    return total.to(torch.float32).to(torch.float64)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:  # a bool is not a number here
        raise RecipeError(f"recipe {name} must be a whole number from {low} to {high}, not {_short(value)}")
    return value


def _seed(name: str, value: Any) -> int:
    """A seed as a number, or as the text that `portable` makes of a large one."""
    if isinstance(value, str) and len(value) <= len(str(SEED_RANGE)) and value.isascii() and value.isdigit():
        value = int(value)
    return _integer(name, value, 0, SEED_RANGE - 1)


_repr = reprlib.Repr()  # looks at the outermost part only: an input may be huge or very deep
_repr.maxlevel, _repr.maxstring, _repr.maxother = 3, 80, 80


def _short(value: Any) -> str:
    text = "nothing" if value is None else _repr.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
