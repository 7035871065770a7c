from __future__ import annotations

from pathlib import Path

from llmkit.data.sources.base import read_all
from llmkit.data.sources.code import CodeReader, license_name
from llmkit.data.sources.config import CodeSource, MarkdownSource
from llmkit.data.sources.markdown import MarkdownReader
from llmkit.store.documents import Document


def test_front_matter_is_metadata(tmp_path: Path) -> None:
    head = "---\ntitle: A title\ndate: 2020-01-02 03:04:05Z\ntags: [a, b]\nnested: {a: 1}\nlang: fr\n---\n"
    (tmp_path / "a.md").write_text(f"{head}\n# Text *as* it is\n")
    (record,) = read_all(MarkdownReader(MarkdownSource(files=[str(tmp_path)])))
    assert isinstance(record, Document)
    assert (record.text, record.language) == ("# Text *as* it is\n", "fr")
    assert dict(record.metadata) == {"title": "A title", "date": "2020-01-02", "tags": "a, b", "lang": "fr"}


def test_a_tree_of_code(tmp_path: Path) -> None:
    mit = (
        "MIT License\n\nPermission is hereby granted, free of charge, to any\nperson obtaining a copy of this software"
    )
    files = {
        ".gitignore": "build/\n*.gen.c\n",
        "LICENSE": mit,
        "a.py": "a = 1\n",
        "b.gen.c": "ignored",
        "build/c.c": "ignored",
        "sub/.gitignore": "!keep.gen.c\nd.rs\n",
        "sub/COPYING": "of my own",
        "sub/d.rs": "ignored",
        "sub/keep.gen.c": "int k;",
        "e.min.js": "x",
        ".hidden/f.py": "hidden",
        "notes.unknown": "not code",
        "Makefile": "all:\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "loop").symlink_to(tmp_path)
    reader = CodeReader(CodeSource(folders=[str(tmp_path)]))
    assert list(reader.check()) == []
    records = list(read_all(reader))
    assert [record.path for record in records] == ["Makefile", "a.py", "e.min.js", "sub/keep.gen.c"]
    documents = {record.path: record for record in records if isinstance(record, Document)}
    assert documents["a.py"].license == "MIT"
    assert dict(documents["a.py"].metadata) == {"programming_language": "Python", "license_file": "LICENSE"}
    assert documents["sub/keep.gen.c"].license is None
    assert documents["sub/keep.gen.c"].metadata["license_file"] == "COPYING"
    assert "e.min.js" not in documents


def test_licenses_by_their_texts() -> None:
    assert license_name("Apache License\n   Version 2.0, January 2004") == "Apache-2.0"
    assert license_name("GNU GENERAL PUBLIC LICENSE\nVersion 2, June 1991") == "GPL-2.0"
    assert license_name("All rights reserved.") is None
