"""A vision-language model in a local folder, run by transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .base import VerifierError, require
from .vlm import Ask, first_words, picture, says
from .weights import check_regular, content_hash, file_stamp

CONFIG = "config.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
SETTINGS = (".json", ".jinja", ".txt", ".model")
# What transformers and timm fetch by name, even where they are told to stay local: the network inside a model, its
# weights, the names of an image processor's classes. No model that answers questions needs them.
FETCHED_KEYS = ("backbone", "checkpoint_path", "class_info_file", "semantic_model_config")
ANSWER_TOKENS = 1500
SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": " "})  # as byte-level BPE and SentencePiece write them
FILES = (
    "Put all files of a model, such as huggingface.co/Qwen/Qwen3-VL-4B-Instruct (Apache-2.0 licence, 8.9 GB), into a "
    "folder of their own, such as models/LLM/Qwen3-VL-4B-Instruct"
)


class FolderVLM:
    """An image-text-to-text model of transformers with safetensors weights; no code from the folder is run.

    One question at a time, so that an answer does not depend on the others. Log-probabilities are float32 whatever the
    dtype of the model. check: called before every token; what it raises ends the answer.
    """

    def __init__(self, model: Any, processor: Any, files: Sequence[Path], name: str, check: Callable[[], None]):
        self.name = name
        self.check = check
        self.module: torch.nn.Module | None = model.eval().requires_grad_(False)
        self.model = model
        self.processor = processor
        self.files = tuple(files)
        self._stamp = file_stamp(self.files)
        self._digest = ""
        self._words = _word_ids(processor.tokenizer)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        name: str = "",
        check: Callable[[], None] = lambda: None,
    ) -> FolderVLM:
        """From a folder in transformers' layout: config.json, safetensors, processor and tokenizer. Raises
        VerifierError, naming a model to get."""
        folder = Path(folder)
        with torch.inference_mode(False):  # weights born in inference mode could not be used outside it
            model, processor = _load(folder, dtype)
        return cls(model, processor, model_files(folder), name or folder.name, check)

    def identity(self) -> str:
        """SHA-256 of the folder's files and the dtype. Read once, when asked."""
        if not self._digest:
            if file_stamp(self.files) != self._stamp:
                raise VerifierError(f"{self.name}: its files changed after they were loaded; load it again")
            self._digest = content_hash(self.files, {"dtype": str(self.model.dtype)})
        return self._digest

    def first_tokens(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        return [self._first(ask) for ask in asks]

    def answers(self, asks: Sequence[Ask]) -> list[str]:
        return [self._answer(ask) for ask in asks]

    def _first(self, ask: Ask) -> list[tuple[str, float]]:
        inputs = self._inputs(ask)
        out = self._generate(inputs, max_new_tokens=1, do_sample=False, output_logits=True)
        return first_words(out.logits[0][0], self._words, lambda index: self.processor.tokenizer.decode([index]))

    def _answer(self, ask: Ask) -> str:
        inputs = self._inputs(ask)
        options: dict[str, Any] = {"do_sample": False}
        if ask.temperature > 0:  # the folder's own settings could cut the distribution
            options = {"do_sample": True, "temperature": ask.temperature, "top_k": 0, "top_p": 1.0}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(ask.seed)
            out = self._generate(inputs, max_new_tokens=ANSWER_TOKENS, **options)
        tokens = out.sequences[0]
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def _inputs(self, ask: Ask) -> dict[str, Any]:
        """The question as the model's own chat template and processor put it, on the model's device."""
        content = [{"type": "image", "image": picture(ask.image)}, {"type": "text", "text": ask.text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if ask.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": ask.system}]})
        # models that can think first or not: the first word is to be the answer
        quick = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **quick
        )
        length, limit = inputs["input_ids"].shape[1], _positions(self.model.config)
        if length + 1 > limit:
            raise VerifierError(f"{self.name} reads {limit} tokens and the question has {length}: shorten the prompt")
        device, dtype = self.model.device, self.model.dtype
        return {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }

    def _generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        transformers = require("transformers", "transformers", "a VLM from a folder")

        def cancelled(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            self.check()
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        self.check()
        with torch.no_grad():
            return self.model.generate(
                **inputs,
                **options,
                repetition_penalty=1.0,
                return_dict_in_generate=True,
                stopping_criteria=transformers.StoppingCriteriaList([cancelled]),
            )


def model_files(folder: Path) -> list[Path]:
    """The files that determine what a model answers: weights, settings, tokenizer, chat template."""
    return sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", *SETTINGS) and file.is_file())


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    transformers = require("transformers", "transformers", f"loading {folder.name}")
    for file in folder.iterdir():
        if file.exists() and not file.is_dir():
            check_regular(file)  # transformers opens what it finds
    if not any(file.suffix == ".safetensors" for file in folder.iterdir()):
        raise VerifierError(f"{folder} has no .safetensors weights; pickles (.bin, .pt) are not loaded. {FILES}")
    local = {"local_files_only": True, "trust_remote_code": False}
    # the older name is refused by new versions, and the new one by old
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    precision = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    try:
        for file in sorted(folder.glob("*config*.json")):
            _refuse_elsewhere(json.loads(file.read_text("utf-8")), file)
        config = transformers.AutoConfig.from_pretrained(str(folder), **local)
        _refuse_elsewhere(config.to_dict(), folder / CONFIG)  # with what is so unless it says otherwise
        if getattr(config, "quantization_config", None) is not None:
            raise VerifierError(f"{folder} is quantised, which ComfyUI's memory management cannot move. {FILES}")
        config._attn_implementation = None  # a folder can name a kernel there, which would be fetched and run
        processor = transformers.AutoProcessor.from_pretrained(str(folder), **local)
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            str(folder), config=config, use_safetensors=True, output_loading_info=True, **precision, **local
        )
    except VerifierError:
        raise
    except Exception as error:  # transformers raises nearly anything
        raise VerifierError(
            f"transformers {transformers.__version__} cannot load {folder}: {error}. {FILES}"
        ) from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:  # transformers would leave them at random values
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise VerifierError(f"the weights in {folder} lack, or have in other sizes, {shown}; download it again")
    template = getattr(processor, "chat_template", None)
    if not template or not hasattr(processor, "tokenizer"):
        raise VerifierError(f"{folder} has no chat template, so it is no model to put questions to. {FILES}")
    return model, processor


def _refuse_elsewhere(settings: Any, file: Path) -> None:
    """Raises VerifierError where settings name something outside of the folder."""
    for key, value in _entries(settings):
        by_source = key == "architecture" and isinstance(value, str) and ":" in value  # timm's "hf-hub:..."
        if by_source or (key in FETCHED_KEYS and value):
            raise VerifierError(
                f"{file} names {str(value)[:200]!r} as {key}, which is not in the folder, and nothing is downloaded. "
                f"{FILES}"
            )


def _entries(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, however deep."""
    if isinstance(settings, dict):
        yield from settings.items()
    if isinstance(settings, dict | list | tuple):
        for inner in settings.values() if isinstance(settings, dict) else settings:
            yield from _entries(inner)


def _word_ids(tokenizer: Any) -> dict[int, str]:
    """Every token that says yes or no, whatever its case and the spaces around it: id -> text."""
    texts = {index: token.translate(SPACES) for token, index in tokenizer.get_vocab().items()}
    return {index: text for index, text in sorted(texts.items()) if says(text)}


def _positions(config: Any) -> float:
    """How many tokens the language model has places for."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None) or math.inf
