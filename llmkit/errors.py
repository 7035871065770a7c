"""Errors that a person can mend, and the exit codes that go with them.

An `LLMKitError` carries what is wrong, where it is, and what to do about it; the command line prints it as one
paragraph without a traceback. Anything else that escapes is a fault of llmkit and keeps its traceback.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class LLMKitError(Exception):
    """A mistake that the user can mend.

    Args:
        message: what is wrong, as a sentence.
        where: file, line, dotted key or row, as far as it is known ("a.yaml:12: stages.sft.model").
        hint: what to do about it, as a sentence.
    """

    exit_code = EXIT_USER

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} {self.hint}" if self.hint else text


class ConfigError(LLMKitError):
    """The configuration is wrong."""


class DataError(LLMKitError):
    """An input file or record is wrong."""


class ArtifactError(LLMKitError):
    """An artifact directory is missing, damaged or of another kind than wanted."""


class ArtifactLockedError(LLMKitError):
    """Another process is writing the artifact."""


class ModelError(LLMKitError):
    """A model directory cannot be opened: unknown family, missing or misshapen weights."""


class MissingDependencyError(LLMKitError):
    """An optional package is needed and not installed."""


class Interrupted(LLMKitError):
    """The person or the machine asked the work to stop; what could be saved has been saved.

    Args:
        message: what was saved and how to go on.
        signal_name: "SIGINT" or "SIGTERM".
    """

    def __init__(self, message: str, signal_name: str) -> None:
        super().__init__(message)
        self.signal_name = signal_name
        self.exit_code = EXIT_TERMINATED if signal_name == "SIGTERM" else EXIT_INTERRUPTED
