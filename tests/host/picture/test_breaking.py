"""Search Picture where things go wrong, or are unusual, in the part that it runs."""

import gc
import threading
import weakref
from copy import deepcopy

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management
from executor import host as executor_host
from noise_search.host.memory.store import Store
from noise_search.nodes import picture as picture_nodes
from picture_graphs import HEAD, KINDS, Keep, Listed, decoded, ksampler, node, outputs, searched, stock

import nodes as comfy_nodes


def kind(inputs, outputs, work, **more):
    """A V1 node that does `work`."""

    declared = {"required": inputs} | more.pop("types", {})

    def types(cls):
        return declared

    return type("Made", (), {"CATEGORY": "test", "FUNCTION": "work", "RETURN_TYPES": outputs, "work": work,
                             "INPUT_TYPES": classmethod(types), **more})  # fmt: skip


@pytest.fixture
def host(monkeypatch):
    made = executor_host(monkeypatch)
    for one in (Keep, Listed):
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, one.__name__, one)
    Keep.kept = {}
    return made


def add(monkeypatch, **kinds):
    for name, one in kinds.items():
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, name, one)


def after_decode(**nodes):
    return {**decoded("k", k=ksampler()), **nodes}


def run(host, graph, picture, also=(), **inputs):
    search = searched(graph, picture, also, **inputs)
    host.run(search, *outputs(search))
    return search


def test_an_error_names_the_node_of_the_users_graph(host, monkeypatch):
    def fail(self, image):
        raise RuntimeError("no such picture")

    add(monkeypatch, Fails=kind({"image": ("IMAGE",)}, ("IMAGE",), fail))
    graph = after_decode(**{"12:3": node("Fails", image=["decode", 0])})
    with pytest.raises(RuntimeError, match=r"search: Fails \(node 12:3\): RuntimeError: no such picture"):
        run(host, graph, "12:3")


def test_a_search_behind_a_search_is_refused(host):
    graph = {**decoded("k", k=ksampler()), "inner": None}
    graph["inner"] = node("NoiseSearchPicture", image=["decode", 0], verifier=["demo", 3], candidates=2, prompt="",
                          top_k=1, vary="the first stage")  # fmt: skip
    with pytest.raises(RuntimeError, match=r"NoiseSearchPicture \(node inner\), which searches by itself"):
        run(host, graph, "inner")


def test_out_of_memory_once_is_survived(host, monkeypatch):
    calls = []

    def work(self, image):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return (image,)

    add(monkeypatch, Tight=kind({"image": ("IMAGE",)}, ("IMAGE",), work))
    run(host, after_decode(t=node("Tight", image=["decode", 0])), "t")
    log = Keep.kept["log"][0]
    assert len(calls) == 4 and len(log.candidates) == 3
    assert log.extra_nfe == 4  # what the try took that failed


def test_cancel_ends_it_and_what_is_made_is_let_go(host, monkeypatch):
    alive = []

    def work(self, image):
        alive.append(weakref.ref(image))
        if len(alive) == 2:
            comfy_nodes.interrupt_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return (image,)

    add(monkeypatch, Stops=kind({"image": ("IMAGE",)}, ("IMAGE",), work))
    search = searched(after_decode(s=node("Stops", image=["decode", 0])), "s")
    host.executor.execute(search, "prompt", {"client_id": "test"}, outputs(search))
    assert any(event == "execution_interrupted" for event, _ in host.executor.status_messages)
    assert len(alive) == 2
    gc.collect()
    assert [one() for one in alive] == [None, None]


SAVED = []


def save(self, images):
    SAVED.append(images)
    return {"ui": {"text": ["saved"]}, "result": (images,)}


def test_an_output_node_in_the_part_runs_once_for_the_winner(host, monkeypatch):
    add(monkeypatch, Saver=kind({"images": ("IMAGE",)}, ("IMAGE",), save, OUTPUT_NODE=True))
    SAVED.clear()
    small = node("ImageScaleBy", image=["save", 0], upscale_method="area", scale_by=0.5)
    graph = after_decode(save=node("Saver", images=["decode", 0]), small=small)
    run(host, graph, "small")
    best = Keep.kept["log"][0].best().index
    [expected] = stock(host, after_decode(), "decode", ["k.seed"], best)
    [small] = stock(host, after_decode(small=node("ImageScaleBy", image=["decode", 0], upscale_method="area",
                                                  scale_by=0.5)), "small", ["k.seed"], best)  # fmt: skip
    assert len(SAVED) == 1 and torch.equal(SAVED[0], expected)
    assert torch.equal(Keep.kept["image"][0], small)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("behind", ["the part", "outside"])
