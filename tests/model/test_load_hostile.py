"""Directories made to do harm, or broken by chance: an error in words, no crash, no memory taken, nothing run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmkit.errors import ModelError
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in every form, each beside the others; tests that change one copy it first."""
    path = tmp_path_factory.mktemp("models")
    config = ModelSpec(family="llama", layers=2, width=16, heads=2, context=32).resolve(11, pad_id=0, eos_ids=(1,))
    model = build(config, seed=1)
    save_model(model, path / "single")
    save_model(model, path / "sharded", max_shard_size=4000)
    for form in ("pickled", "old"):
        shutil.copytree(path / "single", path / form)
        tensors = load_file(path / form / "model.safetensors")
        (path / form / "model.safetensors").unlink()
        torch.save(tensors, path / form / "pytorch_model.bin", _use_new_zipfile_serialization=form == "pickled")
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "single", tmp_path / "model"))


def _weights_file(directory: Path) -> Path:
    return [*sorted(directory.glob("*.safetensors")), *directory.glob("*.bin")][
        len(list(directory.glob("*-of-*"))) // 2
    ]


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _write(path: Path, header: str | bytes, data: bytes) -> None:
    header = header.encode() if isinstance(header, str) else header
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


NORM = "model.norm.weight"
FIRST = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F31"},
        {"dtype": 3},
        {"dtype": "F64"},
        {"shape": [17]},
        {"shape": [-16]},
        {"shape": [16.0]},
        {"shape": [2**62, 4]},
        {"shape": [2**32, 2**32]},
        {"shape": [10**30]},
        {"shape": [0]},
        {"shape": []},
        {"shape": "16"},
        {"shape": [[16]]},
        {"shape": None},
        {"data_offsets": [-64, 0]},
        {"data_offsets": [64, 0]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [0, 64, 128]},
        {"data_offsets": [10**9, 10**9 + 64]},
        {"data_offsets": None},
    ],
    ids=str,
)
def test_headers_of_safetensors_that_lie(change: dict[str, Any], directory: Path) -> None:
    path = directory / "model.safetensors"
    header, data = _header(path)
    header[NORM] |= change
    _write(path, json.dumps(header), data)
    with pytest.raises(ModelError, match=r"damaged weights"):
        load_model(directory)


def test_headers_of_safetensors_of_other_forms(directory: Path) -> None:
    path = directory / "model.safetensors"
    header, data = _header(path)
    overlapping = {**header, NORM: header[FIRST]}
    twice = json.dumps(header)[:-1] + f', "{NORM}": {json.dumps(header[FIRST])}}}'
    without = {name: entry for name, entry in header.items() if name != NORM}
    others: list[str | bytes] = [
        json.dumps(overlapping),
        twice,
        json.dumps(without),
        json.dumps({**header, "__metadata__": {"format": 3}}),
        json.dumps({**header, "__metadata__": "pt"}),
        json.dumps({**header, "one/more": {"dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + 16]}}),
        "[]",
        "{}",
        "null",
        "",
        "{",
        '{"x": ' * 100_000,
        json.dumps(header).encode("utf-16"),
        b"\xff" * 100,
        b"\0" * 100,
    ]
    for other in others:
        _write(path, other, data)
        with pytest.raises(ModelError, match=r"damaged weights"):
            load_model(directory)
    _write(path, json.dumps(header), data + b"more")
    with pytest.raises(ModelError, match=r"damaged weights"):
        load_model(directory)


def test_tensors_without_numbers_are_misshapen(directory: Path) -> None:
    path = directory / "model.safetensors"
    header, data = _header(path)
    header["model.layers.0.extra"] = {"dtype": "F32", "shape": [0, 10**9], "data_offsets": [len(data), len(data)]}
    _write(path, json.dumps(header), data)
    with pytest.raises(ModelError, match=r"unexpected model.layers.0.extra|damaged weights"):
        load_model(directory)


@FUZZ
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["single", "sharded", "pickled", "old"])
def test_weights_with_bytes_lost_or_changed(form: str, data: st.DataObject, saved: Path, tmp_path: Path) -> None:
    """Cut anywhere, or with any bytes overwritten: a model (where only numbers changed), or a ModelError."""
    directory = tmp_path / "model"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(saved / form, directory)
    path = _weights_file(directory)
    content = bytearray(path.read_bytes())
    # Headers are at the start, and those of pickles in zips also at the end.
    places = (
        st.integers(0, len(content) - 1) | st.integers(0, 1500) | st.integers(len(content) - 1500, len(content) - 1)
    )
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(places)
            new = data.draw(st.binary(min_size=1, max_size=8))
            content[place : place + len(new)] = new
    path.write_bytes(content)
    try:
        model = load_model(directory)
    except ModelError as error:
        assert str(tmp_path) in str(error)
    else:
        assert model(torch.tensor([[1, 2]])).shape == (1, 2, 11)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, "header - 1", "header", "header + 1", "all - 1"])
