"""Tasks for tests: what they make is known without them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.data.execution.tasks import Task, Work
from llmkit.errors import DataError

MODULE = "execution_support"


def square(work: Work) -> Mapping[str, Any]:
    """The square of a number, with a line in a log for each time that it is worked out."""
    number = work.settings["number"]
    (work.output / "square.txt").write_text(str(number**2))
    with Path(work.places["log"]).open("a") as log:
        log.write(f"{number}\n")
    return {"square": number**2, "process": os.getpid()}


def total(work: Work) -> Mapping[str, Any]:
    """The sum of the squares."""
    squares = [int((found.path / "square.txt").read_text()) for found in work.inputs["squares"]]
    (work.output / "total.txt").write_text(str(sum(squares)))
    return {"total": sum(squares), "facts": sum(found.facts["square"] for found in work.inputs["squares"])}


def refuse(work: Work) -> None:
    """A mistake of the user's."""
    (work.output / "half.txt").write_text("half")
    raise DataError("the row is no row", where="a.csv:3", hint="Mend it.")


def fail(work: Work) -> None:
    """A fault of ours."""
    raise ZeroDivisionError("by nought")


def die(work: Work) -> None:
    """Is killed so many times, then succeeds."""
    tries = Path(work.places["log"])
    with tries.open("a") as log:
        log.write("x")
    if len(tries.read_text()) <= work.settings["times"]:
        os.kill(os.getpid(), signal.SIGKILL)


def linger(work: Work) -> None:
    """Says which process it is in, and takes very long."""
    Path(work.places["log"]).write_text(str(os.getpid()))
    time.sleep(600)


def meet(work: Work) -> Mapping[str, Any]:
    """Which node of a Ray cluster it is on, said when a task on another node has said so too, or after two minutes."""
    import ray

    mine = ray.get_runtime_context().get_node_id()
    board = Path(work.places["board"])
    (board / mine).touch()
    end = time.monotonic() + 120
    while len(list(board.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    return {"node": mine}


def squares(count: int, log: Path) -> list[Task]:
    return [
        Task("square", f"{MODULE}:square", {"number": number}, places={"log": str(log)}, cost=1 << 30)
        for number in range(count)
    ]
