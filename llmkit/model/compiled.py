"""Functions as torch compiles them, with a way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from llmkit.console import warn

R = TypeVar("R")


class Compiler:
    """Calls functions, compiled by torch when they are first called; where that fails, as they are.

    Functions are to give the same if they are called again with the same arguments.
    """

    def __init__(self) -> None:
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._works = True

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """What the function gives."""
        if not self._works:
            return function(*args)
        try:
            if function not in self._compiled:
                self._compiled[function] = torch.compile(function)
            compiled: R = self._compiled[function](*args)
        except Exception as error:
            plain = function(*args)
            # It was not the function's own error, which would have come again.
            self._works = False
            warn_uncompiled(error, "writing")
            return plain
        return compiled


def warn_uncompiled(error: Exception, what: str) -> None:
    """Say that torch can't compile here, and that what was asked for goes on without."""
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    warn(f"torch.compile does not work here, {what} goes on without it ({first_line[:200]})")
