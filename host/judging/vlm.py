"""Vision-language models: the back ends behind the VLM socket, and the verifiers that ask them."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import torch
from comfy_execution.utils import get_executing_context
from torch.overrides import TorchFunctionMode

from ...search.judges import said
from ...verifiers import registry
from ...verifiers.base import VerifierError
from ...verifiers.openai_endpoint import Endpoint
from ...verifiers.transformers_vlm import ANSWER_TOKENS, FolderVLM, model_files
from ...verifiers.vlm import QUESTION, VLM, WORDS, Ask, first_words, picture, says
from ...verifiers.weights import file_stamp
from ..memory.content import Content
from ..pictures import to_image
from .folders import stamped, vlm_folder
from .hosted import HostedVerifier, resolve_dtype

ACTIVATION_BYTES = 2 * 2**30  # an image of 1024 pixels and a page of text through 8 billion parameters stay below
EYES = (
    "connect the text encoder of a model that sees, such as Qwen3-VL 4B or 8B, Qwen3.5, Gemma 3 or Gemma 4, all of "
    "which ComfyUI 0.30 loads by its CLIP loader; older ones know fewer of them (0.16.3 only Gemma 3, as LTX-2 uses it)"
)


class HostedVLMVerifier(HostedVerifier):
    """A verifier that asks a vision-language model."""

    def _called(self) -> str:
        return self.members[0]  # the others are its parts

    def _load(self, images: torch.Tensor) -> None:
        if self.whole and self.patcher is not None:  # ComfyUI's own network is loaded by what generates with it
            mm.load_models_gpu([self.patcher], memory_required=ACTIVATION_BYTES, force_full_load=True)


SPELLINGS = tuple(
    space + form for word in WORDS for form in (word, word.capitalize(), word.upper()) for space in ("", " ")
)
LIKELIEST_TOKENS = 50  # tokens that are looked at for further ways to write yes and no


class _Chosen(TorchFunctionMode):
    """Sees the logits that a greedy choice is made from, while it is active in this thread: ComfyUI gives out no more
    than the tokens chosen. Changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.argmax, torch.Tensor.argmax):
            self.logits = args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


