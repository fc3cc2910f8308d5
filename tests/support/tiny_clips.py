"""Tiny CLIP and SigLIP checkpoints with random weights, in the file layouts of the real ones."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

OPEN_CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
WORDS = ["a", "red", "green", "blue", "circle", "square", "triangle", "above", "below", "two", "small"]


@contextmanager
def open_clip_architectures(folder: Path, **configs: dict):
    """More architectures in open_clip's own list, as long as this lasts: other tests' files must not fit them."""
    import open_clip
    from open_clip import factory

    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS])
        patch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS})
        open_clip.add_model_config(folder)
        yield


def randomise(model, seed=0):
    """Weights with enough spread that images and prompts differ, as the default initialisation's do not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "embedding" in name:
                scale = 0.3 if "embedding" in name else 0.8 * parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 1:
                parameter.copy_(parameter.round() + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def open_clip_model(quick_gelu=False, seed=0, **config):
    import open_clip

    return randomise(open_clip.CLIP(**{**OPEN_CLIP_CONFIG, "quick_gelu": quick_gelu, **config}), seed)


def stock_tokenizer():
    """ComfyUI's own CLIP tokenizer."""
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(Path(os.environ["COMFYUI_PATH"], "comfy", "sd1_tokenizer"))


def save_open_clip_folder(folder: Path, model=None, weights="open_clip_model.safetensors", **config) -> torch.nn.Module:
    from safetensors.torch import save_file

    model = model or open_clip_model(**config)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": {**OPEN_CLIP_CONFIG, **config}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if weights.endswith(".safetensors"):
        save_file(model.state_dict(), folder / weights)
    else:
        torch.save(model.state_dict(), folder / weights)
    return model


def save_word_tokenizer(folder: Path) -> None:
    """A word-level tokenizer in the Hugging Face layout: ids 0 pad, 1 unknown, 2 start, the words, then the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<unk>", "<start>", *WORDS, "<end>"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    end = len(tokens) - 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(folder)


def save_clip_tokenizer(folder: Path) -> None:
    """CLIP's own BPE as the vocab.json and merges.txt of the transformers layout."""
    import gzip

    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): i for token, i in SimpleTokenizer().encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "unk_token": "<|endoftext|>"}
    config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def hf_clip_model(hidden_act="quick_gelu", projection_dim=24, seed=0):
    import transformers

    shared = {"num_hidden_layers": 2, "hidden_act": hidden_act, "projection_dim": projection_dim}
    config = transformers.CLIPConfig(
        projection_dim=projection_dim,
        vision_config={**shared, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
        | {"image_size": 32, "patch_size": 8},
        text_config={**shared, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2},
    )
    return randomise(transformers.CLIPModel(config), seed)


def save_hf_clip_folder(folder: Path, model=None, safe=True, **config) -> torch.nn.Module:
    model = model or hf_clip_model(**config)
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    save_clip_tokenizer(folder)
    return model


def save_hf_siglip_folder(folder: Path, seed=0) -> torch.nn.Module:
    import transformers

    shared = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        vision_config={**shared, "hidden_size": 64, "intermediate_size": 128, "image_size": 32, "patch_size": 8},
        text_config={**shared, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 40}
        | {"max_position_embeddings": 16, "projection_size": 64},
    )
    model = randomise(transformers.SiglipModel(config), seed)
    model.save_pretrained(folder)
    save_word_tokenizer(folder)
    return model


HEADS = {  # layout -> names of the layers, and their widths after the embedding's
    "v1": ([""], [1]),
    "v2": ([f"layers.{i}." for i in (0, 2, 4, 6, 7)], [64, 32, 16, 8, 1]),
    "v2 relu": ([f"layers.{i}." for i in (0, 3, 6, 9, 11)], [64, 32, 16, 8, 1]),
    "v2.5": ([f"scoring_head.{i}." for i in (0, 2, 4, 6, 8)], [64, 32, 16, 8, 1]),
}


def save_head(path: Path, layout: str, width: int, seed=0) -> dict[str, torch.Tensor]:
    """An aesthetic head under the names of the published ones; V2.5 in bfloat16, as it is."""
    generator = torch.Generator().manual_seed(seed)
    state, before = {}, width
    for name, after in zip(*HEADS[layout], strict=True):
        state[f"{name}weight"] = 2 * torch.randn(after, before, generator=generator) * before**-0.5
        state[f"{name}bias"] = torch.randn(after, generator=generator)
        before = after
    state = {key: value.bfloat16() for key, value in state.items()} if layout == "v2.5" else state
    torch.save(state, path)
    return state


def images(count=4, height=32, width=32, seed=0) -> torch.Tensor:
    """Pictures with 8-bit values: float [count, height, width, 3] in 0..1, smooth shapes with some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = random.normal(size=(count, 3, 4)) * 6
    phase = waves[..., 0, None, None] * x + waves[..., 1, None, None] * y + waves[..., 2, None, None]
    pictures = 0.5 + 0.5 * np.sin(phase) * np.cos(waves[..., 3, None, None] * x * y)
    pictures = np.clip(pictures + 0.05 * random.normal(size=pictures.shape), 0, 1)
    return torch.from_numpy(np.round(pictures * 255).astype(np.float32) / 255).movedim(1, -1).contiguous()


def cosine(image_embedding, text_embedding) -> np.ndarray:
    """cos(E_image, E_text) of [B, D] and [B, D], from the formula, in float64."""
    a, b = np.asarray(image_embedding, np.float64), np.asarray(text_embedding, np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
