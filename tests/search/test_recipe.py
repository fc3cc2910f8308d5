"""Recipes rebuild their noise exactly, and what is not a recipe is refused in a sentence."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from noise_search.search import recipe as recipe_module
from noise_search.search.recipe import (
    Jump,
    Recipe,
    RecipeError,
    Rotate,
    derive,
    draw,
    from_json,
    from_text,
    is_rounded,
    noises,
    one_draw,
    portable,
    to_json,
)
from torch.overrides import TorchFunctionMode

SEEDS = st.integers(0, 2**64 - 1)
ANGLES = st.floats(0, 180)
ROTATIONS = st.builds(Rotate, SEEDS, ANGLES)
LEVELS = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
JUMPS = st.builds(lambda seed, levels: Jump(seed, *levels), SEEDS, LEVELS)
SHAPE = (2, 4, 3, 5)


@st.composite
def recipes(draw):
    batch = draw(st.none() | st.integers(1, 4))
    row = draw(st.none() | st.integers(0, batch - 1)) if batch else None
    size = batch or draw(st.integers(1, 4))
    index = draw(st.none() | st.lists(st.integers(0, 12), min_size=size, max_size=size).map(tuple))
    moves = draw(st.lists(ROTATIONS, max_size=3).map(tuple))
    jumps = draw(st.lists(JUMPS, max_size=3).map(tuple))
    return Recipe(draw(SEEDS), moves, row, batch, index, jumps)


def angle_between(a, b):
    """Degrees between two float tensors, well-conditioned for small and for flat angles."""
    a, b = (x.flatten().double() / x.double().norm() for x in (a, b))
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


# Round trips


@given(st.lists(recipes(), min_size=1, max_size=4))
def test_json_round_trip(items):
    assert from_json(to_json(items)) == items


@given(recipes())
def test_json_is_one_line_of_strict_json(recipe):
    text = to_json([recipe])
    assert "\n" not in text
    assert json.loads(text, parse_constant=pytest.fail)["seed"] == recipe.seed


@given(recipes())
def test_rebuilds_bit_for_bit(recipe):
    [again] = from_json(to_json([recipe]))
    assert torch.equal(again.noise(SHAPE), recipe.noise(SHAPE))


@given(recipes())
def test_leaves_global_random_state_alone(recipe):
    before = torch.get_rng_state()
    recipe.noise(SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_seed_does_not_matter():
    torch.manual_seed(1)
    first = Recipe.from_seed(5).noise(SHAPE)
    torch.manual_seed(2)
    assert torch.equal(Recipe.from_seed(5).noise(SHAPE), first)


# Seeds


@given(st.integers(-(2**70), 2**70))
def test_seeds_wrap(seed):
    assert Recipe.from_seed(seed) == Recipe.from_seed(seed + 2**64)


@pytest.mark.parametrize(("seed", "wrapped"), [(-1, 2**64 - 1), (2**64, 0), (2**64 + 7, 7), (2**63, 2**63)])
def test_seeds_wrap_to_what_the_ksampler_takes(seed, wrapped):
    assert Recipe.from_seed(seed).seed == wrapped


def test_the_largest_seed_draws():
    assert torch.isfinite(Recipe.from_seed(2**64 - 1).noise(SHAPE)).all()


def test_different_seeds_differ():
    assert not torch.equal(Recipe.from_seed(2**63).noise(SHAPE), Recipe.from_seed(2**63 + 1).noise(SHAPE))


# Batches, rows and batch_index


@given(recipes(), st.integers(1, 4), st.data())
def test_a_row_is_a_slice_of_the_whole(recipe, batch, data):
    index = None if recipe.batch_index is None else tuple(data.draw(st.integers(0, 12)) for _ in range(batch))
    whole = recipe.for_batch(batch, index)
    whole = Recipe(whole.seed, whole.moves, None, batch, index)
    row = data.draw(st.integers(0, batch - 1))
    assert torch.equal(whole.for_row(row).noise(SHAPE), whole.noise(SHAPE)[row : row + 1])


def test_a_batch_is_drawn_at_the_recipes_size_whatever_the_latents():
    assert Recipe.from_seed(3).for_batch(3).noise((1, 4, 2, 2)).shape == (3, 4, 2, 2)


def test_a_row_outside_the_batch_is_refused():
    with pytest.raises(ValueError, match="row 3 is not in a batch of 3"):
        Recipe.from_seed(3).for_batch(3).for_row(3)


@given(SEEDS, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_batch_index_names_draws(seed, index):
    ten = torch.cat([draw((1, *SHAPE[1:]), seed, (i,)) for i in range(10)])
    assert torch.equal(draw(SHAPE, seed, tuple(index)), ten[index])


@given(SEEDS, st.integers(1, 4))
def test_the_recipes_of_a_draws_items_make_its_items(seed, batch):
    shape = (batch, *SHAPE[1:])
    each = torch.cat([recipe.noise(shape) for recipe in Recipe.from_seed(seed).for_items(batch)])
    assert torch.equal(each, draw(shape, seed))


@given(recipes(), st.integers(2, 4))
def test_one_draw_finds_the_recipe_of_the_whole_batch(recipe, batch):
    whole = replace(recipe, row=None).for_batch(batch)
    assert one_draw(whole.for_items(batch)) == whole


def test_items_of_different_draws_have_no_recipe_in_common():
    first, second = (Recipe.from_seed(seed).for_items(2) for seed in (1, 2))
    assert one_draw((first[0], second[1])) is None
    assert one_draw((first[1], first[0])) is None
    assert one_draw(Recipe.from_seed(1).for_items(3)[:2]) is None


def test_cast_after_drawing():
    recipe = Recipe.from_seed(9)
    assert torch.equal(recipe.noise(SHAPE, torch.float16), recipe.noise(SHAPE).to(torch.float16))


def test_derived_seeds_are_seeds_and_differ_by_every_name():
    names = [(), (0,), (1,), ("path", 0, 1), ("path", 1, 0), ("path", 0, 11)]
    derived = [derive(seed, *name) for seed in (0, 1, 2**64 - 1) for name in names]
    assert len(set(derived)) == len(derived)
    assert all(0 <= seed < 2**64 for seed in derived)
    assert derive(5, "path", 2) == derive(5, "path", 2)


# Rotate


@given(SEEDS, ROTATIONS)
def test_rotate_keeps_the_norm(seed, move):
    noise = draw((2, 4, 8, 8), seed)
    turned = move(noise)
    torch.testing.assert_close(turned.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1), rtol=1e-6, atol=0)


@given(SEEDS, ROTATIONS)
@example(7, Rotate(7, 18.0))
def test_rotate_hits_the_angle(seed, move):
    noise = draw((2, 4, 8, 8), seed)
    turned = move(noise)
    for before, after in zip(noise, turned, strict=True):
        assert abs(angle_between(before, after) - move.angle) < 1e-4


@given(SEEDS, ROTATIONS)
def test_rotate_is_deterministic(seed, move):
    noise = draw(SHAPE, seed)
    assert torch.equal(move(noise), move(noise.clone()))


def test_rotate_by_nothing_and_by_half_a_turn():
    noise = draw(SHAPE, 4)
    torch.testing.assert_close(Rotate(1, 0.0)(noise), noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(Rotate(1, 180.0)(noise), -noise, rtol=1e-6, atol=1e-6)


def test_rotate_directions_differ_by_seed():
    noise = draw((1, 4, 16, 16), 4)
    assert angle_between(Rotate(1, 90.0)(noise), Rotate(2, 90.0)(noise)) > 60


def test_rotate_by_the_seed_of_the_noise_is_a_random_direction():
    """42 is everybody's seed: the direction must not be the noise itself, nor where it came from."""
    noise = draw((1, 4, 32, 32), 42)
    turned = Rotate(42, 90.0)(noise)
    assert abs(angle_between(turned, noise) - 90) < 1e-3
    assert abs(angle_between(Rotate(42, 90.0)(draw((1, 4, 32, 32), 7)), noise) - 90) < 10


