"""benchmarks/replay.py on a small made-up table of rewards."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from conformance import replay_benchmark
from noise_search.search.recipe import Recipe, Rotate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are tiny: several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def replay():
    return replay_benchmark()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 prompts, 32 seeds, 3 steps; the last two verifiers agree, the first has a mind of its own."""
    random = np.random.default_rng(0)
    shape = (12, 32, 3)
    pick = random.normal(20, 2, shape).astype(np.float32)
    path = tmp_path_factory.mktemp("rewards") / "rewards.npz"
    np.savez(path, image_reward=random.normal(size=shape).astype(np.float32), pick_score=pick, hps_v2=pick / 100)
    return path


@pytest.fixture(scope="module")
def result(replay, data):
    return replay.measure(replay.load(data, replay.VERIFIERS), replay.VERIFIERS, repeats=2, seed=0)


def test_the_engine_gives_the_final_reward_of_the_recipes_seed(replay):
    rewards = torch.arange(5 * 3 * 2, dtype=torch.float64).reshape(5, 3, 2)  # seeds, steps, members
    engine = replay.ReplayEngine(rewards, ["a", "b"])
    rendered = list(engine.render([(Recipe.from_seed(4),), (Recipe.from_seed(6),)]))
    assert [one.values.tolist() for one in rendered] == [[[28.0, 29.0]], [[10.0, 11.0]]]
    assert [one.nfe_per_row for one in rendered] == [3, 3]


def test_the_engine_refuses_what_was_not_recorded(replay):
    engine = replay.ReplayEngine(torch.zeros(5, 3, 1), ["a"])
    with pytest.raises(ValueError, match="recorded rewards know seeds alone"):
        list(engine.render([(Recipe.from_seed(4).then(Rotate(1, 18.0)),)]))


def test_a_search_finds_the_best_of_its_seeds(replay):
    rewards = torch.tensor([3.0, 9.0, 1.0, 7.0, 8.0]).reshape(5, 1, 1)
    log = replay.search(replay.ReplayEngine(rewards, ["a"]), seed=2, candidates=3)
    assert (log.winner(0).seed, log.curve()[-1][2]) == (4, 8.0)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_closed_form_is_the_mean_over_all_subsets(replay, n):
    values = torch.tensor([0.3, -1.0, 2.0, 2.0, 0.0, 5.5, -7.0], dtype=torch.float64)
    subsets = [max(subset) for subset in itertools.combinations(values.tolist(), n)]
    assert float(replay.expected_best(values, n)) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "known"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (16, 1.76599)]
)
def test_the_gaussian_reference(replay, n, known):
    assert replay.expected_best_gaussian(n) == pytest.approx(known, abs=1e-5)


def test_searches_agree_with_the_closed_form(result):
    for table in result["best_of_n"].values():
        for row in table["rows"]:
            assert row["gain"] == pytest.approx(row["exact"], abs=0.12)


def test_best_of_one_gains_nothing_and_best_of_all_seeds_is_their_maximum(result):
    for table in result["best_of_n"].values():
        first, last = table["rows"][0], table["rows"][-1]
        assert (first["n"], last["n"]) == (1, 32)
        assert first["gain"] == pytest.approx(0, abs=1e-6)
        assert last["gain"] == pytest.approx(table["mean_maximum"], abs=1e-5)


def test_the_nfe_are_those_of_the_search(result):
    for table in result["best_of_n"].values():
        assert [row["nfe"] for row in table["rows"]] == [row["n"] * 3 for row in table["rows"]]


def test_intervals_hold_the_gain(result):
    for table in result["best_of_n"].values():
        for row in table["rows"]:
            assert row["low"] <= row["gain"] <= row["high"]


def test_selecting_by_a_verifier_helps_those_that_agree_and_no_others(result):
    cross = result["cross"]
    assert cross["pick_score"]["hps_v2"]["gain"] == pytest.approx(cross["hps_v2"]["hps_v2"]["gain"])
    assert cross["pick_score"]["pick_score"]["gain"] > 1.3
    assert abs(cross["pick_score"]["image_reward"]["gain"]) < 0.3


def test_ensembles_gain_on_all_members(result):
    for rule in ("mean rank of all", "z-score of all"):
        assert all(cell["gain"] > 0.3 for cell in result["cross"][rule].values())


def test_the_same_seed_gives_the_same_numbers(replay, data):
    rewards = replay.load(data, ["pick_score"])
    first, second = (replay.measure(rewards, ["pick_score"], 1, seed=3) for _ in range(2))
    assert first == second


def test_the_command_prints_the_tables_and_writes_json(replay, data, tmp_path, capsys):
    target = tmp_path / "out.json"
    assert replay.main(["--data", str(data), "--verifier", "image_reward", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "12 prompts x 32 seeds" in printed
    assert "Best of N by image_reward, judged by itself" in printed
    rows = json.loads(target.read_text())["best_of_n"]["image_reward"]["rows"]
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32]
    assert f"{rows[2]['gain']:+.3f}" in printed


def test_a_missing_file_is_named(replay, tmp_path):
    with pytest.raises(SystemExit, match="no such file: .*nothing.npz"):
        replay.main(["--data", str(tmp_path / "nothing.npz")])


def test_a_missing_array_is_named(replay, tmp_path):
    np.savez(tmp_path / "other.npz", clip=np.zeros((1, 2, 3)))
    with pytest.raises(SystemExit, match="has no array 'image_reward'; it has clip"):
        replay.main(["--data", str(tmp_path / "other.npz")])


def test_constant_rewards_gain_nothing(replay):
    result = replay.measure(torch.ones(2, 20, 1, 1, dtype=torch.float64), ["image_reward"], 1, 0)
    assert [row["gain"] for row in result["best_of_n"]["image_reward"]["rows"]] == [0.0] * 5
