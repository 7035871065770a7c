"""Numbers and texts as a reader wants them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

ABSENT = "–"
_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_SI = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, thousands apart; powers of ten where it is very large or small."""
    if value is None or math.isnan(value):
        return ABSENT if value is None else "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -3 <= exponent < 6:
        return minus(f"{value:,.{max(0, digits - 1 - exponent)}f}")
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return minus(f"{mantissa} × 10") + str(int(power)).translate(_SUPERSCRIPTS)


def minus(text: str) -> str:
    """The same with a true minus sign in front."""
    return "−" + text[1:] if text.startswith("-") else text


def count(value: float | None) -> str:
    """A count in full with thousands apart."""
    return ABSENT if value is None else minus(f"{round(value):,}")


def short_count(value: float | None) -> str:
    """A count in thousands, millions, billions or trillions: `3.28 M`."""
    return _scaled(value, _COUNTS, "")


def flops(value: float | None) -> str:
    """A number of floating-point operations: `1.24 PFLOP`."""
    return _scaled(value, _SI, "FLOP")


def flop_rate(value: float | None) -> str:
    """Floating-point operations a second: `310 GFLOP/s`."""
    return _scaled(value, _SI, "FLOP/s")


def file_size(value: float | None) -> str:
    """A number of bytes in decimal units: `3.4 MB`."""
    return _scaled(value, _SI, "B")


def _scaled(value: float | None, units: Iterable[tuple[float, str]], unit: str) -> str:
    if value is None or not math.isfinite(value):
        return significant(value)
    for size, prefix in units:
        # 999.6 thousand reads as 1.00 M, not as 1,000 k.
        if abs(value) >= size * 0.9995:
            return f"{significant(value / size)} {prefix}{unit}"
    whole = float(value).is_integer()
    return f"{count(value) if whole else significant(value)} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """A time span: `0.4 s`, `42 s`, `3 min 04 s`, `1 h 02 min`."""
    if seconds is None or not math.isfinite(seconds):
        return significant(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def share(part: float | None, whole: float | None) -> str:
    """A part of a whole in per cent: `12.3%`."""
    if part is None or not whole:
        return ABSENT
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 99.95 or percent == 0 else f"{percent:.1f}%"


def decimals_for(values: Iterable[float], width: float | None) -> int:
    """Decimals that suit a row of scores.

    Args:
        values: the scores.
        width: the narrowest half-width of their intervals, two digits of which are worth showing; None where unknown.
    """
    largest = max((abs(value) for value in values), default=0.0)
    if width is not None and width > 0:
        wanted = 1 - math.floor(math.log10(width))
    else:
        wanted = 3 - (math.floor(math.log10(largest)) if largest > 0 else 0)
    most = 2 if largest >= 10 else 3 if largest >= 0.1 else 6
    return max(0, min(wanted, most))


def fixed(value: float | None, decimals: int) -> str:
    """A number with so many decimals, thousands apart."""
    if value is None or not math.isfinite(value) or abs(value) >= 1e7:
        return significant(value)
    return minus(f"{value:,.{decimals}f}")


def title(name: str) -> str:
    """A key as words: `bits_per_byte` becomes `bits per byte`."""
    return name.replace("_", " ").replace("/", " / ")


def visible(value: Any) -> str:
    """A text with control characters replaced by their pictures, so that none is lost on the page."""
    return str(value).translate(_CONTROLS)


def encodable(text: str) -> str:
    """The text with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shortened(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters of a text, and how many more there are."""
    return (text, 0) if len(text) <= limit else (text[:limit], len(text) - limit)


def slug(name: str) -> str:
    """A name as part of an id in the page: letters, digits, hyphen and underscore stay, others become their code."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f".{ord(found.group()):x}.", name)


def cell(value: Any) -> str:
    """Any value in a table of properties."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return count(value) if value.is_integer() else significant(value, 4)
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value) or ABSENT
    return str(value)
