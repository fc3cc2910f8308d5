"""Finds, in the graph behind a node, the text that the images are made from.

The algorithm sees the workflow as the API sends it and asks two functions about node classes, so it needs no ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..known import (
    ANY_TYPES,
    FILLED_IN,
    FIRST_OF,
    GUIDED_TOWARDS,
    HOLDS_TEXT,
    JOINS_LINES,
    POPULATED,
    PREFERRED_TEXTS,
    TAG,
    ZEROED,
)
from .links import inputs_of, is_link, links_of, upstream, walk

SHOWN_CHARACTERS = 80


class PromptNotFound(ValueError):
    """No text, or several different ones. The message lists what was found and says what to do."""


@dataclass(frozen=True)
class FoundPrompt:
    """text: what the verifier is to judge by; source: where it stood, for the log ("node 6, CLIPTextEncode"); whole:
    the text as it stood there. filled_in_by: the node of another pack that may make something else of syntax in it."""

    text: str
    source: str
    whole: str = field(default="", compare=False)
    filled_in_by: str = field(default="", compare=False)


class PromptComputed(PromptNotFound):
    """There is one text, which a node computes while the workflow runs.

    link: where it comes out. found: what else is known of it.
    """

    def __init__(self, message: str, link: Sequence[Any] = (), found: FoundPrompt | None = None):
        super().__init__(message)
        self.link, self.found = [*link], found or FoundPrompt("", "")


def without_tags(text: str) -> str:
    """The text without <lora:name:1>, which loads something and says nothing about the image."""
    return re.sub(r"[ \t]{2,}", " ", TAG.sub("", text)).strip() if TAG.search(text) else text


def has_pack_syntax(text: str) -> bool:
    """Whether a text has in it what nodes of other packs fill in, take out or carry out: schedules, wildcards."""
    return FILLED_IN.search(without_tags(text)) is not None


def _plain(text: str, typed: bool) -> str:
    return without_tags(text).strip()


def _looks_own(class_type: str) -> bool:
    return class_type.startswith(("CLIPTextEncode", "Primitive"))


def find_prompt(
    prompt: Mapping[str, Mapping[str, Any]],
    node_id: str,
    start: str,
    output_names: Callable[[str], Sequence[str]],
    input_types: Callable[[str], Mapping[str, str]] = lambda class_type: {},
    plain: Callable[[str, bool], str] = _plain,
    is_own: Callable[[str], bool] = _looks_own,
) -> FoundPrompt:
    """The one text behind input `start` (`positive`, `guider` or `image`) of node `node_id`.

    prompt: the workflow in API format. output_names(class_type): the names of its outputs, in order.
    input_types(class_type): the types of its inputs by name, as far as known; names decide where they are not.
    plain(text, typed): the words in a text, "" if there are none; typed: it was typed for a verifier.
    is_own(class_type): whether the node is ComfyUI's own, which pass texts on as they are written.
    Raises PromptNotFound, and of these PromptComputed where the text can be had while the workflow runs.
    """
    walking = _GraphWalk(prompt, output_names, input_types, plain, is_own)
    link = walking.inputs(str(node_id)).get(start)
    if link is None or not is_link(link):
        raise PromptNotFound(_message(f"nothing is linked to {start!r}", []))
    if start == "image":
        walking.follow_images(link)
        if not walking.samplers:
            raise PromptNotFound(_message(f"there is no sampler behind {start!r}", []))
    else:
        walking.follow_conditioning([link])
    return walking.result(start)


@dataclass
class _GraphWalk:
    graph: Mapping[str, Mapping[str, Any]]
    output_names: Callable[[str], Sequence[str]]
    input_types: Callable[[str], Mapping[str, str]]
    plain: Callable[[str, bool], str]
    is_own: Callable[[str], bool]
    found: dict[str, list[str]] = field(default_factory=dict)  # words -> the places they stand in
    whole: dict[str, str] = field(default_factory=dict)  # words -> the text they are from
    blank: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    open: dict[tuple[str, int], FoundPrompt] = field(default_factory=dict)  # where computed texts come out
    foreign: dict[str, str] = field(default_factory=dict)  # words -> the other pack's node that reads them
    samplers: bool = False

    # What the graph says. It comes from outside, so anything may be missing or of the wrong type.

    def node(self, node_id: str) -> Mapping[str, Any]:
        node = self.graph.get(node_id)
        return node if isinstance(node, Mapping) else {}

    def inputs(self, node_id: str) -> Mapping[str, Any]:
        return inputs_of(self.graph, node_id)

    def class_type(self, node_id: str) -> str:
        return str(self.node(node_id).get("class_type", ""))

    def slot_name(self, link: Sequence[Any]) -> str:
        names = self.output_names(self.class_type(link[0]))
        return str(names[link[1]]).lower() if 0 <= link[1] < len(names) else ""

    def links(self, node_id: str) -> dict[str, list[Any]]:
        return links_of(self.graph, node_id)

    def types_of(self, node_id: str, name: str) -> set[str]:
        """The declared types of an input ("INT,FLOAT" is two), empty if unknown."""
        declared = self.input_types(self.class_type(node_id)).get(name, "")
        return {kind for kind in declared.split(",") if kind}

    def describe(self, node_id: str, name: str = "") -> str:
        class_type = self.class_type(node_id)
        meta = self.node(node_id).get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else None
        words = [f"node {node_id}", class_type]
        if isinstance(title, str) and title and title != class_type:
            words.append(f'"{title}"')
        if name:
            words.append(name)
        return ", ".join(words)

    # Which links carry the text.

    def follow_images(self, link: Sequence[Any]) -> None:
        """Upstream from an image to the nearest samplers, and from there through their conditioning. Where none of
        their texts says anything, as in a model that animates or enlarges a picture, on to those that made that."""
        starts, seen = [link[0]], set[str]()
        while starts and not (self.found or self.computed):
            behind = []
            for node_id in walk(starts, self._images_before):
                conditionings = self._sampled_with(node_id)
                if not conditionings or node_id in seen:
                    continue
                self.samplers = True
                seen.add(node_id)
                behind += [before[0] for before in self.links(node_id).values()]
                # a search node may have been told its prompt
                if not ("verifier" in self.links(node_id) and self._note(node_id, "prompt", told=True)):
                    self.follow_conditioning(conditionings)
            starts = behind

    def _sampled_with(self, node_id: str) -> list[Sequence[Any]]:
        links = self.links(node_id)
        return [links[name] for name in ("positive", "guider") if name in links]

    def _images_before(self, node_id: str) -> list[str]:
        """The nodes that an image can come from, no farther than the first sampler."""
        return [] if self._sampled_with(node_id) else [link[0] for link in self.links(node_id).values()]

    def follow_conditioning(self, links: Iterable[Sequence[Any]]) -> None:
        """Upstream through conditionings (and guiders) to the encoders, whose texts are noted down."""

        def before(link: tuple[str, int]) -> list[tuple[str, int]]:
            if self.class_type(link[0]) == ZEROED:
                return []  # whatever was encoded before, no text is left of it
            found = self._conditionings(link)
            if not found:
                self._read_encoder(link)
            return [(one[0], one[1]) for one in found]

        for _ in walk([(one[0], one[1]) for one in links], before):
            pass

    def _conditionings(self, link: Sequence[Any]) -> list[Sequence[Any]]:
        """The links at which a conditioning that leaves a node by this output came in."""
        node_id, slot = link[0], self.slot_name(link)
        links = {name: value for name, value in self.links(node_id).items() if self._is_conditioning(node_id, name)}
        if (chosen := GUIDED_TOWARDS.get(self.class_type(node_id)) or self._switched(node_id)) is not None:
            return [links[chosen]] if chosen in links else []
        # `positive` goes on at `positive`, or at `positive_A` and `positive_B` where a node combines pairs.
        same: list[Sequence[Any]] = [
            value for name, value in links.items() if name.lower() == slot or name.lower().startswith(f"{slot}_")
        ]
        if slot and same:
            return same
        others: list[Sequence[Any]] = [value for name, value in links.items() if _polarity(name) == _polarity(slot)]
        return others or self._piped(node_id, slot)

    def _piped(self, node_id: str, slot: str) -> list[Sequence[Any]]:
        """The links at which it went into the pipes or contexts that a node takes it from."""
        found: list[Sequence[Any]] = []
        first = self._first(node_id)
        for name, link in self.links(node_id).items():
            if first not in (None, name):
                continue
            source, kinds = link[0], self.types_of(node_id, name) or {self.slot_name(link).upper()}
            if not any("PIPE" in kind or "CONTEXT" in kind for kind in kinds):
                continue
            names = [str(one).lower() for one in self.output_names(self.class_type(source))]
            if slot in names:
                found.append([source, names.index(slot)])
            elif slot in self.links(source):
                found.append(self.links(source)[slot])
            elif self._texts(source):  # a loader and encoder in one
                found.append(link)
        return found

    def _is_conditioning(self, node_id: str, name: str) -> bool:
        if types := self.types_of(node_id, name):
            return bool(types & {"CONDITIONING", "GUIDER", *ANY_TYPES})
        words = re.split(r"[^a-z]+", name.lower())
        if {"positive", "negative", "conditioning", "cond", "guider"} & set(words) or name.startswith("cond"):
            return True
        return self.slot_name(self.links(node_id)[name]) in ("conditioning", "guider", "positive", "negative")

    def _first(self, node_id: str) -> str | None:
        """The input of a switch that puts out the first that is there; None for any other node."""
        prefix = FIRST_OF.get(self.class_type(node_id))
        if prefix is None:
            return None
        there = (name for name, link in self.links(node_id).items() if self.links(link[0]))  # others hold nothing
        return next((name for name in there if name.startswith(prefix)), None)

    def _switched(self, node_id: str) -> str | None:
        """The input that a switch with a fixed setting lets through, None for any other node."""
        inputs = self.inputs(node_id)
        sides = [name for name in ("on_true", "on_false") if name in inputs]
        if len(sides) < 2:
            return sides[0] if sides and "switch" in inputs else None
        switch: Any = inputs.get("switch")
        seen = [node_id]
        while is_link(switch):
            source = switch[0]
            if source in seen or len(held := self.inputs(source)) != 1:
                return None
            seen.append(source)
            [(name, switch)] = held.items()
            if is_link(switch) and not self._passes(source, name):
                return None
        return ("on_true" if switch else "on_false") if isinstance(switch, bool) else None

    # What the encoders say.

    def _read_encoder(self, link: Sequence[Any]) -> None:
        """Notes the text of a node that makes a conditioning from none: the preferred one that is not blank."""
        node_id = link[0]
        names = [name for name in self._texts(node_id) if _polarity(name) == _polarity(self.slot_name(link))]
        preferred = [name for name in names if POPULATED in name]
        preferred += [name for name in PREFERRED_TEXTS if name in names]
        for name in preferred:
            if self._note(node_id, name, several=len(names) > 1):
                return
        noted = [self._note(node_id, name, several=True) for name in names if name not in preferred]
        if names and not any(noted):
            self.blank += [self._blank(node_id, name) for name in names]

    def _texts(self, node_id: str) -> list[str]:
        """The inputs of an encoder that hold text. Where no CLIP comes in, only those that are named like a text."""
        has_clip = any(
            name.lower().startswith("clip") or self.slot_name(link) == "clip" or "CLIP" in self.types_of(node_id, name)
            for name, link in self.links(node_id).items()
        )
        return [
            name
            for name, value in self.inputs(node_id).items()
            if self._is_text(node_id, name, value)
            and (has_clip or {"text", "prompt", "positive", "negative"} & set(re.split(r"[^a-z]+", name.lower())))
        ]

    def _is_text(self, node_id: str, name: str, value: Any) -> bool:
        if types := self.types_of(node_id, name):
            return "STRING" in types
        return isinstance(value, str) or (is_link(value) and name in PREFERRED_TEXTS)

    def _note(self, node_id: str, name: str, several: bool = False, told: bool = False) -> bool:
        """Writes down the text at this input. False if there are no words in it. told: a search node's own prompt."""
        place = self.describe(node_id, name if several else "")
        start: Any = self.inputs(node_id).get(name)
        value: Any = start
        passed: list[str] = []
        while is_link(value):
            source = value[0]
            if source in (node_id, *passed) or (behind := self._constant(source)) is None:
                self._open(start, place, f"computed by {self.describe(source)}", node_id)
                return True
            passed.append(source)
            value = behind
        words = self.plain(value, told and not passed) if isinstance(value, str) else ""
        if not words:
            return False
        if has_pack_syntax(value):
            if foreign := [one for one in passed if not self.is_own(self.class_type(one))]:
                what = f"{_shorten(value)}, which {self.describe(foreign[-1])} may change"
                self._open(start, place, what, node_id)
                return True
            if not told and not self.is_own(self.class_type(node_id)):
                self.foreign.setdefault(words, self.describe(node_id))
        places = self.found.setdefault(words, [])
        self.whole.setdefault(words, value)
        if place not in places:
            places.append(place)
        return True

    def _open(self, link: Sequence[Any], place: str, what: str, reader: str) -> None:
        """Notes a text that is known only while the workflow runs. reader: the node that it goes into."""
        self.computed.append(f"{place}: {what}")
        before = [one for one in upstream(self.graph, link[0]) if not self.is_own(self.class_type(one))]
        foreign = [one for one in (reader, *before) if not self.is_own(self.class_type(one))]
        by = self.describe(foreign[0]) if foreign else ""
        self.open.setdefault((link[0], link[1]), FoundPrompt("", f"{place}, {what}", filled_in_by=by))

    def _blank(self, node_id: str, name: str) -> str:
        """How a text without words is listed."""
        value = self.inputs(node_id).get(name)
        shown = f"no words in {_shorten(value)}" if isinstance(value, str) and value.strip() else "empty"
        return f"{self.describe(node_id, name)}: {shown}"

    def _constant(self, node_id: str) -> Any:
        """What a node that only holds or passes on a value puts out, None if it may compute something."""
        inputs, class_type = self.inputs(node_id), self.class_type(node_id)
        if (chosen := self._switched(node_id)) is not None:
            return inputs.get(chosen)
        if class_type in JOINS_LINES:
            name, joins = JOINS_LINES[class_type]
            value = inputs.get(name)
            if inputs.get(joins) is False:
                return value
            return value.replace("\n", "").strip() if isinstance(value, str) and inputs.get(joins) is True else None
        if len(inputs) != 1:
            return None
        [(name, value)] = inputs.items()
        if is_link(value):
            return value if self._passes(node_id, name) else None
        # A file name or a choice is a string too, but not what comes out.
        types = self.types_of(node_id, name)
        is_value = {"value", "text", "string", "prompt"} & set(re.split(r"[^a-z]+", name.lower()))
        return value if isinstance(value, str) and is_value and (not types or "STRING" in types) else None

    def _passes(self, node_id: str, name: str) -> bool:
        """Whether a node with this input alone puts out what comes in."""
        class_type = self.class_type(node_id)
        return bool(
            HOLDS_TEXT.get(class_type) == name
            or self.types_of(node_id, name) & ANY_TYPES
            or "reroute" in class_type.lower()
        )

    def result(self, start: str) -> FoundPrompt:
        listed = [f"{place}: {_shorten(text)}" for text, places in self.found.items() for place in places]
        if self.computed:
            what = f"a text behind {start!r} is itself computed, so it is not known here"
            message = _message(what, listed + self.computed, link_it=True)
            if len(self.open) == 1 and not self.found:
                [(link, found)] = self.open.items()
                raise PromptComputed(message, link, found)
            raise PromptNotFound(message)
        if len(self.found) > 1:
            what = f"there are {len(self.found)} different texts behind {start!r}"
            raise PromptNotFound(_message(what, listed))
        if not self.found:
            if self.blank:
                raise PromptNotFound(_message(f"every text behind {start!r} is empty", self.blank))
            raise PromptNotFound(_message(f"there is no text behind {start!r}", []))
        [(text, places)] = self.found.items()
        return FoundPrompt(text, places[0], self.whole[text], self.foreign.get(text, ""))


def _message(what: str, listed: Sequence[str], link_it: bool = False) -> str:
    lines = [f"The verifier needs a prompt, the input 'prompt' is empty, and {what}{':' if listed else '.'}"]
    lines += [f"  {line}" for line in listed]
    if link_it:
        lines.append("Link the same text to 'prompt' of this node as well, or type it there.")
    else:
        lines.append("Type into 'prompt' what the image should show, or link a text to it.")
    return "\n".join(lines)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= SHOWN_CHARACTERS else f'"{text[:SHOWN_CHARACTERS]}..."'


def _polarity(name: str) -> bool:
    """False for the names of what the image should not show, and of the empty prompt."""
    return not {"negative", "neg", "uncond", "empty"} & set(re.split(r"[^a-z]+", name.lower()))
