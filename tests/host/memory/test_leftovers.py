"""What sampling leaves in the objects of packs does not make another search, and what the user changes does."""

import dataclasses
import gc

import pytest
import torch

pytest.importorskip("comfy")

from any_model import made, sampling_of
from noise_search.host.graph.graph import Graph
from noise_search.host.memory import content
from noise_search.host.memory.leftovers import Left, Leftovers, changed_since, undone
from remembered import CANDIDATES, Grey, find, known

# How packs remember something of a run. Each is made by a node, which makes a MODEL with it.


class Counter:
    """Sets an attribute that was not there before, another after every run, as DynamicThresholding does."""

    runs = 0

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, values):
        Counter.runs += 1
        self.step = Counter.runs
        return self.scale * values["denoised"]


class Previous(Counter):
    """Keeps the last prediction, as Automatic CFG does in its node."""

    def __init__(self, scale=1.0):
        super().__init__(scale)
        self.previous = None

    def __call__(self, values):
        self.previous = values["denoised"].clone()
        return self.scale * values["denoised"]


class Inside(Counter):
    """Keeps it in an object of its own, which is another after every run."""

    def __call__(self, values):
        self.state = Previous(float(values["denoised"].sum()))
        return self.scale * values["denoised"]


class Schedule(Counter):
    """Sets an attribute that is there from the first, once, as Advanced-ControlNet does in its keyframes."""

    def __init__(self, scale=1.0):
        super().__init__(scale)
        self.starts = [999.0]

    def __call__(self, values):
        self.starts[0] = 14.6
        return self.scale * values["denoised"]


class OfTheClass(Counter):
    last = 0.0

    def __call__(self, values):
        OfTheClass.last = float(values["denoised"].sum())
        return self.scale * values["denoised"]


def in_a_cell(scale=1.0):
    memory = {"step": 0}

    def patch(values):
        memory["step"] += 1
        return scale * values["denoised"]

    return patch


def in_a_global(scale=1.0):
    def patch(values):
        globals()["LAST"] = LAST + 1
        return scale * values["denoised"]

    return patch


LAST = 0
KINDS = [Counter, Previous, Inside, Schedule, OfTheClass, in_a_cell, in_a_global]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def patched(patch):
    setup = made("sd15")
    model = setup.model.clone()
    model.set_model_sampler_post_cfg_function(patch)
    return dataclasses.replace(setup, model=model)


def restarted(monkeypatch):
    """As in a new process: nothing is known of what was left."""
    monkeypatch.setattr(content, "_leftovers", Leftovers())
    monkeypatch.setattr(Counter, "runs", 0)
    monkeypatch.setattr(OfTheClass, "last", 0.0)
    monkeypatch.setitem(globals(), "LAST", 0)


@each_kind
def test_what_a_run_leaves_makes_no_other_search(store, monkeypatch, kind):  # noqa: F811
    restarted(monkeypatch)
    patch = kind()
    setup = patched(patch)
    first, again, third = (find(store, sampling_of(setup)) for _ in range(3))
    node_ran_again = find(store, sampling_of(patched(patch)))
    new = find(store, sampling_of(patched(kind())))
    restarted(monkeypatch)
    after_restart = find(store, sampling_of(patched(kind())))
    found = first, again, third, node_ran_again, new, after_restart
    assert known(*found) == [0] + [CANDIDATES] * 5
    assert [result.log.warnings for result in found] == [[]] * 6


@each_kind
def test_what_the_user_sets_is_another_search(store, kind):  # noqa: F811
    first = find(store, sampling_of(patched(kind())))
    other = find(store, sampling_of(patched(kind(0.9))))
    assert known(first, other) == [0, 0]


