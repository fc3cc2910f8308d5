"""Verifiers that ask a vision-language model: VQA Score and VLM Grader. The model itself is behind `VLM`."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image

from .base import VerifierError
from .console import logger
from .descriptor import Descriptor

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
MAX_SIDE = 1024  # of an image as the model gets it: more costs tokens and tells little more
MIN_SIDE = 28  # processors take 1 or 3 pixels for channels, and refuse what is 200 times as long as wide
LEAST_MASS = 1e-3  # of yes and no together, below which the model is not answering the question
LEAST_LOGPROB = -100.0  # some servers say -9999 for "never"
WORDS = ("yes", "no")
SHOWN_TOKENS = 5  # likeliest tokens, for the message when there is neither yes nor no
OVERALL = "overall_score"
CRITERIA = {
    "accuracy_to_prompt": "Does it show what the prompt asks for, with nothing left out, changed or added?",
    "creativity_and_originality": "Is it a fresh and inventive take on the prompt?",
    "visual_quality_and_realism": "Is it sharp, well lit and free of broken shapes, wrong anatomy and artefacts?",
    "consistency_and_cohesion": "Do style, perspective, light and objects belong to one scene?",
    "emotional_or_thematic_resonance": "Does it have the mood that the prompt calls for?",
    OVERALL: "How good is it, all in all?",
}
TOP_GRADE = 10.0
GRADING_TRIES = 3
SYSTEM = (
    "You grade images that were made from a text prompt. Use the whole scale and its decimals, so that a better image "
    "always gets a higher grade."
)
GRADING = """The image was made from this prompt:
{prompt}

Grade it from 0 (worst) to 10 (best) in these respects:
{criteria}