class ClipVLM:
    """A CLIP of ComfyUI that sees images and writes text, by the interface that ComfyUI's Generate Text uses."""

    module = None  # ComfyUI's own patcher moves it

    def __init__(self, clip: Any):
        self.clip = clip
        self.patcher: Any = getattr(clip, "patcher", None)
        self.name = str(getattr(getattr(clip, "cond_stage_model", None), "clip_name", "CLIP"))
        self._identity = ""
        self._words: dict[int, str] = {}
        if not all(hasattr(clip, name) for name in ("tokenize", "generate", "decode", "cond_stage_model")):
            raise VerifierError(f"VLM from CLIP: this ComfyUI's CLIP cannot generate text; {EYES}")
        self._tokens(Ask(torch.zeros(64, 64, 3), "?"))

    def identity(self) -> str:
        """A hash of the weights, of what is patched onto them, and of what the tokeniser has in its file."""
        if not self._identity:
            content = Content()
            content.add(self.patcher, "clip")
            content.add(self.clip.tokenizer.state_dict(), "tokenizer")
            self._identity = json.dumps(["clip", content.digest()])
        return self._identity

    def first_tokens(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        self._words = self._words or self._word_ids()
        return [first_words(self._first(ask), self._words, self._text, LIKELIEST_TOKENS) for ask in asks]

    def answers(self, asks: Sequence[Ask]) -> list[str]:
        return [self._answer(ask) for ask in asks]

    def _first(self, ask: Ask) -> torch.Tensor:
        """The logits [V] of the first token, as ComfyUI's own generation has them, in the dtype it runs in."""
        mm.throw_exception_if_processing_interrupted()
        tokens = self._tokens(ask)
        with _Chosen() as seen:
            first = self.clip.generate(tokens, do_sample=False, max_length=1, repetition_penalty=1.0)[0]
        # the token shows whether these are the logits: another ComfyUI may choose by other means
        if seen.logits is None or seen.logits.numel() <= first or int(seen.logits.flatten().argmax()) != first:
            raise VerifierError(
                f"this ComfyUI shows no probabilities of what {self.name} answers, which VQA Score needs: use VLM "
                "Grader, or VLM from Folder or VLM Endpoint in place of VLM from CLIP"
            )
        return seen.logits.flatten()

    def _text(self, index: int) -> str:
        return self.clip.decode([index])

    def _word_ids(self) -> dict[int, str]:
        """The tokens that yes and no are written with: id -> text. None where the model has them in pieces only."""
        found = {}
        for spelling in SPELLINGS:
            tokens = self.clip.tokenize(spelling, skip_template=True, min_length=1)
            found.update({index: self._text(index) for index in _flat(tokens) if isinstance(index, int)})
        return {index: text for index, text in sorted(found.items()) if says(text)}

    def _answer(self, ask: Ask) -> str:
        mm.throw_exception_if_processing_interrupted()
        sampling: dict[str, Any] = {"do_sample": False}
        if ask.temperature > 0:  # the whole distribution
            sampling = {"do_sample": True, "temperature": ask.temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        ids = self.clip.generate(
            self._tokens(ask), max_length=ANSWER_TOKENS, repetition_penalty=1.0, seed=ask.seed, **sampling
        )
        return self.clip.decode(ids)

    def _tokens(self, ask: Ask) -> Any:
        """The question as the model's own template puts it. Raises VerifierError where the image is not in it."""
        image = to_image(picture(ask.image))
        text = f"{ask.system}\n\n{ask.text}" if ask.system else ask.text
        tokens = self.clip.tokenize(text, image=image, skip_template=False, min_length=1, thinking=False)
        shown = any(isinstance(token, dict) and token.get("type") == "image" for token in _flat(tokens))
        # some tokenizers take images for models that cannot see, and ComfyUI then drops them without a word
        if not shown or not any(hasattr(part, "preprocess_embed") for part in self.clip.cond_stage_model.modules()):
            raise VerifierError(f"VLM from CLIP: {self.name} does not look at images; {EYES}")
        return tokens


def _flat(tokens: Any) -> list[Any]:
    """The tokens that `CLIP.tokenize` gives, without their weights: ids, and dicts for images."""
    batches = tokens.values() if isinstance(tokens, dict) else [tokens]
    return [token[0] for batch in batches for section in batch for token in section]


# As in host/judging/hosted.py: weak, so that nothing stays in memory on account of this table.
_folders: weakref.WeakValueDictionary[tuple, FolderVLM] = weakref.WeakValueDictionary()


def load_vlm_folder(model_name: str, precision: str = "auto") -> FolderVLM:
    """A model from an entry of `folders.vlm_choices`. Two loads of one folder share one network."""
    folder, dtype = vlm_folder(model_name), vlm_dtype(precision)
    key = (model_name, file_stamp(model_files(folder)), dtype)
    vlm = _folders.get(key)
    if vlm is None:
        vlm = FolderVLM.load(folder, dtype, folder.name, mm.throw_exception_if_processing_interrupted)
        _folders[key] = vlm
    return vlm


def fingerprint(model_name: str | None) -> str:
    """`folders.stamped` of the entry of a folder."""
    return stamped(lambda entry: model_files(vlm_folder(entry)), model_name)


def vlm_dtype(precision: str, device: torch.device | None = None) -> torch.dtype:
    """The dtype as `resolve_dtype` has it, but bf16 before fp16: most of these models overflow in fp16."""
    device = device or mm.get_torch_device()
    if precision == "auto" and not mm.is_device_cpu(device):
        return torch.bfloat16 if mm.should_use_bf16(device) else torch.float16
    return resolve_dtype(precision, device)


def load_endpoint(
    url: str, model: str, key_variable: str = "", concurrency: int = 4, timeout: float = 60, max_calls: int = 500
) -> Endpoint:
    """An OpenAI-compatible server; calls are counted for every run of a node anew."""
    return Endpoint(
        url,
        model,
        key_variable,
        concurrency,
        timeout,
        max_calls,
        check=mm.throw_exception_if_processing_interrupted,
        run_key=get_executing_context,
    )


def load_vqa_score(vlm: VLM, question: str = QUESTION) -> HostedVLMVerifier:
    """VQA Score."""
    return HostedVLMVerifier(registry.get("vqa_score")(vlm, question.strip() or QUESTION), patcher=said(vlm, "patcher"))


def load_vlm_grader(vlm: VLM, samples: int = 1, temperature: float = 0.7) -> HostedVLMVerifier:
    """VLM Grader."""
    return HostedVLMVerifier(registry.get("vlm_grader")(vlm, samples, temperature), patcher=said(vlm, "patcher"))
