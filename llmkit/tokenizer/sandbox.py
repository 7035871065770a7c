"""The environment in which chat templates run: no way to Python's objects, and bounds on work and memory.

jinja2's sandbox keeps a template from reaching what it should not. It does not keep it from nested loops over a hundred
thousand numbers each, or from `"x" * 10**10`. Here every turn of a loop, macro, filter, call and operator draws on a
budget, in proportion to what it works on, and nothing can be made that is longer than a limit.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LONGEST_TEXT = 50_000_000
"""Characters that a template may write, or hold in one string."""

_LONGEST_LIST = 1_000_000
_MOST_BITS = 4096
_STEPS = 500_000
_SECONDS = 30.0

# Filters that grow with a number they are given, or give something else each time.
_WITHOUT_FILTERS = ("batch", "center", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr")
_WITHOUT_GLOBALS = ("lipsum",)
_WITHOUT_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs", "format_map", "translate", "encode"})
_WIDE = re.compile(r"[0-9*]{5,}|\*|:[^{}]*\{")
_STEP, _JOIN = "one more step", "joined to text"


class _Instrumented(NodeTransformer):
    """Puts a step at the start of whatever can be repeated, and text concatenation under the limit."""

    def _with_step(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.Filter(nodes.Const(0), _STEP, [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        changed: nodes.Node = node
        return changed

    visit_For = visit_Macro = visit_CallBlock = _with_step

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b`."""
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, _JOIN, [], [], None, None, lineno=node.lineno)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandboxed environment whose templates end, and take no more memory than they should.

    Templates are compiled and rendered within `bounded()`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._local = threading.local()
        for name in _WITHOUT_FILTERS:
            del self.filters[name]
        for name in _WITHOUT_GLOBALS:
            del self.globals[name]
        for name, function in self.filters.items():
            self.filters[name] = self._charged(name, function)
        self.filters[_STEP] = pass_context(lambda _context, _: self._charge(1))
        self.filters[_JOIN] = lambda parts: self._concatenated(map(str, parts))
        self.concat = self._concatenated  # type: ignore[method-assign]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        instrumented: nodes.Template = _Instrumented().visit(tree)
        return instrumented

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """A new budget, for this thread."""
        self._local.left = _STEPS
        self._local.end = time.thread_time() + _SECONDS
        yield

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter besides jinja2's."""
        self.filters[name] = self._charged(name, function)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: none of numbers and bytes, and none that pads text."""
        if isinstance(obj, bytes | int | float) or (isinstance(obj, str) and attr in _WITHOUT_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call that a template makes."""
        original = getattr(__obj, "__wrapped__", __obj)
        owner, name = getattr(original, "__self__", None), getattr(original, "__name__", "")
        if isinstance(owner, str):
            __self._refuse_growth(name, owner, args)
        __self._charge(_cost(owner, *args))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator between two values."""
        self._charge(_cost(left, right))
        if operator == "%" and isinstance(left, str):
            _refuse_wide(left)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            _require(bits <= _MOST_BITS)
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if hasattr(sequence, "__len__") and isinstance(times, int):
                self._require_room(sequence, len(sequence) * times)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._require_room(left, len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item or a slice."""
        if isinstance(argument, slice):
            self._charge(_cost(obj))
        return super().getitem(obj, argument)

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            values = args[1:] if hasattr(function, "jinja_pass_arg") else args
            self._charge(_cost(*values))
            if values and isinstance(values[0], str):
                self._refuse_growth(name, values[0], (*values[1:], *kwargs.values()))
            elif name == "join" and values:
                listed = list(values[0])
                self._refuse_growth(name, str(next(iter([*values[1:2], kwargs.get("d", "")]), "")), (listed,))
                at = len(args) - len(values)
                args = (*args[:at], listed, *args[at + 1 :])
            elif name == "tojson":
                _require(all(not isinstance(value, int) or value <= 16 for value in kwargs.values()))
            return function(*args, **kwargs)

        return charged

    def _refuse_growth(self, name: str, text: str, args: tuple[Any, ...]) -> None:
        """Refuse what makes of a text a much longer one."""
        if name == "replace" and len(args) > 1:
            new = len(str(args[1]))
            self._require_room(text, len(text) + text.count(str(args[0])) * new)
        elif name == "join" and args:
            parts = list(args[0]) if isinstance(args[0], list | tuple | dict | str) else []
            self._require_room(text, sum(len(str(part)) + len(text) for part in parts))
        elif name == "indent":
            width = sum(len(value) if isinstance(value, str) else value for value in args if value is not None)
            self._require_room(text, len(text) + (text.count("\n") + 1) * width)
        elif name == "format":
            _refuse_wide(text)

    def _require_room(self, value: Any, size: int) -> None:
        _require(size <= (LONGEST_TEXT if isinstance(value, str) else _LONGEST_LIST))
        self._charge(size // 1000)

    def _concatenated(self, parts: Iterable[str]) -> str:
        kept: list[str] = []
        size = 0
        for part in parts:
            size += len(part)
            _require(size <= LONGEST_TEXT)
            kept.append(part)
        self._charge(1 + size // 1000)
        return "".join(kept)

    def _charge(self, cost: int) -> None:
        self._local.left -= cost
        if self._local.left < 0 or time.thread_time() > self._local.end:
            raise SecurityError("it does not come to an end")


def _cost(*values: Any) -> int:
    """Steps that working on values is worth."""
    cost = 1
    for value in values:
        if isinstance(value, str):
            cost += len(value) // 1000
        elif isinstance(value, list | tuple | Mapping):
            cost += len(value) // 10
    return cost


def _refuse_wide(text: str) -> None:
    """Refuse a format with wide fields, or with widths that are computed."""
    _require(not (len(text) > 100_000 or _WIDE.search(text)))


def _require(possible: bool) -> None:
    if not possible:
        raise SecurityError("it makes something too large")