For each of them first explain in one or two sentences what speaks for and against the image, then give the score.
Answer with JSON of this form and nothing else:
{form}"""

# A score as people write it: 8, 8.5, 8,5, **8**, 8/10, 8 out of 10.
WRITTEN_GRADE = re.compile(r"\**\s*(\d+(?:[.,]\d+)?)\s*\**\s*(?:(?:/|out of)\s*10(?:\.0)?)?\s*\**")
SCORE = re.compile(r'("\w+"\s*:\s*)\**(\d+(?:\.\d+)?)\**(?:\s*(?:/|out of)\s*10(?:\.0)?)?\**(?=\s*[,}])')
OPEN_THOUGHTS = re.compile("<think>.*", re.DOTALL)  # that do not end
AROUND_WORD = " \t\n*_`\"'“”‘’.,!:;"  # a word, in a token

log_to_console = logger(__name__)


@dataclass(frozen=True)
class Ask:
    """One question about one image.

    image: float [H, W, 3] in 0..1. schema: of the answer, in JSON Schema, for models that can be held to one.
    temperature: 0 for the likeliest answer, else sampled with `seed`.
    """

    image: torch.Tensor
    text: str
    system: str = ""
    schema: Mapping[str, Any] | None = None
    temperature: float = 0.0
    seed: int = 0


class VLM(Protocol):
    """A model that looks at an image and answers in text.

    name: for people. module: the torch module with the weights, None if there are none for the host to
    move. The answers come in the order of the questions.
    """

    name: str
    module: torch.nn.Module | None

    def identity(self) -> str:
        """What determines the answers, as far as it can be known."""
        ...

    def first_tokens(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        """For each question (text, natural log-probability) of what the answer may begin with: the likeliest tokens
        and every one that says yes or no, as far as the model tells. Each token is there once. VerifierError where a
        model gives no probabilities."""
        ...

    def answers(self, asks: Sequence[Ask]) -> list[str]:
        """The answer to each question, as text."""
        ...


class VQAScore:
    """log P(yes) - log P(no) for "Does this figure show ...?" (Lin et al., VQAScore, ECCV 2024, arXiv 2404.01291).

    The paper's value is P(yes) of the first token of the answer; its order among images of one prompt is the same, but
    it comes close to 1 for every good image, where float32 and people see no differences any more. "Yes", "yes" and
    " yes" count together. 0: undecided; 3: yes with 95%. Usually -5 to 10.
    """

    needs_prompt = True
    prompt_tokens = None
    usual_range = (-5.0, 10.0)

    def __init__(self, vlm: VLM, question: str = QUESTION):
        if "{prompt}" not in question:
            raise VerifierError(f"the question {question!r} has no {{prompt}} in it, where the prompt would go")
        self.vlm = vlm
        self.repeatable = getattr(vlm, "repeatable", True)
        self.question = question
        self.members = (f"VQA Score ({vlm.name})",)

    @property
    def module(self) -> torch.nn.Module | None:
        return self.vlm.module

    def identity(self) -> str:
        """SHA-256 of the model's identity and the question."""
        return _identity("vqa_score", self.vlm, {"question": self.question})

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, 1]. images: float [B, H, W, 3] in 0..1 on any device; prompts: B texts, not blank."""
        _check(self.members[0], images, prompts)
        asks = [Ask(image, self.ask_about(prompt)) for image, prompt in zip(images, prompts, strict=True)]
        tokens = self.vlm.first_tokens(asks) if asks else []
        return torch.tensor([[log_odds(pairs)] for pairs in tokens], dtype=torch.float32).reshape(len(images), 1)

    def ask_about(self, prompt: str) -> str:
        """The question with the prompt in it; quotation marks in the prompt do not end it."""
        return self.question.replace("{prompt}", prompt.replace('"', '\\"'))


def says(text: str) -> str:
    """ "yes" or "no" where a token says so, whatever its case and the spaces and marks around it ("**Yes"), else ""."""
    word = text.strip().strip(AROUND_WORD).lower()
    return word if word in WORDS else ""


def first_words(
    logits: torch.Tensor, words: Mapping[int, str], decode: Callable[[int], str], likeliest: int = SHOWN_TOKENS
) -> list[tuple[str, float]]:
    """What an answer may begin with, as `VLM.first_tokens` gives it.

    logits: [V] of the first token. words: the tokens that say yes or no, by their ids; `decode` gives the text of the
    likeliest others.
    """
    logprobs = logits.float().log_softmax(dim=-1).cpu()
    top = logprobs.topk(min(likeliest, len(logprobs))).indices.tolist()
    texts = {**words, **{index: decode(index) for index in top if index not in words}}
    return [(text, float(logprobs[index])) for index, text in texts.items()]


def log_odds(tokens: Sequence[tuple[str, float]]) -> float:
    """log P(yes) - log P(no) from what an answer may begin with: (text, natural log-probability), each token once.

    Upper and lower case, and spaces and marks around a word, make no difference. Where one of the words is not among
    the tokens, the rest that it can have at most stands for its probability. Raises VerifierError where neither is
    there, or what is there is no number.
    """
    if any(math.isnan(logprob) for _, logprob in tokens):
        raise VerifierError(
            "the model's probabilities are not numbers (NaN), as where fp16 overflows: choose another precision"
        )
    tokens = [(text, min(max(logprob, LEAST_LOGPROB), 0.0)) for text, logprob in tokens]
    yes, no = (math.fsum(math.exp(logprob) for text, logprob in tokens if says(text) == word) for word in WORDS)
    if yes + no < LEAST_MASS:
        likely = sorted(tokens, key=lambda token: -token[1])[:5]
        shown = ", ".join(f"{text!r} ({math.exp(logprob):.2g})" for text, logprob in likely) or "nothing"
        raise VerifierError(
            f"the answer begins with neither yes nor no, but with {shown}; VQA Score needs a model that answers a "
            "question at once, not one that thinks first: take an instruct model, or use VLM Grader"
        )
    rest = min(1 - math.fsum(math.exp(logprob) for _, logprob in tokens), *(math.exp(p) for _, p in tokens))
    rest = max(rest, math.exp(LEAST_LOGPROB))
    return math.log(yes or rest) - math.log(no or rest)


class VLMGrader:
    """Grades by a vision-language model, the LLM grader of Ma et al. (arXiv 2501.09732): five respects and overall.

    The model writes an explanation before each score. Values are 0 to 10, the mean of `samples` answers; the overall
    score decides and the others are reported. One sample is the model's likeliest answer, more are drawn at
    `temperature` with the seeds 0, 1, 2, ... An answer that is no grading is asked for again, up to twice.
    """

    needs_prompt = True
    prompt_tokens = None
    usual_range = (0.0, TOP_GRADE)
    member_weights = (1.0, *(0.0 for name in CRITERIA if name != OVERALL))
    repeatable = False  # one token that comes out otherwise changes the text after it

    def __init__(self, vlm: VLM, samples: int = 1, temperature: float = 0.7):
        if samples < 1 or not 0 < temperature <= 2:
            raise VerifierError(f"samples must be 1 or more and temperature above 0, not {samples} and {temperature}")
        self.vlm = vlm
        self.samples = samples
        self.temperature = temperature if samples > 1 else 0.0
        self.columns = (OVERALL, *(name for name in CRITERIA if name != OVERALL))
        title = f"VLM Grader ({vlm.name})"
        self.members = (title, *(f"{title}: {name.split('_')[0]}" for name in self.columns[1:]))

    @property
    def module(self) -> torch.nn.Module | None:
        return self.vlm.module

    def identity(self) -> str:
        """SHA-256 of the model's identity, the words of the question, and the settings."""
        words = [SYSTEM, _grading_text("{prompt}")]
        settings = {"words": words, "samples": self.samples, "temperature": self.temperature}
        return _identity("vlm_grader", self.vlm, settings)

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, 6]: overall, then the five. images: float [B, H, W, 3] in 0..1 on any device;
        prompts: B texts, not blank."""
        _check(self.members[0], images, prompts)
        asks = [
            Ask(image, _grading_text(prompt), SYSTEM, SCHEMA, self.temperature, seed)
            for image, prompt in zip(images, prompts, strict=True)
            for seed in range(self.samples)
        ]
        grades = torch.tensor([[one[name] for name in self.columns] for one in self._graded(asks)], dtype=torch.float64)
        return grades.reshape(len(images), self.samples, len(self.columns)).mean(dim=1).to(torch.float32)

    def _graded(self, asks: Sequence[Ask]) -> list[dict[str, float]]:
        """The grades for each question; bad answers are asked for again, with other seeds."""
        grades: dict[int, dict[str, float]] = {}
        for attempt in range(GRADING_TRIES):
            left = [index for index in range(len(asks)) if index not in grades]
            if not left:
                break
            again = [_again(asks[index], attempt) for index in left]
            for index, answer in zip(left, self.vlm.answers(again), strict=True):
                try:
                    grades[index] = parse_grades(answer)
                except VerifierError as error:
                    if attempt == GRADING_TRIES - 1:
                        raise VerifierError(f"{error}, in {GRADING_TRIES} tries; try a larger model") from None
                    log_to_console.info("%s: %s; asking again", self.members[0], error)
        return [grades[index] for index in range(len(asks))]


def _again(ask: Ask, attempt: int) -> Ask:
    """Another try must not give the same answer."""
    return ask if attempt == 0 else replace(ask, temperature=ask.temperature or 0.7, seed=ask.seed + 1000 * attempt)


def parse_grades(answer: str) -> dict[str, float]:
    """The six scores, 0 to 10, of a grading in JSON, whatever text is around it (the last, if there are several).

    What a model thinks before it answers is no answer, and the form of the question, which some repeat after theirs, is
    no grading. Raises VerifierError that says what is missing and shows the answer.
    """
    said = OPEN_THOUGHTS.sub("", answer.rpartition("</think>")[2])
    problem = "holds no grading in JSON"
    for text in (said, _repaired(said)):
        complete: list[dict[str, float]] = []
        forms: list[dict[str, float]] = []
        for found in _gradings(_json_objects(text)):
            try:
                grades = {name: _score(found, name) for name in CRITERIA}
            except ValueError as error:
                problem = str(error)
                continue
            (forms if _is_form(found) else complete).append(grades)
        if complete:
            return complete[-1]
        if forms and any(forms[-1].values()):
            return forms[-1]
        if forms:
            problem = "only repeats the form of the question"
    shown = answer if len(answer) <= 300 else f"{answer[:200]}... {answer[-100:]}"
    raise VerifierError(f"the answer {problem}: {shown!r}")


def _gradings(objects: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The objects that grade, however deep they are in others, their keys as they were asked for."""
    for found in objects:
        if isinstance(found, dict):
            named = {str(key).strip().lower().replace(" ", "_"): value for key, value in found.items()}
            if named.keys() & CRITERIA.keys():
                yield named
            else:
                yield from _gradings(found.values())


