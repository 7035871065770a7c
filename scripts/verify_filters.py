"""Decisions of llmkit's quality filters beside datatrove's with the same thresholds, document by document.

    python scripts/verify_filters.py [--documents 5000] [--pages DIR ...] [--texts DIR ...] [--rows FILE=COLUMN ...]
    python scripts/verify_filters.py --freeze tests/data/cleaning/datatrove.jsonl

Needs datatrove with spaCy. Documents are HTML pages and texts of the folders (by default Debian's documentation), the
documentation strings of Python's own modules, and columns of JSON lines. Every filter decides with the default
thresholds, and then by each of its rules alone, so that no rule is hidden by those before it. Printed are the documents
that each drops, every difference with both reasons, and the processor time that the defaults take; for the filter c4
the text that is left has to be the same as well. Exit code 1 where anything differs. `--freeze` writes small generated
texts with datatrove's decisions instead, for a test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Theirs
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from datatrove.utils.text import split_into_words
from filter_samples import generated_texts, real_texts

from llmkit.console import emit_table, say
from llmkit.data.cleaning.base import Dropped
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import filters, steps
from llmkit.store.documents import Document

PEERS = {
    "gopher_quality": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}
GROUP = 256
MUCH = 1e9
MOST = 4
"""Frozen texts for a reason, where each could go for another filter's."""


@dataclass(frozen=True)
class Rule:
    """A rule of a filter, how it is switched off on both sides, and how it is on.

    Args:
        theirs: name of datatrove's argument, with the value that switches the rule off.
        ours: keys of `cleaning`, with the values that do the same.
        along: other rules that stay on where this one is looked at alone.
    """

    name: str
    theirs: Mapping[str, Any]
    ours: Mapping[str, Any]
    along: tuple[str, ...] = ()


def _quality() -> list[Rule]:
    one = {
        "min_words": ("min_doc_words", 0),
        "max_words": ("max_doc_words", int(MUCH)),
        "min_mean_word_length": ("min_avg_word_length", 0.0),
        "max_mean_word_length": ("max_avg_word_length", MUCH),
        "max_symbols_per_word": ("max_symbol_word_ratio", MUCH),
        "max_bullet_lines": ("max_bullet_lines_ratio", 1.0),
        "max_ellipsis_lines": ("max_ellipsis_lines_ratio", 1.0),
        "min_alphabetic_words": ("max_non_alpha_words_ratio", 0.0),
        "min_stop_words": ("min_stop_words", 0),
    }
    return [Rule(name, {theirs: None}, {f"gopher_quality.{name}": off}) for name, (theirs, off) in one.items()]


def _repetition() -> list[Rule]:
    one = {
        "max_duplicate_lines": ("dup_line_frac", None, 1.0),
        "max_duplicate_paragraphs": ("dup_para_frac", None, 1.0),
        "max_duplicate_line_characters": ("dup_line_char_frac", None, 1.0),
        "max_duplicate_paragraph_characters": ("dup_para_char_frac", None, 1.0),
        "max_top_ngrams": ("top_n_grams", (), {}),
        "max_duplicate_ngrams": ("dup_n_grams", (), {}),
    }
    return [Rule(name, {theirs: no}, {f"gopher_repetition.{name}": off}) for name, (theirs, no, off) in one.items()]


def _c4() -> list[Rule]:
    one = {
        "citations": ("remove_citations", False, "c4_lines.citations", False),
        "end_marks": ("filter_no_terminal_punct", False, "c4_lines.end_marks", []),
        "min_sentences": ("min_num_sentences", -1, "c4.min_sentences", 0),
        "min_words": ("min_words_per_line", -1, "c4_lines.min_words", 0),
        "max_word_characters": ("max_word_length", -1, "c4_lines.max_word_characters", int(MUCH)),
        "lorem_ipsum": ("filter_lorem_ipsum", False, "c4.lorem_ipsum", False),
        "javascript": ("filter_javascript", False, "c4_lines.javascript", False),
        "curly_bracket": ("filter_curly_bracket", False, "c4.curly_bracket", False),
        "phrases": ("filter_policy", False, "c4_lines.phrases", []),
    }
    # Without a least number of words, datatrove counts each blank line as a sentence.
    along = {"min_sentences": ("min_words",)}
    return [Rule(name, {theirs: no}, {ours: off}, along.get(name, ())) for name, (theirs, no, ours, off) in one.items()]


