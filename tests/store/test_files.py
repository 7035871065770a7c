"""Digests, atomic writes and locks."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.errors import ArtifactLockedError
from llmkit.store.files import canonical_json, locked, sha256_file, sha256_json, sha256_tree, write_text_atomic


def test_digests_agree_with_hashlib(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # The published test vector of FIPS 180-2 for "abc".
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    text = '{"a":[1,2.5,"é"],"b":null}'
    assert canonical_json({"b": None, "a": [1, 2.5, "é"]}) == text
    assert sha256_json(json.loads(text)) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_of_a_folder_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "x" / "sub").mkdir(parents=True)
    (tmp_path / "x" / "sub" / "f").write_text("1")
    first = sha256_tree(tmp_path / "x")
    (tmp_path / "x" / "sub" / "f").write_text("2")
    second = sha256_tree(tmp_path / "x")
    (tmp_path / "x" / "sub" / "f").rename(tmp_path / "x" / "sub" / "g")
    assert len({first, second, sha256_tree(tmp_path / "x")}) == 3


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "t"
    write_text_atomic(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(target, "new \ud800")
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def test_a_lock_held_by_another_process_is_named_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import sys\nfrom pathlib import Path\nfrom llmkit.store.files import locked\n"
        "with locked(Path(sys.argv[1]), 'it'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactLockedError, match=f"process {holder.pid} "), locked(lock, "it"):
            pass
        holder.kill()
        holder.wait()
    with locked(lock, "it"):
        assert "process" in lock.read_text()