def test_rotate_twice_with_one_seed_hits_the_angle():
    move = Rotate(1, 90.0)
    once = move(draw((1, 4, 3, 5), 4))
    assert abs(angle_between(move(once), once) - 90) < 1e-4


@pytest.mark.parametrize(
    "noise",
    [
        torch.ones(2, 1, 1, 1),
        torch.zeros(2, 4, 1, 1),
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.full((2, 3), torch.nan),
    ],
    ids=["one element", "zeros", "one item of zeros", "nan"],
)
def test_a_noise_without_a_direction_cannot_be_turned(noise):
    with pytest.raises(ValueError) as caught:
        Rotate(1, 18.0)(noise)
    assert f"shape {tuple(noise.shape[1:])} cannot be turned" in str(caught.value)


def test_rotate_does_not_depend_on_the_last_bits_of_a_sum(monkeypatch):
    """They change with the number of threads."""
    noise = draw((1, 16, 64, 64), 4)
    expected = Rotate(1, 18.0)(noise)
    norm, off = torch.Tensor.norm, iter([1 + 1e-11, 1 - 1e-11])
    monkeypatch.setattr(torch.Tensor, "norm", lambda *args, **kwargs: norm(*args, **kwargs) * next(off))
    assert torch.equal(Rotate(1, 18.0)(noise), expected)


