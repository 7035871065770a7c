"""Opens the adapters of a run in PEFT, and compares logits with llmkit's merged models and unmerged adapters.

    python scripts/verify_adapter.py RUN [--base DIRECTORY] [--tolerance 1e-4]

RUN is a run's folder (every stage with an adapter is taken), the folder of one stage, or an adapter's. The base model
is the one that the adapter names, unless `--base` says otherwise. Everything is computed in float32 on the CPU; a
merged model that was saved in bfloat16 has been rounded once, so it is compared within 2% of the largest logit. Needs
the packages peft and transformers. Exit code 0: all agree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel

from llmkit.errors import LLMKitError
from llmkit.model.adapters.attach import without_adapter
from llmkit.model.adapters.open import base_directory, open_adapted
from llmkit.model.adapters.peft_config import is_adapter
from llmkit.model.facts import read_json
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer

ROUNDED = 2e-2
"""Largest difference, relative to the largest logit, that one rounding of the weights to bfloat16 may make."""


def main() -> int:
    """Verify and print one line for each comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--base", type=Path, help="the base model, in place of the one that the adapter names")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative to the largest logit")
    arguments = parser.parse_args()
    found = adapters(arguments.run)
    if not found:
        print(f"{arguments.run}: there is no adapter here", file=sys.stderr)
        return 2
    transformers.logging.set_verbosity_error()
    results = [agrees(folder, arguments.base, arguments.tolerance) for folder in found]
    return 0 if all(results) else 1


def adapters(path: Path) -> list[Path]:
    """Adapter directories of a run, a stage, or the path itself."""
    candidates = [path, path / "adapter", path / "model", *path.glob("*/adapter"), *path.glob("*/model")]
    return sorted({candidate for candidate in candidates if is_adapter(candidate)})


def agrees(folder: Path, base: Path | None, tolerance: float) -> bool:
    """Whether PEFT, the adapter opened here, and the merged model beside it compute the same."""
    try:
        start = base or base_directory(folder)
        ours = open_adapted(folder, dtype=torch.float32)
    except LLMKitError as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return False
    ids = torch.randint(0, ours.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = ours(ids)
        expected = reference(folder, start, ours, ids)
        passed = compare(folder, "peft", logits, expected, tolerance)
        if not ours.new_parameters:
            with without_adapter(ours):
                plain = load_model(start, dtype=torch.float32)
                rows = plain.config.vocab_size if plain.config.head == "causal-lm" else None
                kept = ids.clamp(max=plain.config.vocab_size - 1)
                passed &= compare(folder, "switched off", ours(kept)[..., :rows], plain(kept), tolerance)
        merged = folder.parent / "model"
        if merged != folder and (merged / "config.json").is_file():
            rounded = read_json(merged / "config.json").get("dtype") != "float32"
            model = load_model(merged, dtype=torch.float32)
            passed &= compare(folder, "merged", model(ids), logits, ROUNDED if rounded else tolerance)
    return passed


def reference(folder: Path, base: Path, ours: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """Logits by transformers and PEFT."""
    head = ours.config.head
    heads = {"causal-lm": "AutoModelForCausalLM", "masked-lm": "AutoModelForMaskedLM"}
    kind = getattr(transformers, heads.get(head, "AutoModelForSequenceClassification"))
    labels = {} if head in heads else {"num_labels": len(ours.config.labels) or 1}
    model = kind.from_pretrained(base, dtype=torch.float32, **labels)
    if head in heads and model.config.vocab_size < ours.config.vocab_size:
        model.resize_token_embeddings(ours.config.vocab_size)
    found: torch.Tensor = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits
    return found[:, 0] if head == "reward" else found


def compare(folder: Path, what: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """Print and judge the largest difference, relative to the largest logit."""
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    fits = difference <= tolerance
    print(f"{folder}: {what}: largest difference {difference:.1e} of the largest logit{'' if fits else ' (TOO LARGE)'}")
    return fits


if __name__ == "__main__":
    sys.exit(main())
