"""Train the embedded default from nothing: the autoencoder, the generator and the verifier of the toy world.

    COMFYUI_PATH=/path/to/ComfyUI python demo/train.py --stage all --minutes 180

Every batch is rendered fresh, from training prompts only (`Scene.held_out` is False); nothing here imports the oracle.
Each stage can be killed and started again: it goes on from its last checkpoint in `.cache/train`. Weights are
written to `demo/weights` as fp16 safetensors. The stages:

data       a fixed linear latent space: the principal components of 8x8 pixel patches. It is one matrix product, so
           the generator need not wait for an autoencoder.
vae        a TAESD-shaped decoder that inverts the linear map and sharpens what 16 numbers per patch cannot hold,
           and a TAESD-shaped encoder distilled from the linear map.
generator  an SD3 MMDiT (Esser et al., 2024, arXiv 2403.03206), trained together with its text encoder.
verifier   a small CLIP (Radford et al., 2021) with hard negative captions (NegCLIP, Yuksekgonul et al., 2023).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]


def load_pack():
    """Import this pack by path, as ComfyUI does, and ComfyUI from COMFYUI_PATH."""
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the model classes come from there.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location("noise_search", ROOT / "__init__.py")
    sys.modules["noise_search"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


# ---------------------------------------------------------------------------------------------------- what they share


class Clock:
    """Minutes spent in a stage, over all its runs, and the learning rate's schedule over the minutes allowed."""

    def __init__(self, minutes: float, spent: float = 0.0):
        self.minutes, self.spent, self.started = minutes, spent, time.time()

    @property
    def elapsed(self) -> float:
        """Minutes."""
        return self.spent + (time.time() - self.started) / 60

    @property
    def over(self) -> bool:
        return self.elapsed >= self.minutes

    def rate(self, step: int, warmup: int = 100) -> float:
        """Linear warm-up over steps, then a cosine over the time allowed, down to 2 %."""
        done = min(1.0, self.elapsed / self.minutes)
        return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class Optimisers:
    """Muon (Jordan et al., 2024) for the weight matrices of transformer blocks, AdamW for all else."""

    def __init__(self, named_parameters, rate: float, matrices=("attn.", "mlp.", "layers.")):
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        in_blocks = [p for name, p in named if p.ndim == 2 and any(key in name for key in matrices)]
        ids = {id(p) for p in in_blocks}
        others = [p for _, p in named if id(p) not in ids]
        self.rate = rate
        self.all = [torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)]
        if in_blocks:
            self.all.append(
                torch.optim.Muon(in_blocks, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=4)
            )

    def step(self, loss: torch.Tensor, scale: float) -> None:
        loss.backward()
        for optimiser in self.all:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * scale
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self):
        return [optimiser.state_dict() for optimiser in self.all]

    def load_state_dict(self, states):
        for optimiser, state in zip(self.all, states, strict=True):
            optimiser.load_state_dict(state)


class Average:
    """Exponential moving average of a module's parameters, faster at the start."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(module).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        averaged, current = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)


def save_checkpoint(path: Path, **state) -> None:
    """Write beside the old file, then swap: a kill at any moment leaves a whole checkpoint."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_checkpoint(path: Path) -> dict | None:
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().half().contiguous().cpu() for name, t in tensors.items()}, path)


def note(weights: Path, stage: str, **facts) -> None:
    """Add what a stage did to `training.json`."""
    path = weights / "training.json"
    log = json.loads(path.read_text()) if path.exists() else {}
    log[stage] = {**facts, "hardware": hardware(), "torch": torch.__version__}
    path.write_text(json.dumps(log, indent=2) + "\n")


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"


