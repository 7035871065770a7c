"""The script that kills the making of data, with few documents and kills; `llmkit` runs as it does for a user."""

from __future__ import annotations

from pathlib import Path

from chain_support import load_script

script = load_script("kill_data")


def test_killed_and_divided_work_gives_the_same_bytes(tmp_path: Path) -> None:
    found = script.trial(tmp_path, 300, 3, ["one", "two", "shards"], 1, script.Command)
    assert found.different == []
    assert [row[0] for row in found.rows if "killed" in row[1] and "so far" not in row[1]] == ["corpus", "tokens"]
    assert [row[1] for row in found.rows if row[1].startswith("killed") and "so far" not in row[1]] == [
        "killed 2 times", "killed 1 times",
    ]  # fmt: skip
    assert all(row[2] > 0 for row in found.rows)