def _fineweb() -> list[Rule]:
    one = {
        "min_punctuated_lines": ("line_punct_thr", 0.0, 0.0),
        "max_short_lines": ("short_line_thr", 1.0, 1.0),
        "max_duplicate_characters": ("char_duplicates_ratio", 1.0, 1.0),
        "max_newlines_per_word": ("new_line_ratio", MUCH, MUCH),
    }
    return [Rule(name, {theirs: no}, {f"fineweb.{name}": off}) for name, (theirs, no, off) in one.items()]


RULES = {"gopher_quality": _quality(), "gopher_repetition": _repetition(), "c4": _c4(), "fineweb": _fineweb()}


@dataclass(frozen=True)
class Decision:
    """What becomes of a text: the reason for which it is dropped, or what is left of it."""

    reason: str | None
    text: str

    def agrees(self, other: Decision) -> bool:
        """Whether both drop it or both keep the same; an empty text is as good as dropped."""
        kept = self.text if self.reason is None else ""
        return kept == (other.text if other.reason is None else "")


class Ours:
    """A filter of llmkit, with the step before it in the case of c4."""

    def __init__(self, name: str, changed: Mapping[str, Any]) -> None:
        settings: dict[str, Any] = dict.fromkeys(CleaningConfig.model_fields) | {name: {}}
        if name == "c4":
            settings["c4_lines"] = {}
        for key, value in changed.items():
            part, _, field = key.partition(".")
            settings[part] = {**settings[part], field: value}
        config = CleaningConfig.model_validate(settings)
        self._steps = steps(config)
        (self._filter,) = filters(config)

    def decide(self, texts: Sequence[str]) -> list[Decision]:
        """The decisions of each text."""
        verdicts: list[Document | Dropped] = [Document("", text, "", "") for text in texts]
        for step in self._steps:
            verdicts = step.apply(verdicts)  # type: ignore[arg-type] - there is one step at most
        documents = [verdict if isinstance(verdict, Document) else Document("", "", "", "") for verdict in verdicts]
        measured = self._filter.measure(documents)
        judged = self._filter.judge({name: np.asarray(values) for name, values in measured.items()})
        dropped = [
            verdict if isinstance(verdict, Dropped) else one for verdict, one in zip(verdicts, judged, strict=True)
        ]
        return [
            Decision(None if found is None else found.reason, document.text)
            for found, document in zip(dropped, documents, strict=True)
        ]


def remember_words() -> None:
    """Have datatrove cut a text into words, and a line into sentences, once for all rules of a filter."""
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        module.split_into_words = lru_cache(maxsize=1)(module.split_into_words)
    c4_filters.split_into_sentences = lru_cache(maxsize=1 << 16)(c4_filters.split_into_sentences)


def theirs(peer: Any, text: str) -> Decision:
    """The decision of a filter of datatrove."""
    document = Theirs(text=text, id="")
    found = peer.filter(document)
    return Decision(None if found is True else found[1], document.text)


def variants(name: str) -> dict[str, tuple[Any, Ours]]:
    """A filter with its defaults, and with each of its rules alone, on both sides."""
    found = {"defaults": (PEERS[name](), Ours(name, {}))}
    for rule in RULES[name]:
        others = [other for other in RULES[name] if other is not rule and other.name not in rule.along]
        off = {key: value for other in others for key, value in other.theirs.items()}
        changed = {key: value for other in others for key, value in other.ours.items()}
        found[rule.name] = PEERS[name](**off), Ours(name, changed)
    return found


