"""The tasks `measure` and `judge`: columns of measures beside the documents of a part, and what filters say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.config.base import Config
from llmkit.data.cleaning.base import ColumnType, Filter
from llmkit.data.cleaning.pipeline import filters
from llmkit.data.corpus.counts import StepCounts
from llmkit.data.corpus.parts import Part, documents_file, load_sizes, read_documents_of
from llmkit.data.corpus.reading import only
from llmkit.data.decontamination.config import DecontaminationConfig
from llmkit.data.execution.tasks import Result, Task, Work
from llmkit.data.modelled.config import PerplexityConfig
from llmkit.data.modelled.perplexity import Perplexity
from llmkit.data.sources.config import SourceConfig
from llmkit.store.documents import ParquetFiles
from llmkit.store.files import canonical_json
from llmkit.store.splits import SPLITS, Splits, split_of

MEASURES = "measures.parquet"
KEPT = "kept.npy"
SPLIT = "split.npy"
VERDICTS = "verdicts"
VERDICT_COLUMNS = ("row", "step", "reason", "detail")
DECONTAMINATION = "decontamination"
PERPLEXITY = "perplexity"
NGRAMS = "ngrams"
_MADE = {DECONTAMINATION: "index", PERPLEXITY: NGRAMS}
"""Filters that are made of a task's result, and its name among the inputs."""
VERSION = 1