def test_moves_are_applied_in_turn():
    a, b = Rotate(1, 20.0), Rotate(2, 30.0)
    noise = Recipe.from_seed(3).then(a).then(b).noise(SHAPE)
    assert torch.equal(noise, b(a(draw(SHAPE, 3))))


# Only what is needed is drawn and turned


def as_defined(recipe, shape):
    """The definition, in plain words: the whole batch drawn and turned at once, then one row picked."""
    batch = recipe.batch or (len(recipe.batch_index) if recipe.batch_index else shape[0])
    shape = (batch, *shape[1:])
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.batch_index is None:
        noise = torch.randn(shape, generator=generator)
    else:
        items = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(recipe.batch_index) + 1)]
        noise = torch.cat([items[i] for i in recipe.batch_index])
    for move in recipe.moves:
        generator = torch.Generator().manual_seed(move.seed)
        torch.randn(shape, generator=generator)
        x, v = noise.double().flatten(1), torch.randn(shape, generator=generator).double().flatten(1)
        norm = x.norm(dim=1, keepdim=True).float().double()
        u = x / norm
        v = v - (v * u).sum(dim=1, keepdim=True).float().double() * u
        w = v / v.norm(dim=1, keepdim=True).float().double()
        angle = math.radians(move.angle)
        noise = (norm * (math.cos(angle) * u + math.sin(angle) * w)).reshape(shape).float()
    return noise if recipe.row is None else noise[recipe.row : recipe.row + 1]


@pytest.fixture
def small_chunks(monkeypatch):
    """Draws of a few hundred numbers are then made in pieces, as those of millions are."""
    monkeypatch.setattr(recipe_module, "CHUNK", 64)


