"""The verifier's prompt, found in the graph behind a node. Node classes are a table."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("comfy")

from noise_search.host.graph.graph import all_nodes
from noise_search.host.graph.prompt_text import FoundPrompt, PromptComputed, PromptNotFound, find_prompt

OUTPUTS = {
    "CLIPTextEncode": ["CONDITIONING"],
    "ControlNetApplyAdvanced": ["positive", "negative"],
    "InpaintModelConditioning": ["positive", "negative", "latent"],
    "PairConditioningCombine": ["positive", "negative"],
    "TwoAtOnce": ["cond_a", "cond_b"],
    "TextEncodeEdit": ["positive", "negative"],
    "Loader": ["MODEL", "CLIP", "VAE"],
    "PrimitiveString": ["STRING"],
    **dict.fromkeys(("Context", "Switch"), ["CONTEXT", "MODEL", "POSITIVE", "NEGATIVE"]),
    "ToPipe": ["basic_pipe"],
    "FromPipe": ["model", "positive", "negative"],
    "Captioner": ["positive"],
}
TYPES = {
    "Lumina": {"clip": "CLIP", "system_prompt": "COMBO", "user_prompt": "STRING"},
    "PassAnything": {"anything": "*"},
    "LoadText": {"value": "COMBO"},
    "FromPipe": {"basic_pipe": "BASIC_PIPE"},
    "Captioner": {"latent": "LATENT"},
}


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def encode(text):
    return node("CLIPTextEncode", clip=["loader", 1], text=text)


def find(start="positive", **graph):
    graph["loader"] = node("Loader")
    return find_prompt(graph, "top", start, lambda kind: OUTPUTS.get(kind, []), lambda k: TYPES.get(k, {}))


def text(start="positive", **graph):
    return find(start, **graph).text


def sampler(link, other=None):
    inputs = {"positive": link} | ({"negative": other} if other else {})
    return node("Search", **inputs)


def message(start="positive", **graph):
    with pytest.raises(PromptNotFound) as caught:
        find(start, **graph)
    return str(caught.value)


def computed(**graph):
    with pytest.raises(PromptComputed) as caught:
        find(top=sampler(["p", 0]), **graph)
    return caught.value


def test_the_text_of_the_encoder_and_where_it_stood():
    found = find(top=sampler(["6", 0], ["7", 0]), **{"6": encode("a cat"), "7": encode("bad")})
    assert found == FoundPrompt("a cat", "node 6, CLIPTextEncode")


def test_the_source_carries_the_title_that_the_user_gave_the_node():
    titled = encode("a cat") | {"_meta": {"title": "What I want"}}
    assert find(top=sampler(["6", 0]), **{"6": titled}).source == 'node 6, CLIPTextEncode, "What I want"'


CONTROLNET = {
    "top": sampler(["c", 0], ["c", 1]),
    "c": node("ControlNetApplyAdvanced", positive=["i", 0], negative=["i", 1], control_net=["loader", 0]),
    "i": node("InpaintModelConditioning", positive=["p", 0], negative=["n", 0], vae=["loader", 2]),
    "p": encode("a cat"),
    "n": encode("blurry"),
}


def context(words, id_="c"):
    return {
        id_: node("Context", positive=[f"{id_}p", 0], negative=["n", 0]),
        f"{id_}p": encode(words),
        "n": encode("blurry"),
    }


@pytest.mark.parametrize(("slot", "expected"), [(2, "a cat"), (3, "blurry")])
def test_a_prompt_is_found_through_a_context_and_a_switch_of_contexts(slot, expected):
    switch = node("Switch", ctx_01=["c", 0])
    assert text(top=sampler(["w", slot]), w=switch, **context("a cat")) == expected


def test_a_switch_of_two_contexts_may_let_either_through():
    switch = node("Switch", ctx_01=["c", 0], ctx_02=["d", 0])
    asked = message(top=sampler(["w", 2]), w=switch, **(context("a cat") | context("a dog", "d")))
    assert "2 different texts" in asked and "a cat" in asked and "a dog" in asked


@pytest.mark.parametrize(("slot", "expected"), [(1, "a cat"), (2, "blurry")])
def test_a_prompt_is_found_where_it_went_into_a_pipe(slot, expected):
    pipe = node("ToPipe", model=["loader", 0], positive=["p", 0], negative=["n", 0])
    unpack = node("FromPipe", basic_pipe=["t", 0])
    assert text(top=sampler(["f", slot]), f=unpack, t=pipe, p=encode("a cat"), n=encode("blurry")) == expected


def test_what_is_no_pipe_carries_no_prompt():
    first = node("KSampler", positive=["p", 0], negative=["n", 0])
    graph = {"first": first, "p": encode("a cat"), "n": encode("blurry")}
    assert "no text behind" in message(top=sampler(["x", 0]), x=node("Captioner", latent=["first", 0]), **graph)


@pytest.mark.parametrize("populated", ["a red circle", "a red circle <lora:x:1>"])
def test_of_a_wildcard_encoder_what_was_made_of_the_wildcards_is_the_prompt(populated):
    encoder = node("Wildcards", clip=["loader", 1], wildcard_text="a __colour__ circle", populated_text=populated)
    assert text(top=sampler(["w", 0]), w=encoder) == "a red circle"


def test_of_a_wildcard_encoder_with_wildcards_left_the_prompt_says_who_may_fill_them_in():
    encoder = node(
        "Wildcards", clip=["loader", 1], wildcard_text="a __x__ circle", populated_text="a {red|blue} circle"
    )
    found = find(top=sampler(["w", 0]), w=encoder)
    assert (found.text, found.filled_in_by) == ("a {red|blue} circle", "node w, Wildcards")


def test_of_a_pipe_that_is_loaded_and_encoded_in_one_node_the_populated_text_counts():
    made = node(
        "MakeBasicPipe",
        **dict.fromkeys(("positive_wildcard_text", "negative_wildcard_text"), "a __x__"),
        positive_populated_text="a cat",
        negative_populated_text="blurry",
    )
    assert text(top=sampler(["f", 1]), f=node("FromPipe", basic_pipe=["m", 0]), m=made) == "a cat"


@pytest.mark.parametrize(
    "constant",
    [
        node("StringConstant", string="a cat"),
        node("StringConstant", string=["s", 0]),
        node("StringConstantMultiline", string="a cat", strip_newlines=True),
        node("StringConstantMultiline", string="a \ncat\n", strip_newlines=True),
        node("StringConstantMultiline", string=["s", 0], strip_newlines=False),
        node("PrimitiveStringMultiline", value=["s", 0]),
    ],
)
def test_a_node_that_only_holds_a_text_is_read(constant):
    other = node("PrimitiveString", value="a cat")
    assert text(top=sampler(["p", 0]), p=encode(["c", 0]), c=constant, s=other) == "a cat"


def test_what_changes_a_text_computes_it():
    for other in (
        node("StringChanged", string="a cat", upper_case=True),
        node("StringConstantMultiline", string="a cat", strip_newlines=["s", 0]),
        node("StringConstantMultiline", string=["s", 0], strip_newlines=True),
    ):
        assert "computed by node c" in message(top=sampler(["p", 0]), p=encode(["c", 0]), c=other)


@pytest.mark.parametrize("name", ["Context Switch (rgthree)", "Context Switch Big (rgthree)"])
def test_a_switch_that_puts_out_the_first_context_that_holds_something(name):
    graph = context("a cat") | context("a dog", "d") | {"empty": node("Context")}
    switch = node(name, ctx_01=["empty", 0], ctx_02=["d", 0], ctx_03=["c", 0])
    types = {"ctx_01": "RGTHREE_CONTEXT", "ctx_02": "RGTHREE_CONTEXT", "ctx_03": "RGTHREE_CONTEXT"}
    slots = OUTPUTS | {name: OUTPUTS["Switch"]}
    found = find_prompt(
        {"top": sampler(["w", 2]), "w": switch, **graph},
        "top",
        "positive",
        lambda kind: slots.get(kind, []),
        lambda kind: types if kind == name else {},
    )
    assert found.text == "a dog"


def test_of_a_guider_with_two_prompts_the_one_that_the_picture_shows_counts():
    guider = node("DualCFGGuider", cond1=["p", 0], cond2=["q", 0], negative=["n", 0])
    top = node("SearchAdvanced", guider=["g", 0])
    assert text("guider", top=top, g=guider, p=encode("a cat"), q=encode("ugly"), n=encode("blurry")) == "a cat"


def test_slot_positive_goes_on_at_input_positive_of_nodes_that_carry_both():
    assert text(**CONTROLNET) == "a cat"


def test_slot_negative_goes_on_at_input_negative_even_where_it_is_wired_to_positive():
    assert text(**CONTROLNET | {"top": sampler(["c", 1])}) == "blurry"


def test_other_slots_go_on_at_their_namesakes_too():
    two = node("TwoAtOnce", cond_a=["p", 0], cond_b=["q", 0])
    assert text(top=sampler(["two", 1]), two=two, p=encode("a cat"), q=encode("a dog")) == "a dog"


@pytest.mark.parametrize("first", ["positive", "positive_A"])
def test_a_pair_combination_goes_on_at_both_positives_and_at_no_negative(first):
    pair = node("PairConditioningCombine", **{first: ["p", 0]}, negative_A=["n", 0], positive_B=["q", 0])
    listed = message(top=sampler(["pair", 0]), pair=pair, p=encode("cat"), q=encode("dog"), n=encode("blurry"))
    assert ("cat" in listed, "dog" in listed, "blurry" in listed) == (True, True, False)


@pytest.mark.parametrize("name", ["conditioning", "conditioning_1", "cond_NEW"])
def test_single_conditioning_nodes_pass_through(name):
    area = node("ConditioningSetArea", **{name: ["p", 0]}, width=64)
    assert text(top=sampler(["a", 0]), a=area, p=encode("a cat")) == "a cat"


def test_an_encoder_that_takes_a_conditioning_too_is_passed_through():
    gligen = node("GLIGENTextBoxApply", conditioning_to=["p", 0], clip=["loader", 1], text="the box")
    twice = gligen | {"inputs": gligen["inputs"] | {"conditioning_to": ["g", 0], "text": ["s", 0]}}
    graph = {"g": gligen, "h": twice, "s": node("Wildcards", text="{a|b}", seed=1), "p": encode("a cat")}
    assert text(top=sampler(["h", 0]), **graph) == "a cat"


def test_a_conditioning_input_is_known_by_what_is_linked_to_it():
    odd = node("SomebodysNode", whatever=["p", 0])
    assert text(top=sampler(["o", 0]), o=odd, p=encode("a cat")) == "a cat"


def test_equal_texts_are_one():
    both = node("ConditioningCombine", conditioning_1=["p", 0], conditioning_2=["q", 0])
    assert text(top=sampler(["b", 0]), b=both, p=encode("a cat"), q=encode(" a cat\n")) == "a cat"


def test_a_blank_text_beside_another_does_not_count():
    both = node("ConditioningConcat", conditioning_to=["p", 0], conditioning_from=["q", 0])
    assert text(top=sampler(["b", 0]), b=both, p=encode("  "), q=encode("a cat")) == "a cat"


def test_different_texts_are_listed_with_their_nodes():
    both = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["9", 0])
    listed = message(top=sampler(["b", 0]), b=both, **{"6": encode("a cat"), "9": encode("x" * 500)})
    assert "2 different texts" in listed
    assert 'node 6, CLIPTextEncode: "a cat"' in listed
    assert f'node 9, CLIPTextEncode: "{"x" * 80}..."' in listed
    assert "Type into 'prompt'" in listed


def test_a_zeroed_conditioning_has_no_text():
    zero = node("ConditioningZeroOut", conditioning=["p", 0])
    assert "there is no text behind 'positive'" in message(top=sampler(["z", 0]), z=zero, p=encode("a cat"))


@pytest.mark.parametrize(
    "texts, expected",
    [
        ({"clip_l": "tags", "t5xxl": "a sentence"}, "a sentence"),
        ({"clip_l": "tags", "clip_g": "tags", "t5xxl": " "}, "tags"),
        ({"text_l": "little", "text_g": "big"}, "big"),
        ({"text_l": "little", "text_g": ""}, "little"),
        ({"somebodys_text": "a cat"}, "a cat"),
        ({"prompt": "a cat", "negative_prompt": "blurry"}, "a cat"),
        ({"clip_l": "tags", "clip_g": "more tags", "t5xxl": "", "llama": "a sentence"}, "a sentence"),
        ({"clip_l": "tags", "clip_g": "a sentence", "t5xxl": ""}, "a sentence"),
        ({"bert": "tags", "mt5xl": "a sentence"}, "a sentence"),
        ({"clip_l": "tags", "qwen25_7b": "a sentence"}, "a sentence"),
    ],
)
def test_encoders_with_several_texts(texts, expected):
    encoder = node("Encoder", clip=["loader", 1], **texts)
    assert text(top=sampler(["e", 0]), e=encoder) == expected


def test_an_encoder_for_both_prompts_gives_the_negative_at_its_negative_output():
    encoder = node("TextEncodeEdit", clip=["loader", 1], prompt="a cat", negative_prompt="blurry")
    assert text(top=sampler(["e", 1]), e=encoder) == "blurry"


def test_different_texts_of_one_unknown_encoder_are_an_error():
    encoder = node("Encoder", clip=["loader", 1], one="a cat", two="a dog")
    assert "node e, Encoder, one" in message(top=sampler(["e", 0]), e=encoder)


def test_a_choice_is_no_text():
    encoder = node("Lumina", clip=["loader", 1], system_prompt="superior", user_prompt="")
    assert "every text behind 'positive' is empty" in message(top=sampler(["e", 0]), e=encoder)


@pytest.mark.parametrize("value", ["PrimitiveString", "PrimitiveStringMultiline"])
def test_a_linked_constant_is_resolved(value):
    assert text(top=sampler(["p", 0]), p=encode(["s", 0]), s=node(value, value="a cat")) == "a cat"


@pytest.mark.parametrize("reroute", [node("Reroute", x=["s", 0]), node("PassAnything", anything=["s", 0])])
def test_a_linked_constant_is_resolved_through_reroutes(reroute):
    string = node("PrimitiveString", value="a cat")
    assert text(top=sampler(["p", 0]), p=encode(["r", 0]), r=reroute, s=string) == "a cat"


@pytest.mark.parametrize("linked", [0, 1, 2], ids=["set", "linked", "through a reroute"])
@pytest.mark.parametrize("switch, expected", [(True, "a cat"), (False, "a dog")])
def test_a_switch_with_a_fixed_setting_lets_one_through(switch, expected, linked):
    setting = [switch, ["b", 0], ["r", 0]][linked]
    choose = node("ComfySwitchNode", switch=setting, on_true=["p", 0], on_false=["q", 0])
    types = TYPES | {"ComfySwitchNode": {"on_true": "COMFY_MATCHTYPE_V3", "on_false": "COMFY_MATCHTYPE_V3"}}
    graph = {"top": sampler(["c", 0]), "c": choose, "p": encode("a cat"), "q": encode("a dog")}
    graph |= {"b": node("PrimitiveBoolean", value=switch), "r": node("Reroute", x=["b", 0])}
    assert find_prompt(graph, "top", "positive", lambda k: [], lambda k: types.get(k, {})).text == expected
    words = {"p": node("PrimitiveString", value="a cat"), "q": node("PrimitiveString", value="a dog")}
    assert text(**graph | words | {"top": sampler(["e", 0]), "e": encode(["c", 0])}) == expected


@pytest.mark.parametrize("side", ["on_true", "on_false"])
def test_a_soft_switch_with_one_side_lets_that_through(side):
    choose = node("ComfySoftSwitchNode", switch=side != "on_true", **{side: ["p", 0]})
    assert text(top=sampler(["c", 0]), c=choose, p=encode("a cat")) == "a cat"


@pytest.mark.parametrize(
    "setting", [["gone", 0], ["x", 0], ["loop", 0]], ids=["of no node", "that is computed", "that goes in a circle"]
)
def test_a_switch_with_a_setting_that_is_not_known_may_let_either_through(setting):
    choose = node("ComfySwitchNode", switch=setting, on_true=["p", 0], on_false=["q", 0])
    graph = {"x": node("StringContains", string="a", substring="b"), "loop": node("Reroute", x=["loop", 0])}
    listed = message(top=sampler(["c", 0]), c=choose, p=encode("a cat"), q=encode("a dog"), **graph)
    assert "2 different texts" in listed


@pytest.mark.parametrize(
    "computing",
    [
        node("StringConcatenate", string_a="a", string_b="cat"),
        node("Wildcards", text="{a|b}", seed=3),
        node("AskModel", prompt=["s", 0]),
        node("LoadTextFile", path="prompts.txt"),
        node("LoadText", value="prompts.txt"),
    ],
)
def test_a_computed_text_asks_for_a_link(computing):
    graph = {"p": encode(["c", 0]), "c": computing, "s": node("PrimitiveString", value="cat")}
    asked = message(top=sampler(["p", 0]), **graph)
    assert computed(**graph).link == ["c", 0]
    assert f"node p, CLIPTextEncode: computed by node c, {computing['class_type']}" in asked
    assert "Link the same text to 'prompt'" in asked


@pytest.mark.parametrize(
    "guider",
    [
        node("BasicGuider", model=["loader", 0], conditioning=["p", 0]),
        node("CFGGuider", model=["loader", 0], positive=["p", 0], negative=["n", 0]),
        node("DualCFGGuider", cond1=["p", 0], cond2=["p", 0], negative=["n", 0]),
        node("PerpNegGuider", positive=["p", 0], negative=["n", 0], empty_conditioning=["n", 0]),
        node("WrappedGuider", guider=["inner", 0]),
    ],
)
def test_guiders(guider):
    inner = node("BasicGuider", conditioning=["p", 0])
    top = node("SearchAdvanced", guider=["g", 0])
    assert text("guider", top=top, g=guider, inner=inner, p=encode("a cat"), n=encode("blurry")) == "a cat"


@pytest.mark.parametrize(
    "stock",
    [
        node("KSampler", model=["loader", 0], positive=["p", 0], negative=["n", 0], latent_image=["first", 0]),
        node("SamplerCustomAdvanced", guider=["g", 0], latent_image=["first", 0]),
    ],
)
def test_from_an_image_the_nearest_sampler_counts(stock):
    assert (
        text(
            "image",
            top=node("VerifierScore", image=["scale", 0], verifier=["loader", 0]),
            scale=node("ImageScale", image=["decode", 0]),
            decode=node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
            k=stock,
            g=node("BasicGuider", conditioning=["p", 0]),
            first=node("KSampler", positive=["other", 0]),
            p=encode("a cat"),
            n=encode("blurry"),
            other=encode("an earlier stage"),
        )
        == "a cat"
    )


def test_of_a_picture_that_is_animated_without_a_text_the_text_of_the_picture_counts():
    """Of a model that takes a picture and no words, as Stable Video Diffusion does; and one whose words are blank."""
    for animated in (node("SVD_img2vid_Conditioning", init_image=["still", 0]), encode("")):
        found = text(
            "image",
            top=node("VerifierScore", image=["video", 0]),
            video=node("KSampler", positive=["animated", 0], negative=["animated", 1], latent_image=["still", 0]),
            animated=animated,
            still=node("VAEDecode", samples=["k", 0]),
            k=node("KSampler", positive=["p", 0], negative=["n", 0]),
            p=encode("a mountain"),
            n=encode("blurry"),
        )
        assert found == "a mountain"


def test_from_an_image_a_search_that_was_told_its_prompt_says_it():
    told = node("Search", positive=["p", 0], verifier=["loader", 0], prompt="what I meant")
    assert text("image", top=node("Score", image=["k", 1]), k=told, p=encode("masterpiece, cat")) == "what I meant"


def test_an_image_from_a_file_has_no_sampler():
    load = node("LoadImage", image="cat.png")
    assert "no sampler behind 'image'" in message("image", top=node("Score", image=["l", 0]), l=load)


def test_an_unlinked_start():
    assert "nothing is linked to 'positive'" in message(top=node("Search"))


def test_a_node_that_is_not_in_the_graph():
    assert "there is no text" in message(top=sampler(["gone", 0]))


def test_a_circle_of_conditionings_ends():
    a, b = node("Combine", cond_1=["b", 0], cond_2=["p", 0]), node("Combine", cond_1=["a", 0])
    assert text(top=sampler(["a", 0]), a=a, b=b, p=encode("a cat")) == "a cat"


def test_a_circle_of_images_ends():
    a, b = node("Blend", image1=["b", 0]), node("Blend", image1=["a", 0])
    assert "no sampler behind 'image'" in message("image", top=node("Score", image=["a", 0]), a=a, b=b)


FILLED_IN = [
    *("# an idea: a square\na circle", "a __colour__ circle", "a [colour] circle", "a {red|blue} circle"),
    *(
        "a circle AND a square :0.5",
        "a circle\nAND a square",
        "a circle COUPLE MASK(0 0.5) a square",
        "SHUFFLE(red, blue)",
    ),
]


@pytest.mark.parametrize("written", FILLED_IN)
def test_a_text_that_another_packs_node_may_fill_in_is_read_while_the_workflow_runs(written):
    open_text = computed(p=encode(["box", 0]), box=node("TextBox", text=written))
    assert "is itself computed, so it is not known here" in str(open_text) and "may change" in str(open_text)
    assert (open_text.link, open_text.found.filled_in_by) == (["box", 0], "node box, TextBox")


@pytest.mark.parametrize("written", FILLED_IN)
def test_a_text_that_another_packs_encoder_carries_out_is_read_as_it_stands_and_says_so(written):
    for graph in (
        {"p": node("SomebodysEncode", clip=["loader", 1], prompt=written)},
        {
            "p": node("SomebodysEncode", clip=["loader", 1], prompt=["box", 0]),
            "box": node("PrimitiveString", value=written),
        },
    ):
        found = find(top=sampler(["p", 0]), **graph)
        assert (found.text, found.filled_in_by) == (written, "node p, SomebodysEncode")


def test_several_texts_of_which_one_is_computed_are_not_one():
    both = node("ConditioningCombine", conditioning_1=["p", 0], conditioning_2=["q", 0])
    two = {one: node("AskModel", prompt="x", seed=1) for one in "cd"}
    for graph in ({"p": encode(["c", 0]), "q": encode("a dog")}, {"p": encode(["c", 0]), "q": encode(["d", 0])}):
        with pytest.raises(PromptNotFound, match="Link the same text") as caught:
            find(top=sampler(["b", 0]), b=both, **two, **graph)
        assert not isinstance(caught.value, PromptComputed)
    with pytest.raises(PromptComputed):
        find(top=sampler(["b", 0]), b=both, **two, p=encode(["c", 0]), q=encode(["c", 0]))


@pytest.mark.parametrize("written", FILLED_IN)
def test_comfyuis_own_nodes_pass_a_text_on_as_it_is_written(written):
    assert text(top=sampler(["p", 0]), p=encode(["s", 0]), s=node("PrimitiveString", value=written)) == written


@pytest.mark.parametrize(
    "plain",
    ["a (red:1.2) circle", "a red circle, 50% #1 [", "snake_case {one} a__b", "a sign: RED AND BLUE, HDR (bright)"],
)
def test_a_plain_text_of_another_packs_node_is_known(plain):
    assert text(top=sampler(["p", 0]), p=encode(["box", 0]), box=node("TextBox", text=plain)) == plain


def test_lora_tags_are_left_out():
    encoder = node("LoraEncode", clip=["loader", 1], prompt="a red circle <lora:some__old__one:0.8>, toy")
    assert text(top=sampler(["p", 0]), p=encoder) == "a red circle , toy"
    both = node("ConditioningCombine", conditioning_1=["p", 0], conditioning_2=["q", 0])
    graph = {"p": encode("a cat"), "q": encode("<lora:x:1>")}
    assert text(top=sampler(["both", 0]), both=both, **graph) == "a cat"


def test_a_text_without_words_is_listed_as_it_stands():
    listed = message(top=sampler(["p", 0]), p=encode("<lora:x:1>"))
    assert "every text behind 'positive' is empty" in listed and 'no words in "<lora:x:1>"' in listed


def test_without_a_clip_only_what_is_named_like_a_text_is_one():
    stored = node("LoadConditioning", file="cat.safetensors")
    assert "there is no text" in message(top=sampler(["s", 0]), s=stored)


def test_a_circle_of_strings_ends():
    graph = {"p": encode(["a", 0]), "a": node("Reroute", x=["b", 0]), "b": node("Reroute", x=["a", 0])}
    assert "is itself computed" in message(top=sampler(["p", 0]), **graph)


def test_a_long_chain_does_not_overflow_the_stack():
    chain = {str(i): node("ConditioningSetArea", conditioning=[str(i + 1), 0]) for i in range(5000)}
    assert text(top=sampler(["0", 0]), **chain, **{"5000": encode("a cat")}) == "a cat"


IDS = st.sampled_from(["top", "1", "2", "3", "4", "missing"])
NAMES = [
    "positive",
    "negative",
    "conditioning",
    "cond1",
    "clip",
    "text",
    "t5xxl",
    "switch",
    "on_true",
    "image",
    "guider",
]
VALUES = st.one_of(
    st.lists(st.one_of(IDS, st.integers(-2, 3)), max_size=3),
    st.tuples(IDS, st.integers(-1, 3)).map(list),
    st.text(max_size=3),
    st.booleans(),
    st.none(),
)
CLASSES = st.sampled_from(["CLIPTextEncode", "ControlNetApplyAdvanced", "Reroute", "ConditioningZeroOut", "Loader", ""])
NODES = st.one_of(
    st.fixed_dictionaries({"class_type": CLASSES, "inputs": st.dictionaries(st.sampled_from(NAMES), VALUES)}),
    st.sampled_from([{}, {"class_type": 3}, {"inputs": None}, None]),
)


@settings(max_examples=300, deadline=2000)
@given(graph=st.dictionaries(IDS, NODES), start=st.sampled_from(["positive", "guider", "image"]))
def test_any_graph_gives_a_text_or_an_error_that_says_what_to_do(graph, start):
    try:
        found = find_prompt(graph, "top", start, lambda kind: OUTPUTS.get(kind, []))
    except PromptNotFound as error:
        assert "'prompt'" in str(error).splitlines()[-1]
    else:
        assert found.text.strip()


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs ComfyUI's node classes")
class TestWithTheHostsNodes:
    @staticmethod
    def find(**graph):
        from noise_search.host.graph.classes import input_types, is_own, output_names
        from noise_search.host.graph.prompt_words import plain_text

        return find_prompt(graph, "top", "positive", output_names, input_types, plain_text, is_own)

    def test_a_box_of_gligen_is_no_prompt(self):
        box = node("GLIGENTextBoxApply", conditioning_to=["p", 0], clip=["l", 1], text="the box", width=64, height=64)
        loader = node("CheckpointLoaderSimple", ckpt_name="x")
        assert self.find(top=sampler(["g", 0]), g=box, p=encode("a cat"), l=loader, loader=loader).text == "a cat"

    def test_whose_a_node_is_decides_about_its_text(self, monkeypatch):
        import nodes

        graph = {"top": sampler(["p", 0]), "p": encode("a [red] cat"), "loader": node("CheckpointLoaderSimple")}
        assert self.find(**graph).text == "a [red] cat"
        monkeypatch.setattr(nodes.CLIPTextEncode, "RELATIVE_PYTHON_MODULE", "custom_nodes.other", raising=False)
        assert self.find(**graph).filled_in_by == "node p, CLIPTextEncode"

    @pytest.mark.parametrize("slot, expected", [(0, "a cat"), (1, "blurry")])
    def test_v1_output_names_keep_the_conditionings_apart(self, slot, expected):
        both = node("ControlNetApplyAdvanced", positive=["p", 0], negative=["n", 0], strength=1.0)
        assert self.find(top=sampler(["c", slot]), c=both, p=encode("a cat"), n=encode("blurry")).text == expected

    @pytest.fixture
    def flux_encoder(self, monkeypatch):
        from comfy_extras.nodes_flux import CLIPTextEncodeFlux  # a V3 class

        import nodes

        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "CLIPTextEncodeFlux", CLIPTextEncodeFlux)

    def test_a_v3_encoder_is_read(self, flux_encoder):
        encoder = node("CLIPTextEncodeFlux", clip=["l", 1], clip_l="tags", t5xxl="a sentence", guidance=3.5)
        loader = node("CheckpointLoaderSimple", ckpt_name="x")
        assert self.find(top=sampler(["e", 0]), e=encoder, l=loader).text == "a sentence"

    def test_a_class_that_is_not_installed_is_no_crash(self):
        assert (
            self.find(top=sampler(["a", 0]), a=node("Gone", conditioning=["p", 0]), p=encode("a cat")).text == "a cat"
        )

    def test_the_nodes_of_an_expansion_are_searched_too(self):
        from comfy_execution.graph import DynamicPrompt

        dynprompt = DynamicPrompt({"p": encode("a cat")})
        dynprompt.add_ephemeral_node("top", sampler(["p", 0]), "p", "p")
        assert self.find(**all_nodes(dynprompt)).text == "a cat"

    def test_outputs_and_inputs_have_the_names_that_comfyui_gives_them(self):
        from noise_search.host.graph.classes import input_types, is_own, output_names

        assert output_names("CLIPTextEncode") == ["CONDITIONING"]
        assert output_names("CheckpointLoaderSimple") == ["MODEL", "CLIP", "VAE"]
        assert output_names("of no pack") == [] and input_types("of no pack") == {}
        types = input_types("KSampler")
        assert (types["model"], types["seed"], types["sampler_name"]) == ("MODEL", "INT", "COMBO")
        assert is_own("KSampler") and not is_own("of no pack")
