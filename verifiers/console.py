"""Telling the console."""

from __future__ import annotations

import contextlib
import logging
from typing import Any


class _Logger(logging.LoggerAdapter):
    """Writes to the log where that can be written to: a closed console, or none as in a service, costs no search."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **kwargs)


def logger(name: str) -> logging.LoggerAdapter:
    """The logger of a module."""
    return _Logger(logging.getLogger(name), {})
