"""The texts that token shards were made of."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.data.shards import TokenShards
from llmkit.errors import DataError
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer


def decoded_texts(source: ResolvedInput, split: str) -> Iterator[str]:
    """Texts of the documents of one split of tokens, in order; none where it has no such split.

    Raises:
        DataError: behind the last one, where all together are not the bytes that the tokens were made of.
    """
    if not (source.path / split).is_dir():
        return
    tokenizer = Tokenizer.load(source.tokenizer_directory)
    shards = TokenShards(source.path, split, tokenizer.digest)
    size = 0
    for index in range(shards.documents):
        ids = shards.document(index).tolist()
        if shards.separator is not None and ids and ids[-1] == shards.separator:
            ids.pop()
        text = tokenizer.decode(ids)
        size += len(text.encode())
        yield text
    if size != shards.text_bytes:
        raise DataError(
            f"the tokens give back {size:,} bytes of the {shards.text_bytes:,} that they were made of.",
            where=str(source.path),
            hint="Their tokenizer does not keep all of a text; use the documents instead.",
        )
