"""A crawl: many hosts at the same time, each of them asked for one thing at a time."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial

from llmkit import __version__
from llmkit.console import Progress
from llmkit.data.sources.config import WebSource
from llmkit.data.web.addresses import networks
from llmkit.data.web.cache import PageCache, Stored
from llmkit.data.web.request import Answer, Limits, RequestError, get
from llmkit.data.web.robots import Getter, RobotsText, Rules, get_robots
from llmkit.data.web.urls import host_of, normal_url, origin_of

_ROBOTS_SECONDS = 24 * 3600.0
"""How old a robots.txt may be (RFC 9309, 2.4)."""
_SHORTEST_BACK_OFF = 1.0
_FAILURES = 5
"""So many pages in a row that are not to be had for reasons that may pass, and a host is given up."""


@dataclass(slots=True)
class _Wanted:
    """A page on its way.

    Args:
        url: what the source asked for.
        at: where redirects have led so far.
        seen: where they have led before.
        tried: how often `at` was asked for.
    """

    url: str
    at: str
    seen: list[str] = field(default_factory=list)
    tried: int = 0


@dataclass(slots=True)
class _Host:
    """What is wanted of a host, and how it has answered."""

    name: str
    queue: deque[_Wanted] = field(default_factory=deque)
    pause: float = 0.0
    ready: float = 0.0
    waiting: bool = False
    """Whether it stands in line, or is being asked."""
    failures: int = 0
    robots_tried: int = 0
    given_up: str | None = None


_Outcome = Answer | RequestError | RobotsText
_Job = Callable[[Limits], Answer | RobotsText]


class Crawler:
    """Fetches pages into a cache.

    The order of things, for each page: the robots.txt of its origin, once; the page; where it redirects, the same again
    for the new place, in the line of the host that it is on. Between any two requests to a host lies the pause of the
    settings, or a longer one that its robots.txt wants; after an error that may pass, one that doubles each time, or
    what the host asks for by `Retry-After`. A host that keeps failing is given up.

    Args:
        config: the source.
        cache: where everything goes.
        getter: what makes one request.
    """

    def __init__(self, config: WebSource, cache: PageCache, getter: Getter = get) -> None:
        self._config = config
        self._cache = cache
        self._get = getter
        self._limits = Limits(
            seconds=config.seconds,
            size=round(config.megabytes * (1 << 20)),
            types=[kind.lower() for kind in config.types],
            allowed=networks(config.allow_addresses),
            user_agent=f"{config.agent}/{__version__} (+{config.contact})",
        )
        self._hosts: dict[str, _Host] = {}
        self._rules: dict[str, Rules] = {}
        self._line: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()

    def fetch(self, urls: Iterable[str], bar: Progress, limits: Limits | None = None) -> None:
        """Ask for URLs in normal form; afterwards the cache knows of each a page, or why there is none.

        Args:
            urls: each once.
            bar: advances by one for each.
            limits: other ones than for pages.
        """
        for url in urls:
            self._enqueue(_Wanted(url, url))
        used = limits or self._limits
        running: dict[Future[_Outcome], tuple[_Host, _Wanted | None, str]] = {}
        with ThreadPoolExecutor(self._config.connections, "crawl") as pool:
            try:
                while self._line or running:
                    while self._line and len(running) < self._config.connections and self._is_ready():
                        host = self._hosts[heapq.heappop(self._line)[2]]
                        wanted, job, about = self._next_job(host, bar)
                        if job is not None:
                            running[pool.submit(job, used)] = (host, wanted, about)
                    self._await(running, bar)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def limits(self) -> Limits:
        """The limits of pages."""
        return self._limits

    def _is_ready(self) -> bool:
        return self._line[0][0] <= time.monotonic()

    def _await(self, running: dict[Future[_Outcome], tuple[_Host, _Wanted | None, str]], bar: Progress) -> None:
        """Wait until something was answered or a host may be asked, and take in the answers."""
        room = self._line and len(running) < self._config.connections
        pause = max(0.0, self._line[0][0] - time.monotonic()) if room else None
        if not running:
            time.sleep(pause or 0.0)
            return
        done, _ = wait(running, timeout=pause, return_when=FIRST_COMPLETED)
        for future in done:
            host, wanted, origin = running.pop(future)
            host.ready = time.monotonic() + host.pause
            try:
                outcome = future.result()
            except RequestError as error:
                outcome = error
            if isinstance(outcome, RobotsText):
                self._take_robots(host, origin, outcome)
            elif wanted is not None:
                self._take(host, wanted, outcome, bar)
            host.waiting = False
            self._line_up(host)

    def _enqueue(self, wanted: _Wanted, *, first: bool = False) -> None:
        name = host_of(wanted.at)
        host = self._hosts.setdefault(name, _Host(name, pause=self._config.seconds_between))
        if first:
            host.queue.appendleft(wanted)
        else:
            host.queue.append(wanted)
        self._line_up(host)

    def _line_up(self, host: _Host) -> None:
        if host.queue and not host.waiting:
            host.waiting = True
            heapq.heappush(self._line, (host.ready, next(self._numbers), host.name))

    def _next_job(self, host: _Host, bar: Progress) -> tuple[_Wanted | None, _Job | None, str]:
        """What to ask a host for next. Pages that may not be asked for are settled on the way."""
        while host.queue:
            wanted = host.queue[0]
            origin = origin_of(wanted.at)
            if host.given_up is not None:
                self._settle(host.queue.popleft(), RequestError("unreadable", host.given_up, temporary=True), bar)
                continue
            rules = self._known_rules(host, origin)
            if rules is None:
                return None, partial(self._ask_robots, origin), origin
            refusal = rules.refusal(wanted.at)
            if refusal is None:
                return host.queue.popleft(), partial(self._get, wanted.at), origin
            self._settle(host.queue.popleft(), RequestError("refused", refusal, temporary=rules.unread), bar)
        host.waiting = False
        return None, None, ""

    def _ask_robots(self, origin: str, limits: Limits) -> RobotsText:
        return get_robots(origin, limits, self._get)

    def _known_rules(self, host: _Host, origin: str) -> Rules | None:
        if origin not in self._rules:
            robots = self._cache.get_robots(origin, _ROBOTS_SECONDS)
            if robots is None:
                return None
            self._use_robots(host, origin, robots)
        return self._rules[origin]

    def _use_robots(self, host: _Host, origin: str, robots: RobotsText) -> None:
        rules = self._rules[origin] = Rules(robots, self._config.agent)
        if rules.pause > self._config.longest_wait:
            host.given_up = f"its robots.txt wants a pause of {rules.pause:,.0f} s, longer than `longest_wait`"
            return
        host.pause = max(host.pause, rules.pause)
        host.ready = max(host.ready, time.monotonic() + host.pause)

    def _take_robots(self, host: _Host, origin: str, robots: RobotsText) -> None:
        host.robots_tried += 1
        if robots.temporary and host.robots_tried < self._config.attempts:
            self._back_off(host, host.robots_tried, robots.retry_after)
            return
        host.robots_tried = 0
        self._cache.put_robots(origin, robots)
        self._use_robots(host, origin, robots)

    def _take(self, host: _Host, wanted: _Wanted, outcome: Answer | RequestError, bar: Progress) -> None:
        """Settle a page, follow it elsewhere, or line it up once more."""
        if isinstance(outcome, RequestError):
            wanted.tried += 1
            if outcome.temporary and wanted.tried < self._config.attempts:
                self._back_off(host, wanted.tried, outcome.retry_after)
                if host.given_up is None:
                    host.queue.appendleft(wanted)
                    return
            host.failures = host.failures + 1 if outcome.temporary else 0
            if host.failures >= _FAILURES and host.given_up is None:
                host.given_up = f"its host was given up after {_FAILURES} pages in a row that could not be had"
            self._settle(wanted, outcome, bar)
            return
        host.failures = 0
        if outcome.location is None:
            self._settle(wanted, outcome, bar)
        else:
            self._redirect(wanted, outcome.location, bar)

    def _redirect(self, wanted: _Wanted, location: str, bar: Progress) -> None:
        seen = [*wanted.seen, wanted.at]
        try:
            target = normal_url(location, wanted.at)
        except ValueError as error:
            self._settle(wanted, RequestError("malformed", f"it redirects to what is no page: {error}"), bar)
            return
        if target in seen:
            self._settle(wanted, RequestError("no text", "its redirects go round in a circle"), bar)
        elif len(seen) > self._config.redirects:
            self._settle(wanted, RequestError("no text", f"more than {self._config.redirects} redirects"), bar)
        else:
            self._enqueue(replace(wanted, at=target, seen=seen, tried=0), first=True)

    def _back_off(self, host: _Host, tried: int, retry_after: float | None) -> None:
        pause = max(host.pause, _SHORTEST_BACK_OFF if self._config.seconds_between else 0.0) * 2.0**tried
        pause = max(min(pause, self._config.longest_wait), retry_after or 0.0)
        if pause > self._config.longest_wait:
            host.given_up = f"its host wants to be left alone for {pause:,.0f} s, longer than `longest_wait`"
        else:
            host.ready = time.monotonic() + pause

    def _settle(self, wanted: _Wanted, outcome: Answer | RequestError, bar: Progress) -> None:
        if isinstance(outcome, RequestError):
            place = f"{wanted.at}: " if wanted.at != wanted.url else ""
            stored = Stored(
                wanted.at, reason=outcome.reason, detail=place + outcome.detail, temporary=outcome.temporary
            )
        else:
            stored = Stored(wanted.at, outcome.type, outcome.charset, outcome.modified, outcome.body)
        self._cache.put(wanted.url, stored)
        bar.advance(note=host_of(wanted.at))
