"""ComfyUI's server, where there is one."""

from __future__ import annotations

import sys
from typing import Any


def running_server() -> Any:
    """The server that runs, or None where there is none (a headless import)."""
    module = sys.modules.get("server")  # importing it would start half a server where there is none
    return getattr(getattr(module, "PromptServer", None), "instance", None)
