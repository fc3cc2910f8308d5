"""Verifiers under ComfyUI's model management: the object on the VERIFIER socket."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ...search.judges import said
from ...verifiers import registry
from ...verifiers.aesthetic import POOLING, ImageTower
from ...verifiers.base import Verifier, VerifierError
from ...verifiers.clip_files import DualEncoder
from ...verifiers.descriptor import Entry
from ...verifiers.preprocess import Preprocess
from ...verifiers.weights import WEIGHT_SUFFIXES, file_stamp, read_tensors
from ..errors import is_cancel
from ..sampling.oom import is_oom
from .folders import SHELVES, Shelf, checked, clip_vision_files, stamped

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAR_ABOVE_1 = 16.0  # sharpening and the like overshoot, an image of 0 to 255 is far beyond
ACTIVATION_BYTES = 512 * 2**20  # a ViT-H on one image in float32 stays below


class VerifierModule(torch.nn.Module):
    """The plain module that ComfyUI's patcher needs: it sets attributes that transformers' models refuse (`device`)."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner
        self.device = None
        for module in inner.modules():
            _without_lone_parameters(module)


def _without_lone_parameters(module: torch.nn.Module) -> None:
    """Makes buffers of the parameters that a module has beside modules with parameters, as open_clip's attention has.

    Under dynamic VRAM ComfyUI moves such parameters to the GPU for good and does not count them (450 MB of a ViT-H in
    half precision); buffers it counts and takes back. Names in the state dict, values and arithmetic stay the same.
    """
    own = dict(module.named_parameters(recurse=False))
    if all(name in own for name, _ in module.named_parameters()):
        return
    for name, parameter in own.items():
        delattr(module, name)
        module.register_buffer(name, parameter.data)


class HostedVerifier:
    """A verifier whose network ComfyUI loads and unloads. Higher is better.

    What it says of itself is what `search/judges.py` reads: the verifier's own (`verifiers/base.py`).
    patcher: ComfyUI's handle on the network (its caches look for this name), None for a verifier without one. Verifiers
    of one network have one patcher. A network that ComfyUI itself built comes with its own, passed as `patcher`.
    """

    def __init__(self, verifier: Verifier, device: torch.device | None = None, patcher: Any = None):
        self.verifier = verifier
        self.members: tuple[str, ...] = tuple(verifier.members)
        self.needs_prompt = bool(verifier.needs_prompt)
        self.usual_range = verifier.usual_range
        self.prompt_tokens = verifier.prompt_tokens
        self.repeatable = said(verifier, "repeatable")
        self.member_weights = said(verifier, "member_weights")
        self.whole = patcher is None  # our networks are not made of layers that ComfyUI can offload in parts
        self.patcher: Any = patcher
        if patcher is None and verifier.module is not None:
            self.patcher = _patcher(verifier.module, device or mm.get_torch_device())

    def identity(self) -> str:
        """What determines the values: a hash of the weights and the settings."""
        return self.verifier.identity()

    def cut(self, prompt: str) -> str | None:
        """Where the verifier cuts a prompt that is too long, in a sentence; None if it reads all of it."""
        own = said(self.verifier, "cut")
        try:
            return own(prompt) if own is not None else None
        except Exception:  # scoring says what is wrong with it, where an ensemble may drop it
            return None

    def score(self, images: torch.Tensor, prompts: str | Sequence[str]) -> torch.Tensor:
        """Raw values: float32 [B, members] on the CPU.

        images: IMAGE [B, H, W, C] in 0..1 on any device; one channel counts as grey, alpha is dropped. prompts: one
        text per image, or one for all. Raises ValueError on unusable input, and VerifierError with the members' names
        and the cause when the verifier fails; an interrupt and running out of memory pass through as they are.
        """
        mm.throw_exception_if_processing_interrupted()
        images = check_images(images)
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images; give one for all, or one for each")
        names = self._called()
        try:
            self._load(images)
            with torch.inference_mode():
                values = self.verifier.score(images, prompts)
        except Exception as error:
            if _passes(error):
                raise
            cause = str(error) if isinstance(error, VerifierError) else f"{type(error).__name__}: {error}"
            raise VerifierError(f"verifier {names} failed: {cause}") from error
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != (len(images), len(self.members)):
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise VerifierError(
                f"verifier {names} returned {shape} for {len(images)} images; expected values of shape "
                f"{(len(images), len(self.members))} (images, members)"
            )
        return values.detach().to("cpu", torch.float32)

    def _called(self) -> str:
        """What errors call it."""
        return ", ".join(self.members)

    def _load(self, images: torch.Tensor) -> None:
        if self.patcher is None:
            return
        memory = ACTIVATION_BYTES + 4 * images[0].numel() * images.element_size()
        # fully: ComfyUI offloads in parts only what is built from its own layers, and would leave the rest on the CPU
        mm.load_models_gpu([self.patcher], memory_required=memory, force_full_load=self.whole)


