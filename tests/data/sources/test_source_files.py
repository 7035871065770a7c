from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from llmkit.data.sources.files import check_files, ending_of, find_files, open_bytes, open_text

ENDINGS = (".txt",)


def tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def names(*patterns: str) -> list[str]:
    return [file.name for file in find_files(patterns, ENDINGS)]


def test_a_folder_gives_files_of_the_fitting_ending_in_order(tmp_path: Path) -> None:
    tree(tmp_path, "b.txt", "a/z.txt.gz", "a/y.TXT.zst", "c.md", ".hidden.txt", ".git/d.txt", "e.txt.bak")
    assert names(str(tmp_path)) == ["a/y.TXT.zst", "a/z.txt.gz", "b.txt"]


def test_a_pattern_gives_whatever_it_matches(tmp_path: Path) -> None:
    tree(tmp_path, "x/b.txt", "x/y/a.md", "x/y/c.txt", "other/d.txt")
    assert names(f"{tmp_path}/x/**/*") == ["b.txt", "y/a.md", "y/c.txt"]
    assert names(f"{tmp_path}/*/d.txt") == ["other/d.txt"]


def test_a_name_with_wildcards_in_it_is_that_file(tmp_path: Path) -> None:
    tree(tmp_path, "part[1].txt", "part1.txt")
    assert names(f"{tmp_path}/part[1].txt") == ["part[1].txt"]


def test_patterns_keep_their_order_and_no_file_comes_twice(tmp_path: Path) -> None:
    tree(tmp_path, "a.txt", "b.txt", "c.txt")
    assert names(f"{tmp_path}/c.txt", str(tmp_path), f"{tmp_path}/b*") == ["c.txt", "a.txt", "b.txt"]


def test_names_do_not_depend_on_the_place_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "data/sub/a.txt")
    monkeypatch.chdir(tmp_path)
    expected = ["sub/a.txt"]
    assert names("data") == names("data/**/*.txt") == names(f"{tmp_path}/data") == names("./data/*/*") == expected


def test_patterns_that_mean_nothing_are_findings(tmp_path: Path) -> None:
    tree(tmp_path, "a.txt", "pages/a.html")
    patterns = [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt", f"{tmp_path}/pages"]
    found = list(check_files(patterns, ENDINGS))
    assert [finding.key for finding in found] == ["files.1", "files.2"]
    assert "no file is called or matches" in found[0].message
    assert "holds no file that ends in .txt" in found[1].message


@pytest.mark.parametrize(
    ("name", "ending"), [("a.JSONL", ".jsonl"), ("a.b.txt.gz", ".txt"), ("a.zst", ""), ("a", ""), ("A.TSV.ZST", ".tsv")]
)
def test_endings(name: str, ending: str) -> None:
    assert ending_of(name) == ending


def test_compressed_files_open_as_what_is_in_them(tmp_path: Path) -> None:
    data = "line one\r\nzwei ☃\n".encode() * 1000
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(data))
    # Compressors that work in parallel write several frames one after another.
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    (tmp_path / "d.txt.zst").write_bytes(b"".join(zstandard.compress(half) for half in halves))
    (tmp_path / "e.txt.gz").write_bytes(b"".join(gzip.compress(half) for half in halves))
    for file in sorted(tmp_path.iterdir()):
        with open_bytes(file) as stream:
            assert stream.read() == data, file.name
        with open_text(file, "utf-8") as text:
            assert list(text)[:2] == ["line one\r\n", "zwei ☃\n"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffa".encode())
    (tmp_path / "b").write_bytes("a".encode("utf-16"))
    for name, encoding in (("a", "utf-8"), ("a", "UTF8"), ("b", "utf-16")):
        with open_text(tmp_path / name, encoding) as stream:
            assert stream.read() == "a"
