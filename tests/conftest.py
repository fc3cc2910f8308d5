"""Loads the pack the way ComfyUI does: by path, under a package name of our choosing.

With COMFYUI_PATH set, the tests that need a real ComfyUI run too; without it they are skipped.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if comfy_root := os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, comfy_root)  # `import nodes` must be ComfyUI's
    import comfy.options
    from comfy.cli_args import args

    args.cpu = True  # before comfy.model_management is imported

spec = importlib.util.spec_from_file_location("noise_search", ROOT / "__init__.py")
sys.modules["noise_search"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