# By the module's id: a patcher keeps its module, so while it is here the id is nobody else's.
_patchers: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()


def _patcher(module: torch.nn.Module, device: torch.device) -> Any:
    """ComfyUI's patcher of a module: the one in use, if there is one."""
    patcher = _patchers.get((id(module), device))
    if patcher is None:
        # by attribute and now: ComfyUI rebinds CoreModelPatcher when it starts, and old versions have none
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        offload_device = mm.text_encoder_offload_device()
        patcher = kind(VerifierModule(module), load_device=device, offload_device=offload_device)
        _patchers[id(module), device] = patcher
    return patcher


def check_images(images: Any) -> torch.Tensor:
    """The images as contiguous float32 RGB [B, H, W, 3], on their device, or a ValueError that says what is wrong."""
    if (
        not isinstance(images, torch.Tensor)
        or images.ndim != 4
        or images.shape[-1] not in (1, 3, 4)
        or 0 in images.shape
    ):
        found = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images to score must be [images, height, width, 3], found {found}; connect a decoded IMAGE")
    whole_numbers = not images.dtype.is_floating_point
    numbers, largest = images.dtype, images.detach().amax().item()
    images = images.detach().to(torch.float32)
    images = (images.expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images[..., :3]).contiguous()
    for index, image in enumerate(images):
        if is_broken([image]):
            raise ValueError(broken(f"image {index + 1} of {len(images)}"))
    if whole_numbers or largest >= FAR_ABOVE_1:
        raise ValueError(
            f"images to score must be numbers from 0 to 1, found {numbers} up to {largest:g} in them; an image of 0 to "
            "255 must be divided by 255"
        )
    return images


def is_broken(images: Sequence[torch.Tensor]) -> bool:
    """Whether images have pixels that are not numbers: no score would mean anything."""
    return not all(torch.isfinite(image).all() for image in images)


def broken(name: str) -> str:
    """What is wrong with such an image, for people."""
    return (
        f"{name} has pixels that are not numbers (NaN or infinity), often a model or VAE that overflows in fp16. "
        f"Try ComfyUI's --fp32-vae or another model precision."
    )


def resolve_dtype(precision: str, device: torch.device | None = None) -> torch.dtype:
    """The dtype for a `precision` of "auto", "fp32", "fp16" or "bf16". auto: fp32 on the CPU, else what is fast."""
    if precision in DTYPES:
        return DTYPES[precision]
    if precision != "auto":
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    device = device or mm.get_torch_device()
    if mm.is_device_cpu(device):
        return torch.float32
    if mm.should_use_fp16(device, prioritize_performance=False):
        return torch.float16
    return torch.bfloat16 if mm.should_use_bf16(device) else torch.float32


def entry_of(name: str) -> tuple[Entry, Shelf]:
    """The files of a verifier of the registry, and the shelf that they are on."""
    described = registry.describe(name)
    if described.entry is None:
        raise VerifierError(f"{described.title} has no files of its own")
    return described.entry, SHELVES[described.entry.shelf]


def choices(name: str) -> list[str]:
    """What the widget of a verifier lists."""
    entry, shelf = entry_of(name)
    return shelf.choices(entry.first)


def path_of(name: str, chosen: str) -> Path:
    """The file or folder of one of `choices`. Raises VerifierError on any other."""
    entry, shelf = entry_of(name)
    return shelf.path(chosen, entry.files)


def check_choice(name: str, chosen: str | None) -> bool | str:
    """`folders.checked` of what a loader's widget says. name: in the registry."""
    entry, shelf = entry_of(name)
    return checked(shelf.path, chosen, entry.files)


def fingerprint(name: str, chosen: str | None) -> str:
    """`folders.stamped` of what a loader's widget says. name: in the registry."""
    kind = registry.get(name)
    return stamped(lambda one: kind.files(kind.resolve(path_of(name, one), "")[0]), chosen)


def load(name: str, chosen: str, precision: str = "auto", architecture: str = "") -> HostedVerifier:
    """A verifier of the registry from one of its `choices`. Two loads of one file share one network."""
    return _shared(name, path_of(name, chosen), _label(name, chosen), precision, architecture.strip())


