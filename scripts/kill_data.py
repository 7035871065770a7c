"""Kill the stages that make data with SIGKILL at random moments, start them again each time, and compare the bytes.

    python scripts/kill_data.py --kills 40
    python scripts/kill_data.py --kills 3 --documents 600 --ways one two

A corpus is made up, with everything in it that the steps are there for: duplicates, near ones, shared lines and
paragraphs, addresses, repetition, texts that models are measured on, broken records. `llmkit data` and `llmkit tokens`
run once alone in one process. Then each is killed, in turn with one process and with two, until it has been hit half of
the kills; whenever it comes to its end in between, it is compared and made anew. In the end each runs in every other
way: two processes, a Ray cluster, two shards, of which each is killed once on its way.

Exit code 1 where a file differs; everything is then kept. Processes are forked from one that has imported llmkit.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from forked import ForkedCommand
from killing import Command, different_files

from llmkit.console import emit_table, format_seconds, say
from llmkit.errors import LLMKitError
from llmkit.store.artifact import is_artifact
from llmkit.store.files import remove_tree

STAGES = {"corpus": "data", "tokens": "tokens"}
"""The stages that are killed, and their commands."""
WAYS = {
    "one": ("executor.processes=1",),
    "two": ("executor.processes=2",),
    "ray": ("executor.kind=ray", "executor.processes=2"),
    "shards": ("executor.processes=1",),
}
"""Ways of doing the tasks, as overrides of a stage's settings."""
SHARDS = 2
POLL_SECONDS = 0.005
_WORDS = 3000
_SOURCES = 6
_NOTICE = "All rights to this text are kept by those who have written it and by nobody else."
_QUESTION = (
    "Which of the seven rivers that cross the old province carries the most water when the snow has gone in spring?"
)


