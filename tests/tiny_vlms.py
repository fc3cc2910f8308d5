"""Tiny vision-language models with random weights, saved as a real one is: the smallest LLaVA there can be."""

from __future__ import annotations

import json
from pathlib import Path

import torch

IMAGE = "<image>"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MERGES = ["Y e", "Ye s", "y e", "ye s", "N o", "n o", "Ġ yes", "Ġ Yes", "Ġ no", "Ġ No", "yes t", "n t"]
YES = {"Yes", "yes", "Ġyes", "ĠYes"}
NO = {"No", "no", "Ġno", "ĠNo"}


def tokenizer():
    """Byte-level BPE with all the ways to write yes and no, and with "yest" and "nt", which are neither."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [merge.replace(" ", "") for merge in MERGES]
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    model = tokenizers.models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges)
    base = tokenizers.Tokenizer(model)
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base,
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE},
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = TEMPLATE
    return fast


def save_vlm(folder: Path, seed: int = 0, template: bool = True):
    """Saves config, safetensors, processor and tokenizer; gives the model (fp32) and the processor."""
    import transformers

    text = tokenizer()
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=len(text),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
        ),
        image_token_index=text.convert_tokens_to_ids(IMAGE),
        image_seq_length=4,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # the usual start leaves the images without influence
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=text,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE if template else None,
    )
    if not template:
        text.chat_template = None
    model.save_pretrained(folder, safe_serialization=True) if _old() else model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def _old() -> bool:
    import transformers

    return transformers.__version__.startswith("4.")


def ids(processor, words):
    """The numbers of tokens, by their spelling in the vocabulary."""
    vocabulary = processor.tokenizer.get_vocab()
    return [vocabulary[word] for word in sorted(words)]


def break_config(folder: Path, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
