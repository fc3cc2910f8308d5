"""Noise Search: better images from diffusion models by searching the initial noise."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import NoiseSearchExtension  # here, so that importing the package needs no ComfyUI

    return NoiseSearchExtension()
