"""Where the stages of a run are drawn: as columns from left to right, or as rows beside rails on a narrow page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Upstream = Mapping[str, Sequence[str]]
"""Names of the stages that each stage reads; stages in dependency order."""

WIDTH = 1120.0
MOST_COLUMNS = 9
NODE_HEIGHT = 46.0
_GAP_X = 30.0
_GAP_Y = 14.0
_PASS_HEIGHT = 10.0
_NODE_WIDTH = (96.0, 168.0)
_SWEEPS = 12

ROW_HEIGHT = 52.0
_RAIL_GAP = 13.0
_RAIL_MARGIN = 8.0


@dataclass(frozen=True)
class Box:
    """A stage's rectangle: left, top, width and height."""

    name: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Link:
    """The path from a stage to one that reads it; `implied` where another path through other stages leads there too."""

    source: str
    target: str
    path: str
    implied: bool


@dataclass(frozen=True)
class Drawing:
    """A graph in units of a page's pixels."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]


def columns_of(upstream: Upstream) -> dict[str, int]:
    """The column of each stage: after all that it reads, and as close as can be to the first that reads it."""
    earliest: dict[str, int] = {}
    for name, needed in upstream.items():
        earliest[name] = max((earliest[source] + 1 for source in needed), default=0)
    readers: dict[str, list[str]] = {name: [] for name in upstream}
    for name, needed in upstream.items():
        for source in needed:
            readers[source].append(name)
    column = dict(earliest)
    for name in reversed(list(upstream)):
        if readers[name]:
            column[name] = min(column[reader] for reader in readers[name]) - 1
    return column


def is_implied(upstream: Upstream, source: str, target: str) -> bool:
    """Whether `target` reads `source` through another stage as well."""
    between = [name for name in upstream[target] if name != source]
    seen: set[str] = set()
    while between:
        name = between.pop()
        if name == source:
            return True
        if name not in seen:
            seen.add(name)
            between += upstream[name]
    return False


@dataclass
class _Item:
    """A stage, or a link's passage through a column that it only crosses."""

    column: int
    height: float
    before: list[int]
    after: list[int]
    top: float = 0.0

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


def draw_columns(upstream: Upstream) -> Drawing | None:
    """Stages in columns, links from left to right around the stages between; None where there are too many columns.

    The order inside columns follows Sugiyama, Tagawa and Toda 1981: sweeps that put each stage at the mean place of
    its neighbours; then each is moved towards their mean height as far as the others leave room.
    """
    column = columns_of(upstream)
    count = max(column.values(), default=-1) + 1
    if not 0 < count <= MOST_COLUMNS:
        return None
    items = [_Item(column[name], NODE_HEIGHT, [], []) for name in upstream]
    index = {name: place for place, name in enumerate(upstream)}
    pairs = [(source, name) for name, needed in upstream.items() for source in needed]
    routes = {(source, name): _route(items, index[source], index[name]) for source, name in pairs}
    columns = [[place for place, item in enumerate(items) if item.column == number] for number in range(count)]
    _order(columns, items)
    _align(columns, items)
    width = min(_NODE_WIDTH[1], max(_NODE_WIDTH[0], (WIDTH - _GAP_X * (count - 1)) / count))
    gap = (WIDTH - width * count) / (count - 1) if count > 1 else 0.0
    gap = min(gap, 2.5 * _GAP_X)
    left = [round(number * (width + gap), 1) for number in range(count)]
    top = min(item.top for item in items)
    for item in items:
        item.top = round(item.top - top + 1, 1)
    boxes = tuple(Box(name, left[column[name]], items[index[name]].top, width, NODE_HEIGHT) for name in upstream)
    links = tuple(
        Link(source, name, _curve([items[place] for place in route], left, width), is_implied(upstream, source, name))
        for (source, name), route in routes.items()
    )
    bottom = max(item.top + item.height for item in items)
    return Drawing(round(left[-1] + width + 1, 1), round(bottom + 1, 1), boxes, links)


def _route(items: list[_Item], source: int, target: int) -> list[int]:
    """Passages through the columns between two stages, linked to one another; the stages at the ends."""
    route = [source]
    for number in range(items[source].column + 1, items[target].column):
        items.append(_Item(number, _PASS_HEIGHT, [], []))
        route.append(len(items) - 1)
    route.append(target)
    for left, right in pairwise(route):
        items[left].after.append(right)
        items[right].before.append(left)
    return route


