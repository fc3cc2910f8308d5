"""ImageReward: how well a picture answers its prompt, as people rated them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .aesthetic import Head, read_head
from .base import VerifierError, require
from .descriptor import Descriptor, Entry
from .network import Network, NetworkVerifier
from .preprocess import Preprocess
from .weights import check_regular, difference, listed, read_weights

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output on the authors' data
TOKENS = 35  # of a prompt, start and end marks included
HEAD_WIDTH = 64  # of every attention head, in both towers
FILES = (
    "Put two files into a folder such as models/verifiers/ImageReward: ImageReward.pt (Apache-2.0 licence, 1.79 GB) of "
    "huggingface.co/THUDM/ImageReward, and BERT's vocabulary, vocab.txt (Apache-2.0 licence, 232 KB) of "
    "huggingface.co/google-bert/bert-base-uncased"
)
# Beside the weights, and where other packs put a copy of bert-base-uncased.
VOCABULARY_FOLDERS = (".", "bert-base-uncased", "bert")
VOCABULARY_NAMES = ("vocab.txt", "tokenizer.json")
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BLIP_MARKS = ("[DEC]", "[ENC]")  # BLIP adds them to BERT's vocabulary

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
# The original's names of the image tower's parts -> transformers'; the text tower's are the same.
RENAMED = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("norm.", "post_layernorm."),
    ("blocks.", "encoder.layers."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
    (".norm", ".layer_norm"),
)


@dataclass(frozen=True)
class RewardNetwork(Network):
    """BLIP's two towers and the head on them.

    encode: pixels float [1, 3, h, w] in the module's dtype, ids [1, L] -> what the text tower, looking at the image,
    makes of the start mark: [1, D]. head: float32 [D] -> [1], on the CPU.
    """

    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    head: Head


class ImageReward(NetworkVerifier):
    """The reward of Xu et al., ImageReward (NeurIPS 2023, arXiv 2304.05977), trained on people's ratings.

    (MLP(h) - 0.1672) / 1.0333, where h is what BLIP's text tower, which attends to the image, makes of the prompt's
    start mark; the constants bring the values to mean 0 and deviation 1 on the authors' data. Usually -2 to 2; compare
    only values of one prompt. Reads 35 tokens. The image is resized to 224 pixels on its shorter side and its centre
    cut out, as for CLIP.

    The head's five layers have nothing but dropout between them, so they are one; it and the constants are float32
    whatever the towers' dtype.
    """

    name = "imagereward"
    title = "ImageReward"
    encoder: RewardNetwork

    @classmethod
    def open(cls, path: str | Path, architecture: str = "") -> RewardNetwork:
        """From the published file, as .pt or .safetensors, with BERT's vocabulary in its folder. Raises VerifierError,
        naming the files to get."""
        try:
            with torch.inference_mode(False):  # weights born in inference mode could not be used outside it
                return load_reward(Path(path))
        except VerifierError as error:
            raise VerifierError(f"{error}. {FILES}") from error

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        return [path, *vocabulary_files(path.parent)]

    def value(self, image: torch.Tensor, prompt: str) -> torch.Tensor:
        """The value of one image [H, W, 3], a float32 scalar on the CPU."""
        ids = self._prompts.read(prompt, lambda text: self.encoder.tokenize(text)[0])
        features = self.encoder.encode(self.pixels(image), ids.to(self._device()))
        reward = self.encoder.head(features[0].detach().to("cpu", torch.float32))[0]
        return (reward - MEAN) / STD

    def _usual_range(self) -> tuple[float, float]:
        return -2.0, 2.0


def load_reward(path: Path) -> RewardNetwork:
    """The towers of a file with the original's names, in the dtype of the file, on the CPU. The sizes are those of its
    tensors. Raises VerifierError."""
    state = read_weights(path)
    vision = {renamed(key): value for key, value in part(state, VISION).items()}
    text = part(state, TEXT)
    text.pop("embeddings.position_ids", None)  # just 0, 1, 2, ...
    head = read_head(part(state, HEAD))
    if not vision or not text or head is None:
        found = sorted({".".join(key.split(".")[:2]) for key in state})
        raise VerifierError(f"{path} is not ImageReward ({VISION}*, {TEXT}* and {HEAD}*); found {listed(found)}")
    configs = _configs(path, vision, text)
    tokenize = load_tokenizer(path.parent, configs["text"]["vocab_size"])
    module = _build(path, configs)
    for tower, weights in (("vision", vision), ("text", text)):
        if problem := difference(module[tower].state_dict(), weights):
            raise VerifierError(f"{path} does not fit ImageReward's {tower} tower: {problem}")
        module[tower].load_state_dict(weights, assign=True)
    if head.width != configs["text"]["hidden_size"]:
        raise VerifierError(f"{path} has a head for {head.width} features on {configs['text']['hidden_size']}")
    # the one buffer, which is in no file
    positions = torch.arange(configs["text"]["max_position_embeddings"])[None]
    module["text"].get_submodule("embeddings").register_buffer("position_ids", positions, persistent=False)
    size = configs["vision"]["image_size"]

    def encode(pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        tokens = module["vision"](pixel_values=pixels).last_hidden_state
        return module["text"](input_ids=ids, encoder_hidden_states=tokens, is_decoder=False).last_hidden_state[:, 0]

    return RewardNetwork(
        module=module,
        tokenize=tokenize,
        preprocess=Preprocess((size, size)),
        context_length=TOKENS,
        architecture="",
        files=(path, *vocabulary_files(path.parent)),
        encode=encode,
        head=head,
    )


def part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What is below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def renamed(key: str) -> str:
    """transformers' name of one of the original image tower's tensors."""
    for old, new in RENAMED:
        if old.startswith(".") or key.startswith(old):
            key = key.replace(old, new, 1)
    return key


def _configs(
    path: Path, vision: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """transformers' settings of the towers, by the shapes of their tensors."""
    try:
        _, positions, width = vision["embeddings.position_embedding"].shape
        patch = vision["embeddings.patch_embedding.weight"].shape[-1]
        words, hidden = text["embeddings.word_embeddings.weight"].shape
        configs: dict[str, dict[str, Any]] = {
            "vision": {
                "hidden_size": width,
                "intermediate_size": vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
                "num_hidden_layers": _layers(vision, "encoder.layers."),
                "num_attention_heads": width // HEAD_WIDTH,
                "image_size": round((positions - 1) ** 0.5) * patch,
                "patch_size": patch,
                "layer_norm_eps": 1e-6,
            },
            "text": {
                "vocab_size": words,
                "hidden_size": hidden,
                "intermediate_size": text["encoder.layer.0.intermediate.dense.weight"].shape[0],
                "num_hidden_layers": _layers(text, "encoder.layer."),
                "num_attention_heads": hidden // HEAD_WIDTH,
                "max_position_embeddings": text["embeddings.position_embeddings.weight"].shape[0],
                "encoder_hidden_size": width,
                "layer_norm_eps": 1e-12,
            },
        }
    except (KeyError, ValueError, IndexError) as error:
        raise VerifierError(
            f"{path} does not fit ImageReward's towers: {error} is missing or of another shape"
        ) from None
    for config in configs.values():
        if config["hidden_size"] % HEAD_WIDTH:
            raise VerifierError(f"{path} has a tower of width {config['hidden_size']}, not a multiple of {HEAD_WIDTH}")
    return configs


