"""The tokenizer of a model: text to ids and back, special tokens, conversations with their loss masks.

On disk it is a Hugging Face tokenizer: `tokenizer.json` and `tokenizer_config.json`, the chat template in the latter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from llmkit.errors import ArtifactError, DataError, LLMKitError
from llmkit.store.files import sha256_json, write_json_atomic, write_text_atomic
from llmkit.tokenizer.chat import ROLES, ChatTemplate, Message
from llmkit.tokenizer.definition import check_definition, check_settings, read_object, read_text
from llmkit.tokenizer.guarded import GuardedEncoder
from llmkit.tokenizer.pieces import byte_length
from llmkit.tokenizer.words import begins_word

DEFINITION = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
_PROBES = ("", "Hello, world 12\n", "\u00e9\u4e2d\U0001f600\t  \x01")
_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
ROLE_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Rendered(NamedTuple):
    """A conversation as token ids, and for each id 1 where the assistant says it, otherwise 0."""

    ids: list[int]
    mask: list[int]


class Tokenizer:
    """Text to ids and back.

    Text is data: `encode` and the contents of messages never give a special token's id, whatever they contain, but for
    the unknown token's where the vocabulary lacks a word. Special tokens come from ids that the caller adds, and from
    the chat template.

    Args:
        backend: the tokenizer of the `tokenizers` library.
        settings: contents of `tokenizer_config.json`, with the chat template as text.

    Raises:
        ArtifactError: special tokens that cannot be told from ordinary text.
        ConfigError: the chat template is no valid jinja2.
    """

    def __init__(self, backend: Backend, settings: Mapping[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        _add_missing_special_tokens(backend, settings)
        self._backend = backend
        self._settings = dict(settings)
        definition = json.loads(backend.to_str())
        self._control = {token["content"]: token["id"] for token in definition["added_tokens"] if token["special"]}
        self._guard = GuardedEncoder(definition, self._control)
        self.algorithm: str = definition["model"]["type"].lower()
        """Name of the model of `tokenizers`: "bpe", "wordpiece", "unigram" or "wordlevel"."""
        self._byte_level = '"ByteLevel"' in json.dumps(definition["decoder"])
        self.special_ids = frozenset(self._control.values())
        """Ids of all special tokens."""
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        """Rows that an embedding needs: the largest id and one more."""
        self.bos_id = self._role("bos_token")
        self.eos_id = self._role("eos_token")
        self.unk_id = self._role("unk_token")
        self.sep_id = self._role("sep_token")
        self.pad_id = self._role("pad_token")
        self.cls_id = self._role("cls_token")
        self.mask_id = self._role("mask_token")
        self.chat_template: str | None = self._settings.get("chat_template")
        """The chat template's text."""
        variables = {key: _token_text(self._settings[key]) for key in ROLE_KEYS if self._settings.get(key)}
        source = self.chat_template
        self._chat = None if source is None else ChatTemplate(source, variables, self._guard.nonce)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Open a Hugging Face tokenizer directory.

        Raises:
            ArtifactError: `tokenizer.json` is missing or cannot be read.
        """
        file = directory / DEFINITION
        if not file.is_file():
            raise ArtifactError(
                "there is no tokenizer.json here.",
                where=str(directory),
                hint="Other tokenizer files become one by AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            )
        check_definition(read_object(file), str(file))
        settings = _read_settings(directory)
        check_settings(settings, ROLE_KEYS, str(directory / SETTINGS))
        try:
            tokenizer = cls(Backend.from_file(str(file)), settings)
            for text in _PROBES:  # what is wrong with a tokenizer may show only in use
                tokenizer.decode(tokenizer.encode(text))
                tokenizer.encode_single(text, 8)
        except DataError as error:
            raise ArtifactError(f"the tokenizer cannot be read: {error.message}", where=str(file)) from None
        except (LLMKitError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # `tokenizers` raises nothing more precise, and where it panics no Exception
            raise ArtifactError(f"the tokenizer cannot be read: {error}.", where=str(file)) from None
        return tokenizer

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`; equal tokenizers give equal bytes."""
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(directory / DEFINITION, self._backend.to_str(pretty=True))
        write_json_atomic(directory / SETTINGS, self._settings)

    def with_chat_template(self, template: str) -> Tokenizer:
        """The same tokenizer with another chat template.

        Raises:
            ConfigError: the chat template is no valid jinja2.
        """
        return Tokenizer(self._backend, {**self._settings, "chat_template": template})

    def with_tokens(self, texts: Sequence[str]) -> Tokenizer:
        """The same tokenizer with these special tokens besides; those that it has not get the next ids, in order."""
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
        return Tokenizer(backend, self._settings)

    def missing_tokens(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that are no special tokens of this tokenizer."""
        return [text for text in dict.fromkeys(texts) if text not in self._control]

    @property
    def start_id(self) -> int | None:
        """The token that stands before a text: its beginning, or where there is none the end of the one before."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @cached_property
    def digest(self) -> str:
        """Sha256 of all that decides ids, roles and rendering."""
        return sha256_json([self._backend.to_str(), self._settings])

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens; the texts of special tokens in it are encoded as ordinary text."""
        return self._guard.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        return self._guard.encode_batch(texts)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no valid UTF-8 become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def encode_single(self, text: str, max_length: int, *, end: bool = True) -> list[int]:
        """Ids of a text to classify: between [CLS] and [SEP], or followed by the end-of-text token.

        What the tokenizer's own post-processing puts around a text (such as a beginning-of-text token) is kept; the
        text is cut at its end so that at most `max_length` ids result. Without `end`, the end-of-text token follows
        only where the post-processing puts it there.
        """
        before, after = self._frame(end)
        room = max(max_length - len(before) - len(after), 0)
        return [*before, *self.encode(text)[:room], *after][:max_length]

    def encode_windows(self, text: str, max_length: int) -> list[list[int]]:
        """`encode_single` of a text in as many pieces as it takes, so that nothing of it is cut off."""
        before, after = self._frame(end=True)
        room = max(max_length - len(before) - len(after), 1)
        ids = self.encode(text)
        pieces = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
        return [[*before, *piece, *after][:max_length] for piece in pieces]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """A conversation as text, for people to read; use `render_conversation` for ids.

        Raises:
            DataError: there is no chat template, or it refuses the messages.
        """
        return self._require_chat().render(_checked(messages), add_generation_prompt)

    def render_conversation(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
        """A conversation as ids, and a mask that is 1 exactly on what the assistant says and its end-of-turn token.

        The text is cut where the assistant begins and ends to speak, so the ids up to there are those of the prompt
        that generation starts from, whatever the assistant says next. Control tokens come from the template alone.

        Raises:
            DataError: there is no chat template, it refuses the messages, or the mask is in doubt.
        """
        chat = self._require_chat()
        quoted = [{"role": m["role"], "content": self._guard.quote(m["content"])} for m in _checked(messages)]
        text, spans = chat.render_spans(quoted, add_generation_prompt, self._guard.pattern)
        cuts = [position for span in spans for position in span]
        ids: list[int] = []
        mask: list[int] = []
        for index, piece in enumerate(self._guard.encode_rendered(text, cuts)):
            ids += piece
            mask += [index % 2] * len(piece)
        return Rendered(ids, mask)

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The token with which the assistant ends a turn; None without a chat template."""
        if self._chat is None:
            return None
        try:
            ids, mask = self.render_conversation(_PROBE)
        except DataError:
            return self.eos_id
        said = ids[mask.index(1) :] if 1 in mask else []
        return next((token for token in said if token in self.special_ids), self.eos_id)

    def token_bytes(self, token: int) -> int | None:
        """Length in bytes of the text that a token stands for; None where that is not defined.

        Defined for the ordinary tokens of byte-level and byte-fallback BPE and of unigram models: WordPiece drops
        spaces.
        """
        text = self._backend.id_to_token(token)
        if text is None or token in self.special_ids:
            return None
        return byte_length(text, self.algorithm, self._byte_level)

    def word_starts(self) -> list[bool]:
        """For each id whether it begins a word (`begins_word`); special tokens do, each by itself.

        Raises:
            DataError: the tokens do not show where words begin.
        """
        pieces = [self._backend.id_to_token(token) or "" for token in range(self.vocab_size)]
        found = begins_word(pieces, self.algorithm)
        if found is None:
            raise DataError("the tokens of this tokenizer do not show where words begin.")
        return [start or token in self.special_ids for token, start in enumerate(found)]

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The parsed `tokenizer.json`."""
        parsed: dict[str, Any] = json.loads(self._backend.to_str())
        return parsed

    @cached_property
    def frame_ids(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer's own post-processing puts before and after a text that stands alone."""
        probe = self._backend.encode("a", add_special_tokens=True)
        inside = [index for index, special in enumerate(probe.special_tokens_mask) if not special]
        if not inside:  # a vocabulary without the letter
            return [], []
        return probe.ids[: inside[0]], probe.ids[inside[-1] + 1 :]

    def _frame(self, end: bool) -> tuple[list[int], list[int]]:
        """`frame_ids`, with the end-of-text token behind where they put nothing there."""
        before, after = self.frame_ids
        return before, [self.eos_id] if not after and end and self.eos_id is not None else after

    def _role(self, key: str) -> int | None:
        value = self._settings.get(key)
        if not value:
            return None
        index: int | None = self._backend.token_to_id(_token_text(value))
        return index

    def _require_chat(self) -> ChatTemplate:
        if self._chat is None:
            raise DataError(
                "the tokenizer has no chat template.",
                hint="Set `chat_template` in the tokenizer stage, or use a tokenizer that has one.",
            )
        return self._chat


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    for index, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise DataError(f"message {index} has the role {message.get('role')!r}; roles are {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str):
            raise DataError(f"message {index} has no text as its `content`.")
    return messages


def _token_text(value: Any) -> str:
    """Text of a special token as the settings write it: plain, or an object with `content`."""
    return str(value["content"] if isinstance(value, dict) else value)


def _read_settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS_MAP, SETTINGS):
        file = directory / name
        if file.is_file():
            read = read_object(file)
            settings |= {key: value for key, value in read.items() if name == SETTINGS or key in ROLE_KEYS}
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, dict)}
        settings["chat_template"] = named.get("default")
    if (directory / TEMPLATE).is_file():
        settings["chat_template"] = read_text(directory / TEMPLATE)
    return settings


def _add_missing_special_tokens(backend: Backend, settings: Mapping[str, Any]) -> None:
    """Make every token that the settings give a role a special token, as transformers does."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    wanted = [_token_text(settings[key]) for key in ROLE_KEYS if settings.get(key)]
    for text in dict.fromkeys(wanted):
        if text not in special:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
