"""Write a model as GGUF files, run them in llama.cpp, and compare its token ids and greedy tokens with llmkit's.

    python scripts/verify_llama_cpp.py MODEL TEXT --types f32,f16,q8_0

Needs the package llama-cpp-python. MODEL is anything that `llmkit.load` opens. Both sides compute from the same file:
llmkit opens what it wrote, in fp32. Prompts are the first words of paragraphs of the text. Exit code 1 where ids of a
prompt differ, or where an F32 file's continuations do; rounded types compute in other precisions in llama.cpp, so that
theirs may part where two tokens are nearly as likely, which is told with the token number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import llmkit
from llmkit.cli.formats import write_gguf_file
from llmkit.console import emit_table
from llmkit.errors import MissingDependencyError

WORDS = 12


def main() -> None:
    """Compare, print a table, and exit with 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--types", default="f32,f16,bf16,q8_0")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--pre-tokenizer", help="as for `llmkit export`")
    arguments = parser.parse_args()
    long = [line.split() for line in arguments.text.read_text(encoding="utf-8").splitlines()]
    long = [words for words in long if len(words) > 2 * WORDS]
    prompts = [" ".join(words[:WORDS]) for words in long[:: max(len(long) // arguments.prompts, 1)]]
    prompts = prompts[: arguments.prompts]

    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.types.split(","):
            file = Path(folder) / f"{kind}.gguf"
            write_gguf_file(arguments.model, file, kind, pre_tokenizer=arguments.pre_tokenizer)
            ids, equal, first = compare(file, prompts, arguments.new_tokens)
            size = file.stat().st_size / 1e6
            file.unlink()
            failed |= ids < len(prompts) or (kind == "f32" and equal < len(prompts))
            rows.append([kind, f"{size:.1f} MB", f"{ids} of {len(prompts)}", f"{equal} of {len(prompts)}", first])
    emit_table(["type", "file", "equal prompts", "equal continuations", "first difference"], rows)
    sys.exit(1 if failed else 0)


def compare(file: Path, prompts: list[str], length: int) -> tuple[int, int, str]:
    """Number of prompts with equal ids, of equal continuations, and the tokens after which others part."""
    ours = llmkit.load(str(file), dtype="fp32", device="cpu")
    answers = ours.generate(prompts, max_new_tokens=length, temperature=0.0, stop_ids=())
    theirs = open_llama_cpp(file)
    same_ids, equal, parted = 0, 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = ours.encode_prompt(prompt)
        same_ids += theirs.tokenize(prompt.encode(), special=False) == ids
        made: list[int] = []
        for token in theirs.generate(ids, temp=0.0, repeat_penalty=1.0):
            made.append(token)
            if len(made) == length:
                break
        pairs = list(zip(made, answer.token_ids, strict=True))
        equal += made == list(answer.token_ids)
        parted += [next(place for place, (a, b) in enumerate(pairs) if a != b)] if made != answer.token_ids else []
    return same_ids, equal, ", ".join(map(str, sorted(parted)))


def open_llama_cpp(file: Path) -> Any:
    """The file in llama.cpp, on one thread, keys and values cached in fp32 (it takes fp16 by default)."""
    try:
        from llama_cpp import Llama
    except ImportError:
        raise MissingDependencyError(
            "llama-cpp-python is not installed.", hint="pip install llama-cpp-python"
        ) from None
    fp32 = 0  # GGML_TYPE_F32
    return Llama(
        str(file), n_ctx=1024, n_threads=1, n_threads_batch=1, n_gpu_layers=0, type_k=fp32, type_v=fp32, verbose=False
    )


if __name__ == "__main__":
    main()
