"""What a verifier is told of a prompt: the words that ComfyUI's own tokenizer gives to the model, and no others."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("comfy")

from noise_search.host.graph.graph import Graph
from noise_search.host.graph.prompt_text import FILLED_IN, PromptNotFound
from noise_search.host.graph.prompt_words import FILLING, plain_text
from noise_search.host.graph.verifier_prompt import system_text_notes, verifier_prompt, verifier_prompts
from noise_search.host.judging.hosted import load_demo_verifier
from noise_search.search.judges import judges_of

PRESENT = ("goodstyle", "bad-hands.v2")


class Judge:
    needs_prompt = True


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def told(prompt="", positive="a dog", verifier=Judge, **nodes):
    """What the verifier of a search is told, whose `prompt` and positive text are these."""
    graph = {
        "search": node("NoiseSearchKSampler", positive=["encode", 0], prompt=prompt),
        "encode": node("CLIPTextEncode", clip=["loader", 1], text=positive),
        "loader": node("CheckpointLoaderSimple", ckpt_name="x"),
        "text": node("PrimitiveString", value=nodes.pop("linked", "")),
    }
    value = graph["text"]["inputs"]["value"] if isinstance(prompt, list) else prompt
    return verifier_prompt(value, verifier, Graph("search", graph | nodes), "positive")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a (red:1.3) cat", "a red cat"),
        ("((red)) cat", "red cat"),
        ("(masterpiece)(red:1.2)cat", "masterpiece red cat"),
        (r"a cat \(sitting\)", "a cat (sitting)"),
        ("a cat embedding:style.pt", "a cat"),
        ("a red cat, sitting", "a red cat, sitting"),
        ("(embedding:goodstyle:1.2),red circle above", "red circle above"),
        ("embedding:goodstyle, red circle", "red circle"),
        ("a, embedding:goodstyle, b", "a, b"),
        ("(embedding:goodstyle, red:1.2) circle", "red circle"),
        ("a\nembedding:goodstyle b\nc", "a\nb c"),
        ("embedding:goodstyle[red] circle", "[red] circle"),
        ("a red circle <lora:detail:0.8>", "a red circle"),
        ("<lora:some__old__one:1:0.5>", ""),
        ("You are an assistant. <Prompt Start> a (red:1.2) circle", "a red circle"),
        ("embedding:goodstyle", ""),
        ("(embedding:goodstyle:1.1), ", ""),
        ("embedding:", ""),
        (" \u200b\n", ""),
        ("()", ""),
        ("None", ""),
        (None, ""),
        ("(" * 2000 + "a" + ")" * 2000, "(" * 2000 + "a" + ")" * 2000),
        ("?", "?"),
        ("🟥", "🟥"),
    ],
)
def test_the_verifier_reads_prompts_without_markup(text, plain):
    assert plain_text(text) == plain


@pytest.mark.parametrize(
    "sentence",
    [
        "text in parentheses (like this)",
        "a clock (at 12:30) on a screen (16:9)",
        "a sign that says 'EXIT (left)': red",
    ],
)
def test_a_sentence_that_was_typed_for_the_verifier_keeps_its_parentheses(sentence):
    assert told(sentence).text == sentence


@pytest.mark.parametrize(
    "text", ["(cat:1.2)", "((cat))", "cat, embedding:x", "(cat:2)", "(cat:-0.5)", "(cat (cat:.5))"]
)
def test_a_prompt_that_was_typed_is_read_as_one_that_was_found(text):
    assert told(text).text == plain_text(text) == told(positive=text).text


@pytest.mark.parametrize("text", ["embedding:x (b:1.2)" + " " * 300_000 + "c", "{" + "|" * 300_000])
def test_a_long_text_takes_no_longer_than_its_length(text):
    assert plain_text(text)
    assert FILLED_IN.search(text) is None


@pytest.mark.parametrize("text", ["a (small:1.3) star \\(toy\\), ((red)) circle, embedding:goodstyle", "a (red) cat"])
def test_a_linked_text_is_read_as_one_that_was_found(text):
    linked = told(["text", 0], linked=text)
    assert linked.text == told(positive=text).text == told(positive=["text", 0], linked=text).text
    assert linked.source == "the text linked to 'prompt'"


@pytest.mark.parametrize("nothing", ["embedding:x", "(embedding:x:1.2), ", ",", "<lora:a:1>"])
def test_a_prompt_without_words_is_refused(nothing):
    with pytest.raises(ValueError, match="no words in 'prompt'"):
        told(nothing)
    with pytest.raises(PromptNotFound, match="every text behind 'positive' is empty"):
        told(positive=nothing)


def test_a_verifier_that_reads_no_prompt_needs_no_words():
    class Aesthetic:
        needs_prompt = False

    assert told("embedding:x", verifier=Aesthetic).text == told("", "", verifier=Aesthetic).text == ""


@pytest.mark.parametrize("nothing", [None, "", " \n", "None"])
def test_a_null_is_an_empty_prompt(nothing):
    assert told(nothing).text == "a dog"


def test_each_text_of_a_list_is_cleaned_and_a_list_without_any_is_looked_up():
    graph = Graph("score", {"score": node("NoiseSearchVerifierScore", prompt=["list", 0])})
    texts = verifier_prompts(["a (red:1.2) cat", "", None, "embedding:x"], Judge, graph, "image")
    assert [one.text for one in texts] == ["a red cat", "", "", ""]
    with pytest.raises(PromptNotFound, match="nothing is linked to 'image'"):
        verifier_prompts(["", None], Judge, graph, "image")


@pytest.mark.parametrize("text", ["a cat (like this)", "a (red:1.2) cat", "a [red] cat"])
def test_verifier_score_reads_what_the_search_before_it_was_told(text):
    search = node("NoiseSearchKSampler", positive=["encode", 0], verifier=["loader", 3], prompt=text)
    graph = {"score": node("NoiseSearchVerifierScore", image=["search", 1], prompt=""), "search": search}
    [one] = verifier_prompts([""], Judge, Graph("score", graph), "image")
    assert one.text == told(text).text


def test_texts_that_differ_by_weights_only_are_one():
    both = node("ConditioningCombine", conditioning_1=["encode", 0], conditioning_2=["other", 0])
    other = node("CLIPTextEncode", clip=["loader", 1], text="a (dog:1.2)")
    graph = {"search": node("NoiseSearchKSampler", positive=["both", 0], prompt="")}
    assert told(search=graph["search"], both=both, other=other).text == "a dog"


def test_a_system_text_is_named_where_it_would_have_taken_the_place_of_the_prompt():
    demo = judges_of(load_demo_verifier())
    long = told(positive="You make images from the words of a user as well as you can. <Prompt Start> a red circle")
    assert long.text == "a red circle"
    [note] = system_text_notes([long, long], demo)
    assert "only what comes after '<Prompt Start>'" in note and "reads the first 16 of 21 tokens" in note
    assert not system_text_notes([told(positive="You draw. <Prompt Start> a red circle")], demo)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """ComfyUI's own for CLIP-L, with two embeddings in its folder."""
    from comfy.sd1_clip import SDTokenizer
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("embeddings")
    for name in PRESENT:
        save_file({"emb_params": torch.zeros(2, 768)}, folder / f"{name}.safetensors")
    return SDTokenizer(max_length=100_000, pad_to_max_length=False, embedding_directory=str(folder))


