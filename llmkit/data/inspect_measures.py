"""What filters have measured, as quantiles: where a threshold would cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.inspect import Table
from llmkit.data.stage import DROPPED
from llmkit.store.documents import document_files
from llmkit.store.splits import SPLITS

SAMPLED_ROWS = 200_000
"""Documents that the quantiles are taken from; of more, row groups that are evenly spread."""
_QUANTILES = (0.05, 0.5, 0.95)


def measures_of(directory: Path, sampled_rows: int = SAMPLED_ROWS) -> list[Table]:
    """A table for each filter: smallest, 5%, median, 95% and largest value of each of its measures.

    Documents that were kept and those that were dropped count, as far as they got to the filter. The smallest and the
    largest value are those of all documents, also where the quantiles are those of some.

    Args:
        directory: an artifact of documents.
        sampled_rows: about how many documents the quantiles are taken from, where there are more.
    """
    files = [file for split in SPLITS for file in document_files(directory, split)]
    files += sorted((directory / DROPPED).glob("*.parquet"))
    names = _numbers(files)
    if not names:
        return []
    rows, groups = _row_groups(files)
    step = max(1, round(rows / sampled_rows))
    values: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for table in _tables(groups[::step], names):
        for name in names:
            values[name].append(_known(table.column(name)))
    limits = _limits(files, names)
    tables: dict[str, list[list[Any]]] = {}
    for name in names:
        found = np.concatenate(values[name])
        if len(found):
            least, most = limits.get(name) or (found.min(), found.max())
            # Parquet writes a smallest value of 0 as -0.
            row = [float(least) + 0.0, *np.quantile(found, _QUANTILES).tolist(), float(most)]
            tables.setdefault(name.partition(".")[0], []).append([name.partition(".")[2], *row])
    of = "" if step == 1 else f"; quantiles from one row group in {step}"
    columns = ["measure", "min", "5%", "median", "95%", "max"]
    return [Table(f"Measures of {name} ({rows:,} documents{of})", columns, found) for name, found in tables.items()]


def _numbers(files: Sequence[Path]) -> list[str]:
    """Columns of measures that are numbers, or yes and no."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, None] = {}
    for file in files[:1]:
        for field in pq.read_schema(file):
            numeric = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
            if "." in field.name and (numeric or pa.types.is_boolean(field.type)):
                found[field.name] = None
    return list(found)


def _row_groups(files: Sequence[Path]) -> tuple[int, list[tuple[Path, int]]]:
    """Rows of all files, and every row group."""
    import pyarrow.parquet as pq

    rows, groups = 0, []
    for file in files:
        metadata = pq.read_metadata(file)
        rows += metadata.num_rows
        groups += [(file, group) for group in range(metadata.num_row_groups)]
    return rows, groups


def _tables(groups: Sequence[tuple[Path, int]], names: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for file, group in groups:
        with pq.ParquetFile(file) as opened:
            yield opened.read_row_group(group, columns=list(names), use_threads=False)


def _known(column: Any) -> NDArray[np.float64]:
    """The values of a column that are there, as numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers: NDArray[np.float64] = pc.cast(column.drop_null(), pa.float64()).to_numpy()
    return numbers[~np.isnan(numbers)]


def _limits(files: Sequence[Path], names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Smallest and largest value of each column, by what the files' own heads say of their row groups."""
    import pyarrow.parquet as pq

    found: dict[str, tuple[Any, Any]] = {}
    for file in files:
        metadata = pq.read_metadata(file)
        places = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
        for group in range(metadata.num_row_groups):
            for name in names:
                known = metadata.row_group(group).column(places[name]).statistics
                if known is not None and known.has_min_max:
                    least, most = found.get(name, (known.min, known.max))
                    found[name] = min(least, known.min), max(most, known.max)
    return found
