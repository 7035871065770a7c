"""Chat templates: jinja2 text that turns messages into one string, and where in it the assistant speaks.

Templates are those of Hugging Face: the same variables, block trimming, `raise_exception`, `tojson`, loop controls and
`{% generation %}` blocks. They come with models from anywhere, so they run in a sandbox. The day that `strftime_now`
tells is always the same: what a template gives depends on the messages alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro

from llmkit.errors import ConfigError, DataError
from llmkit.tokenizer.sandbox import BoundedEnvironment

ROLES = ("system", "user", "assistant")
_LONGEST_SOURCE = 1_000_000
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


_DEPENDS = "what it writes before a turn depends on what comes after it"

Message = Mapping[str, str]
"""One turn of a conversation: `role`, one of `ROLES`, and `content`."""

Span = tuple[int, int]
"""Start and end, in characters of the rendered text."""


class _GenerationBlocks(Extension):
    """`{% generation %} ... {% endgeneration %}`: what is inside is put between the environment's two marks."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        begin, end = cast(tuple[str, str], self.environment.globals["generation_marks"])
        return f"{begin}{caller()}{end}"


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja2's own, which writes signs of HTML as escapes.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The day that Llama 3's templates take where they are not told one."""


def _format_date(form: str) -> str:
    return _TODAY.strftime(form)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template's text.
        variables: names of special tokens and their text (`eos_token`), which the template can use.
        nonce: text that cannot occur in messages; it marks generation blocks while rendering.

    Raises:
        ConfigError: the text is no valid template.
    """

    def __init__(self, source: str, variables: Mapping[str, str], nonce: str) -> None:
        self._variables = dict(variables)
        self._marks = (f"{nonce}(", f"{nonce})")
        self.has_generation_blocks = _GENERATION.search(source) is not None
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
        )
        environment.add_filter("tojson", _to_json)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _format_date
        environment.globals["generation_marks"] = self._marks
        self._environment = environment
        if len(source) > _LONGEST_SOURCE:
            raise ConfigError(f"the chat template is longer than {_LONGEST_SOURCE:,} characters.")
        try:
            with environment.bounded():
                self._template = environment.from_string(source)
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError, SecurityError):
            raise ConfigError("the chat template is no valid jinja2: it is nested too deeply, or too large.") from None
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is no valid jinja2: {error.message}, in its line {error.lineno}."
            ) from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The messages as one string.

        Raises:
            DataError: the template refuses the messages or fails on them.
        """
        return self._without_marks(self._render(messages, add_generation_prompt))[0]

    def render_spans(
        self, messages: Sequence[Message], add_generation_prompt: bool, control: re.Pattern[str]
    ) -> tuple[str, list[Span]]:
        """The messages as one string, and the spans of what the assistant says, end-of-turn tokens included.

        The spans are the template's generation blocks where it has them. Otherwise they are found by rendering each
        assistant turn without and with what the assistant says; what the second adds to the first is said by the
        assistant, up to and including the last control token in it.

        Args:
            messages: the conversation; no content contains a control token's text.
            add_generation_prompt: end with the opening of an assistant turn.
            control: pattern of the control tokens' texts.

        Raises:
            DataError: the template fails, or the spans cannot be established beyond doubt.
        """
        if not self.has_generation_blocks:
            return self._derived_spans(messages, add_generation_prompt, control)
        text, spans = self._without_marks(self._render(messages, add_generation_prompt))
        turns = sum(message["role"] == "assistant" for message in messages)
        if len(spans) < turns:
            raise _no_mask(f"its generation blocks mark {len(spans)} of the {turns} assistant turns")
        return text, spans

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            with self._environment.bounded():
                return self._template.render(
                    **self._variables,
                    messages=plain,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                )
        except (RecursionError, MemoryError):
            raise DataError("the chat template does not come to an end on these messages.") from None
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise DataError(f"the chat template does not take these messages: {error}.") from None

    def _without_marks(self, marked: str) -> tuple[str, list[Span]]:
        begin, end = self._marks
        spans: list[Span] = []
        text, *blocks = marked.split(begin)
        for block in blocks:
            if block.count(end) != 1:
                raise _no_mask("its generation blocks are nested or cut")
            said, _, rest = block.partition(end)
            spans.append((len(text), len(text) + len(said)))
            text += said + rest
        return text, spans

    def _derived_spans(
        self, messages: Sequence[Message], add_generation_prompt: bool, control: re.Pattern[str]
    ) -> tuple[str, list[Span]]:
        text = self._render(messages, add_generation_prompt)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = messages[:index]
            prompt = self._render(before, True)
            turn = self._render(messages[: index + 1], False)
            if not text.startswith(prompt):
                raise _no_mask(_DEPENDS)
            if turn.startswith(prompt) and text.startswith(turn):
                end = len(prompt) + _end_of_turn(turn[len(prompt) :], control)
            else:
                turn = text[: self._end_by_mark(messages, add_generation_prompt, index, text, control)]
                end = len(turn)
            opened = prompt != self._render(before, False)
            self._check_said(turn[len(prompt) :], message["content"].strip(), opened)
            spans.append((len(prompt), end))
        return text, spans

    def _end_by_mark(
        self, messages: Sequence[Message], add_generation_prompt: bool, index: int, text: str, control: re.Pattern[str]
    ) -> int:
        """Where a turn ends that is written otherwise where it is the last: found by a mark put after its words."""
        mark, content = self._marks[0], messages[index]["content"]
        words = content.rstrip()
        marked = {**messages[index], "content": words + mark + content[len(words) :]}
        probe = self._render([*messages[:index], marked, *messages[index + 1 :]], add_generation_prompt)
        before, *after = probe.split(mark)
        if len(after) != 1 or before + after[0] != text:
            raise _no_mask(_DEPENDS)
        end = control.search(text, len(before))
        if end is None or text[len(before) : end.start()].strip():
            raise _no_mask("it writes no end-of-turn token after what the assistant says")
        return end.end()

    def _check_said(self, said: str, content: str, opened: bool) -> None:
        """Refuse a turn whose start is not known: one must see that the template opened it, or that it opens itself."""
        if opened and content not in said:
            raise _no_mask("it does not give the assistant's words as they are")
        if not opened and not (content and said.lstrip().startswith(content)):
            raise _no_mask("it does not open the assistant's turn when asked to (`add_generation_prompt`)")


def _end_of_turn(said: str, control: re.Pattern[str]) -> int:
    """Length of `said` up to its last control token; all of it where there is none."""
    tokens = list(control.finditer(said))
    if not tokens:
        return len(said)
    end = tokens[-1].end()
    if said[end:].strip():
        raise _no_mask("it writes text after the assistant's end-of-turn token")
    return end


def _no_mask(reason: str) -> DataError:
    return DataError(
        f"the chat template does not show which part of the text the assistant says: {reason}.",
        hint="Enclose what the assistant says in {% generation %} and {% endgeneration %} in the template.",
    )
