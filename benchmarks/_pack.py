"""Makes the pack importable as `noise_search` for the programs in this folder, wherever it is checked out."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "noise_search" not in sys.modules:
    spec = importlib.util.spec_from_file_location("noise_search", ROOT / "__init__.py")
    assert spec and spec.loader
    sys.modules["noise_search"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
