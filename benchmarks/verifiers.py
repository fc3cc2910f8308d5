"""Every verifier against an independent computation, what half precision changes, and what towers of real size cost.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/verifiers.py            # all tables; about 5 minutes on 2 cores
    python benchmarks/verifiers.py --only parity precision                  # some of them
    python benchmarks/verifiers.py --page                                   # all, and docs/verifiers.md

Parity and precision are on the tiny checkpoints of the tests: random weights in the published files' layouts. Towers
are built from their configurations with random weights, each in a process of its own, in fp32, one image at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _pack
import numpy as np
import torch

sys.path.append(str(_pack.ROOT / "tests" / "support"))  # the tiny checkpoints

PAGE = _pack.ROOT / "docs" / "verifiers.md"
SECTIONS = ("parity", "precision", "towers")
PROMPTS = ["a red circle above a blue square", "two small green triangles", "", "a small cat " * 200]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SIDE = 1024  # of the images that towers are timed with
HUGE_SIDE = 8192


@dataclass(frozen=True)
class Case:
    """A verifier on a tiny checkpoint. make: in a dtype; expected: what `against` gives for the pictures and prompts,
    in the verifier's own unit."""

    name: str
    against: str
    make: Callable[[torch.dtype], Any]
    expected: np.ndarray
    pictures: torch.Tensor
    prompts: Sequence[str]


# Parity