def test_a_branch_that_the_workflow_does_not_take_is_not_run(host, monkeypatch, linked, behind):
    def work(self, image=None):
        raise AssertionError("it was run")

    kinds = {"the part": kind({"image": ("IMAGE",)}, ("IMAGE",), work), "outside": kind({}, ("IMAGE",), work)}
    add(monkeypatch, Never=kinds[behind])
    inputs = {"image": ["decode", 0]} if behind == "the part" else {}
    graph = after_decode(
        never=node("Never", **inputs),
        yes=node("PrimitiveBoolean", value=True),
        switch=node("ComfySwitchNode", switch=["yes", 0] if linked else True, on_true=["decode", 0],
                    on_false=["never", 0]),
    )  # fmt: skip
    run(host, graph, "switch")
    assert len(Keep.kept["log"][0].candidates) == 3


def test_an_output_node_on_a_branch_that_is_not_taken_saves_nothing(host, monkeypatch):
    add(monkeypatch, Saver=kind({"images": ("IMAGE",)}, ("IMAGE",), save, OUTPUT_NODE=True))
    SAVED.clear()
    graph = after_decode(
        other=node("ImageScaleBy", image=["decode", 0], upscale_method="area", scale_by=0.5),
        far=node("Saver", images=["other", 0]),
        near=node("Saver", images=["decode", 0]),
        both=node("ImageBatch", image1=["far", 0], image2=["near", 0]),
        switch=node("ComfySwitchNode", switch=True, on_true=["decode", 0], on_false=["both", 0]),
    )
    run(host, graph, "switch")
    [expected] = stock(host, after_decode(), "decode", ["k.seed"], Keep.kept["log"][0].best().index)
    assert not SAVED and torch.equal(Keep.kept["image"][0], expected)


@pytest.mark.parametrize("times", [1, 2])
def test_output_nodes_in_a_row_each_save_the_winner_once(host, monkeypatch, times):
    add(monkeypatch, Saver=kind({"images": ("IMAGE",)}, ("IMAGE",), save, OUTPUT_NODE=True))
    SAVED.clear()
    links = ["decode", "one", "two"]
    savers = {links[n + 1]: node("Saver", images=[links[n], 0]) for n in range(times)}
    run(host, after_decode(**savers), links[times])
    assert len(SAVED) == times and all(torch.equal(one, Keep.kept["image"][0]) for one in SAVED)


def test_out_of_memory_twice_is_comfyuis_own(host, monkeypatch):
    def work(self, image):
        raise torch.OutOfMemoryError("out of memory")

    add(monkeypatch, Tight=kind({"image": ("IMAGE",)}, ("IMAGE",), work))
    with pytest.raises(RuntimeError, match="(?i)out of memory"):
        run(host, after_decode(t=node("Tight", image=["decode", 0])), "t")


def test_nodes_of_lists_and_of_values_that_change_work_in_the_part(host, monkeypatch):
    def work(self, image):
        return ([one.flip(1) for one in image],)

    def changed(cls, **inputs):
        return float("nan")

    more = {"INPUT_IS_LIST": True, "OUTPUT_IS_LIST": (True,), "IS_CHANGED": classmethod(changed)}
    add(monkeypatch, Lists=kind({"image": ("IMAGE",)}, ("IMAGE",), work, **more))
    graph = after_decode(lists=node("Lists", image=["decode", 0]))
    run(host, graph, "lists")
    [expected] = stock(host, graph, "lists", ["k.seed"], Keep.kept["log"][0].best().index)
    assert torch.equal(Keep.kept["image"][0], expected)


