"""The example workflows, and the files that some of them need."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))

NEED_FILES = {  # weights that cannot be here, below ComfyUI's models
    "Verifier Ensemble on SDXL": (
        "checkpoints/sd_xl_base_1.0.safetensors",
        "verifiers/PickScore_v1/config.json",
        "verifiers/HPS_v2.1_compressed.pt",
        "clip_vision/clip-vit-large-patch14.safetensors",
        "aesthetic/sac+logos+ava1-l14-linearMSE.pth",
    )
}
