"""A prompt as a verifier is told it: the words that the model reads, without ComfyUI's syntax."""

from __future__ import annotations

import re
import unicodedata

from comfy.sd1_clip import escape_important, token_weights, unescape_important

from .prompt_text import without_tags

EMBEDDING = "embedding:"
# What stands before it is an instruction to the text encoder (Lumina 2, NewBie), not what the image shows.
PROMPT_START = re.compile("<prompt start>", re.IGNORECASE)
# What nobody writes in a sentence: an escape, doubled parentheses, an embedding, a weight. "(16:9)" and "(at 12:30)"
# are no weights.
SYNTAX = re.compile(
    r"\\[()]|\(\s*\(|\)\s*\)|(?:^|[\s(])embedding:|:\s*[+-]?\d?\.\d+\s*\)|[^\d\s]\s*:\s*[+-]?\d\s*\)", re.IGNORECASE
)
FILLING = ",.;:|，。；：、"  # what is left of a list without its items


def plain_text(text: str | None, typed: bool = False) -> str:
    """A prompt as ComfyUI's own tokenizer reads it: weights, escapes and embeddings resolved, LoRA tags left out.
    "" where no words are left; None, and the "None" that ComfyUI makes of a null, have none either.

    typed: somebody wrote it for the verifier. As long as nothing in it is certainly ComfyUI's syntax, it is a sentence,
    and its parentheses stay; elsewhere they are emphasis, as they are to the model.
    """
    if text is None or is_empty(text):
        return ""
    text = without_tags(PROMPT_START.split(text, maxsplit=1)[-1])
    if not typed or SYNTAX.search(text):
        text = _as_read(text)
    return text.strip() if _has_words(text) else ""


def is_empty(text: str | None) -> bool:
    """Whether an input says nothing at all; ComfyUI makes "None" of a null."""
    return text is None or text.strip() in ("", "None")


def has_system_text(text: str) -> bool:
    """Whether an instruction to the text encoder stands before the prompt."""
    return PROMPT_START.search(text) is not None


def _has_words(text: str) -> bool:
    return any(unicodedata.category(character)[0] not in "ZC" and character not in FILLING for character in text)


def _as_read(text: str) -> str:
    """The words that the model is given, in their order (`SDTokenizer.tokenize_with_weights`)."""
    try:
        segments = token_weights(escape_important(text), 1.0)
    except RecursionError:  # hundreds of nested parentheses, which no encoder would take
        return text
    read, taken = "", False
    for segment, _ in segments:
        for piece in re.split(rf"(?<=\s)(?={EMBEDDING})", unescape_important(segment)):
            if piece.startswith(EMBEDDING):
                piece, taken = _beside_embedding(piece), True
            read += _gap(read, piece) + piece
    if taken:  # "a, embedding:x, b": one comma is enough
        read = re.sub(r"(?<!\s)\s*,(?:\s*,)*", ",", read).lstrip(" \n,")
    return read


def _beside_embedding(piece: str) -> str:
    """What the model reads of "embedding:name, and more" as words: the tokenizer takes the first word for the name."""
    name, *words = piece.removeprefix(EMBEDDING).split() or [""]
    name, *more = re.split(r"(?=[<\[])", name, maxsplit=1)
    comma = name[len(name.strip(",")) :]
    return " ".join(part for part in (comma, *more, *words) if part)


def _gap(before: str, after: str) -> str:
    """The model reads weighted parts one by one, so "(red)(cat)" is two words."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return " " if bool(re.match(r"\w", before[-1])) == bool(re.match(r"\w", after[0])) else ""
