"""Every evaluation and every second is booked once: a candidate's, or extra and as what."""

import pytest
from conformance import ALGORITHMS, SEED
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.budget import Budget
from noise_search.search.ledger import (
    BATCH_TRIAL,
    LEFT_OUT,
    MADE_ANEW,
    RENDERED_AGAIN,
    TOO_LATE,
    UNFINISHED,
    Cost,
    Ledger,
)
from noise_search.search.log import Pool, SearchLog
from noise_search.search.run import search
from synthetic import SyntheticEngine, smooth, tilted, white


def cost(nfe, seconds=0.0, phase="sample"):
    return Cost(nfe, {phase: seconds} if seconds else {})


class Counting(SyntheticEngine):
    """Counts what it evaluates, beside the ledger."""

    def __init__(self, *landscapes, **settings):
        super().__init__(*landscapes, **settings)
        self.evaluated = [0]

    def spend(self, steps):
        super().spend(steps)
        self.evaluated[0] += steps * self.rows


def found(algorithm, engine, budget=None, **options):
    return search(
        algorithm, engine, Pool(SearchLog(engine.members, engine.rows)), SEED, budget or Budget(16), **options
    )


def assert_booked_once(log, evaluated):
    ledger = log.ledger
    assert not ledger.pending
    assert (
        log.nfe == evaluated == sum(one.nfe for one in log.candidates) + sum(one.nfe for one in ledger.extra.values())
    )
    seconds = sum(one.cost.seconds for one in log.candidates) + sum(one.seconds for one in ledger.extra.values())
    assert log.seconds == pytest.approx(seconds)


@pytest.mark.parametrize("chunk, rows", [(1, 2), (3, 1)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_that_a_search_evaluates_is_booked_once(name, chunk, rows):
    engine = Counting(white, tilted, rows=rows)
    engine.chunk = chunk
    log = found(ALGORITHMS[name], engine, Budget(30, patience=5)).log
    assert_booked_once(log, engine.evaluated[0])
    assert log.ledger.extra.keys() <= {RENDERED_AGAIN, TOO_LATE}


def test_what_is_extra_says_what_it_was_for():
    """Ranks let an earlier candidate win again; five more than patience asks for come in one chunk."""
    engine = Counting(smooth, tilted)
    engine.chunk = 8
    log = found(RandomSearch(), engine, Budget(60, patience=3)).log
    late = log.ledger.extra[TOO_LATE]
    assert late.nfe > 0 and late.phases.keys() == {"sample", "score"}
    assert log.ledger.extra.get(RENDERED_AGAIN, Cost()).nfe in (0, 10)
    assert log.to_dict()["extra"] == {kind: one.nfe for kind, one in log.ledger.extra.items()}


def test_what_was_begun_and_never_scored_is_extra():
    class Breaks(SyntheticEngine):
        def score(self, state):
            made = super().score(state)
            if len(self.rendered) == 3:
                self.spend(4)  # on the next one
            return made

    log = found(RandomSearch(), Breaks(), Budget(3)).log
    assert log.ledger.extra[UNFINISHED] == cost(4, 0.2)


@pytest.mark.parametrize("candidates", [4, 6])
def test_what_is_left_out_counts_against_the_budget(candidates):
    class Broken(Counting):
        def render(self, wanted):
            for one in super().render(wanted):
                yield self.broken(one)

        def broken(self, one):
            object.__setattr__(one, "error", "NaN" if one.recipes[0].seed % 2 == 0 else None)
            return one

    engine = Broken()
    log = found(RandomSearch(), engine, Budget(candidates), drop=True).log
    assert log.ledger.extra[LEFT_OUT].nfe == candidates // 2 * 10
    assert engine.evaluated[0] == candidates * 10
    assert_booked_once(log, engine.evaluated[0])


# The ledger itself


def test_an_answer_takes_what_is_pending_and_no_more():
    ledger = Ledger()
    ledger.spend(cost(3, 1.0))
    ledger.spend(cost(2, 0.5, "score"))
    assert ledger.answer(cost(2, 0.5)) == cost(2, 0.5)
    assert (ledger.pending.nfe, dict(ledger.pending.phases)) == (3, {"sample": 0.5, "score": 0.5})
    assert ledger.answer() == Cost(3, {"sample": 0.5, "score": 0.5})
    assert not ledger.pending and ledger.spent == Cost(5, {"sample": 1.0, "score": 0.5})


def test_what_is_set_apart_is_nobodys_and_not_measured_around_it():
    ledger = Ledger()
    outer = ledger.measure()
    ledger.spend(cost(1))
    with ledger.as_extra(BATCH_TRIAL):
        ledger.spend(cost(5, 2.0))
        inner = ledger.measure()
        ledger.spend(cost(4))
        assert inner.cost == cost(4)
    assert outer.cost == cost(1) == ledger.pending
    assert ledger.extra == {BATCH_TRIAL: cost(9, 2.0)}
    assert ledger.total == cost(9, 2.0)


def test_work_that_fails_is_set_apart_all_the_same():
    ledger = Ledger()
    with pytest.raises(KeyboardInterrupt), ledger.as_extra(BATCH_TRIAL), ledger.clock("sample"):
        ledger.spend(cost(5))
        raise KeyboardInterrupt
    assert ledger.extra[BATCH_TRIAL].nfe == 5 and ledger.extra[BATCH_TRIAL].seconds > 0
    assert not ledger.pending


def test_a_search_made_anew_keeps_what_will_be_charged_again():
    ledger = Ledger()
    for nfe in (10, 10, 10):
        ledger.spend(cost(nfe))
        ledger.charge(ledger.answer())
    ledger.spend(cost(2))
    ledger.book(LEFT_OUT, cost(10))
    ledger.start_again(known=cost(20))
    assert ledger.extra == {MADE_ANEW: cost(22)}
    assert (ledger.budgeted, ledger.pending, ledger.candidates) == (Cost(), Cost(), Cost())


def test_a_shared_run_is_shared_in_whole_evaluations():
    assert cost(98, 4.9).shared(49).nfe == 2
    assert cost(100).shared(49).nfe == 2
    assert cost(8, 2.0).shared(4) == cost(2, 0.5)
