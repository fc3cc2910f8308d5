"""What `host/known.py` says of ComfyUI, beside the ComfyUI at hand: a new one is noticed, and names are still there."""

import asyncio
import importlib
import os
from pathlib import Path

import pytest
import torch
from noise_search.host import known
from sampling_nodes import sampling_nodes

KINDS = {name: set(getattr(known, name)) for name in ("ROWS", "MIXES", "TRIED", "SKIPS", "GUIDES", "ELSEWHERE")}


def complaints(found):
    """What is to be done about the nodes of a ComfyUI, a sentence for each."""
    classified = set().union(*KINDS.values())
    for node_id, one in sorted(found.items()):
        where = f"ComfyUI's node {node_id} ({one.file}.py)"
        if node_id not in classified:
            yield (
                f"{where} changes how a model is sampled ({', '.join(sorted(one.ways))}), and host/known.py does not "
                f"say what that does to the items of a batch. Read its source and enter it under one of "
                f"{', '.join(KINDS)}: what each means is said there."
            )
        if one.assigns and node_id not in known.LEAVE_BEHIND:
            yield (
                f"{where} has a function that assigns names around itself, so that something outlasts a run. Enter it "
                "under LEAVE_BEHIND in host/known.py, and see that the store's key is the same after a search."
            )


@pytest.fixture(scope="module")
def host():
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set")
    return sampling_nodes(Path(os.environ["COMFYUI_PATH"]))


def test_every_node_that_changes_sampling_is_classified(host):
    assert list(complaints(host)) == []
    assert len(host) > 50 and {"CFGGuider", "EasyCache", "Mahiro", "HyperTile", "SkipLayerGuidanceSD3"} <= set(host)


def test_no_node_is_classified_twice_and_what_leaves_something_behind_is_classified():
    assert sum(map(len, KINDS.values())) == len(set().union(*KINDS.values()))
    assert set().union(*KINDS.values()) >= known.LEAVE_BEHIND


def test_what_mixes_is_in_the_module_that_is_named(host):
    """That is how a function on a model is known for what it is."""
    mixing = {node_id: one.file for node_id, one in host.items() if node_id in known.MIXES}
    assert len(mixing) == len(known.MIXES)
    assert {node_id: known.MIXES[node_id][0] for node_id in mixing} == mixing | {"SkipLayerGuidanceSD3": "nodes_slg"}
    others = {node_id for node_id, one in host.items() if one.file in known.MIXING} - set(mixing)
    assert others == set(), f"{others} would count as mixing with the others of the module"


def test_every_format_of_latents_that_are_no_pictures_is_known():
    formats = pytest.importorskip("comfy.latent_formats")
    classes = [one for one in vars(formats).values() if isinstance(one, type) and issubclass(one, formats.LatentFormat)]
    sounds = {one.__name__ for one in classes if getattr(one, "latent_dimensions", 2) == 1 or "Audio" in one.__name__}
    sounds |= {one.__name__ for one in classes if "3D" in one.__name__ or "Splat" in one.__name__}
    assert {"ACEAudio", "Hunyuan3Dv2", "StableAudio1"} <= sounds <= set(known.NO_PICTURE_FORMATS)


NEW = {
    "a guidance": "m.set_model_sampler_post_cfg_function(after)",
    "a patch of attention": "m.set_model_attn2_output_patch(after)",
    "a wrapper": "m.add_wrapper_with_key('diffusion_model', 'new', after)",
    "a callback": "m.add_callback('on_load', after)",
    "an object": "m.add_object_patch('model_sampling', after)",
    "an option": "m.model_options['transformer_options']['new'] = after",
    "a helper's wrapper": "create_sampler_sample_wrapper(m)",
    "a guider": "Guider(m)",
    "an older helper": "helper(m)",
    "another file's node": "Other().execute(m)",
}
SOURCE = """
from comfy_extras.nodes_other import Other as Other

class Guider(comfy.samplers.CFGGuider):
    pass

def helper(m):
    m.set_model_unet_function_wrapper(lambda *_: None)

class New(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="NewNode", inputs=[])

    @classmethod
    def execute(cls, m):
        {line}
"""
OTHER = """
class Other:
    def execute(self, m):
        m.set_model_double_block_patch(None)

NODE_CLASS_MAPPINGS = {"OtherNode": Other}
"""


def comfyui_with(tmp_path, source):
    (tmp_path / "comfy_extras").mkdir()
    (tmp_path / "nodes.py").write_text("")
    (tmp_path / "comfy_extras" / "nodes_new.py").write_text(source)
    (tmp_path / "comfy_extras" / "nodes_other.py").write_text(OTHER)
    return sampling_nodes(tmp_path)