def cosines(image: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    import tiny_clips

    return 100 * tiny_clips.cosine(image, text)


def clip_score_open_clip(folder: Path) -> Case:
    import open_clip
    import tiny_clips
    from noise_search.verifiers.clip import CLIPScore

    tiny_clips.save_open_clip_folder(folder)
    pictures = tiny_clips.images(4)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = torch.stack([preprocess(pil(picture)) for picture in pictures])
    expected = cosines(model.encode_image(pixels), model.encode_text(tokenize(PROMPTS)))
    make = lambda dtype: CLIPScore.load(folder, dtype=dtype)  # noqa: E731
    return Case(
        "CLIP Score (open_clip)", "open_clip's model, PIL pipeline, tokenizer", make, expected, pictures, PROMPTS
    )


def clip_score_comfyui(folder: Path) -> Case | None:
    """ComfyUI's own CLIP on the same weights, renamed by ComfyUI."""
    if "COMFYUI_PATH" not in os.environ:
        return None
    use_comfyui()
    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops
    import comfy.utils
    import tiny_clips
    from noise_search.verifiers.clip import CLIPScore

    model = tiny_clips.save_open_clip_folder(folder, embed_dim=32)
    pictures = tiny_clips.images(4)
    shared = {"num_hidden_layers": 2, "hidden_act": "gelu", "num_attention_heads": 2}
    vision = shared | {"hidden_size": 64, "intermediate_size": 256, "image_size": 32, "patch_size": 8}
    vision |= {"num_channels": 3, "projection_dim": 32, "model_type": "clip_vision_model"}
    text = shared | {"hidden_size": 32, "intermediate_size": 128, "max_position_embeddings": 77, "eos_token_id": 49407}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    rest = {key: value for key, value in state.items() if not key.startswith("visual.")}
    image_tower = comfy.clip_model.CLIPVisionModelProjection(vision, torch.float32, "cpu", comfy.ops.manual_cast)
    text_tower = comfy.clip_model.CLIPTextModel(text, torch.float32, "cpu", comfy.ops.manual_cast)
    image_tower.load_state_dict(comfy.clip_vision.convert_to_transformers(visual, "visual."), strict=False)
    text_tower.load_state_dict(comfy.utils.clip_text_transformers_convert(rest, "", ""), strict=False)
    tokenizer = tiny_clips.stock_tokenizer()
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    pixels = comfy.clip_vision.clip_preprocess(pictures, size=32, crop=True)
    expected = cosines(image_tower(pixels)[2], text_tower(ids)[2])
    make = lambda dtype: CLIPScore.load(folder, dtype=dtype)  # noqa: E731
    return Case("CLIP Score (open_clip)", "ComfyUI's CLIP and tokenizer", make, expected, pictures, PROMPTS)


def clip_score_siglip(folder: Path) -> Case:
    import tiny_clips
    import transformers
    from noise_search.verifiers.clip import CLIPScore

    model = tiny_clips.save_hf_siglip_folder(folder)
    pictures, prompts = tiny_clips.images(4), ["a red circle", "two small blue triangles", "a", "green square above"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    pixels = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    logits = model(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal()
    expected = (100 * (logits - model.logit_bias) / model.logit_scale.exp()).double().numpy()
    make = lambda dtype: CLIPScore.load(folder, dtype=dtype)  # noqa: E731
    return Case("CLIP Score (SigLIP)", "transformers' SiglipModel and processor", make, expected, pictures, prompts)


def pickscore(folder: Path) -> Case:
    import tiny_clips
    import transformers
    from noise_search.verifiers.pickscore import PickScore

    model = tiny_clips.hf_clip_model("gelu")
    model.logit_scale.fill_(4.6052)
    tiny_clips.save_hf_clip_folder(folder, model)
    pictures = tiny_clips.images(4)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    expected = model(pixel_values=pixels, **tokens).logits_per_image.diagonal().double().numpy()
    make = lambda dtype: PickScore.load(folder, dtype=dtype)  # noqa: E731
    return Case("PickScore", "transformers' CLIPModel logits and processor", make, expected, pictures, PROMPTS)


def hps(folder: Path) -> Case:
    import open_clip
    import tiny_clips
    from noise_search.verifiers.hps import HPS

    model = tiny_clips.save_open_clip_folder(folder)
    pictures = tiny_clips.images(4, 75, 41)
    pixels = torch.stack([letterboxed(picture) for picture in pictures])
    image, text, _ = model(pixels, open_clip.tokenize(PROMPTS))
    expected = 100 * (image.double() @ text.double().T).diagonal().numpy()
    make = lambda dtype: HPS.load(folder, dtype=dtype)  # noqa: E731
    return Case("HPS", "open_clip's forward on torchvision's letterbox", make, expected, pictures, PROMPTS)


def letterboxed(picture: torch.Tensor, size: int = 32) -> torch.Tensor:
    """The longer side to `size` by bicubic resize of the float tensor, black around, then normalised."""
    import torchvision.transforms.functional as F

    pixels = picture.movedim(-1, 0)
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    new = [max(1, round(height * scale)), max(1, round(width * scale))]
    pixels = F.resize(pixels, new, F.InterpolationMode.BICUBIC, antialias=True)
    down, across = size - new[0], size - new[1]
    pixels = F.pad(pixels, [across // 2, down // 2, across - across // 2, down - down // 2], fill=0)
    return F.normalize(pixels, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 8}


def aesthetic(folder: Path, layout: str) -> Case:
    """LAION's heads on the projected embedding of a transformers CLIP tower; the formula in NumPy, float64."""
    import tiny_clips
    import transformers
    from noise_search.verifiers.aesthetic import Aesthetic, ImageTower
    from noise_search.verifiers.preprocess import Preprocess

    config = transformers.CLIPVisionConfig(**VISION, hidden_act="quick_gelu", projection_dim=24)
    tower = tiny_clips.randomise(transformers.CLIPVisionModelWithProjection(config)).requires_grad_(False)
    state = tiny_clips.save_head(folder / "head.pth", layout, 24)
    pictures = tiny_clips.images(4)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    expected = by_formula(state, layout, tower(pixel_values=pixels).image_embeds)

    def make(dtype: torch.dtype) -> Any:
        module = transformers.CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
        module.load_state_dict(tower.state_dict())
        module.to(dtype)
        encode = lambda pixels: module(pixel_values=pixels.to(dtype)).image_embeds  # noqa: E731
        made = ImageTower(module, encode, lambda: torch.device("cpu"), Preprocess((32, 32)), width=24)
        return Aesthetic.load(folder / "head.pth", made)

    against = "transformers' CLIP tower and processor, the layers in NumPy"
    return Case(f"Aesthetic ({layout})", against, make, expected, pictures, [""] * 4)


def aesthetic_siglip(folder: Path) -> Case:
    import tiny_clips
    import transformers
    from noise_search.verifiers.aesthetic import POOLING, Aesthetic, ImageTower
    from noise_search.verifiers.preprocess import Preprocess

    config = transformers.SiglipVisionConfig(**VISION, hidden_act="gelu_pytorch_tanh")
    tower = tiny_clips.randomise(transformers.SiglipVisionModel(config)).requires_grad_(False)
    state = tiny_clips.save_head(folder / "head.pth", "v2.5", 64)
    names = {f"vision_model.{key.removeprefix('vision_model.')}": value for key, value in tower.state_dict().items()}
    pooling = {key.removeprefix(POOLING): value for key, value in names.items() if key.startswith(POOLING)}
    squash = Preprocess((32, 32), "squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    pictures = tiny_clips.images(4)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    pixels = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    expected = by_formula(state, "v2.5", tower(pixel_values=pixels).pooler_output)

    def make(dtype: torch.dtype) -> Any:
        module = transformers.SiglipVisionModel(config).eval().requires_grad_(False)
        module.load_state_dict(tower.state_dict())
        module.to(dtype)
        encode = lambda pixels: module(pixel_values=pixels.to(dtype)).last_hidden_state  # noqa: E731
        kept = {key: value.to(dtype) for key, value in pooling.items()}
        made = ImageTower(module, encode, lambda: torch.device("cpu"), squash, 64, True, 4, kept)
        return Aesthetic.load(folder / "head.pth", made)

    against = "transformers' SigLIP pooled output, the layers in NumPy"
    return Case("Aesthetic (v2.5)", against, make, expected, pictures, [""] * 4)


def by_formula(state: dict[str, torch.Tensor], layout: str, embeddings: torch.Tensor) -> np.ndarray:
    """The head's layers one after the other on unit embeddings, in float64."""
    import tiny_clips

    x = np.asarray(embeddings, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for index, name in enumerate(tiny_clips.HEADS[layout][0]):
        x = np.maximum(x, 0) if index and layout == "v2 relu" else x
        x = x @ state[f"{name}weight"].double().numpy().T + state[f"{name}bias"].double().numpy()
    return x[:, 0]


def imagereward(folder: Path) -> Case:
    import tiny_clips
    import tiny_imagereward as tiny
    from noise_search.verifiers.imagereward import ImageReward
    from noise_search.verifiers.preprocess import CLIP_MEAN, CLIP_STD

    state = tiny.state_dict()
    path = tiny.save(folder, state)
    pictures, prompts = tiny_clips.images(4), PROMPTS
    pixels = ((pictures - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).movedim(-1, 1)
    tokenize = ImageReward.load(path).encoder.tokenize
    ids = [tiny.padded(tokenize(prompt)[0][0].tolist()) for prompt in prompts]
    expected = np.array([tiny.reward(state, p[None], i) for p, i in zip(pixels, ids, strict=True)])
    make = lambda dtype: ImageReward.load(path, dtype=dtype)  # noqa: E731
    return Case("ImageReward", "the formula in plain torch, float64", make, expected, pictures, prompts)


def vqa_score(folder: Path) -> Case:
    import tiny_clips
    import tiny_vlms
    from noise_search.verifiers.transformers_vlm import FolderVLM
    from noise_search.verifiers.vlm import VQAScore, picture

    model, processor = tiny_vlms.save_vlm(folder / "tiny")
    pictures, prompts = tiny_clips.images(4), ["a red circle", "two squares", "a cat", "nothing"]
    expected = []
    for image, prompt in zip(pictures, prompts, strict=True):
        text = f'user: <image>Does this figure show "{prompt}"? Please answer yes or no.\nassistant:'
        logits = model(**processor(images=[picture(image)], text=[text], return_tensors="pt")).logits[0, -1].double()
        p = logits.softmax(dim=-1)
        yes, no = (p[tiny_vlms.ids(processor, words)].sum() for words in (tiny_vlms.YES, tiny_vlms.NO))
        expected.append(float(yes.log() - no.log()))
    make = lambda dtype: VQAScore(FolderVLM.load(folder / "tiny", dtype))  # noqa: E731
    against = "raw logits of the transformers model, float64"
    return Case("VQA Score", against, make, np.array(expected), pictures, prompts)


def vqa_score_clip(folder: Path) -> Case | None:
    """ComfyUI's Qwen3-VL, whose logits are read while it generates."""
    if "COMFYUI_PATH" not in os.environ:
        return None
    use_comfyui()
    import pytest
    import tiny_clips
    import tiny_encoders
    from noise_search.host.judging.vlm import ClipVLM
    from noise_search.verifiers.vlm import VQAScore

    if not Path(os.environ["COMFYUI_PATH"], "comfy", "text_encoders", "qwen3vl.py").exists():
        return None
    with pytest.MonkeyPatch.context() as patch:
        clip = tiny_encoders.made_to_answer(tiny_encoders.qwen_clip(patch))
    judge = VQAScore(ClipVLM(clip))
    pictures, prompts = tiny_clips.images(4, 64, 96), ["a red circle", "two squares", "a cat", "nothing"]
    expected = [
        tiny_encoders.log_odds_by_transformers(clip, image, judge.ask_about(prompt))
        for image, prompt in zip(pictures, prompts, strict=True)
    ]

    def make(dtype: torch.dtype) -> VQAScore:
        with torch.inference_mode(False), torch.no_grad():
            clip.cond_stage_model.to(dtype)
        return judge

    return Case(
        "VQA Score (CLIP)", "transformers' Qwen3-VL, same weights, float64", make, np.array(expected), pictures, prompts
    )


CASES: list[Callable[[Path], Case | None]] = [
    clip_score_open_clip,
    clip_score_comfyui,
    clip_score_siglip,
    pickscore,
    hps,
    lambda folder: aesthetic(folder, "v1"),
    lambda folder: aesthetic(folder, "v2"),
    lambda folder: aesthetic(folder, "v2 relu"),
    aesthetic_siglip,
    imagereward,
    vqa_score,
    vqa_score_clip,
]


def pil(picture: torch.Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))


def use_comfyui() -> None:
    if os.environ["COMFYUI_PATH"] not in sys.path:
        sys.path.insert(0, os.environ["COMFYUI_PATH"])
        argv, sys.argv = sys.argv, sys.argv[:1]
        from comfy.cli_args import args

        sys.argv = argv
        args.cpu = True  # before comfy.model_management is imported


@torch.no_grad()
def parity(case: Case) -> dict[str, Any]:
    found = case.make(torch.float32).score(case.pictures, case.prompts)[:, 0].double().numpy()
    return {
        "verifier": case.name,
        "against": case.against,
        "difference": float(np.abs(found - case.expected).max()),
        "largest": float(np.abs(case.expected).max()),
    }


@torch.no_grad()
def precision(case: Case) -> dict[str, Any]:
    """What half precision changes in the scores of 16 images of one prompt."""
    import tiny_clips
    from noise_search.search.aggregate import spearman

    pictures, prompts = tiny_clips.images(16, 40, 50, seed=5), ["a red circle"] * 16
    exact = case.make(torch.float32).score(pictures, prompts)[:, 0].double()
    row: dict[str, Any] = {"verifier": case.name, "spread": float(exact.std())}
    for name, dtype in DTYPES.items():
        half = case.make(dtype).score(pictures, prompts)[:, 0].double()
        row[name] = float((half - exact).abs().max())
        row[f"{name} ranks"] = spearman(half, exact)
    return row


# Towers

TOWERS = ("ViT-B-32", "ViT-L-14", "ViT-H-14", "SigLIP so400m/14, 384")


def build(name: str) -> Any:
    """CLIP Score on towers of that size with random weights."""
    from noise_search.verifiers.clip import CLIPScore
    from noise_search.verifiers.clip_files import DualEncoder
    from noise_search.verifiers.preprocess import Preprocess

    if name.startswith("SigLIP"):
        import transformers

        shared = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        config = transformers.SiglipConfig(
            vision_config={**shared, "image_size": 384, "patch_size": 14},
            text_config={**shared, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": 1152},
        )
        model = transformers.SiglipModel(config)
        pooled = lambda out: out if isinstance(out, torch.Tensor) else out.pooler_output  # noqa: E731
        image = lambda pixels: pooled(model.get_image_features(pixel_values=pixels))  # noqa: E731
        text = lambda ids: pooled(model.get_text_features(input_ids=ids))  # noqa: E731
        size, length, mode, vision = 384, 64, "squash", model.vision_model
        tokenize = lambda prompt: (torch.randint(2, 32000, (1, 64)), 64)  # noqa: E731
    else:
        import open_clip

        model = open_clip.create_model(name)  # random weights: no name of published ones
        image, text, size, length, mode, vision = (
            model.encode_image,
            model.encode_text,
            224,
            77,
            "shortest",
            model.visual,
        )
        tokenize = lambda prompt: (open_clip.tokenize([prompt]), 12)  # noqa: E731
    encoder = DualEncoder(
        module=model,
        encode_image=image,
        encode_text=text,
        tokenize=tokenize,
        preprocess=Preprocess((size, size), mode),
        context_length=length,
        architecture="",
        sigmoid=False,
        scale=100.0,
        files=(),
    )
    return CLIPScore(encoder, name), vision


def tower(name: str, side: int) -> dict[str, Any]:
    """Milliseconds and memory of one tower; run in a process of its own."""
    verifier, vision = build(name)
    prompt = "a red circle above a blue square"
    with torch.inference_mode():
        verifier.prompt_features(prompt)  # once per search
        image = torch.rand(1, side, side, 3)
        resident = reset_peak()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            verifier.score(image, [prompt])
            seconds.append(time.perf_counter() - start)
    return {
        "tower": name,
        "side": side,
        "image_parameters": sum(p.numel() for p in vision.parameters()),
        "parameters": sum(p.numel() for p in verifier.module.parameters()),
        "milliseconds": 1000 * min(seconds),
        "megabytes": (peak() - resident) / 2**20,
    }


def reset_peak() -> int:
    """Forgets the peak of resident memory so far, where Linux lets us; returns what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The peak of resident memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def towers() -> list[dict[str, Any]]:
    rows = []
    for name, side in [*((name, SIDE) for name in TOWERS), (TOWERS[0], HUGE_SIDE)]:
        command = [sys.executable, __file__, "--tower", name, "--side", str(side)]
        print(f"{name} at {side}x{side} ...", file=sys.stderr)
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return rows


# Tables


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def tables(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    out = {}
    if rows := found.get("parity"):
        body = [[r["verifier"], r["against"], f"{r['difference']:.1e}", f"{r['largest']:.3g}"] for r in rows]
        out["parity"] = markdown(["verifier", "against", "largest difference", "largest score"], body)
    if rows := found.get("precision"):
        body = [
            [r["verifier"], f"{r['spread']:.3g}"]
            + [cell for name in DTYPES for cell in (f"{r[name]:.2g}", f"{r[f'{name} ranks']:.3f}")]
            for r in rows
        ]
        heads = [head for name in DTYPES for head in (f"{name}: largest difference", f"{name}: rank correlation")]
        out["precision"] = markdown(["verifier", "spread of scores (standard deviation)", *heads], body)
    if rows := found.get("towers"):
        body = [
            [
                r["tower"],
                f"{r['side']}x{r['side']}",
                f"{r['image_parameters'] / 1e6:.0f}",
                f"{r['parameters'] * 4 / 1e9:.2f}",
                f"{r['milliseconds']:,.0f}",
                f"{r['megabytes']:,.0f}",
            ]
            for r in rows
        ]
        head = ["towers", "image", "image tower, millions of weights", "both towers in fp32, GB", "ms per image"]
        out["towers"] = markdown([*head, "memory beside weights and image, MB"], body)
    return out


PAGE_TEXT = """# Verifiers in figures

Made by `benchmarks/verifiers.py` (torch {torch}, transformers {transformers}, open_clip {open_clip}; 2 CPU cores).

## What each reads

{files}

## The same score as elsewhere

{about_parity}

{parity}

What the authors' own packages give on the same weights is in [verifiers-authors.md](verifiers-authors.md).

## Half precision

{about_precision}

{precision}

## Time and memory

{about_towers}

{towers}
"""
ABOUT = {
    "about_parity": "Each verifier on a tiny checkpoint with random weights, in the layout of the published files, "
    "against a computation that shares no code with it; fp32, in the verifier's own unit. CLIP Score and HPS are "
    "cosines times 100 and PickScore about so, so 1e-5 there is 1e-7 of a cosine. VLM Grader reads numbers out of a "
    "text and has nothing to compare.",
    "about_precision": "The same checkpoints, 16 images of one prompt. Only the towers are in half precision: "
    "similarities and heads are fp32 always. (VQA Score has no head of its own; with a language model's last layer "
    "alone in fp32 the differences stayed the same.) The rank correlation is between the orders of the 16 images. bf16 "
    "has an eighth of fp16's digits, so prefer fp16 where candidates are close. (The tiny VQA model in a folder hardly "
    "tells the images apart, as its spread shows. For VQA Score from a CLIP only the weights are in half precision: "
    "on a CPU ComfyUI computes in fp32.)",
    "about_towers": "Random weights in the sizes of the published models, fp32, one image at a time, resizing "
    "included. Other programs used the cores as well (several at a time), so the time is the fastest of three and an "
    "upper bound. A prompt is read once per search. PickScore and HPS are ViT-H-14, LAION's aesthetic heads use the "
    "image tower of ViT-L-14, V2.5 that of SigLIP so400m. In fp16 the weights are half as large.",
}


def versions() -> dict[str, str]:
    import open_clip
    import transformers

    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "open_clip": open_clip.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--page", action="store_true", help="write docs/verifiers.md (needs all tables)")
    parser.add_argument("--tower", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=SIDE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tower:
        print(json.dumps(tower(options.tower, options.side)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        cases = []
        if {"parity", "precision"} & set(options.only):
            for number, make in enumerate(CASES):
                folder = Path(place) / str(number)
                folder.mkdir()
                cases += filter(None, [make(folder)])
        if "parity" in options.only:
            found["parity"] = [parity(case) for case in cases]
        if "precision" in options.only:
            found["precision"] = [precision(case) for case in {case.name: case for case in cases}.values()]
    if "towers" in options.only:
        found["towers"] = towers()
    texts = tables(found)
    print("\n\n".join(texts.values()))
    if options.page:
        from noise_search.verifiers import registry

        PAGE.write_text(PAGE_TEXT.format(**versions(), **ABOUT, **texts, files=registry.files_table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