ITEMS = st.sampled_from([(1,), (3,), (16,), (4, 3, 5), (5, 7), (4, 8, 8), (2, 2, 9, 1), (1, 331)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(recipes(), min_size=1, max_size=5), ITEMS, st.integers(1, 4))
def test_many_recipes_at_once_are_what_each_is_by_its_definition(small_chunks, items, item, batch):
    if math.prod(item) < 2:  # has no direction
        items = [replace(recipe, moves=()) for recipe in items]
    expected = torch.cat([as_defined(recipe, (batch, *item)) for recipe in items])
    assert torch.equal(noises(items, (batch, *item)), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(SEEDS, st.integers(1, 40), ITEMS, st.lists(ROTATIONS, max_size=2).map(tuple), st.data())
def test_a_row_of_a_large_batch_is_that_of_the_whole(small_chunks, seed, batch, item, moves, data):
    recipe = Recipe(seed, moves if math.prod(item) > 1 else (), data.draw(st.integers(0, batch - 1)), batch)
    assert torch.equal(recipe.noise((1, *item)), as_defined(recipe, (1, *item)))


@pytest.mark.parametrize("item", [(2,), (3,), (7,), (16,), (31,)])
def test_every_row_of_a_large_batch_is_that_of_the_whole(small_chunks, item):
    """Also the last ones, whose numbers torch draws in another way than the rest."""
    whole = Recipe(7, (Rotate(8, 18.0),), None, 41)
    expected = as_defined(whole, (1, *item))
    for row in range(41):
        assert torch.equal(whole.for_row(row).noise((1, *item)), expected[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_noise_of_another_type_is_turned_in_that_type(dtype):
    """A host that draws in the latent's type rounds after every move."""
    moves = (Rotate(1, 20.0), Rotate(2, 30.0))

    def source(shape, seed, index, rows):
        return draw(shape, seed, index, rows).to(dtype)

    whole = moves[1](moves[0](draw((5, 4, 8, 8), 3).to(dtype)))
    found = noises([Recipe(3, moves, row, 5) for row in (4, 1)], (5, 4, 8, 8), dtype, source)
    assert found.dtype == dtype
    assert torch.equal(found, whole[[4, 1]])


def test_at_full_size_too():
    """Pieces of the real size: one row of 300 of 16 x 33 x 33 numbers, whose draw has no whole number of blocks."""
    recipe = Recipe(7, (Rotate(8, 18.0),), 299, 301)
    assert 5 * recipe_module.CHUNK < 301 * 16 * 33 * 33
    assert torch.equal(recipe.noise((1, 16, 33, 33)), as_defined(recipe, (1, 16, 33, 33)))
    assert recipe_module.in_blocks()


def test_a_torch_that_drew_otherwise_would_draw_whole(small_chunks, monkeypatch):
    monkeypatch.setattr(recipe_module, "in_blocks", lambda: False)
    monkeypatch.setattr(recipe_module, "_pieces", lambda total: pytest.fail("drawn in pieces"))
    monkeypatch.setattr(recipe_module, "_pass", lambda *args: pytest.fail("passed over"))
    recipe = Recipe(7, (Rotate(8, 18.0),), 9, 11)
    assert torch.equal(recipe.noise((1, 4, 5, 5)), as_defined(recipe, (1, 4, 5, 5)))


class Work(TorchFunctionMode):
    """Counts the random numbers drawn or passed over, the largest tensor, and the numbers turned."""

    def __init__(self):
        super().__init__()
        self.drawn, self.largest = 0, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
            self.drawn += out.numel() * (func in (torch.randn, torch.Tensor.random_))
        return out


def work(items, shape):
    with Work() as counted:
        noises(items, shape)
    return counted


def test_a_batch_draws_as_many_numbers_as_its_items():
    """Sixteen items that share their moves, as those of a candidate do that went the same way, and sixteen that do not:
    a move of one seed is drawn once for all of them."""
    moves = tuple(Rotate(seed, 18.0) for seed in range(1, 11))
    alone = work([Recipe(0, moves)], (1, 16, 16, 16)).drawn
    together = [Recipe(0, moves, row, 16) for row in range(16)]
    assert work(together, (16, 16, 16, 16)).drawn <= 16 * alone
    apart = [replace(recipe, moves=moves[:row] + moves[row + 1 :]) for row, recipe in enumerate(together)]
    assert work(apart, (16, 16, 16, 16)).drawn <= 16 * alone


def chain(batch, moves):
    """What a search by moves asks for, candidate by candidate: every item goes its own way."""
    pivots = list(Recipe(0).for_items(batch))
    for seed in range(1, moves + 1):
        yield (candidate := [pivot.then(Rotate(seed, 18.0)) for pivot in pivots])
        pivots = [
            new if (seed + row) % 3 else old for row, (new, old) in enumerate(zip(candidate, pivots, strict=True))
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("most", [0, 2000, 2**20])
def test_what_was_kept_changes_no_noise(most, batch, dtype):
    kept, shape = recipe_module.Kept(most), (batch, 4, 3, 5)
    source = lambda *what: draw(*what).to(dtype)  # noqa: E731
    for candidate in chain(batch, 12):
        found = noises(candidate, shape, dtype, source, kept=kept)
        assert torch.equal(found, noises(candidate, shape, dtype, source))
        found.zero_()  # a sampler may write into its noise
        assert kept.bytes == sum(noise.untyped_storage().nbytes() for noise in kept.noises.values()) <= most


def test_what_is_kept_of_other_latents_is_not_taken_for_this_one():
    kept, recipe = recipe_module.Kept(2**20), Recipe(1, (Rotate(2, 9.0),))
    for other in ((1, 4, 5, 3), (1, 4, 15), (2, 4, 3, 5), (1, 4, 3, 5)):
        assert torch.equal(noises([recipe], other, kept=kept), as_defined(recipe, other))
    same = [replace(recipe, batch=2, row=row, batch_index=index) for row in (0, 1) for index in (None, (1, 2), (2, 1))]
    for each in same:
        assert torch.equal(noises([each], (1, 4, 3, 5), kept=kept), as_defined(each, (1, 4, 3, 5)))


def test_a_candidate_one_move_on_costs_one_move():
    """However many moves and ways lie behind the items."""
    kept, shape = recipe_module.Kept(2**24), (16, 4, 8, 8)
    recipe_module.in_blocks()  # which draws too, once
    for candidate in chain(16, 30):
        with Work() as counted:
            noises(candidate, shape, kept=kept)
        assert counted.drawn <= 3 * 16 * 4 * 8 * 8


def test_one_row_of_the_largest_batch_takes_little_memory():
    item = 4 * 64 * 64
    [recipe] = from_json('{"seed":1,"batch":4096,"row":4095,"moves":[{"move":"rotate","seed":2,"angle":9}]}')
    counted = work([recipe], (1, 4, 64, 64))
    assert counted.largest <= recipe_module.CHUNK + 16
    assert counted.drawn <= 3 * 4096 * item + recipe_module.CHUNK


def test_it_can_be_cancelled_between_the_moves_and_within_a_draw():
    class Cancelled(Exception):
        pass

    def cancel_at(number):
        def check():
            nonlocal number
            number -= 1
            if number < 0:
                raise Cancelled

        return check

    long = Recipe(1, tuple(Rotate(seed, 9.0) for seed in range(500)))
    with pytest.raises(Cancelled):
        long.noise(SHAPE, check=cancel_at(100))
    with Work() as counted, pytest.raises(Cancelled):
        Recipe(1, (), 4095, 4096).noise((1, 4, 64, 64), check=cancel_at(5))
    assert counted.drawn <= 6 * recipe_module.CHUNK


@pytest.mark.parametrize(
    "recipe",
    [
        {"seed": 1, "batch": 4096, "row": 0, "moves": [{"move": "rotate", "seed": 1, "angle": 9}] * 4096},
        [{"seed": seed, "batch": 4096, "row": 4095} for seed in range(1024)],
        [{"seed": 1, "batch": 512, "moves": [{"move": "rotate", "seed": 1, "angle": 9}] * 4096}] * 2,
        [{"seed": seed, "batch_index": [4095]} for seed in range(1024)],
    ],
    ids=["moves of a large batch", "draws of a large batch", "turns", "draws by index"],
)
def test_what_would_take_hours_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"^the recipe \[?\{'batch.* asks for [\d,]{9,} noises to be drawn or turned"):
        from_json(json.dumps(recipe))


@pytest.mark.parametrize("name", ["moves", "jumps"])
def test_what_takes_long_to_read_is_not_read(name):
    """More of them than any search makes, spread over the items: each would be looked at."""
    entries = [{"move": "rotate", "seed": 1, "angle": 9}] * 4096
    with pytest.raises(RecipeError, match=r"^the recipes \[\{.*'seed': 1.* have 266,240 moves and jumps"):
        from_json(json.dumps([{"seed": 1, name: entries}] * 65))


def test_what_a_long_search_of_a_large_batch_finds_is_read():
    """64 items that each took 100 of 400 steps."""
    found = [Recipe(0, tuple(Rotate(seed, 9.0) for seed in range(1 + row % 4, 401, 4)), row, 64) for row in range(64)]
    assert from_json(to_json(found)) == found


@given(st.lists(recipes(), min_size=1, max_size=4))
def test_what_is_read_draws_no_more_than_it_costs(items):
    counted = work(items, (1, 4, 3, 5))
    item = 4 * 3 * 5
    turned = sum(len(r.moves) * (1 if r.row is not None else r.drawn_in(1)) for r in items)
    assert counted.drawn + turned * item <= recipe_module.cost(items) * item + 16 * (
        1 + sum(len(r.moves) for r in items)
    )


# What is not a recipe


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text()
)
KEYS = (
    st.sampled_from(["seed", "moves", "row", "batch", "batch_index", "jumps", "version", "move", "angle", "from", "to"])
    | st.text()
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5))


def refused_or_read(text):
    """Reads it, or refuses it properly; nothing else may happen."""
    try:
        items = from_json(text)
    except RecipeError as error:
        assert len(str(error)) <= 300
        return None
    assert from_json(to_json(items)) == items
    return items


@given(JSON)
def test_any_json_is_read_or_refused(data):
    refused_or_read(json.dumps(data))


@given(st.text())
def test_any_text_is_read_or_refused(text):
    refused_or_read(text)


@given(recipes(), st.data())
def test_a_recipe_with_one_entry_spoiled_is_read_or_refused(recipe, data):
    spoiled = recipe.to_dict()
    spoiled[data.draw(KEYS)] = data.draw(JSON)
    refused_or_read(json.dumps(spoiled))


@given(ROTATIONS, st.data())
def test_a_move_with_one_entry_spoiled_is_read_or_refused(move, data):
    spoiled = move.to_dict()
    spoiled[data.draw(KEYS)] = data.draw(JSON)
    refused_or_read(json.dumps({"seed": 1, "moves": [spoiled]}))


@given(JUMPS, st.data())
def test_a_jump_with_one_entry_spoiled_is_read_or_refused(jump, data):
    spoiled = jump.to_dict()
    spoiled[data.draw(KEYS)] = data.draw(JSON)
    refused_or_read(json.dumps({"seed": 1, "jumps": [spoiled]}))


@pytest.mark.parametrize("depth", [100, 900, 5_000, 200_000])
@pytest.mark.parametrize("shape", ["[{}]", '{{"seed": {}}}', '{{"seed": 1, "moves": [{}]}}'])
def test_deep_nesting_is_refused(depth, shape):
    with pytest.raises(RecipeError) as caught:
        from_json(shape.format("[" * depth + "]" * depth))
    assert len(str(caught.value)) <= 300


def test_nesting_too_deep_to_print_is_refused():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RecipeError, match="recipe seed must be a whole number"):
        Recipe.from_dict({"seed": nested})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "could not read ''"),
        ("seed 5", "could not read 'seed 5'"),
        ('{"seed": 42', "could not read '{\"seed\": 42'"),
        ("42", "not 42"),
        ("null", "not nothing"),
        ("[]", "1 to 4096 entries, not 0"),
        ("{}", "recipe seed must be a whole number from 0 to 18446744073709551615, not nothing"),
        ('{"seed": -1}', "not -1"),
        ('{"seed": 18446744073709551616}', "not 18446744073709551616"),
        ('{"seed": true}', "not True"),
        ('{"seed": 1.0}', "not 1.0"),
        ('{"seed": NaN}', "not nan"),
        ('{"seed": "seven"}', "not 'seven'"),
        ('{"seed": 1, "sed": 2}', "unknown recipe entries ['sed']"),
        ('{"seed": 1, "version": 2}', "recipe version 2 is newer"),
        ('{"seed": 1, "version": null}', "recipe version must be"),
        ('{"seed": 1, "batch": 0}', "recipe batch must be a whole number from 1 to 4096, not 0"),
        ('{"seed": 1, "batch": 5000}', "not 5000"),
        ('{"seed": 1, "row": 0}', "recipe row 0 is not in its batch of nothing"),
        ('{"seed": 1, "row": 2, "batch": 2}', "recipe row 2 is not in its batch of 2"),
        ('{"seed": 1, "row": true, "batch": 2}', "recipe row must be a whole number from 0 to 4096, not True"),
        ('{"seed": 1, "batch_index": []}', "recipe batch_index must be a list of whole numbers, not []"),
        ('{"seed": 1, "batch_index": [-1]}', "not [-1]"),
        ('{"seed": 1, "batch_index": [true]}', "not [True]"),
        ('{"seed": 1, "batch": 3, "batch_index": [1, 2]}', "[1, 2] does not name 3 items"),
        ('{"seed": 1, "moves": {}}', "recipe moves must be a list of at most 4096, not {}"),
        ('{"seed": 1, "moves": [{"move": "warp"}]}', "unknown recipe move {'move': 'warp'}"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": 1}]}', "unknown recipe move"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": 1, "angle": NaN}]}', "not nan"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": 1, "angle": Infinity}]}', "not inf"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": 1, "angle": 1e999}]}', "not inf"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": 1, "angle": 181}]}', "0 to 180 degrees, not 181"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": 1, "angle": true}]}', "not True"),
        ('{"seed": 1, "moves": [{"move": "rotate", "seed": -1, "angle": 1}]}', "recipe move seed must be"),
        ('{"seed": 1, "jumps": 3}', "recipe jumps must be a list of at most 4096, not 3"),
        ('{"seed": 1, "jumps": [{"seed": 1, "from": 0.1}]}', "a jump has seed, from and to"),
        ('{"seed": 1, "jumps": [{"seed": 1, "from": 0.6, "to": 0.5}]}', "up to another"),
        ('{"seed": 1, "jumps": [{"seed": 1, "from": 0.5, "to": 1.5}]}', "up to another"),
        ('{"seed": 1, "jumps": [{"seed": 1, "from": NaN, "to": 0.5}]}', "up to another"),
        ('{"seed": 1, "jumps": [{"seed": 1, "from": false, "to": true}]}', "up to another"),
        ('{"seed": 1, "jumps": [{"seed": -1, "from": 0.1, "to": 0.5}]}', "recipe jump seed must be"),
    ],
)
def test_the_message_repeats_what_is_wrong(text, said):
    with pytest.raises(RecipeError) as caught:
        from_json(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["1" * 100_000, "9" * 4000, '"' + "x" * 100_000, "{" * 100_000, None])
