"""The tasks `keys`, `find` and `settle`: what of a corpus is there already, by the methods of `deduplication`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.corpus.measuring import KEPT, MEASURES
from llmkit.data.corpus.parts import Part, documents_file
from llmkit.data.deduplication import base
from llmkit.data.deduplication.base import Method
from llmkit.data.deduplication.config import DeduplicationConfig
from llmkit.data.deduplication.keys import write_keys
from llmkit.data.deduplication.methods import methods, open_method
from llmkit.data.deduplication.results import parts_after
from llmkit.data.execution.engine import Engine
from llmkit.data.execution.tasks import Result, Task, Work
from llmkit.store.documents import document_files
from llmkit.store.splits import SPLITS
from llmkit.store.stage import ResolvedInput

VERSION = 2
_FUNCTIONS = "llmkit.data.corpus.duplicates"


@dataclass(frozen=True)
class Judged:
    """A part with the keys of what is known of it.

    Args:
        part: the part.
        judged: key of the task that judged it.
        measured: keys of its measures by filter.
    """

    part: Part
    judged: str
    measured: Mapping[str, str]


def find_duplicates(
    engine: Engine, config: DeduplicationConfig, parts: Sequence[Judged], earlier: Sequence[ResolvedInput]
) -> dict[str, Result]:
    """What each method drops and cuts out, by its name, in the order in which they run.

    Args:
        engine: does the tasks.
        config: settings.
        parts: the corpus, in the order of the sources.
        earlier: corpora that come before it.

    Returns:
        results that `deduplication.results.settled` reads; the place of a part in them is behind those of earlier
        corpora, of which there are `earlier_parts(earlier)`.
    """
    found: dict[str, Result] = {}
    wanted = methods(config)
    if not wanted:
        return found
    keys = engine.run(_key_tasks(config, parts, earlier), "finding keys of texts")
    row = _Row(parts, keys[: len(keys) - len(parts)], keys[len(keys) - len(parts) :])
    for method in wanted:
        shares = method.shares(row.parts(engine, found))
        what = f"{method.name}"
        shared = engine.run([row.task("find", method, found, share, shares) for share in range(shares)], what)
        (found[method.name],) = engine.run([row.task("settle", method, found, shares=shares, shared=shared)], what)
    return found


def earlier_parts(earlier: Sequence[ResolvedInput]) -> int:
    """How many parts earlier corpora have: one for each file of documents."""
    return sum(len(_files(corpus)) for corpus in earlier)


def _files(corpus: ResolvedInput) -> list[Path]:
    return [file for split in SPLITS for file in document_files(corpus.path, split)]


def _key_tasks(config: DeduplicationConfig, parts: Sequence[Judged], earlier: Sequence[ResolvedInput]) -> list[Task]:
    settings = config.key_settings()
    before = [
        Task(
            "keys",
            f"{_FUNCTIONS}:keys",
            {"keys": settings, "corpus": corpus.digest, "file": file.name},
            places={"file": str(file)},
            version=VERSION,
            label=f"{corpus.label}, {file.name}",
            cost=file.stat().st_size * 3,
        )
        for corpus in earlier
        for file in _files(corpus)
    ]
    return before + [
        Task(
            "keys",
            f"{_FUNCTIONS}:keys",
            {"keys": settings, "part": item.part.number},
            {"read": [item.part.read]},
            version=VERSION,
            label=item.part.label,
            cost=item.part.bytes,
        )
        for item in parts
    ]


def keys(work: Work) -> Mapping[str, Any]:
    """The keys of one part.

    Returns:
        how many `rows` it has.
    """
    if "read" in work.inputs:
        file = documents_file(work.one("read").path, work.settings["part"])
    else:
        file = Path(work.places["file"])
    return {"rows": write_keys([file], work.settings["keys"], work.output)}


class _Row:
    """All parts in their order, and the tasks that look at all of them."""

    def __init__(self, parts: Sequence[Judged], before: Sequence[Result], keys: Sequence[Result]) -> None:
        reads = list(dict.fromkeys(item.part.read for item in parts))
        place = {key: number for number, key in enumerate(reads)}
        self._inputs: dict[str, list[str]] = {
            "read": reads,
            "before": [result.key for result in before],
            "keys": [result.key for result in keys],
            "judged": [item.judged for item in parts],
        }
        for name in parts[0].measured if parts else ():
            self._inputs[f"measured.{name}"] = [item.measured[name] for item in parts]
        self._parts = [[place[item.part.read], item.part.number] for item in parts]
        self._cost = sum(item.part.bytes for item in parts)

    def task(
        self, name: str, method: Method, found: Mapping[str, Result], share: int = 0, shares: int = 1,
        shared: Sequence[Result] = (),
    ) -> Task:  # fmt: skip
        """The task `find` of one share, or `settle` of all."""
        inputs = {key: value for key, value in self._inputs.items() if not key.startswith("measured.")}
        # Only the measure that decides which document stays: another filter's threshold changes nothing here.
        keep = str(method.settings.get("keep", ""))
        if " " in keep:
            column = f"measured.{keep.split()[1].partition('.')[0]}"
            inputs[column] = self._inputs[column]
        inputs["before_methods"] = [result.key for result in found.values()]
        inputs["shared"] = [result.key for result in shared]
        settings = {"method": method.name, "settings": dict(method.settings), "parts": self._parts}
        return Task(
            name,
            f"{_FUNCTIONS}:{name}",
            {**settings, "share": share, "shares": shares},
            inputs,
            version=VERSION,
            label=f"{method.name}, {share + 1} of {shares}",
            cost=self._cost // 10 // shares,
        )

    def parts(self, engine: Engine, found: Mapping[str, Result]) -> list[base.Part]:
        """The parts as the methods so far leave them."""
        inputs = {name: [engine.result(key) for key in keys] for name, keys in self._inputs.items()}
        inputs["before_methods"] = list(found.values())
        return _parts(inputs, self._parts)


def _parts(inputs: Mapping[str, Sequence[Result]], places: Sequence[Sequence[int]]) -> list[base.Part]:
    """The parts of a corpus out of the results that they are made of."""
    parts = [base.Part(result.path, result.facts["rows"], earlier=True) for result in inputs["before"]]
    measures = {name.removeprefix("measured."): found for name, found in inputs.items() if name.startswith("measured.")}
    for index, (read, number) in enumerate(places):
        keys = inputs["keys"][index]
        parts.append(
            base.Part(
                keys.path,
                keys.facts["rows"],
                (documents_file(inputs["read"][read].path, number),),
                inputs["judged"][index].path / KEPT,
                {name: (found[index].path / MEASURES,) for name, found in measures.items()},
            )
        )
    for result in inputs["before_methods"]:
        parts = parts_after(parts, result.path)
    return parts


def find(work: Work) -> None:
    """What one share of the keys has in common."""
    settings = work.settings
    method = open_method(settings["method"], settings["settings"])
    method.find(_parts(work.inputs, settings["parts"]), settings["share"], settings["shares"], work.output)


def settle(work: Work) -> None:
    """What a method does to each part."""
    settings = work.settings
    method = open_method(settings["method"], settings["settings"])
    shared = [result.path for result in work.inputs["shared"]]
    method.settle(_parts(work.inputs, settings["parts"]), shared, work.output)
