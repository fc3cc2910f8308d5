"""The embedded default: a tiny SD3, its text encoder, its autoencoder and its verifier, as ordinary ComfyUI objects.

ComfyUI reads the sizes of the diffusion model (an SD3 MMDiT) and of the autoencoder (a TAESD) from their files.
The text encoder is our own small transformer inside ComfyUI's `SDClipModel`, so that prompt weights, chunking of
long prompts and model management are the host's.
"""

from __future__ import annotations

import re
from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch

from ..demo.world import WORDS

WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"
LATENT_CHANNELS = 16
PATCH = 2  # of the MMDiT; with the autoencoder's 8 one token covers 16x16 pixels
MAX_LATENT = 64  # largest latent height and width (512 pixels); the model is trained at 16 (128 pixels)
MAX_TOKENS = 16
TEXT_WIDTH = 128
TEXT_LAYERS = 2

PAD, START, END, UNKNOWN = range(4)
VOCABULARY = ("<pad>", "<start>", "<end>", "<unknown>", *WORDS)


class WordTokenizer:
    """One token per word of the world's vocabulary; any other word is `<unknown>`. The interface ComfyUI expects."""

    def __init__(self):
        self.ids = {word: index for index, word in enumerate(VOCABULARY)}

    @classmethod
    def from_pretrained(cls, path: str, **kwargs) -> WordTokenizer:
        """ComfyUI's constructor; the vocabulary is in the code, so `path` is not read."""
        return cls()

    def __call__(self, text: str) -> dict[str, list[int]]:
        words = re.findall(r"[a-z]+", text.lower())
        return {"input_ids": [START, *(self.ids.get(word, UNKNOWN) for word in words), END]}

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(VOCABULARY[i] for i in ids if not (skip_special_tokens and i <= END))


class DemoSDTokenizer(comfy.sd1_clip.SDTokenizer):
    """Chunks of `MAX_TOKENS`, padded."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path="",
            max_length=MAX_TOKENS,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=TEXT_WIDTH,
            embedding_key="demo",
            tokenizer_class=WordTokenizer,
            tokenizer_data=tokenizer_data or {},
        )


class DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """What `comfy.sd.CLIP` calls."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=DemoSDTokenizer, name="demo")


def text_config() -> dict[str, int]:
    """Sizes of the text encoder, under CLIP's names."""
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": TEXT_WIDTH,
        "num_attention_heads": TEXT_WIDTH // 32,
        "num_hidden_layers": TEXT_LAYERS,
        "max_position_embeddings": MAX_TOKENS,
    }


class TextBlock(torch.nn.Module):
    """Pre-norm transformer layer with full attention. Never works in place, so that it can be trained."""

    def __init__(self, width: int, heads: int, dtype, device, operations):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.heads = heads
        self.norm1 = operations.LayerNorm(width, **options)
        self.qkv = operations.Linear(width, 3 * width, **options)
        self.out = operations.Linear(width, width, **options)
        self.norm2 = operations.LayerNorm(width, **options)
        self.fc1 = operations.Linear(width, 4 * width, **options)
        self.fc2 = operations.Linear(4 * width, width, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))


class TextTransformer(torch.nn.Module):
    """Token embeddings to one vector per token, and the mean over the words as the pooled vector."""

    def __init__(self, config: dict, dtype, device, operations):
        super().__init__()
        width, options = config["hidden_size"], {"dtype": dtype, "device": device}
        self.num_layers = config["num_hidden_layers"]
        self.dtype = dtype
        self.token_embedding = operations.Embedding(config["vocab_size"], width, **options)
        self.position_embedding = operations.Embedding(config["max_position_embeddings"], width, **options)
        self.layers = torch.nn.ModuleList(
            TextBlock(width, config["num_attention_heads"], operations=operations, **options)
            for _ in range(self.num_layers)
        )
        self.final_norm = operations.LayerNorm(width, **options)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.token_embedding

    def forward(self, tokens, attention_mask=None, embeds=None, num_tokens=None, intermediate_output=None, **kwargs):
        """embeds: [batch, length, width]; num_tokens: words per row, start and end included.

        Returns (last, asked intermediate layer or None, pooled), the tuple that `SDClipModel` unpacks.
        """
        positions = torch.arange(embeds.shape[1], device=embeds.device)
        x = embeds + self.position_embedding(positions, out_dtype=embeds.dtype)
        intermediate = None
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if intermediate_output is not None and index == intermediate_output % self.num_layers:
                intermediate = self.final_norm(x)
        x = self.final_norm(x)
        used = positions[None] < torch.tensor(num_tokens, device=x.device)[:, None]
        pooled = (x * used[..., None]).sum(1) / used.sum(1, keepdim=True)
        return x, intermediate, pooled


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """`TextTransformer` with the host's handling of prompt weights and chunks."""

    def __init__(self, device="cpu", dtype=None, model_options=None, freeze=True):
        super().__init__(
            device=device,
            dtype=dtype,
            freeze=freeze,
            max_length=MAX_TOKENS,
            textmodel_json_config=text_config(),
            model_class=TextTransformer,
            special_tokens={"start": START, "end": END, "pad": PAD},
            layer_norm_hidden_state=False,
            model_options=model_options or {},
        )


