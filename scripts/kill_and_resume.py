"""Kill `llmkit run` with SIGKILL once in every stage, start it again each time, and compare with a run left alone.

    python scripts/kill_and_resume.py --config configs/quickstart.yaml
    python scripts/kill_and_resume.py --config configs/quickstart.yaml --alone runs/quickstart --seed 2

The run left alone is made first, unless it is given. In the other one every stage is killed at a part of its way that
is drawn from the seed and the stage's name: of the checkpoints of a training stage (which is made to write eight or
more), of the measurements of an evaluation, of the time of any other. A kill counts if the stage was unfinished after
it; where the stage was too quick it is made again and killed earlier. In the end the sha256 of all files that make up
the results are compared, and both runs checked against their manifests.

Exit code 1 where a file differs; the two runs are then kept, as is the log. Processes are forked from one that has
imported torch already, so that most of the time goes into the stages.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forked import ForkedCommand
from killing import Command, Process, different_files, unfinished

from llmkit.config.experiment import Experiment
from llmkit.console import emit_table, format_seconds, say
from llmkit.errors import LLMKitError
from llmkit.store.artifact import is_artifact, open_artifact
from llmkit.store.files import remove_tree

POLL_SECONDS = 0.004
CHECKPOINTS = 8
ATTEMPTS = 8


@dataclass(frozen=True)
class Target:
    """A stage to kill, and when.

    Args:
        name: of the stage.
        kind: of the stage.
        part: of its way, in (0, 1), after which it is killed.
        seconds: that the stage took in the run left alone.
        steps: optimizer steps, for a training stage.
        measurements: for an evaluation.
    """

    name: str
    kind: str
    part: float
    seconds: float
    steps: int | None = None
    measurements: int | None = None

    @property
    def checkpoint_every(self) -> int:
        """Steps from one checkpoint to the next, so that there are enough."""
        return max(1, (self.steps or 0) // CHECKPOINTS)

    @property
    def overrides(self) -> list[str]:
        """Settings for the run that is killed; none that changes what it makes."""
        return [f"stages.{self.name}.checkpoints.every={self.checkpoint_every}"] if self.steps else []

    @property
    def units(self) -> int:
        """In how many parts the way is divided that can be seen from outside; 0 where there are none."""
        return self.steps // self.checkpoint_every if self.steps else self.measurements or 0

    def done(self, directory: Path) -> int:
        """How many of these parts are done."""
        if self.steps:
            manifests = directory.glob("checkpoints/step-*/manifest.json")
            newest = max((int(path.parent.name.removeprefix("step-")) for path in manifests), default=0)
            return newest // self.checkpoint_every
        return len(list(directory.glob("measurements/*.json")))

    def describe(self, directory: Path, seconds: float) -> str:
        """How far the stage has come, for the table."""
        if self.steps:
            return f"step {self.done(directory) * self.checkpoint_every:,} of {self.steps:,}"
        if self.measurements:
            return f"result {self.done(directory)} of {self.measurements}"
        return f"{format_seconds(seconds)} of {format_seconds(self.seconds)}"


def targets(run: Path, experiment: Experiment, seed: int) -> list[Target]:
    """The stages of a finished run, in the order in which they run.

    Raises:
        LLMKitError: a stage of the config is not there.
    """
    found = []
    for name, kind in experiment.kinds.items():
        summary = open_artifact(run / name, verify=False).manifest.summary
        measurements = len(list(run.glob(f"{name}/measurements/*.json"))) or None
        part = random.Random(f"{seed}/{name}").uniform(0.1, 0.9)
        found.append(Target(name, kind.name, part, summary["seconds"], summary.get("steps"), measurements))
    return found


def kill_in(target: Target, command: Command, run: Path, log: Path, overrides: Sequence[str]) -> str:
    """Start the command and kill it in a stage, as often as it takes to hit the stage.

    Args:
        target: the stage.
        command: what to start.
        run: folder of its run.
        log: where its words go.
        overrides: further values of `--set`.

    Returns:
        how far the stage had come.

    Raises:
        LLMKitError: the command fails before that, or the stage is too quick to be hit.
    """
    place, part = run / target.name, target.part
    for _ in range(ATTEMPTS):
        with command.started(log, *overrides) as process:
            seconds = _wait(target, part, place, process)
        if (process.returncode or 0) > 0:
            raise LLMKitError(f"`llmkit run` ends with exit code {process.returncode}.", where=str(log))
        left = unfinished(place)
        if left is not None and not is_artifact(place):
            return target.describe(left, seconds)
        remove_tree(place)
        part /= 2
    raise LLMKitError(f"the stage `{target.name}` ended before every one of {ATTEMPTS} kills.", where=str(log))


def _wait(target: Target, part: float, place: Path, process: Process) -> float:
    """Return when the moment to kill has come, or it is too late; the seconds since the stage was seen to start."""
    unit = target.seconds / max(1, target.units)
    wanted = max(1, int(part * target.units)) if target.units else 0
    started: float | None = None
    due: float | None = None
    while process.poll() is None and not is_artifact(place):
        now, directory = time.monotonic(), unfinished(place)
        if directory is not None:
            started = now if started is None else started
            if due is None and target.done(directory) >= wanted:
                due = now + part * unit
            if due is not None and now >= due:
                break
        time.sleep(POLL_SECONDS)
    return 0.0 if started is None else time.monotonic() - started


def _why(alone: Path, killed: Path) -> str:
    """Choices that were measured and came out otherwise, if that is why files differ."""
    files = [place / "engine.json" for place in (alone, killed)]
    if not all(file.is_file() for file in files):
        return ""
    ours, theirs = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    chosen = ("device", "threads", "precision")
    other = [f"{key} {theirs[key]} and not {ours[key]}" for key in chosen if ours[key] != theirs[key]]
    return f" (computed with {', '.join(other)})" if other else ""


def kill_everywhere(command: Command, alone: Path, scratch: Path, seed: int = 0) -> tuple[Path, dict[str, str]]:
    """Kill the command once in every stage, and run it to its end.

    Args:
        command: `llmkit run` on a config.
        alone: folder of a finished run of the same config.
        scratch: folder for the run that is killed, as `killed/`, and for its log, `killed.log`.
        seed: of the moments.

    Returns:
        folder of the run, and how far each stage had come when it was killed.

    Raises:
        LLMKitError: the command fails.
    """
    experiment, log = command.experiment(), scratch / "killed.log"
    chosen = targets(alone, experiment, seed)
    run = scratch / "killed" / experiment.settings.run
    overrides = [f"runs_dir={run.parent}", *(override for target in chosen for override in target.overrides)]
    moments = {}
    for target in chosen:
        moments[target.name] = kill_in(target, command, run, log, overrides)
        say(f"{target.name}: killed at {moments[target.name]}")
    command.finish(log, *overrides)
    return run, moments


def _compare(alone: Path, killed: Path, moments: Mapping[str, str]) -> bool:
    """Print the table and what differs; whether all is equal."""
    rows, complaints = [], []
    for name, moment in moments.items():
        count, different = different_files(alone / name, killed / name)
        manifests = [open_artifact(run / name, verify=False).manifest for run in (alone, killed)]
        seconds = [round(manifest.summary["seconds"], 1) for manifest in manifests]
        rows.append([name, manifests[0].stage, moment, *seconds, count, not different])
        if different:
            complaints.append(f"{name}: other bytes in {', '.join(different)}{_why(alone / name, killed / name)}")
    emit_table(["stage", "kind", "killed at", "s alone", "s killed", "files", "equal"], rows)
    for complaint in complaints:
        say(complaint)
    return not complaints


def main() -> int:
    """Run, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the experiment's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value; repeatable")
    parser.add_argument("--alone", type=Path, metavar="RUN", help="a finished run of the config, instead of making one")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other moments")
    parser.add_argument("--scratch", type=Path, help="an empty folder for the runs; by default a temporary one")
    options = parser.parse_args()
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = (options.scratch or Path(tempfile.mkdtemp(prefix="kill_and_resume-"))).resolve()
    if any(scratch.iterdir()):
        parser.error(f"{scratch} is not empty")
    try:
        command = ForkedCommand(options.config, options.set, threads=None)
        alone = options.alone
        if alone is None:
            say(f"the run left alone: see {scratch / 'alone.log'}")
            alone = scratch / "alone" / command.experiment().settings.run
            command.finish(scratch / "alone.log", f"runs_dir={alone.parent}")
        killed, moments = kill_everywhere(command, alone, scratch, options.seed)
    except LLMKitError as error:
        say(f"error: {error}")
        return error.exit_code
    equal = _compare(alone, killed, moments)
    if equal and options.scratch is None:
        shutil.rmtree(scratch)
    say("every file is identical to the byte." if equal else f"files differ; the runs are kept in {scratch}")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
