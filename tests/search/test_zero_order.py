"""Zero-Order Search, step by step."""

import math

import pytest
from conformance import search
from noise_search.search.algorithms.zero_order import KEEP, REDRAW, SHRINK, STUCK, ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.recipe import Recipe
from synthetic import SHAPE, SyntheticEngine, smooth

SEED = 100


class Scripted(SyntheticEngine):
    """Scores its candidates as the script says, and 0 beyond its end. One script per item of the batch."""

    def __init__(self, *scripts):
        super().__init__(rows=len(scripts))
        self.scripts = scripts

    def score(self, state):
        rendered = super().score(state)
        index = len(self.rendered) - 1
        for row, script in enumerate(self.scripts):
            rendered.values[row] = script[index] if index < len(script) else 0.0
        return rendered


def climb(*scripts, candidates, **settings):
    """The recipes [candidates][rows] of a search whose candidates score as the scripts say."""
    log = search(ZeroOrderSearch(**settings), Scripted(*scripts), SEED, Budget(candidates)).log
    return [candidate.recipes for candidate in log.candidates]


def moves(recipes, row=0):
    return [[move.seed for move in each[row].moves] for each in recipes]


def angles(recipes):
    return [each[0].moves[-1].angle for each in recipes if each[0].moves]


def angle_between(a, b):
    a, b = (x.flatten().double() / x.double().norm() for x in (a, b))
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


# Neighbours


@pytest.mark.parametrize("angle", [1.0, 18.0, 90.0, 180.0])
def test_neighbours_are_at_the_angle_from_their_pivot_and_keep_its_norm(angle):
    log = search(ZeroOrderSearch(angle=angle), SyntheticEngine(smooth), SEED, Budget(12)).log
    noises = {one.recipes[0]: one.recipes[0].noise((1, *SHAPE)) for one in log.candidates}
    for recipe, noise in list(noises.items())[1:]:
        pivot = noises[Recipe(recipe.seed, recipe.moves[:-1])]
        assert angle_between(noise, pivot) == pytest.approx(angle, abs=1e-3)
        assert float(noise.norm()) == pytest.approx(float(pivot.norm()), rel=1e-6)


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_a_round_has_as_many_neighbours_as_asked_for(neighbours):
    made = moves(climb([9.0], candidates=1 + 2 * neighbours, neighbours=neighbours))
    assert made == [[], *([SEED + j] for j in range(1, 1 + 2 * neighbours))]


def test_the_best_neighbour_is_the_next_pivot():
    made = moves(climb([1.0, 2.0, 3.0, 1.0, 1.0, 4.0], candidates=8))
    assert made == [[], [101], [102], [102, 103], [102, 104], [102, 105], [102, 106], [102, 105, 107]]


def test_a_neighbour_that_is_as_good_does_not_replace_the_pivot():
    assert moves(climb([1.0, 1.0, 1.0], candidates=5)) == [[], [101], [102], [103], [104]]


def test_all_that_share_a_pivots_seed_share_the_samplers_own_noise():
    """It is drawn from the recipe's seed: common random numbers."""
    assert {recipe.seed for [recipe] in climb([1.0, 2.0, 3.0], candidates=9)} == {SEED}


@pytest.mark.parametrize("stuck", STUCK)
def test_the_pivot_is_never_rendered_twice(stuck):
    engine = SyntheticEngine(smooth)
    search(ZeroOrderSearch(stuck=stuck), engine, SEED, Budget(60))
    assert len(set(engine.rendered)) == len(engine.rendered) == 60


# No better neighbour


def test_keep_draws_other_neighbours_of_the_same_pivot():
    made = climb([9.0], candidates=9, stuck=KEEP)
    assert moves(made) == [[], *([SEED + j] for j in range(1, 9))]
    assert set(angles(made)) == {18.0}


def test_redraw_goes_on_from_a_new_pivot_and_its_first_neighbours():
    made = climb([9.0, 1.0, 1.0, 5.0, 4.0], candidates=7, stuck=REDRAW)
    assert [(recipe.seed, [move.seed for move in recipe.moves]) for [recipe] in made] == [
        (100, []),
        (100, [101]),
        (100, [102]),
        (103, []),  # in place of a neighbour
        (103, [104]),
        (103, [105]),  # 103 scored better than 104
        (103, [106]),
    ]


def test_redraw_does_not_lose_the_best():
    log = search(ZeroOrderSearch(stuck=REDRAW), Scripted([9.0]), SEED, Budget(20)).log
    assert log.best().index == 0


def test_shrink_narrows_the_angle_and_a_better_neighbour_widens_it_again():
    made = climb([5.0, 1.0, 1.0, 1.0, 1.0, 6.0], candidates=9, stuck=SHRINK)
    assert angles(made) == pytest.approx([18.0, 18.0, 12.6, 12.6, 8.82, 8.82, 18.0, 18.0])


@pytest.mark.parametrize(("angle", "smallest"), [(18.0, 1.0), (0.5, 0.5)])
def test_shrink_has_a_smallest_angle(angle, smallest):
    assert angles(climb([9.0], candidates=40, angle=angle, stuck=SHRINK))[-1] == smallest


def test_every_item_of_a_batch_climbs_from_a_pivot_of_its_own():
    made = climb([1.0, 2.0, 0.0], [1.0, 0.0, 2.0], [9.0], candidates=4)
    assert [moves(made, row)[3] for row in range(3)] == [[101, 103], [102, 103], [103]]
    assert [recipe.row for recipe in made[3]] == [0, 1, 2]


def test_items_redraw_and_shrink_on_their_own():
    made = climb([9.0], [1.0, 2.0], candidates=4, stuck=REDRAW)
    assert [(recipe.seed, len(recipe.moves)) for recipe in made[3]] == [(103, 0), (100, 2)]
    made = climb([9.0], [1.0, 2.0], candidates=4, stuck=SHRINK)
    assert [recipe.moves[-1].angle for recipe in made[3]] == pytest.approx([12.6, 18.0])


def test_draws_wrap_at_the_end_of_the_seeds():
    log = search(ZeroOrderSearch(), Scripted([9.0]), 2**64 - 2, Budget(4)).log
    assert [one.recipes[0].moves[0].seed for one in log.candidates[1:]] == [2**64 - 1, 0, 1]


def test_every_pivot_is_better_than_the_one_before():
    log = search(ZeroOrderSearch(), SyntheticEngine(smooth), SEED, Budget(30)).log
    scores = {one.recipes[0]: one.values[0][0] for one in log.candidates}
    for recipe in scores:
        pivots = [Recipe(recipe.seed, recipe.moves[:length]) for length in range(len(recipe.moves))]
        heights = [scores[pivot] for pivot in pivots]
        assert heights == sorted(heights)


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"neighbours": 0}, "at least 1 neighbour, not 0"),
        ({"angle": 0.0}, "at most 180 degrees, not 0.0"),
        ({"angle": 181.0}, "not 181.0"),
        ({"angle": math.nan}, "not nan"),
        ({"stuck": "give up"}, "unknown choice 'give up' for no better neighbour; known: keep the pivot, "),
    ],
)
def test_settings_that_make_no_search_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ZeroOrderSearch(**settings)
