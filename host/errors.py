"""What a node raises, as the user is shown it, and what is not for this pack to handle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.model_management

PACK = __package__.rpartition(".")[0]


def is_cancel(error: BaseException) -> bool:
    """Whether somebody pressed Cancel: that goes up to ComfyUI. Older hosts raise an Exception for it."""
    return isinstance(error, comfy.model_management.InterruptProcessingException)


def plain(error: Exception) -> Exception | None:
    """The error as one of Python's own with the same sentence, if it is of a class of this pack: ComfyUI shows the user
    where a class comes from, in front of what it says. None for all others, so also for Cancel and for running out of
    memory, which ComfyUI handles itself."""
    if not f"{type(error).__module__}.".startswith(f"{PACK}."):
        return None
    kinds = [kind for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    kind = kinds[0] if kinds[0] not in (Exception, BaseException) else RuntimeError
    return kind(str(error))


def with_plain_errors(execute: Callable) -> Callable:
    """A node's `execute` that raises plain errors, caused by those that they stand for."""

    @functools.wraps(execute)
    def executing(*args: Any, **kwargs: Any) -> Any:
        try:
            return execute(*args, **kwargs)
        except Exception as error:
            shown = plain(error)
            if shown is None:
                raise
            raise shown from error

    return executing
