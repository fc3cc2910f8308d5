"""Search over Paths, round by round, and its forward kernel."""

import math

import pytest
import torch
from conformance import search
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.budget import Budget
from noise_search.search.kernels import fresh_noise
from noise_search.search.log import FINAL, PREVIEW
from noise_search.search.recipe import Jump, Recipe, derive
from synthetic import SyntheticEngine, smooth

SEED = 100
LEVELS = [0.11, 0.08, 0.05, 0.02, 0.0]
ROUNDS = len(LEVELS) - 1


def paths(candidates=40, engine=None, **settings):
    return search(
        SearchOverPaths(**settings), engine or SyntheticEngine(smooth, steps=20), SEED, Budget(candidates)
    ).log


def rounds(log, branches, row=0):
    """The first pass: the recipes of each round, with their scores."""
    made = [(one.recipes[row], one.values[row][0]) for one in log.candidates[1:]]
    return [made[number * 2 * branches : (number + 1) * 2 * branches] for number in range(ROUNDS)]


# The forward kernel

FLOW = [(1 - level, level) for level in (0.0, 0.11, 0.5, 0.89, 1.0)]
EPSILON = [(1.0, sigma) for sigma in (0.0, 0.03, 0.6, 5.0, 14.6)]


@pytest.mark.parametrize(
    ("here", "there"), [(scale[i], scale[j]) for scale in (FLOW, EPSILON) for i in range(4) for j in range(i + 1, 5)]
)
def test_going_back_up_gives_the_levels_own_mean_and_variance(here, there):
    """Of 100,000 samples of one image: mean alpha x0, variance sigma^2; 5 standard errors off at most."""
    count, image = 100_000, 1.7
    generator = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn(2, count, generator=generator, dtype=torch.float64)
    (alpha, sigma), (alpha_to, sigma_to) = here, there
    share = fresh_noise(alpha, sigma, alpha_to, sigma_to)
    up = alpha_to / alpha * (alpha * image + sigma * noise) + sigma_to * share * fresh
    assert float(up.mean()) == pytest.approx(alpha_to * image, abs=5 * sigma_to / math.sqrt(count))
    assert float(up.var()) == pytest.approx(sigma_to**2, rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize(("scale"), [FLOW, EPSILON], ids=["flow", "epsilon"])
def test_the_share_of_fresh_noise_has_the_closed_form(scale):
    (alpha, sigma), (alpha_to, sigma_to) = scale[1], scale[3]
    variance = sigma_to**2 - (alpha_to / alpha) ** 2 * sigma**2
    assert sigma_to * fresh_noise(alpha, sigma, alpha_to, sigma_to) == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("level", [0.02, 0.11, 1 / 3, 0.9])
def test_going_up_to_the_same_level_adds_nothing(level):
    assert fresh_noise(1 - level, level, 1 - level, level) == 0
    assert fresh_noise(1.0, 10 * level, 1.0, 10 * level) == 0


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ((0.5, 0.5, 0.6, 0.4), "noise level 0.4 is below 0.5"),
        ((1.0, 2.0, 1.0, 1.0), "noise level 1.0 is below 2.0"),
        ((0.0, 1.0, 0.5, 0.5), "no way from"),
        ((1.0, 0.0, 1.0, 0.0), "no way from"),
    ],
)
def test_going_up_to_a_lower_level_is_refused(scales, said):
    with pytest.raises(ValueError, match=said):
        fresh_noise(*scales)


# Levels


def test_the_papers_levels():
    assert SearchOverPaths().levels() == LEVELS


@pytest.mark.parametrize(
    ("sigma", "forward", "backward", "levels"),
    [
        (0.1, 0.5, 0.55, [0.1, 0.05, 0.0]),
        (0.3, 0.3, 0.4, [0.3, 0.2, 0.1, 0.0]),
        (0.25, 0.5, 0.6, [0.25, 0.15, 0.05, 0.0]),
        (0.11, 0.2, 0.9, [0.11, 0.0]),
        (1e-9, 0.2, 0.9, [1e-9, 0.0]),
    ],
)
def test_levels_fall_by_the_difference_and_end_at_0(sigma, forward, backward, levels):
    assert SearchOverPaths(sigma=sigma, forward=forward, backward=backward).levels() == pytest.approx(levels)


@pytest.mark.parametrize("backward", [0.78, 0.5, math.nan])
def test_not_getting_any_lower_is_refused_in_the_users_numbers(backward):
    with pytest.raises(ValueError) as caught:
        SearchOverPaths(forward=0.78, backward=backward)
    assert f"delta_backward ({backward:g}) must be larger than delta_forward (0.78)" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sigma": 0.0}, r"sigma \(0\) and delta_forward \(0.78\) must be above 0"),
        ({"sigma": 0.5}, r"sigma \(0.5\) and delta_forward \(0.78\)"),
        ({"forward": -0.1}, r"delta_forward \(-0.1\)"),
        ({"sigma": math.nan}, r"sigma \(nan\)"),
        ({"paths": 0}, "not 0 and 0"),
        ({"branches": -1}, "not 2 and -1"),
    ],
)
def test_settings_that_make_no_search_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        SearchOverPaths(**settings)