def autocast(device: torch.device):
    """bfloat16, which is twice as fast where the processor has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def batch_of_scenes(rng: np.random.Generator, count: int):
    """`count` training scenes, their captions, and pictures float32 [count, 3, 128, 128] in [0, 1]."""
    from noise_search.demo import world

    scenes = []
    while len(scenes) < count:
        scene = world.sample_scene(rng)
        if not scene.held_out:
            scenes.append(scene)
    pictures = np.stack([world.draw_items(world.place(scene, rng)) for scene in scenes])
    return scenes, [str(scene) for scene in scenes], torch.from_numpy(pictures).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------------- latents

PIXELS = 8  # side of the patch behind one latent position
CHANNELS = 16


class LinearLatent:
    """Pictures to latents and roughly back by the first principal components of 8x8 patches.

    Latents have mean 0 and standard deviation 1 over all channels together. Each component is scaled by the square
    root of its deviation: between raw (details drown in the noise) and whitened (details as loud as colours).
    """

    def __init__(self, mean: torch.Tensor, encode: torch.Tensor, decode: torch.Tensor):
        self.mean, self.encode_matrix, self.decode_matrix = mean, encode, decode

    @classmethod
    def fit(cls, pictures: torch.Tensor) -> LinearLatent:
        patches = F.pixel_unshuffle(pictures, PIXELS).permute(0, 2, 3, 1).reshape(-1, 3 * PIXELS**2).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        vectors, deviation = vectors.flip(1)[:, :CHANNELS], values.flip(0)[:CHANNELS].clamp(min=0).sqrt()
        scale = deviation**-0.5
        scale = scale / ((deviation * scale) ** 2).mean().sqrt()
        to, back = (vectors * scale).float(), (vectors / scale).T.float()
        return cls(mean.float(), to.contiguous(), back.contiguous())

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] in [0, 1] to [N, 16, H/8, W/8]."""
        patches = F.pixel_unshuffle(pictures, PIXELS).permute(0, 2, 3, 1)
        return ((patches - self.mean) @ self.encode_matrix).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The least-squares inverse: right but for blurred corners."""
        patches = latents.permute(0, 2, 3, 1) @ self.decode_matrix + self.mean
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), PIXELS)

    def to(self, device) -> LinearLatent:
        return LinearLatent(self.mean.to(device), self.encode_matrix.to(device), self.decode_matrix.to(device))


def fit_latent(args) -> LinearLatent:
    """Stage data: fit the linear latent space on 2000 pictures, once."""
    path = args.cache / "latent.safetensors"
    if not path.exists():
        _, _, pictures = batch_of_scenes(np.random.default_rng(args.seed), 2000)
        latent = LinearLatent.fit(pictures)
        z = latent.encode(pictures)
        print(f"latent: std {z.std():.3f}, largest {z.abs().max():.2f}, channels {z.std((0, 2, 3)).numpy().round(2)}")
        save_file({"mean": latent.mean, "encode": latent.encode_matrix, "decode": latent.decode_matrix}, path)
    tensors = load_file(path)
    return LinearLatent(tensors["mean"], tensors["encode"], tensors["decode"])


# --------------------------------------------------------------------------------------------------------------- vae

DECODER_SCALE = 0.5  # sampling latents times this are TAESD's own, which its decoder squashes softly beyond 3
CROP = 8  # side of the training crops in latent positions (64 pixels)


def build_vae() -> torch.nn.Module:
    """ComfyUI's TAESD with 16 channels, initialised as He et al. (2015), each block starting near the identity."""
    from comfy.taesd.taesd import TAESD

    vae = TAESD(latent_channels=CHANNELS)
    for name, parameter in vae.named_parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            if ".conv.4." in name:
                parameter.data *= 0.2
        elif parameter.ndim == 1:
            torch.nn.init.zeros_(parameter)
    return vae


def vae_constants() -> dict[str, torch.Tensor]:
    """`vae_scale` and `vae_shift`, so that SD3's latent format leaves the generator's latents at unit variance."""
    from comfy.latent_formats import SD3

    return {
        "vae_scale": torch.tensor(SD3().scale_factor * DECODER_SCALE),
        "vae_shift": torch.tensor(SD3().shift_factor),
    }