def test_huge_input_is_refused_in_a_short_sentence(text):
    with pytest.raises(RecipeError) as caught:
        from_json(text)
    assert len(str(caught.value)) <= 300


def test_too_many_moves_are_refused():
    move = {"move": "rotate", "seed": 1, "angle": 1}
    with pytest.raises(RecipeError, match="at most 4096"):
        from_json(json.dumps({"seed": 1, "moves": [move] * 4097}))


@given(recipes())
def test_a_recipe_comes_out_of_a_browser_as_it_was(recipe):
    text = json.dumps(portable(recipe.to_dict()))
    read = json.loads(text, parse_int=lambda digits: int(float(digits)))  # all its numbers are doubles
    assert Recipe.from_dict(read) == recipe


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1e3", " 1", "\u0663", str(2**64), "9" * 5000])
def test_a_text_that_is_no_seed_is_refused(text):
    refused = json.dumps({"seed": text})
    with pytest.raises(RecipeError, match="recipe seed must be a whole number"):
        from_json(refused)


def test_numbers_that_a_browser_wrote_are_told():
    rounded = [2**63, 9223372036854776000, 2**53, 2**64 - 2048]  # as others write a double, and as a browser does
    assert all(map(is_rounded, rounded))
    assert not any(map(is_rounded, [2**63 + 1, 2**53 - 1, 7, "9223372036854776000", True, None, 1e300, 10**400]))


