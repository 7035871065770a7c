"""Texts of the special tokens that trained tokenizers have; they take the first ids, in this order."""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
"""Ends, and so separates, documents."""
BPE_PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
BPE_TOKENS = (END_OF_TEXT, BPE_PAD, TURN_START, TURN_END)

START, BPE_END, BPE_MASK = "<s>", "</s>", "<mask>"
MASKED_BPE_TOKENS = (START, "<pad>", BPE_END, BPE_MASK)
"""Of byte-level tokenizers for masked models, as RoBERTa has them."""

PAD = "[PAD]"
UNKNOWN = "[UNK]"
CLS = "[CLS]"
SEP = "[SEP]"
MASK = "[MASK]"
WORDPIECE_TOKENS = (PAD, UNKNOWN, CLS, SEP, MASK)
