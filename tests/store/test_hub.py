"""Models by hub name, through the hub's own client: from its cache alone, and from a server of its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmkit.errors import ArtifactError
from llmkit.store.hub import download_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEEDED = {"config.json": b"{}", "tokenizer.json": b"{}", "generation_config.json": b"{}"}
UNWANTED = {"README.md": b"x", "modeling_x.py": b"raise SystemExit", "onnx/config.json": b"{}", "tf_model.h5": b"x"}
SHARDS = {"model-00001-of-00001.safetensors": b"x", "model.safetensors.index.json": b"{}"}
PICKLES = {"pytorch_model.bin": b"x", "training_args.bin": b"x"}


def _ask(name: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask for a model in a process of its own: the client reads its environment when it is imported."""
    script = "import sys; from llmkit.store.hub import download_model; print(download_model(sys.argv[1], 'a.yaml:3'))"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", script, name],
        env={**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's cache with one model: `main` and the tag `v1` are two commits."""
    repository = tmp_path / "hub" / "models--someone--small"
    for ref, commit in (("main", COMMIT), ("v1", COMMIT[::-1])):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for name, content in {**NEEDED, "model.safetensors": ref.encode()}.items():
            blob = repository / "blobs" / hashlib.sha256(name.encode() + content).hexdigest()
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(content)
            (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return tmp_path


@pytest.mark.parametrize(
    ("revision", "commit"), [("", COMMIT), ("@main", COMMIT), ("@v1", COMMIT[::-1]), (f"@{COMMIT[::-1]}", COMMIT[::-1])]
)
def test_a_cached_model_needs_no_network(revision: str, commit: str, cache: Path) -> None:
    answer = _ask(f"someone/small{revision}", cache, HF_HUB_OFFLINE="1")
    assert answer.stdout.strip() == str(cache / "hub/models--someone--small/snapshots" / commit), answer.stderr


@pytest.mark.parametrize("name", ["someone/other", "someone/small@v2"])
def test_what_is_not_cached_is_refused_in_words_offline(name: str, cache: Path) -> None:
    answer = _ask(name, cache, HF_HUB_OFFLINE="1")
    last = answer.stderr.strip().splitlines()[-1]
    assert f"ArtifactError: a.yaml:3: the hub repository `{name}` cannot be had" in last
    assert "Name a local folder where there is no network." in last


@pytest.mark.parametrize("name", ["", "/etc", "../other", "a/b/c", "a/b@../../main", "a/b@", "a b/c", "a/b@x@y", "ü/b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="is no name of a hub repository"):
        download_model(name, "a.yaml:3")


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as the client asks for: a revision, its files, and their bytes."""

    files: dict[str, bytes]
    asked: set[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        body, status = b"{}", 200
        if path.startswith("/api/models/someone/small/revision/"):
            body = json.dumps({"id": "someone/small", "sha": COMMIT, "siblings": []}).encode()
        elif path.startswith("/api/models/someone/small/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            body = json.dumps(entries).encode()
        elif path.startswith(f"/someone/small/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/someone/small/resolve/{COMMIT}/")
            self.asked.add(name)
            body = self.files[name]
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        else:
            status = 404
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, type[_Hub]]]:
    handler = type("Hub", (_Hub,), {"files": {}, "asked": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        ({**SHARDS, **PICKLES, "model.fp16.safetensors": b"x"}, set(SHARDS)),
        ({"model.safetensors": b"x", "consolidated.safetensors": b"x", **PICKLES}, {"model.safetensors"}),
        (PICKLES, {"pytorch_model.bin"}),
    ],
    ids=["shards", "one file", "pickle"],
)
def test_only_what_is_needed_is_asked_for(
    weights: dict[str, bytes], taken: set[str], hub: tuple[str, type[_Hub]], tmp_path: Path
) -> None:
    address, handler = hub
    handler.files = {**NEEDED, **UNWANTED, **weights}
    answer = _ask("someone/small", tmp_path, HF_ENDPOINT=address)
    folder = Path(answer.stdout.strip())
    assert folder.name == COMMIT, answer.stderr
    assert handler.asked == set(NEEDED) | taken
    assert {file.name for file in folder.iterdir()} == set(NEEDED) | taken
    assert _ask("someone/small", tmp_path, HF_HUB_OFFLINE="1").stdout.strip() == str(folder)


def test_a_repository_that_is_not_there(hub: tuple[str, type[_Hub]], tmp_path: Path) -> None:
    answer = _ask("someone/absent", tmp_path, HF_ENDPOINT=hub[0])
    assert "ArtifactError: a.yaml:3: the hub repository `someone/absent` cannot be had: 404" in answer.stderr
