"""Kill a pretraining at random moments, start it again each time, and compare with one left alone.

    python scripts/kill_training.py                                       60 times SIGKILL on one rank
    python scripts/kill_training.py --ranks 2 --signal KILL TERM --seed 3

The way of the training is cut into as many parts as there are kills, and one falls into each: at a step, while a
checkpoint is being written, or while the process still starts or reads its checkpoint, as drawn from the seed.
On several ranks (torchrun) either all processes are killed or one rank is, which the others must not outlive for long.
With `--signal TERM` (or INT) a process that has begun to train must have saved a checkpoint of the very step.

In the end the sha256 of all files that make up the model are compared, and every line of metrics but for its times.
Exit code 1 where something differs; the runs and the log are then kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forked import ForkedCommand
from killing import Command, Process, different_files, ranks_of, signal_all, unfinished

from llmkit.console import format_seconds, say
from llmkit.errors import LLMKitError
from llmkit.pipeline.kinds import KINDS
from llmkit.store.artifact import is_artifact, open_artifact
from llmkit.train.metrics import OF_THE_MACHINE

RUN, STAGE = "killed", "training"
POLL_SECONDS = 0.001
STEPS_BETWEEN_KILLS = 4
CHECKPOINT_EVERY = 2
SPARE_PARTS = 4
LONGEST_END_SECONDS = 90.0
CONFIG = """
run: {run}
seed: 5
stages:
  corpus:
    stage: data
    sources: [{{kind: text, files: [{text}]}}]
    cleaning: {{repetition: null}}
    splits: {{validation: 0.1}}
  tokenizer: {{data: corpus, algorithm: bpe, vocab_size: 300}}
  tokens: {{data: corpus, tokenizer: tokenizer}}
  {stage}:
    stage: pretrain
    data: tokens
    model: {{family: llama, layers: 2, width: 32, heads: 2, context: 32, dropout: 0.1}}
    steps: {steps}
    batch_size: 4
    micro_batch_size: 1
    optimizer: {{name: muon, lr: 5e-3}}
    spikes: {{threshold: 2, history: 4, skips: 100, skips_per_hundred: 100}}
    precision: fp32
    device: cpu
    evaluate_every: 16
    evaluate_batches: 1
    log_every: 1
    checkpoints: {{every: {checkpoint_every}}}
