"""The forward process of a diffusion model: back up in noise."""

from __future__ import annotations

import math


def fresh_noise(alpha: float, sigma: float, alpha_to: float, sigma_to: float) -> float:
    """How much of the noise of a level is fresh when a state goes back up to it.

    The forward process is x = alpha * x0 + sigma * noise; from (alpha, sigma) up to (alpha_to, sigma_to):

        x_to = (alpha_to / alpha) * x + sigma_to * share * fresh
        share = sqrt(1 - (alpha_to * sigma / (alpha * sigma_to))^2)

    so that x_to has the level's own mean and variance. Flow models have alpha = 1 - sigma, epsilon and v models in
    ComfyUI's scaling alpha = 1. Returns `share`, 0 (the same level) to 1. Raises ValueError where the level is lower.
    """
    if not (alpha > 0 and alpha_to >= 0 and sigma_to > 0):
        raise ValueError(f"there is no way from (alpha {alpha}, sigma {sigma}) to (alpha {alpha_to}, sigma {sigma_to})")
    kept = alpha_to * sigma / (alpha * sigma_to)
    if not 0 <= kept <= 1:
        raise ValueError(f"noise level {sigma_to} is below {sigma}")
    return math.sqrt(1 - kept * kept)
