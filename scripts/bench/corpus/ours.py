"""The steps of `scripts/bench/data.py` by llmkit, in a process of its own: reads a task as JSON, prints what it took.

One config with a stage `data` and a stage `tokens`, as anybody would write it, run as `llmkit run` does. The seconds of
a step are those from the moment its tasks are handed out to the moment the last is done; `write` is all the rest of the
two stages: what is written in the end, its digests, the report and the data card.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from llmkit.data.execution import engine
from llmkit.data.execution.tasks import Result, Task
from llmkit.pipeline.run import Pipeline, load_experiment

STEP_OF = {
    "read": "extract",
    "measure": "filters",
    "judge": "filters",
    "keys": "minhash",
    "find": "minhash",
    "settle": "minhash",
    "tokenize": "tokenize",
}
"""The step that a kind of task belongs to."""


class TimedEngine(engine.Engine):
    """Counts the seconds of each kind of task."""

    seconds: ClassVar[defaultdict[str, float]] = defaultdict(float)

    def run(self, tasks: Sequence[Task], what: str = "") -> list[Result]:
        """As the engine does, with a clock."""
        start = time.perf_counter()
        results = super().run(tasks, what)
        if tasks:
            self.seconds[tasks[0].name] += time.perf_counter() - start
        return results


def config(task: dict[str, Any]) -> dict[str, Any]:
    """The experiment."""
    folders = [Path(folder) for folder in task["sources"]]
    executor = {"processes": task["processes"]}
    sources = [
        {"kind": "warc", "name": "pages", "files": [str(folder / "*.warc.gz") for folder in folders]},
        {"kind": "jsonl", "name": "texts", "files": [str(folder / "*.jsonl") for folder in folders]},
    ]
    return {
        "run": "bench",
        "runs_dir": task["work"],
        "seed": 0,
        "stages": {
            "corpus": {
                "stage": "data",
                "sources": sources,
                "cleaning": {
                    "unicode": None,
                    "length": None,
                    "repetition": None,
                    "gopher_repetition": {},
                    "gopher_quality": {"min_alphabetic_words": task["alphabetic"]},
                },
                "deduplication": {"minhash": {"bands": 14, "rows": 8, "ngram": 5}},
                "executor": executor,
            },
            "tokens": {"data": "corpus", "tokenizer": task["tokenizer"], "executor": executor},
        },
    }


def seconds_of_steps(whole: float) -> dict[str, float]:
    """Seconds of each step, and of all the rest as `write`."""
    seconds = dict.fromkeys(STEP_OF.values(), 0.0)
    for name, taken in TimedEngine.seconds.items():
        if name in STEP_OF:
            seconds[STEP_OF[name]] += taken
    return {**seconds, "write": whole - sum(seconds.values())}


def documents_of_steps(total: dict[str, Any]) -> dict[str, int]:
    """How many documents reached each step."""
    steps = total["steps"]
    return {
        "extract": total["in"],
        "filters": steps["gopher_quality"]["in"],
        "minhash": steps["minhash"]["in"],
        "tokenize": total["kept"],
        "all": total["in"],
    }


def main() -> None:
    """Run both stages."""
    task = json.loads(sys.argv[1])
    file = Path(task["work"]) / "config.yaml"
    file.write_text(yaml.safe_dump(config(task), sort_keys=False))
    engine.Engine = TimedEngine  # type: ignore[misc]
    start = time.perf_counter()
    pipeline = Pipeline(load_experiment(file))
    pipeline.run()
    whole = time.perf_counter() - start
    corpus, tokens = (pipeline.directory / name for name in ("corpus", "tokens"))
    total = json.loads((corpus / "report.json").read_text())["total"]
    splits = [json.loads(index.read_text()) for index in sorted(tokens.glob("*/index.json"))]
    print(
        json.dumps(
            {
                "seconds": seconds_of_steps(whole),
                "documents": documents_of_steps(total),
                "corpus": {key: total[key] for key in ("in", "kept", "dropped", "quarantined", "bytes_kept")},
                "tokens": sum(split["tokens"] for split in splits),
            }
        )
    )


if __name__ == "__main__":
    main()
