"""Tokens per second of generation: llmkit's engine beside `transformers` and llama.cpp, greedily, in one run.

    python scripts/bench/generate.py --model DIRECTORY_OR_GGUF [--gguf FILE] [--tokens 128] [--compile] [--json]

One stream, sixteen streams and the time to the first token of a long prompt, in bf16, on random prompts of one length.
Competitors take turns, so that what else the machine does hits them alike; the first round is warm-up. `transformers`
runs its own `generate` in inference mode with its default attention: with its default cache, with a static one and,
given `--compile`, with that compiled. llmkit runs one stream plain and, given `--compile`, compiled. The faster
counts each time. With a GGUF of 4-bit weights (`--gguf`, or the model itself), one stream of llmkit with int4 weights
is measured beside llama.cpp.

What the machine allows is measured in the same run: one stream has to read all weights for each token, at the rate at
which memory is read; many streams and prompts have to do their products, at the rate of a large one in bf16, or in fp32
where that is the faster.

Ratios are llmkit's median speed over the peer's, above 1 where llmkit is faster: `transformers/1`, `transformers/16`,
`transformers/first-token`, `llama.cpp/1-4bit`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llmkit.console import emit_table, say
from llmkit.inference import load
from llmkit.model.generation import Generator
from llmkit.model.sampling import Sampling
from llmkit.model.save import save_model
from llmkit.model.transformer import Transformer
from llmkit.train.engine import matrix_rate

Run = Callable[[], int]
"""Generates once and returns how many tokens it wrote."""


def prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random prompts, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary // 10, vocabulary, (count, length), generator=generator).tolist()


def llmkit_run(generator: Generator, asked: list[list[int]], tokens: int) -> Run:
    """llmkit's engine."""
    sampling = Sampling(temperature=0, max_new_tokens=tokens, stop_ids=())
    return lambda: sum(len(completion.token_ids) for completion in generator.generate(asked, sampling, alone=True))


def transformers_run(model: Any, asked: list[list[int]], tokens: int, *, static: bool, compile: bool = False) -> Run:
    """`generate` of `transformers`."""
    ids = torch.tensor(asked)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
    if static:
        settings |= {"cache_implementation": "static", "disable_compile": not compile}
    if compile:
        from transformers import CompileConfig

        # On a CPU it compiles only where it is told to do so on all devices.
        settings["compile_config"] = CompileConfig(fullgraph=False, mode="default")
        settings["compile_config"]._compile_all_devices = True

    def run() -> int:
        with torch.inference_mode():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        return int(written[:, ids.shape[1] :].numel())

    return run


def llama_cpp_run(engine: Any, asked: list[list[int]], tokens: int) -> Run:
    """llama.cpp's own loop, with the likeliest token each time."""

    def run() -> int:
        engine.reset()
        count = 0
        for _ in engine.generate(asked[0], temp=0.0, top_k=1, repeat_penalty=1.0):
            count += 1
            if count == tokens:
                break
        return count

    return run


def bandwidth() -> float:
    """Bytes a second at which memory is read, the best of several passes over 256 MiB."""
    block = torch.ones(64 << 20)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        best = max(best, block.numel() * 4 / (time.perf_counter() - start))
    return best


def competitors(
    options: argparse.Namespace, ours: Transformer, directory: Path
) -> tuple[dict[str, dict[str, Run]], list[str]]:
    """Runs by scenario and competitor, and the peers that are missing."""
    vocabulary = ours.config.vocab_size
    one, many = prompts(1, options.length, vocabulary), prompts(options.streams, options.length, vocabulary)
    long = prompts(1, min(options.long, ours.config.context - 1), vocabulary)
    asked = {"1": (one, options.tokens), str(options.streams): (many, options.tokens), "first-token": (long, 1)}
    generator = Generator(ours)
    runs: dict[str, dict[str, Run]] = {name: {"llmkit": llmkit_run(generator, *how)} for name, how in asked.items()}
    if options.compile:
        runs["1"]["llmkit compiled"] = llmkit_run(Generator(ours, compile=True), *asked["1"])
    missing: list[str] = []
    try:
        version("transformers")
    except PackageNotFoundError:
        missing.append("transformers")
    else:
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        for name, how in asked.items():
            runs[name]["transformers"] = transformers_run(theirs, *how, static=False)
            runs[name]["transformers static"] = transformers_run(theirs, *how, static=True)
            if options.compile and name != "first-token":
                compiled = transformers_run(theirs, *how, static=True, compile=True)
                runs[name]["transformers compiled"] = compiled
    return runs, missing