# What people paste


def entry(recipe):
    """One winner in a picture's metadata, as the search nodes write it."""
    return {"recipe": to_json(recipe), "seed": recipe[0].seed, "score": [0.5], "prompt": 'a "cat"', "sha256": ["ab"]}


PASTED = {
    "recipe": lambda recipe: to_json(recipe),
    "recipe as an object": lambda recipe: json.dumps({"recipe": json.loads(to_json(recipe))}),
    "entry": lambda recipe: json.dumps(entry(recipe)),
    "entries of a node": lambda recipe: json.dumps([entry(recipe)]),
    "chunk": lambda recipe: json.dumps({"5:3": [entry(recipe)]}),
    "chunk of two nodes with one winner": lambda recipe: json.dumps({"4": [entry(recipe)], "7": [entry(recipe)] * 2}),
    "all metadata": lambda recipe: json.dumps({"prompt": {"3": {}}, "noise_search": {"12": [entry(recipe)]}}),
    "chunk as a text in all metadata": lambda recipe: json.dumps({"noise_search": json.dumps({"1": [entry(recipe)]})}),
    "chunk after its name": lambda recipe: "noise_search: " + json.dumps({"12": [entry(recipe)]}),
    "a line of all metadata": lambda recipe: '"noise_search": ' + json.dumps({"12": [entry(recipe)]}, indent=1) + ",",
    "a line of the chunk": lambda recipe: '  "12": ' + json.dumps([entry(recipe)]),
    "a line of the entry": lambda recipe: '"recipe": ' + json.dumps(to_json(recipe)) + ",\n",
    "escaped with its quotes": lambda recipe: json.dumps(to_json(recipe)),
    "escaped without its quotes": lambda recipe: json.dumps(to_json(recipe))[1:-1],
    "escaped twice": lambda recipe: json.dumps(json.dumps(to_json(recipe))),
    "chunk escaped": lambda recipe: json.dumps(json.dumps({"12": [entry(recipe)]})),
    "in single quotes": lambda recipe: f"'{to_json(recipe)}'",
    "in code quotes": lambda recipe: f"```\n{to_json(recipe)}\n```",
    "with space around it": lambda recipe: f"\ufeff\n\t \xa0{to_json(recipe)} \r\n\u200b",
}


