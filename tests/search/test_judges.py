"""What the VERIFIER socket carries, read once."""

import pytest
from noise_search.search.judges import MAY_SAY, Judge, combined, gated, judges_of


class Plain:
    """Says no more than it must."""

    members, needs_prompt = ("plain",), False

    def score(self, images, prompts):
        raise AssertionError("reading a verifier scores nothing")


class Grader(Plain):
    """Says all that it may."""

    members, needs_prompt = ("overall", "detail"), True
    usual_range, prompt_tokens, repeatable, member_weights, patcher = (0.0, 10.0), 35, False, (1.0, 0.0), "network"
    previews = False

    def identity(self):
        return "grader"

    def cut(self, prompt):
        return f"reads half of {prompt!r}" if len(prompt) > 5 else None


def test_a_verifier_need_say_no_more_than_it_must():
    judges = judges_of(Plain())
    assert judges.members == ("plain",) and not judges.needs_prompt
    assert judges.usual_ranges == (None,) and judges.prompt_tokens is None
    assert judges.noisy == () and judges.patchers == [] and judges.patcher is None
    assert judges.cuts(["a long prompt"]) == []
    assert judges.aggregator.weights is None and judges.finals_only == judges.comparative == () and judges.scored


def test_all_that_it_says_is_read():
    judges = judges_of(Grader())
    assert judges.members == ("overall", "detail") and judges.needs_prompt
    assert judges.usual_ranges == ((0.0, 10.0), (0.0, 10.0)) and judges.prompt_tokens == 35
    assert judges.noisy == (0, 1) and judges.patchers == ["network"] and judges.patcher == "network"
    assert judges.cuts(["a long prompt", "short", "a long prompt"]) == ["reads half of 'a long prompt'"]
    assert judges.aggregator.weights == (1.0, 0.0) and judges.finals_only == (0, 1)
    assert {name for name in MAY_SAY if not hasattr(Grader, name)} == set()


def test_it_is_read_once():
    judges = judges_of(Plain())
    assert judges_of(judges) is judges


@pytest.mark.parametrize("wrong", [None, "CLIP Score", object()])
def test_what_is_no_verifier_is_refused(wrong):
    with pytest.raises(ValueError, match=f"'verifier' is {type(wrong).__name__}, which has no members .*connect a"):
        judges_of(wrong)


def test_an_ensemble_is_flat():
    inner = combined([(Plain(), 2.0), (gated(Grader(), 5.0), 0.5)])
    judges = combined([(inner, 3.0), (Plain(), 1.0)], "z-score", drop_failed=True)
    assert [judge.weight for judge in judges.judges] == [6.0, 1.5, 1.0]
    assert [judge.gate for judge in judges.judges] == [None, 5.0, None]
    assert all(isinstance(judge, Judge) and judge.drop for judge in judges.judges)
    assert judges.members == ("plain (1)", "overall", "detail", "plain (2)")
    assert judges.aggregator.weights == (6.0, 1.5, 0.0, 1.0)
    assert judges.aggregator.gates == (None, 5.0, None, None)  # what only reports does not veto
    assert judges.usual_ranges == (None, (0.0, 10.0), (0.0, 10.0), None) and judges.noisy == (1, 2)


def test_what_is_remembered_of_one_verifier_is_its_own():
    """The store's keys hold it: they must not change."""
    assert judges_of(Grader()).identity() == "grader"
    alone, twice = gated(Grader(), 1.0).identity(), combined([(Grader(), 1.0), (Grader(), 0.0)]).identity()
    assert len({"grader", alone, twice}) == 3
    assert gated(Grader(), 2.0).identity() == alone
    assert alone == "4379486bc0c566eb0b2c242807cbc04f983cbf508a4ff09cb63d7d699681272d"


def test_a_verifier_without_identity_says_so():
    for judges in (judges_of(Plain()), combined([(Grader(), 1.0), (Plain(), 1.0)])):
        with pytest.raises(ValueError, match="the verifier plain does not say what determines its values"):
            judges.identity()


@pytest.mark.parametrize(("inner", "outer"), [(3.0, 5.0), (5.0, 3.0)])
def test_of_two_gates_on_one_verifier_the_higher_counts(inner, outer):
    assert gated(gated(Plain(), inner), outer).aggregator.gates == (5.0,)
