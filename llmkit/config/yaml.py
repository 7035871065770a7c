"""YAML files with the position of every value, and dotted overrides.

Scalars follow YAML 1.2's core schema where 1.1 surprises people: `3e-4` is a number and `no` is a word. Duplicate keys
are refused, since one of the two values would be lost silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmkit.errors import ConfigError

MAX_NODES = 100_000
KeyPath = tuple[str | int, ...]

# The C scanner reports positions that the tests rely on and is several times faster; PyYAML may be built without it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """A safe loader with YAML 1.2's booleans and numbers."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _construct_int(loader: Any, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


def _construct_float(loader: Any, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


@dataclass
class Source:
    """A configuration as read: its values and where each of them stands.

    Args:
        name: the file's name as the person wrote it.
        data: the values.
        lines: line number (from 1) by key path.
        overrides: text of the override by key path, for values that come from the command line.
    """

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line: dotted.key` of the value at `path`, or of its nearest parent that is in the file."""
        dotted = ".".join(str(part) for part in path)
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"--set {self.overrides[path[:length]]}: {dotted}"
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                place = f"{self.name}:{self.lines[path[:length]]}"
                return f"{place}: {dotted}" if dotted else place
        return f"{self.name}: {dotted}"


def read_yaml(path: str | Path) -> Source:
    """Read a YAML mapping with positions.

    Raises:
        ConfigError: the file cannot be read, is not YAML, repeats a key, or is not a mapping.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "there is no such file.", where=str(path), hint="`llmkit init` writes an example config."
        ) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, not a YAML file.", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the file is not UTF-8 text ({error.reason} at byte {error.start}).", where=str(path)
        ) from None
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}.", where=str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Source:
    """The same from a string; `name` stands for the file in messages."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[KeyPath, int] = {}
            if node is not None:
                _index(node, (), lines, name, set())
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"this is not valid YAML: {error.problem or error}.", where=where) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"this is not valid YAML: {' '.join(str(error).split())}.", where=name) from None
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"a config is a mapping of keys to values; this file is {found}.", where=name)
    return Source(name, data, lines)


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str, parents: set[int]) -> None:
    """Record the line of every value below `node`; refuse repeated keys, keys that are no words, endless aliases."""
    where = f"{name}:{node.start_mark.line + 1}"
    if id(node) in parents:
        raise ConfigError("an alias refers to a value that contains it.", where=where)
    if len(lines) > MAX_NODES:
        raise ConfigError(f"the file has more than {MAX_NODES:,} values; are its aliases nested?", where=where)
    lines.setdefault(path, node.start_mark.line + 1)
    inside = parents | {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be a word.", where=f"{name}:{line}")
            if key_node.tag.endswith(":merge"):
                _index(value_node, path, lines, name, inside)
                continue
            if not key_node.tag.endswith(":str"):
                raise ConfigError(
                    f"the key `{key_node.value}` is read as {key_node.tag.rsplit(':', 1)[-1]}, not as a word.",
                    where=f"{name}:{line}",
                    hint="Put it in quotes.",
                )
            if key_node.value in seen:
                raise ConfigError(f"the key `{key_node.value}` stands twice.", where=f"{name}:{line}")
            seen.add(key_node.value)
            lines[(*path, key_node.value)] = line
            _index(value_node, (*path, key_node.value), lines, name, inside)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _index(item, (*path, index), lines, name, inside)


def apply_override(source: Source, override: str) -> None:
    """Apply `dotted.key=value` to `source`, the value being YAML; missing mappings on the way are made.

    Raises:
        ConfigError: there is no `=`, the value is not YAML, or a part of the way is no mapping or list.
    """
    where = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError("an override is written dotted.key=value.", where=where)
    value = parse_yaml(f"value: {text}" if text.strip() else "value: null", where).data["value"]
    parts = key.strip().split(".")
    target: Any = source.data
    path: KeyPath = ()
    for position, part in enumerate(parts):
        step: str | int = part
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise ConfigError(
                    f"`{'.'.join(parts[:position])}` is a list of {len(target)}; `{part}` is no place in it.",
                    where=where,
                )
            step = int(part)
        elif not isinstance(target, dict):
            raise ConfigError(f"`{'.'.join(parts[:position])}` is neither a mapping nor a list.", where=where)
        path = (*path, step)
        if position == len(parts) - 1:
            target[step] = value
        elif isinstance(target, list):
            target = target[int(step)]
        else:
            if target.get(step) is None:
                target[step] = {}
            target = target[step]
    source.overrides[path] = override
