"""`samples.jsonl`: a few of the answers that a policy gave while it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.store.files import write_text_atomic

FILE = "samples.jsonl"


class SampleLog:
    """Appends rows to `samples.jsonl`; what a stopped attempt wrote about the same steps or later ones is removed.

    Args:
        directory: the stage's directory.
        every: rollouts from one to the next that is shown.
    """

    def __init__(self, directory: Path, every: int) -> None:
        self.path = directory / FILE
        self.every = every
        self._begun = False

    def wants(self, rollout: int) -> bool:
        """Whether answers of this rollout are shown."""
        return rollout % self.every == 0

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows about a step."""
        if not self._begun:
            self._begun = True
            write_text_atomic(self.path, "".join(line for line in self._lines() if json.loads(line)["step"] < step))
        with self.path.open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        # What comes after the last line end is a line that was cut off.
        return [line + "\n" for line in self.path.read_text(encoding="utf-8").split("\n")[:-1]]
