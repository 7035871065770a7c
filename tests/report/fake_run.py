"""A run's directory as the stages leave it, written by hand with figures that the tests know."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from llmkit.config.base import Facts
from llmkit.store.artifact import open_artifact
from llmkit.store.documents import COLUMNS, Document, document_id, document_row, write_documents
from llmkit.store.files import sha256_json, write_json_atomic
from llmkit.store.stage import Outcome
from llmkit.store.workspace import StageIdentity, Workspace, workspace

HOSTILE = '</script></style><img src=x onerror="alert(1)"><script>alert("run")</script>'
DEDENT = "Remove any common leading whitespace from every line in `text`."
MOMENT = 1_750_000_000

DATA_REPORT: dict[str, Any] = {
    "total": {
        "in": 9_500, "kept": 8_900, "dropped": {"duplicate": 310, "too_short": 240, "repetitive": 45, "malformed": 5},
        "bytes_in": 31_400_000, "bytes_kept": 30_100_000, "steps": {},
    },
    "sources": {
        "python-docs": {"in": 9_000, "kept": 8_455, "dropped": {"duplicate": 300, "too_short": 205, "repetitive": 40},
                        "bytes_in": 30_000_000, "bytes_kept": 28_900_000, "steps": {}},
        "notes": {"in": 500, "kept": 445,
                  "dropped": {"duplicate": 10, "too_short": 35, "repetitive": 5, "malformed": 5},
                  "bytes_in": 1_400_000, "bytes_kept": 1_200_000, "steps": {}},
    },
    "splits": {
        "train": {"documents": 8_010, "bytes": 27_090_000},
        "validation": {"documents": 445, "bytes": 1_505_000},
        "test": {"documents": 445, "bytes": 1_505_000},
    },
}  # fmt: skip

GPT = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 256,
    "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "intermediate_size": 704,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 4096, "hidden_size": 192,
    "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768, "max_position_embeddings": 128,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2,
}  # fmt: skip

# name, kind, inputs
CHAIN: dict[str, tuple[str, dict[str, str]]] = {
    "corpus": ("data", {}),
    "tokenizer": ("tokenizer", {"data": "corpus"}),
    "tokens": ("tokens", {"data": "corpus", "tokenizer": "tokenizer"}),
    "wordpiece": ("tokenizer", {"data": "corpus"}),
    "bert-tokens": ("tokens", {"data": "corpus", "tokenizer": "wordpiece"}),
    "pretrain": ("pretrain", {"data": "tokens"}),
    "bert": ("pretrain", {"data": "bert-tokens"}),
    "questions": ("examples", {}),
    "topics": ("examples", {}),
    "pairs": ("examples", {}),
    "sft": ("finetune", {"model": "pretrain", "data": "questions"}),
    "classifier": ("finetune", {"model": "bert", "data": "topics"}),
    "reward": ("rlhf", {"model": "sft", "data": "pairs"}),
    "dpo": ("rlhf", {"model": "sft", "data": "pairs"}),
    "grpo": ("rlhf", {"model": "sft", "data": "questions", "reward_model": "reward"}),
    "eval": ("eval", {
        "models.0": "pretrain", "models.1": "sft", "models.2": "dpo", "models.3": "grpo", "models.4": "classifier",
        "tasks.0.data": "corpus", "tasks.1.data": "questions", "tasks.1.reward_model": "reward",
        "tasks.2.data": "topics",
    }),
}  # fmt: skip
SECONDS = dict(
    zip(CHAIN, (21.4, 9.1, 6.2, 7.7, 5.9, 188.0, 96.5, 1.2, 0.9, 1.4, 44.1, 31.0, 29.5, 38.2, 81.9, 26.3), strict=True)
)
TOKENS = {
    "pretrain": 3_276_800, "bert": 2_097_152, "sft": 512_000, "classifier": 420_000, "reward": 380_000, "dpo": 610_000,
    "grpo": 450_560,
}  # fmt: skip
FLOPS = {name: 6.0 * 5_000_000 * tokens for name, tokens in TOKENS.items()}


def write_run(directory: Path, stages: Iterable[str] = CHAIN) -> Path:
    """Write a run with the stages named finished and all of `CHAIN` in its resolved config; gives its folder."""
    run = directory / "runs" / "quickstart"
    run.mkdir(parents=True)
    configs = {name: stage_config(name) for name in CHAIN}
    settings = {"run": "quickstart", "seed": 1337, "runs_dir": "runs", "stages": configs}
    (run / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for name in stages:
        write_stage(run, name)
    return run


def stage_config(name: str) -> dict[str, Any]:
    """The settings of a stage, defaults included, as far as the tests need them."""
    kind, inputs = CHAIN[name]
    config: dict[str, Any] = {"stage": kind, "seed": None}
    config |= {key: value for key, value in inputs.items() if "." not in key}
    if kind == "data":
        config["sources"] = [{"kind": "python-docs", "license": "PSF-2.0"}, {"kind": "text", "name": "notes"}]
    if kind == "examples":
        config["source"] = {"kind": "python-docs", "task": name}
    if kind == "rlhf":
        config["algorithm"] = {"reward": "reward_model"}.get(name, name)
    if kind == "eval":
        config["models"] = [value for key, value in inputs.items() if key.startswith("models.")]
        config["tasks"] = [{"kind": "perplexity", "data": "corpus"}]
        config["bootstrap"] = {"resamples": 1000, "confidence": 0.95}
    return config


def identity(run: Path, name: str) -> StageIdentity:
    kind, inputs = CHAIN[name]
    found = {
        key: {"value": value, "path": f"runs/quickstart/{value}", "digest": open_artifact(run / value).digest}
        for key, value in inputs.items()
    }
    return StageIdentity(kind, name, sha256_json([name, found]), stage_config(name), found)


def write_stage(run: Path, name: str) -> None:
    """Write a stage as finished; its inputs must be there."""
    with workspace(run / name, identity(run, name)) as work:
        assert isinstance(work, Workspace)
        facts = _WRITERS[CHAIN[name][0]](work.directory, name)
        cost: dict[str, Any] = {"seconds": SECONDS[name]}
        if name in TOKENS:
            cost |= {"steps": 800, "precision": "fp32", "tokens": TOKENS[name], "flops": FLOPS[name]}
        work.commit(Outcome(["*.json", "*/*"], facts, cost))
    os.utime(run / name / "manifest.json", (MOMENT, MOMENT))


def interrupt_stage(run: Path, name: str) -> Path:
    """Write what a stage leaves that was killed half-way; gives the folder."""
    with workspace(run / name, identity(run, name)) as work:
        assert isinstance(work, Workspace)
        if CHAIN[name][0] in ("pretrain", "finetune", "rlhf"):
            write_metrics(work.directory, name, until=400)
            with (work.directory / "metrics.jsonl").open("a") as stream:
                stream.write('{"step": 410, "split": "tr')
        elif CHAIN[name][0] == "data":
            (work.directory / "dropped").mkdir()
            (work.directory / "dropped" / "dropped-00000.parquet").write_bytes(b"PAR1 no footer")
        os.utime(work.directory / "stage.json", (MOMENT, MOMENT))
        return work.directory


def write_metrics(directory: Path, name: str, until: int = 800) -> None:
    noise = random.Random(name)
    rows: list[dict[str, Any]] = []
    online = name == "grpo"
    for step in range(5, until + 1, 5):
        progress = step / 800
        floor, height, span = {"pretrain": (2.45, 5.9, 0.09), "bert": (3.1, 5.2, 0.2)}.get(name, (1.05, 1.6, 0.25))
        loss = floor + height * math.exp(-progress / span) + noise.gauss(0, 0.06)
        if name in ("dpo", "reward"):
            loss = 0.69 - 0.35 * progress + noise.gauss(0, 0.03)
        row: dict[str, Any] = {
            "step": step, "split": "train", "loss": loss if not online else noise.gauss(0.0, 0.02),
            "grad_norm": 0.8 + math.exp(-progress * 8) * 3 + abs(noise.gauss(0, 0.12)),
            "lr": 1e-3 * min(step / 40, 0.55 + 0.45 * math.cos(math.pi * progress)),
            "tokens": step * 4096, "tokens_per_second": 17_400 + noise.gauss(0, 500), "seconds": step * 0.23,
            "data_seconds": 0.001 + abs(noise.gauss(0, 0.0004)),
        }  # fmt: skip
        if online:
            row |= {
                "reward": 0.12 + 0.5 * (1 - math.exp(-3 * progress)) + noise.gauss(0, 0.05),
                "kl": 0.08 * progress + abs(noise.gauss(0, 0.006)),
                "completion_length": 18 + 9 * progress + noise.gauss(0, 1.0),
                "clip_fraction": abs(noise.gauss(0.04, 0.02)),
                "entropy": 1.9 - 0.8 * progress + noise.gauss(0, 0.05),
            }
        rows.append(row)
        if step % 80 == 0:
            value = {"step": step, "split": "validation", "loss": loss + 0.05}
            rows.append(
                value | {"accuracy": 0.5 + 0.3 * progress} if name in ("reward", "dpo", "classifier") else value
            )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _data(directory: Path, name: str) -> Facts:
    write_documents(
        directory, [Document(document_id(f"text {n}"), f"text {n}", "python-docs", f"mod{n}") for n in range(5)]
    )
    folder = directory / "dropped"
    folder.mkdir()
    rows = []
    for reason, step, detail, text in DROPPED:
        rows.append(
            [*document_row(Document(document_id(text), text, "notes", f"notes/{len(rows)}.txt")), step, reason, detail]
        )
    columns = (*COLUMNS, "step", "reason", "detail")
    table = pa.table([pa.array(values, pa.string()) for values in zip(*rows, strict=True)], names=columns)
    pq.write_table(table, folder / "dropped-00000.parquet")
    write_json_atomic(directory / "report.json", DATA_REPORT)
    return Facts("documents", {"splits": ["train", "validation", "test"]})


DROPPED = (
    ("too_short", "length", "11 characters", "See above."),
    ("duplicate", "exact_duplicates", "as json.tool", "Return repr(self)."),
    ("duplicate", "exact_duplicates", "as ast.walk", "Return self==value."),
    ("malformed", "read", "not UTF-8", HOSTILE),
    ("repetitive", "repetition", "81% of the lines are repeated", "====\n" * 30),
    ("too_short", "length", "4 characters", "N/A."),
    ("duplicate", "exact_duplicates", "as os.walk", "never shown, since two of its kind are"),
)


def _conversation(name: str, asked: str, answer: str, task: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": messages, "task": task}


def _examples(directory: Path, name: str) -> Facts:
    rows: list[dict[str, Any]]
    if name == "questions":
        rows = [
            _conversation("q1", "What does textwrap.dedent do?", DEDENT, "describe"),
            _conversation("q2", HOSTILE, "json", "module"),
        ]
    elif name == "topics":
        rows = [{"id": "t1", "text": "Send a QUIT command to the server.", "label": "internet"}]
    else:
        rows = [
            {
                "id": "p1",
                "prompt": [{"role": "user", "content": "Which module defines walk?"}],
                "chosen": "os",
                "rejected": "walk walk walk",
            }
        ]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits: dict[str, Any] = {"train": {"rows": 1_200}, "validation": {"rows": 60}, "test": {"rows": 240}}
    report: dict[str, Any] = {"in": 1_520, "kept": 1_500, "dropped": {"duplicate": 20}, "splits": splits}
    if name == "topics":
        splits["train"]["labels"] = {"internet": 700, "mathematics": 500}
    if name == "questions":
        report["tasks"] = {"describe": {"in": 1_000, "kept": 985, "dropped": {"duplicate": 15}},
                           "module": {"in": 520, "kept": 515, "dropped": {"duplicate": 5}}}  # fmt: skip
    write_json_atomic(directory / "report.json", report)
    return Facts("examples", {"splits": list(splits)})


def _tokenizer(directory: Path, name: str) -> Facts:
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "tokenizer.json").write_text("{}")
    row = {"documents": 445, "bytes": 1_505_000, "tokens": 430_000, "unknown": 0, "bytes_per_token": 3.5}
    write_json_atomic(directory / "report.json", {
        "algorithm": "bpe", "vocab_size": 4096,
        "compression": {
            "split": "validation", "all": row,
            "sources": {"python-docs": row | {"bytes_per_token": 3.625}, "notes": row | {"bytes_per_token": 2.75}},
        },
    })  # fmt: skip
    algorithm = "bpe" if name == "tokenizer" else "wordpiece"
    return Facts("tokenizer", {"vocab_size": 4096, "algorithm": algorithm, "chat_template": algorithm == "bpe"})


def _tokens(directory: Path, name: str) -> Facts:
    splits = {
        split: {"documents": documents, "tokens": tokens, "text_bytes": size, "bytes_per_token": 3.5}
        for split, documents, tokens, size in (
            ("train", 8_010, 7_740_000, 27_090_000), ("validation", 445, 430_000, 1_505_000),
            ("test", 445, 430_000, 1_505_000),
        )
    }  # fmt: skip
    write_json_atomic(
        directory / "report.json", {"splits": splits, "sources": {"train": {"python-docs": splits["train"]}}}
    )
    return Facts("tokens", {"vocab_size": 4096, "splits": list(splits)})


def _train(directory: Path, name: str) -> Facts:
    write_metrics(directory, name)
    if name == "grpo":
        rows = [
            {"step": step, "id": f"q{n}", "task": "module", "prompt": "Which module defines walk?",
             "completion": f"answer {n} of step {step}", "reference": "os", "reward": step / 800,
             "scores": {"exact_match": 0.0}, "finished": True}
            for step in (0, 200, 400, 600) for n in range(4)
        ]  # fmt: skip
        (directory / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json_atomic(
        directory / "engine.json",
        {"device": "cpu", "threads": 2, "precision": "fp32", "reason": "as configured", "matrix_rate": 1.2e12},
    )
    (directory / "model").mkdir()
    config: dict[str, Any] = dict(GPT)
    facts: dict[str, Any] = {
        "family": "llama",
        "head": "causal-lm",
        "causal": True,
        "context": 256,
        "vocab_size": 4096,
        "chat_template": True,
    }
    if name in ("bert", "classifier"):
        config = dict(BERT)
        facts = {"family": "bert", "head": "masked-lm", "causal": False, "context": 128, "vocab_size": 4096}
    if name == "classifier":
        labels = ["internet", "mathematics"]
        config |= {
            "architectures": ["BertForSequenceClassification"],
            "id2label": dict(enumerate(labels)),
            "label2id": {label: n for n, label in enumerate(labels)},
        }
        facts |= {"head": "classification", "labels": labels}
    if name == "reward":
        config |= {
            "architectures": ["LlamaForSequenceClassification"],
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "pad_token_id": 0,
        }
        facts |= {"head": "reward"}
    write_json_atomic(directory / "model" / "config.json", config)
    (directory / "model" / "model.safetensors").write_bytes(name.encode() * 1000)
    return Facts("model", facts)


# model, task, metric, value, low, high, n, better
RESULTS: list[tuple[str, str, str, float, float, float, int, str]] = [
    ("pretrain", "held-out text", "bits_per_byte", 1.342, 1.331, 1.353, 445, "lower"),
    ("sft", "held-out text", "bits_per_byte", 1.371, 1.360, 1.382, 445, "lower"),
    ("dpo", "held-out text", "bits_per_byte", 1.402, 1.390, 1.414, 445, "lower"),
    ("grpo", "held-out text", "bits_per_byte", 1.380, 1.368, 1.391, 445, "lower"),
    ("pretrain", "held-out text", "perplexity", 25.9, 25.2, 26.6, 445, "lower"),
    ("sft", "held-out text", "perplexity", 27.8, 27.1, 28.5, 445, "lower"),
    ("dpo", "held-out text", "perplexity", 30.0, 29.2, 30.8, 445, "lower"),
    ("grpo", "held-out text", "perplexity", 28.4, 27.7, 29.2, 445, "lower"),
    ("pretrain", "questions", "exact_match", 0.004, 0.0, 0.012, 240, "higher"),
    ("sft", "questions", "exact_match", 0.421, 0.358, 0.483, 240, "higher"),
    ("dpo", "questions", "exact_match", 0.438, 0.375, 0.500, 240, "higher"),
    ("grpo", "questions", "exact_match", 0.613, 0.550, 0.675, 240, "higher"),
    ("pretrain", "questions", "rouge_l", 0.083, 0.071, 0.096, 240, "higher"),
    ("sft", "questions", "rouge_l", 0.522, 0.470, 0.575, 240, "higher"),
    ("dpo", "questions", "rouge_l", 0.536, 0.483, 0.590, 240, "higher"),
    ("grpo", "questions", "rouge_l", 0.561, 0.508, 0.612, 240, "higher"),
    ("pretrain", "questions", "reward", -2.41, -2.55, -2.27, 240, "higher"),
    ("sft", "questions", "reward", 0.87, 0.69, 1.05, 240, "higher"),
    ("dpo", "questions", "reward", 1.94, 1.80, 2.07, 240, "higher"),
    ("grpo", "questions", "reward", 1.71, 1.56, 1.85, 240, "higher"),
    ("sft", "questions/module", "exact_match", 0.55, 0.45, 0.65, 90, "higher"),
    ("grpo", "questions/module", "exact_match", 0.81, 0.73, 0.88, 90, "higher"),
    ("classifier", "topics", "accuracy", 0.746, 0.692, 0.800, 240, "higher"),
    ("classifier", "topics", "mcc", 0.702, 0.640, 0.764, 240, "higher"),
]  # fmt: skip
BASELINES: list[tuple[str, str, str, float, float, float, int, str]] = [
    ("gzip -9", "held-out text", "bits_per_byte", 2.611, 2.580, 2.642, 445, "lower"),
    ("xz -9", "held-out text", "bits_per_byte", 2.302, 2.275, 2.330, 445, "lower"),
    ("reference", "questions", "reward", 2.35, 2.2, 2.5, 240, "higher"),
    ("majority class", "topics", "accuracy", 0.242, 0.188, 0.296, 240, "higher"),
]
_ROW = ("model", "task", "metric", "value", "low", "high", "n", "better")


def _eval(directory: Path, name: str) -> Facts:
    def described(rows: list[Any]) -> list[dict[str, Any]]:
        return [dict(zip(_ROW, row, strict=True)) | {"signature": f"{row[2]}|test|<v1>"} for row in rows]

    models = {
        label: {"source": label, "digest": "0" * 64, "family": family, "head": head, "parameters": size}
        for label, family, head, size in (
            *((name, "llama", "causal-lm", 5_507_328) for name in ("pretrain", "sft", "dpo", "grpo")),
            ("classifier", "bert", "classification", 2_600_000),
        )
    }  # fmt: skip
    write_json_atomic(directory / "results.json", {
        "models": models, "results": described(RESULTS), "baselines": described(BASELINES),
        "left_out": [{"task": "topics", "model": "sft", "reason": "has a causal-lm head"}],
        "interval": {"resamples": 1000, "confidence": 0.95, "seed": 7},
    })  # fmt: skip
    rows = []
    for number, (prompt, reference, answers) in enumerate(_ANSWERS * 3):
        outputs = dict(zip(("pretrain", "sft", "dpo", "grpo"), answers, strict=True))
        scores: Mapping[str, Any] = {
            model: {"exact_match": float(text == reference)} for model, text in outputs.items()
        }
        rows.append(
            {
                "task": "questions",
                "id": f"q-{number}",
                "prompt": prompt,
                "reference": reference,
                "outputs": outputs,
                "scores": scores,
            }
        )
    (directory / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Facts("results")


_ANSWERS: list[tuple[str, str, tuple[str, str, str, str]]] = [
    ("What does textwrap.dedent do?", DEDENT,
     ("The function is called with the\n    arguments of the function.\n\n    def __init__(self, *args):\n        pass",
      "Remove any common leading whitespace from the string.", DEDENT, DEDENT)),
    ("Which module of the standard library defines OrderedDict?", "collections",
     ("\n\nThis module defines the following:\n", "collections", "collections", "collections")),
    ("Which module of the standard library defines urlsplit?", "urllib.parse",
     ("urlurlurlurl\x00\x1b[31m", "urllib.request", "urllib", "urllib.parse")),
    (HOSTILE, "escape me", (HOSTILE, "<b>bold</b> & \u202ereversed", "a lone surrogate \ud800 here", "x" * 4000)),
]  # fmt: skip

_WRITERS = {
    "data": _data, "examples": _examples, "tokenizer": _tokenizer, "tokens": _tokens, "pretrain": _train,
    "finetune": _train, "rlhf": _train, "eval": _eval,
}  # fmt: skip
