"""Tasks: functions whose results are folders that depend on nothing but what is said here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkit.store.files import sha256_json

FORMAT = 1
"""Raised when results kept by an earlier version of llmkit may no longer be used."""


@dataclass(frozen=True)
class Task:
    """Something to be made once: a folder, and a few facts about it.

    The function is called with a `Work`, writes files into `work.output`, and returns facts (JSON) or None. What it
    makes must be a pure function of what is digested here: equal keys, equal bytes, in whichever process, at whatever
    time and in whichever order.

    Args:
        name: the kind of task, for messages and counts ("read", "measure").
        function: "module:function".
        settings: JSON that the result depends on; files outside are named in it by digest or by what changes with them.
        inputs: keys of the tasks whose results it reads, by the name under which the function finds them.
        places: paths of outside files, which the key leaves out, since `settings` holds what identifies their content.
        version: raised when the function comes to make something else of the same settings and inputs.
        label: what it is about, for messages ("books/a.jsonl, bytes 0 to 67,108,864").
        cost: bytes that it goes through, about: whether to start processes depends on it, the result does not.
        near: what it shares work with that a process remembers: tasks with the same are given to one process as far as
            that keeps all of them busy. Empty where there is nothing of that kind.
    """

    name: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    label: str = ""
    cost: int = 0
    near: str = ""

    @cached_property
    def key(self) -> str:
        """Digest of all that the result depends on: the name under which it is kept."""
        inputs = {name: list(keys) for name, keys in self.inputs.items()}
        # As another process gets them: there, all names are strings, and sorted as such.
        settings = json.loads(json.dumps(self.settings))
        return sha256_json([FORMAT, self.function, self.version, settings, inputs])[:40]

    def as_json(self) -> dict[str, Any]:
        """For another process; `Task(**value)` is the task again."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a task has made.

    Args:
        key: the task's key, by which tasks that read it name it.
        path: the folder; not to be written to.
        facts: what the function returned.
    """

    key: str
    path: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What a task's function gets.

    Args:
        settings: as in the task.
        places: as in the task.
        inputs: results by name, in the task's order.
        output: an empty folder to write in.
    """

    settings: Mapping[str, Any]
    places: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Result]]
    output: Path

    def one(self, name: str) -> Result:
        """The only result of that name."""
        (found,) = self.inputs[name]
        return found


TaskFunction = Callable[[Work], Mapping[str, Any] | None]


def task_function(name: str) -> TaskFunction:
    """The function that "module:function" names."""
    module, _, attribute = name.partition(":")
    found: TaskFunction = getattr(importlib.import_module(module), attribute)
    return found