@pytest.mark.parametrize("line", NEW.values(), ids=NEW)
def test_a_new_node_is_noticed_and_named(tmp_path, line):
    other, new = sorted(complaints(comfyui_with(tmp_path, SOURCE.replace("{line}", line))), reverse=True)
    assert "ComfyUI's node NewNode (nodes_new.py) changes how a model is sampled" in new
    assert "host/known.py" in new and "ROWS, MIXES" in new
    assert "ComfyUI's node OtherNode (nodes_other.py)" in other


def test_a_node_that_changes_no_sampling_is_not(tmp_path):
    assert set(comfyui_with(tmp_path, SOURCE.replace("{line}", "m.get_model_object('model_sampling')"))) == {
        "OtherNode"
    }


def test_a_known_node_that_begins_to_leave_something_behind_is_noticed(tmp_path):
    code = (
        "seen = 0\n        def after(args):\n            nonlocal seen\n        m.set_model_sampler_cfg_function(after)"
    )
    source = SOURCE.replace("NewNode", "RescaleCFG").replace("{line}", code)
    [sentence] = [one for one in complaints(comfyui_with(tmp_path, source)) if "RescaleCFG" in one]
    assert "LEAVE_BEHIND" in sentence


@pytest.fixture
def as_a_server_loads_it(monkeypatch):
    """A file of ComfyUI's own nodes, loaded by ComfyUI's own function: node id -> class."""
    pytest.importorskip("comfy")
    import nodes

    def load(name):
        monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {})
        monkeypatch.setattr(nodes, "NODE_DISPLAY_NAME_MAPPINGS", {})
        file = Path(os.environ["COMFYUI_PATH"]) / "comfy_extras" / f"{name}.py"
        assert asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))
        return nodes.NODE_CLASS_MAPPINGS

    return load


def made_by(function, model):
    out = function(model)
    return getattr(out, "args", out)[0]


def test_what_mixes_is_known_in_a_server_too(as_a_server_loads_it, demo):
    """There a function's module is called by the path of its file."""
    import comfy.samplers
    from noise_search.host.sampling.batching import obstacle_around
    from noise_search.host.sampling.stock import Sampling

    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    conds = demo.positive, demo.negative
    setups = {
        "Mahiro": ("nodes_mahiro", lambda node: made_by(node.execute, demo.model)),
        "VideoLinearCFGGuidance": ("nodes_video_model", lambda node: node().patch(demo.model, 1.0)[0]),
    }
    for node_id, (file, patch) in setups.items():
        model = patch(as_a_server_loads_it(file)[node_id])
        sampling = Sampling.ksampler(model, 4, 3.0, "euler", "simple", *conds, latent)
        assert known.MIXES[node_id][1] in (obstacle_around(sampling) or ""), node_id
    guider = made_by(
        lambda model: as_a_server_loads_it("nodes_perpneg")["PerpNegGuider"].execute(model, *conds, conds[1], 3.0, 1.0),
        demo.model,
    )
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5, 0.2, 0.0])
    assert "Perp-Neg" in (obstacle_around(Sampling.advanced(guider, sampler, sigmas, latent)) or "")


def test_a_seed_s_noise_is_known_in_a_server_too(as_a_server_loads_it):
    from noise_search.host.sampling.noise import recipes_of
    from noise_search.search.recipe import Recipe

    node = as_a_server_loads_it("nodes_custom_sampler")["RandomNoise"]
    assert recipes_of(made_by(node.execute, 7)) == (Recipe.from_seed(7),)


def test_the_classes_that_are_named_are_there():
    pytest.importorskip("comfy")
    for name in {*known.PASSING, *known.PASSING_PREFIXES, *known.PASSING_LAYERS, *known.VIDEO_MODELS}:
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(module), kind, None)
        assert isinstance(found, type) and f"{found.__module__}.{found.__qualname__}" == name, name


def test_the_attributes_that_do_not_count_are_there():
    """One that ComfyUI has renamed would begin to count, and nothing would be found again."""
    pytest.importorskip("comfy")
    for name in known.PASSING:
        module, _, kind = name.rpartition(".")
        source = Path(importlib.import_module(module).__spec__.origin).read_text("utf-8")
        gone = {one for one in known.PASSING[name] if one not in source} - {"multigpu_clones", "loaded_models"}
        assert gone == set(), f"{name} has no {gone} any more"