WORD = st.sampled_from(["red", "cat", "a", "3d", "猫", "x:2", "[red]", "16:9", "embedded", ":"])
NAME = st.sampled_from(["goodstyle", "bad-hands.v2", "gone", "goodstyle,", "goodstyle[red]", "gone,", "", " goodstyle"])
PART = st.one_of(
    WORD,
    st.sampled_from([" ", ", ", ",", "\n", "\\(", "\\)", "(", ")", " (", ") ", ":1.2)", ":0.5),", ". "]),
    NAME.map("embedding:{}".format),
    NAME.map(" embedding:{} ".format),
    NAME.map("(embedding:{}:1.1)".format),
    st.tuples(WORD, st.sampled_from(["1.2", "0.5", "2", "-1"])).map(lambda pair: "({}:{})".format(*pair)),
)


@settings(max_examples=500)
@given(text=st.lists(PART, min_size=1, max_size=12).map("".join))
def test_the_words_are_those_that_the_model_is_given(tokenizer, text):
    if re.search(r"embedding:\s*\S*\[", text) and tokenizer._try_get_embedding("goodstyle[red]")[0] is None:
        return  # older versions take the bracket for a part of the name
    try:
        batch = [token for token, _ in tokenizer.tokenize_with_weights(text)[0]]
    except IndexError:  # ComfyUI's own, at "embedding:" without a name
        return
    plain = plain_text(text)
    given, said = _words(tokenizer, batch), _words(tokenizer, tokenizer.tokenizer(plain)["input_ids"])
    if not plain:  # refused
        given = [word for word in given if word not in FILLING]
    assert given == said


def _words(tokenizer, tokens):
    """The words and marks of a text, without commas, of which embeddings leave more or fewer behind."""
    ids = [token for token in tokens[1:-1] if isinstance(token, int)]
    words = [tokenizer.inv_vocab[token].removesuffix("</w>") for token in ids]
    return [part for word in words for part in re.findall(r"\w+|[^\w\s,]", word)]
