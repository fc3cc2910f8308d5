"""A verifier that compares, as it comes through the VERIFIER socket."""

import torch
from torch.nn.functional import adaptive_avg_pool2d


class NearPictures:
    """Nearness to a set of pictures in coarse pixels: which of two is nearer to it on average. asked: how often."""

    members, needs_prompt, question = ("near the set",), False, "Which of the two is nearer to the set?"

    def __init__(self, count: int = 4, seed: int = 5):
        self.set = torch.rand(count, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.asked = 0

    def identity(self) -> str:
        return f"near {self.set.sum():.6f}"

    def look(self, images, prompt):
        return adaptive_avg_pool2d(images.float().cpu().mean(dim=0).movedim(-1, 0), 8).flatten()

    def distance(self, look) -> float:
        return float((self.set - look).norm(dim=1).double().mean())

    def compare(self, first, second, prompt):
        self.asked += 1
        apart = self.distance(second) - self.distance(first)
        return 0.5 + 0.5 * (apart > 0) - 0.5 * (apart < 0)
