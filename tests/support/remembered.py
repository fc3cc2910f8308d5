"""Searches with a store of their own, and what they found in it."""

from pathlib import Path

import comfy.model_management as mm
import torch
from any_model import AnyVae
from noise_search.host.graph.finish import finish
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.engine import Options
from noise_search.host.search import run_node as search

CANDIDATES = 3
NODES = Path(__file__).resolve().parent / "reuse_nodes"


class Grey:
    members = ("grey",)
    needs_prompt = False
    usual_range = (0.0, 1.0)

    def __init__(self, at=None):
        self.at, self.scored = at, 0

    def identity(self):
        return "grey"

    def score(self, images, prompts):
        self.scored += 1
        if self.scored == self.at:
            assert finish("node") == ["node"]
        return images.float().mean(dim=(1, 2, 3)).reshape(-1, 1)


@torch.inference_mode()
def find(store, sampling, verifier=None, vae=None, candidates=CANDIDATES, graph=None):
    return search(
        lambda: sampling, vae or AnyVae(), verifier or Grey(), 5, candidates, "a cat", 1, graph or Graph(), "positive",
        options=Options(batch_size=1), store=store,
    )  # fmt: skip


def known(*found):
    return [len(result.log.recalled) for result in found]


class Red:
    """Scores the red channel, says what it is, counts, and presses Cancel at candidate `cancel_at`."""

    members = ("red",)
    needs_prompt = False
    usual_range = (0.45, 0.55)  # tiny models make nearly the same of every noise

    def __init__(self, cancel_at=None, add=0.0):
        self.scored, self.cancel_at, self.add = 0, cancel_at, add

    def identity(self):
        return "red"

    def score(self, images, prompts):
        if self.scored == self.cancel_at:
            raise mm.InterruptProcessingException
        self.scored += 1
        return images[..., 0].float().mean(dim=(1, 2)).reshape(-1, 1) + self.add
