"""Which module reads which kind of source."""

from __future__ import annotations

import importlib

from llmkit.data.sources.base import Reader
from llmkit.data.sources.config import SourceConfig

_READERS = {
    "python-docs": "llmkit.data.sources.python_docs:PythonDocsReader",
    "text": "llmkit.data.sources.text:TextReader",
    "jsonl": "llmkit.data.sources.tables:TableReader",
    "csv": "llmkit.data.sources.tables:TableReader",
    "parquet": "llmkit.data.sources.tables:TableReader",
    "arrow": "llmkit.data.sources.tables:TableReader",
    "html": "llmkit.data.sources.html:HtmlReader",
    "web": "llmkit.data.sources.web:WebReader",
    "warc": "llmkit.data.sources.warc:WarcReader",
    "wikipedia": "llmkit.data.sources.wikipedia:WikipediaReader",
    "markdown": "llmkit.data.sources.markdown:MarkdownReader",
    "epub": "llmkit.data.sources.books:BookReader",
    "pdf": "llmkit.data.sources.books:BookReader",
    "code": "llmkit.data.sources.code:CodeReader",
    "dataset": "llmkit.data.sources.dataset:DatasetReader",
}


def open_reader(source: SourceConfig) -> Reader:
    """The reader of a source; a new kind of source is a settings class, a reader, and a row of the table above."""
    module, _, name = _READERS[source.kind].partition(":")
    reader: Reader = getattr(importlib.import_module(module), name)(source)
    return reader