def _is_form(grading: Mapping[str, Any]) -> bool:
    """Whether nothing is explained, as in the form that the question shows."""
    entries = [grading[name] for name in CRITERIA]
    return all(isinstance(entry, Mapping) and entry.get("explanation") in ("...", "…") for entry in entries)


def _repaired(text: str) -> str:
    """The text with JSON in it that small models nearly write: 8/10 or **8** for a number, a comma before a bracket."""
    return re.sub(r",(\s*[}\]])", r"\1", SCORE.sub(r"\1\2", text))


def _score(grading: Mapping[str, Any], name: str) -> float:
    entry = grading.get(name)
    value = entry.get("score") if isinstance(entry, Mapping) else entry
    if isinstance(value, str) and (written := WRITTEN_GRADE.fullmatch(value.strip())):
        value = written[1].replace(",", ".")
    try:
        score = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"has no score for {name}") from None
    if not 0 <= score <= TOP_GRADE:
        raise ValueError(f"gives {name} {value}, which is not between 0 and 10")
    return score


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield found
        start = text.find("{", end)


def _grading_text(prompt: str) -> str:
    criteria = "\n".join(f"- {name}: {question}" for name, question in CRITERIA.items())
    form = json.dumps({name: {"explanation": "...", "score": 0.0} for name in CRITERIA}, indent=1)
    return GRADING.replace("{criteria}", criteria).replace("{form}", form).replace("{prompt}", prompt)


