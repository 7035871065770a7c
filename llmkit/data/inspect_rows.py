"""One row of documents, tokens or examples: where it comes from, and its tokens with the loss mask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit.data.examples import Conversation, Example, LabelledText, Preference, TaggedText, iterate_examples
from llmkit.data.inspect import Table, marked_tokens, visible
from llmkit.data.shards import TokenShards
from llmkit.errors import DataError
from llmkit.store.documents import document_files
from llmkit.store.splits import SPLITS
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

Encoded = tuple[str, list[int], list[int]]
"""What it is, ids, and for each of them 1 where the loss is taken on it; no mask where there is none."""


def show_document(directory: Path, split: str, row: int, tokenizer: Tokenizer | None) -> list[Table]:
    """A document with what is known and was measured of it, as tokens or, without a tokenizer, as text.

    Raises:
        DataError: there is no such row or split.
    """
    import pyarrow.parquet as pq

    files = document_files(directory, _known(split))
    first = 0
    for file in files:
        with pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                count = opened.metadata.row_group(group).num_rows
                if row < first + count:
                    table = opened.read_row_group(group, use_threads=False)
                    return _document(table.slice(row - first, 1).to_pylist()[0], tokenizer)
                first += count
    raise _no_row(row, split, first, directory)


def _document(values: dict[str, Any], tokenizer: Tokenizer | None) -> list[Table]:
    text = values.pop("text")
    facts = [[name, visible(value) if isinstance(value, str) else value] for name, value in values.items()]
    head = Table("Document", ["", "value"], facts)
    if tokenizer is None:
        return [head, _plain([("text", text)])]
    return [head, *_tokens([("text", tokenizer.encode(text), [])], tokenizer)]


def show_tokens(directory: Path, split: str, row: int, tokenizer: Tokenizer) -> list[Table]:
    """A document of token shards. The loss is taken on all of its tokens.

    Raises:
        DataError: there is no such row or split.
        ArtifactError: damaged files.
    """
    shards = TokenShards(directory, _known(split))
    if row >= shards.documents:
        raise _no_row(row, split, shards.documents, directory)
    return _tokens([("document", shards.document(row).tolist(), [])], tokenizer)


def show_example(source: ResolvedInput, split: str, row: int, tokenizer: Tokenizer | None) -> list[Table]:
    """An example as tokens, with its loss mask; or, without a tokenizer, as text.

    Raises:
        DataError: there is no such row or split, a row is malformed, or the chat template refuses it.
    """
    examples = iterate_examples(source, _known(split))
    found = next(islice(examples, row, None), None)
    if found is None:
        raise _no_row(row, split, sum(1 for _ in iterate_examples(source, split)), source.path)
    values = found.to_row()
    facts = [
        [name, visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
        for name, value in values.items()
        if name not in ("messages", "prompt", "chosen", "rejected", "text", "tokens", "labels")
    ]
    shown = [_plain(_texts(found))] if tokenizer is None else _tokens(encode_example(found, tokenizer), tokenizer)
    return [Table("Example", ["", "value"], facts), *shown]


def _known(split: str) -> str:
    if split not in SPLITS:
        raise DataError(f"there is no split `{split}`.", hint=f"Splits: {', '.join(SPLITS)}.")
    return split


def _no_row(row: int, split: str, rows: int, place: Path) -> DataError:
    last = f"the last one is {rows - 1:,}" if rows else "it is empty"
    return DataError(f"there is no row {row:,} in the split `{split}`; {last}.", where=str(place))


def _texts(example: Example) -> list[tuple[str, str]]:
    if isinstance(example, LabelledText):
        return [("text", example.text)]
    if isinstance(example, TaggedText):
        return [(label, word) for word, label in zip(example.words, example.labels, strict=True)]
    if isinstance(example, Conversation):
        return [(message["role"], message["content"]) for message in example.messages]
    prompt = [(message["role"], message["content"]) for message in example.prompt]
    return [*prompt, ("chosen", example.chosen), ("rejected", example.rejected)]


def encode_example(example: Example, tokenizer: Tokenizer) -> list[Encoded]:
    """The tokens of an example, as training reads them before anything is cut.

    Of a conversation, what the assistant says is learned, and of a preference its two answers.

    Raises:
        DataError: the chat template refuses it.
    """
    if isinstance(example, LabelledText):
        return [("text", tokenizer.encode(example.text), [])]
    if isinstance(example, TaggedText):
        return [("words", [token for ids in tokenizer.encode_batch(example.words) for token in ids], [])]
    if isinstance(example, Conversation):
        ids, mask = tokenizer.render_conversation(example.messages)
        # There is nothing to predict the first token from.
        return [("conversation", ids, [0, *mask[1:]])]
    return [
        ("chosen", *_answer(example, example.chosen, tokenizer)),
        ("rejected", *_answer(example, example.rejected, tokenizer)),
    ]


def _answer(example: Preference, answer: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    ids, mask = tokenizer.render_conversation([*example.prompt, {"role": "assistant", "content": answer}])
    begin = len(tokenizer.render_conversation(example.prompt, add_generation_prompt=True).ids)
    return ids, [0] * begin + mask[begin:]


def _plain(parts: Sequence[tuple[str, str]]) -> Table:
    return Table("Text", ["", "text"], [[name, visible(text)] for name, text in parts])


def _tokens(parts: Sequence[Encoded], tokenizer: Tokenizer) -> list[Table]:
    decode = partial(tokenizer.decode, skip_special=False)
    masked = any(mask for _, _, mask in parts)
    counts = [[name, len(ids), *([sum(mask)] if masked else [])] for name, ids, mask in parts]
    learned = ["learned ([[...]], or green)"] if masked else []
    shown = [
        Table("", [name], [[marked_tokens(ids, decode, mask, break_lines=True)]]) for name, ids, mask in parts if ids
    ]
    return [Table("Tokens", ["", "tokens", *learned], counts), *shown]
