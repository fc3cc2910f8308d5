"""Aesthetic: how much people like a picture, whatever its prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, linear, multi_head_attention_forward, normalize

from .base import VerifierError
from .descriptor import Descriptor, Entry
from .preprocess import Preprocess
from .weights import content_hash, read_weights, tensors_hash

FILES = (
    "Put one of these small files into models/aesthetic: sac+logos+ava1-l14-linearMSE.pth (LAION v2, Apache-2.0 "
    "licence, 3.7 MB) of github.com/christophschuhmann/improved-aesthetic-predictor, sa_0_4_vit_l_14_linear.pth (LAION "
    "v1, MIT licence, 4 KB) of github.com/LAION-AI/aesthetic-predictor, or aesthetic_predictor_v2_5.pth (V2.5, "
    "AGPL-3.0 licence, 2.6 MB) of github.com/discus0434/aesthetic-predictor-v2-5"
)
POOLING = "vision_model.head."
POOLING_TENSORS = {"probe", "attention.in_proj_weight", "attention.in_proj_bias"} | {
    f"{layer}.{kind}"
    for layer in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
}
_L_14 = (
    "OpenAI's CLIP ViT-L/14 at 224 pixels: load model.safetensors of huggingface.co/openai/clip-vit-large-patch14 (MIT "
    "licence, 1.71 GB) from models/clip_vision"
)
_SIGLIP = (
    "SigLIP so400m/14 at 384 pixels: load sigclip_vision_patch14_384.safetensors of "
    "huggingface.co/Comfy-Org/sigclip_vision_384 (Apache-2.0 licence, 857 MB) from models/clip_vision"
)
_B = "OpenAI's CLIP ViT-B/32 or ViT-B/16, which ComfyUI's loader does not know; take the head for ViT-L/14 instead"
# What the published heads were trained on, by width: the size of the images, and its name.
_TOWERS = {768: (224, _L_14), 1152: (384, _SIGLIP), 512: (224, _B)}


@dataclass(frozen=True)
class ImageTower:
    """An image tower that somebody else loaded and moves between devices.

    encode: float32 [1, 3, h, w], normalised, on `device()` -> [1, width], or [1, tokens, width] of a SigLIP, whose
    own pooling is in `pooling` (the tensors of `vision_model.head.`, by the rest of their names; empty if they could
    not be found) and has `heads` attention heads.
    """

    module: torch.nn.Module
    encode: Callable[[torch.Tensor], torch.Tensor]
    device: Callable[[], torch.device]
    preprocess: Preprocess
    width: int
    siglip: bool = False
    heads: int = 16
    pooling: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Head:
    """Layers from a unit embedding to a score, float32 on the CPU. Where no activation is between them they are one.

    layers: (weight [out, in], bias [out]) of each, rectified in between. siglip: whether it reads SigLIP's pooled
    output, else CLIP's projected embedding. digest: of the file's tensors.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    siglip: bool
    digest: str

    @property
    def width(self) -> int:
        return self.layers[0][0].shape[1]

    def __call__(self, embedding: torch.Tensor) -> torch.Tensor:
        """embedding: float32 [width], of length 1. Returns float32 [1]."""
        for index, (weight, bias) in enumerate(self.layers):
            embedding = linear(embedding.relu() if index else embedding, weight, bias)
        return embedding


def load_head(path: str | Path) -> Head:
    """A published head. Raises VerifierError on any other file, naming the files to get.

    LAION v1 is one layer; v2 and V2.5 are five with nothing but dropout between them, which is one layer in effect
    (multiplied out in float64); v2's "relu" variant has rectifiers between its five.
    """
    path = Path(path)
    try:
        state = read_weights(path)
    except VerifierError as error:
        raise VerifierError(f"{error}. {FILES}") from error
    head = read_head(state)
    if head is None:
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:6])
        raise VerifierError(f"{path} is not an aesthetic head (found: {found}). {FILES}")
    return head


