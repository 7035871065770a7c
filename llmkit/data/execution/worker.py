"""A worker process: gets tasks as lines of JSON on its standard input, does them, and says how each went.

It ends when its input does, in the middle of a task if need be: when whoever started it is killed, nobody goes on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llmkit import errors
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.tasks import Task
from llmkit.errors import DataError, LLMKitError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of processes of which there is one for each processor."""


def answer(message: dict[str, Any]) -> dict[str, Any]:
    """Do the task of a message; what becomes of it: nothing to say, an `error` of the user's, or a `fault` of ours."""
    try:
        Cache(Path(message["cache"])).make(Task(**message["task"]))
    except LLMKitError as error:
        said = {"class": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        return {"error": said}
    except Exception:
        return {"fault": traceback.format_exc()}
    return {}


def raise_error(said: dict[str, Any]) -> None:
    """Raise what an answer tells of.

    Raises:
        LLMKitError: a mistake of the user's, in its own words.
        RuntimeError: a fault of ours, with its traceback.
    """
    if "fault" in said:
        raise RuntimeError(f"in a worker process:\n{said['fault']}")
    if "error" in said:
        told = said["error"]
        kind = getattr(errors, told["class"], DataError)
        error: LLMKitError = kind(told["message"], where=told["where"], hint=told["hint"])
        raise error


def _listen(queue: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        queue.put(line)
    os._exit(1)


def main() -> None:
    """Answer until the input ends."""
    # Ctrl-C reaches every process of the terminal; the one that started this decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    queue: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(queue,), daemon=True).start()
    while True:
        said = answer(json.loads(queue.get()))
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
