"""Peak memory of opening a GGUF file, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from gguf import GGMLQuantizationType
from gguf_files import write_llama

MEASURE = """
import json, sys
from pathlib import Path
import torch
from llmkit.model.load import load_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

small, large, dtype = sys.argv[1:]
load_model(small)  # everything is imported
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = status("VmRSS")
model = load_model(large, dtype=getattr(torch, dtype))
print(json.dumps([status("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters())]))
"""
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny file, and one of 30 million parameters in Q8_0, a third of them the embedding."""
    folder = tmp_path_factory.mktemp("files")
    made = []
    for name, vocabulary, width, layers in (("small", 64, 64, 1), ("large", 20_000, 512, 6)):
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width, **SIZES
        )
        model = transformers.LlamaForCausalLM(config)
        made.append(write_llama(folder / f"{name}.gguf", model, GGMLQuantizationType.Q8_0))
    return made[0], made[1]


def test_the_peak_is_hardly_more_than_the_weights(files: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", MEASURE, *map(str, files), "bfloat16"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, weights = json.loads(made.stdout)
    assert weights > 50_000_000
    assert peak < 1.2 * weights
