"""What the verifier is told: the text at a node's `prompt`, or the one that the images are made from."""

from __future__ import annotations

from collections.abc import Sequence

from ...search.judges import Judges
from . import classes
from .graph import Graph
from .prompt_text import FoundPrompt, find_prompt
from .prompt_words import has_system_text, is_empty, plain_text


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
        return FoundPrompt(words, "the prompt widget" if typed else "the text linked to 'prompt'", text)
    if not judges.needs_prompt:
        return FoundPrompt("", "none needed")
    return find_prompt(
        graph.prompt or {},
        str(graph.node_id),
        start,
        classes.output_names,
        classes.input_types,
        plain_text,
        classes.is_own,
    )


def verifier_prompts(texts: Sequence[str | None], judges: Judges, graph: Graph, start: str) -> list[FoundPrompt]:
    """`verifier_prompt` for a list of texts at `prompt`, one for each candidate or one for all. Without words a
    text is "", and whoever scores by it says which it is."""
    if len(texts) == 1 or all(map(is_empty, texts)):
        return [verifier_prompt(texts[0], judges, graph, start)]
    typed = graph.typed("prompt")
    return [FoundPrompt(plain_text(text, typed), "the list at 'prompt'", text or "") for text in texts]


def system_text_notes(told: Sequence[FoundPrompt], judges: Judges) -> list[str]:
    """A note where the verifier was not told a system text that would have taken the place of the prompt."""
    texts = [one.whole for one in told if has_system_text(one.whole)]
    start = "The verifier was told only what comes after '<Prompt Start>': of the whole text"
    return [f"{start} {sentence}" for sentence in judges.cuts(texts)]