# Rounds


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_a_pass_previews_every_round_and_finishes_the_last(branches):
    log = paths(branches=branches)
    stages = [candidate.stage for candidate in log.candidates[1 : 1 + ROUNDS * 2 * branches]]
    assert stages == [PREVIEW] * (ROUNDS - 1) * 2 * branches + [FINAL] * 2 * branches


@pytest.mark.parametrize("rows", [1, 3])
def test_the_best_paths_of_each_item_go_on(rows):
    log = paths(engine=SyntheticEngine(smooth, rows=rows, steps=20), branches=3)
    for row in range(rows):
        made = rounds(log, 3, row)
        for before, after in zip(made, made[1:], strict=False):
            best = sorted(before, key=lambda branch: -branch[1])[:2]
            parents = [Recipe(r.seed, row=r.row, batch=r.batch, jumps=r.jumps[:-1]) for r, _ in after]
            assert parents == [best[i][0] for _ in range(3) for i in range(2)]


def test_branches_go_up_by_delta_forward_from_the_rounds_level():
    for number, made in enumerate(rounds(paths(branches=2), 2)):
        for recipe, _ in made:
            assert len(recipe.jumps) == number + 1
            assert recipe.jumps[-1].start == LEVELS[number]
            assert recipe.jumps[-1].to == pytest.approx(LEVELS[number] + 0.78)


def test_the_paths_begin_from_noises_of_their_own():
    seeds = [[recipe.seed for recipe, _ in made] for made in rounds(paths(branches=2, paths=2), 2)[:1]]
    assert seeds == [[SEED, SEED + 1, SEED, SEED + 1]]


def test_every_branch_draws_fresh_noise_that_follows_from_the_seed():
    drawn = [one.recipes[0].jumps[-1].seed for one in paths(branches=2).candidates[1 : 1 + 4 * ROUNDS]]
    assert drawn == [derive(SEED, "path", 0, n, i, j) for n in range(ROUNDS) for j in range(2) for i in range(2)]
    assert len(set(drawn)) == len(drawn)


def test_the_next_pass_begins_from_new_noises():
    log = paths(branches=2, candidates=40)
    second = log.candidates[1 + 4 * ROUNDS :][0].recipes[0]
    assert (second.seed, second.jumps[0].seed) == (SEED + 2, derive(SEED, "path", 1, 0, 0, 0))


def test_branches_grow_with_the_budget_so_that_one_pass_spends_it():
    previews = {}
    for candidates in (30, 60, 120):
        log = paths(candidates)
        previews[candidates] = len(log.of_stage(PREVIEW))
        seeds = {one.recipes[0].seed for one in log.candidates if one.recipes[0].jumps}
        assert seeds == {SEED, SEED + 1}  # of a single pass
        assert log.nfe > (candidates - 2) * 20
    assert previews[30] < previews[60] < previews[120]


@pytest.mark.parametrize("candidates", range(5, 30))
@pytest.mark.parametrize("branches", [0, 2, 3])
def test_a_pass_that_is_cut_short_finishes_its_paths(branches, candidates):
    log = paths(candidates, branches=branches)
    assert log.nfe <= candidates * 20
    previewed = {one.recipes[0].seed // 2 for one in log.of_stage(PREVIEW)}  # a pass begins from two seeds
    finished = {one.recipes[0].seed // 2 for one in log.of_stage(FINAL) if one.recipes[0].jumps}
    assert previewed == finished


def test_where_sampling_paused_is_in_the_recipe():
    log = paths(8, branches=2)
    ended = [one.recipes[0].jumps[-1] for one in log.of_stage(FINAL) if one.recipes[0].jumps]
    assert ended == [Jump(0, 0.08, 0.08)] * 2


def test_what_is_too_little_for_a_pass_goes_into_plain_noises():
    log = paths(4)
    assert [one.recipes for one in log.candidates] == [(Recipe.from_seed(SEED + j),) for j in range(4)]


def test_no_evaluation_goes_uncounted():
    engine = SyntheticEngine(smooth, steps=20)
    spent = []
    spend = engine.spend
    engine.spend = lambda steps: (spent.append(steps), spend(steps))
    assert paths(23, engine).nfe == sum(spent)
    assert not engine.ledger.pending


@pytest.mark.parametrize(("candidates", "branches", "ends"), [(20, 14, 14), (8, 4, 5)])
def test_left_open_there_are_as_many_branches_as_one_pass_can_have(candidates, branches, ends):
    """Of 10 steps each: 10 NFE for stock and 8 down to the first level; then 6 and a look, and 6, for each branch. What
    is too little for one in both rounds may do for one in the last."""
    algorithm = SearchOverPaths(paths=1, sigma=0.2, forward=0.5, backward=0.6)
    assert branches == (10 * candidates - 10 - 8) // (6 + 1 + 6)
    log = search(algorithm, SyntheticEngine(), SEED, Budget(candidates)).log
    jumps = [len(one.recipes[0].jumps) for one in log.candidates]
    assert (jumps.count(1), jumps.count(2)) == (branches, ends)
