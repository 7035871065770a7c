"""Settings as a data card shows them: without what belongs to one machine or to one person.

Folders are left out of local paths, so that a corpus made from the same files elsewhere has the same card, and so are
names and passwords in URLs, how a crawler's owner is reached, and the seed that would let others try out what was
replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit, urlunsplit

from llmkit.config.base import Config, Input, differs
from llmkit.data.config import DataConfig
from llmkit.data.personal.config import PersonalDataConfig
from llmkit.data.sources.config import WebSource

FOLDER = "<folder>"
"""In place of the name of a local folder."""
_PRIVATE: Mapping[type[Config], frozenset[str]] = {
    WebSource: frozenset({"contact", "cache"}),
    PersonalDataConfig: frozenset({"seed"}),
}
_LOCAL = ("file", "local")
_PATTERN = "*?["


def portable_settings(config: DataConfig, *, defaults: bool) -> dict[str, Any]:
    """The settings of a stage that its result depends on, as plain values.

    Args:
        config: the settings.
        defaults: whether to give those that are left at their defaults too.
    """
    found = {name: value for name, value in _plain(config, defaults).items() if name not in config.without_effect}
    for needed in config.inputs():
        _rename(found, needed.key.split("."), portable_input(needed))
    return found


def _rename(settings: Any, keys: Sequence[str], value: str) -> None:
    """Set what stands under keys one below the other, if it is there: it is not where it is left at its default."""
    key = int(keys[0]) if isinstance(settings, list) else keys[0]
    if isinstance(settings, Mapping) and key not in settings:
        return
    if len(keys) == 1:
        settings[key] = value
    else:
        _rename(settings[key], keys[1:], value)


def _plain(value: Any, defaults: bool) -> Any:
    """Settings as mappings and lists; a `kind`, which says which settings these are, is always among them."""
    if isinstance(value, Config):
        private = next((names for kind, names in _PRIVATE.items() if isinstance(value, kind)), frozenset[str]())
        return {
            name: _plain(getattr(value, name), defaults)
            for name, field in type(value).model_fields.items()
            if name not in private and (defaults or differs(value, name) or _is_kind(field.annotation))
        }
    if isinstance(value, Mapping):
        return {key: _plain(inner, defaults) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, defaults) for inner in value]
    return value


def _is_kind(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def portable_input(needed: Input) -> str:
    """What a setting that names an input is called elsewhere too.

    A file or pattern of files is named without its folder, and a folder not at all; other artifacts are named by their
    stage.
    """
    value = needed.value
    if needed.kinds != ("file",) and "://" not in value:
        return value if value.startswith("hf:") else PurePosixPath(value).name
    return "::".join(map(_place, value.split("::")))


def _place(value: str) -> str:
    """One of the places that an fsspec URL names."""
    parts = urlsplit(value)
    if "://" in value and parts.scheme not in _LOCAL:
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    names = [name for name in value.split("/") if name]
    pattern = next((index for index, name in enumerate(names) if any(sign in name for sign in _PATTERN)), None)
    if pattern is not None:
        return "/".join(names[pattern:])
    return names[-1] if names and PurePosixPath(names[-1]).suffix else FOLDER
