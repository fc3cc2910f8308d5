"""Builds CLIP-like image and text towers from local files. Nothing here can reach the network."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .base import VerifierError, install_command, require
from .console import logger
from .network import Network
from .preprocess import Preprocess
from .weights import WEIGHT_SUFFIXES, check_regular, difference, listed, read_weights

OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
    "open_clip_pytorch_model.pth",
)
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TRANSFORMERS_TYPES = ("clip", "siglip")
# What besides the weights determines a score: configurations and tokenizers.
SETTING_SUFFIXES = (".json", ".txt", ".model")

log_to_console = logger(__name__)


@dataclass(frozen=True)
class DualEncoder(Network):
    """Two towers into one space, and what they need around them.

    encode_image: float [1, 3, h, w] in the module's dtype -> [1, D]. encode_text: ids [1, L] -> [1, D]. architecture:
    "" for a folder. scale: exp(logit_scale), the factor of the cosines in training.
    """

    encode_image: Callable[[torch.Tensor], torch.Tensor]
    encode_text: Callable[[torch.Tensor], torch.Tensor]
    sigmoid: bool
    scale: float


def load_dual_encoder(path: str | Path, architecture: str = "") -> DualEncoder:
    """The towers in a folder or a single weight file, in the dtype of the file, on the CPU.

    A folder: open_clip's (`open_clip_config.json` and its weights) or transformers' (`config.json` of CLIP or SigLIP,
    `model.safetensors`, tokenizer). A weight file beside such a configuration stands for its folder. Any other weight
    file: open_clip or transformers key names, with the architecture found by comparing the shapes with the
    configurations that open_clip ships, unless `architecture` names one of them. Raises VerifierError.
    """
    path = Path(path)
    if path.is_dir():
        if architecture:
            raise VerifierError(
                f"{path} is a folder with its own configuration; leave `architecture` ({architecture!r}) empty, "
                "or choose a single weight file"
            )
        return _load_folder(path)
    if not architecture and path.is_file() and (kind := _folder_kind(path.parent, path.name)):
        return kind(path.parent, path)
    return _load_file(path, architecture)


def _load_folder(folder: Path) -> DualEncoder:
    for name in (*OPEN_CLIP_WEIGHTS, *TRANSFORMERS_WEIGHTS, "model.safetensors.index.json"):
        if (folder / name).is_file() and (kind := _folder_kind(folder, name)):
            return kind(folder, folder / name)
    others = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(others) == 1 and (folder / OPEN_CLIP_CONFIG).is_file():
        return _load_open_clip_folder(folder, others[0])
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
    raise VerifierError(
        f"{folder} is not a CLIP model folder (found: {found}); it needs {OPEN_CLIP_CONFIG} and "
        f"{OPEN_CLIP_WEIGHTS[0]}, or {TRANSFORMERS_CONFIG}, {TRANSFORMERS_WEIGHTS[0]} and the tokenizer's files"
    )


def _folder_kind(folder: Path, weights: str) -> Callable[[Path, Path], DualEncoder] | None:
    """The loader for this weight file's folder, if the folder has the configuration that belongs to it."""
    if weights in OPEN_CLIP_WEIGHTS and (folder / OPEN_CLIP_CONFIG).is_file():
        return _load_open_clip_folder
    if weights.startswith(("model.", "pytorch_model.")) and (folder / TRANSFORMERS_CONFIG).is_file():
        return _load_transformers_folder
    return None


# open_clip


def _load_open_clip_folder(folder: Path, weights: Path) -> DualEncoder:
    config = _read_json(folder / OPEN_CLIP_CONFIG)
    model_cfg = config.get("model_cfg")
    if not isinstance(model_cfg, Mapping) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model_cfg):
        raise VerifierError(
            f"{folder / OPEN_CLIP_CONFIG} has no model_cfg with embed_dim, vision_cfg and text_cfg "
            f"(found: {', '.join(config)}); take the file from the model's own repository"
        )
    model = _build_open_clip(model_cfg, weights)
    _fill_open_clip(model, read_weights(weights), weights)
    return _open_clip_encoder(
        model, model_cfg, config.get("preprocess_cfg", {}), folder, "", (weights, *_setting_files(folder))
    )


