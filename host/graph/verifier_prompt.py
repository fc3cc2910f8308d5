"""What the verifier is told: the text at a node's `prompt`, or the one that the images are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...search.judges import Judges, judges_of
from ..known import EDITS
from . import asked, classes
from .graph import Graph
from .links import links_of, upstream
from .prompt_text import FoundPrompt, PromptComputed, PromptNotFound, find_prompt, has_pack_syntax
from .prompt_words import has_system_text, is_empty, plain_text

TYPED = "the prompt widget"  # the source of a text that was written for the verifier
ASKED = "prompt"  # what a text that is known only while the workflow runs is asked for as


def ask_for_prompt(
    hidden: Any, given: Mapping[str, Any], texts: Sequence[str | None], verifier: Any, start: str
) -> list[str]:
    """What a node's `check_lazy_status` returns: the text behind `start`, where it has to be computed, can be, and the
    verifier reads one. given: what it was called with. texts: what stands at its `prompt`."""
    try:
        if hidden is None or not all(map(is_empty, texts)) or not judges_of(verifier).needs_prompt:
            return []
        graph = Graph.of(hidden)
        _found(graph, start)
    except PromptComputed as computed:
        if not asked.leads_to(graph.prompt or {}, computed.link, str(graph.node_id)):
            return asked.ask(hidden, given, {ASKED: computed.link})
    except ValueError:  # the node itself says what is wrong
        pass
    return []


def verifier_prompt(text: str | None, judges: Judges, graph: Graph, start: str) -> FoundPrompt:
    """What the verifier is told, and where it came from: the text at the input `prompt`, or what stands behind `start`.
    Raises ValueError where there are no words in it, and PromptNotFound."""
    if text is not None and not is_empty(text):
        typed = graph.typed("prompt")
        words = plain_text(text, typed)
        if not words and judges.needs_prompt:
            raise ValueError(
                f"there are no words in 'prompt' ({text.strip()[:80]!r}), only what means something to the model, so "
                "the verifier would judge by nothing: type what the image should show"
            )
        return FoundPrompt(words, TYPED if typed else "the text linked to 'prompt'", text)
    if not judges.needs_prompt:
        return FoundPrompt("", "none needed")
    return _looked_up(graph, start)[0]


def _looked_up(graph: Graph, start: str) -> list[FoundPrompt]:
    """The text behind `start`, or the texts that were asked for while the workflow ran. Raises PromptNotFound."""
    try:
        return [_found(graph, start)]
    except PromptComputed as computed:
        if ASKED not in graph.asked:
            raise
        text = graph.asked[ASKED]
        return [_read(computed.found, one, start) for one in (text if isinstance(text, list) else [text])]


def _found(graph: Graph, start: str) -> FoundPrompt:
    return find_prompt(
        graph.prompt or {},
        str(graph.node_id),
        start,
        classes.output_names,
        classes.input_types,
        plain_text,
        classes.is_own,
    )


def _read(found: FoundPrompt, text: Any, start: str) -> FoundPrompt:
    """A text that came out while the workflow ran. Raises PromptNotFound where it says nothing."""
    words = plain_text(text) if isinstance(text, str) else ""
    if not words:
        raise PromptNotFound(
            f"The verifier needs a prompt, the input 'prompt' is empty, and the text behind {start!r} ({found.source}) "
            f"has no words in it: {text!r:.80}. Type into 'prompt' what the image should show, or link a text to it."
        )
    return replace(found, text=words, whole=text, filled_in_by=found.filled_in_by if has_pack_syntax(text) else "")


def verifier_prompts(texts: Sequence[str | None], judges: Judges, graph: Graph, start: str) -> list[FoundPrompt]:
    """`verifier_prompt` for a list of texts at `prompt`, one for each candidate or one for all. Without words a
    text is "", and whoever scores by it says which it is."""
    if all(map(is_empty, texts)) and judges.needs_prompt:
        return _looked_up(graph, start)
    if len(texts) == 1 or all(map(is_empty, texts)):
        return [verifier_prompt(texts[0], judges, graph, start)]
    typed = graph.typed("prompt")
    return [FoundPrompt(plain_text(text, typed), "the list at 'prompt'", text or "") for text in texts]


def prompt_notes(told: Sequence[FoundPrompt], judges: Judges, graph: Graph | None = None, start: str = "") -> list[str]:
    """What the user should know of the texts that the verifier is told."""
    if not judges.needs_prompt:
        return []
    edits = edit_note(graph, start) if graph is not None and all(one.source != TYPED for one in told) else []
    return [*edits, *_syntax_notes(told), *system_text_notes(told, judges)]


def edit_note(graph: Graph, start: str) -> list[str]:
    """A note where the model is shown a picture to edit: its text may say what to do, and not what is to be seen."""
    prompt = graph.prompt or {}
    link = links_of(prompt, str(graph.node_id)).get(start)
    behind = upstream(prompt, link[0]) if link else {}
    for node_id, node in behind.items():
        kind = str(node.get("class_type", ""))
        if EDITS.match(kind):
            return [
                f"The model is shown a picture to work from (node {node_id}, {kind}). If the prompt says what to do "
                "(\"remove the hat\"), type into 'prompt' what the picture should show in the end: the verifier reads "
                "the text as a description."
            ]
    return []


def _syntax_notes(told: Sequence[FoundPrompt]) -> list[str]:
    """A note where a text has in it what a node of another pack may carry out."""
    nodes = dict.fromkeys(one.filled_in_by for one in told if one.filled_in_by)
    return [
        f"The prompt has syntax in it that {node} may carry out before the model reads it; the verifier reads it as it "
        "stands. Type into 'prompt' what the image should show."
        for node in nodes
    ]


def system_text_notes(told: Sequence[FoundPrompt], judges: Judges) -> list[str]:
    """A note where the verifier was not told a system text that would have taken the place of the prompt."""
    texts = [one.whole for one in told if has_system_text(one.whole)]
    start = "The verifier was told only what comes after '<Prompt Start>': of the whole text"
    return [f"{start} {sentence}" for sentence in judges.cuts(texts)]
