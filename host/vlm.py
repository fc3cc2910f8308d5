"""Vision-language models as judges: the back ends behind the VLM socket, and the verifiers that ask them."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import torch
from comfy_execution.utils import get_executing_context

from ..search.aggregate import Aggregator
from ..verifiers import registry
from ..verifiers.base import Verifier, VerifierError
from ..verifiers.openai_endpoint import Endpoint
from ..verifiers.transformers_vlm import ANSWER_TOKENS, FolderVLM, model_files
from ..verifiers.vlm import QUESTION, VLM, Ask, picture
from ..verifiers.weights import file_stamp, tensors_hash
from .folders import vlm_folder
from .pictures import to_image
from .verifier import HostedVerifier, resolve_dtype

ACTIVATION_BYTES = 2 * 2**30  # an image of 1024 pixels and a page of text through 8 billion parameters stay below
EYES = (
    "connect the text encoder of a model that sees, such as Qwen3-VL 4B or 8B, Qwen3.5, Gemma 3 or Gemma 4, all of "
    "which ComfyUI 0.30 loads by its CLIP loader; older ones know fewer of them (0.16.3 only Gemma 3, as LTX-2 uses it)"
)


class HostedJudge(HostedVerifier):
    """A verifier that asks a vision-language model. Of the grader's members the overall grade decides."""

    def __init__(self, verifier: Verifier, patcher: Any = None):
        super().__init__(verifier, patcher=patcher)
        weights = getattr(verifier, "weights", None)
        self.aggregator = Aggregator(weights=weights) if weights else None

    def _load(self, images: torch.Tensor) -> None:
        if self.whole and self.patcher is not None:  # ComfyUI's own network is loaded by what generates with it
            mm.load_models_gpu([self.patcher], memory_required=ACTIVATION_BYTES, force_full_load=True)


class ClipVLM:
    """A CLIP of ComfyUI that sees images and writes text, by the interface that ComfyUI's Generate Text uses."""

    module = None  # ComfyUI's own patcher moves it

    def __init__(self, clip: Any):
        self.clip = clip
        self.patcher: Any = getattr(clip, "patcher", None)
        self.name = str(getattr(getattr(clip, "cond_stage_model", None), "clip_name", "CLIP"))
        self._identity = ""
        if not all(hasattr(clip, name) for name in ("tokenize", "generate", "decode", "cond_stage_model")):
            raise VerifierError(f"VLM from CLIP: this ComfyUI's CLIP cannot generate text; {EYES}")
        self._tokens(Ask(torch.zeros(64, 64, 3), "?"))

    def identity(self) -> str:
        """SHA-256 of the weights as they are in memory, with what is patched onto them."""
        if not self._identity:
            patches = str(self.patcher.patches_uuid) if self.patcher.patches else ""
            self._identity = json.dumps(["clip", tensors_hash(self.clip.get_sd()), patches])
        return self._identity

    def first_tokens(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        raise VerifierError(
            "VQA Score needs the probabilities of yes and no, and ComfyUI's CLIP gives out text only: use VLM Grader "
            "with VLM from CLIP, or VQA Score with VLM from Folder or VLM Endpoint"
        )

    def answers(self, asks: Sequence[Ask]) -> list[str]:
        return [self._answer(ask) for ask in asks]

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
        batches = tokens.values() if isinstance(tokens, dict) else [tokens]
        first = [token[0] for batch in batches for section in batch for token in section]
        shown = any(isinstance(token, dict) and token.get("type") == "image" for token in first)
        # some tokenizers take images for models that cannot see, and ComfyUI then drops them without a word
        if not shown or not any(hasattr(part, "preprocess_embed") for part in self.clip.cond_stage_model.modules()):
            raise VerifierError(f"VLM from CLIP: {self.name} does not look at images; {EYES}")
        return tokens


# As in host/verifier.py: weak, so that nothing stays in memory on account of this table.
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


def vlm_dtype(precision: str, device: torch.device | None = None) -> torch.dtype:
    """As `resolve_dtype`, but bf16 goes before fp16: most of these models overflow in fp16."""
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
        search=get_executing_context,
    )


def load_vqa_score(vlm: VLM, question: str = QUESTION) -> HostedJudge:
    """VQA Score. Raises VerifierError where the model gives no probabilities."""
    if isinstance(vlm, ClipVLM):
        vlm.first_tokens([])  # says what to do instead, before anything is sampled
    return HostedJudge(registry.get("vqa_score")(vlm, question.strip() or QUESTION), getattr(vlm, "patcher", None))


def load_vlm_grader(vlm: VLM, samples: int = 1, temperature: float = 0.7) -> HostedJudge:
    """VLM Grader."""
    return HostedJudge(registry.get("vlm_grader")(vlm, samples, temperature), getattr(vlm, "patcher", None))
