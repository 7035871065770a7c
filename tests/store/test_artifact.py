"""Artifacts and workspaces: nothing half-written is ever opened, and no damage goes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.config.base import Facts
from llmkit.errors import ArtifactError
from llmkit.store.artifact import Artifact, open_artifact
from llmkit.store.stage import Outcome
from llmkit.store.workspace import StageIdentity, Workspace, partial_directory, workspace

IDENTITY = StageIdentity("make", "thing", "d" * 64, {"size": 1}, {})


def make(place: Path, content: str = "hello", log: str = "log", identity: StageIdentity = IDENTITY) -> Artifact:
    with workspace(place, identity) as work:
        assert isinstance(work, Workspace)
        (work.directory / "data").mkdir(exist_ok=True)
        (work.directory / "data" / "a.bin").write_text(content)
        (work.directory / "log.txt").write_text(log)
        return work.commit(Outcome(["data/*"], Facts("thing", {"size": 1}), {"seconds": 0.1}))


def test_a_committed_artifact_opens_with_what_was_said_of_it(tmp_path: Path) -> None:
    made = make(tmp_path / "thing")
    opened = open_artifact(tmp_path / "thing")
    assert opened == made
    assert opened.facts == Facts("thing", {"size": 1})
    assert opened.manifest.summary == {"seconds": 0.1}
    assert opened.file("data/a.bin").read_text() == "hello"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".thing.lock", "thing"]
    with pytest.raises(ArtifactError, match="no file `absent`"):
        opened.file("absent")


def test_the_content_digest_covers_the_result_and_not_its_logs(tmp_path: Path) -> None:
    first = make(tmp_path / "a", log="one").digest
    assert make(tmp_path / "b", log="two").digest == first
    assert make(tmp_path / "c", content="other").digest != first


def damage_flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["data/a.bin", "log.txt"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_flip, "has other bytes"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes long and should be"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_damage_is_noticed_and_named(tmp_path: Path, name: str, damage: object, words: str) -> None:
    make(tmp_path / "thing")
    damage(tmp_path / "thing" / name)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=words) as caught:
        open_artifact(tmp_path / "thing")
    assert f"`{name}`" in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw["files"].pop(0),
        lambda raw: raw["files"][0].update(sha256="0" * 64),
        lambda raw: raw["files"][0].update(path="../../secret"),
        lambda raw: raw.update(format=99),
        lambda raw: raw.pop("kind"),
        lambda raw: raw.update(extra=1),
        lambda raw: raw.update(files=3),
        lambda raw: raw["files"][0].update(path=3),
        lambda raw: raw["files"][0].update(size="1"),
        lambda raw: raw["files"][0].update(sha256=None),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(tmp_path: Path, edit: object) -> None:
    make(tmp_path / "thing")
    file = tmp_path / "thing" / "manifest.json"
    raw = json.loads(file.read_text())
    edit(raw)  # type: ignore[operator]
    file.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / "thing")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}'])
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path)


def test_work_that_stopped_is_found_again_and_other_settings_get_their_own_folder(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    with pytest.raises(RuntimeError), workspace(place, IDENTITY) as work:
        assert isinstance(work, Workspace)
        (work.directory / "half").write_text("x")
        raise RuntimeError
    other = StageIdentity("make", "thing", "e" * 64, {}, {})
    with workspace(place, other) as work:
        assert isinstance(work, Workspace)
        assert not (work.directory / "half").exists()
    with workspace(place, IDENTITY) as work:
        assert isinstance(work, Workspace)
        assert (work.directory / "half").read_text() == "x"
    assert not place.exists()


def test_a_new_artifact_takes_the_place_of_the_old_only_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    make(place, "old")
    other = StageIdentity("make", "thing", "e" * 64, {}, {})
    with pytest.raises(RuntimeError), workspace(place, other):
        raise RuntimeError
    assert open_artifact(place).file("data/a.bin").read_text() == "old"
    make(place, "new", identity=other)
    assert open_artifact(place).file("data/a.bin").read_text() == "new"


def test_stopped_between_manifest_and_rename_the_move_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "thing"

    class PowerCutError(Exception):
        pass

    rename = Path.rename

    def cut(self: Path, target: Path) -> Path:
        if Path(target) == place:
            raise PowerCutError
        return rename(self, target)

    make(place, "old")
    other = StageIdentity("make", "thing", "e" * 64, {}, {})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut)
        with pytest.raises(PowerCutError):
            make(place, "new", identity=other)
    assert not place.exists()
    with workspace(place, other) as found:
        assert isinstance(found, Artifact)
    assert open_artifact(place).file("data/a.bin").read_text() == "new"
    assert not partial_directory(place, other.digest).exists()
    assert [file for file in tmp_path.iterdir() if "replaced" in file.name] == []