def crops(pictures: torch.Tensor, latents: torch.Tensor, rng: np.random.Generator):
    """From every picture one crop, the busiest of three, its latents, and a mask [N, 1, CROP, CROP] of what to learn.

    The mask leaves out the outermost latents of a crop, unless they lie at the edge of the picture: padding there is
    what the whole picture has, elsewhere it is not.
    """
    size, out = CROP * PIXELS, []
    for picture, latent in zip(pictures, latents, strict=True):
        last = latent.shape[-1] - CROP
        places = np.clip(rng.integers(-2, last + 3, (3, 2)), 0, last)  # edges more often
        cut = [latent[:, y : y + CROP, x : x + CROP] for y, x in places]
        best = int(torch.stack([c.var((1, 2)).sum() for c in cut]).argmax())
        mask = torch.ones(1, CROP, CROP)
        for axis, place in enumerate(places[best], start=1):
            if place > 0:
                mask.select(axis, 0).zero_()
            if place < last:
                mask.select(axis, CROP - 1).zero_()
        y, x = (int(v) * PIXELS for v in places[best])
        out.append((picture[:, y : y + size, x : x + size], cut[best], mask))
    return tuple(torch.stack(parts) for parts in zip(*out, strict=True))


def train_vae(args, latent: LinearLatent) -> None:
    """Decoder: pixels from latents with a little noise, as a generator's are. Encoder: distil the linear map."""
    torch.manual_seed(args.seed + 1)
    vae = build_vae().to(args.device, memory_format=torch.channels_last)
    optimisers, average, step = Optimisers(vae.named_parameters(), 1.5e-3, matrices=()), Average(vae, 0.99), 0
    path = args.cache / "vae.pt"
    if state := load_checkpoint(path):
        vae.load_state_dict(state["vae"])
        average.module.load_state_dict(state["average"])
        optimisers.load_state_dict(state["optimisers"])
        step = state["step"]
    clock = Clock(args.minutes["vae"], state["minutes"] if state else 0.0)
    losses: list[tuple[float, float]] = []
    while not clock.over:
        rng = np.random.default_rng((args.seed, 2, step))
        torch_rng = torch.Generator().manual_seed(args.seed * 10**9 + step)
        _, _, pictures = batch_of_scenes(rng, 16)
        target, z, mask = crops(pictures, latent.encode(pictures), rng)
        noise = torch.randn(z.shape, generator=torch_rng) * torch.rand(len(z), 1, 1, 1, generator=torch_rng) * 0.3
        target, z, mask, noise = (t.to(args.device) for t in (target, z, mask, noise))
        with autocast(args.device):
            decoded = vae.taesd_decoder((z + noise) * DECODER_SCALE)
        error = (decoded.float() - target) * F.interpolate(mask, scale_factor=PIXELS)
        loss = error.square().mean() * 10 + error.abs().mean()
        encoder_loss = torch.zeros(())
        if step % 3 == 0:
            with autocast(args.device):
                encoded = vae.taesd_encoder(target[:8])
            error_z = (encoded.float() - z[:8] * DECODER_SCALE) * mask[:8]
            encoder_loss = error_z.square().mean()
        optimisers.step(loss + encoder_loss, clock.rate(step))
        average.update(vae, step)
        losses.append((error.detach().square().mean().item(), encoder_loss.item() * 3))
        step += 1
        if step % 50 == 0:
            mse, mse_z = np.mean(losses[-48:], 0)
            print(
                f"vae {step}: {-10 * math.log10(mse):.2f} dB, encoder {mse_z:.4f}, {clock.elapsed:.1f} min", flush=True
            )
        if step % 100 == 0 or clock.over:
            save_checkpoint(
                path,
                vae=vae.state_dict(),
                average=average.module.state_dict(),
                optimisers=optimisers.state_dict(),
                step=step,
                minutes=clock.elapsed,
            )
    save_weights(args.weights / "vae.safetensors", {**average.module.state_dict(), **vae_constants()})
    if losses:
        mse, mse_z = np.mean(losses[-99:], 0)
        facts = {"crop_psnr_db": round(-10 * math.log10(mse), 2), "encoder_mse": round(float(mse_z), 4)}
        note(args.weights, "vae", steps=step, batch=16, minutes=round(clock.elapsed, 1), **facts)