def four_bit(options: argparse.Namespace, path: str, gguf: Path | None) -> tuple[dict[str, Run], list[str]]:
    """One stream with 4-bit weights."""
    loaded = load(path, dtype="bf16", device="cpu", quantize="int4")
    asked = prompts(1, options.length, loaded.model.config.vocab_size)
    runs = {"llmkit int4": llmkit_run(Generator(loaded.model), asked, options.tokens)}
    if find_spec("llama_cpp") is None:
        return runs, ["llama.cpp"]
    if gguf is None:
        return runs, ["llama.cpp (no GGUF was named)"]
    from llama_cpp import Llama

    engine = Llama(str(gguf), n_ctx=1024, n_threads=torch.get_num_threads(), verbose=False)
    runs["llama.cpp"] = llama_cpp_run(engine, asked, options.tokens)
    return runs, []


def measure(rounds: int, runs: dict[str, dict[str, Run]]) -> dict[str, dict[str, list[float]]]:
    """Seconds of each run, by scenario and competitor; the first round is left out."""
    seconds: dict[str, dict[str, list[float]]] = {name: {who: [] for who in found} for name, found in runs.items()}
    for number in range(rounds + 1):
        for scenario, found in runs.items():
            for who, run in found.items():
                start = time.perf_counter()
                written = run()
                took = (time.perf_counter() - start) / written
                if number:
                    seconds[scenario][who].append(took)
        say(f"round {number} of {rounds} done" if number else "warmed up")
    return seconds


def ratios(seconds: dict[str, dict[str, list[float]]]) -> Iterator[tuple[str, float]]:
    """llmkit's speed over that of its peers, above 1 where llmkit is faster."""
    for scenario, found in seconds.items():
        ours = min(statistics.median(took) for who, took in found.items() if who.startswith("llmkit"))
        for peer in ("transformers", "llama.cpp"):
            theirs = [statistics.median(took) for who, took in found.items() if who.startswith(peer)]
            if theirs:
                yield f"{peer}/{scenario}", min(theirs) / ours


def allowed(options: argparse.Namespace, model: Transformer, scenario: str, machine: dict[str, float]) -> float:
    """Seconds a token that the machine allows: reading the weights for one stream, the products for all else."""
    config = model.config
    if scenario == "1":
        read = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        table = 0 if config.tie_embeddings else model.embeddings.token.weight.nbytes
        return (read - table) / machine["bytes_per_second"]
    tokens = options.long if scenario == "first-token" else 1
    head = 2 * config.vocab_size * config.width
    # Of a prompt only the last token's logits are computed.
    body = config.flops_per_token(tokens, backward=False) - head
    return (body * tokens + head) / machine["flops_per_second"]


