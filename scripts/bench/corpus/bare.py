"""The rate of `tokenizers` itself: batches of texts that lie in memory, all threads it is given, nothing written."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer

from llmkit.store.documents import read_texts

_BATCH = 1000


def main() -> None:
    """Encode the documents of an artifact; prints bytes of text and seconds."""
    task = json.loads(sys.argv[1])
    texts = list(read_texts(Path(task["documents"])))
    tokenizer = Tokenizer.from_file(task["tokenizer"])
    tokenizer.encode_batch_fast(texts[:100], add_special_tokens=False)
    start, tokens = time.perf_counter(), 0
    for begin in range(0, len(texts), _BATCH):
        batch = tokenizer.encode_batch_fast(texts[begin : begin + _BATCH], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in batch)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "tokens": tokens, "bytes": sum(len(text.encode()) for text in texts)}))


if __name__ == "__main__":
    main()
