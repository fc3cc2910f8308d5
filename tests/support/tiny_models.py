"""Tiny random-weight models of the architectures that ComfyUI samples, as the MODEL its own loaders would give.

Every network is ComfyUI's class. The transformers are made into a state dict and go through ComfyUI's detection and
loader; its detection knows a UNet by its full width, so the UNets are made from the model config class instead.
A few thousand to a few million parameters each, the same ones in every run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import comfy.controlnet
import comfy.ldm.flux.controlnet
import comfy.ldm.flux.model
import comfy.ldm.lightricks.av_model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.wan.model
import comfy.lora
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy.cldm.cldm import ControlNet
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.ops import disable_weight_init

TOKENS = 5  # of a prompt
POOLED = 32
SDXL_ADM = POOLED + 6 * 256  # with ComfyUI's embedding of the six numbers of a picture's size
SD3_POOLED = 2048  # ComfyUI takes it for granted in a ControlNet of SD3.5
UNET_CHANNELS = 64  # the narrowest that ComfyUI's ControlNet loader gives a whole attention head of 64


@dataclass(frozen=True)
class TinyModel:
    """A MODEL and what it takes.

    shapes: of one item's latent without the batch; several for a latent made of several tensors.
    lora_layers: names of layers that `lora` changes, as ComfyUI's own LoRA key names.
    """

    name: str
    model: Any
    shapes: tuple[tuple[int, ...], ...]
    context_width: int
    lora_layers: tuple[str, ...]
    cfg: float = 3.0
    pooled_width: int | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def conditioning(self, seed: int, rows: int = 1) -> list:
        """CONDITIONING of a made-up prompt, one for every row of the batch where `rows` > 1."""
        generator = torch.Generator().manual_seed(seed)
        values = dict(self.extras)
        if self.pooled_width is not None:
            values["pooled_output"] = torch.randn(rows, self.pooled_width, generator=generator)
        return [[torch.randn(rows, TOKENS, self.context_width, generator=generator), values]]

    def latent(self, batch: int = 1, seed: int | None = None) -> dict[str, Any]:
        """LATENT: empty, or with made-up content where a seed is given."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        parts = [
            torch.zeros(batch, *shape) if generator is None else torch.randn(batch, *shape, generator=generator)
            for shape in self.shapes
        ]
        if len(parts) == 1:
            return {"samples": parts[0]}
        from comfy.nested_tensor import NestedTensor

        return {"samples": NestedTensor(parts)}

    def lora(self, seed: int = 1, rank: int = 4) -> dict[str, torch.Tensor]:
        """The tensors of a LoRA file for `lora_layers`."""
        generator = torch.Generator().manual_seed(seed)
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        weights = self.model.model.state_dict()
        lora = {}
        for layer in self.lora_layers:
            rows, columns = weights[keys[layer]].shape
            lora[f"{layer}.lora_up.weight"] = torch.randn(rows, rank, generator=generator)
            lora[f"{layer}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            lora[f"{layer}.alpha"] = torch.tensor(float(rank))
        return lora

    def with_lora(self, strength: float = 1.0) -> Any:
        """A MODEL with the LoRA, applied by ComfyUI's loader."""
        return comfy.sd.load_lora_for_models(self.model, None, self.lora(), strength, 0.0)[0]


def randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fills everything that a file would hold so that every layer counts and values keep their size.

    Nothing stays zero: real networks start with zero layers, which would hide that a prompt or a LoRA arrives.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("weight", "scale")):
                tensor.copy_(1 + 0.1 * noise if tensor.ndim == 1 else noise / math.sqrt(tensor[0].numel()))
            else:
                tensor.copy_((0.1 if name.endswith("bias") else 0.5) * noise)
    return network


def from_state_dict(network: torch.nn.Module, seed: int, metadata: dict[str, str] | None = None) -> Any:
    """MODEL of a network, read by ComfyUI from its state dict as from a file."""
    model = comfy.sd.load_diffusion_model_state_dict(randomise(network, seed).state_dict(), metadata=metadata)
    assert model is not None, "ComfyUI does not recognise the network"
    return model


