"""Kinds of personal data that are found by someone else's function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import entry_points

from llmkit.data.personal.base import Draw, Found
from llmkit.data.personal.config import OtherKind
from llmkit.errors import ConfigError, DataError

GROUP = "llmkit.personal_data"
Find = Callable[[str], Iterable[tuple[int, int]]]


class Plugin:
    """A detector around a function from a text to pairs of begin and end.

    Args:
        config: the kind, and where its function is.

    Raises:
        ConfigError: there is no such function.
    """

    hint = None

    def __init__(self, config: OtherKind) -> None:
        self.kind = config.kind
        self._find = _function(config)

    def find(self, text: str) -> Iterator[Found]:
        """What the function finds.

        Raises:
            DataError: it gives something else than pairs of characters inside of the text.
        """
        for pair in self._find(text):
            begin, end = pair
            if not 0 <= begin < end <= len(text):
                raise DataError(
                    f"the function for `{self.kind}` found ({begin}, {end}) in a text of {len(text):,} characters.",
                    where="personal_data.others",
                    hint="It must give pairs of begin and end with 0 <= begin < end <= len(text).",
                )
            yield Found(begin, end, text[begin:end])

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """The same form with other letters and digits; the function may find it again."""
        return draw.like(text)


def _function(config: OtherKind) -> Find:
    if config.find is None:
        found = list(entry_points(group=GROUP, name=config.kind))
        if not found:
            raise ConfigError(
                f"no installed package has an entry point `{config.kind}` in the group `{GROUP}`.",
                where="personal_data.others",
                hint="Install the package, or name a function by `find: module:function`.",
            )
        function: Find = found[0].load()
        return function
    module, _, name = config.find.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"`{config.find}` cannot be imported: {error}.",
            where="personal_data.others",
            hint="Write `module:function`, of a module that Python finds (an installed package, or PYTHONPATH).",
        ) from None
    return function