# --------------------------------------------------------------------------------------------------------- generator


class Operations:
    """Plain torch layers under the names that ComfyUI's models ask for."""

    Linear, LayerNorm, Conv2d = torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Conv2d

    class Embedding(torch.nn.Embedding):
        def forward(self, tokens, out_dtype=None):
            return super().forward(tokens)


class Generator(torch.nn.Module):
    """The MMDiT and its text encoder; `forward` is what the CLIP node and the sampler do together."""

    def __init__(self, depth: int):
        super().__init__()
        from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper, get_2d_sincos_pos_embed
        from noise_search.host import demo

        width, grid = 64 * depth, demo.MAX_LATENT // demo.PATCH
        text_config = demo.text_config()
        self.text = demo.TextTransformer(text_config, None, None, Operations)
        self.model = OpenAISignatureMMDITWrapper(
            input_size=None,
            patch_size=demo.PATCH,
            in_channels=demo.LATENT_CHANNELS,
            depth=depth,
            adm_in_channels=demo.TEXT_WIDTH,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": demo.TEXT_WIDTH, "out_features": width},
            },
            num_patches=grid**2,
            pos_embed_max_size=grid,
            qk_norm="rms",
            operations=Operations,
        )
        self.tokenizer = demo.DemoTokenizer()
        self._initialise(torch.from_numpy(get_2d_sincos_pos_embed(width, grid)).float()[None])

    def _initialise(self, positions: torch.Tensor) -> None:
        """Initialises as DiT (Peebles and Xie, 2022): Xavier, small embeddings, and gates and last layer at zero."""
        for name, parameter in self.named_parameters():
            if "norm" in name and name.endswith("weight") or name.endswith(("ln_q.weight", "ln_k.weight")):
                torch.nn.init.ones_(parameter)
            elif parameter.ndim == 1 or "adaLN" in name or "final_layer.linear" in name:
                torch.nn.init.zeros_(parameter)
            elif "embedding" in name or "t_embedder" in name:
                torch.nn.init.normal_(parameter, std=0.02 if "t_embedder" in name else 0.2)
            else:
                torch.nn.init.xavier_uniform_(parameter.flatten(1) if parameter.ndim > 2 else parameter)
        self.model.pos_embed.copy_(positions)

    def tokens(self, captions: list[str]) -> tuple[torch.Tensor, list[int]]:
        """Token ids [N, length] and the number of real tokens per row."""
        from noise_search.host import demo

        rows = [self.tokenizer.tokenize_with_weights(caption)["demo"][0] for caption in captions]
        ids = torch.tensor([[token for token, _ in row] for row in rows])
        return ids, (ids != demo.PAD).sum(1).tolist()

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, captions: list[str]) -> torch.Tensor:
        ids, lengths = self.tokens(captions)
        embeds = self.text.token_embedding(ids.to(noisy.device))
        context, _, pooled = self.text(None, embeds=embeds, num_tokens=lengths)
        return self.model(noisy, sigma * 1000, context=context, y=pooled)

    @torch.no_grad()
    def sample(self, captions: list[str], noise: torch.Tensor, steps: int, cfg: float, shift: float = 3.0):
        """Euler with classifier-free guidance, as the stock sampler does it."""
        u = torch.linspace(1, 0, steps + 1)
        sigmas = (shift * u / (1 + (shift - 1) * u)).tolist()
        x = noise
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            s = torch.full((2 * len(x),), sigma, device=x.device)
            with autocast(x.device):
                velocity = self(torch.cat([x, x]), s, captions + [""] * len(x)).float()
            cond, uncond = velocity.chunk(2)
            x = x + (after - sigma) * (uncond + cfg * (cond - uncond))
        return x