def _schema() -> dict[str, Any]:
    """JSON Schema of a grading, with nothing but what strict structured output allows."""

    def thing(properties: Mapping[str, Any]) -> dict[str, Any]:
        required = list(properties)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    grade = thing({"explanation": {"type": "string"}, "score": {"type": "number"}})
    return thing({name: grade for name in CRITERIA})


SCHEMA = _schema()


def picture(image: torch.Tensor) -> Image.Image:
    """An image [H, W, 3] in 0..1 as 8-bit RGB, its longer side `MAX_SIDE` pixels or less, both `MIN_SIDE` or more."""
    pixels = (image.detach().to("cpu", torch.float32).clamp(0, 1) * 255).round().to(torch.uint8)
    out = Image.fromarray(pixels.contiguous().numpy())
    scale = min(1.0, MAX_SIDE / max(out.size))
    width, height = (max(MIN_SIDE, round(side * scale)) for side in out.size)
    return out if (width, height) == out.size else out.resize((width, height), Image.Resampling.BICUBIC)


def data_url(image: torch.Tensor) -> str:
    """`picture` as the data URL of a PNG."""
    buffer = io.BytesIO()
    picture(image).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _identity(name: str, vlm: VLM, settings: Mapping[str, Any]) -> str:
    text = json.dumps([vlm.identity(), MIN_SIDE, MAX_SIDE, settings], sort_keys=True)
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()}"


def _check(name: str, images: torch.Tensor, prompts: Sequence[str]) -> None:
    if len(images) != len(prompts):
        raise VerifierError(f"{name}: {len(images)} images for {len(prompts)} prompts")
    if not all(prompt.strip() for prompt in prompts):
        raise VerifierError(f"{name} judges an image by its prompt, and the prompt is empty: write one")


ASKS = "It asks a vision-language model."
VQA_SCORE = Descriptor(
    id="vqa_score",
    kind=VQAScore,
    node="NoiseSearchVQAScore",
    title="VQA Score",
    description="Verifier: how sure a vision-language model is that the image shows the prompt.",
    aliases=("verifier", "vqascore", "vlm", "prompt alignment", "yes no"),
    reads=ASKS,
)
GRADER = Descriptor(
    id="vlm_grader",
    kind=VLMGrader,
    node="NoiseSearchVLMGrader",
    title="VLM Grader",
    description="Verifier: a vision-language model grades the image from 0 to 10, in five respects and overall. The "
    "overall grade decides, the others are reported.",
    aliases=("verifier", "llm grader", "vlm", "judge", "rate"),
    reads=ASKS,
)
