"""Which documents a tokenizer learns from: all of them, or parts of the sources, chosen by digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError
from llmkit.store.documents import document_files, read_documents, read_texts
from llmkit.store.stage import Context
from llmkit.tokenizer.config import TokenizerConfig


@dataclass(frozen=True)
class Sample:
    """The text to learn from: how to read it, how much it is, and its share of the training part.

    Args:
        texts: the texts, from their start at each call.
        documents: how many.
        bytes: their length in UTF-8.
        share: part of the training documents' bytes that was asked for.
        sources: the same of each source.
    """

    texts: Callable[[], Iterable[str]]
    documents: int
    bytes: int
    share: float
    sources: Mapping[str, float]


def choose_sample(config: TokenizerConfig, context: Context) -> Sample:
    """All training documents, or those whose keyed digest falls below the share of their source that is wanted.

    Raises:
        DataError: a source is named that is not there, or nothing is left.
    """
    directory = context.inputs["data"].path
    sizes = _sizes(directory)
    total = sum(size for _, size in sizes.values())
    for name in config.sources or {}:
        if name not in sizes:
            raise DataError(
                f"the training documents have no source `{name}`.",
                where=context.place("sources"),
                hint=f"Sources: {', '.join(sorted(sizes))}.",
            )
    shares = source_shares({name: size for name, (_, size) in sizes.items()}, config.sources, config.max_bytes)
    wanted = sum(sizes[name][1] * share for name, share in shares.items())
    share = wanted / total if total else 1.0
    if all(share == 1 for share in shares.values()):
        documents = sum(count for count, _ in sizes.values())
        sample = Sample(lambda: read_texts(directory, ["train"]), documents, total, 1.0, shares)
    else:

        def chosen() -> Iterator[str]:
            for document in read_documents(directory, ["train"]):
                key = f"{context.seed}:tokenizer:{document.id}".encode()
                if int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < shares[document.source] * 2**64:
                    yield document.text

        sample = Sample(chosen, *_count(chosen()), share, shares)
    if sample.bytes == 0:
        hint = "Raise it." if share < 1 else None
        raise DataError(
            "no text is left to learn from.", where=context.place("max_bytes" if hint else "data"), hint=hint
        )
    return sample


def source_shares(
    sizes: Mapping[str, int], weights: Mapping[str, float] | None, max_bytes: int | None
) -> dict[str, float]:
    """Part of each source to take, so that the parts are in the proportion of the weights.

    A source with too little for its part is taken whole, and the others fill up in their proportion.

    Args:
        sizes: bytes of each source.
        weights: sources that are not named get none; None takes all alike.
        max_bytes: bytes to take in all; None for as many as leave the proportion as it is.
    """
    total = sum(sizes.values())
    if weights is None:
        share = 1.0 if max_bytes is None or total <= max_bytes else max_bytes / total
        return dict.fromkeys(sizes, share)
    left = {name: weight for name, weight in weights.items() if sizes[name]}
    shares = dict.fromkeys(sizes, 0.0)
    if max_bytes is None:
        most = min((sizes[name] / weight for name, weight in left.items()), default=0.0)
        return shares | {name: most * weight / sizes[name] for name, weight in left.items()}
    room = float(max_bytes)
    while left:
        each = room / sum(left.values())
        whole = [name for name, weight in left.items() if each * weight >= sizes[name]]
        if not whole:
            return shares | {name: each * weight / sizes[name] for name, weight in left.items()}
        for name in whole:
            shares[name] = 1.0
            room -= sizes[name]
            del left[name]
    return shares


def _sizes(directory: Path) -> dict[str, tuple[int, int]]:
    """Documents and bytes of each source's training part, without making Python's texts of them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    sizes: dict[str, tuple[int, int]] = {}
    for file in document_files(directory, "train"):
        with pq.ParquetFile(file) as opened:
            for rows in opened.iter_batches(columns=["text", "source"], use_threads=False):
                lengths = pc.cast(pc.binary_length(rows.column("text")), pa.int64())
                table = pa.table({"source": rows.column("source"), "size": lengths}).group_by("source")
                for row in table.aggregate([("size", "sum"), ("size", "count")]).to_pylist():
                    count, size = sizes.get(row["source"], (0, 0))
                    sizes[row["source"]] = (count + row["size_count"], size + row["size_sum"])
    return sizes


def _count(texts: Iterable[str]) -> tuple[int, int]:
    documents = size = 0
    for text in texts:
        documents += 1
        size += len(text.encode())
    return documents, size
