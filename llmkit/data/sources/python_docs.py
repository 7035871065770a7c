"""The text that every Python carries: language reference, docstrings and source of the standard library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import accumulate

from llmkit.config.base import Finding, nearest
from llmkit.data.python_objects import (
    PythonModule,
    PythonObject,
    compiled_objects,
    library_folder,
    module_objects,
    python_modules,
    topics,
    without_docstrings,
)
from llmkit.data.sources.base import Record, Slice, make_record
from llmkit.data.sources.config import PythonDocsSource


class PythonDocsReader:
    """Reads the reference topic by topic, then module by module the docstrings and the source.

    The path of a document is `reference/<topic>`, `docstrings/<object>` or `source/<file>`. Its metadata name the
    `part`, the `object` (topic, documented object or module), and the `module` under which people know the text: the
    docstrings and the source of one module share it.
    """

    def __init__(self, config: PythonDocsSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Parts that this Python comes without, and names to leave out that are no modules."""
        missing = {"reference": not topics(), "source": not (library_folder() / "abc.py").is_file()}
        for index, part in enumerate(self._config.parts):
            if missing.get(part):
                remedy = "Leave it out, or use a Python that is installed with its library and documentation as files."
                yield Finding(f"the running Python does not carry its `{part}`.", key=f"parts.{index}", hint=remedy)
        for index, pattern in enumerate(self._config.exclude):
            package = pattern.partition(".")[0]
            if not any(fnmatchcase(name, package) for name in sys.stdlib_module_names):
                guess = nearest(package, sys.stdlib_module_names)
                hint = f"Did you mean `{guess}`?" if guess else None
                yield Finding(f"no module of the library matches `{pattern}`.", key=f"exclude.{index}", hint=hint)

    def slices(self) -> list[Slice]:
        """All of it: it is read in one go."""
        return [Slice(self._config.label)]

    def read(self, piece: Slice) -> Iterator[Record]:
        """Every text that is not left out; objects without a docstring give none."""
        config = self._config
        if "reference" in config.parts:
            for name, text in topics().items():
                yield make_record(config, text, f"reference/{name}", {"part": "reference", "object": name})
        described: set[str] = set()
        for module in python_modules():
            if self._left_out(module.name):
                continue
            objects = module_objects(module)
            # All objects of a module carry the name under which it is documented (`os.path` for posixpath).
            public = objects[0].module if objects else module.name
            if "docstrings" in config.parts:
                yield from self._docstrings(objects, described)
            if "source" in config.parts:
                yield self._source(module, public)
        if "docstrings" in config.parts:
            yield from self._docstrings(compiled_objects(), described)

    def _docstrings(self, objects: list[PythonObject], described: set[str]) -> Iterator[Record]:
        for item in objects:
            if item.docstring and item.name not in described and not self._left_out(item.module):
                described.add(item.name)
                text = f"{item.name}{item.signature}\n\n{item.docstring}"
                metadata = {"part": "docstrings", "object": item.name, "module": item.module}
                yield make_record(self._config, text, f"docstrings/{item.name}", metadata)

    def _source(self, module: PythonModule, public: str) -> Record:
        text = without_docstrings(module.source) if self._config.strip_docstrings else module.source
        metadata = {"part": "source", "object": public, "module": public}
        return make_record(self._config, text, f"source/{module.path}", metadata)

    def _left_out(self, name: str) -> bool:
        # "email.mime.text" goes with "email" and "email.mime".
        levels = list(accumulate(name.split("."), lambda outer, inner: f"{outer}.{inner}"))
        return any(fnmatchcase(level, pattern) for level in levels for pattern in self._config.exclude)
