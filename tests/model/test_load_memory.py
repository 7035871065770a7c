"""Peak memory of opening and saving hundreds of megabytes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

MEASURE = """
import json, sys
from pathlib import Path
import torch
from llmkit.model.load import load_model
from llmkit.model.save import save_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

def grown(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    result = work()
    return status("VmHWM") - before, status("VmRSS") - before, result

tiny, output, *directories = sys.argv[1:]
save_model(load_model(tiny), output)  # everything is imported
for directory in directories:
    for dtype in (torch.float32, torch.bfloat16):
        peak, after, model = grown(lambda: load_model(directory, dtype=dtype))
        weights = sum(parameter.nbytes for parameter in model.parameters())
        print(json.dumps({"weights": weights, "peak": peak / weights, "after": after / weights}))
        if dtype == torch.float32 and directory == directories[0]:
            # In bf16, so that no memory of the model is written as it is.
            saving, _, _ = grown(lambda: save_model(model, output, dtype=torch.bfloat16, max_shard_size=20_000_000))
            print(json.dumps({"saving": saving}))
        del model
"""


VOCABULARY, WIDTH, LAYERS = 60_000, 512, 8


def _write(folder: Path) -> dict[str, Path]:
    """A model of 220 MB, more than half of it the embedding, in every form."""
    spec = ModelSpec(family="llama", layers=LAYERS, width=WIDTH, heads=8, context=32)
    with torch.device("meta"):
        model = Transformer(spec.resolve(VOCABULARY, pad_id=0))
    model = model.to_empty(device="cpu")
    save_model(model, folder / "single")
    save_model(model, folder / "sharded", max_shard_size=20_000_000)
    save_model(model, folder / "pickled")
    torch.save(load_file(folder / "pickled" / "model.safetensors"), folder / "pickled" / "pytorch_model.bin")
    (folder / "pickled" / "model.safetensors").unlink()
    return {form: folder / form for form in ("single", "sharded", "pickled")}


def test_opening_and_saving_take_little_more_than_the_weights(tmp_path: Path) -> None:
    tiny = ModelSpec(family="llama", layers=1, width=16, heads=2, context=32).resolve(11, pad_id=0)
    save_model(build(tiny, seed=1), tmp_path / "tiny")
    forms = _write(tmp_path)
    arguments = [str(tmp_path / "tiny"), str(tmp_path / "again"), *map(str, forms.values())]
    # The allocator gives memory back at once, so that one measurement does not feed on the one before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    first, saved, *others = [json.loads(line) for line in done.stdout.splitlines()]
    found = dict(
        zip([f"{form} {dtype}" for form in forms for dtype in ("fp32", "bf16")], [first, *others], strict=True)
    )
    for name, opened in found.items():
        assert opened["weights"] == pytest.approx(223e6 if name.endswith("fp32") else 111e6, rel=0.02), name
        assert 0.99 < opened["after"] < 1.05, (name, opened)
        assert opened["peak"] < 1.2, (name, opened)
    # A shard, which here is the embedding alone.
    assert saved["saving"] < 1.2 * VOCABULARY * WIDTH * 2