def test_shards_cut_at_every_boundary(keep: int | str, saved: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(saved / "sharded", tmp_path / "model")
    path = _weights_file(Path(directory))
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    places = {"header - 1": end - 1, "header": end, "header + 1": end + 1, "all - 1": len(content) - 1}
    path.write_bytes(content[: keep if isinstance(keep, int) else places[keep]])
    with pytest.raises(ModelError, match=r"damaged weights") as caught:
        load_model(directory)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    "shard",
    [
        "../single/model.safetensors",
        "..\\single\\model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "./model.safetensors",
        "model.safetensors\0",
        "modell\u0000.safetensors",
        "x" * 5000 + ".safetensors",
        "model\ud800.safetensors",
        "",
        ".",
        "..",
        "loop.safetensors",
        "folder.safetensors",
        "pipe.safetensors",
        "device.safetensors",
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_shard_names_that_play_tricks(shard: str, saved: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved / "sharded", tmp_path / "model"))
    (directory / "loop.safetensors").symlink_to("loop.safetensors")
    (directory / "folder.safetensors").mkdir()
    os.mkfifo(directory / "pipe.safetensors")
    (directory / "device.safetensors").symlink_to("/dev/zero")
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][NORM] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"is not the name of a .safetensors file here|is missing"):
        load_model(directory)


