"""Encoding in which text is only text: no string in it is ever read as a control token.

`tokenizers` finds special tokens by their text, so "<|endoftext|>" in a web page would become the token that ends
documents. Here the special tokens of a private copy of the tokenizer are renamed to strings that hold an unguessable
nonce. Ordinary text cannot contain them; the text of a chat template gets them put in where the template wrote them.
Which nonce was drawn has no influence on the ids.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend

from llmkit.errors import ArtifactError, DataError

_NEVER = r"(?!)"
_LONGEST = 1 << 22
"""Characters encoded at once: `tokenizers` needs some hundred bytes of memory for each."""
_REACH = 1 << 16
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")


class GuardedEncoder:
    """Encodes ordinary text, and rendered chats in which only the template can write control tokens.

    Args:
        definition: the parsed `tokenizer.json`.
        control: text and id of each special token.

    Raises:
        ArtifactError: a special token is at the same time an ordinary piece of text, so that they cannot be told apart.
    """

    def __init__(self, definition: Mapping[str, Any], control: Mapping[str, int]) -> None:
        self._control = dict(control)
        self._text_of = {index: text for text, index in control.items()}
        self.nonce = secrets.token_hex(16)
        self._longest_first = sorted(control, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, self._longest_first)) or _NEVER)
        """Matches the text of any control token."""
        self._marked = re.compile(f"{self.nonce}q([0-9]+);|({self.pattern.pattern})")
        renamed = _rename(definition, {text: self._private(text) for text in control})
        self._backend = _load(renamed)
        continuing = {**renamed, **{key: _without_prefix(renamed[key]) for key in ("normalizer", "pre_tokenizer")}}
        self._continuing = self._backend if continuing == renamed else _load(continuing)
        """For text in the middle of a line: nothing is put before it, as some tokenizers do at a start."""
        moved = [text for text, index in control.items() if self._backend.token_to_id(self._private(text)) != index]
        if moved:
            raise ArtifactError(f"the special token {moved[0]!r} is not where tokenizer.json says.")

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text.

        One of more than 4 Mi characters is encoded in pieces. They are cut before a space between two letters, where
        tokens end in any case, or, where the last 64 Ki characters of a piece have none, at its last character.
        """
        if len(text) <= _LONGEST:
            return _encode(self._backend, [text])[0]
        first, *others = _pieces(text)
        ids = _encode(self._backend, [first])[0]
        for piece in others:
            ids += _encode(self._continuing, [piece])[0]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several ordinary texts, in parallel."""
        if all(len(text) <= _LONGEST for text in texts):
            return _encode(self._backend, texts)
        return [self.encode(text) for text in texts]

    def quote(self, text: str) -> str:
        """Text in which control tokens' texts are replaced by marks, which `encode_rendered` turns into plain text."""
        return self.pattern.sub(lambda found: f"{self.nonce}q{self._control[found.group()]};", text)

    def unquote(self, text: str) -> str:
        """The inverse of `quote`."""
        return re.sub(f"{self.nonce}q([0-9]+);", lambda found: self._text_of[int(found.group(1))], text)

    def encode_rendered(self, text: str, cuts: Sequence[int]) -> list[list[int]]:
        """Ids of a text rendered from quoted messages, in pieces that no token crosses.

        Args:
            text: what a chat template made of quoted messages.
            cuts: positions, in rising order, at which the text is cut.

        Returns:
            ids of each of the `len(cuts) + 1` pieces.

        Raises:
            DataError: the template took a quoted text apart.
        """
        bounds = [0, *cuts, len(text)]
        return [self._encode_piece(text, start, end) for start, end in itertools.pairwise(bounds)]

    def _encode_piece(self, text: str, start: int, end: int) -> list[int]:
        if start == end:
            return []
        piece = self._marked.sub(self._resolve, text[start:end])
        if self.nonce in self._marked.sub("", text[start:end]).lower():
            raise DataError(
                "the chat template cuts or changes the messages in the middle of a special token's text.",
                hint="Remove the special tokens' texts from the messages, or mend the template.",
            )
        before = next((control for control in self._longest_first if text.endswith(control, 0, start)), None)
        if before is not None:
            return self._encode_after(before, piece)
        backend = self._continuing if start else self._backend
        return _encode(backend, [piece])[0]

    def _encode_after(self, control: str, piece: str) -> list[int]:
        """Ids of a piece that follows a control token, which may take the space after it or cause one."""
        return _encode(self._backend, [self._private(control) + piece])[0][1:]

    def _resolve(self, found: re.Match[str]) -> str:
        quoted, written = found.groups()
        return self._text_of[int(quoted)] if quoted else self._private(written)

    def _private(self, text: str) -> str:
        return f"{self.nonce}c{self._control[text]};"


def _encode(backend: Backend, texts: Sequence[str]) -> list[list[int]]:
    try:
        return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` panics where a pattern backtracks without end: no Exception
        raise DataError(f"the tokenizer cannot encode this text: {' '.join(str(error).split())[:200]}.") from None


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > _LONGEST:
        limit = begin + _LONGEST
        cuts = [found.start() for found in _BETWEEN_WORDS.finditer(text, limit - _REACH, limit)]
        end = cuts[-1] if cuts else limit
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _rename(definition: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    model = dict(definition["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): index for text, index in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    tokens = [
        {**token, "content": names.get(token["content"], token["content"])} for token in definition["added_tokens"]
    ]
    renamed = {**definition, "model": model, "added_tokens": tokens}
    return renamed | {"post_processor": None, "truncation": None, "padding": None}


def _without_prefix(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer without what puts a space or a space mark before the text."""
    if step is None or step["type"] == "Prepend":
        return None
    step = dict(step)
    for parts in ("normalizers", "pretokenizers"):
        if parts in step:
            step[parts] = [kept for kept in map(_without_prefix, step[parts]) if kept is not None]
    if step["type"] == "Metaspace":
        step["prepend_scheme"] = "never"
    if step["type"] == "ByteLevel":
        step["add_prefix_space"] = False
    return step


def _load(definition: Mapping[str, Any]) -> Backend:
    try:
        return Backend.from_str(json.dumps(definition, ensure_ascii=False))
    except Exception as error:  # `tokenizers` raises nothing more precise
        raise ArtifactError(
            f"the tokenizer's special tokens cannot be told from ordinary text: {error}.",
            hint="Choose special tokens that are no ordinary words, such as <|name|>.",
        ) from None
