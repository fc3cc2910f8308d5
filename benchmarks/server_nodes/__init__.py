"""ComfyUI nodes for the benchmarks only: models with random weights, the denoiser alone, and a larger picture.

The benchmarks link this folder into the custom_nodes of the server that they start. It also times the phases of a
prompt inside that server, and answers at /noise_search_benchmark/measured with what the last prompt took.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.flux.model
import comfy.ldm.models.autoencoder
import comfy.model_management as mm
import comfy.samplers
import comfy.sd
import torch
from aiohttp import web
from comfy.ops import disable_weight_init
from server import PromptServer

import nodes

CATEGORY = "Noise Search/benchmarks"
FLUX = {  # of FLUX.1-dev; `tiny` runs the same code in seconds
    "flux": {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "vec_in_dim": 768}
    | {"context_in_dim": 4096},
    "tiny": {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "vec_in_dim": 32}
    | {"context_in_dim": 32},
}
TOKENS = {"flux": 512, "tiny": 8}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
VAE = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128} | {
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def random_weights(network: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A file's worth of random weights for a network on the "meta" device, on the CPU; drawn on the GPU if any."""
    device = mm.get_torch_device()
    generator = torch.Generator(device).manual_seed(1)
    weights = {}
    for name, tensor in network.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, device=device)
        if not name.endswith(("weight", "scale")):
            values *= 0.1
        elif tensor.ndim == 1:
            values = 1 + 0.1 * values
        else:
            values /= math.sqrt(tensor[0].numel())
        small = torch.bfloat16 if dtype == torch.float8_e4m3fn and tensor.ndim < 2 else dtype
        weights[name] = values.to(small).cpu()
    return weights


def flux(size: str, weights: str) -> Any:
    """MODEL of FLUX's architecture, as ComfyUI's loader makes it from a file."""
    network = comfy.ldm.flux.model.Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        mlp_ratio=4.0,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        dtype=torch.float32,
        device="meta",
        operations=disable_weight_init,
        **FLUX[size],
    )
    model = comfy.sd.load_diffusion_model_state_dict(random_weights(network, DTYPES[weights]))
    if model is None:
        raise ValueError("ComfyUI does not recognise the network")
    return model


def vae() -> Any:
    """VAE of FLUX's architecture, always in full size."""
    with torch.device("meta"):
        network = comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": VAE},
            decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": VAE},
        )
    made = comfy.sd.VAE(sd=random_weights(network, torch.float32))
    made.throw_exception_if_invalid()
    return made


class BenchmarkModels:
    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"size": (list(FLUX),), "weights": (list(DTYPES),)}}

    def load(self, size, weights):
        config, generator = FLUX[size], torch.Generator().manual_seed(2)
        text = torch.randn(1, TOKENS[size], config["context_in_dim"], generator=generator)
        pooled = torch.randn(1, config["vec_in_dim"], generator=generator)
        return flux(size, weights), [[text, {"pooled_output": pooled, "guidance": 3.5}]], vae()


class BenchmarkDenoiser:
    """The model calls of some sampler runs and nothing else: seconds for each run, in the UI output `seconds`."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "run", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        required = {"model": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        required |= {"latent_image": ("LATENT",), "steps": ("INT", {"max": 10000}), "cfg": ("FLOAT",)}
        required |= {"scheduler": (comfy.samplers.KSampler.SCHEDULERS,)}
        required |= {"runs": ("STRING", {"tooltip": "JSON: [[rows, steps], ...]"})}
        required |= {"repeat": ("INT", {"max": 2**31, "tooltip": "Any number; another one runs it again."})}
        return {"required": required}

    def run(self, model, positive, negative, latent_image, steps, cfg, scheduler, runs, repeat):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        stock = comfy.samplers.KSampler(
            model, steps=steps, device=model.load_device, sampler="euler", scheduler=scheduler, denoise=1.0
        )
        empty = latent_image["samples"]
        empty = empty.new_zeros(1, 16, *empty.shape[2:])
        seconds = []
        for rows, count in json.loads(runs):
            latent = empty.repeat(rows, *[1] * (empty.ndim - 1))
            sampler = comfy.samplers.KSAMPLER(functools.partial(calls_alone, seconds))
            sigmas = stock.sigmas[: count + 1]
            guider.sample(torch.randn_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=repeat)
        return {"ui": {"seconds": [json.dumps(seconds)]}}


def calls_alone(seconds, model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that calls the model as euler does and takes no step. The first call is done once more, untimed."""
    ones = x.new_ones([x.shape[0]])
    model(x, sigmas[0] * ones, **extra_args)
    synchronise(x)
    start = clock.now()
    for sigma in sigmas[:-1]:
        model(x, sigma * ones, **extra_args)
    synchronise(x)
    seconds.append(clock.now() - start)
    return x


def synchronise(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


class LargerVAE:
    """A VAE whose pictures are enlarged."""

    def __init__(self, vae, size):
        self.vae, self.size = vae, size

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def decode(self, samples):
        images = self.vae.decode(samples).movedim(-1, 1)
        return torch.nn.functional.interpolate(images, size=(self.size, self.size), mode="bilinear").movedim(1, -1)


class BenchmarkLargerVAE:
    CATEGORY, FUNCTION = CATEGORY, "wrap"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "size": ("INT", {"max": 16384})}}

    def wrap(self, vae, size):
        return (LargerVAE(vae, size),)