def sample_sigmas(count: int, generator: torch.Generator, shift: float = 3.0) -> torch.Tensor:
    """Noise levels in (0, 1): logit-normal (SD3, section 3.1) with some uniform, then the sampler's shift."""
    u = torch.sigmoid(torch.randn(count, generator=generator))
    flat = torch.rand(count, generator=generator)
    u = torch.where(torch.rand(count, generator=generator) < 0.3, flat, u)
    return shift * u / (1 + (shift - 1) * u)


def train_generator(args, latent: LinearLatent) -> None:
    """Rectified flow (Liu et al., 2022): x_sigma = (1 - sigma) x0 + sigma noise, target noise - x0."""
    torch.manual_seed(args.seed)
    net = Generator(args.depth).to(args.device)
    latent = latent.to(args.device)
    optimisers, average, step, clock = Optimisers(net.named_parameters(), 1.5e-3), Average(net, 0.9985), 0, None
    path = args.cache / "generator.pt"
    if state := load_checkpoint(path):
        net.load_state_dict(state["net"])
        average.module.load_state_dict(state["average"])
        optimisers.load_state_dict(state["optimisers"])
        step = state["step"]
    clock = Clock(args.minutes["generator"], state["minutes"] if state else 0.0)
    print(f"generator: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, from step {step}")
    losses: list[float] = []
    while not clock.over:
        rng = np.random.default_rng((args.seed, 1, step))
        torch_rng = torch.Generator().manual_seed(args.seed * 10**9 + step)
        _, captions, pictures = batch_of_scenes(rng, args.batch)
        captions = ["" if rng.random() < 0.1 else caption for caption in captions]
        x0 = latent.encode(pictures.to(args.device))
        noise = torch.randn(x0.shape, generator=torch_rng).to(args.device)
        sigma = sample_sigmas(len(x0), torch_rng).to(args.device)
        s = sigma.view(-1, 1, 1, 1)
        with autocast(args.device):
            velocity = net((1 - s) * x0 + s * noise, sigma, captions)
        loss = F.mse_loss(velocity.float(), noise - x0)
        optimisers.step(loss, clock.rate(step))
        average.update(net, step)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"generator {step}: loss {np.mean(losses[-50:]):.4f}, {clock.elapsed:.1f} min", flush=True)
        if step % 250 == 0 or clock.over:
            save_checkpoint(
                path,
                net=net.state_dict(),
                average=average.module.state_dict(),
                optimisers=optimisers.state_dict(),
                step=step,
                minutes=clock.elapsed,
            )
    write_generator(args, average.module)
    if losses:
        note(
            args.weights,
            "generator",
            steps=step,
            batch=args.batch,
            minutes=round(clock.elapsed, 1),
            loss=round(float(np.mean(losses[-200:])), 4),
        )


def write_generator(args, net: Generator) -> None:
    """The MMDiT under `model.`, the text encoder under `text.`, in fp16."""
    save_weights(args.weights / "generator.safetensors", net.state_dict())


# ---------------------------------------------------------------------------------------------------------- verifier

VERIFIER = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 128, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 0,  # filled in
        "hf_tokenizer_name": "word-level",  # beside the weights; the name is not looked up
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
}


def verifier_words() -> list[str]:
    """The vocabulary, padding first and the end mark last: CLIP pools at the largest id."""
    from noise_search.demo.world import WORDS

    return ["<pad>", "<unknown>", "<start>", *WORDS, "<end>"]


def write_verifier(args, model: torch.nn.Module) -> None:
    """An open_clip folder: configuration, weights, and a tokenizer of whole words."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = args.weights / "verifier"
    save_weights(folder / "open_clip_model.safetensors", model.state_dict())
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": verifier_config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")

    ids = {word: index for index, word in enumerate(verifier_words())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z]+"), "removed")
    ends = [(mark, ids[mark]) for mark in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["model_cfg"]["text_cfg"]["context_length"],
        "pad_token": "<pad>",
        "unk_token": "<unknown>",
        "bos_token": "<start>",
        "eos_token": "<end>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def verifier_config() -> dict:
    return {**VERIFIER, "text_cfg": {**VERIFIER["text_cfg"], "vocab_size": len(verifier_words())}}


def tokenize_words(captions: list[str], length: int) -> torch.Tensor:
    """What the tokenizer's files do, for the batches of the training."""
    words = verifier_words()
    ids = {word: index for index, word in enumerate(words)}
    rows = torch.zeros(len(captions), length, dtype=torch.long)
    for row, caption in zip(rows, captions, strict=True):
        tokens = [ids["<start>"], *(ids[word] for word in caption.split()), ids["<end>"]]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