@pytest.mark.parametrize("paste", PASTED.values(), ids=PASTED)
@settings(max_examples=30)
@given(items=st.lists(recipes(), min_size=1, max_size=3))
def test_what_stands_in_the_metadata_is_read(paste, items):
    assert from_text(paste(items)) == items


def test_of_several_winners_the_choices_are_named():
    chunk = {"4": [entry([Recipe(11)]), entry([Recipe(12)])], "9": [entry([Recipe(13), Recipe(14)])]}
    with pytest.raises(RecipeError) as caught:
        from_text(json.dumps(chunk))
    said = str(caught.value)
    assert said.startswith("there are 3 winners in this text; paste the recipe of one of them. node 4, run 1: ")
    for part in ("node 4, run 2: ", "node 9: ", '"seed": 11', '"seed": 12', '"seed": 13'):
        assert part in said
    many = {str(node): [entry([Recipe(node)])] for node in range(100)}
    with pytest.raises(RecipeError, match="; and 96 more$") as caught:
        from_text(json.dumps(many))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "could not read ''"),
        ("  hello ", "could not read '  hello '"),
        ('"hello"', "could not read 'hello'"),
        ('{"12": []}', "unknown recipe entries ['12']"),
        ('{"12": [{"recipe": "x"}]}', "could not read 'x'"),
        ('{"12": [{"recipe": null}]}', "not nothing"),
        ('{"noise_search": 3}', "not 3"),
        ('{"recipe": {"seed": -1}}', "not -1"),
        ('[{"recipe": "{\\"seed\\": 1}"}, {"seed": 2}]', "unknown recipe entries ['recipe']"),
        ('{"recipe": ' * 50 + "1" + "}" * 50, "unknown recipe entries ['recipe']"),
        ("[" * 100_000, "could not read '[[["),
    ],
)
def test_what_holds_no_recipe_is_refused_with_what_it_is(text, said):
    with pytest.raises(RecipeError) as caught:
        from_text(text)
    assert said in str(caught.value) and len(str(caught.value)) < 500