class BenchmarkOutOfMemory:
    """Hands on a picture; memory runs out at one of the calls since the last `measured`."""

    CATEGORY, FUNCTION = CATEGORY, "pass_on"
    RETURN_TYPES = ("IMAGE",)
    calls = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "at": ("INT", {"max": 4096, "tooltip": "Counted from 1; 0: never."})}}

    def pass_on(self, image, at):
        BenchmarkOutOfMemory.calls += 1
        if BenchmarkOutOfMemory.calls == at:
            raise torch.OutOfMemoryError("CUDA out of memory (by the benchmark)")
        return (image,)


class Clock:
    """Wall time by what a candidate is rendered for and by phase; time inside an inner phase counts there only."""

    def __init__(self) -> None:
        self.why, self.phases, self.mark = ["candidates"], [], 0.0
        self.reset("wall")

    def reset(self, kind: str) -> None:
        """kind: "wall" time or the "processor" time of the whole process."""
        self.now = time.process_time if kind == "processor" else time.perf_counter
        self.start = self.now()
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.runs: list[tuple[str, int, int]] = []  # of the sampler: why, rows, steps
        self.loads = 0  # of networks

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self.phases.append(name)
        try:
            yield
        finally:
            self._turn()
            self.phases.pop()

    @contextmanager
    def reason(self, why: str) -> Iterator[None]:
        self._turn()
        self.why.append(why)
        try:
            yield
        finally:
            self._turn()
            self.why.pop()

    def _turn(self) -> None:
        now = self.now()
        if self.phases:
            self.seconds[self.why[-1], self.phases[-1]] += now - self.mark
        self.mark = now


clock = Clock()


def timed(owner: Any, name: str, phase: str | None = None, why: str | None = None) -> None:
    """Makes a function or method count as a phase, or what happens in it as being for something else."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args, **kwargs):
        with clock.reason(why) if why else clock.phase(phase):
            return inner(*args, **kwargs)

    setattr(owner, name, outer)


def note_runs() -> None:
    inner = comfy.samplers.CFGGuider.sample

    @functools.wraps(inner)
    def outer(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        clock.runs.append((clock.why[-1], noise.shape[0], len(sigmas) - 1))
        with clock.phase("sampler"):
            return inner(self, noise, latent_image, sampler, sigmas, *args, **kwargs)

    comfy.samplers.CFGGuider.sample = outer


def note_loads() -> None:
    inner = mm.LoadedModel.model_load

    @functools.wraps(inner)
    def outer(self, *args, **kwargs):
        clock.loads += 1
        return inner(self, *args, **kwargs)

    mm.LoadedModel.model_load = outer


@functools.cache
def install() -> None:
    """Times the pack and ComfyUI. Not when this is imported: the pack may come after it."""

    def pack(module: str) -> Any:
        return next(found for name, found in sys.modules.items() if name.endswith(f"noise-search.{module}"))

    note_runs()
    note_loads()
    timed(nodes, "common_ksampler", "around the sampler")
    timed(comfy.sd.VAE, "decode", "decode")
    timed(pack("host.sampling.batching").Batches, "sample", "around the sampler")
    timed(pack("host.sampling.batching").Batches, "_probe", why="probe")
    timed(pack("host.progress").SearchProgress, "step", "progress bar")
    timed(pack("host.progress").SearchProgress, "candidate", "previews and text")
    timed(pack("host.progress").SearchProgress, "end", "previews and text")
    timed(pack("host.judging.hosted").HostedVerifier, "score", "score")
    timed(pack("search.run"), "render_winners_again", why="winner")
    timed(pack("nodes.samplers"), "run_node", "log and order")


class VRAM:
    """The highest use of the GPU since `reset`, from outside of PyTorch too, looked at every 20 ms."""

    def __init__(self) -> None:
        self.peak = 0
        self.there = torch.cuda.is_available() and not mm.cpu_mode()
        if self.there:
            threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        if self.there:
            torch.cuda.empty_cache()  # what an earlier prompt had does not count
        self.peak = 0

    def _watch(self) -> None:
        while True:
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, total - free)
            time.sleep(0.02)


vram = VRAM()


@PromptServer.instance.routes.get("/noise_search_benchmark/measured")
async def measured(request):
    """What the prompts since the last call took, and a new start with the asked `kind` of time."""
    install()
    answer = {
        "all": clock.now() - clock.start,
        "seconds": [[*key, value] for key, value in clock.seconds.items()],
        "runs": clock.runs,
        "vram": vram.peak,
        "loads": clock.loads,
        "device": mm.get_torch_device_name(mm.get_torch_device()),
    }
    clock.reset(request.query.get("kind", "wall"))
    vram.reset()
    BenchmarkOutOfMemory.calls = 0
    return web.json_response(answer)


NODE_CLASS_MAPPINGS = {
    "NoiseSearchBenchmarkModels": BenchmarkModels,
    "NoiseSearchBenchmarkDenoiser": BenchmarkDenoiser,
    "NoiseSearchBenchmarkLargerVAE": BenchmarkLargerVAE,
    "NoiseSearchBenchmarkOutOfMemory": BenchmarkOutOfMemory,
}
