"""What the documents of a corpus are: lengths, languages, licences and dates, counted by source while they are written.

A census is plain JSON, by source:

- `documents`, `bytes`, `characters`: totals
- `lengths`: documents by length in characters, under the largest power of two that is no more ("0" for empty ones)
- `languages`, `licenses`: `documents` and `bytes` of each; "" where it is not known
- `dates`, `fetched`: `documents` that tell one in their metadata, the `first` and the `last` of them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_DATES = {"dates": "date", "fetched": "fetched"}
"""Names in a census by names in the metadata of documents."""
_COLUMNS = {"languages": "language", "licenses": "license"}


def count_documents_of(table: pa.Table) -> dict[str, Any]:
    """The census of some documents.

    Args:
        table: with the columns `text`, `source`, `language`, `license` and `metadata`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    characters = pc.utf8_length(table.column("text"))
    known = pa.table(
        {
            "source": table.column("source"),
            "bytes": pc.cast(pc.binary_length(table.column("text")), pa.int64()),
            "characters": pc.cast(characters, pa.int64()),
            "length": _powers(characters),
            **{name: pc.fill_null(table.column(column), "") for name, column in _COLUMNS.items()},
            **{name: _dates(table.column("metadata"), key) for name, key in _DATES.items()},
        }
    )
    found: dict[str, dict[str, Any]] = {}
    for row in _grouped(known, "source", [("bytes", "sum"), ("characters", "sum"), ("bytes", "count")]):
        found[row["source"]] = _nothing() | {
            "documents": row["bytes_count"], "bytes": row["bytes_sum"], "characters": row["characters_sum"],
        }  # fmt: skip
    for row in _grouped(known, "length", [("bytes", "count")]):
        found[row["source"]]["lengths"][str(row["length"])] = row["bytes_count"]
    for name in _COLUMNS:
        for row in _grouped(known, name, [("bytes", "sum"), ("bytes", "count")]):
            counted = {"documents": row["bytes_count"], "bytes": row["bytes_sum"]}
            found[row["source"]][name][row[name]] = counted
    for name in _DATES:
        for row in _grouped(known, "source", [(name, "count"), (name, "min"), (name, "max")]):
            if row[f"{name}_count"]:
                dates = {"documents": row[f"{name}_count"], "first": row[f"{name}_min"], "last": row[f"{name}_max"]}
                found[row["source"]][name] = dates
    return found


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys(("documents", "bytes", "characters"), 0), "lengths": {}, **{name: {} for name in _COLUMNS}}


def _grouped(table: pa.Table, column: str, wanted: list[tuple[str, str]]) -> list[dict[str, Any]]:
    keys = ["source"] if column == "source" else ["source", column]
    rows: list[dict[str, Any]] = table.group_by(keys, use_threads=False).aggregate(wanted).to_pylist()
    return rows


def _powers(lengths: Any) -> Any:
    """The largest power of two that is no more than each length; 0 for 0."""
    import numpy as np
    import pyarrow as pa

    # The exponent of a float64 is exact: no text is as long as 2**53.
    _, exponents = np.frexp(lengths.to_numpy().astype(np.float64))
    return pa.array(np.where(exponents > 0, np.int64(1) << np.maximum(exponents - 1, 0).astype(np.int64), 0))


def _dates(metadata: Any, key: str) -> Any:
    """Year, month and day under a key of the metadata, as far as they are written as in ISO 8601; else nothing."""
    import pyarrow.compute as pc

    # Metadata is canonical JSON, in which this can only be a key: quotes inside of values are escaped.
    found = pc.extract_regex(metadata, rf'"{key}":"(?P<date>[0-9]{{4}}(?:-[0-9]{{2}}(?:-[0-9]{{2}})?)?)(?:["T ])')
    return pc.struct_field(found, [0])


def add_up(censuses: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One census of all documents that were counted, its names sorted."""
    total: dict[str, Any] = {}
    for census in censuses:
        for source, counted in census.items():
            _add(total.setdefault(source, {}), counted)
    return {source: _sorted(counted) for source, counted in sorted(total.items())}


def over_sources(census: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted, over all sources together."""
    total = _nothing()
    for counted in census.values():
        _add(total, counted)
    return _sorted(total)


def _add(total: dict[str, Any], counted: Mapping[str, Any]) -> None:
    for name, value in counted.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, str):
            total[name] = (min if name == "first" else max)(total.get(name, value), value)
        else:
            total[name] = total.get(name, 0) + value


def _sorted(counted: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the names inside in order: lengths as numbers, the most frequent language and licence first."""
    found = dict(counted)
    if "lengths" in found:
        found["lengths"] = dict(sorted(found["lengths"].items(), key=lambda item: int(item[0])))
    for name in _COLUMNS:
        if name in found:
            ranked = sorted(found[name].items(), key=lambda item: (-item[1]["documents"], item[0]))
            found[name] = dict(ranked)
    return found