def _order(columns: list[list[int]], items: list[_Item]) -> None:
    """Order each column so that few links cross; the best order seen is kept."""
    best, fewest = [list(column) for column in columns], _crossings(columns, items)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        sequence = range(1, len(columns)) if forward else range(len(columns) - 2, -1, -1)
        for number in sequence:
            neighbour = columns[number - 1 if forward else number + 1]
            place = {item: position for position, item in enumerate(neighbour)}
            own = {item: position for position, item in enumerate(columns[number])}
            means = {}
            for item in columns[number]:
                linked = [place[other] for other in (items[item].before if forward else items[item].after)]
                means[item] = sum(linked) / len(linked) if linked else own[item]
            columns[number].sort(key=lambda item: (means[item], own[item]))
        crossings = _crossings(columns, items)
        if crossings < fewest:
            best, fewest = [list(column) for column in columns], crossings
    columns[:] = best


def _crossings(columns: list[list[int]], items: list[_Item]) -> int:
    """How many pairs of links between neighbouring columns cross."""
    total = 0
    for left, right in pairwise(columns):
        place = {item: position for position, item in enumerate(right)}
        ends = [(position, place[other]) for position, item in enumerate(left) for other in items[item].after]
        total += sum(a < c and b > d for a, b in ends for c, d in ends)
    return total


def _align(columns: list[list[int]], items: list[_Item]) -> None:
    """Give each item a height near the mean of its neighbours', in order and without overlap."""
    for column in columns:
        top = 0.0
        for place in column:
            items[place].top = top
            top += items[place].height + _GAP_Y
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = []
            for place in column:
                item = items[place]
                around = [items[other].middle for other in (*item.before, *item.after)]
                wanted.append(sum(around) / len(around) - item.height / 2 if around else item.top)
            _settle([items[place] for place in column], wanted)


def _settle(column: list[_Item], wanted: list[float]) -> None:
    """Move items as near to the tops wanted as their order allows, in the sense of least squares.

    Items that would overlap become a block that moves as one (pool adjacent violators).
    """
    offsets = [0.0]
    for item in column[:-1]:
        offsets.append(offsets[-1] + item.height + _GAP_Y)
    blocks: list[list[float]] = []
    for top, offset in zip(wanted, offsets, strict=True):
        blocks.append([top - offset, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, count), (second, more) = blocks[-2], blocks.pop()
            blocks[-1] = [(first * count + second * more) / (count + more), count + more]
    starts = [start for start, count in blocks for _ in range(int(count))]
    for item, start, offset in zip(column, starts, offsets, strict=True):
        item.top = start + offset


def _curve(route: list[_Item], left: list[float], width: float) -> str:
    """From the right side of the first box to the left side of the last, straight through the columns between."""
    x, y = left[route[0].column] + width, route[0].middle
    parts = [f"M{x:.1f} {y:.1f}"]
    for item in route[1:]:
        next_x, next_y = left[item.column], item.middle
        bend = (next_x - x) / 2
        parts.append(f"C{x + bend:.1f} {y:.1f} {next_x - bend:.1f} {next_y:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
        if item is not route[-1]:
            x += width
            parts.append(f"H{x:.1f}")
    return "".join(parts)


def draw_rows(upstream: Upstream, width: float = 340.0) -> Drawing:
    """Stages in rows, each that is read with a rail at the left from its row down to the last row that reads it."""
    row = {name: position for position, name in enumerate(upstream)}
    last: dict[str, int] = {}
    for name, needed in upstream.items():
        for source in needed:
            last[source] = row[name]
    rail: dict[str, int] = {}
    free_from: list[int] = []
    for name in upstream:
        if name in last:
            lane = next((lane for lane, end in enumerate(free_from) if end <= row[name]), len(free_from))
            if lane == len(free_from):
                free_from.append(0)
            free_from[lane] = last[name]
            rail[name] = lane
    left = _RAIL_MARGIN + _RAIL_GAP * len(free_from)
    height = ROW_HEIGHT - 8.0
    boxes = tuple(Box(name, left, row[name] * ROW_HEIGHT + 1, width - left - 1, height) for name in upstream)
    links = []
    for name, needed in upstream.items():
        for position, source in enumerate(needed):
            x = left - _RAIL_GAP * (rail[source] + 1)
            start = row[source] * ROW_HEIGHT + 1 + height * 0.75
            end = row[name] * ROW_HEIGHT + 1 + height * (0.2 + 0.4 * (position + 1) / (len(needed) + 1))
            links.append(Link(source, name, _rail(left, x, start, end), is_implied(upstream, source, name)))
    return Drawing(width, len(row) * ROW_HEIGHT - 6.0, boxes, tuple(links))


def _rail(left: float, x: float, start: float, end: float) -> str:
    bend = 5.0
    return (
        f"M{left:.1f} {start:.1f}H{x + bend:.1f}Q{x:.1f} {start:.1f} {x:.1f} {start + bend:.1f}"
        f"V{end - bend:.1f}Q{x:.1f} {end:.1f} {x + bend:.1f} {end:.1f}H{left:.1f}"
    )
