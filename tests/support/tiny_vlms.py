"""Tiny vision-language models with random weights, saved as real ones are: LLaVA and Qwen2.5-VL."""

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
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
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
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def qwen_tokenizer(folder: Path):
    """The same words in the class that Qwen's processor insists on."""
    import transformers

    vocabulary = json.loads(tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    if _old():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
        words = {"vocab_file": str(folder / "vocab.json"), "merges_file": str(folder / "merges.txt")}
        made = transformers.Qwen2TokenizerFast(**words, unk_token=None, eos_token="</s>", pad_token="<pad>")
    else:
        merges = [tuple(merge.split(" ")) for merge in MERGES]
        words = {"vocab": vocabulary, "merges": merges}
        made = transformers.Qwen2Tokenizer(**words, unk_token=None, eos_token="</s>", pad_token="<pad>")
    made.add_tokens(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"], special_tokens=True)
    return made


def save_qwen(folder: Path, seed: int = 0):
    """A Qwen2.5-VL, as `save_vlm`: images of any size in patches, rotary positions in three directions."""
    import transformers

    text = qwen_tokenizer(folder)
    number = text.convert_tokens_to_ids
    torch.manual_seed(seed)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(text),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        tokenizer=text,
        chat_template=TEMPLATE.replace(IMAGE, QWEN_IMAGE),
    )
    model.save_pretrained(folder)
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