PARTS = st.dictionaries(st.sampled_from(["recipe", "noise_search", "12", "seed"]), JSON | recipes().map(Recipe.to_dict))


@given(JSON | PARTS | st.lists(PARTS) | st.dictionaries(st.text(), st.lists(PARTS)))
def test_any_metadata_is_read_or_refused(data):
    try:
        items = from_text(json.dumps(data))
    except RecipeError as error:
        assert len(str(error)) < 500
    else:
        assert from_text(to_json(items)) == items
        assert recipe_module.cost(items) <= recipe_module.MOST_ROWS


def test_the_plain_noise_of_another_seed_is_of_the_same_item_and_goes_straight():
    recipe = Recipe(7, row=1, batch=2).then(Rotate(3, 20.0)).jump(Jump(4, 0.3, 0.8))
    assert recipe.with_seed(2**64 + 9) == Recipe(9, row=1, batch=2)


def test_what_a_recipe_costs_is_counted_in_noises_of_one_item():
    """Its draw, and of each move the directions' draw, which is dear, and the turn of the items that it has."""
    turned = Recipe.from_seed(1).then(Rotate(2, 9.0)).then(Rotate(3, 9.0))
    assert recipe_module.cost([turned]) == 1 + 2 * (2 + 1)
    assert recipe_module.cost([turned.for_batch(4)]) == 4 + 2 * (2 * 4 + 4)
    item = turned.for_batch(4).for_row(2)
    assert recipe_module.cost([item]) == 4 + 2 * (2 * 4 + 1)
    assert recipe_module.cost([item, turned.for_batch(4).for_row(3)]) == 4 + 2 * (2 * 4 + 2)  # drawn once for both


WRAPPINGS = {
    "a text": json.dumps,
    "the metadata": lambda data: {"noise_search": data},
    "an entry": lambda data: {"recipe": data},
    "a list of runs": lambda data: [{"recipe": data}],
    "nodes": lambda data: {"9": [{"recipe": data}]},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_recipe_within_others_is_found_but_not_at_any_depth(wrapping):
    def nested(depth):
        data = {"seed": 42}
        for _ in range(depth):
            data = WRAPPINGS[wrapping](data)
        return json.dumps(data)

    assert from_text(nested(recipe_module.MAX_DEPTH)) == [Recipe(42)]
    with pytest.raises(RecipeError):
        from_text(nested(recipe_module.MAX_DEPTH + 1))


def test_two_winners_in_one_text_are_too_many():
    two = json.dumps({"4": [{"recipe": {"seed": 1}}, {"recipe": {"seed": 2}}]})
    with pytest.raises(RecipeError, match="there are 2 winners in this text.*node 4, run 1: .*1.*; node 4, run 2: .*2"):
        from_text(two)
    assert from_text(two.replace('"seed": 2', '"seed": 1')) == [Recipe(1)]


def test_an_error_repeats_no_more_than_80_characters_of_what_it_was_given():
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict({"seed": [10**20] * 9})
    said = str(raised.value).partition("not ")[2]
    assert len(said) == 80 and said.endswith("...")
