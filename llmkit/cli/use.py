"""Commands that use a model: generate from prompts, chat."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.options import ModelOption
from llmkit.cli.prompts import Asked, Shape, answer_row, open_answers, read_prompts
from llmkit.console import say
from llmkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from llmkit.inference import Engine, LoadedModel

# Prompts that are answered, and written to the file of answers, at a time.
_BLOCK = 256

TokensOption = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens to write.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token each time.")]
TopKOption = Annotated[int | None, typer.Option(min=1, help="Draw from the k most likely tokens.")]
TopPOption = Annotated[float, typer.Option(help="Draw from the fewest tokens that reach this probability.")]
MinPOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Draw from tokens at least this share as likely as the likeliest.")
]
PenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1 makes tokens that came before less likely.")
]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer. Repeatable.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the random draws.")]
DtypeOption = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; as stored by default.")]
QuantizeOption = Annotated[
    str | None, typer.Option(help="Weights in fewer bits: int8, int4 (CPU) or nf4. The dtype is then bf16 by default.")
]
DeviceOption = Annotated[str | None, typer.Option(help="A torch device; by default CUDA where it is, else the CPU.")]
EngineOption = Annotated[str, typer.Option(help="What writes: builtin, or vllm where it is installed.")]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile what writes one answer (CPU): a slow start, then faster.")
]
SystemOption = Annotated[str | None, typer.Option("--system", help="A system message.")]


def generate(
    model: ModelOption,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; read from standard input where none.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help='JSONL with {"prompt": text} or {"messages": [...]} a line; "sampling": {...} beside.'
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take each prompt as a message and answer it.")] = False,
    system: SystemOption = None,
    max_new_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    stop: StopOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers for each prompt.")] = 1,
    seed: SeedOption = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Most answers at work at once.")] = 64,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = None,
    engine: EngineOption = "builtin",
    compile: CompileOption = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSONL for the answers; those it holds are not made again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with log-probabilities.")] = False,
) -> None:
    """Go on with texts, or answer messages."""
    asked = list(read_prompts(prompts, file, Shape(chat or system is not None, system)))
    if not asked:
        raise DataError("there is no prompt.", hint="Give one as an argument, by --file, or on standard input.")
    settings = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "stop": tuple(stop or ()), "seed": seed, "n": samples,
    }  # fmt: skip
    # What is wrong with the file is said before the model is opened.
    opened, done = (None, 0) if output is None else open_answers(output, asked, samples)
    try:
        if done == len(asked):
            say(f"{output} holds all {done} answers.")
            return
        loaded = _open(model, dtype, quantize, device, engine, compile)
        for start in range(done, len(asked), _BLOCK):
            block = asked[start : start + _BLOCK]
            listed = [one.prompt for one in block]
            answers = loaded.generate(
                listed if len(asked) > 1 else listed[0], each=[one.sampling for one in block],
                keys=range(start, start + len(block)), max_batch=max_batch, **settings,
            )  # fmt: skip
            for index, answer in enumerate(answers):
                one = block[index // samples]
                if opened is not None:
                    opened.write(answer_row(one, answer) + "\n")
                elif as_json:
                    typer.echo(answer_row(one, answer))
                else:
                    last = start + len(block) == len(asked) and index == len(answers) - 1
                    _show(one, answer.text or "", last)
            if opened is not None:
                opened.flush()
                say(f"{start + len(block)} of {len(asked)} prompts answered")
    finally:
        if opened is not None:
            opened.close()


def _show(asked: Asked, text: str, last: bool) -> None:
    typer.echo((asked.prompt if isinstance(asked.prompt, str) else "") + text)
    if not last:
        typer.echo("")


def _open(
    model: str, dtype: str | None, quantize: str | None, device: str | None, engine: str, compile: bool
) -> LoadedModel:
    from llmkit.inference import load

    if engine not in ("builtin", "vllm"):
        raise ConfigError(f"`{engine}` is no engine.", where="--engine", hint="Choose builtin or vllm.")
    chosen: Engine = "vllm" if engine == "vllm" else "builtin"
    return load(model, dtype=dtype, device=device, quantize=quantize, engine=chosen, compile=compile)


def chat(
    model: ModelOption,
    system: SystemOption = None,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.7,
    top_k: TopKOption = None,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = None,
    engine: EngineOption = "builtin",
    compile: CompileOption = False,
) -> None:
    """Talk with a model.

    /new starts over, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer.
    """
    loaded = _open(model, dtype, quantize, device, engine, compile)
    first = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    with suppress(ImportError):
        # Gives `input` arrow keys and the lines entered before.
        import readline  # noqa: F401
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
                top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed + turn,
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