def unet_config(context_width: int, linear: bool, adm: int | None = None) -> dict[str, Any]:
    """A UNet of two levels, one residual block each and attention in every one, under ComfyUI's names."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": UNET_CHANNELS,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": linear,
        "context_dim": context_width,
        "adm_in_channels": adm,
        "num_classes": None if adm is None else "sequential",
        "use_temporal_attention": False,
        "legacy": False,
    }


def unet(config_class: type, config: dict[str, Any], seed: int, marks: dict[str, torch.Tensor] | None = None) -> Any:
    """MODEL of a UNet. marks: entries of its file by which ComfyUI tells variants apart."""
    model_config = config_class(config)
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model(marks or {})
    randomise(model.diffusion_model, seed)
    cpu = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)


MIDDLE = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
UNET_LORA = (f"{MIDDLE}_attn1_to_q", f"{MIDDLE}_attn2_to_v")
UNET_LATENT = ((4, 8, 8),)


@cache
def sd15() -> TinyModel:
    """Stable Diffusion 1.5: UNet, EPS."""
    model = unet(comfy.supported_models.SD15, unet_config(32, linear=False), seed=1)
    return TinyModel("sd15", model, UNET_LATENT, 32, UNET_LORA)


@cache
def sd15_v() -> TinyModel:
    """Stable Diffusion 2.1: UNet, V-prediction, which ComfyUI knows by how one bias spreads."""
    marks = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 8)}
    model = unet(comfy.supported_models.SD20, unet_config(32, linear=True), seed=2, marks=marks)
    return TinyModel("sd15_v", model, UNET_LATENT, 32, UNET_LORA)


@cache
def sdxl() -> TinyModel:
    """SDXL: UNet with pooled text and picture sizes, EPS."""
    model = unet(comfy.supported_models.SDXL, unet_config(32, linear=True, adm=SDXL_ADM), seed=3)
    return TinyModel("sdxl", model, UNET_LATENT, 32, UNET_LORA, pooled_width=POOLED)


@cache
def sd3() -> TinyModel:
    """Stable Diffusion 3: MMDiT of two blocks, flow."""
    network = comfy.ldm.modules.diffusionmodules.mmdit.MMDiT(
        input_size=None,
        in_channels=16,
        depth=2,
        adm_in_channels=SD3_POOLED,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
        num_patches=16 * 16,
        pos_embed_max_size=16,
        dtype=torch.float32,
        operations=disable_weight_init,
    )
    layers = ("transformer.transformer_blocks.0.attn.to_out.0", "transformer.transformer_blocks.0.ff_context.net.2")
    return TinyModel("sd3", from_state_dict(network, seed=4), ((16, 8, 8),), 32, layers, pooled_width=SD3_POOLED)


def flux_config() -> dict[str, Any]:
    """One double and one single block, under ComfyUI's names."""
    return {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED,
        "context_in_dim": 32,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
        "dtype": torch.float32,
        "operations": disable_weight_init,
    }


@cache
def flux() -> TinyModel:
    """Flux with a guidance embedding, made for CFG 1."""
    model = from_state_dict(comfy.ldm.flux.model.Flux(**flux_config()), seed=5)
    layers = ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear2")
    return TinyModel("flux", model, ((16, 8, 8),), 32, layers, 1.0, POOLED, extras={"guidance": 3.5})


@cache
def wan() -> TinyModel:
    """Wan 2.1: one block over a video latent of two frames, flow."""
    network = comfy.ldm.wan.model.WanModel(
        dim=128, ffn_dim=128, num_heads=1, num_layers=1, dtype=torch.float32, operations=disable_weight_init
    )
    layers = ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_0_cross_attn_v")
    return TinyModel("wan", from_state_dict(network, seed=6), ((16, 2, 8, 8),), 4096, layers)


@cache
def ltxav() -> TinyModel:
    """LTX 2: one block over a video and its audio, a latent made of two tensors, flow."""
    sizes = {
        "cross_attention_dim": 64,
        "audio_cross_attention_dim": 64,
        "attention_head_dim": 32,
        "audio_attention_head_dim": 32,
        "num_attention_heads": 2,
        "audio_num_attention_heads": 2,
        "caption_channels": 32,
        "num_layers": 1,
        "connector_attention_head_dim": 32,
        "connector_num_attention_heads": 1,
        "connector_num_layers": 1,
    }
    network = comfy.ldm.lightricks.av_model.LTXAVModel(**sizes, dtype=torch.float32, operations=disable_weight_init)
    model = from_state_dict(network, 7, {"config": json.dumps({"transformer": sizes})})
    layers = ("lora_unet_transformer_blocks_0_attn1_to_q", "lora_unet_transformer_blocks_0_audio_attn2_to_v")
    video, audio = (128, 2, 4, 4), (8, 4, 16)
    return TinyModel("ltxav", model, (video, audio), 2 * sizes["caption_channels"], layers)


BUILDERS: dict[str, Callable[[], TinyModel]] = {
    builder.__name__: builder for builder in (sd15, sd15_v, sdxl, sd3, flux, wan, ltxav)
}


def unet_controlnet(config: dict[str, Any]) -> torch.nn.Module:
    """The network of a ControlNet for a UNet of that `unet_config`."""
    config = {key: value for key, value in config.items() if key not in ("out_channels", "transformer_depth_output")}
    return ControlNet(
        **config, hint_channels=3, num_head_channels=64, dtype=torch.float32, operations=disable_weight_init
    )


def sd3_controlnet() -> torch.nn.Module:
    """The network of a ControlNet for `sd3`, one block in Stability's format. It takes the hint as a latent."""
    return ControlNetEmbedder(
        img_size=None,
        patch_size=2,
        in_chans=16,
        attention_head_dim=64,
        num_attention_heads=2,
        adm_in_channels=SD3_POOLED,
        num_layers=1,
        main_model_double=2,
        double_y_emb=False,
        device=None,
        dtype=torch.float32,
        operations=disable_weight_init,
    )


CONTROLNETS: dict[str, Callable[[], torch.nn.Module]] = {
    "sd15": lambda: unet_controlnet(unet_config(32, linear=False)),
    "sd15_v": lambda: unet_controlnet(unet_config(32, linear=True)),
    "sdxl": lambda: unet_controlnet(unet_config(32, linear=True, adm=SDXL_ADM)),
    "sd3": sd3_controlnet,
    "flux": lambda: comfy.ldm.flux.controlnet.ControlNetFlux(**flux_config()),
}


@cache
def controlnet(name: str) -> Any:
    """A CONTROL_NET for one of `CONTROLNETS`, read by ComfyUI from its state dict as from a file."""
    weights = randomise(CONTROLNETS[name](), seed=8).state_dict()
    if name == "flux":  # files write it so, and ComfyUI knows them by it
        weights = {key.replace("_norm.weight", "_norm.scale"): value for key, value in weights.items()}
    return comfy.controlnet.load_controlnet_state_dict(dict(weights))
