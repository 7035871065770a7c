"""Any dataset of the `datasets` library, from the hub or from a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.config.base import Finding
from llmkit.data.sources.base import Record, Slice
from llmkit.data.sources.columns import check_columns, row_record
from llmkit.data.sources.config import DatasetSource
from llmkit.errors import DataError


class DatasetReader:
    """Reads the rows of one split in the dataset's own order."""

    def __init__(self, config: DatasetSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Whether the dataset can be had, with its split and its columns; asks the hub unless it is a local folder."""
        try:
            opened = self._open(streaming=True)
            names = opened.column_names
            if names is None:
                names = list(next(iter(opened), {}))
        except DataError as error:
            yield Finding(error.message, key="dataset", hint=error.hint)
        else:
            yield from check_columns(self._config, names, f"`{self._config.dataset}`")

    def slices(self) -> list[Slice]:
        """All of it: it is read in one go."""
        return [Slice(self._config.label)]

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each row.

        Raises:
            DataError: the dataset cannot be had, or breaks off; what would come after that cannot be known.
        """
        config = self._config
        rows = iter(self._open(streaming=config.streaming))
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise self._problem(f"breaks off after row {number}", error) from None
            number += 1
            yield row_record(config, row, config.split, f"row {number}")

    def _open(self, *, streaming: bool) -> Any:
        from datasets import load_dataset

        config = self._config
        try:
            return load_dataset(
                config.dataset, config.config, split=config.split, revision=config.revision, streaming=streaming
            )
        except Exception as error:
            raise self._problem("cannot be had", error) from None

    def _problem(self, what: str, error: Exception) -> DataError:
        # The library and the network below it raise anything; the reason is in the text.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        hint = (
            "A folder is read with its files' own names and endings (.parquet, .jsonl, .csv)."
            if self._config.is_local
            else "Check the name, the configuration and the network; without one, set `dataset` to a local folder."
        )
        return DataError(f"the dataset `{self._config.dataset}` {what}: {reason}.", hint=hint)
