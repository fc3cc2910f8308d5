"""Which part of a workflow runs again for another picture. Needs no ComfyUI: classes are told by hand."""

import pytest
from noise_search.host.graph.part import NodeClass, NothingToVary, find_part, links_into

SAMPLER = {"model": "MODEL", "latent": "LATENT"}
pytestmark = pytest.mark.any_host

CLASSES = {
    "Load": NodeClass({}, ("MODEL", "VAE")),
    "Empty": NodeClass({}, ("LATENT",)),
    "Sampler": NodeClass({**SAMPLER, "seed": "INT"}, ("LATENT",)),
    "Stage": NodeClass({**SAMPLER, "noise_seed": "INT", "add_noise": "COMBO"}, ("LATENT",)),
    "Piped": NodeClass({"pipe": "BASIC_PIPE", "seed": "INT"}, ("IMAGE", "LATENT")),
    "Noise": NodeClass({"noise_seed": "INT"}, ("NOISE",)),
    "NoNoise": NodeClass({}, ("NOISE",)),
    "Custom": NodeClass({"noise": "NOISE", "guider": "GUIDER", "latent": "LATENT"}, ("LATENT", "LATENT")),
    "Number": NodeClass({"value": "INT"}, ("INT",)),
    "Decode": NodeClass({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "Encode": NodeClass({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "Save": NodeClass({"images": "IMAGE"}, ("IMAGE",), is_output=True),
    "Show": NodeClass({"images": "IMAGE"}, (), is_output=True),
    "Paid": NodeClass({"image": "IMAGE", "seed": "INT"}, ("IMAGE",), is_paid=True),
    "Search": NodeClass({**SAMPLER, "seed": "INT", "verifier": "NOISE_SEARCH_VERIFIER"}, ("LATENT", "IMAGE")),
    "Switch": NodeClass({"switch": "BOOLEAN", "yes": "*", "no": "*"}, ("*",), lazy=frozenset({"yes", "no"})),
    "Picture": NodeClass({}, ("IMAGE",)),
    "Wildcard": NodeClass({"seed": "INT"}, ("STRING",)),
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**nodes):
    return {"m": node("Load"), "l": node("Empty"), **nodes, "d": node("Decode", samples=["k", 0], vae=["m", 1])}


def sampler(seed=1, latent="l", kind="Sampler"):
    return node(kind, model=["m", 0], latent=[latent, 0], seed=seed)


def stage(seed, latent, add):
    return node("Stage", model=["m", 0], latent=[latent, 0], noise_seed=seed, add_noise=add)


def part(graph, *targets, all_stages=False):
    return find_part(graph, targets or [("d", 0)], CLASSES.__getitem__, all_stages)


def varied(found):
    return [source.node_id for source in found.sources]


def test_a_sampler_and_what_comes_after_it():
    whole = graph(k=sampler())
    found = part(whole)
    assert found.nodes == {"k", "d"} and varied(found) == ["k"] and found.samplers == {"k": ("k", 0)}
    assert links_into(found, whole, CLASSES.__getitem__)[0] == (("m", 0), ("l", 0), ("m", 1))


@pytest.mark.parametrize("add", ["disable", False])
def test_a_stage_that_adds_no_noise_runs_again_and_does_not_vary(add):
    found = part(graph(high=stage(1, "l", "enable"), k=stage(0, "high", add)))
    assert found.nodes == {"high", "k", "d"} and varied(found) == ["high"]


@pytest.mark.parametrize(("all_stages", "expected"), [(False, ["a"]), (True, ["a", "k"])])
def test_later_stages_vary_where_that_is_wanted(all_stages, expected):
    assert varied(part(graph(a=sampler(1), k=sampler(2, "a")), all_stages=all_stages)) == expected


def test_what_shares_a_linked_seed_varies_together():
    found = part(graph(n=node("Number", value=3), a=sampler(["n", 0]), k=sampler(["n", 0], "a")))
    assert varied(found) == ["a", "k"] and "n" not in found.nodes


def test_one_noise_for_two_samplers():
    custom = {"guider": ["m", 0], "noise": ["n", 0]}
    found = part(
        graph(
            n=node("Noise", noise_seed=1),
            a=node("Custom", **custom, latent=["l", 0]),
            k=node("Custom", **custom, latent=["a", 0]),
        )
    )
    assert varied(found) == ["n"] and found.samplers == {"n": ("a", 0)} and found.nodes == {"n", "a", "k", "d"}


def test_two_first_stages_both_vary():
    both = {"b": sampler(2), "e": node("Decode", samples=["b", 0], vae=["m", 1])}
    whole = graph(k=sampler(1), **both)
    whole["f"] = node("Encode", pixels=["d", 0], vae=["e", 0])
    assert varied(part(whole, ("f", 0))) == ["b", "k"] or varied(part(whole, ("f", 0))) == ["k", "b"]


def test_a_sampler_of_a_pack_that_takes_a_pipe():
    whole = {"p": node("Load"), "k": node("Piped", pipe=["p", 0], seed=4)}
    assert varied(part(whole, ("k", 0))) == ["k"]


def test_another_seed_is_no_noise():
    whole = graph(w=node("Wildcard", seed=1), k=sampler())
    whole["k"]["inputs"]["text"] = ["w", 0]
    assert varied(part(whole)) == ["k"]


def test_what_else_is_wanted_of_the_winner_runs_again_too():
    whole = graph(k=sampler(), e=node("Encode", pixels=["d", 0], vae=["m", 1]))
    assert part(whole, ("d", 0), ("e", 0)).nodes == {"k", "d", "e"}
    assert part(whole, ("d", 0), ("l", 0)).nodes == {"k", "d"}


def test_what_hangs_on_the_part_beside_the_picture_does_not_run():
    assert part(graph(k=sampler(), show=node("Show", images=["d", 0]))).nodes == {"k", "d"}


def test_an_output_node_on_the_way_passes_on_what_it_saves():
    whole = graph(k=sampler(), s=node("Save", images=["d", 0]))
    assert part(whole, ("s", 0)).saves == {"s": ("d", 0)}


def test_only_what_lazy_inputs_ask_for_comes_in():
    whole = graph(k=sampler(), p=node("Picture"), o=node("Picture"))
    whole["w"] = node("Switch", switch=True, yes=["d", 0], no=["p", 0])
    found = part(whole, ("w", 0))
    links = lambda *asked: links_into(found, whole, CLASSES.__getitem__, lambda one: asked)  # noqa: E731
    assert links()[0] == () and links()[1] == {"w"}
    assert links("yes") == ((("m", 0), ("l", 0), ("m", 1)), {"w", "d", "k"})
    assert links("no") == ((("p", 0),), {"w"})


REFUSED = {
    "no sampler": ({"d": node("Picture")}, "no sampler is behind Picture"),
    "no noise": (graph(k=stage(1, "l", "disable")), "Stage \\(node k\\) adds no noise"),
    "a noise without a seed": (
        graph(n=node("NoNoise"), k=node("Custom", noise=["n", 0], guider=["m", 0], latent=["l", 0])),
        "NoNoise \\(node n\\), which has no seed",
    ),
    "a search": (graph(k=sampler(kind="Search")), "Search \\(node k\\), which searches by itself"),
    "a paid picture": ({"p": node("Picture"), "d": node("Paid", image=["p", 0], seed=1)}, "would be paid for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_to_vary_is_said_with_what_was_found(name):
    whole, sentence = REFUSED[name]
    with pytest.raises(NothingToVary, match=sentence):
        part(whole)


def test_a_paid_node_after_the_noise_is_refused():
    whole = graph(k=sampler(), u=node("Paid", image=["d", 0], seed=1))
    with pytest.raises(ValueError, match="Paid \\(node u\\) would be paid for once per candidate"):
        part(whole, ("u", 0))


def test_a_search_behind_the_picture_is_refused():
    """A node that searches by itself would search anew for every candidate."""
    whole = graph(k=sampler())
    whole["s"] = node("Inner", image=["d", 0], verifier=["m", 0])
    classes = {**CLASSES, "Inner": NodeClass({"image": "IMAGE", "verifier": "NOISE_SEARCH_VERIFIER"}, ("IMAGE",))}
    with pytest.raises(NothingToVary, match="Inner \\(node s\\), which searches by itself"):
        find_part(whole, [("s", 0)], classes.__getitem__)