def read_head(state: Mapping[str, torch.Tensor]) -> Head | None:
    """The head of tensors under the names of a published one, or None if they are anything else."""
    layers, places, prefix = _layers(state)
    sizes = [weight.shape for weight, _ in layers]
    chained = all(before[0] == after[1] for before, after in zip(sizes, sizes[1:], strict=False))
    if not layers or not chained or sizes[-1][0] != 1 or len(state) != 2 * len(layers) or not _known(prefix, places):
        return None
    if places != [0, 3, 6, 9, 11]:  # where rectifiers are between them
        layers = [_product(layers)]
    layers = [(weight.float(), bias.float()) for weight, bias in layers]
    return Head(tuple(layers), prefix == "scoring_head.", tensors_hash(state))


class Aesthetic:
    """The score of a linear or five-layer head on the unit embedding of a CLIP or SigLIP; the prompt plays no part.

    LAION-Aesthetics v1 and v2 (Schuhmann et al., LAION-5B, NeurIPS 2022, arXiv 2210.08402), on the projected embedding
    of OpenAI's CLIP; usually 4 to 7. Aesthetic Predictor V2.5 on the pooled output of SigLIP so400m; usually 3 to 7,
    from 5.5 on good. The tower computes in the dtype it has; pooling and head are float32. Images go through the tower
    one at a time, so a value does not depend on the batch.
    """

    needs_prompt = False
    prompt_tokens = None

    def __init__(self, head: Head, tower: ImageTower, label: str):
        self.head = head
        self.tower = tower
        self.module = tower.module
        self.members = (f"Aesthetic ({label})",)
        self.usual_range = (3.0, 7.0) if head.siglip else (4.0, 7.0)
        self._identity = ""
        self._check_tower()

    @classmethod
    def load(cls, path: str | Path, tower: ImageTower, label: str = "") -> Aesthetic:
        """From the file of a head; `tower` must be the one that the head was trained on. Raises VerifierError."""
        with torch.inference_mode(False):
            head = load_head(path)
        return cls(head, tower, label or Path(path).stem)

    @classmethod
    def resolve(cls, path: Path, architecture: str) -> tuple[Path, str]:
        """Path and architecture, of which a head has none, as they are to be opened."""
        return path, ""

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """The files that `load` reads for a path."""
        return [path]

    def identity(self) -> str:
        """SHA-256 of the head's weights, the tower's weights as they are in memory, and the preprocessing."""
        if not self._identity:
            settings = {
                "verifier": "aesthetic",
                "head": self.head.digest,
                "tower": tensors_hash(self.module.state_dict()),
                "pooling": tensors_hash(self.tower.pooling or {}) if self.head.siglip else "",
                "preprocess": self.tower.preprocess.settings(),
            }
            self._identity = f"aesthetic:{content_hash([], settings)}"
        return self._identity

    @torch.no_grad()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, 1]. images: float [B, H, W, 3] in 0..1 on any device; prompts: B texts, not read."""
        if len(images) != len(prompts):
            raise VerifierError(f"{self.members[0]}: {len(images)} images for {len(prompts)} prompts")
        values = [self.head(self.image_features(image)) for image in images]
        return torch.stack(values) if values else torch.zeros(0, 1)

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """The unit embedding of one image [H, W, 3], float32 [width] on the CPU."""
        pixels = self.tower.preprocess(image.to(self.tower.device(), torch.float32))
        features = self.tower.encode(pixels).detach().to("cpu", torch.float32)
        if self.head.siglip:
            features = pool(features, self.tower.pooling or {}, self.tower.heads)
        return normalize(features[0], dim=0)

    def _check_tower(self) -> None:
        head, tower = self.head, self.tower
        pixels, wanted = _TOWERS.get(head.width, (tower.preprocess.size[0], f"one of width {head.width}"))
        found = f"a {'SigLIP' if tower.siglip else 'CLIP'} of width {tower.width} at {tower.preprocess.size[0]} pixels"
        if (head.width, head.siglip, pixels) != (tower.width, tower.siglip, tower.preprocess.size[0]):
            raise VerifierError(
                f"{self.members[0]} reads another image tower than the one connected, which is {found}; it wants "
                f"{wanted}"
            )
        if head.siglip and not set(tower.pooling or {}) >= POOLING_TENSORS:
            raise VerifierError(
                f"{self.members[0]} needs the pooling layer of its SigLIP ({POOLING}*), which ComfyUI does not keep; "
                f"no .safetensors file in models/clip_vision has it for the tower connected. It wants {wanted}"
            )


def pool(tokens: torch.Tensor, weights: Mapping[str, torch.Tensor], heads: int) -> torch.Tensor:
    """SigLIP's attention pooling (Zhai et al. 2023, arXiv 2303.15343): float32 [1, tokens, D] -> [1, D].

    weights: the 11 tensors of transformers' `vision_model.head`, by the rest of their names.
    """
    w = {name: value.to(torch.float32) for name, value in weights.items()}
    keys = tokens.transpose(0, 1)
    attended, _ = multi_head_attention_forward(
        w["probe"].transpose(0, 1),
        keys,
        keys,
        keys.shape[-1],
        heads,
        w["attention.in_proj_weight"],
        w["attention.in_proj_bias"],
        None,
        None,
        False,
        0.0,
        w["attention.out_proj.weight"],
        w["attention.out_proj.bias"],
        training=False,
        need_weights=False,
    )
    hidden = layer_norm(attended[0], attended.shape[-1:], w["layernorm.weight"], w["layernorm.bias"], 1e-6)
    hidden = gelu(linear(hidden, w["mlp.fc1.weight"], w["mlp.fc1.bias"]), approximate="tanh")
    return attended[0] + linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def _layers(state: Mapping[str, torch.Tensor]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[int], str]:
    """The layers in float64, their places in the original Sequential, and the prefix of their names."""
    if set(state) == {"weight", "bias"}:
        prefix, names = "", [""]
    else:
        prefix = next((name for name in ("layers.", "scoring_head.") if all(key.startswith(name) for key in state)), "")
        numbers = {key.removeprefix(prefix).split(".")[0] for key in state} if prefix else set()
        names = [f"{prefix}{n}." for n in sorted(map(int, filter(str.isdecimal, numbers)))]
    layers, places = [], []
    for name in names:
        weight, bias = state.get(f"{name}weight"), state.get(f"{name}bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            return [], [], prefix
        layers.append((weight.double(), bias.double()))
        places.append(int(name.split(".")[-2]) if name else 0)
    return layers, places, prefix


def _known(prefix: str, places: list[int]) -> bool:
    """Whether the places say what is between the layers: dropout (0, 2, 4, 6, then 7 or 8), or rectifiers too."""
    known: dict[str, Any] = {
        "": ([0],),
        "layers.": ([0, 2, 4, 6, 7], [0, 3, 6, 9, 11]),
        "scoring_head.": ([0, 2, 4, 6, 8],),
    }
    return places in known[prefix]


def _product(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear layers one after the other as one."""
    weight, bias = layers[0]
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight @ weight, next_weight @ bias + next_bias
    return weight, bias


DESCRIPTOR = Descriptor(
    id="aesthetic",
    kind=Aesthetic,
    node="NoiseSearchAesthetic",
    title="Aesthetic Score",
    description="Verifier: how much people like the look of an image, whatever the prompt: LAION v1, v2, V2.5.",
    aliases=("verifier", "aesthetic", "laion", "siglip", "beauty"),
    entry=Entry(
        "head",
        FILES,
        widget="head_name",
        tooltip="Put a head, such as sac+logos+ava1-l14-linearMSE.pth (LAION v2, Apache-2.0 licence), into "
        "models/aesthetic or models/verifiers, then press R. Nothing is downloaded.",
    ),
)
