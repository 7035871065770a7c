"""What a person sees while work is done: lines and progress on stderr, results on stdout.

Progress is a live bar on a terminal and plain lines, seconds apart, anywhere else, so that a log file stays readable.
Nothing here keeps state between calls, and rich is imported only when a terminal is there to draw on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.text import Text

PLAIN_INTERVAL_SECONDS = 10.0
WIDTH = 80
"""Columns that a line of progress fits."""


def say(text: str) -> None:
    """Print one line for the person watching (stderr)."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print one line that deserves attention (stderr)."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """Print a result for machines: one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, sort_keys=False, default=str)
    sys.stdout.write("\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Marked:
    """A text in pieces, some of which are marked: by colours on a terminal that has them, by signs anywhere else.

    Args:
        pieces: texts with a key of `MARKS` each.
        between: what stands between two pieces where there are no colours.
    """

    pieces: tuple[tuple[str, str], ...]
    between: str = ""

    def __str__(self) -> str:
        return self.between.join(MARKS[mark].begin + text + MARKS[mark].end for text, mark in self.pieces)


@dataclass(frozen=True)
class Mark:
    """Signs around a piece, and two styles in turns, as rich names them."""

    begin: str = ""
    end: str = ""
    styles: tuple[str, str] = ("", "")


MARKS = {
    "": Mark(),
    "place": Mark(styles=("bold", "bold")),
    "token": Mark(styles=("black on color(252)", "black on color(247)")),
    "learned": Mark("[[", "]]", ("black on color(157)", "black on color(114)")),
    "gone": Mark("[-", "-]", ("black on color(217)", "black on color(217)")),
    "new": Mark("{+", "+}", ("black on color(157)", "black on color(157)")),
}
"""What a piece can be marked as: where something is, a token, one that is learned, words that only one text has."""
_BAR = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(value: float, largest: float) -> str:
    """A bar of up to 24 columns, its end to an eighth of a column; nothing for 0, and something for anything more."""
    eighths = max(round(_BAR * 8 * value / largest), 1) if value else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def emit_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None, bars: str | None = None
) -> None:
    """Print a result for people: a table on stdout, numbers to the right, in the width of the terminal.

    Args:
        columns: their names.
        rows: values, which may be `Marked`.
        title: what stands above.
        bars: name of a column of numbers that is also drawn, as bars at the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    body = [list(row) for row in rows]
    if bars is not None:
        numbers = [row[list(columns).index(bars)] for row in body]
        columns = [*columns, ""]
        body = [[*row, bar(number, max(numbers))] for row, number in zip(body, numbers, strict=True)]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, name in enumerate(columns):
        cells = [row[index] for row in body if row[index] not in (None, "")]
        numeric = bool(cells) and all(isinstance(cell, (int, float)) for cell in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    console = Console(file=sys.stdout, soft_wrap=False, markup=False, highlight=False, emoji=False)
    coloured = console.color_system is not None and not console.no_color
    for row in body:
        table.add_row(
            *[_coloured(cell) if coloured and isinstance(cell, Marked) else format_cell(cell) for cell in row]
        )
    console.print(table)


def _coloured(cell: Marked) -> Text:
    from rich.text import Text

    shades = ((text, MARKS[mark].styles[index % 2]) for index, (text, mark) in enumerate(cell.pieces))
    return Text.assemble(*shades)


def format_cell(value: Any) -> str:
    """A value as short text: four significant digits, thousands apart, a dash for what is not there."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def format_seconds(seconds: float) -> str:
    """A duration as `1h02m`, `3m04s` or `5.2s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class Progress:
    """Progress of one piece of work; made by `progress`."""

    def __init__(self, label: str, total: int | None, done: int, stream: TextIO) -> None:
        self._label = label
        self._total = total
        self._done = done
        self._stream = stream
        self._begun_at, self._last = done, time.monotonic()
        self._began = self._last

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units as done and show `note` (current loss, rate) beside them.

        Parts of the note, `, ` between them, are left out from the end where the line has no room for all.
        """
        self._done += amount
        self._draw(note)

    def _draw(self, note: str) -> None:
        now = time.monotonic()
        finished = self._total is not None and self._done >= self._total
        if now - self._last < PLAIN_INTERVAL_SECONDS and not finished:
            return
        self._last = now
        of = f"/{self._total:,}" if self._total is not None else ""
        left = ""
        if self._total is not None and not finished and self._done > self._begun_at:
            pace = (now - self._began) / (self._done - self._begun_at)
            left = f", {format_seconds(pace * (self._total - self._done))} left"
        begin = f"{self._label}: {self._done:,}{of}"
        shown = shortened(note, WIDTH - len(begin) - 1 - len(left))
        line = f"{begin} {shown}{left}" if shown else begin + left
        print(line, file=self._stream, flush=True)


class _LiveProgress(Progress):
    """The same on a terminal: a bar drawn by rich."""

    def __init__(self, label: str, total: int | None, done: int, stream: TextIO) -> None:
        super().__init__(label, total, done, stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=Console(file=stream),
            transient=False,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="")
        self._bar.start()

    def _draw(self, note: str) -> None:
        # Bar, time left and the gaps between columns take 25.
        begin = f"{self._label} {self._total:,}/{self._total:,}" if self._total is not None else self._label
        room = max(WIDTH, self._bar.console.width) - len(begin) - 25
        self._bar.update(self._task, completed=self._done, note=shortened(note, room))

    def close(self) -> None:
        self._bar.stop()


def shortened(note: str, room: int) -> str:
    """As many parts of a note, from its begin, as fit into so many columns."""
    parts = note.split(", ")
    while parts and len(", ".join(parts)) > room:
        parts.pop()
    return ", ".join(parts)


def format_bytes(size: float) -> str:
    """Bytes as `512 MiB` or `1.2 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@contextmanager
def progress(label: str, total: int | None = None, done: int = 0) -> Iterator[Progress]:
    """Show progress of `total` units of which `done` are done already (after a resume).

    Yields:
        an object whose `advance(amount, note)` counts units as done.
    """
    if sys.stderr.isatty():
        live = _LiveProgress(label, total, done, sys.stderr)
        try:
            yield live
        finally:
            live.close()
    else:
        yield Progress(label, total, done, sys.stderr)


def summary_line(values: Mapping[str, Any], most: int = 5) -> str:
    """`a 1.234, b 5` from the first numbers of a mapping, for the closing line of a stage.

    Values of the last training step, cost and nested values are left to the manifest and the report.
    """
    hidden = ("train_", "seconds", "flops", "peak_memory")
    shown = {key: value for key, value in values.items() if not key.startswith(hidden)}
    numbers = [f"{key} {format_cell(value)}" for key, value in shown.items() if isinstance(value, (int, float, str))]
    return ", ".join(numbers[:most])
