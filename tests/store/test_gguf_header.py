"""The header of GGUF files: files that an independent writer made, and such that somebody damaged."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.errors import ModelError
from llmkit.store.gguf import read_gguf

MOST_MEMORY = 16 << 20


def write(path: Path, change: Callable[[GGUFWriter], None] = lambda writer: None) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_bool("a.yes", True)
    writer.add_float32("a.half", 0.5)
    writer.add_string("a.name", "naïve")
    writer.add_array("a.words", ["x", "", "€"])
    writer.add_array("a.numbers", [3, -4])
    writer.add_array("a.floats", [0.25, 8.0])
    writer.add_uint64("a.long", 1 << 40)
    writer.add_int8("a.small", -3)
    change(writer)
    writer.add_tensor("m.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("v.weight", np.arange(5, dtype=np.float16))
    writer.add_tensor("q.weight", np.zeros((2, 34), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf")


def test_metadata_and_tensors_are_those_written(whole: Path) -> None:
    file = read_gguf(whole)
    assert file.architecture == "llama"
    assert {key: list(value) if hasattr(value, "tolist") else value for key, value in file.metadata.items()} == {
        "general.architecture": "llama", "a.count": 7, "a.yes": True, "a.half": 0.5, "a.name": "naïve",
        "a.words": ["x", "", "€"], "a.numbers": [3, -4], "a.floats": [0.25, 8.0], "a.long": 1 << 40, "a.small": -3,
    }  # fmt: skip
    for tensor in GGUFReader(whole).tensors:
        entry = file.tensors[tensor.name]
        assert entry.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert (entry.type, entry.offset, entry.size) == (
            tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes
        )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "kind", "problem"),
    [("a.none", int, "lacks a.none"), ("a.name", int, "must be of kind int"), ("a.yes", int, "must be of kind int"),
     ("a.count", str, "must be of kind str"), ("a.count", list, "must be of kind list")],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(whole: Path, key: str, kind: type, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        read_gguf(whole).get(key, kind)


def test_a_file_cut_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    cut = tmp_path / "cut.gguf"
    end = max(entry.offset + entry.size for entry in read_gguf(whole).tensors.values())
    for length in range(end):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError):
            read_gguf(cut)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(ModelError, match="cannot be read"):
            read_gguf(path)


def header(
    *, version: int = 3, tensors: int = 0, keys: int = 0, body: bytes = b"", magic: bytes = b"GGUF", order: str = "<"
) -> bytes:
    return magic + struct.pack(f"{order}IQQ", version, tensors, keys) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = (1 << 64) - 1
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no GGUF file"),
    "text": (b"Once upon a time there was no model.", "no GGUF file"),
    "magic": (header(magic=b"GGML"), "no GGUF file"),
    "version 1": (header(version=1), "version 1 is not supported"),
    "big-endian": (header(version=3, order=">"), "big-endian"),
    "many keys": (header(keys=HUGE), "announces"),
    "many tensors": (header(tensors=1 << 40), "announces"),
    "long name of a key": (header(keys=1, body=struct.pack("<Q", HUGE)), "ends inside"),
    "no name": (header(keys=1, body=text(b"")), "has 0 characters"),
    "unknown type": (header(keys=1, body=text(b"k") + struct.pack("<I", 77)), "unknown type 77"),
    "long string": (header(keys=1, body=text(b"k") + struct.pack("<IQ", 8, 1 << 62)), "ends inside"),
    "no UTF-8": (header(keys=1, body=text(b"k") + struct.pack("<I", 8) + text(b"\xff\xfe")), "UTF-8"),
    "many numbers": (header(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 12, 1 << 60)), "ends inside"),
    "many strings": (header(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60)), "strings are announced"),
    "list of lists": (header(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "list of lists"),
    "key twice": (header(keys=2, body=2 * (text(b"k") + struct.pack("<II", 4, 1))), "occurs twice"),
    "alignment": (
        header(keys=1, body=text(b"general.alignment") + struct.pack("<II", 4, 24) + bytes(64)), "power of two"
    ),
    "alignment as text": (
        header(keys=1, body=text(b"general.alignment") + struct.pack("<I", 8) + text(b"32")), "power of two"
    ),
    "no dimension": (header(tensors=1, body=tensor(b"t", ()) + bytes(99)), "0 dimensions"),
    "many dimensions": (header(tensors=1, body=tensor(b"t", (1,) * 9) + bytes(99)), "9 dimensions"),
    "empty dimension": (header(tensors=1, body=tensor(b"t", (4, 0)) + bytes(99)), "cannot have the shape"),
    "huge shape": (header(tensors=1, body=tensor(b"t", (HUGE, HUGE)) + bytes(99)), "ends at byte"),
    "unknown tensor type": (header(tensors=1, body=tensor(b"t", (4,), kind=200) + bytes(99)), "unknown type 200"),
    "no whole block": (header(tensors=1, body=tensor(b"t", (33,), kind=8) + bytes(99)), "cannot have the shape"),
    "crooked offset": (header(tensors=1, body=tensor(b"t", (4,), offset=3) + bytes(99)), "not aligned"),
    "offset beyond": (header(tensors=1, body=tensor(b"t", (4,), offset=1 << 63) + bytes(99)), "ends at byte"),
    "tensor twice": (header(tensors=2, body=2 * tensor(b"t", (4,)) + bytes(99)), "occurs twice"),
    "overlap": (header(tensors=2, body=tensor(b"t", (16,)) + tensor(b"u", (4,), offset=32) + bytes(199)), "overlaps"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_refused_in_words(name: str, tmp_path: Path) -> None:
    data, problem = BROKEN[name]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ModelError, match=problem):
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_MEMORY


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_read_or_refused_in_bounded_memory(whole: Path, tmp_path: Path, data: Any) -> None:
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8)])))
        content[place : place + len(patch)] = patch
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        file = read_gguf(path)
        assert all(entry.offset + entry.size <= len(content) for entry in file.tensors.values())
    except ModelError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_MEMORY