def load_aesthetic(clip_vision: Any, head_name: str) -> HostedVerifier:
    """Aesthetic from one of its `choices` on a CLIP_VISION, whose network it shares."""
    path = path_of("aesthetic", head_name)
    tower = image_tower(clip_vision)
    verifier = registry.get("aesthetic").load(path, tower, _label("aesthetic", head_name))
    return HostedVerifier(verifier, patcher=clip_vision.patcher)


def image_tower(clip_vision: Any) -> ImageTower:
    """What ComfyUI's CLIP Vision loader gives, as the tower of a verifier. Raises VerifierError on anything else."""
    config = getattr(clip_vision, "config", None)
    if not isinstance(config, dict) or not hasattr(clip_vision, "patcher") or "hidden_size" not in config:
        raise VerifierError(
            f"clip_vision is {type(clip_vision).__name__}; connect ComfyUI's Load CLIP Vision (CLIPVisionLoader)"
        )
    size, siglip = clip_vision.image_size, clip_vision.model_type == "siglip_vision_model"

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return clip_vision.model(pixel_values=pixels, intermediate_output=-2)[2]

    return ImageTower(
        module=clip_vision.model,
        encode=encode,
        device=lambda: clip_vision.load_device,
        preprocess=Preprocess(
            size=(size, size),
            resize_mode="squash" if siglip else "shortest",
            mean=tuple(clip_vision.image_mean),
            std=tuple(clip_vision.image_std),
        ),
        width=int(config.get("projection_dim") or config["hidden_size"]),
        siglip=siglip,
        heads=config["num_attention_heads"],
        pooling=_pooling(clip_vision) if siglip else None,
    )


# Tensors that tell one SigLIP from another.
_TELLING_TENSORS = ("vision_model.post_layernorm.weight", "vision_model.embeddings.position_embedding.weight")


def _pooling(clip_vision: Any) -> dict[str, torch.Tensor]:
    """SigLIP's pooling layer, which ComfyUI does not keep: from the file with this tower's weights. Empty without."""
    mine = {name: value for name, value in clip_vision.get_sd().items() if name in _TELLING_TENSORS}
    for path in clip_vision_files():
        state = read_tensors(path, POOLING, _TELLING_TENSORS)
        if all(name in state and name in mine and _same(state[name], mine[name]) for name in _TELLING_TENSORS):
            return {name.removeprefix(POOLING): value for name, value in state.items() if name.startswith(POOLING)}
    return {}


def _same(stored: torch.Tensor, used: torch.Tensor) -> bool:
    return stored.shape == used.shape and torch.equal(stored.to(used.dtype).float(), used.detach().cpu().float())


def load_demo_verifier() -> HostedVerifier:
    """The embedded learned verifier: a tiny CLIP of the demo's world, through the same code as any other."""
    from ..demo import verifier_directory  # brings in ComfyUI's checkpoint loaders, which nothing else here needs

    return _shared("clip_score", verifier_directory(), "demo", "fp32", usual_range=(0.0, 100.0))


# Verifiers and networks in use, by file and settings. Weak: the VERIFIER outputs in ComfyUI's cache own them, and when
# the last one goes, so does the network; nothing stays in memory on account of these tables. The key is the files'
# sizes and times, not their hash, so that gigabytes need not be read before sharing; a replaced file is a new key.
_loaded: weakref.WeakValueDictionary[tuple, HostedVerifier] = weakref.WeakValueDictionary()
_encoders: weakref.WeakValueDictionary[tuple, DualEncoder] = weakref.WeakValueDictionary()


def _shared(
    name: str, path: Path, label: str, precision: str, architecture: str = "", **settings: Any
) -> HostedVerifier:
    """The registry's verifier `name` on the towers in `path`; the towers are those in use, if there are any."""
    dtype = resolve_dtype(precision)
    kind = registry.get(name)
    path, architecture = kind.resolve(path, architecture)
    network = (file_stamp(kind.files(path)), architecture, dtype)
    key = (name, label, *network)
    hosted = _loaded.get(key)
    if hosted is None:
        encoder = _encoders.get(network) or kind.open(path, architecture)
        kind.check(encoder, path)
        hosted = HostedVerifier(kind(encoder, label, dtype, **settings))
        _loaded[key], _encoders[network] = hosted, encoder
    return hosted


def _label(name: str, chosen: str) -> str:
    """The name of a file or folder, without the suffix of a weight file where the verifier is not called by it."""
    path, entry = Path(chosen), entry_of(name)[0]
    return path.stem if path.suffix.lower() in WEIGHT_SUFFIXES and not entry.with_suffix else path.name


def _passes(error: Exception) -> bool:
    """Interrupts and running out of memory are ComfyUI's to handle, so they must keep their type."""
    return is_cancel(error) or is_oom(error)