CHANGES = ("colour", "shape", "count", "size", "swap colours", "swap shapes", "drop", "add")


def wrong_scene(scene, rng: np.random.Generator):
    """A hard negative: one thing about the scene changed, or two groups' colours or shapes swapped (NegCLIP).

    Never the same meaning, and never one of the test set.
    """
    from dataclasses import replace

    from noise_search.demo.world import COLOURS, MAX_OBJECTS, MIRROR, RELATIONS, SHAPES, SIZES, Scene

    while True:
        groups, relation = list(scene.groups), scene.relation
        i = int(rng.integers(len(groups)))
        change = "relation" if relation and rng.random() < 0.6 else str(rng.choice(CHANGES))  # relations come hardest
        if change == "colour":
            groups[i] = replace(groups[i], colour=str(rng.choice(list(COLOURS))))
        elif change == "shape":
            groups[i] = replace(groups[i], shape=str(rng.choice(SHAPES)))
        elif change == "count":
            groups[i] = replace(groups[i], count=int(np.clip(groups[i].count + rng.choice((-1, 1)), 1, MAX_OBJECTS)))
        elif change == "size" and groups[i].size:
            groups[i] = replace(groups[i], size=next(size for size in SIZES if size != groups[i].size))
        elif change == "relation":
            relation = MIRROR[relation] if rng.random() < 0.7 else str(rng.choice(RELATIONS))
        elif change == "drop" and len(groups) == 2:
            groups, relation = [groups[i]], None
        elif change == "add" and len(groups) == 1 and groups[0].count < MAX_OBJECTS:
            extra = replace(groups[0], count=1, colour=str(rng.choice(list(COLOURS))), shape=str(rng.choice(SHAPES)))
            groups.append(extra)
        elif change.startswith("swap") and len(groups) == 2:
            name = change.split()[1][:-1]
            first, second = (getattr(group, name) for group in groups)
            groups = [replace(groups[0], **{name: second}), replace(groups[1], **{name: first})]
        kinds = [(group.colour, group.shape) for group in groups]
        if len(set(kinds)) < len(kinds) or sum(group.count for group in groups) > MAX_OBJECTS:
            continue
        if relation and max(group.count for group in groups) > 2:
            continue  # three large shapes do not fit on one side
        wrong = Scene(tuple(groups), relation)
        if wrong.meaning != scene.meaning and not wrong.held_out:
            return wrong


FLAWS = ("drop", "extra", "two colours", "mixed", "cut", "touching", "stretched", "warped", "warped")


