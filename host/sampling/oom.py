"""Running out of memory, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as mm

from ...verifiers.console import logger

T = TypeVar("T")
# PyTorch's on the CPU (Windows, elsewhere) and on Apple's GPUs are plain RuntimeErrors.
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
log_to_console = logger(__name__)


def is_oom(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or off it."""
    if hasattr(mm, "is_oom") and mm.is_oom(error):
        return True
    if mm.OOM_EXCEPTION is not Exception and isinstance(error, mm.OOM_EXCEPTION):
        return True
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def retry_on_oom(work: Callable[[], T], what: str, failed: Callable[[], None] | None = None) -> T:
    """Does some work; if memory runs out, once more after ComfyUI has unloaded every network it can.

    failed: called between the two.
    """
    try:
        return work()
    except Exception as error:
        if not is_oom(error):
            raise
    # Outside of the handler: the traceback would keep the tensors of the first try.
    log_to_console.warning("Noise Search: out of memory while %s; unloading the other models and trying again", what)
    if failed is not None:
        failed()
    mm.free_memory(1e30, mm.get_torch_device())
    mm.soft_empty_cache()
    return work()
