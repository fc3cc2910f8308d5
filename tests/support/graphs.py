"""API-format workflows of the demo model, for the tests that talk to a real server."""

from __future__ import annotations

from typing import Any

PROMPT = "a red circle above a blue square"
STEPS, CFG, SAMPLER, SCHEDULER = 8, 4.0, "euler", "normal"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def base(text: str = PROMPT, batch: int = 1, size: int = 128) -> dict[str, Any]:
    """Model, both conditionings and an empty latent: nodes `demo`, `positive`, `negative`, `latent`."""
    return {
        "demo": node("NoiseSearchDemoCheckpoint"),
        "positive": node("CLIPTextEncode", clip=["demo", 1], text=text),
        "negative": node("CLIPTextEncode", clip=["demo", 1], text=""),
        "latent": node("EmptySD3LatentImage", width=size, height=size, batch_size=batch),
    }


def schedule(steps: int = STEPS, denoise: float = 1.0) -> dict[str, Any]:
    """Nodes `guider`, `sampler` and `sigmas` for the custom samplers."""
    return {
        "guider": node("CFGGuider", model=["demo", 0], positive=["positive", 0], negative=["negative", 0], cfg=CFG),
        "sampler": node("KSamplerSelect", sampler_name=SAMPLER),
        "sigmas": node("BasicScheduler", model=["demo", 0], scheduler=SCHEDULER, steps=steps, denoise=denoise),
    }


def sampling(seed: Any, steps: int = STEPS, denoise: float = 1.0) -> dict[str, Any]:
    """The inputs that KSampler and Search KSampler share."""
    return {
        "model": ["demo", 0],
        "seed": seed,
        "steps": steps,
        "cfg": CFG,
        "sampler_name": SAMPLER,
        "scheduler": SCHEDULER,
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
        "denoise": denoise,
    }


def save(source: list[Any]) -> dict[str, Any]:
    return node("SaveImage", images=source, filename_prefix="test")


def searching(candidates: int, prompt: str = "", top_k: int = 1) -> dict[str, Any]:
    """The inputs that both search nodes add to their stock node's."""
    return {
        "vae": ["demo", 2],
        "verifier": ["demo", 3],
        "candidates": candidates,
        "prompt": prompt,
        "top_k": top_k,
    }


def fused(seed: int = 16, candidates: int = 4, prompt: str = "", top_k: int = 1, **sampler: Any) -> dict[str, Any]:
    """A search by Search KSampler, its winner saved: nodes `search` and `save`."""
    search = node("NoiseSearchKSampler", **sampling(seed, **sampler), **searching(candidates, prompt, top_k))
    return base() | {"search": search, "save": save(["search", 1])}


def fused_advanced(seed: int = 16, candidates: int = 4, **sampler: Any) -> dict[str, Any]:
    """The same by Search Sampler (Advanced)."""
    search = node(
        "NoiseSearchSamplerAdvanced",
        guider=["guider", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
        seed=seed,
        **searching(candidates),
    )
    return base() | schedule(**sampler) | {"search": search, "save": save(["search", 1])}


def native(seed: int = 16, candidates: int = 4, k: int = 1) -> dict[str, Any]:
    """The same search in the graph, with the stock KSampler: nodes `noises`, `sample`, `decode`, `score`, `best`."""
    return base() | {
        "noises": node("NoiseSearchCandidates", seed=seed, count=candidates, angle=18.0),
        "sample": node("KSampler", **sampling(["noises", 1])),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "score": node("NoiseSearchVerifierScore", image=["decode", 0], verifier=["demo", 3], prompt=""),
        "best": node("NoiseSearchBestOfN", scores=["score", 0], k=k, image=["decode", 0], latent=["sample", 0]),
        "save": save(["best", 0]),
    }


def native_advanced(seed: int = 16, candidates: int = 4) -> dict[str, Any]:
    """The same search in the graph, with the stock SamplerCustomAdvanced."""
    sample = node(
        "SamplerCustomAdvanced",
        noise=["noises", 0],
        guider=["guider", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
    )
    return native(seed, candidates) | schedule() | {"sample": sample}


def stock(seed: int = 16, **sampler: Any) -> dict[str, Any]:
    """The stock KSampler: nodes `sample`, `decode` and `save`."""
    return base() | {
        "sample": node("KSampler", **sampling(seed, **sampler)),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "save": save(["decode", 0]),
    }


def stock_advanced(seed: int = 16, **sampler: Any) -> dict[str, Any]:
    """The stock SamplerCustomAdvanced."""
    sample = native_advanced()["sample"]
    sample["inputs"]["noise"] = ["noise", 0]
    nodes = {"noise": node("RandomNoise", noise_seed=seed), "sample": sample}
    return stock(seed) | schedule(**sampler) | nodes