def broken_picture(scene, rng: np.random.Generator) -> np.ndarray:
    """A picture that fails as a generator's do: a shape missing or extra, of two colours, of mixed or bent outline."""
    from noise_search.demo import world

    items = world.place(scene, rng)
    i = int(rng.integers(len(items)))
    item, flaw = items[i], str(rng.choice(FLAWS))
    half = world.SIZES[item.size] // 2
    if flaw == "drop" and len(items) > 1:
        return world.draw_items(items[:i] + items[i + 1 :])
    if flaw == "extra":
        other = world.place(world.sample_scene(rng, "single"), rng)[0]
        twin = world.Item(item.shape, item.colour, other.size, other.x, other.y)
        return world.draw_items([*items, twin if rng.random() < 0.5 else other])
    if flaw == "touching":
        x, y = (int(v + rng.choice((-1, 1)) * rng.integers(half // 2, 2 * half)) for v in (item.x, item.y))
        x, y = (int(np.clip(v, half, world.SIZE - half)) for v in (x, y))
        return world.draw_items([*items, world.Item(item.shape, item.colour, item.size, x, y)])

    picture = world.draw_items(items)
    window = (slice(item.y - half, item.y + half), slice(item.x - half, item.x + half))
    if flaw in ("mixed", "two colours"):
        shape = str(rng.choice([s for s in world.SHAPES if s != item.shape])) if flaw == "mixed" else item.shape
        colour = item.colour if flaw == "mixed" else str(rng.choice([c for c in world.COLOURS if c != item.colour]))
        changed = world.draw_items([*items[:i], world.Item(shape, colour, item.size, item.x, item.y), *items[i + 1 :]])
        if flaw == "mixed":
            return (picture + changed) / 2
        top = (slice(item.y - half, item.y), window[1])
        picture[top] = changed[top]
    elif flaw == "stretched":
        picture[window] = bend(picture[window], rng, stretch=rng.uniform(1.5, 2.2), warp=0)
    elif flaw == "warped":
        picture[window] = bend(picture[window], rng, stretch=1, warp=rng.uniform(0.12, 0.25))
    else:
        rows = (slice(0, half), slice(None), slice(half, None))[rng.integers(3)]
        columns = slice(0, half) if rng.random() < 0.5 or rows == slice(None) else slice(None)
        picture[window][rows, columns] = np.float32(world.BACKGROUND) / 255
    return picture


def bend(window: np.ndarray, rng: np.random.Generator, stretch: float, warp: float) -> np.ndarray:
    """Squeeze a square window to 1/`stretch` along one axis, and move its pixels smoothly by `warp` of its side."""
    from scipy import ndimage

    side = window.shape[0]
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).astype(np.float64)
    axis = int(rng.integers(2))
    places[axis] = (places[axis] - side / 2) * stretch + side / 2
    if warp:
        moves = rng.normal(0, warp * side, (2, 4, 4))
        places += ndimage.zoom(moves, (1, side / 4, side / 4), order=1)
    return np.stack([ndimage.map_coordinates(window[..., c], places, order=1, mode="nearest") for c in range(3)], -1)


def roughen(pictures: torch.Tensor, latent: LinearLatent, generator: torch.Generator) -> torch.Tensor:
    """Move all a little, make half look decoded (a noisy latent, back by the linear map), add noise and a tint."""

    def rand(*shape):
        return torch.rand(len(pictures), *shape, generator=generator)

    moves = torch.randint(-4, 5, (len(pictures), 2), generator=generator).tolist()  # shapes keep 4 pixels to the edge
    pictures = torch.stack([p.roll(move, (1, 2)) for p, move in zip(pictures, moves, strict=True)])
    z = latent.encode(pictures)
    z = z + torch.randn(z.shape, generator=generator) * rand(1, 1, 1) * 0.25
    out = torch.where(rand(1, 1, 1) < 0.5, latent.decode(z), pictures)
    out = out * (1 + 0.06 * (rand(1, 1, 1) - 0.5)) + 0.04 * (rand(3, 1, 1) - 0.5)
    out = out + torch.randn(out.shape, generator=generator) * rand(1, 1, 1) * 0.04
    return out.clamp(0, 1)


def train_verifier(args, latent: LinearLatent) -> None:
    """CLIP's symmetric loss over scenes, their hard negatives and broken pictures (which match no caption)."""
    import open_clip
    from noise_search.demo import world

    torch.manual_seed(args.seed + 2)
    config = verifier_config()
    model = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    torch.nn.init.normal_(model.visual.attnpool.positional_embedding, std=0.5)  # at 0.04 no relation is learnt
    model = model.to(args.device, memory_format=torch.channels_last)
    optimisers, average, step = Optimisers(model.named_parameters(), 1.5e-3, matrices=()), Average(model, 0.998), 0
    path = args.cache / "verifier.pt"
    if state := load_checkpoint(path):
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimisers.load_state_dict(state["optimisers"])
        step = state["step"]
    clock = Clock(args.minutes["verifier"], state["minutes"] if state else 0.0)
    history: list[tuple[float, float]] = []
    while not clock.over:
        rng = np.random.default_rng((args.seed, 3, step))
        torch_rng = torch.Generator().manual_seed(args.seed * 10**9 + step)
        scenes, _, pictures = batch_of_scenes(rng, 48)
        wrong = [wrong_scene(scene, rng) for scene in scenes]
        others = [world.draw_items(world.place(scene, rng)) for scene in wrong]
        broken = [broken_picture(scene, rng) for scene in scenes]
        more = [wrong_scene(scene, rng) for scene in scenes + wrong]  # captions without a picture
        pictures = torch.cat([pictures, torch.from_numpy(np.stack(others + broken)).permute(0, 3, 1, 2)])
        pictures = ((roughen(pictures, latent, torch_rng) - 0.5) / 0.5).to(memory_format=torch.channels_last)
        scenes = scenes + wrong
        captions = [str(scene) for scene in scenes + more]
        meanings = [scene.meaning for scene in scenes + more]
        with autocast(args.device):
            image = model.encode_image(pictures.to(args.device), normalize=True)
            text = model.encode_text(tokenize_words(captions, 16).to(args.device), normalize=True)
        logits = model.logit_scale.exp().clamp(max=60) * image.float() @ text.float().T
        count = len(scenes)
        same = torch.tensor([[a == b for b in meanings] for a in meanings[:count]])
        same[:, :count].fill_diagonal_(False)
        same = same.to(args.device)
        target = torch.arange(count, device=args.device)
        to_text = F.cross_entropy(logits[:count].masked_fill(same, -1e4), target)
        columns = logits[:, :count].T.clone()
        columns[:, :count] = columns[:, :count].masked_fill(same[:, :count], -1e4)
        to_image = F.cross_entropy(columns, target)
        optimisers.step(to_text + to_image, clock.rate(step))
        average.update(model, step)
        for averaged, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
            averaged.copy_(buffer)
        history.append(((to_text + to_image).item() / 2, (columns.argmax(1) == target).float().mean().item()))
        step += 1
        if step % 50 == 0:
            loss, right = np.mean(history[-50:], 0)
            print(f"verifier {step}: loss {loss:.3f}, picture found {right:.2f}, {clock.elapsed:.1f} min", flush=True)
        if step % 200 == 0 or clock.over:
            save_checkpoint(
                path,
                model=model.state_dict(),
                average=average.module.state_dict(),
                optimisers=optimisers.state_dict(),
                step=step,
                minutes=clock.elapsed,
            )
    write_verifier(args, average.module)
    if history:
        loss, right = np.mean(history[-200:], 0)
        facts = {"loss": round(float(loss), 3), "picture_found": round(float(right), 3)}
        note(args.weights, "verifier", steps=step, batch=144, minutes=round(clock.elapsed, 1), **facts)


# --------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("data", "vae", "generator", "verifier", "all"), default="all")
    parser.add_argument("--minutes", type=float, default=180, help="time allowed for the stage, or for all together")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="pictures per step of the generator")
    parser.add_argument("--depth", type=int, default=3, help="MMDiT blocks; the width is 64 times this")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "train", help="checkpoints")
    parser.add_argument("--weights", type=Path, default=ROOT / "demo" / "weights", help="where the weights go")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    args.weights.mkdir(parents=True, exist_ok=True)
    load_pack()

    stages = {"vae": train_vae, "generator": train_generator, "verifier": train_verifier}
    share = {"vae": 0.2, "generator": 0.5, "verifier": 0.3}
    alone = args.stage != "all"
    args.minutes = {name: args.minutes * (1 if alone else share[name]) for name in stages}
    latent = fit_latent(args)
    for name, train in stages.items():
        if args.stage in (name, "all"):
            print(f"{name}: {args.minutes[name]:.0f} minutes on {hardware()}")
            train(args, latent)


if __name__ == "__main__":
    main()
