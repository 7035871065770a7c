from __future__ import annotations

from pathlib import Path

from llmkit.store.attempts import start_over


def test_only_the_note_of_the_workspace_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    work = tmp_path / "work"
    for name in (
        "stage.json",
        "report.json",
        ".report.json.123.tmp",
        "documents/train-00000.parquet",
        "a/b/stage.json",
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("x")
    (work / "link").symlink_to(outside)
    start_over(work)
    assert [path.name for path in work.iterdir()] == ["stage.json"]
    assert (outside / "kept.txt").read_text() == "kept"