def test_two_searches_side_by_side_are_what_each_is_alone(host):
    graph = searched(decoded("k", k=ksampler()), "decode")
    host.run(graph, *outputs(graph))
    alone = Keep.kept["image"][0]
    second = node("NoiseSearchPicture", **{**graph["search"]["inputs"], "candidates": 2})
    graph |= {"second": second, "keep second": node("Keep", value=["second", 3], key="second")}
    Keep.kept = {}
    host.executor.reset()
    host.run(graph, *outputs(graph))
    assert torch.equal(Keep.kept["image"][0], alone)
    assert [one.values for one in Keep.kept["second"][0].candidates] == [
        one.values for one in Keep.kept["log"][0].candidates[:2]
    ]


def test_nodes_that_expand_work_in_the_part(host, monkeypatch):
    from comfy_execution.graph_utils import GraphBuilder

    def work(self, image):
        builder = GraphBuilder()
        small = builder.node("ImageScaleBy", image=image, upscale_method="area", scale_by=0.5)
        return {"result": (small.out(0),), "expand": builder.finalize()}

    add(monkeypatch, Expands=kind({"image": ("IMAGE",)}, ("IMAGE",), work))
    graph = after_decode(e=node("Expands", image=["decode", 0]))
    run(host, graph, "e")
    [expected] = stock(host, graph, "e", ["k.seed"], Keep.kept["log"][0].best().index)
    assert torch.equal(Keep.kept["image"][0], expected)
    assert not any("." in one for one in host.all_ids if not one.startswith("e."))


def test_async_nodes_work_in_the_part(host, monkeypatch):
    import asyncio

    async def work(self, image):
        await asyncio.sleep(0.01)
        return (image.flip(1),)

    add(monkeypatch, Slow=kind({"image": ("IMAGE",)}, ("IMAGE",), work))
    graph = after_decode(s=node("Slow", image=["decode", 0]))
    run(host, graph, "s")
    [expected] = stock(host, graph, "s", ["k.seed"], Keep.kept["log"][0].best().index)
    assert torch.equal(Keep.kept["image"][0], expected)


def test_a_node_sees_the_users_graph_and_its_own_id(host, monkeypatch):
    seen = []

    def work(self, image, me, prompt, info):
        seen.append((me, sorted(prompt), info))
        return (image,)

    hidden = {"hidden": {"me": "UNIQUE_ID", "prompt": "PROMPT", "info": "EXTRA_PNGINFO"}}
    add(monkeypatch, Looks=kind({"image": ("IMAGE",)}, ("IMAGE",), work, types=hidden))
    search = searched(after_decode(look=node("Looks", image=["decode", 0])), "look")
    host.run(search, *outputs(search), extra={"extra_pnginfo": {"mine": 1}})
    assert {(me, *names) for me, names, _ in seen} == {("look", *sorted(search))}
    assert all(info["mine"] == 1 for _, _, info in seen)


def test_pictures_of_different_sizes_in_a_list(host, monkeypatch):
    def work(self):
        return ([{"samples": torch.zeros(1, 16, 8, 8)}, {"samples": torch.zeros(1, 16, 16, 8)}],)

    add(monkeypatch, Latents=kind({}, ("LATENT",), work, OUTPUT_IS_LIST=(True,)))
    graph = {**decoded("k", k=ksampler()), "latent": node("Latents")}
    run(host, graph, "decode", also=[("k", 0)], top_k=1)
    log = Keep.kept["log"][0]
    assert log.rows == 2
    for row, image in enumerate(Keep.kept["image"]):
        expected = stock(host, graph, "decode", ["k.seed"], log.best(row).index)[row]
        assert torch.equal(image, expected)
        assert Keep.kept["also_1"][row]["samples"].shape[2] == image.shape[1] // 8


@pytest.mark.parametrize("name", ["KSampler", "with noise of its own", "a pair", "SamplerCustom", "a batch",
                                  "SamplerCustomAdvanced", "a seed from a primitive", "a list of seeds"])  # fmt: skip
def test_a_winner_of_turned_noises_is_made_again_from_its_recipe(host, name):
    graph, _ = KINDS[name]
    graph = deepcopy(graph) | {"zero": node("NoiseSearchZeroOrder", neighbours=2, angle=30.0,
                                            no_better_neighbour="keep the pivot")}  # fmt: skip
    picture = "decode"
    run(host, graph, picture, search=["zero", 0], candidates=4)
    first = dict(Keep.kept)
    assert all(recipe.moves for one in first["log"][0].candidates[1:] for recipe in one.recipes)
    again = graph | {"zero": node("NoiseSearchReplayRecipe", recipe=first["recipe"][0])}
    run(host, again, picture, search=["zero", 0], candidates=4)
    for before, now in zip(first["image"], Keep.kept["image"], strict=True):
        assert torch.equal(before, now)
    assert Keep.kept["recipe"] == first["recipe"]