def test_files_that_are_no_files(saved: Path, tmp_path: Path) -> None:
    for name, make in (
        ("loop", lambda path: path.symlink_to(path.name)),
        ("pipe", os.mkfifo),
        ("zeros", lambda path: path.symlink_to("/dev/zero")),
        ("folder", Path.mkdir),
    ):
        for file in ("config.json", "model.safetensors", "generation_config.json"):
            directory = Path(shutil.copytree(saved / "single", tmp_path / f"{name}-{file}"))
            (directory / file).unlink()
            make(directory / file)
            with pytest.raises(ModelError, match=rf"there is no {file}"):
                load_model(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(value=JSON, entry=JSON, shard=st.text(max_size=40), what=st.sampled_from(["whole", "map", "name", "shard"]))
def test_any_index_is_opened_or_refused(
    value: Any, entry: Any, shard: str, what: str, saved: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    if not directory.exists():
        shutil.copytree(saved / "sharded", directory)
    index = json.loads((saved / "sharded" / "model.safetensors.index.json").read_text())
    if what == "map":
        index["weight_map"] = value
    elif what == "name":
        index["weight_map"][shard] = entry
    elif what == "shard":
        index["weight_map"][NORM] = shard
    (directory / "model.safetensors.index.json").write_text(json.dumps(value if what == "whole" else index))
    try:
        load_model(directory)
    except ModelError as error:
        assert str(tmp_path) in str(error)


@FUZZ
@given(value=JSON, key=st.sampled_from(["eos_token_id", "temperature", "pad_token_id", "x", None]))
def test_any_generation_settings_are_kept_or_refused(value: Any, key: str | None, saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    if not directory.exists():
        shutil.copytree(saved / "single", directory)
    (directory / "generation_config.json").write_text(json.dumps({key: value} if key else value))
    try:
        model = load_model(directory)
    except ModelError as error:
        assert str(tmp_path) in str(error)
    else:
        save_model(model, tmp_path / "again")


# Run with little memory to spare: what unfolds or allocates by a number in a file fails here.
LIMITED = """
import resource, sys, time
from pathlib import Path
from llmkit.errors import LLMKitError
from llmkit.model.load import load_model

load_model(sys.argv[1])  # everything is imported
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (600 << 20),) * 2)
for directory in sys.argv[2:]:
    start = time.process_time()
    try:
        load_model(directory)
        print(directory, "opened", sep="\\t")
    except LLMKitError as error:
        print(directory, "refused " + str(error)[:300].replace("\\n", " "), sep="\\t")
    assert time.process_time() - start < 20, directory
"""


def _limited(tiny: Path, directories: list[Path]) -> dict[str, str]:
    """What opening each directory came to, in a process with 600 MB to spare."""
    command = [sys.executable, "-c", LIMITED, str(tiny), *map(str, directories)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]
    return {Path(name).name: text for name, text in (line.split("\t") for line in done.stdout.splitlines())}


def test_numbers_in_configs_take_no_memory(saved: Path, tmp_path: Path) -> None:
    from llmkit.model.families import FAMILIES

    directories = []
    for name, family in FAMILIES.items():
        try:
            config = ModelSpec(family=name, layers=2, width=16, heads=2, context=32).resolve(11, pad_id=0)  # type: ignore[arg-type]
        except ModelError:
            continue
        original = family.write_config(config)
        numbers = [key for key, value in original.items() if isinstance(value, int) and not isinstance(value, bool)]
        for key in numbers:
            for size in (10**9, 10**18):
                directory = tmp_path / f"{name}-{key}-{size}"
                directory.mkdir()
                (directory / "config.json").write_text(json.dumps({**original, key: size}))
                shutil.copy(saved / "single" / "model.safetensors", directory)
                directories.append(directory)
    found = _limited(saved / "single", directories)
    llama = {name.removeprefix("llama-"): text for name, text in found.items() if name.startswith("llama-")}
    assert "refused" in llama["num_hidden_layers-1000000000"]
    assert "refused" in llama["head_dim-1000000000"]
    assert "model.embed_tokens.weight has shape [11, 16], not [1000000000, 16]" in llama["vocab_size-1000000000"]
    layers = {name: text for name, text in found.items() if "layer" in name.partition("-")[2]}
    assert len(layers) > 2 and all(text.startswith("refused") for text in layers.values())


def test_files_that_unfold_take_no_memory(saved: Path, tmp_path: Path) -> None:
    def made(name: str, form: str = "single") -> Path:
        return Path(shutil.copytree(saved / form, tmp_path / name))

    config = json.loads((saved / "single" / "config.json").read_text())
    labels = {str(index): f"label {index}" for index in range(1_000_000)}
    classifier = {**config, "architectures": ["LlamaForSequenceClassification"]}
    (made("labels") / "config.json").write_text(json.dumps({**classifier, "id2label": labels}))
    (made("labels-many") / "config.json").write_text(json.dumps({**classifier, "num_labels": 10**12}))
    (made("deep") / "config.json").write_text('{"a":' * 1_000_000)
    (made("digits") / "config.json").write_text('{"hidden_size": ' + "9" * 1_000_000 + "}")
    (made("exponent") / "config.json").write_text(json.dumps(config).replace("10000.0", "1e999"))
    (made("constant") / "config.json").write_text(json.dumps({**config, "rms_norm_eps": float("nan")}))
    with (made("sparse") / "config.json").open("r+b") as stream:
        stream.truncate(10**11)
    with (made("sparse-weights") / "model.safetensors").open("r+b") as stream:
        stream.truncate(10**11)
    _write(made("header") / "model.safetensors", b" " * 20_000_000, b"")
    _write(made("names") / "model.safetensors", _many_names(30_000), b"")
    for form in ("pickled", "old"):
        path = made(f"{form}-bytes", form) / "pytorch_model.bin"
        torch.save({"x": _Calls(bytearray, 10**12)}, path, _use_new_zipfile_serialization=form == "pickled")
    bomb = made("bomb", "pickled") / "pytorch_model.bin"
    _compressed(bomb, pickle.dumps({}, protocol=2) + b"\0" * 30_000_000)
    found = _limited(saved / "single", sorted(path for path in tmp_path.iterdir()))
    assert len(found) == 13
    assert all(text.startswith("refused") for text in found.values()), found
    assert "compressed" in found["bomb"]
    assert "missing score.weight" in found["labels"]


class _Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _many_names(count: int) -> str:
    return json.dumps({f"n{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(count)})


def _compressed(path: Path, pickled: bytes) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
