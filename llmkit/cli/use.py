"""Commands that use a model: generate from prompts, chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.options import ModelOption
from llmkit.console import say
from llmkit.errors import DataError

if TYPE_CHECKING:
    from llmkit.inference import Prompt

TokensOption = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens to write.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token each time.")]
TopKOption = Annotated[int | None, typer.Option(min=1, help="Draw from the k most likely tokens.")]
TopPOption = Annotated[float, typer.Option(help="Draw from the fewest tokens that reach this probability.")]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer. Repeatable.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the random draws.")]
DtypeOption = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; as stored by default.")]
QuantizeOption = Annotated[
    str | None, typer.Option(help="Weights in fewer bits: int8, int4 (CPU) or nf4. The dtype is then bf16 by default.")
]
SystemOption = Annotated[str | None, typer.Option("--system", help="A system message.")]


def generate(
    model: ModelOption,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; read from standard input where none.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help='JSONL with {"prompt": text} or {"messages": [...]} a line.')
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take each prompt as a message and answer it.")] = False,
    system: SystemOption = None,
    max_new_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = 1.0,
    stop: StopOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers for each prompt.")] = 1,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with log-probabilities.")] = False,
) -> None:
    """Go on with texts, or answer messages."""
    asked = list(_prompts(prompts, file, chat or system is not None, system))
    if not asked:
        raise DataError("there is no prompt.", hint="Give one as an argument, by --file, or on standard input.")
    from llmkit.inference import load

    loaded = load(model, dtype=dtype, quantize=quantize)
    answers = loaded.generate(
        asked, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        stop=tuple(stop or ()), seed=seed, n=samples,
    )  # fmt: skip
    for index, answer in enumerate(answers):
        prompt = asked[index // samples]
        if as_json:
            key = "prompt" if isinstance(prompt, str) else "messages"
            row = {
                key: prompt, "text": answer.text, "token_ids": answer.token_ids,
                "logprobs": [round(value, 6) for value in answer.logprobs], "finish_reason": answer.finish_reason,
            }  # fmt: skip
            typer.echo(json.dumps(row, ensure_ascii=False))
        else:
            typer.echo((prompt if isinstance(prompt, str) else "") + (answer.text or ""))
            if index < len(answers) - 1:
                typer.echo("")


def _prompts(words: list[str] | None, file: Path | None, chat: bool, system: str | None) -> Iterator[Prompt]:
    """Prompts from arguments, else from the file, else from standard input as one text."""

    def shaped(text: str) -> Prompt:
        if not chat:
            return text
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": text}]

    if words:
        yield from (shaped(word) for word in words)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the file cannot be read: {error}.", where=str(file)) from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _row(line, f"{file}:{number}", shaped)
    elif not words and not sys.stdin.isatty():
        text = sys.stdin.read()
        if text:
            yield shaped(text.rstrip("\n") if chat else text)


def _row(line: str, where: str, shaped: Any) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"the line is not JSON: {error}.", where=where) from None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        prompt: Prompt = shaped(row["prompt"])
        return prompt
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        messages: list[dict[str, str]] = row["messages"]
        return messages
    raise DataError("the line has neither a text `prompt` nor a list of `messages`.", where=where)


def chat(
    model: ModelOption,
    system: SystemOption = None,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.7,
    top_k: TopKOption = None,
    top_p: TopPOption = 0.95,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
) -> None:
    """Talk with a model.

    /new starts over, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer.
    """
    from llmkit.inference import load

    loaded = load(model, dtype=dtype, quantize=quantize)
    first = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    say("/new starts over, /quit leaves.")
    turn = 0
    while True:
        try:
            asked = input("you> ").strip()
        except EOFError:
            typer.echo("")
            return
        if asked in ("/quit", "/exit"):
            return
        if asked == "/new":
            messages = list(first)
            continue
        if not asked:
            continue
        messages.append({"role": "user", "content": asked})
        written = []
        try:
            pieces = loaded.stream(
                _fitting(loaded, messages, max_new_tokens), max_new_tokens=max_new_tokens, temperature=temperature,
                top_k=top_k, top_p=top_p, seed=seed + turn,
            )  # fmt: skip
            for piece in pieces:
                written.append(piece.text)
                typer.echo(piece.text, nl=False)
        except KeyboardInterrupt:
            say(" (stopped)")
        typer.echo("")
        messages.append({"role": "assistant", "content": "".join(written)})
        turn += 1


def _fitting(loaded: Any, messages: list[dict[str, str]], max_new_tokens: int) -> list[dict[str, str]]:
    """The conversation without its oldest exchanges, as far as they would leave no room for an answer."""
    room = loaded.model.config.context - min(max_new_tokens, loaded.model.config.context // 4)
    start = 1 if messages[0]["role"] == "system" else 0
    kept = list(messages)
    while len(kept) > start + 1 and len(loaded.encode_prompt(kept)) > room:
        del kept[start : start + 2]
    return kept