def test_it_searches_as_search_ksampler_does(host):
    zero = {"zero": node("NoiseSearchZeroOrder", neighbours=2, angle=30.0, no_better_neighbour="keep the pivot")}
    for more in ({}, {"search": ["zero", 0]}):
        graph = {**decoded("k", k=ksampler()), **zero}
        run(host, graph, "decode", candidates=5, **more)
        mine = dict(Keep.kept)
        inputs = dict(graph["k"]["inputs"])
        fused = {**HEAD, **zero, "f": node("NoiseSearchKSampler", **inputs, vae=["demo", 2], verifier=["demo", 3],
                                           candidates=5, prompt="", top_k=1, **more)}  # fmt: skip
        fused["keep"] = node("Keep", value=["f", 1], key="image")
        fused["keep log"] = node("Keep", value=["f", 5], key="log")
        host.run(fused, "keep", "keep log")
        assert torch.equal(mine["image"][0], Keep.kept["image"][0])
        ours, theirs = (one["log"][0].candidates for one in (mine, Keep.kept))
        assert [(one.recipes, one.values, one.nfe) for one in ours] == [
            (one.recipes, one.values, one.nfe) for one in theirs
        ]


@pytest.mark.parametrize(("search", "sentence"), [
    (node("NoiseSearchPaths", paths=1, branches=2, sigma=0.1, delta_forward=0.3, delta_backward=0.4), "over paths"),
    (node("NoiseSearchDraftAndFinal", draft_steps=2, finals=1), "draft and final"),
])  # fmt: skip
def test_what_needs_a_single_sampler_is_refused_in_a_sentence(host, search, sentence):
    with pytest.raises(RuntimeError, match=f"(?i){sentence}.*runs a workflow as a whole"):
        run(host, decoded("k", k=ksampler()) | {"s": search}, "decode", search=["s", 0])


CALLS = []


def count(self, image):
    CALLS.append(1)
    return (image,)


@pytest.fixture
def counted(monkeypatch):
    def calls(candidates, extra=None, **inputs):
        """How many candidates a fresh ComfyUI makes for it."""
        CALLS.clear()
        made = executor_host(monkeypatch)
        for name, one in (("Keep", Keep), ("Counts", kind({"image": ("IMAGE",)}, ("IMAGE",), count))):
            monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, name, one)
        search = searched(after_decode(c=node("Counts", image=["decode", 0])), "c", candidates=candidates, **inputs)
        made.run(search, *outputs(search), extra=extra)
        return len(CALLS)

    return calls


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_known_is_not_made_again(counted, monkeypatch, tmp_path, batch):
    store = Store(tmp_path)
    monkeypatch.setattr(picture_nodes, "default_store", lambda: store)
    latent = node("EmptySD3LatentImage", width=64, height=64, batch_size=batch)
    monkeypatch.setitem(HEAD, "latent", latent)
    assert counted(3, top_k=1) == 3
    winners = Keep.kept["log"][0].winners()
    assert counted(3, top_k=1) == len(
        {one.seed for one in winners}
    )  # they are rendered once more, as pictures are not kept
    assert Keep.kept["log"][0].winners() == winners
    more = counted(5, top_k=1)
    log = Keep.kept["log"][0]
    again = {log.best(row).index for row in range(batch)} & {0, 1, 2}
    assert more == 2 + len(again) and len(log.candidates) == 5


def test_a_saved_picture_makes_its_winner_again(counted):
    saved = {"extra_pnginfo": {"workflow": {"nodes": []}}}
    assert counted(3, saved, top_k=1) == 3
    winner, recipe = Keep.kept["image"][0], Keep.kept["recipe"]
    assert counted(3, {"extra_pnginfo": {"workflow": deepcopy(saved["extra_pnginfo"]["workflow"])}}, top_k=1) == 1
    assert torch.equal(Keep.kept["image"][0], winner) and Keep.kept["recipe"] == recipe