def rows(
    options: argparse.Namespace,
    model: Transformer,
    seconds: dict[str, dict[str, list[float]]],
    machine: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """What was found, by scenario and competitor."""
    for scenario, found in seconds.items():
        for who, took in found.items():
            middle = statistics.median(took)
            bound = None if scenario == "1-4bit" else allowed(options, model, scenario, machine)
            yield {
                "scenario": scenario,
                "competitor": who,
                "seconds_per_token": middle,
                "tokens_per_second": 1 / middle,
                "spread": (max(took) - min(took)) / middle,
                "share_of_what_the_machine_allows": None if bound is None else bound / middle,
            }


def show(found: list[dict[str, Any]], times: dict[str, float]) -> None:
    """The table for people."""
    table = []
    for row in found:
        first = row["scenario"] == "first-token"
        speed = f"{row['seconds_per_token']:.2f} s" if first else f"{row['tokens_per_second']:.1f}/s"
        share = row["share_of_what_the_machine_allows"]
        peer = row["competitor"].split()[0]
        ratio = times.get(f"{peer}/{row['scenario']}")
        cells = [row["scenario"], row["competitor"], speed, f"{row['spread']:.0%}"]
        table.append([*cells, None if share is None else f"{share:.0%}", None if ratio is None else f"{ratio:.2f}"])
    title = f"Generation, {torch.get_num_threads()} threads; ratios are llmkit's speed over the peer's best"
    emit_table(("scenario", "competitor", "speed", "spread", "of the machine", "ratio"), table, title=title)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory or a GGUF file")
    parser.add_argument(
        "--gguf", type=Path, help="a GGUF with 4-bit weights for llama.cpp; the model itself if it is one"
    )
    for name, default in (("tokens", 128), ("streams", 16), ("length", 32), ("long", 1000), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scenarios", help="some of 1, the number of streams, first-token and 1-4bit; by default all")
    parser.add_argument(
        "--compile", action="store_true", help="run what can be compiled so as well; takes minutes longer"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table and, with --json, one line for machines."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        ours = load(str(options.model), dtype="bf16", device="cpu").model
        directory, gguf = options.model, options.gguf
        if options.model.is_file():
            directory, gguf = Path(folder), gguf or options.model
            save_model(ours, directory)
        runs, missing = competitors(options, ours, directory)
        wanted = options.scenarios.split(",") if options.scenarios else [*runs, "1-4bit"]
        runs = {scenario: found for scenario, found in runs.items() if scenario in wanted}
        if "1-4bit" in wanted:
            runs["1-4bit"], absent = four_bit(options, str(options.model), gguf)
            missing += absent
        seconds = measure(options.rounds, runs)
    rates = [matrix_rate("cpu", dtype) for dtype in (torch.bfloat16, torch.float32)]
    machine = {"bytes_per_second": bandwidth(), "flops_per_second": max(rates)}
    found = list(rows(options, ours, seconds, machine))
    times = dict(ratios(seconds))
    show(found, times)
    say(f"memory is read at {machine['bytes_per_second'] / 1e9:.1f} GB/s, and a large product runs at")
    say(f"{machine['flops_per_second'] / 1e9:.0f} GFLOP/s")
    for name in missing:
        say(f"{name} is not installed and was not measured")
    if options.json:
        print(json.dumps(as_json(options, found, times, missing, machine)))


def as_json(
    options: argparse.Namespace,
    found: list[dict[str, Any]],
    times: dict[str, float],
    missing: list[str],
    machine: dict[str, float],
) -> dict[str, Any]:
    """Everything measured, for machines."""
    versions = {}
    for package in ("torch", "transformers", "llama_cpp_python"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    peers: dict[str, dict[str, Any]] = {name: {"missing": True} for name in missing}
    ours: dict[str, Any] = {}
    for row in found:
        what = {key: value for key, value in row.items() if key not in ("scenario", "competitor")}
        if row["competitor"].startswith("llmkit"):
            ours[f"{row['scenario']}{row['competitor'].removeprefix('llmkit')}"] = what
        else:
            peers.setdefault(row["competitor"], {})[row["scenario"]] = what
    return {
        "bench": "generate",
        "cores": torch.get_num_threads(),
        "versions": versions,
        "settings": {name: getattr(options, name) for name in ("tokens", "streams", "length", "long", "rounds")},
        "machine": machine,
        "llmkit": ours,
        "peers": peers,
        "ratio": times,
    }


if __name__ == "__main__":
    main()