"""

When = Literal["starting", "training", "checkpoint"]


@dataclass(frozen=True)
class Moment:
    """When to kill, and whom.

    Args:
        when: while the process starts, at a step, or while the first checkpoint from this step on is written.
        step: the step from which on.
        part: of the time that this takes, in [0, 1).
        one: whether one rank alone is killed, by its number.
    """

    when: When
    step: int
    part: float
    one: int | None


def moments(kills: int, ranks: int, seed: int) -> Iterator[Moment]:
    """One moment in each part of the way: a sixth while starting, a third while a checkpoint is written."""
    draw = random.Random(f"{seed}/{ranks}")
    for number in range(kills):
        when: When = draw.choice(("starting", "training", "training", "training", "checkpoint", "checkpoint"))
        step = number * STEPS_BETWEEN_KILLS + draw.randrange(STEPS_BETWEEN_KILLS)
        one = draw.randrange(ranks) if ranks > 1 and draw.random() < 0.5 else None
        yield Moment(when, step, draw.random(), one)


@dataclass
class Timing:
    """How long things take here, in seconds, as they were seen last.

    Args:
        start: until the first step.
        step: a step.
        write: a checkpoint.
    """

    start: float = 3.0
    step: float = 0.05
    write: float = 0.05


class Watch:
    """What can be seen of a training from outside."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def finished(self) -> bool:
        """Whether it is over."""
        return is_artifact(self.place)

    def step(self) -> int:
        """Steps whose line of metrics is written."""
        directory = unfinished(self.place)
        file = None if directory is None else directory / "metrics.jsonl"
        return file.read_bytes().count(b'"train"') if file is not None and file.is_file() else 0

    def writing(self) -> Path | None:
        """The checkpoint that is being written: a folder without its manifest."""
        directory = unfinished(self.place)
        if directory is None:
            return None
        folders = sorted((directory / "checkpoints").glob("step-*"), reverse=True)
        return next((folder for folder in folders if not (folder / "manifest.json").exists()), None)

    def saved(self) -> int | None:
        """Step of the newest whole checkpoint."""
        directory = unfinished(self.place)
        found = [] if directory is None else directory.glob("checkpoints/step-*/manifest.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=None)


def wait_for(moment: Moment, watch: Watch, process: Process, timing: Timing) -> When | None:
    """Return at the moment: what the process does; None where it has ended by itself before."""
    began, before = time.monotonic(), watch.step()
    if moment.when == "starting":
        time.sleep(moment.part * timing.start)
        return None if process.poll() is not None else "starting"
    seen = before
    while process.poll() is None and not watch.finished:
        now, step = time.monotonic(), watch.step()
        if step != seen and seen == before:
            timing.start, began, seen = now - began, now, step
        elif step > seen:
            timing.step, began, seen = (now - began) / (step - seen), now, step
        if step > before and step >= moment.step:
            # A checkpoint that is written too fast to be seen is not waited for into the part of the next kill.
            if moment.when == "training" or step >= moment.step + STEPS_BETWEEN_KILLS:
                time.sleep(moment.part * timing.step)
                return "training"
            if (folder := watch.writing()) is not None:
                time.sleep(moment.part * timing.write)
                caught = not (folder / "manifest.json").exists()
                timing.write = timing.write * 1.2 if caught else timing.write * 0.8
                return "checkpoint" if caught else "training"
        time.sleep(POLL_SECONDS)
    return None


def hit(process: Process, number: signal.Signals, one: int | None) -> None:
    """Send the signal to all processes or to one rank, and wait until all have ended.

    Raises:
        LLMKitError: they do not.
    """
    ranks = [] if one is None else ranks_of(process)
    if one is not None and one < len(ranks):
        os.kill(ranks[one], number)
    elif number in (signal.SIGKILL, signal.SIGINT):
        # Ctrl-C in a terminal goes to all of them, and torchrun passes its own on.
        signal_all(process, number)
    else:
        # As a scheduler does it: torchrun passes it on.
        process.send_signal(number)
    try:
        process.wait(LONGEST_END_SECONDS)
    except subprocess.TimeoutExpired:
        raise LLMKitError(f"it does not end within {LONGEST_END_SECONDS:.0f} seconds of {number.name}.") from None


def kill_all(command: Command, run: Path, log: Path, chosen: Sequence[Moment], number: signal.Signals) -> Counter[str]:
    """Start the training and kill it at each moment, then let it finish.

    Returns:
        how many kills fell on what.

    Raises:
        LLMKitError: it fails otherwise, or ends before all kills.
    """
    watch, timing, counts = Watch(run / STAGE), Timing(), Counter[str]()
    for moment in chosen:
        with command.started(log, f"runs_dir={run.parent}") as process:
            doing = wait_for(moment, watch, process, timing)
            if doing is None:
                raise LLMKitError(f"it ended with exit code {process.poll()} before it was killed.", where=str(log))
            step = watch.step()
            hit(process, number, moment.one)
        if number != signal.SIGKILL and doing != "starting":
            saved = watch.saved()
            if saved is None or saved < step or saved != watch.step():
                raise LLMKitError(f"after {number.name} at step {step} the last checkpoint is of step {saved}.")
        counts[doing] += 1
        counts["one rank alone"] += moment.one is not None
    command.finish(log, f"runs_dir={run.parent}")
    return counts


def lines(place: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without what they say of the machine."""
    read = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in read]


def prepare(scratch: Path, kills: int, ranks: int) -> ForkedCommand:
    """Write text and config, and make what the training learns from.

    Returns:
        the command that trains.
    """
    words = ("the", "a", "fox", "owl", "hare", "river", "forest", "sees", "follows", "old", "grey", "quick", "sleeps")
    draw = random.Random(1)
    (scratch / "text").mkdir()
    for number in range(40):
        sentences = (" ".join(draw.choices(words, k=draw.randint(5, 12))) for _ in range(30))
        (scratch / "text" / f"{number:02}.txt").write_text(".\n".join(sentences), encoding="utf-8")
    config = scratch / "killed.yaml"
    # Signals are answered some steps late where steps are short.
    steps = (kills + kills // 3 + SPARE_PARTS) * STEPS_BETWEEN_KILLS
    values = {
        "run": RUN,
        "stage": STAGE,
        "text": scratch / "text",
        "steps": steps,
        "checkpoint_every": CHECKPOINT_EVERY,
    }
    config.write_text(CONFIG.format(**values), encoding="utf-8")
    kinds = ("data", "tokenizer", "tokens", "pretrain")
    for name in kinds:
        # Imported here, so that no process has to.
        KINDS[name].module()
    for name in kinds[:-1]:
        ForkedCommand(config, name=name).finish(scratch / "alone.log", f"runs_dir={scratch / 'alone'}")
    return ForkedCommand(config, name="pretrain", ranks=ranks)


def compare(command: ForkedCommand, scratch: Path, chosen: Sequence[Moment], number: signal.Signals) -> str | None:
    """Train killed, beside the run left alone, and print how it went.

    Returns:
        what differs, or None.
    """
    alone, killed = scratch / "alone" / RUN, scratch / number.name / RUN
    for stage in (path for path in alone.iterdir() if path.is_dir() and path.name != STAGE):
        shutil.copytree(stage, killed / stage.name)
    began = time.monotonic()
    counts = kill_all(command, killed, scratch / f"{number.name}.log", chosen, number)
    seconds = format_seconds(time.monotonic() - began)
    files, different = different_files(alone / STAGE, killed / STAGE)
    ours, theirs = (open_artifact(run / STAGE, verify=False).manifest.content_digest for run in (alone, killed))
    ranks = f"{command.ranks} rank{'s' * (command.ranks > 1)}"
    found = ", ".join(f"{count} {doing}" for doing, count in sorted(counts.items()) if count)
    say(f"{ranks}, {len(chosen)} times {number.name} in {seconds}: {found}")
    say(f"{ranks}, {number.name}: digest {theirs[:16]}, left alone {ours[:16]}, {files} files")
    if different:
        return f"other bytes in {', '.join(different)}"
    return None if lines(alone / STAGE) == lines(killed / STAGE) else "other lines of metrics"


def main() -> int:
    """Train, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="how often it is killed (60)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that torchrun starts (1: without torchrun)")
    parser.add_argument(
        "--signal",
        nargs="+",
        choices=["KILL", "TERM", "INT"],
        default=["KILL"],
        help="what it is killed with, one by one",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other moments")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="kill_training-"))
    chosen, problem = list(moments(options.kills, options.ranks, options.seed)), None
    try:
        command = prepare(scratch, options.kills, options.ranks)
        command.finish(scratch / "alone.log", f"runs_dir={scratch / 'alone'}")
        for name in options.signal:
            problem = problem or compare(command, scratch, chosen, signal.Signals[f"SIG{name}"])
    except LLMKitError as error:
        problem = str(error)
    if problem is not None:
        say(f"error: {problem}; the runs and their logs are kept in {scratch}")
        return 1
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
