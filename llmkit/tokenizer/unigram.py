"""Training of Unigram vocabularies (Kudo 2018) over bytes.

Texts are cut into pieces and written in GPT-2's alphabet of bytes as for byte-level BPE, and the pieces are counted;
`sentencepiece` learns which parts of them to keep, by expectation maximization with a pruning of those whose loss costs
least. It gives the same result every time, which the trainer of `tokenizers` does not: that one sums in the order of a
seeded hash table.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import pre_tokenizers

from llmkit.errors import MissingDependencyError

_THREADS = 4
"""Partial sums are by thread, so their number has a part in the last digits."""
_LONGEST_WORD = 1 << 14
"""Bytes of the longest piece of text that is learned from."""
_RARE = 1.0
"""How much less likely than the rarest token learned is a byte that the texts do not have, in natural logarithm."""


def learn_unigram(
    texts: Iterable[str], split: Any, vocab_size: int, specials: Sequence[str]
) -> list[tuple[str, float]]:
    """The vocabulary: special tokens, what was learned from the most to the least likely, and bytes that did not occur.

    Args:
        texts: to learn from.
        split: pre-tokenizer that cuts them into pieces which no token crosses.
        vocab_size: tokens wanted, at least those of `specials` and 256; a small text may give fewer.
        specials: special tokens.

    Returns:
        tokens with the logarithms of their probabilities.

    Raises:
        MissingDependencyError: `sentencepiece` is not installed.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = _count_words(texts, split)
    missing = sorted(set(alphabet) - set().union(*words))
    room = vocab_size - len(specials) - len(missing)
    learned = _learn(words, room, "".join(sorted(set(alphabet) - set(missing)))) if words else []
    least = min((score for _, score in learned), default=0.0)
    return [*((token, 0.0) for token in specials), *learned, *((byte, least - _RARE) for byte in missing)]


def _count_words(texts: Iterable[str], split: Any) -> dict[str, int]:
    """How often each piece of text occurs, as GPT-2 writes its bytes, in the order of frequency and alphabet."""
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(piece for piece, _ in split.pre_tokenize_str(text))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = {to_bytes.pre_tokenize_str(piece)[0][0]: count for piece, count in pieces.items() if piece}
    kept = ((word, count) for word, count in words.items() if len(word) <= _LONGEST_WORD)
    return dict(sorted(kept, key=lambda item: (-item[1], item[0])))


def _learn(words: dict[str, int], size: int, alphabet: str) -> list[tuple[str, float]]:
    try:
        import sentencepiece
    except ImportError:
        raise MissingDependencyError(
            "training a Unigram tokenizer needs the package sentencepiece.",
            hint="Install it: pip install 'llmkit[unigram]'.",
        ) from None
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
        model_writer=model,
        input_format="tsv",
        model_type="unigram",
        # One is the unknown token, which text of bytes does not need.
        vocab_size=max(size + 1, len(alphabet) + 1),
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=alphabet,
        # What a token may span is settled already.
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=_LONGEST_WORD + 32,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        num_threads=_THREADS,
        minloglevel=2,
    )
    learned = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(learned.id_to_piece(token), learned.get_score(token)) for token in range(1, learned.vocab_size())]
