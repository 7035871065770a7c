"""Hold llmkit's sentence embeddings against those of the reference.

    python scripts/verify_embeddings.py models/all-MiniLM-L6-v2 sentences.txt

The file has a sentence on each line (of several columns between tabs, the first). The reference is `transformers`: its
model and tokenizer in fp32, each sentence alone, then pooling and normalisation as the directory's files say; and
`sentence_transformers` beside it where it is installed. llmkit embeds all sentences in ragged batches. Exit code 1
where a number differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor

import llmkit
from llmkit.console import emit_table, say

TOLERANCE = 1e-5


@torch.no_grad()
def reference_embeddings(directory: Path, sentences: Sequence[str]) -> Tensor:
    """[n, width] by `transformers`, with the pooling computed here."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    pooling = _read(directory / "1_Pooling" / "config.json")
    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    longest = _read(directory / "sentence_bert_config.json").get("max_seq_length") or tokenizer.model_max_length
    rows = []
    for sentence in sentences:
        inputs = tokenizer(sentence, truncation=True, max_length=longest, padding=False, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state[0]
        if pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls":
            row = hidden[0]
        elif pooling.get("pooling_mode_lasttoken") or pooling.get("pooling_mode") == "lasttoken":
            row = hidden[-1]
        else:
            row = hidden.mean(dim=0)
        rows.append(row / row.norm() if str(modules[-1]["type"]).endswith("Normalize") else row)
    return torch.stack(rows)


def _read(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _sentence_transformers(directory: Path, sentences: Sequence[str]) -> Tensor:
    model = importlib.import_module("sentence_transformers").SentenceTransformer(str(directory), device="cpu")
    encoded: Tensor = model.encode(list(sentences), batch_size=1, convert_to_tensor=True, show_progress_bar=False)
    return encoded


def _sentences(path: Path, limit: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines if line.strip()][:limit]


def main() -> int:
    """Compare; 0 where all differences are within the tolerance."""
    parser = argparse.ArgumentParser(description="Hold sentence embeddings against the reference's.")
    parser.add_argument("model", type=Path, help="a sentence-transformers directory")
    parser.add_argument("sentences", type=Path, help="a text file with a sentence on each line")
    parser.add_argument("--limit", type=int, default=100, help="sentences of the file that are taken")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    arguments = parser.parse_args()
    sentences = _sentences(arguments.sentences, arguments.limit)
    loaded = llmkit.load(str(arguments.model), dtype="fp32", device="cpu")
    ours = loaded.embed(sentences, batch_size=16)
    references = {f"transformers {transformers.__version__}": reference_embeddings(arguments.model, sentences)}
    if importlib.util.find_spec("sentence_transformers") is None:
        say("sentence_transformers is not installed; compared with transformers alone")
    else:
        references["sentence_transformers"] = _sentence_transformers(arguments.model, sentences)
    lengths = [len(loaded.tokenizer.encode_single(text, 10**6, end=False)) for text in sentences]
    say(f"{len(sentences)} sentences of {min(lengths)} to {max(lengths)} tokens, {ours.shape[1]} numbers each")
    differences = {name: float((ours - theirs).abs().max()) for name, theirs in references.items()}
    emit_table(["reference", "largest difference"], [[name, f"{d:.1e}"] for name, d in differences.items()])
    return 0 if max(differences.values()) <= arguments.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
