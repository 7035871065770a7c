"""From exceptions to exit codes: what a person can mend is a paragraph, what they cannot keeps its traceback."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

from llmkit.console import emit_json, say
from llmkit.errors import EXIT_FAULT, EXIT_INTERRUPTED, Interrupted, LLMKitError

P = ParamSpec("P")
R = TypeVar("R")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM; finished stages are kept, and `llmkit run` goes on from here.", "SIGTERM")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Run a command so that every way it can end has its exit code (0, 1, 2, 130, 143) and its words.

    With `--json` among the arguments, a mistake is also printed as a JSON object on stdout.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except LLMKitError as error:
            label = "stopped" if isinstance(error, Interrupted) else "error"
            if kwargs.get("as_json"):
                emit_json({"error": {"message": error.message, "where": error.where, "hint": error.hint}})
            say(f"{label}: {error}")
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            say("stopped: interrupted; finished stages are kept, and `llmkit run` goes on from here.")
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output has gone (`llmkit inspect X | head`); there is nobody left to tell.
            sys.stderr.close()
            raise SystemExit(0) from None
        except Exception:
            traceback.print_exc()
            say("This is a fault of llmkit, not of yours; please report it with the lines above.")
            raise SystemExit(EXIT_FAULT) from None
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run