def test_a_search_of_another_node_behind_the_picture_is_refused(host):
    graph = {**HEAD, "f": node("NoiseSearchKSampler", **ksampler()["inputs"], vae=["demo", 2], verifier=["demo", 3],
                               candidates=2, prompt="", top_k=1)}  # fmt: skip
    graph["decode"] = node("VAEDecode", samples=["f", 0], vae=["demo", 2])
    with pytest.raises(RuntimeError, match=r"NoiseSearchKSampler \(node f\), which searches by itself"):
        run(host, graph, "decode")


def test_a_node_that_is_paid_for_is_refused_before_anything_is_sampled(host, monkeypatch):
    add(monkeypatch, Paid=kind({"image": ("IMAGE",)}, ("IMAGE",), count, API_NODE=True))
    CALLS.clear()
    with pytest.raises(RuntimeError, match=r"Paid \(node paid\) would be paid for once per candidate"):
        run(host, after_decode(paid=node("Paid", image=["decode", 0])), "paid")
    assert not CALLS and "k" not in host.executing


def test_cancel_while_a_candidate_is_scored_then_queued_again(host, monkeypatch):
    from noise_search.host.judging.scorer import Scorer

    score, calls = Scorer.score_all, []

    def cancelled(self, *args):
        calls.append(1)
        if len(calls) == 2:
            comfy_nodes.interrupt_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return score(self, *args)

    monkeypatch.setattr(Scorer, "score_all", cancelled)
    search = searched(decoded("k", k=ksampler()), "decode")
    host.executor.execute(search, "prompt", {"client_id": "test"}, outputs(search))
    assert any(event == "execution_interrupted" for event, _ in host.executor.status_messages)
    host.run(search, *outputs(search))
    assert len(Keep.kept["log"][0].candidates) == 3
    assert not [one for one in threading.enumerate() if one.name.startswith("noise-search-part")]


def test_a_blocked_picture_is_said_in_a_sentence(host, monkeypatch):
    from comfy_execution.graph_utils import ExecutionBlocker

    def work(self, image):
        return (ExecutionBlocker(None),)

    add(monkeypatch, Blocks=kind({"image": ("IMAGE",)}, ("IMAGE",), work))
    with pytest.raises(RuntimeError, match="'image' is ExecutionBlocker"):
        run(host, after_decode(b=node("Blocks", image=["decode", 0])), "b")


def test_noise_on_a_branch_that_is_not_taken_is_refused_in_a_sentence(host):
    switch = node("ComfySwitchNode", switch=True, on_true=["still", 0], on_false=["decode", 0])
    still = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    with pytest.raises(RuntimeError, match=r"KSampler \(node k\) is on a branch that the workflow does not take"):
        run(host, after_decode(still=still, switch=switch), "switch")


def test_an_output_node_that_changes_what_it_hands_on_is_refused(host, monkeypatch):
    def work(self, image):
        return {"ui": {}, "result": (1 - image,)}

    add(monkeypatch, Inverts=kind({"image": ("IMAGE",)}, ("IMAGE",), work, OUTPUT_NODE=True))
    with pytest.raises(RuntimeError, match=r"Inverts \(node i\) saves its picture and hands on another"):
        run(host, after_decode(i=node("Inverts", image=["decode", 0])), "i")


class Broken:
    """A console that has been closed."""

    def write(self, text):
        raise OSError("closed")

    flush = write
    encoding = "utf-8"

    def isatty(self):
        return False


def test_a_closed_console_leaves_nobody_waiting(host, monkeypatch):
    """tqdm keeps its lock where it cannot print, and ComfyUI's own bars are in the thread of the part."""
    import io
    import threading

    import tqdm.auto
    from noise_search.host import progress

    console = progress._ConsoleBar(3)
    assert console.bar is not None
    console.bar.fp = Broken()
    console.bar.sp = progress._Bar.status_printer(console.bar.fp)
    console.show(1)
    console.say("best 3")
    console.close()
    printing = lambda: tqdm.auto.tqdm(total=1, file=io.StringIO()).close()  # noqa: E731
    free = threading.Thread(target=printing, daemon=True)
    free.start()
    free.join(20)
    assert not free.is_alive()