def _layers(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _build(path: Path, configs: Mapping[str, Mapping[str, Any]]) -> torch.nn.ModuleDict:
    """The towers without memory for their weights."""
    transformers = require("transformers", "transformers", f"loading {path.name}")
    with torch.device("meta"):
        vision = transformers.BlipVisionModel(transformers.BlipVisionConfig(hidden_act="gelu", **configs["vision"]))
        # as a "decoder" its layers look at the image; it is called as an encoder, so every token sees all the others
        config = transformers.BlipTextConfig(hidden_act="gelu", is_decoder=True, **configs["text"])
        text = transformers.BlipTextModel(config, add_pooling_layer=False)
    return torch.nn.ModuleDict({"vision": vision, "text": text})


def vocabulary_files(folder: Path) -> list[Path]:
    """The file that the tokenizer of the weights in `folder` is made of, if it is there."""
    found = [folder / place / name for place in VOCABULARY_FOLDERS for name in VOCABULARY_NAMES]
    return [path for path in found if path.is_file()][:1]


def load_tokenizer(folder: Path, words: int) -> Callable[[str], tuple[torch.Tensor, int]]:
    """text -> (ids [1, at most 35], how many tokens the whole text has), by BERT's word pieces, all in lower case.

    words: how many the text tower knows; the file must have as many, or lack BLIP's two. Raises VerifierError.
    """
    files = vocabulary_files(folder)
    if not files:
        raise VerifierError(f"{folder} has no vocab.txt (or tokenizer.json), which says how to read a prompt")
    [path] = files
    vocabulary = _read_vocabulary(path)
    missing = [mark for mark in MARKS if mark not in vocabulary]
    if missing or len(set(vocabulary) | set(BLIP_MARKS)) != words:
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise VerifierError(
            f"{path} is another vocabulary ({len(vocabulary):,} entries{lacks}, not {words - len(BLIP_MARKS):,})"
        )
    tokenizers = require("tokenizers", "tokenizers", "reading a prompt")
    tokenizer = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
    tokenizer.add_special_tokens(list(BLIP_MARKS))

    def tokenize(text: str) -> tuple[torch.Tensor, int]:
        ids = tokenizer.encode("".join(filter(_is_text, text))).ids
        cut = ids if len(ids) <= TOKENS else [*ids[: TOKENS - 1], ids[-1]]
        return torch.tensor([cut]), len(ids)

    return tokenize


def _is_text(character: str) -> bool:
    """BERT's own tokenizer drops control, private and unassigned characters; `tokenizers` not all of them."""
    return character in "\t\n\r" or not unicodedata.category(character).startswith("C")


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id, of a vocab.txt (one token a line) or a tokenizer.json."""
    check_regular(path)
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return {token: index for index, token in enumerate(content.removesuffix("\n").split("\n"))}
        return {str(token): int(index) for token, index in json.loads(content)["model"]["vocab"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerifierError(
            f"cannot read {path} as a vocabulary ({type(error).__name__}: {error}); download it again"
        ) from error


DESCRIPTOR = Descriptor(
    id="imagereward",
    kind=ImageReward,
    node="NoiseSearchImageReward",
    title="ImageReward",
    description="Verifier: how well people would rate the image as an answer to its prompt, as ImageReward learned it.",
    aliases=("verifier", "image reward", "blip", "human preference", "reward"),
    entry=Entry("reward", FILES, first="reward", also="models/image_reward and models/ImageReward will do too."),
    computes="reward",
)