class Measure:
    """A filter as the tasks know it.

    Args:
        filter: the filter.
        config: its settings as they are written.
        resolved: the same with paths that were found in the place of what names an input; by default `config`.
        digests: of the inputs that the settings name, by key.
        inputs: keys of results that measuring needs beside the documents, by name.
    """

    def __init__(
        self,
        filter: Filter,
        config: Config,
        resolved: Config | None = None,
        digests: Mapping[str, str] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.name = filter.name
        self.settings = config.model_dump(mode="json")
        self.resolved = (resolved or config).model_dump(mode="json")
        self.inputs = dict(inputs or {})
        self._digests = dict(digests or {})
        self._filter = filter

    def task(self, part: Part) -> Task:
        """The task that measures a part. Thresholds, of which the measures do not depend, are no part of its key."""
        return Task(
            "measure",
            "llmkit.data.corpus.measuring:measure",
            {
                "filter": self.name,
                "measuring": dict(self._filter.measuring),
                "columns": dict(self._filter.columns),
                "part": part.number,
                **({"inputs": self._digests} if self._digests else {}),
            },
            {"read": [part.read], **{name: [key] for name, key in self.inputs.items()}},
            {"settings": self.resolved},
            version=VERSION,
            label=f"{self.name}, {part.label}",
            cost=part.bytes,
            # Filters cut texts into the same words, which a process learns once.
            near=f"{part.read}/{part.number}",
        )


def measure(work: Work) -> None:
    """Measure the documents of a part by one filter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = work.settings
    found = open_filter(work, settings["filter"], work.places["settings"])
    types = {f"{found.name}.{name}": _arrow_type(kind) for name, kind in settings["columns"].items()}
    schema = pa.schema(list(types.items()))
    file = documents_file(work.one("read").path, settings["part"])
    with pq.ParquetWriter(work.output / MEASURES, schema, compression="zstd", write_statistics=False) as writer:
        for batch in read_documents_of(file):
            values = found.measure(batch)
            columns = [
                pa.array(values[name], types[f"{found.name}.{name}"], from_pandas=False) for name in settings["columns"]
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def open_filter(work: Work, name: str, settings: Mapping[str, Any]) -> Filter:
    """A filter by its name and settings; all that are in use are kept, since some load a model."""
    made = work.inputs.get(_MADE.get(name, ""))
    return _filter(name, canonical_json(settings), str(made[0].path) if made else None)


def close_filters() -> None:
    """Let go of the filters that this process keeps, and of their models."""
    _filter.cache_clear()


@lru_cache(maxsize=32)
def _filter(name: str, settings: str, made: str | None) -> Filter:
    if name == DECONTAMINATION:
        from llmkit.data.decontamination.filter import Decontamination

        assert made is not None
        return Decontamination(DecontaminationConfig.model_validate_json(settings), Path(made))
    if name == PERPLEXITY and made is not None:
        return Perplexity(PerplexityConfig.model_validate_json(settings), Path(made))
    (found,) = filters(only({name: json.loads(settings)}))
    return found


def _arrow_type(kind: ColumnType) -> Any:
    import pyarrow as pa

    names = {"bool": "bool", "float32": "float", "float64": "double"}
    return pa.type_for_alias(names.get(kind, kind))


def judge_task(
    part: Part, measures: Sequence[Measure], measured: Sequence[str], source: SourceConfig, splits: Splits
) -> Task:
    """The task that judges a part by what all filters have measured of it, and finds the split of each document.

    Args:
        part: the part.
        measures: the filters in the order in which they judge.
        measured: keys of what each has measured.
        source: where the part comes from.
        splits: what is held out.
    """
    inputs = {f"measured.{item.name}": [key] for item, key in zip(measures, measured, strict=True)}
    inputs.update({name: [key] for item in measures for name, key in item.inputs.items()})
    return Task(
        "judge",
        "llmkit.data.corpus.measuring:judge",
        {
            "filters": [[item.name, item.settings] for item in measures],
            "split_key": source.split_key,
            "splits": splits.model_dump(mode="json"),
            "part": part.number,
        },
        {"read": [part.read], **inputs},
        {"settings": {item.name: item.resolved for item in measures}},
        version=VERSION,
        label=part.label,
        cost=part.rows * 100,
    )


def judge(work: Work) -> Mapping[str, Any]:
    """Judge the documents of a part: the first filter that drops one names the reason.

    Returns:
        the `counts` of each filter, and the `bytes` that are kept.
    """
    sizes = load_sizes(work.one("read").path, work.settings["part"])
    kept = np.ones(len(sizes), dtype=bool)
    counts: dict[str, Any] = {}
    rows: list[tuple[int, list[str | None]]] = []
    for name, _ in work.settings["filters"]:
        here = StepCounts(documents_in=int(kept.sum()), bytes_in=int(sizes[kept].sum()))
        found = open_filter(work, name, work.places["settings"][name])
        verdicts = found.judge(load_measures(work.one(f"measured.{name}"), name))
        for row, verdict in enumerate(verdicts):
            if verdict is not None and kept[row]:
                kept[row] = False
                here.dropped[verdict.reason] += 1
                rows.append((row, [str(row), name, verdict.reason, verdict.detail]))
        here.kept, here.bytes_kept = int(kept.sum()), int(sizes[kept].sum())
        counts[name] = here.as_dict()
    np.save(work.output / KEPT, kept)
    np.save(work.output / SPLIT, _splits(work))
    with ParquetFiles(work.output, VERDICTS, VERDICT_COLUMNS) as verdicts_file:
        for _, values in sorted(rows):
            verdicts_file.write(values)
    return {"counts": counts, "bytes": int(sizes[kept].sum())}


def load_measures(result: Result, name: str) -> dict[str, NDArray[np.generic]]:
    """The columns that a filter has measured, by the filter's own names of them."""
    import pyarrow.parquet as pq

    table = pq.read_table(result.path / MEASURES, use_threads=False)
    return {
        column.removeprefix(f"{name}."): table.column(column).to_numpy(zero_copy_only=False)
        for column in table.column_names
    }


def _splits(work: Work) -> NDArray[np.int8]:
    """The split of each document of a part, as its place in `SPLITS`."""
    import pyarrow.parquet as pq

    key, fractions = work.settings["split_key"], Splits.model_validate(work.settings["splits"])
    wanted = ["id"] if key is None else ["id", "path"] if key == "path" else ["id", "metadata"]
    file = documents_file(work.one("read").path, work.settings["part"])
    table = pq.read_table(file, columns=wanted, use_threads=False)
    keys = table.column("id").to_pylist()
    if key == "path":
        keys = table.column("path").to_pylist()
    elif key is not None:
        metadata = map(json.loads, table.column("metadata").to_pylist())
        keys = [values.get(key, identity) for values, identity in zip(metadata, keys, strict=True)]
    return np.array([SPLITS.index(split_of(text, fractions)) for text in keys], np.int8)
