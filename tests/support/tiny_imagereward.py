"""A tiny ImageReward in the layout of the published file, with made-up weights, and its formula in plain torch."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, pad

VISION, VISION_LAYERS, PATCH, SIZE = 128, 2, 8, 32
TEXT, TEXT_LAYERS, INTERMEDIATE, POSITIONS = 192, 2, 256, 64
HEADS_OF = 64  # features per attention head
MLP = (1024, 128, 64, 16, 1)  # at 0, 2, 4, 6, 7
TOKENS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", "a", "red", "green", "blue", "circle", "square"),
    *("triangle", "above", "below", "two", "small", "the", "cafe", "x", "##x", "##s", "##angle", "tri", "猫", "红"),
    *("ق", "##ط", "##ة", "🟥", "1", "##2"),
)


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file's tensors, in tiny."""
    vision: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, VISION),
        "pos_embed": (1, (SIZE // PATCH) ** 2 + 1, VISION),
        **named("patch_embed.proj", VISION, 3, PATCH, PATCH),
        **named("norm", VISION),
    }
    for layer in range(VISION_LAYERS):
        block = {**named("norm1", VISION), **named("norm2", VISION)}
        block |= {**named("attn.qkv", 3 * VISION, VISION), **named("attn.proj", VISION, VISION)}
        block |= {**named("mlp.fc1", 4 * VISION, VISION), **named("mlp.fc2", VISION, 4 * VISION)}
        vision |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    text: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(TOKENS) + 2, TEXT),
        "embeddings.position_embeddings.weight": (POSITIONS, TEXT),
        **named("embeddings.LayerNorm", TEXT),
    }
    for layer in range(TEXT_LAYERS):
        block = {**named("intermediate.dense", INTERMEDIATE, TEXT), **named("output.dense", TEXT, INTERMEDIATE)}
        block |= named("output.LayerNorm", TEXT)
        for attention, width in (("attention", TEXT), ("crossattention", VISION)):
            block |= {**named(f"{attention}.self.query", TEXT, TEXT), **named(f"{attention}.self.key", TEXT, width)}
            block |= {**named(f"{attention}.self.value", TEXT, width), **named(f"{attention}.output.dense", TEXT, TEXT)}
            block |= named(f"{attention}.output.LayerNorm", TEXT)
        text |= {f"encoder.layer.{layer}.{name}": shape for name, shape in block.items()}
    found = {f"blip.visual_encoder.{name}": shape for name, shape in vision.items()}
    found |= {f"blip.text_encoder.{name}": shape for name, shape in text.items()}
    found |= {**named("blip.vision_proj", 256, VISION), **named("blip.text_proj", 256, TEXT)}
    for place, after, before in zip((0, 2, 4, 6, 7), MLP, (TEXT, *MLP), strict=False):
        found |= named(f"mlp.layers.{place}", after, before)
    return found


def named(layer: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.weight": weight, f"{layer}.bias": weight[:1]}


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights with enough spread that images and prompts differ; the same on every machine."""
    random = np.random.RandomState(seed)
    state = {}
    for name, shape in shapes().items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            normalising = name.endswith(".weight")
            values = normalising + 0.1 * values
        elif "embeddings" in name or "embed" in name.split(".")[-1] or name.endswith("token"):
            values = 0.5 * values
        else:
            values = values * np.float32(1.2 * np.prod(shape[1:]) ** -0.5)
        state[name] = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    return state


def save(folder: Path, state: dict[str, torch.Tensor] | None = None, name: str = "ImageReward.pt") -> Path:
    """ImageReward.pt (or .safetensors), med_config.json and vocab.txt, as a user has them."""
    state = state or state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    config = {"hidden_size": TEXT, "num_attention_heads": TEXT // HEADS_OF, "num_hidden_layers": TEXT_LAYERS}
    config |= {"intermediate_size": INTERMEDIATE, "max_position_embeddings": POSITIONS, "vocab_size": len(TOKENS) + 2}
    config |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config |= {"layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2, "initializer_range": 0.02}
    config |= {"model_type": "bert", "architectures": ["BertModel"], "add_cross_attention": True}
    (folder / "med_config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return folder / name


def reward(state: dict[str, torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor) -> float:
    """The formula, under the names of the file, in float64. pixels: [1, 3, h, w]; ids: [1, L], padded with 0 to L."""
    state = {name: value.double() for name, value in state.items()}
    image = image_tokens(Part(state, "blip.visual_encoder."), pixels.double())
    hidden = text_tokens(Part(state, "blip.text_encoder."), ids, image)[0, 0]
    for place in (0, 2, 4, 6, 7):
        hidden = linear(hidden, state[f"mlp.layers.{place}.weight"], state[f"mlp.layers.{place}.bias"])
    return (float(hidden) - 0.16717362830052426) / 1.0333394966054072


class Part:
    """The tensors below a prefix, as functions."""

    def __init__(self, state: dict[str, torch.Tensor], prefix: str):
        self.state, self.prefix = state, prefix

    def __truediv__(self, name: str) -> "Part":
        return Part(self.state, f"{self.prefix}{name}.")

    def tensor(self, name: str) -> torch.Tensor:
        return self.state[self.prefix + name]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))

    def norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), eps)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None):
    query, key, value = (x.unflatten(-1, (-1, HEADS_OF)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / HEADS_OF**0.5
    scores = scores if mask is None else scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)


def image_tokens(vit: Part, pixels: torch.Tensor) -> torch.Tensor:
    weight, bias = vit.tensor("patch_embed.proj.weight"), vit.tensor("patch_embed.proj.bias")
    x = conv2d(pixels, weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([vit.tensor("cls_token"), x], 1) + vit.tensor("pos_embed")
    for index in range(VISION_LAYERS):
        block = vit / f"blocks.{index}"
        attended = attend(*block.linear(block.norm(x, "norm1", 1e-6), "attn.qkv").chunk(3, -1))
        x = x + block.linear(attended, "attn.proj")
        x = x + block.linear(gelu(block.linear(block.norm(x, "norm2", 1e-6), "mlp.fc1")), "mlp.fc2")
    return vit.norm(x, "norm", 1e-6)


def text_tokens(bert: Part, ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    words = bert.tensor("embeddings.word_embeddings.weight")[ids]
    x = words + bert.tensor("embeddings.position_embeddings.weight")[: ids.shape[1]]
    x = bert.norm(x, "embeddings.LayerNorm", 1e-12)
    for index in range(TEXT_LAYERS):
        layer = bert / f"encoder.layer.{index}"
        for name, source, mask in (("attention", None, ids != 0), ("crossattention", image, None)):
            part = layer / name
            source = x if source is None else source
            attended = attend(
                *(part.linear(s, f"self.{n}") for s, n in ((x, "query"), (source, "key"), (source, "value"))), mask
            )
            x = part.norm(part.linear(attended, "output.dense") + x, "output.LayerNorm", 1e-12)
        expanded = gelu(layer.linear(x, "intermediate.dense"))
        x = layer.norm(layer.linear(expanded, "output.dense") + x, "output.LayerNorm", 1e-12)
    return x


def padded(ids: list[int], length: int = 35) -> torch.Tensor:
    return pad(torch.tensor([ids]), (0, length - len(ids)))