def write_corpus(folder: Path, documents: int, seed: int) -> None:
    """Made-up texts as JSON lines, one file for each of some sources."""
    folder.mkdir(parents=True)
    generator = random.Random(seed)
    letters = "etaoinshrdlu"
    words = ["the", "be", "to", "of", "and", "that", "have", "with"] * 40
    words += ["".join(generator.choices(letters, k=generator.randint(3, 9))) for _ in range(_WORDS)]
    texts: list[str] = []
    for number in range(documents):
        texts.append(_text(generator, words, texts, number))
    for source in range(_SOURCES):
        lines = [json.dumps({"text": text}) for text in texts[source::_SOURCES]]
        lines[len(lines) // 2] = '{"text": "cut'
        (folder / f"{source}.jsonl").write_text("\n".join(lines))
    (folder / "questions.jsonl").write_text(json.dumps({"question": _QUESTION}) + "\n")


def _text(generator: random.Random, words: Sequence[str], before: Sequence[str], number: int) -> str:
    """A text of some paragraphs, or another one changed a little."""
    kind = generator.random()
    if before and kind < 0.05:
        return generator.choice(before)
    if before and kind < 0.15:
        old = generator.choice(before).split(" ")
        old[generator.randrange(len(old))] = generator.choice(words)
        return " ".join(old)
    paragraphs = [
        "\n".join(
            " ".join(generator.choices(words, k=generator.randint(8, 20))).capitalize() + "."
            for _ in range(generator.randint(2, 5))
        )
        for _ in range(generator.randint(2, 5))
    ]
    if before and kind < 0.3:
        paragraphs.append(generator.choice(before).split("\n\n")[0])
    if kind > 0.7:
        paragraphs.append(_NOTICE)
    if kind > 0.95:
        paragraphs.append(f"Write to person{number}@example.org, from 203.0.113.{number % 256}.")
    if 0.68 < kind < 0.7:
        paragraphs.append(_QUESTION)
    if 0.66 < kind < 0.68:
        paragraphs = [paragraphs[0].split("\n")[0]] * 12
    return "\n\n".join(paragraphs)


def write_config(place: Path, folder: Path) -> None:
    """A config with every phase that the stage `data` has."""
    sources = [
        {"kind": "jsonl", "files": [str(folder / f"{source}.jsonl")], "name": f"source{source}"}
        for source in range(_SOURCES)
    ]
    corpus = {
        "stage": "data",
        "sources": sources,
        "cleaning": {"gopher_quality": {}, "gopher_repetition": {}, "fineweb": {}},
        "deduplication": {
            "minhash": {"permutations": 64},
            "paragraphs": {},
            "lines": {"min_documents": 3},
            "substrings": {"min_bytes": 200},
        },
    }
    stages = {
        "corpus": corpus,
        "bpe": {"stage": "tokenizer", "data": "corpus", "vocab_size": 600},
        "tokens": {"data": "corpus", "tokenizer": "bpe", "shard_tokens": 100_000},
    }
    place.write_text(yaml.safe_dump({"run": "killed", "stages": stages}, sort_keys=False))


@dataclass(frozen=True)
class ShardCommand(ForkedCommand):
    """A command of which several processes do a part each."""

    shard: str = ""

    def arguments(self, overrides: Sequence[str]) -> list[str]:
        """The command's name and arguments."""
        return [*super().arguments(overrides), "--shard", self.shard]


@dataclass
class Trial:
    """A config, a run that was left alone, and one that is killed.

    Args:
        config: the YAML file.
        scratch: folder for the runs and the log.
        generator: of the moments.
        command: the class of the commands.
    """

    config: Path
    scratch: Path
    generator: random.Random
    command: type[Command] = ForkedCommand
    seconds: dict[str, float] = field(default_factory=dict)
    rows: list[list[object]] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What the commands say."""
        return self.scratch / "log"

    def run_alone(self) -> None:
        """Make the stages once in one process, and note how long they take."""
        for stage, name in (("corpus", "data"), ("bpe", "tokenizer"), ("tokens", "tokens")):
            started = time.monotonic()
            self.command(self.config, name=name).finish(self.log, *self._overrides("alone", stage, "one"))
            self.seconds[stage] = time.monotonic() - started

    def kill(self, stage: str, kills: int, ways: Sequence[str]) -> None:
        """Kill a stage so many times, and let it come to its end.

        Raises:
            LLMKitError: a command fails.
        """
        self._prepare(stage)
        command = self.command(self.config, name=STAGES[stage])
        hits = attempts = 0
        while hits < kills:
            overrides = self._overrides("killed", stage, ways[attempts % len(ways)])
            attempts += 1
            until = time.monotonic() + self.generator.uniform(0, self.seconds[stage])
            with command.started(self.log, *overrides) as process:
                while process.poll() is None and time.monotonic() < until:
                    time.sleep(POLL_SECONDS)
            if (process.returncode or 0) > 0:
                raise LLMKitError(f"`llmkit {command.name}` ends with {process.returncode}.", where=str(self.log))
            if is_artifact(self._place("killed", stage)):
                self._compare(stage, f"killed {hits} times so far")
                self._prepare(stage)
            else:
                hits += 1
        command.finish(self.log, *self._overrides("killed", stage, ways[attempts % len(ways)]))
        self._compare(stage, f"killed {hits} times")

    def run(self, stage: str, way: str) -> None:
        """Run a stage in another way."""
        self._prepare(stage)
        started = time.monotonic()
        overrides = self._overrides("killed", stage, way)
        if way == "shards":
            self._run_shards(stage, overrides)
        else:
            self.command(self.config, name=STAGES[stage]).finish(self.log, *overrides)
        self._compare(stage, f"{way}, {format_seconds(time.monotonic() - started)}")

    def _run_shards(self, stage: str, overrides: Sequence[str]) -> None:
        """Each shard is killed once and started again."""
        commands = [
            ShardCommand(self.config, name=STAGES[stage], shard=f"{number}/{SHARDS}") for number in range(1, SHARDS + 1)
        ]
        processes = [command.start(self.log, overrides) for command in commands]
        for number, command in enumerate(commands):
            time.sleep(self.generator.uniform(0, self.seconds[stage] / 2))
            if processes[number].poll() is None:
                processes[number].send_signal(9)
                processes[number].wait()
                processes[number] = command.start(self.log, overrides)
        codes = [process.wait() for process in processes]
        if any(codes):
            raise LLMKitError(f"shards of `llmkit {STAGES[stage]}` end with {codes}.", where=str(self.log))

    def _overrides(self, run: str, stage: str, way: str) -> list[str]:
        chosen = [f"stages.{stage}.{setting}" for setting in WAYS[way]] if stage in STAGES else []
        return [f"runs_dir={self.scratch / run}", *chosen]

    def _place(self, run: str, stage: str) -> Path:
        return self.scratch / run / "killed" / stage

    def _prepare(self, stage: str) -> None:
        """A run in which all that the stage needs is there, and nothing of the stage itself."""
        run = self.scratch / "killed"
        if run.exists():
            remove_tree(run)
        for needed in ("corpus", "bpe"):
            if stage == "tokens":
                shutil.copytree(self._place("alone", needed), self._place("killed", needed))

    def _compare(self, stage: str, what: str) -> None:
        count, different = different_files(self._place("alone", stage), self._place("killed", stage))
        reports = [(self._place(run, stage) / "report.json").read_bytes() for run in ("alone", "killed")]
        if reports[0] != reports[1]:
            different.append("report.json")
        self.rows.append([stage, what, count, not different])
        self.different += [f"{stage}, {what}: other bytes in {', '.join(different)}"] if different else []


def trial(scratch: Path, documents: int, kills: int, ways: Sequence[str], seed: int, command: type[Command]) -> Trial:
    """Make up a corpus, run alone, kill, and run in other ways.

    Raises:
        LLMKitError: a command fails.
    """
    write_corpus(scratch / "input", documents, seed)
    write_config(scratch / "kill.yaml", scratch / "input")
    found = Trial(scratch / "kill.yaml", scratch, random.Random(seed), command)
    found.run_alone()
    say(", ".join(f"{stage}: {format_seconds(seconds)}" for stage, seconds in found.seconds.items()))
    for number, stage in enumerate(STAGES):
        # An odd kill is the corpus'.
        # Starting a cluster takes longer than the work, and a shard that is killed is killed below.
        found.kill(stage, (kills + 1 - number) // 2, [way for way in ways if way in ("one", "two")] or ["one"])
        for way in ways:
            if way != "one":
                found.run(stage, way)
    return found


def main() -> int:
    """Run, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="kills that hit, half of them each stage's")
    parser.add_argument("--documents", type=int, default=12_000, help="documents of the corpus")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways of doing the tasks")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other moments")
    parser.add_argument("--scratch", type=Path, help="an empty folder for the runs; by default a temporary one")
    options = parser.parse_args()
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = (options.scratch or Path(tempfile.mkdtemp(prefix="kill_data-"))).resolve()
    if any(scratch.iterdir()):
        parser.error(f"{scratch} is not empty")
    try:
        found = trial(scratch, options.documents, options.kills, options.ways, options.seed, ForkedCommand)
    except LLMKitError as error:
        say(f"error: {error}")
        return error.exit_code
    emit_table(["stage", "how", "files", "equal"], found.rows)
    for complaint in found.different:
        say(complaint)
    equal = not found.different
    if equal and options.scratch is None:
        shutil.rmtree(scratch)
    say("every file is identical to the byte." if equal else f"files differ; the runs are kept in {scratch}")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
