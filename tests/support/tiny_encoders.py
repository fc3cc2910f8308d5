"""ComfyUI's own text encoders that see and write, with tiny layers of random weights: Qwen3-VL and Gemma 3."""

from __future__ import annotations

import math

import pytest
import torch
from noise_search.verifiers.vlm import picture

TINY_LAYERS = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def host_clip(te, tokenizer, name, state=None, **layers):
    """ComfyUI's own text encoder with its real tokenizer class, with tiny layers of random weights."""
    import comfy.sd

    target = type("Target", (), {"params": {}, "clip": te, "tokenizer": tokenizer})
    options = {f"{name}_model_config": TINY_LAYERS | layers, "dtype": torch.float32}
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        clip = comfy.sd.CLIP(target, tokenizer_data=state or {}, model_options=options)
        for parameter in clip.cond_stage_model.parameters():
            parameter.normal_(std=0.3)
    return clip


def qwen_clip(patch):
    qwen3vl = pytest.importorskip("comfy.text_encoders.qwen3vl", reason="this ComfyUI has no Qwen3-VL")
    eyes = {"hidden_size": 32, "intermediate_size": 32, "depth": 2, "deepstack_visual_indexes": [0]}
    patch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", eyes)
    patch.setitem(qwen3vl.QWEN3VL_VISION_COMMON, "num_heads", 2)
    return host_clip(qwen3vl.te(model_type="qwen3vl_4b"), qwen3vl.tokenizer("qwen3vl_4b"), "qwen3vl_4b")


def gemma_clip(patch, name="gemma3_4b_vision", pieces=()):
    import io

    import sentencepiece
    from comfy.text_encoders import llama, lumina2

    eyes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    for key, value in {**eyes, "image_size": 224}.items():
        patch.setitem(llama.GEMMA3_VISION_CONFIG, key, value)
    words = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle above a blue square", "yes or no"]),
        model_writer=words,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        add_dummy_prefix=False,  # as in the real one
        remove_extra_whitespaces=False,
        user_defined_symbols=list(pieces),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    size = sentencepiece.SentencePieceProcessor(model_proto=words.getvalue()).get_piece_size()
    state = {"spiece_model": torch.tensor(list(words.getvalue()), dtype=torch.uint8)}
    return host_clip(lumina2.te(model_type=name), lumina2.NTokenizer, name, state, vocab_size=size)


def made_to_answer(clip):
    """Random weights, but the rows that also tell how likely yes and no are made larger."""
    inner = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
    with torch.inference_mode(False), torch.no_grad():
        inner.transformer.model.embed_tokens.weight[list(words_of(clip))] *= 20
    return clip


def words_of(clip):
    """Every token of the vocabulary that says yes or no: id -> word. Looked up one by one."""
    inner = getattr(clip.tokenizer, clip.tokenizer.clip)
    texts = {index: clip.decode([index]).strip().lower() for index in inner.inv_vocab}
    return {index: text for index, text in texts.items() if text in ("yes", "no")}


def log_odds_by_transformers(clip, image, question):
    """log P(yes) - log P(no) of the first token by transformers' own Qwen3-VL with the weights of ComfyUI's.

    image: float [H, W, 3] of whole 255ths, sides multiples of 32.
    """
    p = _logits_by_transformers(clip, image, question).softmax(0)
    words = words_of(clip)
    yes, no = (sum(float(p[index]) for index in words if words[index] == word) for word in ("yes", "no"))
    assert yes + no > 0.1
    return math.log(yes / no)


def _logits_by_transformers(clip, image, question):
    import transformers

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**TINY_LAYERS, "vocab_size": 151936, "head_dim": 128, "rms_norm_eps": 1e-6}
    eyes = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3VLConfig(
        text_config=text | {"rope_theta": 5e6, "rope_parameters": rope, "rope_scaling": rope},
        vision_config=eyes | {"deepstack_visual_indexes": [0]},
        image_token_id=(image_token := 151655),
        vision_start_token_id=151652,
        vision_end_token_id=151653,
    )
    model = transformers.Qwen3VLForConditionalGeneration(config).eval().double()
    prefix, state = "qwen3vl_4b.transformer.", {}
    for key, value in clip.cond_stage_model.state_dict().items():
        if key.startswith(prefix):
            key = key.removeprefix(prefix)
            state["model.language_model." + key[6:] if key.startswith("model.") else "model." + key] = value
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.load_state_dict(state)
    half, sizes = [0.5, 0.5, 0.5], {"shortest_edge": 1, "longest_edge": 10**7}
    processor = transformers.Qwen2VLImageProcessor(patch_size=16, image_mean=half, image_std=half, size=sizes)
    pixels = processor(images=[picture(image)], return_tensors="pt")
    shown = "<|vision_start|>" + "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4) + "<|vision_end|>"
    words = f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ids = torch.tensor([clip.tokenizer.qwen3vl_4b.tokenizer(words)["input_ids"]])
    if int(transformers.__version__.split(".")[0]) > 4:
        pixels["mm_token_type_ids"] = (ids == image_token).int()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels.to(torch.float64)).logits[0, -1]