class DemoTextModel(comfy.sd1_clip.SD1ClipModel):
    """What `comfy.sd.CLIP` calls."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, name="demo", clip_model=DemoTextEncoder
        )


def load_generator():
    """Load the demo checkpoint: (MODEL, CLIP, VAE), as the stock nodes take them. Trained on 128x128 pictures.

    Raises FileNotFoundError or ValueError naming the file that is missing or damaged, and what to do.
    """
    tensors = read_weights(WEIGHTS / "generator.safetensors")
    text = comfy.utils.state_dict_prefix_replace(tensors, {"text.": ""}, filter_keys=True)
    diffusion = comfy.utils.state_dict_prefix_replace(tensors, {"model.": ""}, filter_keys=True)
    autoencoder = read_weights(WEIGHTS / "vae.safetensors")

    model = comfy.sd.load_diffusion_model_state_dict(diffusion)
    if model is None:
        raise ValueError(_damaged(WEIGHTS / "generator.safetensors", "ComfyUI does not recognise the model in it"))
    target = comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoTextModel)
    clip = comfy.sd.CLIP(target, parameters=comfy.utils.calculate_parameters(text), state_dict=[text])
    vae = comfy.sd.VAE(sd=autoencoder)
    vae.throw_exception_if_invalid()
    return model, clip, vae


def verifier_directory() -> Path:
    """The folder of the learned verifier, for `open_clip.create_model_and_transforms("local-dir:...")`.

    Raises FileNotFoundError or ValueError naming the file that is missing or damaged, and what to do.
    """
    folder = WEIGHTS / "verifier"
    for name in ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(_missing(folder / name))
    read_weights(folder / "open_clip_model.safetensors", header_only=True)
    return folder


def read_weights(path: Path, header_only: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, or none but a check of its header and length.

    Raises FileNotFoundError or ValueError with the path and what to do; a pickle is never loaded.
    """
    import safetensors

    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [] if header_only else file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(_damaged(path, str(error))) from error


def _missing(path: Path) -> str:
    return f"The demo model's file {path} is missing. Install the pack again, or make it with: python demo/train.py"


def _damaged(path: Path, reason: str) -> str:
    return (
        f"The demo model's file {path} is damaged ({reason}). "
        "Install the pack again, or make it with: python demo/train.py"
    )


def check_latent(model, samples: torch.Tensor) -> None:
    """Raise ValueError when a latent [..., height, width] is larger than the model's table of positions.

    SD3-like models have such a table, and ComfyUI stops at a bare assert beyond it. Models without one pass.
    """
    network = getattr(model.model, "diffusion_model", None)
    limit = getattr(network, "pos_embed_max_size", None)
    if network is None or limit is None or getattr(network, "pos_embed", None) is None or samples.is_nested:
        return
    height, width = samples.shape[-2:]
    largest = limit * network.patch_size
    if max(height, width) > largest:
        raise ValueError(
            f"The latent is {width}x{height} (a picture of {8 * width}x{8 * height} pixels), but this model takes at "
            f"most {largest}x{largest} ({8 * largest}x{8 * largest} pixels). Use a smaller Empty Latent Image, or "
            "another model."
        )