@pytest.mark.parametrize("name", ["scale", "step"])
def test_what_the_user_sets_on_the_same_object_is_another_search(store, name):  # noqa: F811
    patch = Counter()
    first = find(store, sampling_of(patched(patch)))
    setattr(patch, name, 0.25)
    other = find(store, sampling_of(patched(patch)))
    assert known(first, other) == [0, 0]
    warned = [note for note in other.log.warnings if "step is not what the last search left there" in note]
    assert bool(warned) == (name == "step")  # the user, or another run: that cannot be told


def test_what_a_cancelled_run_leaves_makes_no_other_search(store):  # noqa: F811
    class Cancelling(Grey):
        def score(self, images, prompts):
            if self.scored == 2:
                raise KeyboardInterrupt
            return super().score(images, prompts)

    setup = patched(Previous())
    with pytest.raises(KeyboardInterrupt):
        find(store, sampling_of(setup), Cancelling())
    assert known(find(store, sampling_of(setup))) == [2]


def test_what_a_pack_leaves_on_the_network_makes_no_other_search(store):  # noqa: F811
    def patch(values):
        network = values["model"].diffusion_model
        network.last_residual = values["denoised"].clone()
        return values["denoised"]

    network = made("sd15").model.model.diffusion_model
    try:
        plain = find(store, sampling_of(made("sd15")))
        found = [find(store, sampling_of(patched(patch))) for _ in range(2)]
        plain_again = find(store, sampling_of(made("sd15")))
    finally:
        del network.last_residual
    assert known(plain, *found, plain_again) == [0, 0, CANDIDATES, CANDIDATES]


def test_what_changes_where_nothing_can_be_learnt_is_said(store):  # noqa: F811
    setup = made("sd15")
    values = setup.positive[0][1]
    values["pack"] = {"step": 0}

    class Changing(Grey):
        def score(self, images, prompts):
            values["pack"]["step"] += 1
            return super().score(images, prompts)

    try:
        first, again = (find(store, sampling_of(setup), Changing(), graph=Graph("1")) for _ in range(2))
    finally:
        del values["pack"]
    assert known(first, again) == [0, 0]
    for result in (first, again):
        assert [note for note in result.log.warnings if "Sampling changed guider" in note and ".pack.step" in note]


# By itself


class Owner:
    pass


def test_only_the_very_value_that_was_left_counts_as_the_one_before():
    left = {"a": Left(b"now", b"then"), "b": Left(b"now", None), "c": Left(None, b"then")}
    assert undone({"a": b"now", "b": b"now"}, left) == {"a": b"then", "c": b"then"}
    assert undone({"a": b"other", "b": b"other", "c": b"other"}, left) == {"a": b"other", "b": b"other", "c": b"other"}
    assert changed_since({"a": b"now", "b": b"other"}, left) == ["b"]
    assert changed_since({"a": b"then", "c": b"then"}, left) == []


def test_leftovers_end_with_their_object_and_are_replaced_by_later_ones():
    leftovers, owner, other = Leftovers(), Owner(), Owner()
    leftovers.learn(owner, "x", {"a": b"1"}, {"a": b"0"})
    leftovers.learn(owner, "x", {"a": b"2"}, {"a": b"0"})
    assert leftovers.of(owner, "x") == {"a": Left(b"2", b"0")}
    assert leftovers.of(owner, "y") == leftovers.of(other, "x") == {}
    leftovers.learn(owner, "x", {"a": b"0"}, {"a": b"0"})
    assert leftovers.of(owner, "x") == {}
    del owner
    gc.collect()
    assert leftovers._left == {} == leftovers._owners


def test_an_object_that_is_part_of_itself_and_met_twice_has_one_digest():
    first, second = torch.nn.Module, Owner()
    second.itself = second
    reading = content.Content()
    reading.add([second, second, first], "x")
    other = content.Content()
    again = Owner()
    again.itself = again
    other.add([again, again, first], "x")
    assert reading.digest() == other.digest()
    again.itself = None
    third = content.Content()
    third.add([again, again, first], "x")
    assert third.digest() != other.digest()
