"""Every verifier of the registry on tiny weights."""

import weakref

import tiny_clips
import tiny_imagereward
import tiny_vlms
import torch
import vlm_server
from noise_search.verifiers import registry

PROMPTS = ["a red circle", "two small squares above a circle", "a red circle"]


def tiny_clip_score(folder):
    tiny_clips.save_open_clip_folder(folder)
    return registry.get("clip_score").load(folder)


def tiny_pickscore(folder):
    tiny_clips.save_hf_clip_folder(folder)
    return registry.get("pickscore").load(folder)


def tiny_hps(folder):
    tiny_clips.save_open_clip_folder(folder)
    return registry.get("hps").load(folder)


def tiny_reward(folder):
    return registry.get("imagereward").load(tiny_imagereward.save(folder))


def tiny_aesthetic(folder):
    from noise_search.verifiers.aesthetic import ImageTower
    from noise_search.verifiers.preprocess import Preprocess

    model = tiny_clips.open_clip_model().requires_grad_(False)
    tower = ImageTower(model, model.encode_image, lambda: torch.device("cpu"), Preprocess((32, 32)), width=24)
    tiny_clips.save_head(folder / "head.pth", "v2", 24)
    return registry.get("aesthetic").load(folder / "head.pth", tower)


def tiny_vqa_score(folder):
    from noise_search.verifiers.transformers_vlm import FolderVLM

    tiny_vlms.save_vlm(folder / "tiny")
    return registry.get("vqa_score")(FolderVLM.load(folder / "tiny"))


def tiny_vlm_grader(folder):
    """No model this size can grade: a server that grades by brightness stands in for one."""
    from noise_search.verifiers.openai_endpoint import Endpoint

    server = vlm_server.VLMServer()
    grader = registry.get("vlm_grader")(Endpoint(server.url, "brightness"))
    weakref.finalize(grader, server.close)
    return grader


TINY = {
    "aesthetic": tiny_aesthetic,
    "clip_score": tiny_clip_score,
    "hps": tiny_hps,
    "imagereward": tiny_reward,
    "pickscore": tiny_pickscore,
    "vlm_grader": tiny_vlm_grader,
    "vqa_score": tiny_vqa_score,
}
