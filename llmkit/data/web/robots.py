"""What robots.txt allows (RFC 9309)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmkit.data.web.request import Answer, Limits, RequestError
from llmkit.data.web.urls import normal_url

_LARGEST_BYTES = 1 << 19
_REDIRECTS = 5
_ABSENT = (404, 410)


Getter = Callable[[str, Limits], Answer]
"""`request.get`, or what stands in for it."""


@dataclass(frozen=True, slots=True)
class RobotsText:
    """The robots.txt of an origin.

    Args:
        text: what it says; empty where there is none.
        problem: why it cannot be read, in which case nothing is allowed.
        temporary: whether it may be readable another time.
        retry_after: seconds after which the server wants to be asked again.
    """

    text: str = ""
    problem: str | None = None
    temporary: bool = False
    retry_after: float | None = None


def get_robots(origin: str, limits: Limits, get: Getter) -> RobotsText:
    """Ask an origin for its robots.txt, following redirects as RFC 9309, 2.3.1.2 has it.

    Where the server says that there is none (404, 410), all is allowed. Where it gives no answer that can be read,
    nothing is: an error of the server, no answer, or a refusal (401, 403), which the RFC would let pass.
    """
    limits = replace(limits, types=None, size=_LARGEST_BYTES)
    url = f"{origin}/robots.txt"
    try:
        for _ in range(_REDIRECTS + 1):
            answer = get(url, limits)
            if answer.location is None:
                return RobotsText(answer.body.decode("utf-8-sig", "replace"))
            url = normal_url(answer.location, url)
    except RequestError as error:
        if error.status in _ABSENT:
            return RobotsText()
        return RobotsText("", error.detail, error.temporary, error.retry_after)
    except ValueError as error:
        return RobotsText("", f"it redirects to what is no URL of the web: {error}")
    return RobotsText("", f"more than {_REDIRECTS} redirects")


class Rules:
    """What an origin allows to a crawler.

    Args:
        robots: its robots.txt.
        agent: name of the crawler.
    """

    def __init__(self, robots: RobotsText, agent: str) -> None:
        from protego import Protego

        self._parsed: Any = Protego.parse(robots.text)
        self._problem = robots.problem
        self.unread = robots.problem is not None
        self._agent = agent
        self.pause = self._wanted_pause()
        """Seconds that it wants between two requests."""

    def refusal(self, url: str) -> str | None:
        """Why a URL may not be asked for, as half of a sentence; None where it may."""
        if self._problem is not None:
            return f"its robots.txt cannot be read ({self._problem}), and so nothing is asked for"
        return None if self._parsed.can_fetch(url, self._agent) else f"its robots.txt forbids it to {self._agent}"

    def _wanted_pause(self) -> float:
        delay = self._parsed.crawl_delay(self._agent) or 0.0
        rate = self._parsed.request_rate(self._agent)
        if rate is not None and rate.requests:
            delay = max(delay, rate.seconds / rate.requests)
        return float(delay) if math.isfinite(delay) and delay > 0 else 0.0
