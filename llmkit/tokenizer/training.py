"""Training of tokenizers: byte-level BPE, byte-level Unigram and WordPiece.

What is learnt depends on the texts and settings alone: not on batches, threads, or the hash seeds of a process.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from llmkit.tokenizer.special import (
    BPE_END,
    BPE_MASK,
    BPE_PAD,
    BPE_TOKENS,
    CLS,
    END_OF_TEXT,
    MASK,
    MASKED_BPE_TOKENS,
    PAD,
    SEP,
    START,
    UNKNOWN,
    WORDPIECE_TOKENS,
)
from llmkit.tokenizer.unigram import learn_unigram

BATCH = 256
"""Texts handed to `tokenizers` at a time; without influence on the result."""
MAX_ALPHABET = 1000
"""Most characters that a WordPiece vocabulary starts from; rarer ones become unknown."""

Whitespace = Literal["runs", "single"]
"""Whether a token may hold several blanks."""
Texts = Callable[[], Iterable[str]]
"""The training texts, from their start at each call."""


def split_pattern(digits: int, whitespace: Whitespace = "runs") -> str:
    """Regular expression of the pieces of text that no byte-level token crosses.

    In the manner of GPT-4's: English contractions; a word with at most one other character (a space, mostly) before
    it; at most `digits` digits; punctuation with a space before and line ends after it; line ends with the blanks
    before them; blanks but for the last, which belongs to the next word. Where white space is `single`, every blank and
    every line end is a piece by itself, but for a space that belongs to the next word.
    """
    runs = whitespace == "runs"
    return "|".join(
        (
            r"(?i:'(?:[dmst]|ll|re|ve))",
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            rf"\p{{N}}{{1,{digits}}}",
            r" ?[^\s\p{L}\p{N}]+" + (r"[\r\n]*" if runs else ""),
            *((r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+") if runs else (r"\s",)),
        )
    )


def train_bpe(
    texts: Texts,
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (),
    min_frequency: int = 2,
    digits: int = 3,
    whitespace: Whitespace = "runs",
    masked: bool = False,
    batch: int = BATCH,
) -> Backend:
    """Byte-level BPE (Radford et al. 2019, section 2.2) with the special tokens at the first ids.

    The vocabulary is smaller than `vocab_size` where no pair of tokens is left that occurs `min_frequency` times. One
    for masked models puts texts between <s> and </s>, and pairs as RoBERTa does (Liu et al. 2019).
    """
    backend = blank_bpe(special_tokens, digits, whitespace, masked=masked)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*(MASKED_BPE_TOKENS if masked else BPE_TOKENS), *special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_batches(texts(), batch), trainer)
    return backend


def blank_bpe(
    special_tokens: Iterable[str] = (), digits: int = 3, whitespace: Whitespace = "runs", *, masked: bool = False
) -> Backend:
    """A byte-level tokenizer that has learnt no merges: special tokens and the 256 bytes."""
    specials = [*(MASKED_BPE_TOKENS if masked else BPE_TOKENS), *special_tokens]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    return _byte_level(model, specials, digits, whitespace, masked)


def train_unigram(
    texts: Texts,
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (),
    digits: int = 3,
    whitespace: Whitespace = "runs",
    masked: bool = False,
) -> Backend:
    """Byte-level Unigram (Kudo 2018) with the special tokens at the first ids; texts are cut as for BPE.

    Raises:
        MissingDependencyError: `sentencepiece` is not installed.
    """
    specials = [*(MASKED_BPE_TOKENS if masked else BPE_TOKENS), *special_tokens]
    vocabulary = learn_unigram(texts(), _splitter(digits, whitespace), vocab_size, specials)
    return _byte_level(models.Unigram(vocabulary), specials, digits, whitespace, masked)


def _splitter(digits: int, whitespace: Whitespace) -> Any:
    return pre_tokenizers.Split(Regex(split_pattern(digits, whitespace)), behavior="isolated")


def _byte_level(model: Any, specials: list[str], digits: int, whitespace: Whitespace, masked: bool) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [_splitter(digits, whitespace), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    if masked:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {BPE_END}",
            pair=f"{START} $A {BPE_END} {BPE_END} $B {BPE_END}",
            special_tokens=[(token, specials.index(token)) for token in (START, BPE_END)],
        )
    return backend


def train_wordpiece(
    texts: Texts,
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (),
    min_frequency: int = 2,
    lowercase: bool = True,
    batch: int = BATCH,
) -> Backend:
    """WordPiece in the form of BERT (Devlin et al. 2019), with the special tokens at the first ids.

    `tokenizers` numbers the pieces that continue a word in the order in which its hash table gives them, which differs
    from run to run, and equal counts are decided by these numbers. So they are numbered beforehand here, as if they
    were special tokens, and characters outside the alphabet are taken out of the texts.
    """
    specials = [*WORDPIECE_TOKENS, *special_tokens]
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(texts(), normalizer, min(MAX_ALPHABET, max((vocab_size - len(specials)) // 4, 1)))
    first = [*alphabet, *(f"##{character}" for character in alphabet if not _stands_alone(character))]
    learner = Backend(models.WordPiece(unk_token=UNKNOWN))
    others = "".join(f"\\x{{{ord(character):x}}}" for character in alphabet)
    learner.normalizer = normalizers.Sequence([normalizer, normalizers.Replace(Regex(rf"[^\s{others}]"), " ")])
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=[*specials, *first], show_progress=False
    )
    learner.train_from_iterator(_batches(texts(), batch), trainer)
    vocabulary: dict[str, int] = learner.get_vocab(with_added_tokens=False)
    return _wordpiece(vocabulary, specials, normalizer)


def _wordpiece(vocabulary: dict[str, int], specials: list[str], normalizer: Any) -> Backend:
    backend = Backend(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(specials)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])],
    )
    return backend


def bpe_settings(chat_template: str | None) -> dict[str, Any]:
    """`tokenizer_config.json` of a byte-level BPE tokenizer."""
    return _settings(
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=BPE_PAD,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=chat_template,
    )


def masked_bpe_settings() -> dict[str, Any]:
    """`tokenizer_config.json` of a byte-level BPE tokenizer for masked models."""
    return _settings(
        bos_token=START,
        eos_token=BPE_END,
        sep_token=BPE_END,
        cls_token=START,
        pad_token=MASKED_BPE_TOKENS[1],
        mask_token=BPE_MASK,
        model_input_names=["input_ids", "attention_mask"],
    )


def wordpiece_settings() -> dict[str, Any]:
    """`tokenizer_config.json` of a WordPiece tokenizer."""
    return _settings(
        unk_token=UNKNOWN,
        sep_token=SEP,
        pad_token=PAD,
        cls_token=CLS,
        mask_token=MASK,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _settings(**values: Any) -> dict[str, Any]:
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return common | {key: value for key, value in values.items() if value is not None}


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _alphabet(texts: Iterable[str], normalizer: Any, limit: int) -> list[str]:
    """The `limit` most frequent characters after normalization, in the order of their code points."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    by_frequency = sorted((c for c in counts if not c.isspace()), key=lambda character: (-counts[character], character))
    return sorted(by_frequency[:limit])


def _stands_alone(character: str) -> bool:
    """Whether BERT makes a word of its own of a character: punctuation, ASCII symbols included."""
    ascii_symbol = character.isascii() and not character.isalnum()
    return ascii_symbol or unicodedata.category(character).startswith("P")
