"""One progress bar, one line of text and one preview for a whole search."""

from __future__ import annotations

import sys
from typing import Any

import comfy.utils
import latent_preview
import torch
from PIL import Image
from tqdm.auto import tqdm

PREVIEW_SIZE = 512


def to_pil(image: torch.Tensor) -> Image.Image:
    """[H, W, 3 or more] float in 0..1 -> a Pillow image."""
    pixels = image[..., :3].detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.numpy())


def send_text(text: str, node_id: str | None) -> None:
    """Shows a line of text on the node, where there is a server and a node to show it on."""
    module = sys.modules.get("server")  # importing it would start half a server where there is none
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


class SearchProgress:
    """Fills once over `candidates` runs of `steps` steps. Shows the running latent until there is a best image."""

    def __init__(self, model: Any, candidates: int, steps: int, node_id: str | None = None):
        self.steps = max(steps, 1)
        self.candidates = candidates
        self.node_id = node_id
        self.done = 0
        self.value = 0
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.has_best = False
        self.bar = comfy.utils.ProgressBar(candidates * self.steps)
        self.console = tqdm(
            total=candidates * self.steps, desc="Noise Search", disable=not comfy.utils.PROGRESS_BAR_ENABLED
        )

    def step(self, step: int, x0: Any, x: Any, total_steps: int) -> None:
        """The sampler's callback."""
        preview = None
        if self.previewer is not None and not self.has_best:
            x0 = x0.tensors[0] if x0.is_nested else x0
            preview = self.previewer.decode_latent_to_preview_image("JPEG", x0)
        self._show(self.done * self.steps + min(step + 1, self.steps), preview)

    def candidate(self, text: str, best: torch.Tensor | None) -> None:
        """One candidate is scored; `best` [H, W, 3] is the best image so far where that has changed."""
        self.done = min(self.done + 1, self.candidates)
        preview = None
        if best is not None:
            self.has_best = True
            # ComfyUI would enlarge a smaller one.
            preview = ("JPEG", to_pil(best), min(PREVIEW_SIZE, max(best.shape[:2])))
        self._show(self.done * self.steps, preview)
        self.console.set_postfix_str(text)
        send_text(text, self.node_id)

    def close(self) -> None:
        self.console.close()

    def _show(self, value: int, preview: Any) -> None:
        self.value = max(self.value, value)
        self.console.update(self.value - self.console.n)
        self.bar.update_absolute(self.value, preview=preview)
