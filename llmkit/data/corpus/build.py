"""A corpus by its phases: read, measure, judge, find duplicates, write. Each phase is tasks; none holds the corpus."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import filters, steps
from llmkit.data.config import DataConfig
from llmkit.data.corpus.census import add_up
from llmkit.data.corpus.contamination import decontamination_measure
from llmkit.data.corpus.counts import READ, Counts
from llmkit.data.corpus.duplicates import Judged, earlier_parts, find_duplicates
from llmkit.data.corpus.measuring import DECONTAMINATION, NGRAMS, PERPLEXITY, Measure, judge_task
from llmkit.data.corpus.ngram_model import ngram_model
from llmkit.data.corpus.parts import Part
from llmkit.data.corpus.reading import DROPPED, QUARANTINE, read_tasks
from llmkit.data.corpus.writing import group_parts, write_task
from llmkit.data.deduplication.methods import methods
from llmkit.data.execution.engine import Engine
from llmkit.data.execution.tasks import Result, Task
from llmkit.store.documents import DOCUMENTS
from llmkit.store.splits import SPLITS
from llmkit.store.stage import Context, ResolvedInput


@dataclass(frozen=True)
class Corpus:
    """A corpus whose tasks are done.

    Args:
        written: results of the tasks that have written it, in order.
        report: counts by source and step, and by split; and a census of the documents (`census.py`).
    """

    written: Sequence[Result]
    report: Mapping[str, Any]

    def put(self, directory: Path) -> None:
        """Give the files their names in an artifact: `documents/`, `dropped/`, `quarantine/`."""
        folders: dict[str, str] = {**dict.fromkeys(SPLITS, DOCUMENTS), DROPPED: DROPPED, QUARANTINE: QUARANTINE}
        for name, folder in folders.items():
            (directory / folder).mkdir(exist_ok=True)
            files = [result.path / f"{name}.parquet" for result in self.written if result.facts["rows"][name]]
            for number, file in enumerate(files):
                _link(file, directory / folder / f"{name}-{number:05d}.parquet")


def _link(file: Path, place: Path) -> None:
    """The same file at another place; a copy where that is on another disk."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def make_corpus(engine: Engine, config: DataConfig, context: Context) -> Corpus:
    """Do all tasks of a corpus.

    Raises:
        DataError: a source breaks off in a way that leaves unknown what is missing.
    """
    # Mistakes in what filters read are found before any source is.
    measures = _measures(engine, config, context)
    tasks: list[Task] = []
    sources: list[int] = []
    for index in range(len(config.sources)):
        found = read_tasks(config, index, context.place(f"sources.{index}"))
        tasks += found
        sources += [index] * len(found)
    reads = engine.run(tasks, "reading")
    parts = [
        Part(source, result.key, number, part["rows"], part["bytes"], f"{task.label}, part {number + 1}")
        for source, task, result in zip(sources, tasks, reads, strict=True)
        for number, part in enumerate(result.facts["parts"])
    ]
    judged, verdicts = _judge(engine, config, parts, measures)
    earlier = [context.inputs[needed.key] for needed in config.deduplication.inputs("deduplication")]
    duplicates = find_duplicates(engine, config.deduplication, judged, earlier)
    first = earlier_parts(earlier) if duplicates else 0
    groups = group_parts(reads, judged, verdicts)
    least = config.deduplication.min_characters
    written = engine.run([write_task(group, duplicates, first, least) for group in groups], "writing")
    names = [source.label for source in config.sources]
    counts = Counts(names, step_names(config))
    for source, result in zip(sources, reads, strict=True):
        counts.add(names[source], result.facts["counts"])
    for part, verdict in zip(parts, verdicts, strict=True):
        counts.add(names[part.source], verdict.facts["counts"])
    for result in written:
        for number, found_by in result.facts["counts"].items():
            counts.add(names[int(number)], found_by)
    census = add_up(result.facts["census"] for result in written)
    return Corpus(written, {**counts.report(), "splits": _splits(written), "census": census})


def step_names(config: DataConfig) -> list[str]:
    """Names of all steps in the order in which they run, reading first."""
    decontamination = [] if config.decontamination is None else [DECONTAMINATION]
    return [
        READ,
        *(step.name for step in steps(config.cleaning)),
        *(item.name for item in filters(config.cleaning)),
        *decontamination,
        *(method.name for method in methods(config.deduplication)),
    ]


def _measures(engine: Engine, config: DataConfig, context: Context) -> list[Measure]:
    """All that measures, in the order in which it judges."""
    named = config.cleaning.inputs("cleaning")
    resolved = _with_paths(config.cleaning, {needed.key: context.inputs[needed.key] for needed in named})
    found = []
    for item in filters(resolved):
        mine = [needed.key for needed in named if needed.key.startswith(f"cleaning.{item.name}.")]
        digests = {key: context.inputs[key].digest for key in mine}
        written, made = getattr(config.cleaning, item.name), _made_for(engine, item.name, config, context)
        found.append(Measure(item, written, getattr(resolved, item.name), digests, made))
    if config.decontamination is not None:
        found.append(decontamination_measure(engine, config.decontamination, context))
    return found


def _made_for(engine: Engine, name: str, config: DataConfig, context: Context) -> dict[str, str]:
    """Keys of results that a filter measures by, by their names."""
    perplexity = config.cleaning.perplexity
    if name != PERPLEXITY or perplexity is None or perplexity.ngram is None:
        return {}
    model = ngram_model(engine, perplexity.ngram, f"cleaning.{PERPLEXITY}.ngram", context.inputs)
    return {NGRAMS: model.key}


def _with_paths(config: CleaningConfig, inputs: Mapping[str, ResolvedInput]) -> CleaningConfig:
    """Settings in which the paths of inputs stand where they are named."""
    if not inputs:
        return config
    dumped = config.model_dump(mode="json")
    for key, found in inputs.items():
        *above, last = key.split(".")[1:]
        place: Any = dumped
        for name in above:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[int(last) if isinstance(place, list) else last] = str(found.path)
    return CleaningConfig.model_validate_json(json.dumps(dumped))


def _judge(
    engine: Engine, config: DataConfig, parts: Sequence[Part], measures: Sequence[Measure]
) -> tuple[list[Judged], list[Result]]:
    """Measure and judge every part."""
    measured = engine.run([item.task(part) for part in parts for item in measures], "measuring")
    keys = [result.key for result in measured]
    count = len(measures)
    by_part = [keys[index * count : (index + 1) * count] for index in range(len(parts))]
    verdicts = engine.run(
        [
            judge_task(part, measures, found, config.sources[part.source], config.splits)
            for part, found in zip(parts, by_part, strict=True)
        ],
        "judging",
    )
    judged = [
        Judged(part, verdict.key, {item.name: key for item, key in zip(measures, found, strict=True)})
        for part, verdict, found in zip(parts, verdicts, by_part, strict=True)
    ]
    return judged, verdicts


def _splits(written: Sequence[Result]) -> dict[str, dict[str, int]]:
    return {
        split: {
            "documents": sum(result.facts["rows"][split] for result in written),
            "bytes": sum(result.facts["bytes"][split] for result in written),
        }
        for split in SPLITS
    }