def compare(texts: Sequence[str]) -> int:
    """Print how many texts each variant of each filter drops, and the differences; how many of these there are."""
    different = 0
    rows: list[list[str]] = []
    for name in PEERS:
        both = variants(name)
        drops: dict[str, Counter[str]] = defaultdict(Counter)
        reasons: Counter[tuple[str | None, str | None]] = Counter()
        seconds = [0.0, 0.0]
        for begin in range(0, len(texts), GROUP):
            group = texts[begin : begin + GROUP]
            mine = {}
            for variant, (_, ours) in both.items():
                start = time.process_time()
                mine[variant] = ours.decide(group)
                seconds[0] += (time.process_time() - start) * (variant == "defaults")
            for index, text in enumerate(group):
                for variant, (peer, _) in both.items():
                    start = time.process_time()
                    found, own = theirs(peer, text), mine[variant][index]
                    seconds[1] += (time.process_time() - start) * (variant == "defaults")
                    drops[variant]["theirs"] += found.reason is not None
                    drops[variant]["both"] += found.reason is not None and own.reason is not None
                    if variant == "defaults":
                        reasons[own.reason, found.reason] += 1
                    if not own.agrees(found):
                        drops[variant]["different"] += 1
                        say(f"{name}, {variant}, document {begin + index}: ours {own.reason}, theirs {found.reason}")
                        say(f"    {text[:300]!r}")
        say(f"{name}: {seconds[0]:.2f} s of llmkit, {seconds[1]:.2f} s of datatrove with the defaults")
        for (own_reason, reason), count in sorted(reasons.items(), key=lambda item: -item[1]):
            say(f"    {count:6} {own_reason or 'kept':32} {reason or 'kept'}")
        rows += [
            [name, variant, *(str(counts[key]) for key in ("theirs", "both", "different"))]
            for variant, counts in drops.items()
        ]
        different += sum(counts["different"] for counts in drops.values())
    emit_table(["filter", "rules", "theirs", "both", "different"], rows)
    return different


def freeze(file: Path, count: int) -> None:
    """Write generated texts with the words that datatrove cuts them into, as a digest, and its decisions: of `count`
    texts those that come first for a reason, up to a few for each."""
    peers = {name: peer() for name, peer in PEERS.items()}
    lines = []
    taken: Counter[tuple[str, str | None]] = Counter()
    for text in generated_texts(count):
        found = {name: theirs(peer, text) for name, peer in peers.items()}
        reasons = [(name, decision.reason) for name, decision in found.items()]
        if all(taken[reason] >= MOST for reason in reasons):
            continue
        taken.update(reasons)
        words = split_into_words(text)
        row: dict[str, Any] = {"text": text, "words": len(words), "digest": digest("\n".join(words))}
        row |= dict(reasons)
        row["left"] = None if found["c4"].reason else digest(found["c4"].text)
        lines.append(json.dumps(row, ensure_ascii=False))
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    for (name, reason), number in sorted(taken.items(), key=str):
        say(f"{name:20} {reason or 'kept':32} {number:6}")


def digest(text: str) -> str:
    """Some hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    """Compare, or freeze."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--pages", type=Path, nargs="*", default=[Path("/usr/share/doc")])
    parser.add_argument("--texts", type=Path, nargs="*", default=[Path("/usr/share/doc")])
    parser.add_argument("--rows", nargs="*", default=[], metavar="FILE=COLUMN")
    parser.add_argument("--freeze", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="numpy")
    if options.freeze is not None:
        freeze(options.freeze, options.documents)
        return
    remember_words()
    texts = real_texts(options.pages, options.texts, options.rows, options.documents)
    say(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} MB; datatrove {version('datatrove')}")
    sys.exit(1 if compare(texts) else 0)


if __name__ == "__main__":
    main()
