"""Commands that bring models in from other formats and hand them back in them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.console import say
from llmkit.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from llmkit.model.transformer import Transformer
    from llmkit.tokenizer.tokenizer import Tokenizer


class Format(StrEnum):
    """What a model, or data, is written as."""

    HF = "hf"
    GGUF = "gguf"
    MEGATRON = "megatron"
    DATASETS = "datasets"


class NumberType(StrEnum):
    """Type of the matrices in a GGUF file."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


SourceArgument = Annotated[
    str, typer.Argument(help="A model directory, a stage's directory, a GGUF file, or hf:owner/name.")
]
DtypeOption = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; as stored by default.")]
AverageOption = Annotated[
    list[str] | None,
    typer.Option(help="hf: a further model whose weights are averaged with the source's; give it for each one."),
]
AdapterOption = Annotated[Path | None, typer.Option(help="An adapter's directory, merged into the weights.")]


def import_model(
    source: SourceArgument,
    directory: Annotated[Path, typer.Argument(help="The Hugging Face directory to write.")],
    dtype: DtypeOption = None,
) -> None:
    """Bring a model in as a Hugging Face directory.

    With its tokenizer, chat template and generation settings, so that configs can name it as `model:`.
    """
    write_directory(source, directory, dtype=dtype)
    say(f"{directory}: name it as `model:` in a config, or use it with `llmkit generate --model {directory}`.")


def export_model(
    source: Annotated[
        str, typer.Argument(help="A model or a stage's directory, a GGUF file, or hf:owner/name; for data, a stage's.")
    ],
    target: Annotated[Path, typer.Argument(help="The file (gguf) or the directory to write.")],
    form: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.GGUF,
    number_type: Annotated[NumberType | None, typer.Option("--type", "-t", help="gguf: type of the matrices.")] = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    average: AverageOption = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(help="gguf: how llama.cpp is to cut texts, where it knows no way that is the tokenizer's own."),
    ] = None,
) -> None:
    """Hand a model or data back in a format that other tools open.

    A model: a GGUF file for llama.cpp, with tokenizer and chat template; or a Hugging Face directory, adapters merged,
    and averaged with other models such as earlier checkpoints of the same run. Tokens: Megatron's .bin and .idx, or a
    directory for load_from_disk of `datasets`, which documents can be, too.
    """
    if form in (Format.MEGATRON, Format.DATASETS):
        if any((number_type, dtype, adapter, average, pre_tokenizer)):
            raise ConfigError(f"the format {form} is of data, and the other options are of models.")
        write_data(source, target, form)
    elif form is Format.HF:
        if number_type is not None or pre_tokenizer is not None:
            raise ConfigError("--type and --pre-tokenizer are of GGUF files.", hint="Use --dtype, or --format gguf.")
        write_directory(source, target, dtype=dtype, adapter=adapter, average=average or ())
    else:
        if average:
            raise ConfigError("--average is of directories.", hint="Write one with --format hf, and export that.")
        if dtype is not None:
            raise ConfigError("--dtype is of directories.", hint="The type of a GGUF file's matrices is --type.")
        kind = number_type or NumberType.F16
        write_gguf_file(source, target, kind.value, adapter=adapter, pre_tokenizer=pre_tokenizer)
    say(f"{target}: written.")


def write_data(source: str, target: Path, form: Format) -> None:
    """Write the tokens or documents of a stage's directory, put in place once they are whole.

    Raises:
        LLMKitError: there are none, or the target is there and not empty.
    """
    from llmkit.data.export import export_datasets, export_megatron

    if not Path(source).is_dir():
        raise ArtifactError("there is no such directory.", where=source, hint="Name that of a stage `tokens`.")
    (export_megatron if form is Format.MEGATRON else export_datasets)(Path(source), target)


def write_directory(
    source: str,
    directory: Path,
    *,
    dtype: str | None = None,
    adapter: Path | None = None,
    average: Sequence[str] = (),
) -> None:
    """Write a model of any format as a Hugging Face directory, put in place once it is whole.

    Args:
        source: what `llmkit.load` opens.
        directory: where to.
        dtype: "fp32", "bf16" or "fp16"; by default as stored.
        adapter: of PEFT's format, merged first.
        average: further models; what is written has the mean of their weights and the source's.

    Raises:
        LLMKitError: the model cannot be opened, or the directory is there and not empty.
    """
    from llmkit.model.averaging import average_weights
    from llmkit.model.save import save_model

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ArtifactError("there is something here already.", where=str(directory), hint="Name a new directory.")
    if average and adapter is not None:
        raise ConfigError("models with an adapter are not averaged.", hint="Merge it first: llmkit export --adapter.")
    model, tokenizer = _open(source, dtype, adapter)
    average_weights(model, average, lambda other: _open(other, dtype, None)[0])
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        save_model(model, beside)
        if tokenizer is not None:
            tokenizer.save(beside)
        else:
            say(f"{source} has no tokenizer (tokenizer.json), so {directory} has none.")
        beside.replace(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_gguf_file(
    source: str, file: Path, kind: str, *, adapter: Path | None = None, pre_tokenizer: str | None = None
) -> None:
    """Write a model of any format as a GGUF file.

    Args:
        source: what `llmkit.load` opens.
        file: where to; replaced where it is there.
        kind: "f32", "f16", "bf16" or "q8_0".
        adapter: of PEFT's format, merged first.
        pre_tokenizer: what llama.cpp is to use where it has no pre-tokenizer that is exactly the tokenizer's.

    Raises:
        LLMKitError: the model cannot be opened, or llama.cpp cannot compute what it does.
    """
    from llmkit.model.gguf.write import KINDS, write_gguf
    from llmkit.tokenizer.gguf_write import gguf_of_tokenizer

    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise ConfigError(f"`{kind}` is no type of GGUF's that is written.", hint=f"Choose among {', '.join(KINDS)}.")
    if file.is_dir():
        raise ArtifactError("this is a directory.", where=str(file), hint="Name a file, such as model.gguf.")
    model, tokenizer = _open(source, None, adapter)
    if tokenizer is None:
        raise ArtifactError("there is no tokenizer (tokenizer.json) here.", where=source)
    metadata = gguf_of_tokenizer(tokenizer, model.config.vocab_size, pre_tokenizer)
    write_gguf(model, file, kind=chosen, tokenizer=metadata, name=Path(source.rstrip("/")).name)


def _open(source: str, dtype: str | None, adapter: Path | None) -> tuple[Transformer, Tokenizer | None]:
    """The model on the CPU, an adapter put on it, and the tokenizer, the adapter's where it has one."""
    from llmkit.inference import DTYPES, load_tokenizer, model_directory
    from llmkit.model.load import load_model

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"`{dtype}` is no dtype.", hint=f"Choose among {', '.join(DTYPES)}.")
    place = model_directory(source)
    model = load_model(place, dtype=None if dtype is None else DTYPES[dtype])
    tokenizer = load_tokenizer(place) if place.is_file() or (place / "tokenizer.json").is_file() else None
    if adapter is not None:
        from llmkit.model.adapters.peft import load_adapter

        load_adapter(model, adapter)
        if (adapter / "tokenizer.json").is_file():
            tokenizer = load_tokenizer(adapter)
    return model, tokenizer