def _build_open_clip(model_cfg: Mapping[str, Any], source: Path) -> Any:
    """An open_clip model with unset weights. Towers that open_clip would fetch by name are refused."""
    open_clip = require("open_clip", "open_clip_torch", f"loading {source.name}")
    config = copy.deepcopy(dict(model_cfg))
    vision, text = config["vision_cfg"], config["text_cfg"]
    fetched = text.get("hf_model_name") or (vision.get("timm_model_name") if ":" in _timm_name(vision) else None)
    if fetched:
        raise VerifierError(
            f"{source} names a tower to be fetched from the internet ({fetched}); only models whose towers are all in "
            "the file can be loaded, such as open_clip's ViT and SigLIP models"
        )
    vision.pop("timm_model_pretrained", None)  # the weights come from the file
    custom_text = config.pop("custom_text", False)
    name = "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP" if custom_text else "CLIP"
    try:
        return getattr(open_clip, name)(**config)
    except Exception as error:  # whatever the sizes in the file provoke
        raise VerifierError(f"open_clip cannot build the model that {source} describes: {error}") from error


def _fill_open_clip(model: torch.nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    expected = model.state_dict()
    state = _open_clip_names(state, expected)
    problem = difference(expected, state)
    if problem:
        raise VerifierError(f"{source} does not fit its architecture: {problem}")
    model.load_state_dict(state)


def _open_clip_names(state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names that this model uses: open_clip renamed the text tower once, OpenAI added sizes."""
    if "text.positional_embedding" in expected and "positional_embedding" in state:
        text = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
        state = {f"text.{key}" if key.startswith(text) else key: value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in _OPENAI_SIZES and "position_ids" not in key}
    for name in ("logit_scale", "logit_bias"):  # a scalar in some files, one element in others
        if name in state and name in expected and state[name].numel() == expected[name].numel():
            state[name] = state[name].reshape(expected[name].shape)
    if "logit_bias" not in expected:
        state.pop("logit_bias", None)  # plays no part in a cosine
    return state


_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")


def _open_clip_encoder(
    model: Any,
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    folder: Path,
    architecture: str,
    files: tuple[Path, ...],
) -> DualEncoder:
    text_cfg = model_cfg["text_cfg"]
    context_length = model.context_length
    tokenize = _open_clip_tokenizer(text_cfg, context_length, folder)
    return DualEncoder(
        module=model,
        encode_image=model.encode_image,
        encode_text=model.encode_text,
        tokenize=tokenize,
        preprocess=_open_clip_preprocess(preprocess_cfg, model.visual.image_size),
        context_length=context_length,
        architecture=architecture,
        sigmoid=model_cfg.get("init_logit_bias") is not None,
        scale=_scale(model),
        files=files,
    )


def _open_clip_preprocess(config: Mapping[str, Any], size: int | tuple[int, int]) -> Preprocess:
    known = {"mean", "std", "interpolation", "resize_mode"}
    values = {key: value for key, value in config.items() if key in known and value is not None}
    for key in ("mean", "std"):
        if key in values:
            values[key] = tuple(values[key])
    if values.get("interpolation") not in (None, "bilinear"):
        values["interpolation"] = "bicubic"  # open_clip's "random" is bicubic outside of training
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(size=(height, width), **values)


def _open_clip_tokenizer(
    text_cfg: Mapping[str, Any], context_length: int, folder: Path
) -> Callable[[str], tuple[torch.Tensor, int]]:
    tokenizers = require("open_clip.tokenizer", "open_clip_torch", "reading a prompt")
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    if not text_cfg.get("hf_tokenizer_name"):
        kwargs.pop("reduction_mask", None)  # drops words at random, a trick of training
        simple = tokenizers.SimpleTokenizer(context_length=context_length, **kwargs)
        return lambda text: (simple([text]), len(simple.encode(text)) + 2)
    _check_tokenizer(folder, text_cfg["hf_tokenizer_name"])
    kwargs.update(local_files_only=True, trust_remote_code=False)
    try:
        wrapped = tokenizers.HFTokenizer(
            str(folder), context_length=context_length, tokenizer_mode=text_cfg.get("tokenizer_mode"), **kwargs
        )
    except Exception as error:
        raise VerifierError(f"cannot read the tokenizer in {folder}: {error}") from error
    return lambda text: (wrapped([text]), len(wrapped.tokenizer(wrapped.clean_fn(text)).input_ids))


# transformers


def _load_transformers_folder(folder: Path, weights: Path) -> DualEncoder:
    transformers = require("transformers", "transformers", f"loading {folder.name}")
    config = _transformers_config(folder)
    shards = [weights]
    if weights.name.endswith(".index.json"):
        shards = _shards(weights)
    for shard in shards:
        read_weights(shard)  # refuses what is unsafe or damaged in our words, before transformers does in its own
    _check_tokenizer(folder, f"{config.model_type} text tower")
    try:
        model, info = transformers.AutoModel.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=shards[0].suffix == ".safetensors",
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:  # SigLIP's tokenizer, if the folder has no tokenizer.json
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise VerifierError(
            f"the tokenizer in {folder} needs packages that are not there ({reason}); install them into ComfyUI's "
            f"Python, in a terminal, and restart ComfyUI: `{install_command('sentencepiece', 'protobuf')}`"
        ) from error
    except Exception as error:
        raise VerifierError(f"transformers cannot load {folder}: {error}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:  # transformers would leave them at random values
        raise VerifierError(
            f"{weights} lacks, or has in other sizes, {listed(wrong)}; both towers of a model are needed"
        )
    context_length = config.text_config.max_position_embeddings
    return _transformers_encoder(
        model,
        _hf_tokenizer(tokenizer, context_length),
        _transformers_preprocess(folder, config),
        "",
        (*shards, *_setting_files(folder)),
    )


def _transformers_config(folder: Path) -> Any:
    transformers = require("transformers", "transformers", f"loading {folder.name}")
    path = folder / TRANSFORMERS_CONFIG
    kind = _read_json(path).get("model_type")
    if kind not in TRANSFORMERS_TYPES:
        raise VerifierError(
            f"{path} describes a model of type {kind!r}; CLIP Score takes a complete {' or '.join(TRANSFORMERS_TYPES)} "
            "model (image and text tower together)"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        config._attn_implementation = None  # a folder can name a kernel there, which would be fetched and run
        return config
    except Exception as error:
        raise VerifierError(f"transformers cannot read {path}: {error}") from error


def _transformers_encoder(
    model: Any,
    tokenize: Callable[[str], tuple[torch.Tensor, int]],
    preprocess: Preprocess,
    architecture: str,
    files: tuple[Path, ...],
) -> DualEncoder:
    return DualEncoder(
        module=model,
        encode_image=lambda pixels: _embedding(model.get_image_features(pixel_values=pixels)),
        encode_text=lambda ids: _embedding(model.get_text_features(input_ids=ids)),
        tokenize=tokenize,
        preprocess=preprocess,
        context_length=model.config.text_config.max_position_embeddings,
        architecture=architecture,
        sigmoid=model.config.model_type == "siglip",
        scale=_scale(model),
        files=files,
    )


def _scale(model: Any) -> float:
    """exp(logit_scale) in float64, taken before the model may be brought into half precision."""
    return float(model.logit_scale.detach().double().exp().reshape(-1)[0])


def _embedding(output: Any) -> torch.Tensor:
    """transformers 4 returns the embedding, transformers 5 an output object that holds it."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _hf_tokenizer(tokenizer: Any, context_length: int) -> Callable[[str], tuple[torch.Tensor, int]]:
    def tokenize(text: str) -> tuple[torch.Tensor, int]:
        # padded to full length: SigLIP pools the last position and was trained so; CLIP does not look past the end mark
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=context_length, return_tensors="pt")
        return ids.input_ids, len(tokenizer(text, verbose=False).input_ids)

    return tokenize


def _transformers_preprocess(folder: Path, config: Any) -> Preprocess:
    size = config.vision_config.image_size
    square = (size, size) if isinstance(size, int) else tuple(size)
    if config.model_type == "siglip":
        preprocess = Preprocess(size=square, resize_mode="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    else:
        preprocess = Preprocess(size=square, crop_down=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = _read_json(folder / name)
            return _hf_preprocess(found.get("image_processor", found), preprocess, folder / name)
    return preprocess


def _hf_preprocess(config: Mapping[str, Any], default: Preprocess, source: Path) -> Preprocess:
    """What CLIPImageProcessor and SiglipImageProcessor read from their file, as a Preprocess."""
    values = default.settings()
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if config.get(theirs) is not None:
            values[ours] = tuple(config[theirs])
    if config.get("do_normalize") is False:
        values.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if config.get("resample") is not None:
        modes = {2: "bilinear", 3: "bicubic"}
        if config["resample"] not in modes:
            raise VerifierError(f"{source}: resample {config['resample']} is not supported (2 bilinear, 3 bicubic)")
        values["interpolation"] = modes[config["resample"]]
    size, crop = config.get("size"), config.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if size and "shortest_edge" in size:
        values.update(resize_mode="shortest", edge=size["shortest_edge"])
        cropped = crop if crop and config.get("do_center_crop", True) else None
        values["size"] = (cropped["height"], cropped["width"]) if cropped else default.size
    elif size and "height" in size:
        values.update(resize_mode="squash", size=(size["height"], size["width"]), edge=None)
    return Preprocess(**values)


# single files


def _load_file(path: Path, architecture: str) -> DualEncoder:
    open_clip = require("open_clip", "open_clip_torch", f"loading {path.name}")
    if architecture:
        architecture = _known_architecture(open_clip, architecture)
    state = read_weights(path)
    if "text_model.embeddings.token_embedding.weight" in state and "vision_model.post_layernorm.weight" in state:
        return _load_transformers_file(open_clip, path, state, architecture)
    if any(key.startswith("visual.") for key in state) and _text_shape(state):
        return _load_open_clip_file(open_clip, path, state, architecture)
    raise VerifierError(
        f"{path} is not a complete CLIP: an image tower and a text tower are needed, under open_clip's names "
        "(visual.*, transformer.*) or transformers' (vision_model.*, text_model.* and their projections); "
        f"found {listed(sorted({_prefix(key) for key in state}))}"
    )


@lru_cache(maxsize=4096)  # asked again and again of the same files
def lacking(names: frozenset[str]) -> str:
    """What a single weight file with tensors of these names lacks to be a CLIP that can be loaded; "" for nothing."""
    image = "vision_model.post_layernorm.weight" in names or any(name.startswith("visual.") for name in names)
    text = any(name.endswith("token_embedding.weight") for name in names)
    if "vision_model.head.probe" in names:
        return "it is a SigLIP, which needs a folder of its own with its configuration and tokenizer"
    if image and not text:
        return "it holds an image tower and no text tower"
    if text and not image:
        return "it holds a text tower and no image tower"
    if not image:
        return "it is not a CLIP"
    projections = {"visual_projection.weight", "text_projection.weight"}
    if "text_model.embeddings.token_embedding.weight" in names and not projections <= names:
        return "it lacks a projection of its towers"
    return ""


def _load_open_clip_file(open_clip: Any, path: Path, state: dict, architecture: str) -> DualEncoder:
    if architecture:
        name = architecture
    else:
        matching = [name for name in open_clip.list_models() if _matches(open_clip, name, state)]
        name = _with_activation(open_clip, _one_architecture(path, matching, state), path, state, default_openai=False)
    config = open_clip.get_model_config(name)
    if architecture:
        with torch.device("meta"):  # filling the real thing with random values takes a while, so compare shapes first
            shapes = _build_open_clip(config, path).state_dict()
        if problem := difference(shapes, _open_clip_names(state, shapes)):
            raise VerifierError(f"{path} does not fit its architecture {name}: {problem}")
    model = _build_open_clip(config, path)
    _fill_open_clip(model, state, path)
    return _open_clip_encoder(
        model,
        config,
        _published_preprocess(open_clip, name, path),
        path.parent,
        name,
        _file_and_tokenizer(path, config),
    )


def _load_transformers_file(open_clip: Any, path: Path, state: dict, architecture: str) -> DualEncoder:
    transformers = require("transformers", "transformers", f"loading {path.name}")
    if "vision_model.head.probe" in state:
        raise VerifierError(
            f"{path} is a SigLIP model in transformers' layout, which needs its tokenizer: put the file into a "
            f"folder of its own with {TRANSFORMERS_CONFIG} and the tokenizer's files from the same repository"
        )
    state = {key: value for key, value in state.items() if "position_ids" not in key}
    sizes = _transformers_sizes(path, state)
    if architecture:
        name = architecture
    else:
        matching = [name for name in open_clip.list_models() if _open_clip_sizes(open_clip, name) == sizes]
        name = _one_architecture(path, matching, state)
        name = _with_activation(open_clip, name, path, state, default_openai=True)
    if _open_clip_sizes(open_clip, name) != sizes:
        raise VerifierError(
            f"{path} does not fit {name}: the file has {sizes}, {name} {_open_clip_sizes(open_clip, name)}"
        )
    config = open_clip.get_model_config(name)
    vision, text = _vision_cfg(config), _text_cfg(config)
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    hf_config = transformers.CLIPConfig(
        projection_dim=sizes["embed_dim"],
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": activation,
            "projection_dim": sizes["embed_dim"],
        },
        text_config={
            "hidden_size": text.width,
            "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_act": activation,
            "projection_dim": sizes["embed_dim"],
        },
    )
    model = transformers.CLIPModel(hf_config)
    problem = difference(model.state_dict(), state)
    if problem:
        raise VerifierError(f"{path} does not fit its architecture {name}: {problem}")
    model.load_state_dict(state)
    tokenize = _open_clip_tokenizer(config["text_cfg"], text.context_length, path.parent)
    preprocess = _open_clip_preprocess(_published_preprocess(open_clip, name, path), vision.image_size)
    return _transformers_encoder(model, tokenize, preprocess, name, _file_and_tokenizer(path, config))


def _known_architecture(open_clip: Any, name: str) -> str:
    name = name.strip().replace("/", "-")
    known = {model.lower(): model for model in open_clip.list_models()}
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"did you mean {' or '.join(known[match] for match in close)}?" if close else "see open_clip.list_models()"
    raise VerifierError(f"open_clip has no architecture {name!r}; {hint}")


def _matches(open_clip: Any, name: str, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether every weight of this architecture is in the file with the same shape, and nothing else is."""
    config = open_clip.get_model_config(name)
    text = _text_cfg(config)
    positions = text.context_length + bool(text.embed_cls)
    if text.hf_model_name or _text_shape(state) != (positions, text.width, text.vocab_size):
        return False
    if _vision_family(config) != _state_family(state):
        return False
    with torch.device("meta"):
        try:
            expected = _build_open_clip(config, Path(name)).state_dict()
        except VerifierError:
            return False
    return not difference(expected, _open_clip_names(dict(state), expected))


def _text_shape(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int] | None:
    for prefix in ("", "text."):
        positions, tokens = f"{prefix}positional_embedding", f"{prefix}token_embedding.weight"
        if positions in state and tokens in state:
            return (*state[positions].shape, state[tokens].shape[0])
    return None


def _vision_family(config: Mapping[str, Any]) -> tuple:
    vision = _vision_cfg(config)
    if vision.timm_model_name:
        return ("timm",)
    if not isinstance(vision.layers, int):
        return ("resnet", vision.width // 2)
    return ("vit", vision.width, vision.patch_size)


def _state_family(state: Mapping[str, torch.Tensor]) -> tuple:
    if any(key.startswith("visual.trunk.") for key in state):
        return ("timm",)
    first = state.get("visual.conv1.weight")
    if first is None:
        return ("unknown",)
    if any(key.startswith("visual.layer1.") for key in state):
        return ("resnet", first.shape[0])
    return ("vit", first.shape[0], first.shape[-1])


def _one_architecture(path: Path, matching: list[str], state: Mapping[str, torch.Tensor]) -> str:
    """The one architecture among the matching; the -quickgelu twins have equal shapes and count as one."""
    plain = sorted({name.removesuffix("-quickgelu") for name in matching})
    if len(plain) == 1:
        return plain[0] if plain[0] in matching else matching[0]
    if plain:
        raise VerifierError(f"{path} fits several architectures; set `architecture` to one of {', '.join(plain)}")
    shapes = {key: tuple(value.shape) for key, value in state.items() if key.endswith(_TELLING_SHAPES)}
    raise VerifierError(
        f"{path} fits none of the architectures that open_clip knows; found {len(state)} weights, among them "
        f"{listed([f'{key} {shape}' for key, shape in sorted(shapes.items())])}; if the model has a configuration "
        f"({OPEN_CLIP_CONFIG} or {TRANSFORMERS_CONFIG}), put it with the weights into a folder of their own"
    )


_TELLING_SHAPES = (
    "token_embedding.weight",
    "positional_embedding",
    "position_embedding.weight",
    "conv1.weight",
    "patch_embedding.weight",
    "projection.weight",
    "visual.proj",
    "text_projection",
)


def _with_activation(open_clip: Any, name: str, path: Path, state: Mapping, default_openai: bool) -> str:
    """The architecture, or its -quickgelu twin: weights trained with QuickGELU have the same shapes.

    Decided, in this order, by the sizes that only OpenAI's own files carry; by the names of published weights
    (open_clip's own table says which of them need QuickGELU) in the file's or its folder's name; else transformers'
    layout means OpenAI where they published the architecture, and open_clip's layout means the plain activation.
    """
    twin = f"{name}-quickgelu"
    if twin not in open_clip.list_models():
        return name
    if any(key in state for key in _OPENAI_SIZES):
        return twin
    tags = _published_tags(open_clip, name, path)
    quick = {bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")) for tag in tags}
    if len(quick) == 1:
        return twin if quick.pop() else name
    chosen = twin if default_openai and "openai" in open_clip.list_pretrained_tags_by_model(name) else name
    log_to_console.warning(
        "%s: the weights do not say whether they were trained with QuickGELU, as OpenAI's were; taking them as %s. "
        "If that is wrong, set `architecture` to %s.",
        path.name,
        chosen,
        name if chosen == twin else twin,
    )
    return chosen


def _published_tags(open_clip: Any, name: str, path: Path) -> list[str]:
    """The published weights of this architecture of which the file's or its folder's name speaks."""
    said = _letters(f"{path.parent.name} {path.stem}")
    if "clipvitbasepatch" in said or "clipvitlargepatch" in said:
        said += " openai"  # the names of OpenAI's own repositories
    tags = open_clip.list_pretrained_tags_by_model(name)
    return [tag for tag in tags if _letters(tag) in said] or [
        tag for tag in tags if _letters(tag.split("_")[0]) in said
    ]


def _published_preprocess(open_clip: Any, name: str, path: Path) -> Mapping[str, Any]:
    """The preprocessing of the published weights that the name speaks of, or of the first published ones."""
    base = name.removesuffix("-quickgelu")
    for model in (name, base):
        tags = _published_tags(open_clip, model, path) or open_clip.list_pretrained_tags_by_model(model)
        if tags:
            return open_clip.get_pretrained_cfg(model, tags[0])
    return {}


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter == " ")


def _vision_cfg(config: Mapping[str, Any]) -> Any:
    from open_clip.model import CLIPVisionCfg

    return CLIPVisionCfg(**config["vision_cfg"])


def _text_cfg(config: Mapping[str, Any]) -> Any:
    from open_clip.model import CLIPTextCfg

    return CLIPTextCfg(**config["text_cfg"])


def _open_clip_sizes(open_clip: Any, name: str) -> dict[str, int] | None:
    """The sizes of a plain ViT CLIP (what transformers' CLIPModel is), or None for any other architecture."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    config = open_clip.get_model_config(name)
    vision, text = _vision_cfg(config), _text_cfg(config)
    plain_vision, plain_text = asdict(CLIPVisionCfg()), asdict(CLIPTextCfg())
    free = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "context_length", "vocab_size"}
    free |= {"heads"}
    for found, plain in ((vision, plain_vision), (text, plain_text)):
        if any(getattr(found, f.name) != plain[f.name] for f in fields(found) if f.name not in free):
            return None
    if not isinstance(vision.layers, int) or config.get("custom_text") or not isinstance(vision.image_size, int):
        return None
    return {
        "embed_dim": config["embed_dim"],
        "vision_width": vision.width,
        "vision_layers": vision.layers,
        "patch_size": vision.patch_size,
        "grid": vision.image_size // vision.patch_size,
        "text_width": text.width,
        "text_layers": text.layers,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
    }


def _transformers_sizes(path: Path, state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    def layers(tower: str) -> int:
        return len({key.split(".")[3] for key in state if key.startswith(f"{tower}.encoder.layers.")})

    try:
        patch = state["vision_model.embeddings.patch_embedding.weight"].shape
        tokens = state["text_model.embeddings.token_embedding.weight"].shape
        return {
            "embed_dim": state["text_projection.weight"].shape[0],
            "vision_width": patch[0],
            "vision_layers": layers("vision_model"),
            "patch_size": patch[-1],
            "grid": round((state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5),
            "text_width": tokens[1],
            "text_layers": layers("text_model"),
            "context_length": state["text_model.embeddings.position_embedding.weight"].shape[0],
            "vocab_size": tokens[0],
        }
    except KeyError as error:
        raise VerifierError(
            f"{path} lacks {error.args[0]}; a CLIP Score needs both towers with their projections "
            "(text encoders made for image generation often lack theirs)"
        ) from None


# small things


def _prefix(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[:2]) + ("..." if len(parts) > 2 else "")


def _timm_name(vision_cfg: Mapping[str, Any]) -> str:
    return str(vision_cfg.get("timm_model_name") or "")


def _read_json(path: Path) -> dict[str, Any]:
    check_regular(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VerifierError(f"cannot read {path}: {error}; take the file from the model's own repository") from error
    if not isinstance(data, dict):
        raise VerifierError(f"{path} is not a JSON object; take the file from the model's own repository")
    return data


def _shards(index: Path) -> list[Path]:
    """The files among which an index says that the weights are."""
    names = _read_json(index).get("weight_map")
    if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise VerifierError(f"{index} does not say which files the weights are in; take it from the model's repository")
    return [index.parent / name for name in sorted(set(names.values()))]


def _setting_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in SETTING_SUFFIXES and path.is_file()))


def _file_and_tokenizer(path: Path, config: Mapping[str, Any]) -> tuple[Path, ...]:
    """A single file alone, unless its tokenizer lies beside it."""
    return (path, *(_setting_files(path.parent) if config["text_cfg"].get("hf_tokenizer_name") else ()))


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer lie in the folder."""
    files = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
    return any((folder / name).is_file() for name in files)


def _check_tokenizer(folder: Path, named: str) -> None:
    """A missing tokenizer would be looked up on the internet by name."""
    if not has_tokenizer(folder):
        raise VerifierError(
            f"{folder} has no tokenizer ({named}); put tokenizer.json and tokenizer_config.json (or vocab.json and "
            "merges.txt) from the model's repository beside the weights"
        )
